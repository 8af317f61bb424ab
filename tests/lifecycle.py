#!/usr/bin/env python3
"""bufproxy as the first process of a dyno or container: boots slowly, is killed, is told to stop under
load. What takes too long, or needs root, for `cargo test`.

lifecycle.py --bufproxy PROGRAM --venv DIRECTORY [--only CASE[,CASE]] [--seed N]

DIRECTORY is a virtual environment with gunicorn. Standard library only. Each case prints what it has
counted; the last line is `N passed, N failed, N skipped`; the exit code is 1 when one failed.
"""

import asyncio
import collections
import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from cases import Skip, run_all

REPOSITORY = Path(__file__).resolve().parent.parent
WORKER = ["python3", str(REPOSITORY / "tests/apps/worker.py")]
WSGI = ["--chdir", str(REPOSITORY), "tests.apps.wsgi:app"]
# Nothing here takes longer; what does hangs.
LIMIT = 60

# gunicorn goes on serving after TERM, until bufproxy has finished and sends QUIT.
DRAIN_FIRST = """
import signal
def when_ready(server):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def post_worker_init(worker):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
"""

NGINX = """
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
    upstream app {{ server unix:{dir}/app.sock fail_timeout=0; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 100m;
        location / {{ proxy_set_header Host $http_host; proxy_redirect off; proxy_pass http://app; }}
    }}
}}
"""


class Program:
    """A program with a process group of its own; its lines are collected."""

    def __init__(self, command, inherit=None, **environment):
        env = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
            env=env | environment, pass_fds=[inherit] if inherit else [],
        )
        self.lines = []
        self.changed = threading.Condition()
        self.reader = threading.Thread(target=self._collect, daemon=True)
        self.reader.start()

    def _collect(self):
        for line in self.process.stderr:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def wait_for(self, pattern, limit=LIMIT):
        return self.wait_for_nth(1, pattern, limit)

    def wait_for_nth(self, n, pattern, limit=LIMIT):
        def found():
            matches = (m for line in self.lines if (m := re.search(pattern, line)))
            return next(itertools.islice(matches, n - 1, None), None)

        with self.changed:
            assert self.changed.wait_for(found, limit), f"no {pattern!r}:\n" + "".join(self.lines)
            return found()

    def port(self):
        return int(self.wait_for(r" listening on \S+:(\d+)")[1])

    def end(self, limit=LIMIT):
        """Its exit code, as a shell shows it."""
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError("it hangs:\n" + "".join(self.lines)) from None
        self.reader.join(5)
        return code if code >= 0 else 128 - code

    def signal_all(self, number):
        os.killpg(self.process.pid, number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self.signal_all(signal.SIGKILL)
        self.process.wait()


def children(pid):
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def request(port, target, method="GET"):
    """Status code, or None where the connection is refused."""
    try:
        connection = socket.create_connection(("127.0.0.1", port), LIMIT)
    except ConnectionRefusedError:
        return None
    with connection:
        head = f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        connection.sendall(f"{head}Content-Length: 0\r\n\r\n".encode())
        answer = b""
        while block := connection.recv(65536):
            answer += block
    return int(answer.split(b" ")[1])


# The cases.


def boot(run):
    """An app that imports for 6 s: the port refuses until it answers, the first request is a 200."""
    for named in (False, True):
        with tempfile.TemporaryDirectory() as directory:
            module = "import time; time.sleep(6)\nfrom tests.apps.wsgi import app\n"
            Path(directory, "slow.py").write_text(module)
            address = f"unix:{directory}/app.sock"
            gunicorn = [run.gunicorn, *(["--bind", address] if named else []), "slow:app"]
            port, begun, refused = free_port(), time.monotonic(), 0
            with Program([run.bufproxy, "--listen", f"127.0.0.1:{port}", "--", *gunicorn],
                         PYTHONPATH=f"{directory}:{REPOSITORY}") as proxy:
                while (status := request(port, "/")) is None:
                    refused += 1
                    assert time.monotonic() - begun < LIMIT, proxy.lines
                    time.sleep(0.02)
                took = time.monotonic() - begun
                assert status == 200 and took >= 6, (status, took, proxy.lines)
                proxy.process.terminate()
                assert proxy.end() == 0, proxy.lines
            how = "named socket" if named else "passed socket"
            print(f"  {how}: {refused} connections refused, the first one taken is 200, after {took:.1f} s")


def no_ipv6(run):
    """Where the kernel has no IPv6, the default address is IPv4's."""
    # A seccomp filter: socket(AF_INET6) is EAFNOSUPPORT, all else is allowed.
    script = """
import ctypes, errno, os, struct, sys
def op(code, jt, jf, k):
    return struct.pack("HBBI", code, jt, jf, k)
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
filter = b"".join([
    op(LOAD, 0, 0, 0), op(EQUAL, 0, 3, number),
    op(LOAD, 0, 0, 16), op(EQUAL, 0, 1, 10),
    op(RETURN, 0, 0, 0x00050000 | errno.EAFNOSUPPORT), op(RETURN, 0, 0, 0x7fff0000),
])
text = ctypes.create_string_buffer(filter, len(filter))
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
program = Program(len(filter) // 8, ctypes.addressof(text))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
    sys.exit("no seccomp: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
"""
    port = free_port()
    command = [sys.executable, "-c", script, run.bufproxy, "--upstream", "127.0.0.1:1"]
    with Program([*command, "--connect-retry", "10ms"], PORT=str(port)) as proxy:
        said = proxy.wait_for("no seccomp| listening on (\\S+)")
        if not said[1]:
            raise Skip(said[0])
        assert said[1] == f"0.0.0.0:{port}", proxy.lines
        assert request(port, "/") == 503
        proxy.process.terminate()
        assert proxy.end() == 0, proxy.lines
    print(f"  listening on {said[1]}")


def pid_1(run):
    """In a PID namespace of its own: reaps 1,000 orphans, and its exit code is the app's."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*unshare, "true"], stderr=subprocess.DEVNULL).returncode:
        raise Skip("unshare --pid is not permitted")
    script = """
import os, sys, time
assert os.getppid() == 1
for n in range(1000):
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os._exit(n % 256)
        os._exit(0)
    os.waitpid(middle, 0)
def state(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
deadline = time.monotonic() + 10
while zombies := [p for p in os.listdir("/proc") if p.isdigit() and state(p) == "Z"]:
    if time.monotonic() > deadline:
        sys.exit(99)
print("reaped", file=sys.stderr, flush=True)
"""
    options = ["--listen", "127.0.0.1:0", "--open-port", "early", "--upstream", "127.0.0.1:1"]
    endings = {
        "sys.exit(0)": 0, "sys.exit(3)": 3, "sys.exit(255)": 255,
        "os.kill(os.getpid(), 9)": 137, "os.kill(os.getpid(), 15)": 143,
    }
    for ending, expected in endings.items():
        command = [*unshare, run.bufproxy, *options, "--", sys.executable, "-c", script + ending]
        with Program(command) as proxy:
            code = proxy.end()
            assert code == expected, (ending, code, proxy.lines)
            assert "reaped\n" in proxy.lines, proxy.lines
    command = [*unshare, run.bufproxy, *options, "--", "sleep", "60"]
    with Program(command) as proxy:
        proxy.port()
        [first] = children(proxy.process.pid)
        os.kill(first, signal.SIGTERM)
        assert proxy.end() == 0, proxy.lines
    print(f"  5 times 1,000 orphans, none left; exit codes {list(endings.values())}; TERM: 0")


def kill_9(run):
    """The app is killed at 100 random moments: the end is the documented one, and there is one."""
    ends = collections.Counter()
    for n in range(100):
        with tempfile.TemporaryDirectory() as directory:
            path, gate = f"{directory}/app.sock", f"{directory}/gate"
            when = ("boot", "serve", "drain")[n % 3]
            passed = run.random.random() < 0.5
            options = ["--listen", "127.0.0.1:0", "--upstream", f"unix:{path}"]
            options += ["--pass-socket", "on" if passed else "off", "--retry", "off"]
            command = [run.bufproxy, *options, "--", *WORKER, "-" if passed else path]
            if when == "boot" and n % 2:
                # It never answers, so that the boot lasts.
                command.append(gate)
            with Program(command) as proxy:
                port, moment = proxy.port(), run.random.random()
                threads = []
                if when == "boot":
                    time.sleep(0.15 * moment)
                else:
                    proxy.wait_for("port open")
                    for target in (f"/gate?{gate}", "/", "/big"):
                        client = threading.Thread(target=attempt, args=(port, target))
                        client.start()
                        threads.append(client)
                    time.sleep(0.05 * moment)
                if when == "drain":
                    proxy.process.terminate()
                    threads.append(threading.Timer(0.1, Path(gate).touch))
                    threads[-1].start()
                    time.sleep(0.2 * moment)
                for child in children(proxy.process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
                code = proxy.end(15)
                for thread in threads:
                    thread.join(15)
                    assert not thread.is_alive(), "a client hangs"
                said = "".join(proxy.lines)
                if when == "drain":
                    assert code == 0 and "stopped after" in said, (n, code, said)
                else:
                    assert code == 137 and "killed by signal 9" in said, (n, when, code, said)
                early = "ended before it answered" in said
                ends[when if when != "boot" else "boot" if early else "boot, just open"] += 1
    print(f"  ends as documented: {dict(ends)}")


def attempt(port, target):
    """One request whose end does not matter, as long as there is one."""
    with contextlib.suppress(OSError, IndexError):
        request(port, target)


def hand_over(run):
    """kill -9 of the gunicorn master, then of the master and its workers, under load."""
    with tempfile.TemporaryDirectory() as directory:
        command = [run.bufproxy, "--listen", "127.0.0.1:0", "--restart", "on", "--pass-socket", "on"]
        command += ["--upstream", f"unix:{directory}/app.sock", "--app-timeout", "30s"]
        command += ["--", run.gunicorn, "--workers", "2", *WSGI]
        with Program(command, TMPDIR=directory) as proxy:
            port = proxy.port()
            proxy.wait_for("port open")
            for workers_too in (False, True):
                before = sum("app ended" in line for line in proxy.lines)

                def kill(workers_too=workers_too):
                    [master] = children(proxy.process.pid)
                    victims = [master, *(children(master) if workers_too else [])]
                    # All at once: what one of them had must not be sent again to the next.
                    for number in (signal.SIGSTOP, signal.SIGKILL):
                        for victim in victims:
                            os.kill(victim, number)

                load = Load(port, rate=200, seconds=8, post=True)
                results = asyncio.run(load.run(at={2.05: kill}))
                restarts = sum("; restarting in" in line for line in proxy.lines) - before
                what = "the master and its workers" if workers_too else "the master"
                print(f"  {what}: {dict(results)}, {restarts} restart")
                assert restarts == 1, proxy.lines
                failed = results.total() - results["GET 200"] - results["POST 200"]
                # One request in each of the two workers: a POST that it may have read, or a response
                # whose head the client has. A GET without that is sent again.
                in_workers = 2 if workers_too else 0
                known = sum(results[what] for what in ("POST 502", "POST cut within", "GET cut within"))
                assert failed <= in_workers and failed == known, results
            proxy.process.terminate()
            assert proxy.end() == 0, proxy.lines


def launchers(run):
    """concurrency auto behind real launchers: gunicorn's workers are found, and TTIN reaches it."""
    venv = REPOSITORY / "target/launchers-venv"
    if not (venv / "bin/uv").exists():
        packages = ["gunicorn", "newrelic", "ddtrace", "opentelemetry-distro", "uv"]
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        if subprocess.run([venv / "bin/pip", "install", "--quiet", *packages]).returncode:
            raise Skip("pip install")
    # Nobody is to be told anything.
    quiet = {"NEW_RELIC_ENABLED": "false", "NEW_RELIC_LOG": "stderr", "DD_TRACE_ENABLED": "false",
             "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false", "DD_REMOTE_CONFIGURATION_ENABLED": "false",
             "OTEL_SDK_DISABLED": "true", "UV_OFFLINE": "1", "VIRTUAL_ENV": str(venv),
             "PATH": f"{venv}/bin:{os.environ['PATH']}"}
    for launcher in (["newrelic-admin", "run-program"], ["ddtrace-run"], ["opentelemetry-instrument"],
                     ["uv", "run", "--no-project"], ["sh", "-c"], ["bash", "-c"]):
        with tempfile.TemporaryDirectory() as directory:
            gunicorn = ["gunicorn", "--bind", f"unix:{directory}/app.sock", "--workers", "2", *WSGI]
            if launcher[-1] == "-c":
                # Two commands, so that the shell stays.
                gunicorn = ["true && " + " ".join(gunicorn) + "; exit $?"]
            command = [run.bufproxy, "--listen", "127.0.0.1:0", "--", *launcher, *gunicorn]
            with Program(command, TMPDIR=directory, **quiet) as proxy:
                proxy.wait_for(r"concurrency 2 \(gunicorn sync, 2 workers\)")
                proxy.wait_for("port open")
                proxy.process.send_signal(signal.SIGTTIN)
                proxy.wait_for("concurrency 3: the app has 3 workers")
                [child] = children(proxy.process.pid)
                name = Path(f"/proc/{child}/comm").read_text().strip()
                proxy.process.terminate()
                assert proxy.end() == 0, proxy.lines
        print(f"  {' '.join(launcher)}: 2 workers, 3 after TTIN; our child is {name}")


def take_over(run):
    """Socket activation: one sidecar ends and the next one starts under load, on one listener."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        app = f"unix:{directory}/app.sock"
        gunicorn = [run.gunicorn, "--bind", app, "--workers", "2", *WSGI]
        stack.enter_context(Program(gunicorn)).wait_for("Booting worker")
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048))
        # As systemd does it, which holds the listener all the time.
        activate = f'exec 3<&{listener.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"'

        def start():
            command = ["sh", "-c", activate, run.bufproxy, "--upstream", app]
            sidecar = stack.enter_context(Program(command, inherit=listener.fileno()))
            sidecar.port()
            return sidecar

        def replace():
            first.process.terminate()
            assert first.end() == 0, first.lines
            sidecars.append(start())

        first, sidecars = start(), []
        load = Load(listener.getsockname()[1], rate=200, seconds=4, post=True)
        replacing = threading.Timer(2, replace)
        replacing.start()
        results = asyncio.run(load.run(at={}))
        replacing.join()
        print(f"  {dict(results)}")
        assert results["GET 200"] + results["POST 200"] == results.total() and sidecars, results
        sidecars[0].process.terminate()
        assert sidecars[0].end() == 0, sidecars[0].lines


def hup(run):
    """HUP 100 times under load, plain gunicorn: nothing fails, nothing is left in bufproxy."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "bufproxy.toml")
        file.write_text("queue = 2048\n")
        command = [run.bufproxy, "--listen", "127.0.0.1:0", "--config", file]
        gunicorn = [run.gunicorn, "--bind", f"unix:{directory}/app.sock", "--workers", "4"]
        with Program([*command, "--", *gunicorn, *WSGI], TMPDIR=directory) as proxy:
            port, results = proxy.port(), collections.Counter()
            proxy.wait_for("port open")

            def reload(times):
                for n in times:
                    file.write_text(f"queue = {2048 + n}\n")
                    proxy.process.send_signal(signal.SIGHUP)
                    # Both have done with it: several at once would be one.
                    for said in (" HUP: read ", "Handling signal: hup"):
                        proxy.wait_for_nth(n, said)
                    done.append(n)
                    time.sleep(0.05)

            def reload_under_load(times):
                reloading = threading.Thread(target=reload, args=[times])
                reloading.start()
                while reloading.is_alive():
                    load = Load(port, rate=100, seconds=3, post=True)
                    results.update(asyncio.run(load.run(at={})))
                # For what is given back when a burst is over.
                time.sleep(5)
                return size_of(proxy.process.pid)

            done = []
            # The heap has its size by then.
            before = reload_under_load(range(1, 21))
            after = reload_under_load(range(21, 121))
            print(f"  {len(done)} times, {dict(results)}; after 20 and after 120: descriptors {before[0]} "
                  f"and {after[0]}, resident {before[1]} KiB and {after[1]} KiB")
            assert len(done) == 120 and set(results) == {"GET 200", "POST 200"}, (done, results)
            assert after[0] == before[0] and after[1] - before[1] < 500, (before, after)
            proxy.process.terminate()
            assert proxy.end() == 0, proxy.lines



def size_of(pid):
    """Open descriptors, resident KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return len(os.listdir(f"/proc/{pid}/fd")), int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def term_plain(run):
    """TERM to every process under load: what a plain gunicorn refuses is answered 503."""
    results = term_to_all(run, [run.bufproxy, "--drain-timeout", "25s"], conf="")
    assert_only(results, "fast 200", "fast 503", "fast refused", "upload 200", "upload 503", "reader 200")
    assert results["reader 200"] == READERS, results


def term_passed(run):
    """The same where what waits for gunicorn does so in a listener of ours."""
    command = [run.bufproxy, "--drain-timeout", "25s", "--pass-socket", "on", "--restart", "on"]
    results = term_to_all(run, command, conf="")
    assert_only(results, "fast 200", "fast 503", "fast refused", "upload 503", "reader 200")
    assert results["reader 200"] == READERS, results


def term_drain_first(run):
    """The same with the recipe: nothing that was accepted is lost."""
    command = [run.bufproxy, "--drain-timeout", "25s", "--child-stop-signal", "QUIT"]
    results = term_to_all(run, command, conf=DRAIN_FIRST)
    assert_only(results, "fast 200", "fast refused", "upload 200", "reader 200")
    assert (results["reader 200"], results["upload 200"]) == (READERS, UPLOADS), results


def term_nginx(run):
    """The same with nginx in front, for comparison: its losses are counted."""
    if not shutil.which("nginx"):
        raise Skip("there is no nginx")
    results = term_to_all(run, None, conf="")
    lost = sum(n for what, n in results.items() if what.split()[1] in ("cut", "502", "504"))
    print(f"  nginx has lost {lost} of {results.total() - results['fast refused']} accepted requests")


def assert_only(results, *allowed):
    others = {what: n for what, n in results.items() if what not in allowed}
    assert not others, f"{others} in {dict(results)}"


READERS, UPLOADS = 20, 20


def term_to_all(run, command, conf):
    """200 requests a second, slow readers and slow uploads; TERM to the whole tree after 3 s."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        os.chmod(directory, 0o755)
        Path(directory, "conf.py").write_text(conf)
        address, port = f"unix:{directory}/app.sock", free_port()
        gunicorn = [run.gunicorn, "--bind", address, "--workers", "4", "-c", f"{directory}/conf.py"]
        if command:
            listen = ["--listen", f"127.0.0.1:{port}", "--upstream", address]
            programs = [stack.enter_context(
                Program([*command, *listen, "--", *gunicorn, *WSGI], TMPDIR=directory))]
            programs[0].wait_for("port open")
        else:
            Path(directory, "nginx.conf").write_text(NGINX.format(dir=directory, port=port))
            nginx = ["nginx", "-c", f"{directory}/nginx.conf", "-e", f"{directory}/error.log"]
            programs = [stack.enter_context(Program([*gunicorn, *WSGI])),
                        stack.enter_context(Program(nginx))]
            programs[0].wait_for("Booting worker.*(\n.*)*")
            deadline = time.monotonic() + LIMIT
            while True:
                with contextlib.suppress(OSError, IndexError):
                    if request(port, "/") == 200:
                        break
                assert time.monotonic() < deadline, programs[1].lines
                time.sleep(0.05)

        def term():
            for program in programs:
                program.signal_all(signal.SIGTERM)

        load = Load(port, rate=200, seconds=5, readers=READERS, uploads=UPLOADS)
        results = asyncio.run(load.run(at={3: term}))
        codes = [program.end() for program in programs]
        for line in programs[0].lines:
            if "stopped after" in line:
                print(f"  {line.strip()}")
        print(f"  {dict(sorted(results.items()))}")
        if command:
            assert codes == [0], (codes, programs[0].lines)
        return results


class Load:
    """Requests at a fixed rate, each on its own connection, beside slow readers and slow uploads.
    Counts `KIND OUTCOME`: a status code, `refused` (the connection was never accepted), `cut`, or
    `cut within` (behind the head). `post`: GET and POST by turns, and the kind is the method."""

    def __init__(self, port, rate, seconds, readers=0, uploads=0, post=False):
        self.port, self.rate, self.seconds = port, rate, seconds
        self.readers, self.uploads, self.post = readers, uploads, post
        self.results = collections.Counter()

    async def run(self, at):
        tasks = [self.one("reader", self.reader()) for _ in range(self.readers)]
        tasks += [self.one("upload", self.upload(4)) for _ in range(self.uploads)]
        tasks = [asyncio.create_task(task) for task in tasks]
        loop, begun = asyncio.get_running_loop(), time.monotonic()
        for moment, action in at.items():
            loop.call_later(moment, action)
        for n in range(self.rate * self.seconds):
            await asyncio.sleep(begun + n / self.rate - time.monotonic())
            target = "/sleep?s=0.05" if n % 15 == 0 else "/"
            method = "POST" if self.post and n % 2 else "GET"
            kind = method if self.post else "fast"
            tasks.append(asyncio.create_task(self.one(kind, self.fast(method, target))))
        await asyncio.wait_for(asyncio.gather(*tasks), LIMIT)
        return self.results

    async def one(self, kind, exchange):
        try:
            outcome = await exchange
        except ConnectionRefusedError:
            outcome = "refused"
        except Begun:
            outcome = "cut within"
        except (OSError, EOFError, IndexError):
            outcome = "cut"
        self.results[f"{kind} {outcome}"] += 1

    async def fast(self, method, target):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = f"{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            writer.write(f"{head}Content-Length: 0\r\n\r\n".encode())
            return await response(reader)
        finally:
            writer.close()

    async def reader(self):
        """6 MB in 8 s: more than the kernel takes over."""
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=client, limit=16384)
        try:
            writer.write(b"GET /big?n=6000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return await response(reader, pace=750_000)
        finally:
            writer.close()

    async def upload(self, seconds):
        """100 KB in so many seconds; begun before the stop, complete after it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n")
            writer.write(b"Content-Length: 100000\r\n\r\n")
            for _ in range(50):
                writer.write(b"x" * 2000)
                await writer.drain()
                await asyncio.sleep(seconds / 50)
            return await response(reader)
        finally:
            writer.close()


class Begun(EOFError):
    """A response was cut of which the client had the head already: nothing can be done for it."""


async def response(reader, pace=None):
    """The status code of a response that is whole; Begun if it was cut behind its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])
    begun, got = time.monotonic(), 0
    while got < length:
        try:
            block = await reader.read(65536)
        except OSError:
            raise Begun
        if not block:
            raise Begun
        got += len(block)
        if pace:
            await asyncio.sleep(max(0, got / pace - (time.monotonic() - begun)))
    return int(head.split(b" ")[1])


CASES = {case.__name__: case for case in (
    boot, no_ipv6, pid_1, kill_9, launchers, hand_over, take_over, hup, term_plain, term_passed, term_drain_first, term_nginx,
)}


if __name__ == "__main__":
    sys.exit(run_all(__doc__, CASES))
