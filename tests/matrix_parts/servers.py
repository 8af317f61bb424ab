"""The checks of real_apps.py on gunicorn's versions, and on servers that are not gunicorn."""

import real_apps

# 20.1 is on many servers and asks for setuptools; 23.0 is the last with the old parser's tolerance.
GUNICORN = {
    "gunicorn-newest": ["gunicorn[gevent]"],
    "gunicorn-23.0": ["gunicorn==23.0.0", "gevent", "packaging", "setuptools<81"],
    "gunicorn-20.1": ["gunicorn==20.1.0", "gevent", "packaging", "setuptools<81"],
}


def run(matrix):
    for name, packages in GUNICORN.items():
        print(name)
        check(matrix, matrix.venv(name, *packages), "sync", "gthread", "gevent")
    check(matrix, matrix.venv("others", "uvicorn", "waitress"), "uvicorn", "waitress")
    matrix.program("node", "nodejs")
    check(matrix, matrix.venv("others", "uvicorn", "waitress"), "node")


def check(matrix, venv, *classes):
    for name in classes:
        matrix.add(*real_apps.check_class(matrix.bufproxy, venv, name))
