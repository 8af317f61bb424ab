"""The `websockets` client through bufproxy to uvicorn on a Unix socket."""

import concurrent.futures
import os
import signal
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

UVICORN = ["uvicorn", "--uds", "{socket}", "--no-access-log", "tests.apps.asgi:app"]


def run(matrix):
    venv = matrix.venv("websockets", "uvicorn", "websockets")
    with matrix.proxy(venv, UVICORN, ["--restart", "on"]) as proxy:
        for check in (
            text, binary, a_megabyte, fragments, ping, close_code_of_the_app, close_code_of_the_client,
            twenty_at_once, plain_requests_beside_it, restart_of_the_app,
        ):
            matrix.check(check.__name__, check, proxy)
    with matrix.proxy(venv, UVICORN) as proxy:
        matrix.check(stop_of_the_proxy.__name__, stop_of_the_proxy, proxy)


def socket(proxy):
    return connect(f"ws://127.0.0.1:{proxy.port}/", open_timeout=20, max_size=None)


def echoes(client, message):
    client.send(message)
    answer = client.recv(20)
    assert answer == message, (len(answer), answer[:100])


def text(proxy):
    with socket(proxy) as client:
        for message in ("hello", "", "ĝis la revido", "x" * 126, "y" * 65536):
            echoes(client, message)


def binary(proxy):
    with socket(proxy) as client:
        for length in (0, 1, 125, 126, 65535, 65536):
            echoes(client, os.urandom(length))


def a_megabyte(proxy):
    with socket(proxy) as client:
        echoes(client, os.urandom(1_000_000))


def fragments(proxy):
    with socket(proxy) as client:
        client.send(iter(["one, ", "two, ", "three"]))
        assert client.recv(20) == "one, two, three"


def ping(proxy):
    with socket(proxy) as client:
        assert client.ping(b"there?").wait(20), "no pong"


def close_code_of_the_app(proxy):
    with socket(proxy) as client:
        client.send("close 4001")
        received = closed(client)
        assert (received.code, received.reason) == (4001, "asked"), received


def close_code_of_the_client(proxy):
    """uvicorn answers a close with the same code."""
    with socket(proxy) as client:
        client.close(4002, "bye")
        assert client.close_code == 4002, client.close_code


def twenty_at_once(proxy):
    def talk(number):
        with socket(proxy) as client:
            for i in range(50):
                echoes(client, f"{number}: {i}")

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        list(pool.map(talk, range(20)))


def plain_requests_beside_it(proxy):
    with socket(proxy) as client:
        for _ in range(20):
            assert proxy.request("GET", "/")[0] == 200
            echoes(client, "still there")


def restart_of_the_app(proxy):
    """Clients of a server that stops are told so; they connect again, and the next server has them."""
    before = int(proxy.request("GET", "/pid")[1])
    with socket(proxy) as client:
        echoes(client, "hello")
        os.kill(before, signal.SIGTERM)
        assert closed(client).code == 1012, client.close_code
    begun = time.monotonic()
    with socket(proxy) as client:
        echoes(client, "hello again")
    assert int(proxy.request("GET", "/pid")[1]) != before
    return f"connected again after {time.monotonic() - begun:.1f} s"


def stop_of_the_proxy(proxy):
    """A tunnel is open until the app closes it, and the exit code is 0."""
    with socket(proxy) as client:
        echoes(client, "hello")
        proxy.process.send_signal(signal.SIGTERM)
        received = closed(client)
        code = proxy.process.wait(30)
        assert code == 0, (code, proxy.lines)
    return f"close code {received and received.code}"


def closed(client):
    """The close frame that came, or None when the connection ended without one."""
    try:
        message = client.recv(20)
    except ConnectionClosed as end:
        return end.rcvd
    raise AssertionError(f"not closed: {message!r:.100}")
