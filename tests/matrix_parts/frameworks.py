"""Django and Flask under gunicorn: what a framework is sensitive to in a request and in its own response."""

import hashlib
import http.client
import json
import os
import re
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlencode

PACKAGES = ["gunicorn", "django", "flask"]
TRUST = ["--trust", "127.0.0.1", "--forwarded", "replace"]
UPLOAD = 50_000_000


def run(matrix):
    venv = matrix.venv("frameworks", *PACKAGES)
    for framework in ("django", "flask"):
        # One worker and one count of posts; it reads its requests one by one as bufproxy has them whole.
        gunicorn = ["gunicorn", "--bind", "unix:{socket}", f"tests.apps.{framework}_app:app"]
        with matrix.proxy(venv, gunicorn, ["--forwarded", "replace"]) as proxy:
            for check in (
                chunked_post, truncated_posts, form_with_token, upload_of_50_mb, slow_upload,
                streaming_response, fields_of_a_stranger,
            ):
                matrix.check(f"{framework}: {check.__name__}", check, proxy)
        with matrix.proxy(venv, gunicorn, TRUST) as proxy:
            matrix.check(f"{framework}: address_behind_trust", address_behind_trust, proxy)


def ask(proxy, method, target, body=None, headers=(), **how):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    connection.request(method, target, body, dict(headers), **how)
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def chunked_post(proxy):
    """Also in chunks of one byte and with extensions and a trailer."""
    sent = os.urandom(300_000)
    blocks = (sent[i : i + 999] for i in range(0, len(sent), 999))
    chunked = {"Transfer-Encoding": "chunked"}
    status, body, _ = ask(proxy, "POST", "/echo", blocks, chunked, encode_chunked=True)
    assert status == 200 and json.loads(body) == summary(sent), (status, body)

    raw = b"".join(b"1;odd=\"yes\"\r\n%c\r\n" % byte for byte in sent[:1000])
    status, body = send(proxy, head("Transfer-Encoding: chunked") + raw + b"0\r\nX-Sum: 1\r\n\r\n")
    assert status == 200 and json.loads(body) == summary(sent[:1000]), (status, body)


def truncated_posts(proxy):
    """Of a post that ends early the app hears nothing; what is wrongly chunked gets a 400."""
    before = count(proxy)
    for half in (
        head("Content-Length: 1000") + b"x" * 10,
        head("Transfer-Encoding: chunked") + b"a\r\n0123456789\r\n",
        head("Transfer-Encoding: chunked") + b"a\r\n01234",
        head("Transfer-Encoding: chunked") + b"a\r\n0123456789\r\n0\r\n",
    ):
        client = socket.create_connection(("127.0.0.1", proxy.port), 30)
        client.sendall(half)
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
        client.close()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    for bad in (b"g\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"-1\r\n", b"3\nabc\n0\n\n"):
        status, _ = send(proxy, head("Transfer-Encoding: chunked") + bad)
        assert status == 400, (bad, status)
    assert count(proxy) == before, "the app has seen half a post"


def form_with_token(proxy):
    _, body, headers = ask(proxy, "GET", "/form")
    token = json.loads(body)["token"]
    cookie = headers["Set-Cookie"].partition(";")[0]
    fields = {"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"}
    form = urlencode({"csrfmiddlewaretoken": token, "name": "Zoë & Co"})
    status, body, _ = ask(proxy, "POST", "/form", form, fields)
    assert (status, json.loads(body)["name"]) == (200, "Zoë & Co"), (status, body)
    status, body, _ = ask(proxy, "POST", "/form", urlencode({"name": "Mallory"}), fields)
    assert status == 403, (status, body)


def upload_of_50_mb(proxy):
    file = os.urandom(UPLOAD)
    status, body, _ = ask(proxy, "POST", "/upload", *multipart(file))
    expected = summary(file) | {"name": "holiday.jpg"}
    assert status == 200 and json.loads(body) == expected, (status, body)


def slow_upload(proxy):
    """The one worker serves others while a file comes in."""
    file = os.urandom(1_000_000)
    body, headers = multipart(file)
    slow = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
    slow.putrequest("POST", "/upload")
    for name, value in (headers | {"Content-Length": str(len(body))}).items():
        slow.putheader(name, value)
    slow.endheaders()
    for begin in range(0, len(body), 100_000):
        slow.send(body[begin : begin + 100_000])
        assert ask(proxy, "GET", "/count")[0] == 200
    response = slow.getresponse()
    answer = json.loads(response.read())
    assert (response.status, answer) == (200, summary(file) | {"name": "holiday.jpg"}), answer


def streaming_response(proxy):
    """The first part is there while the app still waits to send the last."""
    with tempfile.TemporaryDirectory() as directory:
        gate = Path(directory) / "gate"
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
        connection.request("GET", f"/stream?gate={gate}")
        response = connection.getresponse()
        try:
            assert response.readline() == b"first\n"
        finally:
            gate.touch()
        assert response.read() == b"last\n"


def fields_of_a_stranger(proxy):
    """What somebody who is not trusted says of his address and scheme counts nothing."""
    fields = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "Host": "a.example"}
    fields |= {"Forwarded": "for=203.0.113.7;proto=https", "X_Forwarded_For": "203.0.113.7"}
    seen = json.loads(ask(proxy, "GET", "/address", None, fields)[1])
    expected = {"address": "127.0.0.1", "scheme": "http", "url": "http://a.example/x"}
    assert seen == expected, seen


def address_behind_trust(proxy):
    """As README.md says for this framework; the left end is what the client wrote itself."""
    fields = {"X-Forwarded-For": "198.51.100.9, 203.0.113.7", "X-Forwarded-Proto": "https"}
    seen = json.loads(ask(proxy, "GET", "/address", None, fields | {"Host": "a.example"})[1])
    expected = {"address": "203.0.113.7", "scheme": "https", "url": "https://a.example/x"}
    assert seen == expected, seen


def count(proxy):
    return json.loads(ask(proxy, "GET", "/count")[1])["posts"]


def head(framing):
    return f"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{framing}\r\n\r\n".encode()


def send(proxy, request):
    """The status of the answer to these bytes, and its body."""
    with socket.create_connection(("127.0.0.1", proxy.port), 30) as client:
        client.sendall(request)
        answer = client.makefile("rb").read()
    status = re.match(rb"HTTP/1\.1 (\d+) ", answer)
    assert status, answer[:200]
    return int(status[1]), answer.partition(b"\r\n\r\n")[2]


def multipart(file):
    """The body of a form with this file, and its fields."""
    boundary = "----" + os.urandom(8).hex()
    disposition = 'Content-Disposition: form-data; name="file"; filename="holiday.jpg"'
    begin = f"--{boundary}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n".encode()
    end = f"\r\n--{boundary}--\r\n".encode()
    return begin + file + end, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def summary(body):
    return {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
