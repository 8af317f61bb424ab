"""A pytest plugin: the tests of `requests` use the httpbin at HTTPBIN_URL, not one in their own process.

pytest-httpbin makes its servers by `serve.Server`; the one with TLS stays its own.
"""

import os

from pytest_httpbin import serve


class Elsewhere:
    """Stands for a server of pytest-httpbin that has been started already."""

    def __init__(self, application=None):
        self.url = os.environ["HTTPBIN_URL"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __add__(self, path):
        return self.url + path


def pytest_configure():
    serve.Server = Elsewhere
