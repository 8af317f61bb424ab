//! What is typed, and what is said about it.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{App, Lines, Proxy, bufproxy, ok};

/// Runs to the end with these arguments.
fn run(set_up: impl FnOnce(&mut Command)) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = bufproxy(dir.path());
    set_up(&mut command);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn version_is_said() {
    let version = format!("bufproxy {}\n", env!("CARGO_PKG_VERSION"));
    for flag in ["--version", "-V"] {
        assert_eq!(run(|c| _ = c.arg(flag)), (0, version.clone(), String::new()));
    }
}

#[test]
fn help_is_short_and_names_the_two_ways_to_run() {
    let (code, short, _) = run(|c| _ = c.arg("-h"));
    assert_eq!(code, 0);
    assert!(short.contains("--upstream") && short.contains("gunicorn"), "{short}");
    let (code, long, _) = run(|c| _ = c.arg("--help"));
    assert_eq!(code, 0);
    assert!(long.len() >= short.len());
    for option in ["--listen", "--upstream", "--concurrency", "--max-body", "--access-log"] {
        assert!(long.contains(option), "no {option} in {long}");
    }
}

#[test]
fn unknown_option_is_a_usage_error_with_a_suggestion() {
    let (code, stdout, stderr) = run(|c| _ = c.args(["--upstrem", "unix:/tmp/app.sock"]));
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("--upstrem") && stderr.contains("--upstream"), "{stderr}");
}

#[test]
fn bad_value_is_named_with_its_source_and_what_would_be_right() {
    let (code, _, stderr) = run(|c| {
        c.args(["--upstream", "unix:/tmp/app.sock"]).env("BUFPROXY_MAX_BODY", "100mb");
    });
    assert_eq!(code, 2);
    assert_eq!(
        stderr,
        "bufproxy: error: --max-body \"100mb\" (from BUFPROXY_MAX_BODY) is not a size: write 100m\n"
    );
    for (option, value) in [
        ("--concurrency", "many"),
        ("--app-timeout", "30x"),
        ("--listen", "nowhere"),
        ("--max-body", "0"),
        ("--trust", "nobody"),
        ("--log-format", "$nothing"),
    ] {
        let (code, _, stderr) = run(|c| _ = c.args(["--upstream", "unix:/x", option, value]));
        assert_eq!(code, 2, "{option} {value}: {stderr}");
        assert!(stderr.starts_with("bufproxy: error: "), "{stderr}");
        assert!(stderr.contains(option.trim_start_matches('-')), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn missing_upstream_is_a_usage_error() {
    let (code, _, stderr) = run(|c| _ = c.args(["--listen", "127.0.0.1:0"]));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("upstream"), "{stderr}");
}

#[test]
fn what_cannot_be_bound_or_opened_is_named_with_its_source() {
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = busy.local_addr().unwrap();
    let port = busy.port().to_string();
    let bound = |text: &str| text.replace("PORT", &port);
    for (option, value, code, said) in [
        (
            "listen",
            bound("127.0.0.1:PORT"),
            1,
            bound(
                "--listen \"127.0.0.1:PORT\" cannot be bound (Address already in use (os error 98)): end \
                 what listens there, or write another address",
            ),
        ),
        (
            "admin",
            bound("127.0.0.1:PORT"),
            1,
            bound(
                "--admin \"127.0.0.1:PORT\" cannot be bound (Address already in use (os error 98)): end \
                 what listens there, or write another address",
            ),
        ),
        (
            "listen",
            "192.0.2.1:80".to_owned(),
            2,
            "--listen \"192.0.2.1:80\" cannot be bound (Cannot assign requested address (os error 99)): \
             write an address of this machine, or :PORT for all of them"
                .to_owned(),
        ),
        (
            "listen",
            "unix:/none/a.sock".to_owned(),
            2,
            "--listen \"unix:/none/a.sock\" cannot be bound (No such file or directory (os error 2)): \
             write a path in a directory that exists"
                .to_owned(),
        ),
        (
            "access-log",
            "/none/log".to_owned(),
            2,
            "--access-log \"/none/log\" cannot be opened (No such file or directory (os error 2)): write \
             a file that can be written to, - or off"
                .to_owned(),
        ),
        (
            "upstream",
            "/proc".to_owned(),
            2,
            "--upstream \"unix:/proc\" is a directory, not a socket: write another path".to_owned(),
        ),
    ] {
        let variable = format!("BUFPROXY_{}", option.replace('-', "_").to_uppercase());
        let from_variable = run(|c| {
            if option != "upstream" {
                c.args(["--upstream", "unix:/x"]);
            }
            if option != "listen" {
                c.args(["--listen", "127.0.0.1:0"]);
            }
            c.env(&variable, &value);
        });
        let (named, rest) = said.split_at(said.find("\" ").unwrap() + 1);
        let expected = format!("bufproxy: error: {named} (from {variable}){rest}\n");
        assert_eq!(from_variable, (code, String::new(), expected));
    }
}

#[test]
fn check_prints_what_would_run_and_where_it_is_from() {
    let (code, stdout, stderr) = run(|c| {
        c.args(["check", "--upstream", "unix:/tmp/app.sock"]).env("BUFPROXY_MAX_BODY", "7m");
    });
    assert_eq!(code, 0, "{stderr}");
    let line = stdout.lines().find(|line| line.contains("max-body") || line.contains("max_body"));
    let line = line.unwrap_or_else(|| panic!("no max-body in {stdout}"));
    assert!(line.contains("7m") && line.contains("BUFPROXY_MAX_BODY"), "{line}");

    let (code, _, stderr) =
        run(|c| _ = c.args(["check", "--upstream", "unix:/x", "--queue", "-1"]));
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn flag_beats_environment_beats_file() {
    let app = App::unix();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("some.toml");
    std::fs::write(&file, "max-body = \"1k\"\nmax-head = \"4k\"\nmax-fields = 5\n").unwrap();
    let proxy = Proxy::launch(|command| {
        command.args(["--upstream", app.address(), "--max-body", "3k"]);
        command.arg("--config").arg(&file);
        command.env("BUFPROXY_MAX_BODY", "2k").env("BUFPROXY_MAX_FIELDS", "10");
    });
    let boot = proxy.stderr.wait_for(|line| line.contains(" listening on "));
    assert!(boot.contains("some.toml"), "{boot}");
    // From the flag.
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n");
    client.send([b'x'; 3000]);
    app.request().0.reply("");
    assert_eq!(client.response().status(), 200);
    // From the environment.
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(8)));
    app.request().0.reply("");
    assert_eq!(client.response().status(), 200);
    // From the file.
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(5000)));
    assert_eq!(client.response().status(), 431);
}

#[test]
fn probe_tells_a_site_that_slow_clients_hold_from_one_that_they_do_not() {
    // One worker that serves one connection after the other, to its end.
    let bare = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = bare.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in bare.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                match stream.read(&mut byte) {
                    Ok(1) => head.push(byte[0]),
                    _ => break,
                }
            }
            let _ = stream.write_all(&ok("bare"));
        }
    });
    let probe = |address: String, timeout: &str| {
        let url = format!("http://{address}/");
        run(|c| _ = c.args(["probe", "--clients", "3", "--timeout", timeout, &url]))
    };
    let (code, said, stderr) = probe(address.to_string(), "2s");
    assert_eq!(code, 1, "{said}{stderr}");
    let held = "beside 3 clients that send half a head: not served: no answer within 2 s";
    assert!(said.lines().any(|line| line == held), "{said}");

    let app = App::answering(ok("behind"));
    let proxy = Proxy::start(&app, &[]);
    let (code, said, stderr) = probe(proxy.addr.to_string(), "10s");
    assert_eq!((code, stderr.as_str()), (0, ""), "{said}");
    assert_eq!(said.lines().filter(|line| line.ends_with(" ms")).count(), 4, "{said}");
}

#[test]
fn probe_says_what_it_wants() {
    for (args, said) in [
        (&[][..], "probe has no URL: write http://localhost:8080/"),
        (
            &["https://a.example/"],
            "\"https://a.example/\" asks for TLS, which probe does not speak: write the site's URL, as \
             http://localhost:8080/",
        ),
        (
            &["a.example"],
            "\"a.example\" is not a URL: write the site's URL, as http://localhost:8080/",
        ),
        (&["http://a/", "--clients", "2000"], "--clients \"2000\" is too many: write 1000 at most"),
        (&["http://a/", "--timeout", "5"], "--timeout \"5\" is not a duration: write 5s"),
    ] {
        let (code, _, stderr) = run(|c| _ = c.arg("probe").args(args));
        assert_eq!((code, stderr), (2, format!("bufproxy: error: {said}\n")));
    }
    let (code, _, stderr) = run(|c| _ = c.args(["probe", "http://127.0.0.1:1/"]));
    let refused = "bufproxy: error: probe http://127.0.0.1:1/: Connection refused (os error 111)\n";
    assert_eq!((code, stderr.as_str()), (1, refused));
}

#[test]
#[ignore = "measures for ten seconds; .ci/full runs it"]
fn demo_shows_the_point() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = bufproxy(dir.path()).arg("demo").stdout(Stdio::piped()).spawn().unwrap();
    let stdout = Lines::of(demo.stdout.take().unwrap());
    let shown = stdout.find(1, Duration::from_secs(60), |line| line.contains("bare "));
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    // `bare 0/s, bufproxy 168/s`
    let shown = shown.unwrap();
    let numbers = shown.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    let [bare, behind] = numbers.collect::<Vec<_>>()[..] else { panic!("{shown}") };
    assert!(behind >= 20 && behind >= 10 * bare, "{shown}");
}

#[test]
fn level_of_the_diagnostics_is_chosen() {
    let app = App::unix();
    let debug = Proxy::start(&app, &["--log-level", "debug"]);
    debug.settle();
    debug.stderr.wait_for(|line| line.contains("refused a request: "));
    let usual = Proxy::start(&app, &[]);
    usual.settle();
    let said = usual.stop().stderr;
    assert!(!said.iter().any(|line| line.contains("refused a request: ")), "{said:#?}");
}
