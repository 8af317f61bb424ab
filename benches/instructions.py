#!/usr/bin/env python3
"""Instructions per small request, by callgrind: of the whole process, and of what the HTTP codec is.

instructions.py PROGRAM [PROGRAM ...]

Each PROGRAM is a bufproxy, built with line tables (the release profile has them). It serves one client
with one kept-alive connection, request after request, in front of a thread of this program that
answers 100 bytes; the difference of a long and a short run is divided by the difference of their
requests. It wants valgrind, and nothing else; the machine need not be quiet.
"""

import collections
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading

SHORT, LONG = 500, 2500
# What a Heroku router sends with a browser's request: the bench's own (support/load.rs).
REQUEST = (
    "GET /100 HTTP/1.1\r\nHost: www.example.com\r\nConnection: keep-alive\r\n"
    "User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/141.0.0.0 Safari/537.36\r\n"
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    "Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.9\r\n"
    "Referer: https://www.example.com/orders?page=2\r\n"
    "X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5\r\nX-Forwarded-For: 199.188.193.220\r\n"
    "X-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nVia: 1.1 vegur\r\n"
    "X-Request-Start: 1763888400000\r\n\r\n"
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nServer: app\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\n" + 100 * b"x"
# Source files that are the codec, those of the crates that only it uses included.
CODEC = re.compile(r"src/http1/|/httparse-|src/exchange/(forward|client_head)\.rs")
CASES = {"keep-alive": ["--upstream-keepalive", "60s"], "connection per request": []}


def serve(listener, keep):
    """The app: one connection after the other."""
    while True:
        connection, _ = listener.accept()
        with connection:
            while read_to(connection, b"\r\n\r\n") and (connection.sendall(ANSWER) or keep):
                pass


def read_to(connection, end):
    seen = b""
    while end not in seen:
        if not (some := connection.recv(65536)):
            return False
        seen += some
    return True


def run(program, options, requests):
    """Instructions of a run of so many requests: all, and by source file."""
    with tempfile.TemporaryDirectory() as directory:
        out, app = f"{directory}/out", f"{directory}/app.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(app)
        listener.listen()
        threading.Thread(target=serve, args=(listener, bool(options)), daemon=True).start()
        command = [
            "valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}", program,
            "--listen", "127.0.0.1:0", "--upstream", f"unix:{app}", "--access-log", f"{directory}/log",
            "--log-time", "off", *options,
        ]
        env = {"PATH": os.environ["PATH"]}
        proxy = subprocess.Popen(command, cwd=directory, env=env, stderr=subprocess.PIPE, text=True)
        port = next(int(m[1]) for line in proxy.stderr if (m := re.search(r"listening on 127\.0\.0\.1:(\d+)", line)))
        with socket.create_connection(("127.0.0.1", port)) as client:
            for _ in range(requests):
                client.sendall(REQUEST)
                assert read_to(client, 100 * b"x"), "the connection was closed"
        proxy.terminate()
        proxy.communicate()
        with open(out) as profile:
            return by_file(profile)


def by_file(profile):
    """Own cost of each source file, inlined code included; what is inlined of the standard library counts
    for the file of the function. The format: valgrind's manual, "Callgrind Format Specification"."""
    names, costs = {}, collections.Counter()
    function, file, is_call = None, None, False
    for line in profile:
        if match := re.match(r"(fl|fi|fe|cfi|cfl)=\((\d+)\)(?: (.+))?", line):
            kind, number, name = match.groups()
            file_named = names.setdefault(number, name)
            if not kind.startswith("c"):
                file = file_named
            if kind == "fl":
                function = file
        elif line.startswith("calls="):
            # The next line is what the callee cost.
            is_call = True
        elif re.match(r"[+*\d-]", line):
            if not is_call:
                costs[function if file.startswith("/rustc/") else file] += int(line.split()[1])
            is_call = False
    return costs


def main():
    for program in sys.argv[1:]:
        for case, options in CASES.items():
            short, long = (run(os.path.abspath(program), options, n) for n in (SHORT, LONG))
            long.subtract(short)
            per_request = {file: cost / (LONG - SHORT) for file, cost in long.items()}
            codec = sum(cost for file, cost in per_request.items() if CODEC.search(file))
            print(f"{program}: {case}: {sum(per_request.values()):.0f}, codec {codec:.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
