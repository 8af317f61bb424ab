# gunicorn.conf.py for Heroku, behind bufproxy: drain first.
#
# When a dyno stops, Heroku sends TERM to every process in it. gunicorn would close its socket while
# requests still wait for a worker. With this file it ignores TERM, bufproxy finishes what it has accepted,
# and then stops gunicorn by QUIT:
#
#   web: bufproxy --child-stop-signal QUIT -- gunicorn app.wsgi
#
# For sync, gthread and gevent workers. Not together with reloads (HUP) and TTOU, by which gunicorn sends
# TERM to its old workers; a dyno has neither.
import signal

# The router lets 8192 bytes through, gunicorn by itself 4094.
limit_request_line = 8190


def when_ready(server):
    """In the arbiter, after it has set its own handlers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def post_worker_init(worker):
    """In each worker, after it has set its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
