#!/usr/bin/env python3
"""docs/install.md, done: runs every `sh` block, section by section, and tries what each one leaves.

Run at the end of .ci/full: it needs the registries, `dpkg`, root (for `dpkg -i` into an empty root) and
some minutes. Standard library only.
"""

import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TARGET = REPOSITORY / "target"
# Commands that would reach beyond this place, and what stands for them.
STAND_INS = {
    "sudo": '#!/bin/sh\nexec "$@"\n',
    # Config vars are files when the buildpack sees them.
    "heroku": """#!/bin/sh
[ "$1" = config:set ] && shift || exit 1
for var in "$@"; do printf %s "${var#*=}" >"$ENV_DIR/${var%%=*}"; done
""",
}


class Reader:
    """Somebody who follows the page: a home, an app, an environment of its own."""

    def __init__(self, place):
        self.home, self.app = place / "home", place / "app"
        self.root, self.env_dir = place / "root", place / "env"
        self.venv, self.cache = TARGET / "install-venv", place / "cache"
        for directory in (self.home, self.app, self.env_dir, self.cache, place / "bin"):
            directory.mkdir()
        for name, script in STAND_INS.items():
            (place / "bin" / name).write_text(script)
            (place / "bin" / name).chmod(0o755)
        # dpkg installs into an empty root.
        for directory in ("info", "updates", "triggers"):
            (self.root / "var/lib/dpkg" / directory).mkdir(parents=True)
        (self.root / "var/lib/dpkg/status").touch()
        (self.home / ".dpkg.cfg").write_text(f"root={self.root}\nforce-script-chrootless\n")
        run([sys.executable, "-m", "venv", "--clear", self.venv])

        cargo, home = TARGET / "tools", Path.home()
        path = [place / "bin", self.venv / "bin", cargo / "bin", os.environ["PATH"]]
        self.env = os.environ | {
            "HOME": str(self.home),
            "PATH": ":".join(map(str, path)),
            "APP": str(self.app),
            "ENV_DIR": str(self.env_dir),
            "CARGO_INSTALL_ROOT": str(cargo),
            "CARGO_HOME": os.environ.get("CARGO_HOME", f"{home}/.cargo"),
            "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", f"{home}/.rustup"),
        }

    def follow(self, section):
        for block in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S):
            print(block, end="", flush=True)
            subprocess.run(["bash", "-euc", block], cwd=REPOSITORY, env=self.env, check=True)


def the_binary(reader):
    runs(reader.home / ".local/bin/bufproxy")


def the_static_binary(reader):
    run(["sha256sum", "--check", "bufproxy.sha256"], cwd=TARGET)
    run([sys.executable, REPOSITORY / "tests/static_image.py", TARGET / "bufproxy"])


def the_debian_package(reader):
    (package,) = (TARGET / "debian").glob("bufproxy_*.deb")
    assert package.stat().st_size < 3_000_000, "it is not stripped"
    assert run(["dpkg-deb", "--field", package, "Depends"]).strip() == "", "it is not static"
    control = reader.home / "control"
    run(["dpkg-deb", "--control", package, control])
    assert {file.name for file in control.iterdir()} <= {"control", "md5sums"}, "it has scripts"
    # Both as dpkg installs it and as a buildpack unpacks it.
    unpacked = reader.home / "unpacked"
    run(["dpkg", "--extract", package, unpacked])
    for root in (reader.root, unpacked):
        program = root / "usr/bin/bufproxy"
        runs(program)
        example = root / "usr/share/doc/bufproxy/examples/bufproxy.toml"
        checked = run([program, "check", "--config", example, "--upstream", "unix:/tmp/app.sock"])
        assert checked.endswith("ok\n"), checked
        units = REPOSITORY / "config/systemd"
        for unit in units.glob("*"):
            installed = root / "usr/lib/systemd/system" / unit.name
            assert installed.exists(), f"{unit.name} is not in the package: Cargo.toml, assets"


def the_wheel(reader):
    program = reader.venv / "bin/bufproxy"
    runs(program)
    apps = [sys.executable, REPOSITORY / "tests/real_apps.py", "--only", "sync,gthread"]
    print(run([*apps, "--bufproxy", program, "--venv", reader.venv]), end="")


def the_buildpack(reader):
    buildpack = reader.home / "buildpack"
    buildpack.mkdir()
    run(["tar", "-xzf", TARGET / "bufproxy-buildpack.tgz", "-C", buildpack])
    url, binary = reader.env_dir / "BUFPROXY_URL", TARGET / "bufproxy"
    assert url.read_text().startswith("https://"), "no URL is set"

    def compile():
        folders = [reader.app, reader.cache, reader.env_dir]
        print(run([buildpack / "bin/compile", *folders]), end="")
        runs(reader.app / "bin/bufproxy")
        (reader.app / "bin/bufproxy").unlink()

    # First by its URL, which leads to the file here; then from the app's repository.
    url.write_text(binary.as_uri())
    vendored = reader.app / "vendor/bufproxy"
    aside = vendored.rename(reader.home / "bufproxy")
    compile()
    aside.rename(vendored)
    url.unlink()
    compile()


def runs(program):
    assert program.stat().st_mode & stat.S_IXOTH, program
    version = re.search(r'^version = "(.*)"', (REPOSITORY / "Cargo.toml").read_text(), re.M)[1]
    said = run([program, "--version"])
    assert said == f"bufproxy {version}\n", (program, said)


def run(command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def main():
    page = (REPOSITORY / "docs/install.md").read_text()
    for leftover in [*(TARGET / "debian").glob("*.deb"), *(TARGET / "wheels").glob("*.whl")]:
        leftover.unlink()
    tried = 0
    with tempfile.TemporaryDirectory() as place:
        reader = Reader(Path(place))
        for section in re.split(r"^## ", page, flags=re.M)[1:]:
            title = section.splitlines()[0]
            print(f"# {title}", flush=True)
            reader.follow(section)
            if "```sh" in section:
                globals()[title.lower().replace(" ", "_")](reader)
                tried += 1
    print(f"{tried} passed, 0 failed")


if __name__ == "__main__":
    sys.exit(main())
