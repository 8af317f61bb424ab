//! Everything has a limit, and whoever passes one is told so before it is cut off.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::{App, AppConn, Client, GUARD, Proxy, bufproxy, chunked, ok, unix_path, until};

#[test]
fn declared_body_beyond_max_body_is_refused_unread() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-body", "1k"]);
    let mut client = proxy.connect();
    client.send("POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.get("connection")), (413, Some("close")));
    let record = proxy.record("/large");
    assert_eq!((record.get("status_code"), record.get("end")), ("413", "body_too_large"));
    app.assert_no_connection();

    let mut client = proxy.connect();
    client.send("POST /fits HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n");
    client.send([b'x'; 1024]);
    app.request().0.reply("");
    assert_eq!(client.response().status(), 200);
}

#[test]
fn refusal_is_readable_while_the_body_still_comes() {
    // A plain close with bytes unread would be a RST that takes the answer with it.
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-body", "1k"]);
    let mut client = proxy.connect();
    client.send("POST /large HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n");
    client.send(vec![b'x'; 3_000_000]);
    assert_eq!(client.response().status(), 413);
}

#[test]
fn chunked_body_beyond_max_body_is_refused_on_the_way() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-body", "1k"]);
    let mut client = proxy.connect();
    client.send("POST /large HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send(&chunked(&[b'x'; 2000], 500)[..1600]);
    assert_eq!(client.response().status(), 413);
    assert_eq!(proxy.record("/large").get("end"), "body_too_large");
    app.assert_no_connection();
}

#[test]
fn long_target_is_414() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    client.send(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(100_000)));
    assert_eq!(client.response().status(), 414);
    assert_eq!(proxy.record("GET /xxx").get("end"), "target_too_long");
    app.assert_no_connection();
}

#[test]
fn large_head_is_431() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-head", "4k", "--max-fields", "10"]);
    let large = format!("X: {}\r\n", "y".repeat(5000));
    let many: String = (0..11).map(|i| format!("X-{i}: y\r\n")).collect();
    for (target, fields) in [("/large", large), ("/many", many)] {
        let mut client = proxy.connect();
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert_eq!(client.response().status(), 431, "{target}");
        let record = proxy.record(target);
        assert_eq!((record.get("status_code"), record.get("end")), ("431", "head_too_large"));
    }
    app.assert_no_connection();
}

#[test]
fn heads_that_the_router_lets_through_pass() {
    let app = App::answering(ok("x"));
    let proxy = Proxy::start(&app, &[]);
    let mut client = proxy.connect();
    let target = "x".repeat(8192 - "GET / HTTP/1.1".len());
    let cookie = "c".repeat(8192 - "Cookie: ".len());
    client.send(format!("GET /{target} HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n"));
    assert_eq!(client.response().status(), 200);
}

#[test]
fn slow_head_is_408() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--header-timeout", "100ms"]);
    let mut client = proxy.connect();
    client.send("GET /slow HTTP/1.1\r\nHo");
    let response = client.response();
    assert_eq!((response.status(), response.get("connection")), (408, Some("close")));
    client.half_close();
    client.wait_closed();
    let record = proxy.record("GET /slow");
    assert_eq!((record.get("status_code"), record.get("end")), ("408", "header_timeout"));
}

#[test]
fn dripping_does_not_extend_the_head_timeout() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--header-timeout", "200ms"]);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nX: ");
    // 10 ms between bytes, for as long as it is let: each byte is progress, the head is not.
    for _ in 0..GUARD.as_millis() / 10 {
        if client.try_send("x").is_err() {
            break;
        }
        if let Some(response) = client.response_so_far() {
            assert_eq!(response.status(), 408);
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("no answer");
}

#[test]
fn stalled_body_is_408() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--body-timeout", "100ms"]);
    let mut client = proxy.connect();
    client.send("POST /stalls HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    let response = client.response();
    assert_eq!((response.status(), response.get("connection")), (408, Some("close")));
    let record = proxy.record("/stalls");
    assert_eq!((record.get("status_code"), record.get("end")), ("408", "body_timeout"));
    app.assert_no_connection();
}

#[test]
fn body_that_comes_on_is_not_timed_out() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--body-timeout", "300ms"]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    for byte in b"1234567890" {
        std::thread::sleep(Duration::from_millis(50));
        client.send([*byte]);
    }
    let (worker, request) = app.request();
    assert_eq!(request.text(), "1234567890");
    worker.reply("");
    assert_eq!(client.response().status(), 200);
}

#[test]
#[ignore = "takes 30 s: the rate counts after that; .ci/full runs it"]
fn body_below_the_minimum_rate_is_408() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--body-min-rate", "1k"]);
    let mut client = proxy.connect();
    client.send("POST /rate HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n");
    for _ in 0..4000 {
        if client.try_send("x").is_err() || client.response_so_far().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(proxy.record("/rate").get("end"), "body_timeout");
    app.assert_no_connection();
}

#[test]
#[ignore = "takes 30 s: that is the time over which a rate counts; .ci/full runs it"]
fn reader_below_the_minimum_rate_is_cut_and_one_above_is_not() {
    let app = App::answering(ok(vec![b'x'; 30_000_000]));
    let proxy = Proxy::start(&app, &["--send-min-rate", "60k", "--saturation-log", "off"]);
    let (mut slow, mut fast) = (proxy.connect_slow(), proxy.connect());
    slow.get("/slow");
    fast.get("/fast");
    // 40 KB and 400 KB a second.
    for _ in 0..1000 {
        if !proxy.stdout.seen().is_empty() {
            break;
        }
        slow.read_some(4_000);
        fast.exact(40_000);
        std::thread::sleep(Duration::from_millis(100));
    }
    let record = proxy.record("/slow");
    assert_eq!(record.get("end"), "send_timeout");
    assert!(record.seconds("send") + record.seconds("upstream") >= Duration::from_secs(29));
    slow.cut_response();
    fast.exact(1_000_000);
    assert_eq!(proxy.stdout.seen().len(), 1, "the fast one was cut, too");
}

/// A request of this client of a proxy that is trusted.
fn ask_as(proxy: &Proxy, client: &str, target: &str) -> Client {
    let mut connection = proxy.connect();
    let fields = format!("Host: a\r\nX-Forwarded-For: {client}");
    connection.send(format!("GET {target} HTTP/1.1\r\n{fields}\r\n\r\n"));
    connection
}

#[test]
fn client_has_a_limit_of_requests_at_once() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-requests-per-client", "2", "--trust", "private"]);
    let mut one = ask_as(&proxy, "2001:db8::1", "/one");
    let (worker, _) = app.request();
    // The same network.
    let mut two = ask_as(&proxy, "2001:db8::2", "/two");
    let (other_worker, _) = app.request();
    let refusal = ask_as(&proxy, "2001:db8::3", "/three").response();
    assert_eq!(refusal.status(), 503);
    assert!(refusal.get("retry-after").is_some());
    assert_eq!(proxy.record("/three").get("end"), "client_limit");
    app.assert_no_connection();
    let mut other = ask_as(&proxy, "192.0.2.1", "/other");
    app.request().0.reply("");
    assert_eq!(other.response().status(), 200);

    worker.reply("");
    assert_eq!(one.response().status(), 200);
    proxy.record("/one");
    let mut four = ask_as(&proxy, "2001:db8::1", "/four");
    app.request().0.reply("");
    assert_eq!(four.response().status(), 200);
    other_worker.reply("");
    assert_eq!(two.response().status(), 200);
}

#[test]
fn client_that_leaves_is_not_rid_of_what_it_asked_for() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-requests-per-client", "1", "--trust", "private"]);
    let gone = ask_as(&proxy, "192.0.2.1", "/gone");
    let (mut worker, _) = app.request();
    drop(gone);
    proxy.record("/gone");
    assert_eq!(ask_as(&proxy, "192.0.2.1", "/next").response().status(), 503);
    // Its worker is done.
    worker.send(ok(""));
    worker.wait_closed();
    proxy.settle();
    let mut last = ask_as(&proxy, "192.0.2.1", "/last");
    app.request().0.reply("");
    assert_eq!(last.response().status(), 200);
}

#[test]
fn peer_behind_which_all_clients_may_be_has_no_limit_of_requests() {
    let app = App::unix();
    let limit = ["--max-requests-per-client", "1"];
    let untrusted = Proxy::start(&app, &limit);
    // It is trusted, but does not say who asks.
    let silent = Proxy::start(&app, &[limit, ["--trust", "private"]].concat());
    let dir = tempfile::tempdir().unwrap();
    let path = unix_path(&dir);
    let unix = Proxy::launch(|command| {
        command.args(["--upstream", app.address()]).args(limit);
        command.args(["--listen", &format!("unix:{}", path.display())]);
    });
    let clients = [
        [untrusted.connect(), untrusted.connect()],
        [silent.connect(), silent.connect()],
        [Client::unix(&path), Client::unix(&path)],
    ];
    for mut pair in clients {
        let workers = pair.each_mut().map(|client| {
            client.get("/");
            app.request().0
        });
        workers.into_iter().for_each(|worker| worker.reply(""));
        assert_eq!(pair.each_mut().map(|client| client.response().status()), [200, 200]);
    }
    drop(unix);
}

#[test]
fn connections_beyond_the_limit_are_answered_503() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-connections", "2"]);
    // Neither of the two is idle, so neither can make room.
    let mut one = proxy.connect();
    one.get("/one");
    let (worker, _) = app.request();
    let mut two = proxy.connect();
    two.get("/two");
    let (other, _) = app.request();

    let mut three = proxy.connect();
    three.get("/three");
    let refusal = three.response();
    assert_eq!(refusal.status(), 503);
    assert!(refusal.get("retry-after").is_some());
    drop(three);

    worker.reply("");
    other.reply("");
    one.response();
    two.response();
    drop((one, two));
    proxy.stdout.wait_for(|line| line.contains("too_many_connections"));
    let mut four = proxy.connect();
    four.get("/four");
    app.request().0.reply("");
    assert_eq!(four.response().status(), 200);
}

#[test]
fn client_that_is_idle_longest_makes_room() {
    let app = App::answering(ok("x"));
    for threads in ["1", "2"] {
        let proxy = Proxy::start(&app, &["--max-connections", "10", "--threads", threads]);
        let mut idle: Vec<_> = (0..9).map(|_| proxy.connect()).collect();
        // Not in the order in which they came.
        for i in [3, 4, 5, 6, 7, 8, 0, 1, 2] {
            idle[i].get("/");
            idle[i].response();
            // The order is kept to 100 ms.
            std::thread::sleep(Duration::from_millis(110));
        }
        proxy.wait_parked(9);
        let sockets = || proxy.loops().iter().map(|of_loop| of_loop.sockets).sum::<usize>();
        let with_nine = sockets();
        for (came, goes) in [3, 4, 5].into_iter().enumerate() {
            let mut client = proxy.connect();
            client.get("/new");
            assert_eq!(client.response().status(), 200);
            assert_eq!(idle[goes].rest(), b"", "{came}: not the one that was idle longest");
            for i in (goes + 1..9).chain(0..3) {
                idle[i].assert_silent();
            }
            drop(client);
            // Before that has been seen there would be one too many once more.
            until(|| sockets() == with_nine - 1);
            idle[goes] = proxy.connect();
            proxy.wait_parked(9);
        }
        proxy
            .stderr
            .wait_for(|line| line.contains("more than 90 % of max-connections 10 are open"));
        assert_eq!(proxy.stop().stdout.len(), 9 + 3, "no record of an idle connection's end");
    }
}

#[test]
fn client_that_is_idle_for_a_moment_makes_room_when_nobody_is_for_longer() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-connections", "4"]);
    let mut busy: Vec<_> = (0..2).map(|_| proxy.connect()).collect();
    let mut workers = Vec::new();
    for client in &mut busy {
        client.get("/busy");
        workers.push(app.request().0);
    }
    let mut idle = proxy.connect();
    idle.get("/");
    app.request().0.reply("");
    idle.response();
    // Both fit in only if the idle one has gone.
    let mut others = [proxy.connect(), proxy.connect()];
    for client in &mut others {
        client.get("/other");
        app.request().0.reply("");
        assert_eq!(client.response().status(), 200);
    }
    assert_eq!(idle.rest(), b"");
    for (client, worker) in busy.iter_mut().zip(workers) {
        worker.reply("");
        assert_eq!(client.response().status(), 200, "a busy one had to make room");
    }
}

#[test]
fn silent_connection_beyond_the_limit_gives_its_place_back() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-connections", "1", "--header-timeout", "200ms"]);
    let mut busy = proxy.connect();
    busy.get("/");
    let (_worker, _) = app.request();
    let mut silent = proxy.connect();
    assert_eq!(silent.rest(), b"");
}

#[test]
fn out_of_descriptors_is_waited_out_and_said_once() {
    let app = App::answering(ok("x"));
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new("sh");
    let proxy = bufproxy(dir.path());
    command.env_clear().current_dir(dir.path());
    command.args(["-c", "ulimit -n 48; exec \"$@\"", "sh"]).arg(proxy.get_program());
    command.args(["--listen", "127.0.0.1:0", "--upstream", app.address()]);
    command.args(["--max-connections", "1000"]);
    let proxy = Proxy::spawn(command, dir);
    // The kernel accepts them all; silent, they have no right to be closed.
    let mut clients: Vec<_> = (0..60).map(|_| proxy.connect()).collect();
    proxy.stderr.wait_for(|line| line.contains("cannot accept connections: Too many open files"));
    let mut last = clients.pop().unwrap();
    last.get("/waits");
    // For some more tries.
    std::thread::sleep(Duration::from_millis(500));
    last.assert_silent();
    drop(clients);
    assert_eq!(last.response().status(), 200);
    let said = proxy.stop().stderr;
    assert_eq!(said.iter().filter(|line| line.contains("cannot accept")).count(), 1, "{said:#?}");
}

#[test]
fn request_beyond_the_disk_budget_is_refused() {
    let app = App::unix();
    let options = ["--spool-max", "1m", "--max-body", "1m", "--response-spool-max", "1m"];
    let proxy = Proxy::start(&app, &options);
    let upload = |target: &str| {
        let mut client = proxy.connect();
        client.send(format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n"));
        let _ = client.try_send(vec![b'x'; 900_000]);
        client
    };
    // Kept until it is answered: it may have to be sent again.
    let mut one = upload("/one");
    let (worker, _) = app.request();
    let refusal = upload("/two").response();
    assert_eq!(refusal.status(), 503);
    assert!(refusal.get("retry-after").is_some());
    assert_eq!(proxy.record("/two").get("end"), "spool_full");
    app.assert_no_connection();

    worker.reply("");
    assert_eq!(one.response().status(), 200);
    let mut three = upload("/three");
    app.request().0.reply("");
    assert_eq!(three.response().status(), 200);
}

#[test]
fn response_beyond_its_disk_budget_paces_the_app() {
    let app = App::unix();
    let options = ["--response-spool-max", "1m", "--response-memory", "64k"];
    let proxy = Proxy::start(&app, &options);
    let mut client = proxy.connect_slow();
    client.get("/huge");
    let (mut worker, _) = app.request();
    let body = crate::support::pattern(10 * 1024 * 1024);
    let writer = std::thread::spawn({
        let body = body.clone();
        move || worker.try_send(ok(body))
    });
    assert!(client.response().body == body, "the body was changed on the way");
    writer.join().unwrap().expect("all of it is taken in the end");
    assert_eq!(proxy.record("/huge").get("end"), "ok");
}

#[test]
fn upload_does_not_wait_for_memory_for_ever() {
    // A response that its client does not read holds all memory, and there is no disk for it.
    let app = App::unix();
    let proxy = Proxy::launch(|command| {
        command.args(["--upstream", app.address(), "--memory", "64k", "--body-memory", "16k"]);
        command.args(["--response-memory", "16k", "--response-spool-max", "16k"]);
        command.args(["--body-timeout", "200ms"]);
    });
    let _unread = unread(&app, &proxy);

    let mut upload = proxy.connect();
    upload.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n");
    proxy.settle();
    upload.send("order");
    assert_eq!(upload.response().status(), 503);
    assert_eq!(proxy.record("/upload").get("end"), "spool_full");
}

/// One that reads nothing of a large response, and its worker, which is not rid of it: where bodies may
/// have only 64k of memory and no disk, they have all of it.
fn unread(app: &App, proxy: &Proxy) -> (Client, AppConn) {
    let mut client = proxy.connect_slow();
    client.get("/unread");
    let (mut worker, _) = app.request();
    worker.set_write_timeout(Duration::from_millis(100));
    worker.try_send(ok(vec![b'x'; 10_000_000])).expect_err("not all is taken");
    (client, worker)
}

#[test]
fn what_is_read_ahead_of_its_turn_is_little() {
    const CLIENTS: usize = 200;
    let post = "POST / HTTP/1.1\r\nHost: a\r\n";
    let cases = [
        ("a body that waits for memory", format!("{post}Content-Length: 100000\r\n\r\n")),
        ("requests behind one", "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
    ];
    for (n, (case, first)) in cases.iter().enumerate() {
        let app = App::unix();
        let memory = if n == 0 { "64k" } else { "32m" };
        let no_disk = ["--response-memory", "16k", "--response-spool-max", "16k"];
        let options = [&["--memory", memory, "--concurrency", "1"], &no_disk[..]].concat();
        let proxy = Proxy::start(&app, &options);
        let _unread = unread(&app, &proxy);

        let connect = |_| proxy.connect();
        let mut clients: Vec<_> = (0..CLIENTS).map(connect).collect();
        proxy.settle();
        let resident = || proxy.status_field("VmRSS").parse::<usize>().unwrap();
        let before = resident();
        for client in &mut clients {
            // The head first: what comes behind it comes in one read.
            client.send(first);
            client.send([b'x'; 40_000]);
        }
        proxy.settle();
        let each = resident().saturating_sub(before) / CLIENTS;
        assert!(each < 30, "{case}: {each} KiB each");
    }
}

#[test]
fn client_that_reads_does_not_wait_for_those_that_do_not() {
    let app = App::unix();
    let options = ["--memory", "64k", "--response-memory", "16k", "--response-spool-max", "16k"];
    let proxy = Proxy::start(&app, &options);
    let mut unread = proxy.connect_slow();
    unread.get("/unread");
    let (mut worker, _) = app.request();
    worker.set_write_timeout(Duration::from_millis(100));
    worker.try_send(ok(vec![b'x'; 10_000_000])).expect_err("not all is taken");

    let body = crate::support::pattern(1024 * 1024);
    let mut reader = proxy.connect();
    reader.get("/read");
    let (mut worker, _) = app.request();
    let sends = std::thread::spawn({
        let response = ok(&body);
        move || worker.send(response)
    });
    assert!(reader.response().body == body, "the body was changed on the way");
    sends.join().unwrap();
    assert_eq!(proxy.record("/read").get("end"), "ok");
}

#[test]
fn client_that_sends_on_after_a_refusal_is_not_read_for_ever() {
    let app = App::unix();
    for (timeout, least, most) in [("100ms", 0, usize::MAX), ("10m", 16 << 20, 64 << 20)] {
        let proxy = Proxy::start(&app, &["--linger-timeout", timeout]);
        let mut client = proxy.connect();
        client.send("refused\r\n\r\n");
        assert_eq!(client.response().status(), 400);
        let (piece, mut sent) = (vec![0; 64 << 10], 0);
        while client.try_send(&piece).is_ok() {
            sent += piece.len();
            assert!(sent < most, "{sent} bytes are read after a refusal");
        }
        assert!(sent >= least, "only {sent} bytes are read");
    }
}

#[test]
fn client_that_stays_after_a_refusal_has_no_place_for_ever() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--linger-timeout", "100ms"]);
    let mut client = proxy.connect();
    client.send("settle\r\n\r\n");
    assert_eq!(client.response().status(), 400);
    assert_eq!(client.rest(), b"");
    until(|| client.try_send("x").is_err());
}

#[test]
fn connections_far_beyond_the_limit_wait_in_the_kernel() {
    const SOME: usize = 64;
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-connections", "2"]);
    let sockets = || proxy.loops().iter().map(|of_loop| of_loop.sockets).sum::<usize>();
    // The first one too many is there when it is seen.
    let most = sockets() + 2 + SOME + 1;
    let _silent: Vec<_> = (0..2 * SOME).map(|_| proxy.connect()).collect();
    until(|| sockets() >= most);
    // For some more looks whether there is room.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(sockets(), most);
}

#[test]
fn connections_that_wait_in_the_kernel_at_a_stop_are_answered() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--max-connections", "2"]);
    let sockets = || proxy.loops().iter().map(|of_loop| of_loop.sockets).sum::<usize>();
    let most = sockets() + 2 + 64 + 1;
    let mut clients: Vec<_> = (0..128).map(|_| proxy.connect()).collect();
    until(|| sockets() >= most);
    clients[127].get("/last");
    proxy.signal(Signal::TERM);
    assert_eq!(clients[127].response().status(), 503);
    for client in &mut clients {
        assert_eq!(client.rest(), b"");
    }
    let exit = proxy.wait();
    let record = exit.stdout.iter().find(|line| line.contains("/last")).unwrap();
    assert!(record.ends_with(" end=too_many_connections"), "{record}");
}
