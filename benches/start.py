#!/usr/bin/env python3
"""How long a front takes from its exec to the first byte of its first answer, and how large it is.

start.py PROGRAM [ROUNDS]     the release build; nginx and HAProxy where they are installed

An app that is there already answers on a Unix socket; a client tries every 0.2 ms. The fronts take
turns; the figure is the median of the rounds (31). Sizes are of the files, and without symbols.
Standard library only.
"""

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from lifecycle import NGINX, free_port
from restarts import HAPROXY

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def app(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)

    def serve():
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(8192)
                connection.sendall(ANSWER)

    threading.Thread(target=serve, daemon=True).start()


def first_byte(command, port):
    """Seconds from the start to the first byte."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                if client.recv(1):
                    return time.perf_counter() - begun
            assert process.poll() is None, command
            time.sleep(0.0002)
    finally:
        process.terminate()
        process.wait()


def sizes(program, directory):
    stripped = f"{directory}/stripped"
    subprocess.run(["strip", "-o", stripped, os.path.realpath(program)], check=True)
    return [os.path.getsize(path) / 1e6 for path in (os.path.realpath(program), stripped)]


def main(program, rounds=31):
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        app(f"{directory}/app.sock")
        os.chmod(f"{directory}/app.sock", 0o777)
        ports = {name: free_port() for name in ("bufproxy", "nginx", "haproxy")}
        Path(directory, "nginx.conf").write_text(NGINX.format(dir=directory, port=ports["nginx"]))
        Path(directory, "haproxy.cfg").write_text(HAPROXY.format(dir=directory, port=ports["haproxy"]))
        fronts = {
            "bufproxy": [program, "--listen", f"127.0.0.1:{ports['bufproxy']}", "--upstream",
                         f"unix:{directory}/app.sock"],
            "nginx": ["nginx", "-c", f"{directory}/nginx.conf", "-e", f"{directory}/error.log"],
            "haproxy": ["haproxy", "-db", "-f", f"{directory}/haproxy.cfg"],
        }
        fronts = {name: command for name, command in fronts.items() if shutil.which(command[0])}
        times = {name: [] for name in fronts}
        for _ in range(rounds):
            for name, command in fronts.items():
                times[name].append(first_byte(command, ports[name]))
        for name, command in fronts.items():
            file, stripped = sizes(shutil.which(command[0]), directory)
            median = statistics.median(times[name]) * 1000
            print(f"{name}: first byte after {median:.1f} ms; {file:.2f} MB, without symbols {stripped:.2f} MB")


main(sys.argv[1], *map(int, sys.argv[2:]))
