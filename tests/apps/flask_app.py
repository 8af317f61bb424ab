"""The site of django_app.py once more, with Flask."""

import hashlib
import os
import secrets
import time

from flask import Flask, abort, request, session
from werkzeug.middleware.proxy_fix import ProxyFix

flask = Flask(__name__)
flask.secret_key = "only for the tests"
posts = 0


@flask.post("/echo")
def echo():
    global posts
    posts += 1
    body = request.get_data()
    return {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


@flask.get("/count")
def count():
    return {"posts": posts}


@flask.get("/address")
def address():
    return {"address": request.remote_addr, "scheme": request.scheme, "url": request.host_url + "x"}


@flask.get("/form")
def form():
    session["token"] = secrets.token_hex(16)
    return {"token": session["token"]}


@flask.post("/form")
def form_sent():
    if request.form.get("csrfmiddlewaretoken") != session.get("token"):
        abort(403)
    return {"name": request.form["name"]}


@flask.post("/upload")
def upload():
    digest, length, file = hashlib.sha256(), 0, request.files["file"]
    while block := file.stream.read(65536):
        digest.update(block)
        length += len(block)
    return {"name": file.filename, "length": length, "sha256": digest.hexdigest()}


@flask.get("/stream")
def stream():
    def parts(gate):
        yield "first\n"
        while not os.path.exists(gate):
            time.sleep(0.01)
        yield "last\n"

    return parts(request.args["gate"]), {"Content-Type": "text/plain"}


# As README.md says: the right-most address. gunicorn gets the scheme right by itself.
app = ProxyFix(flask, x_for=1, x_proto=0)
