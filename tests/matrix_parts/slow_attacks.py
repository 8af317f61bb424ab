"""slowhttptest, three attacks with 1,000 connections each at the same time, for a minute, against bufproxy
as it comes: every visitor is served, and every attacker who is refused gets an answer."""

import collections
import contextlib
import re
import resource
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONNECTIONS, SECONDS = 1000, 60
# Between two visitors, and the longest that one may wait while the attack is on; slowhttptest's own
# probe waits 5 s.
PAUSE, LONGEST = 0.1, 2.0
GUNICORN = ["gunicorn", "--workers", "2", "--bind", "unix:{socket}", "tests.apps.wsgi:app"]
ATTACKS = {
    "slow headers": ["-H", "-i", "3", "-x", "24"],
    "slow body": ["-B", "-i", "10", "-s", "8192", "-x", "10"],
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
    with contextlib.ExitStack() as stack:
        attacks = {}
        pool = stack.enter_context(ThreadPoolExecutor(len(ATTACKS)))
        for name in ATTACKS:
            log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "access.log"
            proxy = stack.enter_context(matrix.proxy(venv, GUNICORN, ["--access-log", str(log)]))
            attacks[name] = pool.submit(attack, program, proxy, name, log)
        for name, attacked in attacks.items():
            matrix.check(name, attacked.result)


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
    begun = time.monotonic()
    try:
        if half := HALVES.get(name):
            refused = socket.create_connection(("127.0.0.1", proxy.port), SECONDS)
            refused.sendall(half)
        waits, failures = visit(proxy, attacker)
        lasted = time.monotonic() - begun
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
    assert not failures, f"{len(failures)} of {len(waits)} visitors were not served: {failures[:3]}"
    assert max(waits) < LONGEST, f"a visitor waited {max(waits):.1f} s"
    # The last lines may still wait to be written.
    proxy.stop()
    ends = statuses(log)
    if refused:
        answered = sum(count for end, count in ends.items() if end.startswith("408/"))
        assert answered == CONNECTIONS + 1, f"not each of them was answered: {ends}"
    slowest = f"the slowest {1000 * max(waits):.0f} ms"
    return f"{lasted:.0f} s, {len(waits)} visitors, {len(failures)} failed, {slowest}; log: {ends}"


def visit(proxy, attacker):
    """How long each visitor waited, one after the other, until the attack ends, and what went wrong."""
    waits, failures = [], []
    while attacker.poll() is None:
        begun = time.monotonic()
        try:
            status, body = proxy.request("GET", "/")
            assert (status, body[:5]) == (200, b"Hello"), (status, body)
        except Exception as problem:
            failures.append(repr(problem))
        waits.append(time.monotonic() - begun)
        time.sleep(max(0, PAUSE - waits[-1]))
    return waits, failures


def statuses(log):
    """How often each status and end was logged. The lines of saturation-log have neither."""
    ends = re.findall(r"status_code=(\S+) .* end=(\S+)", log.read_text())
    return dict(collections.Counter(map("/".join, ends)))
