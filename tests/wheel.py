#!/usr/bin/env python3
"""The wheel: built by maturin, installed into a fresh virtual environment, and used from there as a
Procfile would."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "target"


def venv(name, *packages):
    """A virtual environment with these packages; gives its directory."""
    directory = TARGET / name
    subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
    subprocess.run([directory / "bin/pip", "install", "--quiet", *packages], check=True)
    return directory


def main():
    maturin = venv("maturin-venv", "maturin>=1.9,<2") / "bin/maturin"
    wheels = TARGET / "wheels"
    for old in wheels.glob("bufproxy-*.whl"):
        old.unlink()
    command = [maturin, "build", "--release", "--out", wheels]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    (wheel,) = wheels.glob("bufproxy-*.whl")

    user = venv("wheel-venv", "gunicorn", wheel)
    program = user / "bin/bufproxy"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("bufproxy "), version
    assert wheel.name.split("-")[1] in version.stdout, (wheel.name, version.stdout)
    apps = [sys.executable, REPOSITORY / "tests/real_apps.py", "--only", "sync,gthread"]
    return subprocess.run([*apps, "--bufproxy", program, "--venv", user]).returncode


if __name__ == "__main__":
    sys.exit(main())
