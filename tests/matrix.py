#!/usr/bin/env python3
"""bufproxy among real programs: app servers, frameworks, clients, attackers, a browser.

matrix.py --bufproxy PROGRAM [PART ...]

Without a PART, all of them: see PARTS. What they need comes from PyPI into target/matrix-venv, and
from Debian when it is not there and we are root; a part whose programs cannot be had is skipped, and
says so. The last line is `N passed, N failed`; the exit code is 1 when one failed.
"""

import argparse
import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from real_apps import REPOSITORY, Proxy

VENVS = REPOSITORY / "target" / "matrix-venv"
# Each is a module of matrix_parts with a function run(matrix), and how many seconds it may take.
PARTS = {
    "servers": 300,
    "websocket_clients": 120,
    "frameworks": 180,
    "browser": 180,
    "requests_suite": 420,
    "slow_attacks": 180,
    "datasette": 360,
}


class Skipped(Exception):
    """Why a part cannot run here."""


class Matrix:
    """What the parts share: the program, the places where things are installed, the counts."""

    def __init__(self, bufproxy):
        self.bufproxy, self.part, self.passed, self.failed = os.path.abspath(bufproxy), "", 0, 0

    def check(self, name, function, *arguments):
        """Calls the function; what it returns is a figure to show. Any exception is a failure."""
        begun = time.monotonic()
        try:
            figure = function(*arguments)
        except TimeoutExpired:
            raise
        except Exception as problem:
            self.failed += 1
            print(f"{self.part}: {name} FAILED: {problem!r:.2000}", flush=True)
            return
        self.passed += 1
        shown = f": {figure}" if figure else ""
        print(f"{self.part}: {name} ok, {time.monotonic() - begun:.1f} s{shown}", flush=True)

    def add(self, passed, failed):
        self.passed, self.failed = self.passed + passed, self.failed + failed

    @staticmethod
    def venv(name, *packages):
        """A virtual environment with these packages, made when it is not there."""
        place = VENVS / name
        wanted, noted = "\n".join(packages), place / "packages.txt"
        if not noted.exists() or noted.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
            subprocess.run([place / "bin/pip", "install", "--quiet", *packages], check=True)
            noted.write_text(wanted)
        return place

    @staticmethod
    def skip(reason):
        """Gives up the part that runs."""
        raise Skipped(reason)

    def program(self, name, package):
        """The path of a program of Debian's."""
        if not shutil.which(name) and shutil.which("apt-get") and os.geteuid() == 0:
            subprocess.run(["apt-get", "update", "-q"], stdout=subprocess.DEVNULL)
            install = ["apt-get", "install", "-qy", "--no-install-recommends", package]
            subprocess.run(install, stdout=subprocess.DEVNULL)
        if not (path := shutil.which(name)):
            self.skip(f"no {name}, of Debian's package {package}")
        return path

    @contextlib.contextmanager
    def proxy(self, venv, command, options=(), **upstream):
        """bufproxy with the command as its app, stopped at the end. {socket} is the app's."""
        with tempfile.TemporaryDirectory() as directory:
            proxy = Proxy(self.bufproxy, venv, command, directory, options, **upstream)
            try:
                yield proxy
            finally:
                try:
                    proxy.stop()
                except subprocess.TimeoutExpired:
                    proxy.process.kill()
                    proxy.process.wait()


class TimeoutExpired(BaseException):
    """A part took too long. No Exception, so that no check takes it for its own."""


def too_late(*_):
    raise TimeoutExpired


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bufproxy", required=True)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")

    # The parts import the client of WebSockets: go on in an environment that has it.
    if not Path(sys.prefix).is_relative_to(VENVS):
        python = Matrix.venv("clients", "websockets") / "bin/python"
        os.execv(python, [python, *sys.argv])

    matrix = Matrix(options.bufproxy)
    signal.signal(signal.SIGALRM, too_late)
    for part in options.parts or PARTS:
        matrix.part, begun = part, time.monotonic()
        signal.alarm(PARTS[part])
        try:
            importlib.import_module(f"matrix_parts.{part}").run(matrix)
        except Skipped as reason:
            print(f"{part}: skipped: {reason}")
        except TimeoutExpired:
            matrix.failed += 1
            print(f"{part}: FAILED: not done after {PARTS[part]} s")
        except Exception as problem:
            matrix.failed += 1
            print(f"{part}: FAILED: {problem!r:.2000}")
        signal.alarm(0)
        print(f"{part}: all in {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{matrix.passed} passed, {matrix.failed} failed")
    return matrix.failed > 0


if __name__ == "__main__":
    sys.exit(main())
