#!/usr/bin/env python3
"""Bodies on a disk that is slow, small, full, gone, read-only or broken: what fits is whole, what does not
is refused clearly, nothing is left. What needs root and mounts of its own, for .ci/full.

disk.py --bufproxy PROGRAM [--only CASE[,CASE]]

Standard library only. Each case prints what it has counted; the last line is `N passed, N failed,
N skipped`; the exit code is 1 when one failed. Mounts and cgroups are removed whatever happens.
"""

import argparse
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

MB = 1 << 20
LIMIT = 60
CGROUPS = Path("/sys/fs/cgroup/memory")
PATTERN = random.Random(6).randbytes(2 * MB)
BODY = PATTERN[:MB]


class Skip(Exception):
    pass


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted(where, *arguments):
    where.mkdir(exist_ok=True)
    run("mount", *arguments, where)
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@contextlib.contextmanager
def tmpfs(directory, size):
    with mounted(directory / "tmpfs", "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as where:
        yield where


@contextlib.contextmanager
def ext4(directory, size):
    """On a loop device, its file in `directory`."""
    image = directory / "image"
    run("truncate", "-s", size, image)
    run("mkfs.ext4", "-q", "-m", "0", image)
    with mounted(directory / "ext4", "-o", "loop", image) as where:
        yield where


@contextlib.contextmanager
def cgroup(limit):
    path = CGROUPS / f"bufproxy-disk-{os.getpid()}"
    try:
        path.mkdir()
        (path / "memory.limit_in_bytes").write_text(str(limit))
    except OSError as error:
        raise Skip(f"no memory cgroup of version 1: {error}") from None
    try:
        yield path
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                path.rmdir()
                break
            time.sleep(0.05)


class App:
    """GET: a body of 1 MB. Anything else is read whole and compared: 200, or 500."""

    def __init__(self, directory):
        self.path = f"{directory}/app.sock"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(1024)
        self.changed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65536)
            head, body = received.split(b"\r\n\r\n", 1)
            body = bytearray(body)
            declared = int((re.search(rb"(?i)content-length: (\d+)", head) or [0, 0])[1])
            while len(body) < declared and (block := connection.recv(1 << 18)):
                body += block
            answer = BODY
            if not head.startswith(b"GET"):
                # A cut one is seen by the app; one of other bytes is not.
                self.changed += body != PATTERN[:len(body)]
                answer = b"whole" if len(body) == declared else b"cut"
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                               % len(answer) + answer)


class Proxy:
    def __init__(self, program, app, directory, spool, *options, group=None):
        self.admin, self.lines = f"{directory}/admin.sock", []
        join = (lambda: (group / "cgroup.procs").write_text("0")) if group else None
        self.process = subprocess.Popen(
            [program, "--listen", "127.0.0.1:0", "--upstream", f"unix:{app.path}", "--concurrency",
             "off", "--spool-dir", str(spool), "--admin", f"unix:{self.admin}",
             "--access-log", f"{directory}/log", "--log-format", "$status $end", *options],
            stderr=subprocess.PIPE, text=True, preexec_fn=join, start_new_session=True)
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r" listening on \S+:(\d+)", line):
                self.port = int(found[1])
                break
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()
        self.log = Path(directory, "log")
        assert self.upload(PATTERN[:5]) == 200
        self.descriptors = self.open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def connect(self, slow=False):
        client = socket.socket()
        if slow:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(LIMIT)
        client.connect(("127.0.0.1", self.port))
        return client

    def stalled(self, sent=MB, declared=2 * MB):
        """An upload that stops."""
        client = self.connect()
        client.sendall(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % declared)
        with contextlib.suppress(OSError):
            client.sendall(PATTERN[:sent])
        return client

    def reader(self):
        """It reads nothing of its response."""
        client = self.connect(slow=True)
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        return client

    def upload(self, body=BODY):
        with self.stalled(len(body), len(body)) as client:
            return answer(client)[0]

    def download(self, client=None):
        """True: whole. False: cut, so that the client sees it."""
        with client or self.reader() as client:
            status, body, whole = answer(client)
            if not whole:
                return False
            assert status == 200 and body == BODY, "other bytes"
            return True

    def spooled(self):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.admin)
            client.sendall(b"GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            text = b""
            while block := client.recv(65536):
                text += block
        found = re.search(rb'"spooled":\s*{([^}]*)}', text)[1]
        return sum(int(n) for n in re.findall(rb'"(?:disk|memory)":\s*(\d+)', found))

    def open(self):
        fds = Path(f"/proc/{self.process.pid}/fd")
        return len([fd for fd in fds.iterdir()])

    def resident(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024

    def ends(self):
        time.sleep(1.2)  # the log is kept back for a second
        ends = {}
        for line in self.log.read_text().splitlines():
            ends[line] = ends.get(line, 0) + 1
        return ends

    def is_as_before(self, most=40 * MB):
        until(lambda: self.open() <= self.descriptors, lambda: f"{self.open()} descriptors")
        until(lambda: self.spooled() == 0, lambda: f"{self.spooled()} bytes spooled")
        assert self.process.poll() is None, self.lines
        assert self.resident() < most, self.resident()


def cached(group):
    return int(re.search(r"^cache (\d+)", (group / "memory.stat").read_text(), re.M)[1])


def room(where):
    found = os.statvfs(where)
    return found.f_bavail * found.f_frsize


def until(happened, what):
    deadline = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def answer(client):
    """Status, body, and whether it is whole."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while b"\r\n\r\n" not in received:
            block = client.recv(65536)
            if not block:
                break
            received += block
        head, _, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length, f"no answer: {bytes(received[:100])!r}"
        while len(body) < int(length[1]) and (block := client.recv(1 << 18)):
            body += block
        return int(head.split(b" ")[1]), body, len(body) == int(length[1])
    return 0, b"", False


# The cases.


def page_cache(program, directory):
    """500 MB on disk, in a cgroup of 256 MB: its page cache is under 20 MB, also while they come and go."""
    app = App(directory)
    # What of the program was not in memory would count for the cgroup.
    Path(program).read_bytes()
    with cgroup(256 * MB) as group, Proxy(
        program, app, directory, directory, "--body-timeout", "5m", group=group,
    ) as proxy:
        if "(memory," in proxy.lines[0]:
            raise Skip(f"{directory} is in memory")
        most = [0, 0]

        def watch():
            while not ended.wait(0.01):
                most[:] = max(most[0], cached(group)), max(most[1], proxy.resident())

        ended = threading.Event()
        watcher = threading.Thread(target=watch)
        watcher.start()
        uploads = [proxy.stalled(MB, 2 * MB) for _ in range(500)]
        until(lambda: proxy.spooled() >= 499 * MB, lambda: f"{proxy.spooled()} bytes")
        until(lambda: cached(group) < 20 * MB, lambda: f"{cached(group)} bytes of page cache")
        left = cached(group)
        for client in uploads:
            client.sendall(PATTERN[MB:])
            client.close()
        proxy.is_as_before()
        ended.set()
        watcher.join()
        assert most[0] < 20 * MB, f"{most[0]} bytes of page cache while they come and go"
    print(f"  500 MB: {left / MB:.1f} MB of page cache when they are on disk ({most[0] / MB:.1f} MB while they "
          f"come and go), at most {most[1] / MB:.1f} MB resident")


def full(program, directory):
    """The disk is full in the middle, on tmpfs and on ext4."""
    for kind in (tmpfs, ext4):
        place = directory / kind.__name__
        place.mkdir()
        app = App(place)
        with kind(place, "24M") as spool, Proxy(
            program, app, place, spool, "--memory", "1m", "--body-timeout", "20s",
        ) as proxy:
            said = [line for line in proxy.lines if "memory" in line and "spool" in line]
            if kind is tmpfs:
                assert "(memory," in proxy.lines[0] and len(said) == 1, proxy.lines
            held = [(proxy.stalled(), MB) for _ in range(12)]
            readers = [proxy.reader() for _ in range(30)]

            def is_full():
                # A response that has met the full disk does not come back to it, and a refused upload
                # leaves room behind.
                if room(spool) > MB // 2:
                    held.append((proxy.stalled(MB // 4), MB // 4))
                return room(spool) <= MB // 2

            until(is_full, lambda: f"{room(spool)} bytes of room")
            results = [proxy.upload() for _ in range(20)]
            assert results.count(503) > 5 and set(results) <= {200, 503}, results
            small = [proxy.upload(PATTERN[:3000]) for _ in range(100)]
            assert set(small) == {200}, small
            fast = [proxy.download(proxy.reader()) for _ in range(3)]
            assert all(fast)
            # Those that were under way before it are whole, or were refused.
            ends = [0, 0]
            for client, sent in held:
                with contextlib.suppress(OSError):
                    client.sendall(PATTERN[sent:])
                ends[answer(client)[0] == 503] += 1
                client.close()
            assert all(proxy.download(reader) for reader in readers), "a response was cut"
            proxy.is_as_before()
            assert [proxy.upload() for _ in range(20)] == [200] * 20, "there is room again"
            assert app.changed == 0
            counted = proxy.ends()
            refused = results.count(503) + ends[1]
            assert counted.get("503 spool_full") == refused, (counted, refused)
        print(f"  {kind.__name__} of 24 MB: {refused} uploads refused, {100 + len(readers) + 3} small uploads "
              f"and responses whole, then all taken again")


def gone(program, directory):
    """The directory is removed in the middle, or read-only, and comes back."""
    app = App(directory)
    with ext4(directory, "64M") as device:
        spool = device / "spool"
        spool.mkdir()
        with Proxy(program, app, directory, spool, "--memory", "1m") as proxy:
            for how in ("removed", "read-only"):
                held = [proxy.stalled() for _ in range(8)]
                readers = [proxy.reader() for _ in range(8)]
                until(lambda: proxy.spooled() > 15 * MB, lambda: "nothing is spooled")
                if how == "removed":
                    spool.rmdir()
                else:
                    # As after an error: files that are open for writing do not hinder it.
                    run("mount", "-o", "remount,abort", device)
                results = [proxy.upload() for _ in range(10)]
                assert results == [503] * 10, results
                assert {proxy.upload(PATTERN[:3000]) for _ in range(50)} == {200}
                assert proxy.download()
                if how == "removed":
                    for client in held:
                        client.sendall(PATTERN[MB:])
                        assert answer(client)[0] == 200, "it had its file already"
                    spool.mkdir()
                    assert all(proxy.download(reader) for reader in readers)
                    assert [proxy.upload() for _ in range(10)] == [200] * 10
                else:
                    for client in held:
                        client.close()
                    whole = [proxy.download(reader) for reader in readers]
                for client in held:
                    client.close()
                proxy.is_as_before()
                assert app.changed == 0
                print(f"  {how}: 10 of 10 uploads refused, 50 of 50 small ones taken"
                      + ("; those under way whole" if how == "removed" else
                         f"; of 8 responses under way {sum(whole)} whole, the others cut"))


def device_errors(program, directory):
    """The device takes no more than a part of what it says it has: EIO when the kernel writes."""
    app = App(directory)
    for forgets in (False, True):
        # An image larger than the memory that it lies in.
        with tmpfs(directory, "20M") as memory, ext4(memory, "200M") as spool, Proxy(
            program, app, directory, spool, "--memory", "1m", "--body-timeout", "20s",
        ) as proxy:
            held = [proxy.stalled() for _ in range(30)]
            readers = [proxy.reader() for _ in range(30)]
            until(lambda: proxy.spooled() > 0, lambda: "nothing is spooled")
            time.sleep(1)
            if forgets:
                # The kernel tries to write everything, and keeps nothing.
                subprocess.run(["sync"], check=False)
                Path("/proc/sys/vm/drop_caches").write_text("1")
            whole = [proxy.download(reader) for reader in readers]
            results = []
            for client in held:
                with contextlib.suppress(OSError):
                    client.sendall(PATTERN[MB:])
                results.append(answer(client)[0])
                client.close()
            assert set(results) <= {200, 500, 503}, results
            assert {proxy.upload(PATTERN[:3000]) for _ in range(50)} == {200}
            proxy.is_as_before()
            assert app.changed == 0, f"{app.changed} uploads were changed"
            assert sum(whole) < 30 or 200 not in results, "no error was met"
            print(f"  {'the page cache dropped' if forgets else 'EIO'}: of 30 responses {sum(whole)} whole, "
                  f"{30 - sum(whole)} cut; of 30 uploads {results.count(200)} whole, "
                  f"{results.count(500)} answered 500, {results.count(503)} 503; none changed")


CASES = [page_cache, full, gone, device_errors]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bufproxy", required=True)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    program = str(Path(options.bufproxy).resolve())
    outcome = {"passed": 0, "failed": 0, "skipped": 0}
    for case in CASES:
        if options.only and case.__name__ not in options.only.split(","):
            continue
        begun = time.monotonic()
        print(f"{case.__name__}: {case.__doc__}", flush=True)
        try:
            with tempfile.TemporaryDirectory(prefix="bufproxy-disk") as directory:
                case(program, Path(directory))
            result = "passed"
        except Skip as reason:
            print(f"  skipped: {reason}")
            result = "skipped"
        except Exception:  # the next case all the same
            traceback.print_exc(file=sys.stdout)
            result = "failed"
        outcome[result] += 1
        print(f"  {result} in {time.monotonic() - begun:.1f} s", flush=True)
    print(", ".join(f"{number} {what}" for what, number in outcome.items()))
    sys.exit(outcome["failed"] > 0)


if __name__ == "__main__":
    main()
