"""slowhttptest with 1,000 connections: the app stays available, and who is refused gets an answer.

SLOW_SECONDS in the environment is the length of each attack, 20 by default.
"""

import collections
import os
import re
import resource
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

SECONDS = int(os.environ.get("SLOW_SECONDS", "20"))
CONNECTIONS = 1000
# Seconds that a visitor may wait while the attack is on; slowhttptest's own probe waits 5.
LONGEST = 2.0
GUNICORN = ["gunicorn", "--workers", "2", "--bind", "unix:{socket}", "tests.apps.wsgi:app"]
# Shorter than the defaults, so that attackers are refused within the time of the attack.
TIMEOUTS = ["--header-timeout", "8s", "--body-timeout", "8s"]
ATTACKS = {
    "slow headers": ["-H", "-i", "3", "-x", "24"],
    "slow body": ["-B", "-i", "15", "-s", "8192", "-x", "10"],
    "slow read": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "3"],
}
TARGETS = {"slow headers": "/", "slow body": "/echo", "slow read": "/big?n=500000"}
# What one attacker of ours sends, to see what becomes of him.
HALVES = {
    "slow headers": b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\r\n",
    "slow body": b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8192\r\n\r\nx",
}


def run(matrix):
    program = matrix.program("slowhttptest", "slowhttptest")
    # slowhttptest needs a descriptor for each connection.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    venv = matrix.venv("gunicorn-newest", "gunicorn[gevent]")
    for name in ATTACKS:
        with tempfile.TemporaryDirectory() as directory:
            log = Path(directory) / "access.log"
            options = [*TIMEOUTS, "--access-log", str(log)]
            with matrix.proxy(venv, GUNICORN, options) as proxy:
                matrix.check(name, attack, program, proxy, name, log)


def attack(program, proxy, name, log):
    url = f"http://127.0.0.1:{proxy.port}{TARGETS[name]}"
    size = ["-c", str(CONNECTIONS), "-r", "250", "-l", str(SECONDS), "-p", "5"]
    attacker = subprocess.Popen(
        [program, *ATTACKS[name], *size, "-u", url],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )
    output = []
    reader = threading.Thread(target=lambda: output.extend(attacker.stdout))
    reader.start()
    refused = None
    try:
        if half := HALVES.get(name):
            refused = socket.create_connection(("127.0.0.1", proxy.port), 30)
            refused.sendall(half)
        waits = visit(proxy, attacker)
        if refused:
            answer = refused.makefile("rb").readline()
            assert answer == b"HTTP/1.1 408 Request Timeout\r\n", answer
    finally:
        attacker.kill()
        attacker.wait()
        reader.join()
    seen = re.sub(r"\x1b\[[0-9;]*m", "", "".join(output))
    assert attacker.returncode != 1 and "service available:   YES" in seen, seen[-2000:]
    assert "service available:   NO" not in seen, "by slowhttptest's own probe"
    assert max(waits) < LONGEST, f"a visitor waited {max(waits):.1f} s"
    # The last lines may still wait to be written.
    proxy.stop()
    ends = statuses(log)
    if refused:
        answered = sum(count for end, count in ends.items() if end.startswith("408/"))
        assert answered == CONNECTIONS + 1, f"not each of them was answered: {ends}"
    return f"{len(waits)} visitors, the slowest {1000 * max(waits):.0f} ms; log: {ends}"


def visit(proxy, attacker):
    """How long each visitor waited, one after the other, until the attack ends."""
    waits = []
    while attacker.poll() is None:
        begun = time.monotonic()
        status, body = proxy.request("GET", "/")
        waits.append(time.monotonic() - begun)
        assert (status, body[:5]) == (200, b"Hello"), (status, body)
        time.sleep(0.05)
    return waits


def statuses(log):
    """How often each status and end was logged. A line that is being written is not looked at."""
    lines = log.read_text().split("\n")[:-1]
    field = re.compile(r"status_code=(\S+) .* end=(\S+)")
    return dict(collections.Counter("/".join(field.search(line).groups()) for line in lines))
