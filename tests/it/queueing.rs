//! The queue: requests that are complete wait here, in order, and never at the app.

use std::thread;
use std::time::Duration;

use crate::support::{App, Client, Proxy, ok};

#[test]
fn never_more_upstream_connections_than_slots() {
    slots_are_never_exceeded(&["--concurrency", "3"]);
}

#[test]
fn event_loops_share_the_slots() {
    slots_are_never_exceeded(&["--concurrency", "3", "--threads", "3"]);
}

#[track_caller]
fn slots_are_never_exceeded(options: &[&str]) {
    let app = App::unix();
    app.serve(|conn, request| {
        // A worker takes its time, so that the others would come in.
        thread::sleep(Duration::from_millis(5));
        conn.send(ok(request.target()));
    });
    let proxy = Proxy::start(&app, options);
    thread::scope(|scope| {
        for i in 0..20 {
            let addr = proxy.addr;
            scope.spawn(move || {
                for j in 0..5 {
                    let mut client = Client::connect(addr);
                    client.get(&format!("/{i}/{j}"));
                    assert_eq!(client.response().text(), format!("/{i}/{j}"));
                }
            });
        }
    });
    assert_eq!(app.accepted(), 100);
    assert!(app.most_at_once() <= 3, "{} at once", app.most_at_once());
}

#[test]
fn the_longest_waiter_goes_next() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1", "--queue-order", "fifo"]);
    let mut first = proxy.connect();
    first.get("/first");
    let (worker, _) = app.request();
    let mut waiting = Vec::new();
    for i in 0..10 {
        let mut client = proxy.connect();
        client.get(&format!("/{i}"));
        proxy.settle();
        waiting.push(client);
    }
    app.assert_no_connection();
    worker.reply("");
    for (i, client) in waiting.iter_mut().enumerate() {
        let (worker, request) = app.request();
        assert_eq!(request.target(), format!("/{i}"));
        worker.reply("");
        client.response();
        let record = proxy.record(&format!("GET /{i} "));
        assert!(record.seconds("queue") > Duration::ZERO, "{record:?}");
    }
}

#[test]
fn client_that_leaves_the_queue_is_never_dispatched() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1"]);
    let mut first = proxy.connect();
    first.get("/first");
    let (worker, _) = app.request();
    let mut leaves = proxy.connect();
    leaves.get("/leaves");
    let mut resets = proxy.connect();
    resets.get("/resets");
    let mut stays = proxy.connect();
    stays.get("/stays");
    proxy.settle();
    drop(leaves);
    resets.reset();
    for target in ["/leaves", "/resets"] {
        let record = proxy.record(target);
        assert_eq!((record.get("status_code"), record.get("end")), ("499", "client_gone"));
    }

    worker.reply("");
    let (worker, request) = app.request();
    assert_eq!(request.target(), "/stays");
    worker.reply("");
    assert_eq!(stays.response().status(), 200);
    app.assert_no_connection();
}

#[test]
fn full_queue_is_answered_503_at_once() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1", "--queue", "1"]);
    let mut first = proxy.connect();
    first.get("/first");
    let (worker, _) = app.request();
    let mut second = proxy.connect();
    second.get("/second");
    proxy.settle();

    let mut third = proxy.connect();
    third.get("/third");
    let refusal = third.response();
    assert_eq!(refusal.status(), 503);
    assert!(refusal.get("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert_eq!(proxy.record("/third").get("end"), "queue_full");

    worker.reply("");
    app.request().0.reply("");
    assert_eq!(first.response().status(), 200);
    assert_eq!(second.response().status(), 200);
    app.assert_no_connection();
}

#[test]
fn waiting_too_long_is_answered_503() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1", "--queue-timeout", "100ms"]);
    let mut first = proxy.connect();
    first.get("/first");
    let (worker, _) = app.request();
    let mut second = proxy.connect();
    second.get("/second");
    let refusal = second.response();
    assert_eq!(refusal.status(), 503);
    assert!(refusal.get("retry-after").is_some());
    let record = proxy.record("/second");
    assert_eq!((record.get("end"), record.get("slow")), ("queue_timeout", "queue"));
    assert!(record.seconds("queue") >= Duration::from_millis(99), "{record:?}");

    worker.reply("");
    assert_eq!(first.response().status(), 200);
    app.assert_no_connection();
}

#[test]
fn one_queue_for_two_upstreams() {
    let (one, two) = (App::unix(), App::unix());
    let options = ["--upstream", two.address(), "--concurrency", "1"];
    let proxy = Proxy::start(&one, &options);
    let mut clients: Vec<_> = (0..3).map(|_| proxy.connect()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.get(&format!("/{i}"));
        proxy.settle();
    }
    // Least in flight: the first two go to different apps, the third waits for whoever is free.
    let (at_one, _) = one.request();
    let (at_two, _) = two.request();
    one.assert_no_connection();
    two.assert_no_connection();
    at_two.reply("two");
    let (third, request) = two.request();
    assert_eq!(request.target(), "/2");
    third.reply("two again");
    at_one.reply("one");
    assert_eq!(clients[2].response().text(), "two again");
}

#[test]
fn tcp_upstream_is_served_the_same_way() {
    let app = App::tcp();
    let proxy = Proxy::start(&app, &["--concurrency", "1"]);
    let mut client = proxy.connect();
    client.get("/");
    let (mut worker, _) = app.request();
    worker.send(ok("over tcp"));
    worker.wait_closed();
    assert_eq!(client.response().text(), "over tcp");
}

#[test]
fn no_connection_to_the_app_without_a_request() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &[]);
    let _idle = proxy.connect();
    proxy.settle();
    app.assert_no_connection();
}

#[test]
fn upstream_that_refuses_costs_no_request_while_another_is_up() {
    let (up, down) = (App::answering(ok("up")), App::unix());
    let address = down.address().to_owned();
    drop(down);
    let proxy = Proxy::start(&up, &["--upstream", &address, "--connect-retry", "off"]);
    for _ in 0..30 {
        let mut client = proxy.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(client.response().text(), "up");
    }
}

#[test]
fn one_client_has_its_share_of_the_queue() {
    let app = App::unix();
    let options =
        ["--concurrency", "1", "--queue", "16", "--queue-share", "0.125", "--trust", "private"];
    let proxy = Proxy::start(&app, &options);
    let ask = |client: &str, target: &str| {
        let mut connection = proxy.connect();
        connection
            .send(format!("GET {target} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\n\r\n"));
        proxy.settle();
        connection
    };
    let _at_the_app = ask("192.0.2.1", "/0");
    let (_worker, _) = app.request();
    let _other = ask("192.0.2.2", "/1");
    let _first = ask("192.0.2.1", "/2");
    let _second = ask("192.0.2.1", "/3");
    let mut third = ask("192.0.2.1", "/4");
    assert_eq!(third.response().status(), 503);
    assert_eq!(proxy.record("/4").get("end"), "client_limit");
}

#[test]
fn a_request_that_has_waited_is_not_begun_when_there_is_no_time_to_answer() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1", "--app-timeout", "4s"]);
    // The app usually takes over a second: a quarter of app-timeout is what is left for it.
    for target in ["/slow", "/slow-too"] {
        let mut client = proxy.connect();
        client.get(target);
        let (worker, _) = app.request();
        thread::sleep(Duration::from_millis(1200));
        worker.reply("");
        client.response();
    }
    let mut first = proxy.connect();
    first.get("/first");
    let (_worker, _) = app.request();
    let mut second = proxy.connect();
    second.get("/second");
    assert_eq!(second.response().status(), 503);
    let record = proxy.record("/second");
    assert_eq!(record.get("end"), "deadline");
    let waited = record.seconds("queue");
    assert!(waited >= Duration::from_millis(2999), "{record:?}");
    assert!(waited < Duration::from_millis(3900), "{record:?}");
}

#[test]
fn a_line_says_now_and_then_whether_the_app_keeps_up() {
    let app = App::unix();
    let options = ["--concurrency", "1", "--queue", "1", "--saturation-log", "300ms"];
    let proxy = Proxy::start(&app, &options);
    let mut clients = ["/0", "/1", "/2"].map(|target| {
        let mut client = proxy.connect();
        client.get(target);
        proxy.settle();
        client
    });
    let (worker, _) = app.request();
    assert_eq!(clients[2].response().status(), 503);
    let record = proxy.record("sample#bufproxy.busy=1 ");
    assert_eq!(record.get("sample#bufproxy.queue"), "1");
    assert_eq!(record.get("count#bufproxy.shed"), "1");
    worker.reply("");
    app.request().0.reply("");
}

#[test]
fn upstream_that_comes_back_gets_requests_again() {
    let (one, two) = (App::answering(ok("one")), App::unix());
    let address = two.address().to_owned();
    let path = address.trim_start_matches("unix:").to_owned();
    drop(two);
    let proxy = Proxy::start(&one, &["--upstream", &address]);
    let ask = || {
        let mut client = proxy.connect();
        client.get("/");
        client.response().text().to_owned()
    };
    assert_eq!([(); 10].map(|()| ask()), ["one"; 10]);
    let _ = std::fs::remove_file(&path);
    std::fs::create_dir_all(std::path::Path::new(&path).parent().unwrap()).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        use std::io::{Read, Write};
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let _ = connection.read(&mut [0; 8192]);
            connection.write_all(ok("two").as_ref()).unwrap();
        }
    });
    let begun = std::time::Instant::now();
    crate::support::until(|| ask() == "two");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn request_that_is_too_late_when_its_turn_comes_is_not_dispatched() {
    let app = App::unix();
    let proxy = Proxy::start(&app, &["--concurrency", "1", "--app-timeout", "4s"]);
    let mut first = proxy.connect();
    first.get("/first");
    let (worker, _) = app.request();
    let mut second = proxy.connect();
    second.get("/second");
    proxy.settle();
    // Only with this answer is it known how long the app takes: for the second too long now.
    thread::sleep(Duration::from_millis(3200));
    worker.reply("");
    assert_eq!(second.response().status(), 503);
    assert_eq!(proxy.record("/second").get("end"), "deadline");
    app.assert_no_connection();
}

#[test]
fn standing_line_sheds_the_oldest_for_the_newest_unless_it_is_fifo() {
    for (order, refused, end, next) in
        [("adaptive", "/3", "shed", "/7"), ("fifo", "/7", "queue_full", "/3")]
    {
        let app = App::unix();
        let options = ["--concurrency", "1", "--queue", "3", "--queue-order", order];
        let proxy = Proxy::start(&app, &options);
        let ask = |target: &str| {
            let mut client = proxy.connect();
            client.get(target);
            proxy.settle();
            client
        };
        let mut waiting = vec![ask("/0"), ask("/1"), ask("/2"), ask("/3")];
        let (worker, _) = app.request();
        thread::sleep(Duration::from_millis(150));
        worker.reply("");
        let (worker, _) = app.request();
        waiting.push(ask("/4"));
        assert_eq!(ask("/5").response().status(), 503);
        thread::sleep(Duration::from_millis(250));
        // All have waited for more than 100 ms, for 200 ms, and one was not let in.
        worker.reply("");
        let (worker, request) = app.request();
        assert_eq!(request.target(), "/2");
        waiting.extend([ask("/6"), ask("/7")]);
        let record = proxy.record(refused);
        assert_eq!((record.get("status_code"), record.get("end")), ("503", end));
        worker.reply("");
        assert_eq!(app.request().1.target(), next, "{order}");
    }
}
