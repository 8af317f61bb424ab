"""gunicorn's own reading of requests: a JSON array of them (Latin-1) on stdin, what each means on stdout.

Called by tests/it/differential.rs with the Python of a virtual environment that has gunicorn. A
reading is {method, target, fields, body}; of what gunicorn refuses, {refused: ...}.
"""

import json
import sys

from gunicorn.config import Config
from gunicorn.http.parser import RequestParser


def read(text):
    config = Config()
    # Names with `_` are dropped here by a rule of its own, after they were read.
    config.set("header_map", "dangerous")
    config.set("limit_request_line", 8190)
    config.set("limit_request_fields", 200)
    try:
        request = next(RequestParser(config, iter([text.encode("latin-1")]), ("192.0.2.1", 1)))
        body = request.body.read()
    except StopIteration:
        return {"refused": "nothing there"}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {
        "method": request.method,
        "target": request.uri,
        "fields": [[name.lower(), value] for name, value in request.headers],
        "body": body.decode("latin-1"),
    }


json.dump([read(text) for text in json.load(sys.stdin)], sys.stdout)
