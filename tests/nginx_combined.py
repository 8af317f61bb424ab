#!/usr/bin/env python3
"""Makes tests/corpus/combined.jsonl: odd requests, and the line of nginx's `combined` for each.

    python3 tests/nginx_combined.py

Needs nginx; the tests that read the corpus do not. Each line of the corpus is an object: `request`
(a character for each byte), `msec`, `status` and `bytes` (nginx's $msec, $status and
$body_bytes_sent for this very request) and `line`. The upstream answers every request with
`X-Length` bytes, 2 if there is no such field. Time zone is UTC.
"""

import base64
import json
import os
import pathlib
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time

CONF = """
daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 64; }}
http {{
  log_format facts '$msec $status $body_bytes_sent';
  access_log {dir}/combined.log combined;
  access_log {dir}/facts.log facts;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://unix:{dir}/app.sock:; }}
  }}
}}
"""


def get(*fields, line=b"GET / HTTP/1.1", host=True):
    """A request with these field lines."""
    fields = ((b"Host: a.example",) if host else ()) + fields
    return b"\r\n".join((line, *fields, b"Connection: close", b"", b""))


def basic(credentials):
    return b"Authorization: Basic " + base64.b64encode(credentials)


def requests():
    """The corpus, sorted by what is odd."""
    # Plain ones.
    yield get()
    yield get(b"User-Agent: Mozilla/5.0 (X11; Linux x86_64)", b"Referer: https://b.example/c?d=e")
    yield get(line=b"GET / HTTP/1.0")
    yield get(line=b"GET / HTTP/1.0", host=False)
    for length in (0, 1, 4096, 100000):
        yield get(b"X-Length: %d" % length)
    yield get(line=b"HEAD /head HTTP/1.1")
    # Methods.
    for method in (b"POST", b"PUT", b"PATCH", b"DELETE"):
        yield get(b"Content-Length: 3", line=method + b" /m HTTP/1.1") + b"abc"
    for method in (b"OPTIONS", b"TRACE", b"PROPFIND", b"MKCOL", b"PURGE", b"M-SEARCH", b"A_B", b"X"):
        yield get(line=method + b" /m HTTP/1.1")
    for method in (b"get", b"Get", b"G ET", b"GET\t", b"G\xc9T", b'G"T', b"G\\T", b"G\x00T", b"123", b"!"):
        yield get(line=method + b" /m HTTP/1.1")
    yield get(line=b"VERYLONGMETHOD" * 4 + b" / HTTP/1.1")
    yield get(line=b"OPTIONS * HTTP/1.1")
    yield get(line=b"GET * HTTP/1.1")
    yield get(line=b"CONNECT a.example:443 HTTP/1.1")
    yield get(line=b"CONNECT / HTTP/1.1")
    # Targets.
    for target in (
        b"/?", b"/?a=b&c=d", b"/??", b"//", b"///a//b", b"/./a/../b", b"/..", b"/../../etc/passwd",
        b"/%", b"/%4", b"/%zz",
        b"/%00", b"/%0d%0aSet-Cookie:x", b"/%22%5C", b'/"', b'/a"b"c', b'/?q="', b"/\\", b"/\\x22",
        b"/a\\\"b", b"/'", b"/`", b"/<script>",
        b"/{}", b"/[]", b"/|", b"/^", b"/~", b"/;a=b", b"/#fragment", b"/a#b?c", b"/?a#b", b"/\xe9",
        b"/\xc3\xa9", b"/?\xff", b"/\x80\x9b",
        b"/\x01", b"/\x08", b"/\x1b[31m", b"/\x7f", b"/?\x7f", b"/\x00", b"/a\x00b", b"/a\tb",
        b"/a b", b"/ ", b"/a  b", b"/a\x0bb", b"/a\x0cb",
        b"/\xe2\x80\xa8", b"/\xf0\x9f\x98\x80", b"/a\rb", b"a", b"", b"?", b"a/b",
        b"http://a.example", b"http://a.example/", b"http://a.example/x?y",
        b"http://a.example?y", b"HTTP://A.EXAMPLE/x", b"https://a.example/x",
        b"http://a.example:80/", b"http://user:pw@a.example/", b"http:///x",
        b"http://", b"ftp://a.example/x", b"http://[::1]/x", b"http://a b/x", b"/:80", b"/.",
        b"/index.html?x=/../", b"/" + b"a" * 1000,
        b"/?" + b"%41" * 600, b"/" + b'"' * 300, b"/" + b"\xff" * 200, b"/" + b"l" * 7000,
    ):
        yield get(line=b"GET " + target + b" HTTP/1.1")
    # Versions and what stands for them.
    for rest in (
        b"", b" ", b" HTTP", b" HTTP/", b" HTTP/1", b" HTTP/1.", b" HTTP/1.2", b" HTTP/1.9",
        b" HTTP/1.10", b" HTTP/1.1000", b" HTTP/2.0", b" HTTP/0.9",
        b" HTTP/3.0", b" HTTP/11.1", b" http/1.1", b" HTTP/1.1 ", b" HTTP/1.1  ", b" HTTP/1.1 x",
        b" HTTP/1.1\t", b" HTTP/01.1", b" HTTP/1,1", b" HTTQ/1.1",
        b"  HTTP/1.1", b"\tHTTP/1.1", b" x HTTP/1.1", b" HTTP/1.1 HTTP/1.1", b" HTTP/-1.1",
        b" HTTP/1.1\x00", b" HTTP/1.\xb1", b' HTTP/1.1"',
    ):
        yield get(line=b"GET /v" + rest)
    # Who asked, where the line is malformed: nginx reads no fields after a line that it refuses.
    for line in (
        b"GET /a b HTTP/1.1", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET /\xff HTTP/1.1",
        b"GET /\x01 HTTP/1.1", b'GET /"\\ HTTP/1.1', b"GET / HTTP/2.0",
        b"GET / http/1.1", b"GET / HTTP/1.x", b"G\xc9T / HTTP/1.1", b"GET a HTTP/1.1", b"GET /v",
        b"GET /#f HTTP/1.1", b"CONNECT a.example:443 HTTP/1.1", b"x",
        b"GET http://a.example/\xe9 HTTP/1.1", b"GET http:/a HTTP/1.1", b"GET / HTTP/1.1\t",
        b"GET\t/ HTTP/1.1", b"GET http://a\xe9/ HTTP/1.1",
    ):
        yield get(b"User-Agent: odd line", b"Referer: r", line=line)
    # Not HTTP at all.
    yield b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(60)) + b"\r\n\r\n"
    yield b"\x80\x2e\x01\x00\x02\r\n"
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + get()
    yield b"SSH-2.0-OpenSSH_9.2\r\n"
    yield b"\x00\r\n\r\n"
    yield b"\x04\x01\x00\x50\x01\x02\x03\x04\x00\r\n"
    yield b'"\r\n\r\n'
    yield b"\\x22\r\n\r\n"
    yield b"-\r\n\r\n"
    yield b"*\r\n\r\n"
    yield b" / HTTP/1.1\r\n\r\n"
    yield b"GET\r\n\r\n"
    yield b"GET \r\n\r\n"
    yield b"GET /only-a-line\r\n"
    yield b"\xff" * 50 + b"\r\n\r\n"
    yield b'GET /x" 200 5 "-" "forged\r\n\r\n'
    # Line ends.
    yield b"\r\n" + get()
    yield b"\r\n\r\n" + get()
    yield b"\n" + get()
    yield b"\n\n" + get(b"User-Agent: after LF")
    yield get(b"User-Agent: lf", b"Referer: r").replace(b"\r\n", b"\n")
    yield b"GET / HTTP/1.1\nHost: a\r\nUser-Agent: mixed\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: a\nUser-Agent: mixed\r\nReferer: r\n\r\n"
    yield b"GET / HTTP/1.1\rHost: a\r\rUser-Agent: cr\r\r"
    yield b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"
    # Heads that end in the middle.
    yield b"GET /cut"
    yield b'GET /cut"\x80 HTTP/1.'
    yield b"GET /cut HTTP/1.1\r\n"
    yield b"GET /cut HTTP/1.1\r\nHost: a\r\nUser-Agent: whole\r\nReferer: par"
    yield b"G"
    # User agents and referers, which end in the line as they came.
    for value in (
        b"", b" ", b"   ", b"-", b"--", b'"', b'""', b'a"b', b"\\", b'\\"', b"\\x22", b"'", b"%22",
        b"a  b", b"  a  ", b"a\tb", b"\ta", b"a\t", b" \t a \t ",
        b"\x01", b"\x08\x0b\x0c", b"\x1b]0;x\x07", b"\x1b[2Jx", b"\x7f", b"\x80", b"\x9b31m",
        b"\xff\xfe", "é".encode(), "é".encode("latin-1"), "日本語".encode(),
        "😀".encode(), b"\xe2\x80\xae", b"a\x00b", b"a\rb", b"a\r", b'x" "y', b'- - [x] "GET', b"${jndi:ldap://x}", b"() { :;};", b"<?php", b":", b"a: b", b"=",
        b"x" * 1000, b'"' * 200, b"\xff" * 300, b"\xc3", b"null", b"'; DROP TABLE x; --", b"a,b",
        b"%s%n", b"...", b"\x1f\x20\x7e\x7f",
    ):
        yield get(b"User-Agent: " + value, b"Referer: " + value)
    yield get(b"User-Agent:no space", b"Referer:no space")
    yield get(b"USER-AGENT: upper", b"referer: lower")
    yield get(b"User-Agent: one", b"User-Agent: two", b"Referer: one", b"Referer: two")
    yield get(b"User_Agent: underscore", b"Referrer: two r")
    # Fields that end a head early for one or both.
    yield get(b"User-Agent: before", b"Bad Name: x", b"Referer: after")
    yield get(b"User-Agent: before", b"Bad : x", b"Referer: after")
    yield get(b"User-Agent: before", b": no name", b"Referer: after")
    yield get(b"User-Agent: before", b"no colon", b"Referer: after")
    yield get(b"User-Agent: before", b"nocolon", b"Referer: after")
    yield get(b"User-Agent: before", b" folded", b"Referer: after")
    yield get(b"User-Agent: before", b"\tfolded", b"Referer: after")
    yield get(b"User-Agent : before", b"Referer: after")
    yield get(b"User-Agent: before", b"X@Y: x", b"Referer: after")
    yield get(b"User-Agent: before", b"X\xe9: x", b"Referer: after")
    yield get(b"User-Agent: before", b"X\x01: x", b"Referer: after")
    yield get(b"User-Agent: before", b"X(Y): x", b"Referer: after")
    yield get(b"User-Agent: before", b"X: \x00", b"Referer: after")
    yield get(b"User-Agent: before", b"X: \x01", b"Referer: after")
    yield get(b"User-Agent: before", b"Host: second", b"Referer: after")
    yield get(b"User-Agent: before", b"Host:", b"Referer: after", host=False)
    yield get(b"User-Agent: before", b"Host: a b", b"Referer: after", host=False)
    yield get(b"User-Agent: before", b"Host: a/b", b"Referer: after", host=False)
    yield get(b"User-Agent: no host", b"Referer: r", host=False)
    yield get(b"User-Agent: before", b"Content-Length: x", b"Referer: after")
    twice = (b"Content-Length: 1",) * 2
    yield get(b"User-Agent: before", *twice, b"Referer: after") + b"a"
    yield get(b"User-Agent: before", b"Content-Length: -1", b"Referer: after")
    yield get(b"User-Agent: before", b"Transfer-Encoding: gzip", b"Referer: after")
    both = (b"Transfer-Encoding: chunked", b"Content-Length: 1")
    yield get(b"User-Agent: before", *both, b"Referer: after") + b"0\r\n\r\n"
    chunked = get(b"User-Agent: u", b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.1")
    yield chunked + b"3\r\nabc\r\n0\r\n\r\n"
    yield get(b"User-Agent: before", b"Expect: x", b"Referer: after")
    yield get(b"User-Agent: late", *(b"X-%d: x" % i for i in range(99)))
    yield get(*(b"X-%d: x" % i for i in range(120)), b"User-Agent: late")
    # Users.
    for credentials in (
        b"alice:secret", b"alice:", b":secret", b"alice", b"", b":", b"a b:c", b'a"b:c', b"a\\b:c",
        b"\xff\xfe:c", "é:c".encode(), b"a\x00b:c", b"a\tb:c",
        b"a\nb:c", b"-:c", b"a:b:c", b" :c", b"ab:c", b"abc:d", b"x" * 200 + b":c", b"\x1b[0m:c",
        b"a [x] \"y:c",
    ):
        yield get(basic(credentials))
    for value in (
        b"Basic", b"Basic ", b"Basic YTpi", b"basic YTpi", b"BASIC YTpi", b"Basic   YTpi",
        b"Basic YTpi=", b"Basic YTpi====", b"Basic YTpiYQ", b"Basic YTpiYQ==x",
        b"Basic YTp", b"Basic YTpi!", b"Basic !YTpi", b"Basic Y", b"Basic YTpi YTpi",
        b"Basic YTp-_w", b"Bearer YTpi", b"BasicYTpi", b"Basic\tYTpi", b"Digest username=\"a\"",
    ):
        yield get(b"Authorization: " + value)
    yield get(basic(b"one:x"), basic(b"two:x"))


class App(socketserver.StreamRequestHandler):
    def handle(self):
        length = 2
        method = self.rfile.readline().split(b" ")[0]
        while (line := self.rfile.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"x-length":
                length = int(value)
        body = b"" if method == b"HEAD" else b"x" * length
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % length
        self.wfile.write(head + body)


def send(port, request):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(request)
        client.settimeout(0.2)
        try:
            while client.recv(65536):
                pass
        except TimeoutError:
            # nginx waits for more. Sooner it would have taken the FIN for a client that left.
            client.shutdown(socket.SHUT_WR)
            client.settimeout(10)
            while client.recv(65536):
                pass
        except ConnectionResetError:
            pass


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main():
    os.environ["TZ"] = "UTC"
    corpus = list(requests())
    with tempfile.TemporaryDirectory() as directory:
        app = socketserver.ThreadingUnixStreamServer(f"{directory}/app.sock", App)
        os.chmod(f"{directory}/app.sock", 0o777)
        threading.Thread(target=app.serve_forever, daemon=True).start()
        port = free_port()
        conf = pathlib.Path(directory, "nginx.conf")
        conf.write_text(CONF.format(dir=directory, port=port))
        nginx = subprocess.Popen(["nginx", "-e", f"{directory}/error.log", "-c", str(conf)])
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    if nginx.poll() is not None:
                        sys.exit("nginx did not start")
                    time.sleep(0.05)
            out, seen = [], 0
            for request in corpus:
                send(port, request)
                for _ in range(500):
                    lines = pathlib.Path(directory, "combined.log").read_bytes().splitlines()
                    facts = pathlib.Path(directory, "facts.log").read_text().splitlines()
                    if len(lines) > seen and len(facts) == len(lines):
                        break
                    time.sleep(0.01)
                else:
                    sys.exit(f"no line for {request!r}")
                msec, status, size = facts[seen].split()
                entry = dict(
                    request=request.decode("latin-1"),
                    msec=round(float(msec) * 1000),
                    status=int(status),
                    bytes=int(size),
                    line=lines[seen].decode("ascii"),
                )
                out.append(json.dumps(entry) + "\n")
                if len(lines) != seen + 1:
                    sys.exit(f"{len(lines) - seen} lines for {request!r}: {lines[seen:]}")
                seen = len(lines)
        finally:
            nginx.terminate()
            nginx.wait()
            app.shutdown()
    path = pathlib.Path(__file__).parent / "corpus" / "combined.jsonl"
    path.write_text("".join(out))
    print(f"{path}: {len(out)} requests")


if __name__ == "__main__":
    main()
