"""A headless Chromium keeps a WebSocket and an EventSource through bufproxy to uvicorn."""

import json
import subprocess
import tempfile
import time

SECONDS = 10
# Without most of these it calls home at every start.
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-dev-shm-usage",
]


def run(matrix):
    chromium = matrix.program("chromium", "chromium")
    venv = matrix.venv("websockets", "uvicorn", "websockets")
    uvicorn = ["uvicorn", "--uds", "{socket}", "--no-access-log", "tests.apps.asgi:app"]
    with matrix.proxy(venv, uvicorn) as proxy:
        matrix.check("WebSocket and EventSource", page_counts, chromium, proxy)


def page_counts(chromium, proxy):
    """tests/apps/browser.html reports what it has seen: each message once, in order, by one connection."""
    page = f"http://127.0.0.1:{proxy.port}/page?seconds={SECONDS}"
    with tempfile.TemporaryDirectory() as profile:
        browser = subprocess.Popen(
            # With a debugging port it stays when the page is loaded.
            [chromium, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0", page],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            seen = wait_for_report(proxy, browser)
        finally:
            browser.terminate()
            browser.wait(20)
    assert seen["lost"] == 0, seen
    assert (seen["socketOpened"], seen["socketClosed"], seen["eventsOpened"]) == (1, 0, 1), seen
    # One event each 100 ms, one echo each 50 ms: at least half of them, on a busy machine.
    assert seen["events"] > 5 * SECONDS and seen["echoes"] > 10 * SECONDS, seen
    return f"{seen['echoes']} echoes and {seen['events']} events in {SECONDS} s"


def wait_for_report(proxy, browser):
    end = time.monotonic() + SECONDS + 60
    while time.monotonic() < end:
        assert browser.poll() is None, f"chromium ended with {browser.returncode}"
        if reports := json.loads(proxy.request("GET", "/report")[1]):
            return reports[0]
        time.sleep(0.2)
    raise AssertionError("the page has not reported")
