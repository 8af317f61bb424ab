//! The access log: the seed article's line for the seed article's request, one record for each
//! request whatever became of it, and who was slow.

use std::fs;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, mknodat};
use rustix::process::Signal;

use crate::support::{App, Lines, Proxy, ok, pattern, until};

/// The request of the seed article, as the router sends it.
const SEED: &str = "GET / HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\
    User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_2)\r\n\
    X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5\r\n\
    X-Forwarded-For: 199.188.193.220\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: 80\r\n\
    Via: 1.1 vegur\r\n\r\n";

#[test]
fn seed_request_gives_the_seed_line() {
    let app = App::answering(ok(pattern(12666)));
    let proxy = Proxy::launch(|command| {
        command.env("DYNO", "web.1").args(["--upstream", app.address()]);
    });
    let mut client = proxy.connect();
    client.send(SEED);
    client.response();
    let line = proxy.record("GET / ").0;
    assert_eq!(
        masked(&line),
        "measure#bufproxy.service=# request=\"GET / HTTP/1.1\" status_code=200 \
         request_id=8b6402de-d072-42c4-9854-0f71697b30e5 remote_addr=\"127.0.0.1\" \
         forwarded_for=\"199.188.193.220\" forwarded_proto=\"http\" via=\"1.1 vegur\" \
         body_bytes_sent=12666 referer=\"-\" user_agent=\"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_2)\" \
         client=\"199.188.193.220\" receive=# queue=# connect=# first_byte=# upstream=# send=# \
         slow=# end=ok",
        "{line}"
    );
}

/// The line with its durations, and the name of who took longest, replaced by `#`.
fn masked(line: &str) -> String {
    let mask = |word: &str| {
        let Some((name, value)) = word.split_once('=') else { return word.to_string() };
        let duration = value.len() >= 5
            && value.split_once('.').is_some_and(|(whole, ms)| {
                ms.len() == 3 && whole.bytes().chain(ms.bytes()).all(|b| b.is_ascii_digit())
            });
        if duration || name == "slow" { format!("{name}=#") } else { word.to_string() }
    };
    line.split(' ').map(mask).collect::<Vec<_>>().join(" ")
}

#[test]
fn line_begins_with_the_time_outside_heroku() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.get("/");
    client.response();
    let line = proxy.record("GET / ").0;
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.starts_with("time=20") && time.contains('T'), "{line}");
    assert!(rest.starts_with("measure#bufproxy.service="), "{line}");
}

#[test]
fn every_request_yields_exactly_one_record() {
    let app = App::unix();
    app.serve(|conn, request| match request.target() {
        "/cut" => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
        "/nothing" => {}
        _ => conn.send(ok("x")),
    });
    let proxy = Proxy::start(&app, &["--header-timeout", "100ms", "--max-body", "1k"]);
    let cases: &[(&str, &str, &str)] = &[
        ("GET /fine HTTP/1.1\r\nHost: a\r\n\r\n", "200", "ok"),
        ("POST /cut HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "200", "truncated"),
        (
            "POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "502",
            "reset_before_response",
        ),
        ("GET /malformed HTTP/1.1\r\nbad line\r\n\r\n", "400", "bad_request"),
        ("garbage /garbage\r\n\r\n", "400", "bad_request"),
        (
            "POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n",
            "413",
            "body_too_large",
        ),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "501", "connect_method"),
        ("GET /version HTTP/3.0\r\nHost: a\r\n\r\n", "505", "version"),
        ("GET /slow-head HTTP/1.1\r\nHo", "408", "header_timeout"),
    ];
    for (request, status, end) in cases {
        let mut client = proxy.connect();
        client.send(request);
        let path = request.split([' ', '\r']).nth(1).unwrap();
        let record = proxy.record(path);
        assert_eq!((record.get("status_code"), record.get("end")), (*status, *end), "{record:?}");
    }
    // A head that its client gave up, and a connection that said nothing.
    let mut partial = proxy.connect();
    partial.send("GET /partial HTTP/1.1\r\nHos");
    partial.half_close();
    assert_eq!(proxy.record("/partial").get("end"), "client_gone");
    drop(proxy.connect());
    proxy.settle();

    let lines = proxy.stop().stdout;
    let settles = 2;
    assert_eq!(lines.len(), cases.len() + 1 + settles, "{lines:#?}");
}

#[test]
fn phases_add_up_to_the_service_time() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1"]);
    let mut first = proxy.connect();
    first.get("/first");
    let (worker, _) = app.request();
    let mut client = proxy.connect();
    client.send("POST /phases HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1");
    proxy.settle();
    std::thread::sleep(Duration::from_millis(30));
    client.send("2");
    proxy.settle();
    std::thread::sleep(Duration::from_millis(40));
    worker.reply("");
    let (mut worker, _) = app.request();
    std::thread::sleep(Duration::from_millis(50));
    worker.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1");
    std::thread::sleep(Duration::from_millis(20));
    worker.send("2");
    client.response();

    let record = proxy.record("/phases");
    let at_least = |name: &str, ms: u64| {
        assert!(record.seconds(name) >= Duration::from_millis(ms), "{name} in {record:?}");
        record.seconds(name)
    };
    let sum = at_least("receive", 29)
        + at_least("queue", 39)
        + at_least("connect", 0)
        + at_least("upstream", 69)
        + at_least("send", 0);
    assert!(at_least("first_byte", 49) <= record.seconds("upstream"), "{record:?}");
    let service = record.seconds("service");
    assert_eq!(service, sum, "{record:?}");
}

#[test]
fn record_names_who_was_slow() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    let begun = Instant::now();
    client.get("/app");
    let (worker, _) = app.request();
    // Longer than all else takes, on a busy machine too.
    std::thread::sleep(Duration::from_secs(1) + 3 * begun.elapsed());
    worker.reply("");
    client.response();
    assert_eq!(proxy.record("/app").get("slow"), "app");

    let mut client = proxy.connect_slow();
    let begun = Instant::now();
    client.get("/client");
    let (mut worker, _) = app.request();
    worker.send(ok(pattern(3_000_000)));
    // Not before the proxy has all of it is the rest the client's time.
    worker.wait_closed();
    std::thread::sleep(Duration::from_secs(1) + 3 * begun.elapsed());
    client.response();
    assert_eq!(proxy.record("/client").get("slow"), "client_down");
}

#[test]
fn client_that_leaves_in_the_middle_is_recorded_at_once() {
    let app = App::answering(ok(pattern(3_000_000)));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect_slow();
    client.get("/leaves");
    client.head();
    drop(client);
    let record = proxy.record("/leaves");
    assert_eq!((record.get("status_code"), record.get("end")), ("200", "client_gone"));
    assert!(record.get("body_bytes_sent").parse::<u64>().unwrap() < 3_000_000, "{record:?}");
}

#[test]
fn no_client_can_forge_a_line_or_a_field() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(
        "GET /forge?\"end=ok HTTP/1.1\r\nHost: a\r\nUser-Agent: a\" end=forged b=\"\r\n\
         Referer: \\\" end=forged\r\nX-Request-Id: 01234567890123456789\" end=forged\r\n\r\n",
    );
    client.response();
    let line = proxy.record("/forge").0;
    assert!(!line.contains("\" end=forged"), "{line}");
    assert!(line.ends_with(" end=ok"), "{line}");
    drop(client);
    assert_eq!(proxy.stop().stdout.len(), 1);
}

#[test]
fn log_file_is_opened_again_on_usr1() {
    let app = App::answering(ok("x"));
    let dir = tempfile::tempdir().unwrap();
    let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let proxy = Proxy::start(&app, &["--access-log", path.to_str().unwrap()]);
    let mut client = proxy.connect();
    client.get("/before");
    client.response();
    until(|| fs::read_to_string(&path).is_ok_and(|log| log.contains("/before")));

    fs::rename(&path, &rotated).unwrap();
    proxy.signal(Signal::USR1);
    until(|| path.exists());
    client.get("/after");
    client.response();
    until(|| fs::read_to_string(&path).is_ok_and(|log| log.contains("/after")));
    assert!(!fs::read_to_string(&rotated).unwrap().contains("/after"));
    drop(client);
    assert_eq!(proxy.stop().stdout, [""; 0]);
}

#[test]
fn paths_can_be_skipped_and_the_log_turned_off() {
    let app = App::answering(ok("x"));
    let skipping = Proxy::start(&app, &["--log-skip", "/health"]);
    let silent = Proxy::start(&app, &["--access-log", "off"]);
    for proxy in [&skipping, &silent] {
        let mut client = proxy.connect();
        for target in ["/health", "/page"] {
            client.get(target);
            client.response();
        }
    }
    let lines = skipping.stop().stdout;
    assert!(lines.len() == 1 && lines[0].contains("GET /page "), "{lines:?}");
    assert_eq!(silent.stop().stdout, [""; 0]);
}

#[test]
fn long_lines_are_cut_with_a_marker() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &["--max-head", "64k"]);
    let mut client = proxy.connect();
    client.send(format!(
        "GET /long HTTP/1.1\r\nHost: a\r\nUser-Agent: {}\r\n\r\n",
        "u".repeat(20_000)
    ));
    client.response();
    let line = proxy.record("/long").0;
    // stdout is a pipe here: beyond 4096 bytes the kernel may mix lines with the app's own.
    assert!(line.len() < 4096, "{} bytes", line.len());
    assert!(line.ends_with(" end=ok"), "{line}");
}

#[test]
fn name_time_and_query_are_as_the_options_say() {
    let app = App::answering(ok("x"));
    let options = ["--log-name", "web", "--log-time", "off", "--log-query", "off"];
    let proxy = Proxy::start(&app, &options);
    let mut client = proxy.connect();
    client.get("/page?token=secret");
    client.response();
    let line = proxy.record("/page").0;
    assert!(line.starts_with("measure#web.service="), "{line}");
    assert!(line.contains(" request=\"GET /page HTTP/1.1\" "), "{line}");
}

#[test]
fn log_that_nobody_reads_loses_what_is_beyond_its_backlog() {
    const REQUESTS: usize = 100;
    let app = App::answering(ok("x"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
    let log = fs::File::options().read(true).write(true).open(&path).unwrap();
    let log_option = path.to_str().unwrap();
    let proxy = Proxy::start(&app, &["--access-log", log_option, "--log-backlog", "64k"]);
    let mut client = proxy.connect();
    for _ in 0..REQUESTS {
        // Together 300 KB: more than the pipe and the backlog take.
        client.get(&format!("/{}", "x".repeat(3000)));
        assert_eq!(client.response().status(), 200, "a client waits for the log");
    }
    let log = Lines::of(log);
    let said = proxy.stderr.wait_for(|line| line.contains(" is written again; "));
    let lost = said.split("; ").nth(1).unwrap().split(' ').next().unwrap();
    let lost: usize = lost.parse().unwrap();
    let there = |line: &str| line.ends_with(" end=ok");
    log.wait_for_nth(REQUESTS - lost, there);
    assert!((1..REQUESTS).contains(&lost), "{said}");
}
