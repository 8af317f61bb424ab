"""The WSGI app of the Procfile and of the tests with real servers. Standard library only."""

import json
import os
import time
from urllib.parse import parse_qs


def app(environ, start_response):
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    route = ROUTES.get(environ["PATH_INFO"], not_found)
    return route(environ, query, start_response)


def hello(environ, query, start_response):
    page = answer(start_response, b"Hello from %d\n" % os.getpid())
    # gunicorn complains of a body in answer to HEAD, which is how bufproxy asks at boot.
    return [] if environ["REQUEST_METHOD"] == "HEAD" else page


def big(environ, query, start_response):
    """`n` bytes, in which the position is recognisable."""
    n = int(query["n"])
    block = b"".join(b"%015d\n" % i for i in range(4096))
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(n))]
    start_response("200 OK", headers)
    return (block[: min(len(block), n - sent)] for sent in range(0, n, len(block)))


def sleep(environ, query, start_response):
    print("sleeping", flush=True)
    time.sleep(float(query["s"]))
    return answer(start_response, b"slept\n")


def until(environ, query, start_response):
    """Answers when there is a file at `path`."""
    print("waiting", flush=True)
    while not os.path.exists(query["path"]):
        time.sleep(0.01)
    return answer(start_response, b"waited\n")


def echo(environ, query, start_response):
    """The request as the app sees it: CGI variables and the length and hash of the body."""
    import hashlib

    body, digest, length = environ["wsgi.input"], hashlib.sha256(), 0
    while block := body.read(65536):
        digest.update(block)
        length += len(block)
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    seen |= {"scheme": environ["wsgi.url_scheme"], "length": length, "sha256": digest.hexdigest()}
    return answer(start_response, json.dumps(seen).encode(), "application/json")


def stream(environ, query, start_response):
    """Ten events, one each 50 ms; all but the first when there is a file at `path`."""
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    for i in range(10):
        yield b"data: %d\n\n" % i
        time.sleep(0.05)
        while "path" in query and not os.path.exists(query["path"]):
            time.sleep(0.01)


def record(environ, query, start_response):
    """Notes in the file RECORD that it has begun with `id`, then takes `s` seconds."""
    file = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND)
    os.write(file, f"{environ['REQUEST_METHOD']} {query['id']}\n".encode())
    os.close(file)
    time.sleep(float(query["s"]))
    return answer(start_response, b"done\n")


def die(environ, query, start_response):
    """Kills its own worker: before the answer, or `after` so many bytes of it."""
    after = int(query.get("after", 0))
    if not after:
        os.kill(os.getpid(), 9)
    write = start_response("200 OK", [("Content-Length", str(2 * after))])
    write(b"x" * after)
    os.kill(os.getpid(), 9)
    return []


def answer(start_response, body, content_type="text/plain"):
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


def not_found(environ, query, start_response):
    start_response("404 Not Found", [("Content-Length", "0")])
    return []


ROUTES = {
    "/": hello,
    "/big": big,
    "/sleep": sleep,
    "/until": until,
    "/echo": echo,
    "/stream": stream,
    "/die": die,
    "/record": record,
}
