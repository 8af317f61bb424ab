//! Bodies beyond memory: what the disk's limits and failures do to one exchange they do to no other.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{App, Client, GUARD, Proxy, bufproxy, ok, pattern, unix_path, until};

const MIB: usize = 1024 * 1024;

#[test]
fn file_size_limit_of_the_process_refuses_a_body_and_ends_nothing() {
    // Without a handler SIGXFSZ ends the process.
    let app = App::unix();
    let dir = tempfile::tempdir().unwrap();
    let proxy = bufproxy(dir.path());
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 400; exec \"$0\" \"$@\""]).arg(proxy.get_program());
    shell.envs(proxy.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.args(["--listen", "127.0.0.1:0", "--upstream", app.address(), "--body-memory", "64k"]);
    shell.args(["--response-memory", "64k"]);
    let proxy = Proxy::spawn(shell, dir);

    let mut client = proxy.connect();
    client.send(format!("PUT /large HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 4 * MIB));
    let _ = client.try_send(vec![b'x'; 4 * MIB]);
    assert_eq!(client.response().status(), 503);
    assert_eq!(proxy.record("/large").get("end"), "spool_full");
    app.assert_no_connection();

    let mut slow = proxy.connect_slow();
    slow.get("/response");
    let body = pattern(3 * MIB);
    let (mut worker, _) = app.request();
    let sends = thread::spawn({
        let response = ok(&body);
        move || worker.send(response)
    });
    assert!(slow.response().body == body, "the body was changed on the way");
    sends.join().unwrap();
    assert_eq!(proxy.record("/response").get("paced"), "1");
}

#[test]
fn a_full_disk_is_said_once_and_not_for_each_request() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--spool-max", "1m", "--max-body", "1m"]);
    let upload = |path: &str| {
        let mut client = proxy.connect();
        client.send(format!("PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {MIB}\r\n\r\n"));
        let _ = client.try_send(vec![b'x'; MIB]);
        client
    };
    // It fills the disk until the worker has answered.
    let mut held = upload("/held");
    let (worker, _) = app.request();
    for n in 0..10 {
        let path = format!("/{n}");
        assert_eq!(upload(&path).response().status(), 503);
        assert_eq!(proxy.record(&path).get("end"), "spool_full");
    }
    worker.reply("");
    held.response();
    let said = proxy.stderr.seen();
    let said: Vec<_> = said.iter().filter(|line| line.contains("could not be kept")).collect();
    let expected =
        "bufproxy: warning: a request body could not be kept: the disk budget is spent (spool-max)";
    assert_eq!(said, [expected]);
}

#[test]
fn one_client_does_not_fill_the_disk_for_the_others() {
    let app = App::answering(ok("x"));
    let options = ["--trust", "private", "--spool-max", "8m", "--max-body", "4m"];
    let proxy = Proxy::start(&app, &options);
    let upload = |client: &str, declared: usize| {
        let mut connection = proxy.connect();
        connection.send(format!(
            "PUT /{client} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n\
             Content-Length: {declared}\r\n\r\n"
        ));
        let _ = connection.try_send(vec![b'x'; MIB]);
        connection
    };
    // Each stalls with 1 MiB of 4; the first of the same client that is refused ends it.
    let stalled: Vec<_> = (0..8).map(|_| upload("192.0.2.1", 4 * MIB)).collect();
    assert_eq!(proxy.record("/192.0.2.1").get("end"), "spool_full");
    for n in 0..4 {
        let mut other = upload(&format!("198.51.100.{n}"), MIB);
        assert_eq!(other.response().status(), 200, "another client's upload");
    }
    drop(stalled);
}

#[test]
fn sixteen_times_the_disk_budget_goes_through_or_is_refused() {
    churn(64 * MIB, "4m");
}

#[test]
#[ignore = "2 GB; .ci/full runs it"]
fn two_gigabytes_go_through_a_spool_of_256_megabytes_or_are_refused() {
    churn(2048 * MIB, "256m");
}

/// Uploads and slow readers of 1 MiB, `total` bytes of them, many at a time; in the middle the
/// directory of the spool goes and comes back. Each is whole or refused by 503; then nothing is left.
#[track_caller]
fn churn(total: usize, spool_max: &str) {
    const CLIENTS: usize = 32;
    let body = pattern(MIB);
    let app = App::unix();
    {
        let body = body.clone();
        app.serve(move |conn, request| {
            assert!(request.body.is_empty() || request.body == body, "an upload was changed");
            conn.send(ok(if request.body.is_empty() { &body[..] } else { b"whole" }));
        });
    }
    let (sockets, above) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (admin, spool) = (unix_path(&sockets), above.path().join("spool"));
    fs::create_dir(&spool).unwrap();
    let options = [
        "--max-body",
        "2m",
        "--spool-max",
        spool_max,
        "--response-spool-max",
        "1m",
        "--memory",
        "1m",
        "--spool-dir",
        spool.to_str().unwrap(),
        "--admin",
        &format!("unix:{}", admin.display()),
    ];
    let proxy = Proxy::start(&app, &options);
    // What the first exchanges open or allocate for good is not theirs.
    upload(proxy.addr, &body).unwrap();
    until(|| spooled(&admin) == (0, 0));
    let (descriptors, started) = (open_files(&proxy), resident(&proxy));

    let left = Mutex::new(total / MIB);
    let refused = Mutex::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (proxy, body, left, refused, spool) = (proxy.addr, &body, &left, &refused, &spool);
            scope.spawn(move || {
                loop {
                    let n = {
                        let mut left = left.lock().unwrap();
                        if *left == 0 {
                            return;
                        }
                        *left -= 1;
                        *left
                    };
                    if n == total / MIB / 2 {
                        fs::remove_dir(spool).unwrap();
                        // Until somebody has been refused for it.
                        let before = *refused.lock().unwrap();
                        let deadline = Instant::now() + GUARD;
                        while *refused.lock().unwrap() == before && Instant::now() < deadline {
                            let refuses = upload(proxy, body).is_none();
                            *refused.lock().unwrap() += usize::from(refuses);
                        }
                        fs::create_dir(spool).unwrap();
                    }
                    let whole = match client % 2 {
                        0 => upload(proxy, body),
                        _ => slow_download(proxy, body),
                    };
                    *refused.lock().unwrap() += usize::from(whole.is_none());
                }
            });
        }
    });
    let refused = *refused.lock().unwrap();
    assert!((1..total / MIB).contains(&refused), "{refused} of {} were refused", total / MIB);

    until(|| spooled(&admin) == (0, 0));
    until(|| open_files(&proxy) <= descriptors);
    // The heap goes back within a few sweeps.
    let deadline = Instant::now() + GUARD;
    while resident(&proxy) > started + started / 10 + 4096 {
        assert!(Instant::now() < deadline, "{} KiB from {started}", resident(&proxy));
        thread::sleep(Duration::from_millis(50));
    }
    assert!(upload(proxy.addr, &body).is_some(), "there is room again");
}

/// None: refused, clearly.
fn upload(proxy: SocketAddr, body: &[u8]) -> Option<()> {
    let mut client = Client::connect(proxy);
    client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    let _ = client.try_send(body);
    let response = client.response();
    match response.status() {
        200 => assert_eq!(response.text(), "whole"),
        status => assert_eq!(status, 503, "{response:?}"),
    }
    (response.status() == 200).then_some(())
}

fn slow_download(proxy: SocketAddr, body: &[u8]) -> Option<()> {
    let mut client = Client::slow(proxy);
    client.get("/");
    let response = client.response();
    assert_eq!(response.status(), 200, "a response is never refused for the disk: {response:?}");
    assert!(response.body == body, "a response was changed");
    Some(())
}

/// Bytes of all spools in memory and on disk.
fn spooled(admin: &Path) -> (u64, u64) {
    let mut client = Client::unix(admin);
    client.get("/status");
    let status: serde_json::Value = serde_json::from_slice(&client.response().body).unwrap();
    let bytes = |place: &str| status.pointer(&format!("/spooled/{place}")).unwrap().as_u64();
    (bytes("memory").unwrap(), bytes("disk").unwrap())
}

/// Descriptors of spool files.
fn open_files(proxy: &Proxy) -> usize {
    let fds = PathBuf::from(format!("/proc/{}/fd", proxy.pid().as_raw_nonzero()));
    let targets = fs::read_dir(fds).unwrap().flatten().flat_map(|fd| fs::read_link(fd.path()));
    targets.filter(|file| file.to_string_lossy().ends_with(" (deleted)")).count()
}

/// KiB.
fn resident(proxy: &Proxy) -> u64 {
    proxy.status_field("VmRSS").parse().unwrap()
}

#[test]
fn what_one_body_may_hold_in_memory_is_as_the_options_say() {
    for (memory, on_disk) in [("64k", true), ("16m", false)] {
        let app = App::unix();
        let dir = tempfile::tempdir().unwrap();
        let admin = unix_path(&dir);
        let listen = format!("unix:{}", admin.display());
        let options = ["--memory", "256m", "--body-memory", memory, "--response-memory", memory];
        let proxy = Proxy::start(&app, &[&options[..], &["--admin", &listen]].concat());
        let holds = |bytes: u64| {
            until(|| {
                let (memory, disk) = spooled(&admin);
                memory + disk >= bytes
            });
            assert_eq!(spooled(&admin).1 > 0, on_disk, "{memory}");
        };
        let mut client = proxy.connect_slow();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000001\r\n\r\n");
        client.send(vec![b'x'; 1_000_000]);
        holds(1_000_000);
        client.send("x");
        let (mut worker, _) = app.request();
        worker.send(ok(vec![b'x'; 10_000_000]));
        worker.wait_closed();
        holds(2_000_000);
    }
}
