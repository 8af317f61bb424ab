#!/usr/bin/env python3
"""What becomes of requests while the app restarts, reloads, recycles its workers, is away, or loses
them: real gunicorn under 300 requests a second, GET and POST by turns, each with an id that the app
notes when it begins with it.

restarts.py --bufproxy PROGRAM --venv DIRECTORY [--full] [--only CASE[,CASE]] [--front NAME[,NAME]]

DIRECTORY is a virtual environment with gunicorn. --full: over 10,000 requests a case instead of 2,400.
--front: bufproxy, nginx, haproxy; the other two are counted, not judged, and only where gunicorn runs
apart. Standard library only. The last line is `N passed, N failed`; the exit code is 1 when one failed.
"""

import asyncio
import collections
import contextlib
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from cases import arguments
from lifecycle import NGINX, REPOSITORY, Program, children, free_port, request

RATE = 300
WORKERS = 8
# What a worker is busy with one request: eight of them do twice the rate.
BUSY = 0.01
LIMIT = 60

HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:{port}
    default_backend app
backend app
    retries 3
    option redispatch
    server app unix@{dir}/app.sock
"""


class Load:
    """Requests at a fixed rate, each on a connection of its own. Outcomes by method: a status, `cut`
    (no head), `cut within` (the head had come) or `refused`."""

    def __init__(self, port, rate, seconds):
        self.port, self.rate, self.count = port, rate, rate * seconds
        self.results = collections.Counter()
        self.failed = {}
        self.slowest = 0.0

    async def run(self, act):
        acting = asyncio.create_task(act)
        begun, requests = time.monotonic(), []
        for n in range(self.count):
            await asyncio.sleep(begun + n / self.rate - time.monotonic())
            requests.append(asyncio.create_task(self.one(n)))
        await asyncio.wait_for(asyncio.gather(*requests), LIMIT)
        acting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await acting

    async def one(self, n):
        method = ("GET", "POST")[n % 2]
        begun = time.monotonic()
        try:
            outcome = await self.exchange(n, method)
        except ConnectionRefusedError:
            outcome = "refused"
        except (OSError, asyncio.IncompleteReadError):
            outcome = "cut"
        self.slowest = max(self.slowest, time.monotonic() - begun)
        self.results[f"{method} {outcome}"] += 1
        if outcome != 200:
            self.failed[n] = outcome

    async def exchange(self, n, method):
        # Every fifth POST is longer than what goes to a worker in one write.
        body = b"" if method == "GET" else b"x" * (20_000 if n % 10 == 1 else 20)
        head = f"{method} /record?id={n}&s={BUSY} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
            try:
                await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError):
                return "cut within"
            return int(head.split(b" ")[1])
        finally:
            writer.close()


class Scene:
    """gunicorn and a proxy in front of it. `apart`: gunicorn is nobody's child; `masters`: so many of
    it, each an upstream of its own."""

    def __init__(self, run, stack, front, apart=False, masters=1, workers=WORKERS, options=()):
        self.run, self.stack, self.apart, self.workers = run, stack, apart, workers
        self.dir = stack.enter_context(tempfile.TemporaryDirectory())
        os.chmod(self.dir, 0o755)
        self.record = Path(self.dir, "record")
        self.record.touch()
        self.sockets = [Path(self.dir, "app.sock")]
        self.sockets += [Path(self.dir, f"app-{n}.sock") for n in range(1, masters)]
        self.port = free_port()
        self.gunicorn = [run.gunicorn, "--workers", str(workers), "--log-level", "warning", *options,
                         "--chdir", str(REPOSITORY), "tests.apps.wsgi:app"]
        self.env = {"RECORD": str(self.record), "TMPDIR": self.dir}
        self.proxy = self.app = None
        self.killed = 0
        # How long there was no socket, each time, in seconds.
        self.absences = []
        if apart:
            for socket in self.sockets:
                self.start_app(socket)
        self.start_front(front)
        deadline = time.monotonic() + LIMIT
        while not self.answers():
            assert time.monotonic() < deadline, self.proxy.lines
            time.sleep(0.05)
        # Until all of them have loaded the app.
        time.sleep(1)

    def answers(self):
        with contextlib.suppress(OSError, IndexError):
            return request(self.port, "/") == 200

    def start_app(self, socket):
        command = [*self.gunicorn, "--bind", f"unix:{socket}"]
        self.app = self.stack.enter_context(Program(command, **self.env))

    def start_front(self, front):
        if front == "bufproxy":
            command = [self.run.bufproxy, "--access-log", f"{self.dir}/access.log"]
            command += ["--listen", f"127.0.0.1:{self.port}"]
            for socket in self.sockets:
                command += ["--upstream", f"unix:{socket}"]
            if self.apart:
                command += ["--concurrency", str(self.workers)]
            else:
                bind = ["--bind", f"unix:{self.sockets[0]}"]
                command += ["--restart", "on", "--", *self.gunicorn, *bind]
        elif front == "nginx":
            Path(self.dir, "nginx.conf").write_text(NGINX.format(dir=self.dir, port=self.port))
            command = ["nginx", "-c", f"{self.dir}/nginx.conf", "-e", f"{self.dir}/error.log"]
        else:
            Path(self.dir, "haproxy.cfg").write_text(HAPROXY.format(dir=self.dir, port=self.port))
            command = ["haproxy", "-db", "-f", f"{self.dir}/haproxy.cfg"]
        self.proxy = self.stack.enter_context(Program(command, **self.env))

    def master(self):
        """None while there is none."""
        if self.apart:
            return self.app.process.pid
        return next(iter(children(self.proxy.process.pid)), None)

    async def restart_app(self, after):
        """Ends it, and starts it so many seconds after its end."""
        self.app.process.terminate()
        [socket] = self.sockets
        while socket.exists():
            await asyncio.sleep(0.001)
        begun = time.monotonic()
        while self.app.process.poll() is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(after)
        self.start_app(socket)
        while not socket.exists():
            await asyncio.sleep(0.001)
        self.absences.append(time.monotonic() - begun)

    def reasons(self):
        """Why bufproxy did not answer with what the app said, with how often."""
        with contextlib.suppress(FileNotFoundError):
            text = Path(self.dir, "access.log").read_text()
            return collections.Counter(re.findall(r" end=(\w+)", text)) - collections.Counter(ok=1 << 30)

    def executed(self):
        """How often each id was begun with."""
        lines = self.record.read_text().splitlines()
        return collections.Counter(int(line.split()[1]) for line in lines)


# The cases: what is done to the app while requests come.


async def restart(scene, seconds):
    """The app is told to end and started again, by bufproxy."""
    for _ in range(2):
        await asyncio.sleep(seconds / 4)
        while not scene.master():
            await asyncio.sleep(0.01)
        os.kill(scene.master(), signal.SIGTERM)


async def restart_apart(scene, seconds):
    """The app is told to end and started again, by somebody else."""
    for _ in range(2):
        await asyncio.sleep(seconds / 4)
        await scene.restart_app(after=0)


async def away(scene, seconds):
    """The app is stopped for 3 s and started again."""
    await asyncio.sleep(seconds / 4)
    await scene.restart_app(after=3)


async def reload(scene, seconds):
    """HUP every two seconds."""
    for _ in range(seconds // 2):
        await asyncio.sleep(2)
        os.kill(scene.proxy.process.pid, signal.SIGHUP)


async def recycle(scene, seconds):
    """Workers end after a few requests: 60, or 3."""


async def kill(scene, seconds):
    """kill -9 of one worker each second."""
    for _ in range(seconds - 1):
        await asyncio.sleep(1)
        workers = children(scene.master())
        if workers:
            os.kill(scene.run.random.choice(workers), signal.SIGKILL)
            scene.killed += 1


# 300 requests a second are 100 new workers a second. One gunicorn starts at most 20: it waits up to 0.1 s
# after each, and does 54 requests a second. So there are twelve, each an upstream, and then the cores are
# the limit: asked for 300, two of them give 140 a second, with the app loaded by the master and without
# the control socket, which gunicorn closes and opens again for each worker (105 with it). The case asks
# for 50 of each core, 100 of two.
SHORT_LIVED = ["--max-requests", "3", "--preload", "--no-control-socket"]

CASES = {
    "restart": (restart, {}),
    "restart-apart": (restart_apart, {"apart": True}),
    "away": (away, {"apart": True}),
    "reload": (reload, {}),
    "recycle": (recycle, {"options": ["--max-requests", "60"]}),
    "recycle-3": (recycle, {"apart": True, "masters": 12, "workers": 4, "options": SHORT_LIVED},
                  min(RATE, 50 * os.cpu_count())),
    "kill": (kill, {}),
}


def judge(run, front, name):
    """One case behind one front. None: all is as it must be; else what is not."""
    act, how, rate = (*CASES[name], RATE)[:3]
    with contextlib.ExitStack() as stack:
        scene = Scene(run, stack, front, **how)
        seconds = math.ceil(10_200 / rate) if run.full else 8
        load = Load(scene.port, rate, seconds)
        asyncio.run(load.run(act(scene, seconds)))
        executed, killed = scene.executed(), scene.killed
        scene.proxy.process.terminate()
        scene.proxy.end()
        reasons = scene.reasons()
    posts = {n: times for n, times in executed.items() if n % 2}
    twice = sum(times > 1 for times in posts.values())
    again = sum(times > 1 for n, times in executed.items() if not n % 2)
    failed = {what: n for what, n in sorted(load.results.items()) if not what.endswith(" 200")}
    text = ", ".join(f"{n} {what}" for what, n in failed.items()) or "0 failed"
    text += f" ({dict(reasons)})" if reasons else ""
    away = " and ".join(f"{seconds:.2f} s" for seconds in scene.absences)
    print(f"  {name} behind {front}: {load.count} requests, {rate}/s, {text}; the slowest took "
          f"{load.slowest:.2f} s; {killed} workers killed; no socket for {away or '0 s'}; "
          f"executed twice: {twice} POST, {again} GET", flush=True)
    if front != "bufproxy":
        return None
    missed = [n for n in range(load.count) if n not in executed and n not in load.failed]
    # What a killed worker had: one request, and of a GET only what its client has a part of.
    allowed = {"POST 502", "POST cut within", "GET cut within"} if killed else set()
    if twice or missed or set(failed) - allowed or sum(failed.values()) > killed:
        return f"{failed}, {twice} POST twice, answered and not executed: {missed}"
    return None


def main():
    def more(parser):
        parser.add_argument("--full", action="store_true")
        parser.add_argument("--front", default="bufproxy,nginx,haproxy")

    run = arguments(__doc__, CASES, more)
    count = collections.Counter()
    for name in run.only.split(","):
        act, how = CASES[name][:2]
        print(f"{name}: {act.__doc__}", flush=True)
        for front in run.front.split(","):
            other = front != "bufproxy"
            if other and not ("apart" in how and "masters" not in how and shutil.which(front)):
                continue
            problem = judge(run, front, name)
            count["failed" if problem else "passed"] += not other
            if problem:
                print(f"  FAILED: {problem}")
    print(f"{count['passed']} passed, {count['failed']} failed")
    return count["failed"] > 0


if __name__ == "__main__":
    sys.exit(main())
