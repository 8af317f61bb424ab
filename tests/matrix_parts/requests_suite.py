"""The tests of the Python library `requests` against httpbin: the same result through bufproxy as without.

Each of the two runs is in a network namespace of its own that has nothing but the loopback, so this file
is also the program that runs there: requests_suite.py VENV TESTS REPORT [BUFPROXY].
"""

import collections
import contextlib
import http.client
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path

PACKAGES = [
    "requests", "PySocks", "pytest", "pytest-mock", "trustme", "pytest-httpbin==2.1.0",
    "httpbin==0.10.4", "gunicorn==23.0.0", "setuptools<81",
]
GUNICORN = ["gunicorn", "--workers", "2", "--threads", "4", "--bind"]
APP = "httpbin:app"
# They connect to 10.255.255.1 and want to wait for it.
LEAVE_THE_LOOPBACK = "test_connect_timeout or test_total_timeout_connect"
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def run(matrix):
    venv = matrix.venv("requests", *PACKAGES)
    with tempfile.TemporaryDirectory() as directory:
        matrix.check("the same result through bufproxy", compare, matrix.bufproxy, venv, directory)


def compare(bufproxy, venv, directory):
    tests = source(venv, directory)
    reports = {name: Path(directory) / f"{name}.xml" for name in ("bare", "bufproxy")}
    apart = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"', sys.executable]
    running = [
        subprocess.Popen(
            [*apart, __file__, venv, tests, report, *([bufproxy] if name == "bufproxy" else [])],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name, report in reports.items()
    ]
    output = [process.communicate(timeout=300)[0] for process in running]
    for report, text in zip(reports.values(), output):
        assert report.exists(), text[-3000:]
    bare, through = (outcomes(report) for report in reports.values())
    different = {test: (bare.get(test), through.get(test)) for test in bare | through}
    different = {test: pair for test, pair in different.items() if pair[0] != pair[1]}
    assert not different, (different, output[1][-6000:])
    counts = collections.Counter(through.values())
    assert counts["passed"] > 500 and not counts["failure"] + counts["error"], counts
    return f"requests {tests.parent.name.partition('-')[2]}, both ways {dict(counts)}"


def source(venv, directory):
    """The tests of the source distribution of the version that is in the environment."""
    program = "import importlib.metadata as m; print(m.version('requests'))"
    version = subprocess.check_output([venv / "bin/python", "-c", program], text=True).strip()
    download = ["download", "--quiet", "--no-deps", "--no-binary", "requests", "--dest", directory]
    subprocess.run([venv / "bin/pip", *download, f"requests=={version}"], check=True)
    (archive,) = Path(directory).glob("requests-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    return Path(directory) / f"requests-{version}" / "tests"


def outcomes(report):
    """What became of each test."""
    found = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}.{case.get('name')}"] = kinds[0] if kinds else "passed"
    return found


def inside(venv, tests, report, bufproxy=None):
    """In the namespace: httpbin, and the tests."""
    with httpbin(Path(venv), bufproxy) as port:
        env = os.environ | {"HTTPBIN_URL": f"http://127.0.0.1:{port}"}
        env["PYTHONPATH"] = str(REPOSITORY / "tests/apps")
        pytest = ["-m", "pytest", "-q", "-p", "requests_at_httpbin", "-p", "no:cacheprovider"]
        what = ["-k", f"not ({LEAVE_THE_LOOPBACK})", f"--junitxml={report}", Path(tests).name]
        subprocess.run([f"{venv}/bin/python", *pytest, *what], env=env, cwd=Path(tests).parent)


@contextlib.contextmanager
def httpbin(venv, bufproxy):
    """The port of an httpbin behind bufproxy, or else of a bare one."""
    with tempfile.TemporaryDirectory() as directory:
        if bufproxy:
            from real_apps import Proxy

            proxy = Proxy(bufproxy, venv, [*GUNICORN, "unix:{socket}", APP], directory)
            yield proxy.port
            proxy.stop()
            return
        port, answered = 8000, False
        server = subprocess.Popen([venv / "bin" / GUNICORN[0], *GUNICORN[1:], f"127.0.0.1:{port}", APP])
        while not answered and server.poll() is None:
            with contextlib.suppress(OSError):
                http.client.HTTPConnection("127.0.0.1", port).request("GET", "/")
                answered = True
            time.sleep(0.1)
        yield port
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY / "tests"))
    inside(*sys.argv[1:])
