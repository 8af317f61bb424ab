"""Datasette by its gunicorn plugin, loaded by Locust: as fast behind bufproxy as bare, and unmoved by slow
clients.

The plugin sets an asynchronous worker class in its code, where `concurrency auto` cannot read it, so
auto must leave the requests unlimited. The ratios are shown; on a busy machine they prove nothing.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import sqlite3
import statistics
import subprocess
import tempfile

from real_apps import REPOSITORY

PACKAGES = [
    "datasette==0.65.5", "datasette-gunicorn==0.1.1", "gunicorn==23.0.0", "uvicorn==0.34.3", "setuptools<81",
]
PAGES = ["/my/people.json?_size=20", "/my/people?_size=20", "/my.json?sql=select+count(*)+from+people"]
LOCUST, LOCUSTFILE = "locust==2.47.0", REPOSITORY / "tests" / "apps" / "datasette_load.py"
USERS, SECONDS, SLOW = 32, 20, 50


def run(matrix):
    venv = matrix.venv("datasette", *PACKAGES)
    locust = matrix.venv("locust", LOCUST) / "bin" / "locust"
    with tempfile.TemporaryDirectory() as directory:
        database = f"{directory}/my.db"
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("create table people (id integer primary key, name text, born integer)")
            rows = ((f"somebody {i}", 1900 + i % 120) for i in range(5000))
            connection.executemany("insert into people (name, born) values (?, ?)", rows)
            connection.commit()
        with datasette(matrix, venv, database) as (proxy, bare):
            matrix.check("concurrency auto is off", concurrency_is_off, proxy)
            matrix.check("the same pages", same_pages, proxy.port, bare)
            matrix.check("load", load, locust, proxy.port, bare, 2)
        keep = ["--upstream-keepalive", "3s"]
        with datasette(matrix, venv, database, keep) as (proxy, bare):
            matrix.check(f"load, {' '.join(keep)}", load, locust, proxy.port, bare, 1)


@contextlib.contextmanager
def datasette(matrix, venv, database, options=()):
    """bufproxy in front of it, and its own port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["datasette", "gunicorn", database, "-p", str(port), "-w", "4"]
    with matrix.proxy(venv, command, options, upstream=f"127.0.0.1:{port}") as proxy:
        yield proxy, port


def concurrency_is_off(proxy):
    assert any(" concurrency off (" in line for line in proxy.lines), proxy.lines


def same_pages(proxied, bare):
    for page in PAGES:
        one, other = (without_times(get(port, page)) for port in (proxied, bare))
        assert one == other and one[0] == 200, (page, one, other)


def load(locust, proxied, bare, rounds):
    """By turns bare, proxied, and proxied beside slow clients."""
    runs = {"bare": [], "alone": [], "disturbed": []}
    for _ in range(rounds):
        runs["bare"].append(visited(locust, bare))
        runs["alone"].append(visited(locust, proxied))
        with contextlib.ExitStack() as slow:
            for number in range(SLOW):
                slow.enter_context(slow_client(proxied, number))
            runs["disturbed"].append(visited(locust, proxied))
    (rate, wait), (alone, alone_wait), (disturbed, disturbed_wait) = (
        map(statistics.mean, zip(*of)) for of in runs.values()
    )
    return (
        f"bare {rate:.0f}/s, {wait:.0f} ms on average; behind bufproxy {alone / rate:.2f} and "
        f"{alone_wait / wait:.2f} of it; with {SLOW} slow clients {disturbed / alone:.2f} and "
        f"{disturbed_wait / alone_wait:.2f} of that"
    )


def visited(locust, port):
    """Requests a second of Locust's users, who ask again when they are answered, and the average wait in ms."""
    size = ["-u", str(USERS), "-r", str(USERS), "-t", f"{SECONDS}s"]
    command = [locust, "-f", LOCUSTFILE, "-H", f"http://127.0.0.1:{port}", "--headless", *size, "--json"]
    env = {**os.environ, "PAGES": " ".join(PAGES)}
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-2000:])
    pages = json.loads(ended.stdout)
    done, failed = (sum(page[name] for page in pages) for name in ("num_requests", "num_failures"))
    assert done and not failed, f"{failed} of {done} failed"
    lasted = max(p["last_request_timestamp"] for p in pages) - min(p["start_time"] for p in pages)
    return done / lasted, sum(page["total_response_time"] for page in pages) / done


def slow_client(port, number):
    """Half a request, or a whole one whose answer is not read."""
    client = socket.create_connection(("127.0.0.1", port), 30)
    if number % 2:
        client.sendall(b"POST /my/people HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nhalf")
    else:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /my/people.json?_size=1000 HTTP/1.1\r\nHost: a\r\n\r\n")
    return client


def get(port, page):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", page, headers={"Host": "a.example"})
    response = connection.getresponse()
    return response.status, response.read()


def without_times(answer):
    """Pages tell how long their queries took."""
    return answer[0], re.sub(rb"[\d.]+ ?ms|\"query_ms\": [\d.]+", b"", answer[1])
