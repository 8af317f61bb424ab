"""The app of the rescue case: a worker that is busy for 7 ms, a large answer, and an upload."""

import time

LARGE = b"x" * 6_000_000


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fast":
        time.sleep(0.007)
        body = b"x" * 100
    elif path == "/large":
        body = LARGE
    else:
        body = b"%d" % len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
