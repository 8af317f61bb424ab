#!/usr/bin/env python3
"""What the Dockerfile promises, without a container engine: a static binary, run as an arbitrary user
in an empty root that has nothing but a /tmp. Standard library only; needs `unshare` of util-linux.
"""

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
BODY = b"x" * 5_000_000


def build():
    """The image builds for musl, which links statically; here the C library at hand does."""
    target = f"{platform.machine()}-unknown-linux-gnu"
    env = os.environ | {"RUSTFLAGS": "-C target-feature=+crt-static"}
    command = ["cargo", "build", "--quiet", "--profile", "ci", "--bin", "bufproxy"]
    subprocess.run([*command, "--target", target], cwd=REPOSITORY, env=env, check=True)
    return REPOSITORY / "target" / target / "ci" / "bufproxy"


def inside(root, arguments, **options):
    """Runs in `root` as the Dockerfile's USER, with the environment of its ENV lines alone."""
    user, group = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M).groups()
    if os.geteuid() == 0:
        who = ["--setuid", user, "--setgid", group]
    else:
        who = ["--user", f"--map-user={user}", f"--map-group={group}"]
    env = dict(re.findall(r"^ENV (\w+)=(\S+)$", DOCKERFILE, re.M))
    unshare = [shutil.which("unshare"), *who, "--root", root, "--wd", "/"]
    return subprocess.Popen([*unshare, *arguments], env=env, text=True, **options)


def serve(listener):
    """An app that reads a request and answers with the length of its body."""
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as request:
            head = b"".join(iter(request.readline, b"\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", head)
            body = request.read(int(length[1])) if length else b""
            answer = b"%d" % len(body)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)


def main():
    binary = build()
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True)
    assert "not a dynamic" in linked.stderr or "statically" in linked.stdout, linked
    assert re.search(r"^FROM scratch$", DOCKERFILE, re.M), "the image is not empty any more"

    with tempfile.TemporaryDirectory() as root, socket.socket(socket.AF_UNIX) as listener:
        os.chmod(root, 0o755)
        shutil.copy(binary, root)
        tmp = Path(root, "tmp")
        tmp.mkdir()
        tmp.chmod(0o1777)
        listener.bind(str(tmp / "app.sock"))
        (tmp / "app.sock").chmod(0o777)
        listener.listen(16)
        threading.Thread(target=serve, args=[listener], daemon=True).start()

        arguments = ["/bufproxy", "--listen", "127.0.0.1:0", "--upstream", "unix:/tmp/app.sock"]
        proxy = inside(root, arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            boot = proxy.stderr.readline()
            port = int(re.search(r"listening on 127\.0\.0\.1:(\d+)", boot)[1])
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            # Larger than the memory of a body: it goes through a file in /tmp.
            client.request("POST", "/", BODY)
            response = client.getresponse()
            assert (response.status, response.read()) == (200, b"%d" % len(BODY)), response.status

            healthcheck = re.search(r'^HEALTHCHECK .*CMD \["(.*)"\]$', DOCKERFILE, re.M)[1]
            assert inside(root, healthcheck.split('", "')).wait(10) == 0, "not healthy"
            client.close()
            proxy.send_signal(signal.SIGTERM)
            assert proxy.wait(30) == 0, proxy.returncode
            assert inside(root, healthcheck.split('", "')).wait(10) == 1, "healthy after its end"
        finally:
            proxy.kill()
            proxy.wait()
    print("1 passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())
