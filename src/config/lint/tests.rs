//! Golden command lines, each with all that is said about it: nothing, where it is right.

use crate::config::{Invocation, tests::parse};

/// What is said about this command line (split at spaces), environment (`NAME=value`, separated by
/// `; `), `gunicorn.conf.py` and memory limit in MiB.
#[track_caller]
fn said(line: &str, env: &str, conf: &str, limit: u64) -> Vec<String> {
    let args: Vec<&str> = line.split(' ').collect();
    let env: Vec<_> = env.split("; ").filter_map(|pair| pair.split_once('=')).collect();
    let limit = (limit << 20).to_string();
    let files = [
        ("./gunicorn.conf.py", conf),
        ("/proc/self/cgroup", "0::/\n"),
        ("/sys/fs/cgroup/memory.max", limit.as_str()),
    ];
    match parse(&args, &env, &files) {
        Ok(Invocation::Run(config)) => config.warnings,
        other => panic!("{line}: {other:?}"),
    }
}

#[track_caller]
fn assert_said(line: &str, env: &str, conf: &str, expected: &[&str]) {
    assert_eq!(said(line, env, conf, 2048), expected, "{line}, {env}, {conf}");
}

/// Nothing is said about any of these.
const RIGHT: &[(&str, &str, &str)] = &[
    // The README's, on Heroku with its Python buildpack, its log switched off.
    (
        "--upstream unix:/tmp/app.sock -- gunicorn --bind unix:/tmp/app.sock app.wsgi",
        "DYNO=web.1; PORT=5000; WEB_CONCURRENCY=2; FORWARDED_ALLOW_IPS=*; \
         GUNICORN_CMD_ARGS=--log-level info",
        "",
    ),
    ("-- gunicorn --bind unix:/tmp/app.sock app", "", ""),
    ("--upstream 127.0.0.1:8000 -- gunicorn app", "", ""),
    ("--upstream localhost:9000 -- gunicorn -b 127.0.0.1:9000 -b 127.0.0.1:9001 app", "", ""),
    // bufproxy listens elsewhere and the app on $PORT: nothing collides.
    ("--listen :8000 --upstream localhost:5000 -- gunicorn app", "PORT=5000", ""),
    ("--upstream /a.sock -- gunicorn app", "PORT=5000", "bind = ['unix:/a.sock']"),
    // An expression without PORT, a descriptor, a relative path: not known.
    ("--upstream /a.sock -- gunicorn app", "PORT=5000", "bind = SOCKET"),
    ("--upstream /a.sock -- gunicorn --bind fd://3 app", "PORT=5000", ""),
    ("--upstream /a.sock -- gunicorn --bind unix:a.sock app", "PORT=5000", ""),
    // A TCP socket can have it.
    ("--upstream localhost:8000 -- gunicorn --reuse-port app", "", ""),
    ("-- gunicorn --bind unix:/a.sock app", "", "reuse_port = False\n"),
    // A heartbeat, not a limit; a limit below the router's; a platform without one.
    ("-- gunicorn --bind unix:/a.sock -k gthread --timeout 120 app", "DYNO=web.1", ""),
    ("-- gunicorn --bind unix:/a.sock --timeout 20 app", "DYNO=web.1", "timeout = 90"),
    ("-- gunicorn --bind unix:/a.sock --timeout 120 app", "", ""),
    ("-- gunicorn --bind unix:/a.sock --graceful-timeout 20 app", "DYNO=web.1", ""),
    ("--concurrency 50 -- gunicorn --bind unix:/a.sock -k gevent -w 4 app", "", ""),
    ("--concurrency 4 -- gunicorn --bind unix:/a.sock -w 4 app", "", ""),
    (
        "-- gunicorn --bind unix:/a.sock -k uvicorn_worker.UvicornWorker app",
        "FORWARDED_ALLOW_IPS=*",
        "",
    ),
    ("-- gunicorn --bind unix:/a.sock --access-logfile access.log app", "", ""),
    ("--access-log off -- gunicorn --bind unix:/a.sock --access-logfile - app", "", ""),
    (
        "--upstream-keepalive 1s -- gunicorn --bind unix:/a.sock -k gthread --keep-alive 5 app",
        "",
        "",
    ),
    ("--child-stop-signal QUIT -- gunicorn --bind unix:/a.sock app", "DYNO=web.1", DRAIN_FIRST),
    ("--child-stop-signal QUIT -- gunicorn --bind unix:/a.sock -c python:conf app", "", ""),
    ("--child-stop-signal QUIT --upstream /a.sock -- unicorn", "", ""),
    ("-- gunicorn --bind unix:/a.sock app", "", "# signal.signal(signal.SIGTERM, signal.SIG_IGN)"),
    (
        "--upstream /a.sock -- uvicorn --uds /a.sock --forwarded-allow-ips=* --no-access-log app:app",
        "PORT=5000",
        "",
    ),
    (
        "--upstream /a.sock -- uvicorn --fd 3 --log-level warning app:app",
        "FORWARDED_ALLOW_IPS=*",
        "",
    ),
    ("--upstream localhost:8000 -- uvicorn app:app --no-access-log", "", ""),
    ("--upstream /a.sock -- puma -b tcp://0.0.0.0:5000", "PORT=5000", "reuse_port = True"),
    ("--upstream /a.sock", "PORT=5000", "reuse_port = True"),
];

const DRAIN_FIRST: &str = "\
import signal
def when_ready(server):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def post_worker_init(worker):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
";

#[test]
fn nothing_is_said_about_what_is_right() {
    for (line, env, conf) in RIGHT {
        assert_said(line, env, conf, &[]);
    }
}

#[test]
fn an_app_that_takes_the_port_is_named() {
    let line = "--upstream unix:/a.sock -- gunicorn app";
    assert_said(
        line,
        "PORT=5000",
        "",
        &[
            "gunicorn has no --bind and so takes $PORT (5000), where bufproxy listens itself: write \
           --bind unix:/a.sock",
        ],
    );
    assert_said(
        line,
        "",
        "",
        &["gunicorn has no --bind and so takes 127.0.0.1:8000, and bufproxy looks for it at \
           unix:/a.sock: write --bind unix:/a.sock"],
    );
    let bound = |shown: &str| {
        format!("gunicorn has {shown}, where bufproxy listens itself: write --bind unix:/a.sock")
    };
    let flag = "--upstream unix:/a.sock -- gunicorn --bind 0.0.0.0:$PORT app";
    assert_said(flag, "PORT=5000", "", &[&bound("--bind 0.0.0.0:$PORT")]);
    let shell = "gunicorn --bind 0.0.0.0:$PORT app";
    let args = ["--upstream", "unix:/a.sock", "--", "sh", "-c", shell];
    match parse(&args, &[("PORT", "5000")], &[]) {
        Ok(Invocation::Run(config)) => {
            assert_eq!(config.warnings, [bound("--bind 0.0.0.0:5000")]);
        }
        other => panic!("{other:?}"),
    }
    let conf = "bind = \"[::]:{}\".format(os.environ.get(\"PORT\", 5006))  # Heroku";
    let shown = "bind = \"[::]:{}\".format(os.environ.get(\"PORT\", 5006)) in gunicorn.conf.py";
    assert_said(line, "PORT=5000", conf, &[&bound(shown)]);
    assert_said(
        "--upstream unix:/a.sock -- gunicorn app",
        "GUNICORN_CMD_ARGS=--bind=unix:/b.sock",
        "",
        &["gunicorn has --bind unix:/b.sock in GUNICORN_CMD_ARGS, and bufproxy looks for it at \
           unix:/a.sock: write --bind unix:/a.sock"],
    );
}

#[test]
fn reuse_port_on_a_unix_socket_is_named_be_it_under_a_condition() {
    let line = "--upstream unix:/a.sock -- gunicorn --bind unix:/a.sock app";
    let why = "which a Unix socket does not have: its workers cannot listen and nothing is ever served. \
               Remove it";
    let said = format!("gunicorn has reuse_port = True in gunicorn.conf.py, {why}");
    assert_said(line, "", "if a:\n    pass\nelse:\n    reuse_port = True\n", &[&said]);
    let line = "-- gunicorn --reuse-port --bind unix:/a.sock app";
    assert_said(line, "", "", &[&format!("gunicorn has --reuse-port, {why}")]);
}

#[test]
fn workers_that_hardly_fit_are_counted() {
    let line = "-- gunicorn --bind unix:/a.sock --workers 8 app";
    assert_eq!(
        said(line, "", "", 512),
        ["8 gunicorn workers x 100m + memory 32m = 832m, and the cgroup's limit is 512m: write \
          --workers 4, or --preload so that they share the app's code"]
    );
    assert_eq!(said(line, "", "", 1024), [""; 0]);
    assert_eq!(said(line, "", "preload_app = True", 512), [""; 0]);
    let by_variable = said("-- gunicorn --bind unix:/a.sock app", "WEB_CONCURRENCY=5", "", 512);
    assert!(
        by_variable[0].starts_with("5 gunicorn workers from WEB_CONCURRENCY x 100m"),
        "{by_variable:?}"
    );
    // What one worker alone exceeds, fewer workers do not help.
    assert_eq!(said("-- gunicorn --bind unix:/a.sock app", "", "", 64), [""; 0]);
}

#[test]
fn a_timeout_beyond_the_router_is_named_on_heroku() {
    let said = |shown: &str| {
        format!(
            "gunicorn has {shown}: the router gives up after 30 s (H12), and the worker goes on for \
             nobody. Write --timeout 25"
        )
    };
    let line = "-- gunicorn --bind unix:/a.sock --timeout 30 app";
    assert_said(line, "DYNO=web.1", "", &[&said("--timeout 30")]);
    let line = "-- gunicorn --bind unix:/a.sock -t 0 app";
    assert_said(line, "DYNO=web.1", "", &[&said("--timeout 0")]);
    let line = "-- gunicorn --bind unix:/a.sock app";
    let shown = "timeout = int(os.environ.get('T', '120')) in gunicorn.conf.py";
    let conf = "timeout = int(os.environ.get('T', '120'))  # s";
    assert_said(line, "DYNO=web.1", conf, &[&said(shown)]);
}

#[test]
fn a_graceful_timeout_beyond_the_stop_is_named() {
    assert_said(
        "-- gunicorn --bind unix:/a.sock --graceful-timeout 60 app",
        "DYNO=web.1",
        "",
        &["gunicorn has --graceful-timeout 60, and is killed at drain-timeout 25s: write \
           --graceful-timeout 20, or a longer --drain-timeout where the platform waits for it"],
    );
}

#[test]
fn few_slots_for_an_async_class_are_named() {
    assert_said(
        "--concurrency 4 -- gunicorn --bind unix:/a.sock -w 4 -k gevent app",
        "",
        "",
        &[
            "--concurrency 4 leaves 4 gunicorn workers of class gevent idle, which serve many requests \
           at once: write --concurrency 400, or off",
        ],
    );
    assert_said(
        "--concurrency 1 --access-log off --upstream localhost:8000 -- uvicorn app:app",
        "",
        "",
        &[
            "--concurrency 1 leaves 1 uvicorn worker idle, which serve many requests at once: write \
           --concurrency 100, or off",
        ],
    );
}

#[test]
fn uvicorn_that_ignores_the_forwarded_fields_is_named() {
    let said = "uvicorn ignores X-Forwarded-For and X-Forwarded-Proto on a Unix socket, so the app \
                sees no client and the scheme http: set FORWARDED_ALLOW_IPS='*'";
    let worker = "-- gunicorn --bind unix:/a.sock -k uvicorn_worker.UvicornWorker app";
    assert_said(worker, "", "", &[said]);
    assert_said(worker, "FORWARDED_ALLOW_IPS=127.0.0.1", "", &[said]);
    let own = "--upstream /a.sock -- uvicorn --uds /a.sock --no-access-log app:app";
    assert_said(own, "", "", &[said]);
}

#[test]
fn two_access_logs_are_named_with_the_one_that_set_the_second() {
    let said = |by: &str| {
        format!(
            "two access logs on stdout, gunicorn's by {by} and bufproxy's: write --access-logfile \
             /dev/null for gunicorn, or --access-log off for bufproxy"
        )
    };
    let line = "-- gunicorn --bind unix:/a.sock app";
    // As Heroku's Python buildpack exports it; it wins over the file.
    let env = "GUNICORN_CMD_ARGS=--access-logfile -";
    let by = "--access-logfile - in GUNICORN_CMD_ARGS";
    assert_said(line, env, "accesslog = None", &[&said(by)]);
    assert_said(line, "", "accesslog = \"-\"", &[&said("accesslog = \"-\" in gunicorn.conf.py")]);
    assert_said(
        "--upstream /a.sock -- uvicorn --uds /a.sock app:app",
        "FORWARDED_ALLOW_IPS=*",
        "",
        &[
            "two access logs on stdout, uvicorn's and bufproxy's: write --no-access-log for uvicorn, or \
           --access-log off for bufproxy",
        ],
    );
}

#[test]
fn a_keepalive_without_effect_is_named() {
    assert_said(
        "-- gunicorn --bind unix:/a.sock app",
        "DYNO=web.1",
        "keepalive = 95",
        &[
            "gunicorn has keepalive = 95 in gunicorn.conf.py, which does nothing: its connections end \
           with their response. Remove it; client-keepalive 95s is for those of clients",
        ],
    );
}

#[test]
fn ignoring_term_needs_another_stop_signal_and_no_reload() {
    let line = "-- gunicorn --bind unix:/a.sock app";
    let quit = "--child-stop-signal QUIT -- gunicorn --bind unix:/a.sock app";
    assert_said(
        line,
        "DYNO=web.1",
        DRAIN_FIRST,
        &[
            "gunicorn.conf.py ignores TERM, which is child-stop-signal: write --child-stop-signal QUIT",
        ],
    );
    assert_said(
        quit,
        "",
        DRAIN_FIRST,
        &[
            "gunicorn.conf.py ignores TERM, by which gunicorn retires its old workers: after HUP or \
           TTOU they stay for graceful_timeout. Restart instead, or remove it where TERM comes to \
           bufproxy alone",
        ],
    );
    assert_said(
        quit,
        "DYNO=web.1",
        "",
        &[
            "--child-stop-signal QUIT and INT cut what is in flight in gunicorn, which stops gracefully \
           by TERM: leave it out, or see \"Stop without loss\" in docs/heroku.md",
        ],
    );
}

#[test]
fn a_spool_in_memory_is_counted_against_the_limit() {
    let line = "--upstream /a.sock --spool-dir /dev/shm";
    assert_eq!(
        said(line, "", "", 512),
        [
            "spool-dir /dev/shm is in memory, and spool-max 1g of it may be used, of 512m in all: write \
          a --spool-dir on disk, or --spool-max 128m"
        ]
    );
    assert_eq!(said("--upstream /a.sock", "", "", 512), [""; 0]);
    assert_eq!(
        said("--upstream /a.sock --spool-dir /dev/shm --spool-max 100m", "", "", 512),
        [""; 0]
    );
    // On Cloud Run /tmp is memory, whatever it says of itself.
    let cloud_run = said("--upstream /a.sock", "K_SERVICE=web", "", 512);
    assert!(cloud_run[0].starts_with("spool-dir /tmp is in memory"), "{cloud_run:?}");
}

#[test]
fn what_heroku_ships_as_a_template_gets_all_that_must_change() {
    let conf = "\
bind = [\"[::]:{}\".format(os.environ.get(\"PORT\", 5006))]
worker_class = \"gthread\"
workers = os.environ.get(\"WEB_CONCURRENCY\", 1)
threads = 5
preload_app = True
timeout = 20
graceful_timeout = 20
keepalive = 95
accesslog = \"-\"
if os.environ.get(\"ENVIRONMENT\") == \"development\":
    reload = True
else:
    reuse_port = True
";
    let env = "DYNO=web.1; PORT=5000; WEB_CONCURRENCY=2; FORWARDED_ALLOW_IPS=*";
    let said = said("--upstream unix:/tmp/app.sock -- gunicorn app.wsgi", env, conf, 512);
    let about: Vec<_> = said.iter().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(about, ["bind", "reuse_port", "logs", "keepalive"], "{said:#?}");
}
