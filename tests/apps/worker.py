"""A worker that does one thing at a time, for the tests of the wrapped command: it starts at once.

worker.py SOCKET [BOOT_GATE]: answers as soon as the file BOOT_GATE exists (at once without it).
SOCKET is a path that it binds, or - for the listener that was passed to it as descriptor 3.
    /            200
    /pid         its process id
    /gate?PATH   says that it is there, and is 200 when the file PATH exists
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
        os.write(1, b"at the gate\n")
        wait_for(query)
    body = b"x" * (2_000_000 if path == "/big" else 2)
    if path == "/pid":
        body = b"%d" % os.getpid()
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection.sendall(head if method == b"HEAD" else head + body)


def passed():
    """As gunicorn asks for it."""
    assert os.environ["LISTEN_FDS"] == "1", os.environ
    assert os.environ["LISTEN_PID"] == str(os.getpid()), os.environ
    return 3


def main(path, gate=None):
    for name in NAMES:
        signal.signal(getattr(signal, name), note)
    with socket.socket(socket.AF_UNIX, fileno=passed() if path == "-" else None) as listener:
        if path != "-":
            listener.bind(path)
            listener.listen(16)
        listener.setblocking(True)
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
