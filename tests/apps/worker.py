"""A worker that does one thing at a time, for the tests of the wrapped command: it starts at once.

worker.py SOCKET [BOOT_GATE]: answers as soon as the file BOOT_GATE exists (at once without it).
    /            200
    /gate?PATH   200 when the file PATH exists
    /big         2 MB
    /exit?CODE   ends the program
Signals that it gets are printed, one line each; TERM ends it, once it has been printed.
"""

import os
import signal
import socket
import sys
import time

NAMES = ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU", "SIGWINCH", "SIGQUIT", "SIGTERM", "SIGINT"]


def note(number, _):
    name = signal.Signals(number).name
    os.write(1, b"got %s\n" % name.encode())
    if name in ("SIGTERM", "SIGINT", "SIGQUIT"):
        os._exit(128 + number)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.002)


def serve(connection):
    request = b""
    while b"\r\n\r\n" not in request:
        block = connection.recv(65536)
        if not block:
            return
        request += block
    method, target = request.split(b" ")[:2]
    path, _, query = target.decode().partition("?")
    if path == "/exit":
        os._exit(int(query))
    if path == "/gate":
        wait_for(query)
    body = b"x" * (2_000_000 if path == "/big" else 2)
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection.sendall(head if method == b"HEAD" else head + body)


def main(path, gate=None):
    for name in NAMES:
        signal.signal(getattr(signal, name), note)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        if gate:
            wait_for(gate)
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    serve(connection)
                except ConnectionError:
                    pass


main(*sys.argv[1:])
