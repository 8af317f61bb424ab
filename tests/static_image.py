#!/usr/bin/env python3
"""What the Dockerfile promises, without a container engine: a static binary, run as an arbitrary user
in an empty root. Standard library only; needs `unshare` of util-linux.

static_image.py [BINARY]; without one it is built.
"""

import contextlib
import http.client
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
USER = re.search(r"^USER (\d+:\d+)$", DOCKERFILE, re.M)[1]
HEALTHCHECK = re.search(r'^HEALTHCHECK .*CMD \["(.*)"\]$', DOCKERFILE, re.M)[1].split('", "')
BODY = b"x" * 5_000_000


def body_goes_through_a_file_and_health_is_told(binary):
    with image(binary) as root, socket.socket(socket.AF_UNIX) as listener:
        make_tmp(root)
        listener.bind(f"{root}/tmp/app.sock")
        os.chmod(f"{root}/tmp/app.sock", 0o777)
        serve(listener)
        with proxy(root, "--upstream", "unix:/tmp/app.sock") as running:
            # Larger than the memory of a body.
            assert running.post(BODY) == (200, b"%d" % len(BODY))
            assert inside(root, HEALTHCHECK).wait(10) == 0, "not healthy"
            running.stop()
            ended = inside(root, HEALTHCHECK, stderr=subprocess.DEVNULL).wait(10)
            assert ended == 1, "healthy after its end"


def any_user_will_do(binary):
    with image(binary) as root, socket.create_server(("127.0.0.1", 0)) as listener:
        make_tmp(root)
        serve(listener)
        arguments = ["--upstream", f"127.0.0.1:{port_of(listener)}"]
        with proxy(root, *arguments, user="1234567:0") as running:
            assert running.post(BODY)[0] == 200


def names_are_resolved(binary):
    with image(binary) as root, socket.create_server(("127.0.0.1", 0)) as listener:
        make_tmp(root)
        serve(listener)
        # Without any file that knows it.
        with proxy(root, "--upstream", f"localhost:{port_of(listener)}") as running:
            assert running.post(b"12")[0] == 200
        # The file that a container engine mounts.
        Path(root, "etc").mkdir()
        Path(root, "etc/hosts").write_text("127.0.0.1\tapp.internal\n")
        with proxy(root, "--upstream", f"app.internal:{port_of(listener)}") as running:
            assert running.post(b"12")[0] == 200


def image_without_tmp_says_what_it_refuses(binary):
    with image(binary) as root, socket.create_server(("127.0.0.1", 0)) as listener:
        serve(listener)
        arguments = ["--upstream", f"127.0.0.1:{port_of(listener)}", "--memory", "1m"]
        with proxy(root, *arguments, env={}) as running:
            said = running.find("bodies beyond memory will be refused")
            assert said.startswith('bufproxy: warning: --spool-dir "/tmp" (default) cannot be used'), said
            assert running.post(b"12") == (200, b"2")
            assert running.post(BODY)[0] == 503


def build():
    """The image builds for musl, which links statically; here the C library at hand does."""
    target = f"{platform.machine()}-unknown-linux-gnu"
    env = os.environ | {"RUSTFLAGS": "-C target-feature=+crt-static"}
    command = ["cargo", "build", "--quiet", "--profile", "ci", "--bin", "bufproxy"]
    subprocess.run([*command, "--target", target], cwd=REPOSITORY, env=env, check=True)
    return REPOSITORY / "target" / target / "ci" / "bufproxy"


@contextlib.contextmanager
def image(binary):
    """A root with the binary alone."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        shutil.copy(binary, root)
        yield root


def make_tmp(root):
    os.mkdir(f"{root}/tmp")
    os.chmod(f"{root}/tmp", 0o1777)


def inside(root, arguments, user=USER, env=None, **options):
    """Runs in `root` as this user, with the environment of the Dockerfile's ENV lines if not another."""
    user, group = user.split(":")
    if os.geteuid() == 0:
        who = ["--setuid", user, "--setgid", group]
    else:
        who = ["--user", f"--map-user={user}", f"--map-group={group}"]
    if env is None:
        env = dict(re.findall(r"^ENV (\w+)=(\S+)$", DOCKERFILE, re.M))
    unshare = [shutil.which("unshare"), *who, "--root", root, "--wd", "/"]
    return subprocess.Popen([*unshare, *arguments], env=env, text=True, **options)


class Running:
    """bufproxy in the image, listening."""

    def __init__(self, process):
        self.process, self.lines, self.port = process, [], None
        boot = self.find(" listening on ")
        self.port = int(re.search(r" listening on 127\.0\.0\.1:(\d+)", boot)[1])

    def find(self, text):
        """The first line of its diagnostics with this text, said already or still to come."""
        for line in self.lines:
            if text in line:
                return line
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"no line with {text!r}: {self.lines}")

    def post(self, body):
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(client):
            # An early refusal is read, although the body was not.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.request("POST", "/", body)
            response = client.getresponse()
            return response.status, response.read()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.process.returncode


@contextlib.contextmanager
def proxy(root, *arguments, **options):
    command = ["/bufproxy", "--listen", "127.0.0.1:0", *arguments]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = inside(root, command, **options, **streams)
    try:
        yield Running(process)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def serve(listener):
    """An app that reads a request and answers with the length of its body."""

    def run():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as request:
                head = b"".join(iter(request.readline, b"\r\n")).lower()
                length = re.search(rb"content-length: (\d+)", head)
                body = request.read(int(length[1])) if length else b""
                answer = b"%d" % len(body)
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer)
                connection.sendall(head + answer)

    listener.listen(16)
    threading.Thread(target=run, daemon=True).start()


def port_of(listener):
    return listener.getsockname()[1]


def main():
    binary = sys.argv[1] if len(sys.argv) > 1 else build()
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True)
    assert "not a dynamic" in linked.stderr or "statically" in linked.stdout, linked
    assert re.search(r"^FROM scratch$", DOCKERFILE, re.M), "the image is not empty any more"

    checks = [
        body_goes_through_a_file_and_health_is_told,
        any_user_will_do,
        names_are_resolved,
        image_without_tmp_says_what_it_refuses,
    ]
    for check in checks:
        check(binary)
        print(f"ok {check.__name__}")
    print(f"{len(checks)} passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())
