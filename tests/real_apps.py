#!/usr/bin/env python3
"""bufproxy in front of real app servers, one of each worker class: what a first user would try.

real_apps.py --bufproxy PROGRAM --venv DIRECTORY [--only CLASS[,CLASS]]

DIRECTORY is a virtual environment with gunicorn, gevent and uvicorn (.ci/run makes it). Standard
library only. The last line is `N passed, N failed`; the exit code is 1 when one failed.
tests/matrix.py runs the same checks on more versions and servers.
"""

import argparse
import concurrent.futures
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
GUNICORN = ["gunicorn", "--bind", "unix:{socket}", "--workers", "2"]
WSGI = ["tests.apps.wsgi:app"]
CLASSES = {
    "sync": [*GUNICORN, "--worker-class", "sync", *WSGI],
    "gthread": [*GUNICORN, "--worker-class", "gthread", "--threads", "4", *WSGI],
    "gevent": [*GUNICORN, "--worker-class", "gevent", *WSGI],
    "uvicorn": ["uvicorn", "--uds", "{socket}", "--no-access-log", "tests.apps.asgi:app"],
    # Nobody names a socket: it is passed.
    "sync passed": ["gunicorn", "--workers", "2", *WSGI],
    "gevent passed": ["gunicorn", "--workers", "2", "--worker-class", "gevent", *WSGI],
    "uvicorn passed": ["uvicorn", "--workers", "2", "--no-access-log", "tests.apps.asgi:app"],
    "waitress": ["waitress-serve", "--unix-socket={socket}", *WSGI],
    "node": [shutil.which("node") or "node", "tests/apps/server.js", "{socket}"],
}
# One of each worker class, with a socket of its own and with one that is passed: for every change.
FIRST = ["sync", "gthread", "gevent", "uvicorn", "sync passed", "gevent passed", "uvicorn passed"]
# Where the app is asked, unless a server says otherwise.
UNIX = "unix:{socket}"


class Proxy:
    """bufproxy with an app server as its child, on a free port.

    `options` are bufproxy's. The app is asked at `upstream`, the Unix socket {socket} by default; a
    command that does not name it gets one passed.
    """

    def __init__(self, bufproxy, venv, command, directory, options=(), upstream=UNIX):
        socket = f"{directory}/app.sock"
        command = [part.format(socket=socket) for part in command]
        command[0] = str(venv / "bin" / command[0])
        # The server reads neither the user's configuration nor ours.
        env = {"PATH": os.environ["PATH"], "HOME": directory, "PYTHONDONTWRITEBYTECODE": "1"}
        passed = upstream == UNIX and not any(socket in part for part in command)
        to = [] if passed else ["--upstream", upstream.format(socket=socket)]
        arguments = ["--listen", "127.0.0.1:0", *to, *options, "--", *command]
        self.process = subprocess.Popen(
            [bufproxy, *arguments], cwd=REPOSITORY, env=env, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        self.port, self.lines, self.opened = None, [], threading.Event()
        threading.Thread(target=self._collect, daemon=True).start()
        self.opened.wait(60)
        if not any("port open" in line for line in self.lines):
            self.process.kill()
            self.process.wait()
            raise AssertionError("the port does not open:\n" + "".join(self.lines))

    def _collect(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(r" listening on 127\.0\.0\.1:(\d+)", line):
                self.port = int(match[1])
            if "port open" in line:
                self.opened.set()
        self.opened.set()

    def request(self, method, target, body=None, chunked=False):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Transfer-Encoding": "chunked"} if chunked else {}
        connection.request(method, target, body, headers, encode_chunked=chunked)
        response = connection.getresponse()
        return response.status, response.read()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def get(proxy):
    status, body = proxy.request("GET", "/")
    assert (status, body[:5]) == (200, b"Hello"), (status, body)


def post(proxy):
    check_echo(proxy, chunked=False)


def chunked_post(proxy):
    check_echo(proxy, chunked=True)


def check_echo(proxy, chunked):
    """1 MB arrives whole, with its length said, however it was sent."""
    sent = os.urandom(1_000_000)
    body = (sent[i : i + 7777] for i in range(0, len(sent), 7777)) if chunked else sent
    status, answer = proxy.request("POST", "/echo", body, chunked)
    assert status == 200, (status, answer)
    seen = json.loads(answer)
    expected = ("1000000", 1_000_000, hashlib.sha256(sent).hexdigest())
    assert (seen["CONTENT_LENGTH"], seen["length"], seen["sha256"]) == expected, seen


def big_response(proxy):
    n = 5_000_000
    block = b"".join(b"%015d\n" % i for i in range(4096))
    expected = (block * (n // len(block) + 1))[:n]
    status, body = proxy.request("GET", f"/big?n={n}")
    assert status == 200 and body == expected, (status, len(body))


def twenty_at_once(proxy):
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: proxy.request("GET", "/"), range(200)))
    assert all(status == 200 for status, _ in answers), answers


def slow_clients_do_not_disturb(proxy):
    """Thirty half-sent uploads are open, and a fast client is served at once."""
    slow = []
    for _ in range(30):
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
        connection.putrequest("POST", "/echo")
        connection.putheader("Content-Length", "100000")
        connection.endheaders(b"half")
        slow.append(connection)
    begun = time.monotonic()
    get(proxy)
    assert time.monotonic() - begun < 2, "a fast client waited"
    for connection in slow:
        connection.close()


def drain(proxy):
    """A request in flight survives TERM, and the exit code says that all went well. Last."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        in_flight = pool.submit(proxy.request, "GET", "/sleep?s=1")
        time.sleep(0.3)
        code = proxy.stop()
        status, body = in_flight.result()
    assert (status, body, code) == (200, b"slept\n", 0), (status, body, code, proxy.lines)


CHECKS = [get, post, chunked_post, big_response, twenty_at_once, slow_clients_do_not_disturb, drain]


def check_class(bufproxy, venv, name):
    """Runs all checks against one server; how many passed, and how many failed."""
    passed = failed = 0
    with tempfile.TemporaryDirectory() as directory:
        try:
            proxy = Proxy(os.path.abspath(bufproxy), venv.resolve(), CLASSES[name], directory)
        except AssertionError as problem:
            print(f"{name}: {problem}")
            return 0, len(CHECKS)
        try:
            for check in CHECKS:
                try:
                    check(proxy)
                    passed += 1
                    print(f"{name}: {check.__name__} ok")
                except (AssertionError, OSError, http.client.HTTPException) as problem:
                    failed += 1
                    print(f"{name}: {check.__name__} FAILED: {problem!r}")
        finally:
            proxy.process.kill()
            proxy.process.wait()
    return passed, failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bufproxy", required=True)
    parser.add_argument("--venv", required=True, type=Path)
    parser.add_argument("--only", default=",".join(FIRST))
    options = parser.parse_args()
    counts = [check_class(options.bufproxy, options.venv, name) for name in options.only.split(",")]
    passed, failed = map(sum, zip(*counts))
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
