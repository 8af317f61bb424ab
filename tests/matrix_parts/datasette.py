"""Datasette by its gunicorn plugin: as fast behind bufproxy as bare, and unmoved by slow clients.

The plugin sets an asynchronous worker class in its code, where `concurrency auto` cannot read it, so
auto must leave the requests unlimited. The ratios are shown; on a busy machine they prove nothing.
"""

import concurrent.futures
import contextlib
import http.client
import re
import socket
import sqlite3
import statistics
import tempfile
import time

PACKAGES = [
    "datasette==0.65.5", "datasette-gunicorn==0.1.1", "gunicorn==23.0.0", "uvicorn==0.34.3", "setuptools<81",
]
PAGES = ["/my/people.json?_size=20", "/my/people?_size=20", "/my.json?sql=select+count(*)+from+people"]
CLIENTS, SECONDS, ROUNDS, SLOW = 8, 3, 3, 50


def run(matrix):
    venv = matrix.venv("datasette", *PACKAGES)
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
            matrix.check("load", load, proxy.port, bare)
        keep = ["--upstream-keepalive", "3s"]
        with datasette(matrix, venv, database, keep) as (proxy, bare):
            matrix.check(f"load, {' '.join(keep)}", load, proxy.port, bare)


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


def load(proxied, bare):
    """Closed loop, by turns bare, proxied, and proxied beside slow clients."""
    rates = {"bare": [], "alone": [], "disturbed": []}
    for _ in range(ROUNDS):
        rates["bare"].append(rate(bare))
        rates["alone"].append(rate(proxied))
        with contextlib.ExitStack() as slow:
            for number in range(SLOW):
                slow.enter_context(slow_client(proxied, number))
            rates["disturbed"].append(rate(proxied))
    bare, alone, disturbed = map(statistics.median, rates.values())
    kept = f"with {SLOW} slow clients {disturbed / alone:.2f} of that"
    return f"bare {bare:.0f}/s, behind bufproxy {alone / bare:.2f} of it, {kept}"


def rate(port):
    """Requests a second of some clients, each with one connection, that ask again when they are answered."""

    def client(number):
        connection, done = http.client.HTTPConnection("127.0.0.1", port, timeout=20), 0
        while time.monotonic() < end:
            connection.request("GET", PAGES[(number + done) % len(PAGES)])
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            done += 1
        return done

    begun = time.monotonic()
    end = begun + SECONDS
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        done = sum(pool.map(client, range(CLIENTS)))
    return done / (time.monotonic() - begun)


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
