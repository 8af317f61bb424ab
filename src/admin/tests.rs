use std::io::{Read, Write};

use http_body_util::BodyExt;

use super::*;

/// An admin listener on a Unix socket of its own, beside event loops that do nothing: it answers all
/// the same.
struct Fixture {
    admin: Admin,
    health: Arc<Health>,
    listen: Listen,
    dir: tempfile::TempDir,
}

fn start_admin() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let listen = Listen::Unix(dir.path().join("admin.sock"));
    let (server, config) = server();
    let health = Arc::new(Health::default());
    let admin = start(&listen, server, config, health.clone()).unwrap();
    Fixture { admin, health, listen, dir }
}

fn server() -> (Server, Arc<Config>) {
    let config = Arc::new(Config {
        listen: vec![Listen::Tcp(([127, 0, 0, 1], 0).into())],
        access_log: crate::config::LogDestination::Off,
        ..Config::for_tests()
    });
    (Server::bind(config.clone(), Vec::new()).unwrap(), config)
}

impl Fixture {
    /// Status, content type and body.
    fn get(&self, path: &str) -> (u16, String, String) {
        let Listen::Unix(socket) = &self.listen else { unreachable!() };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
            let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
            let request = Request::get(path)
                .header("host", "x")
                .header("connection", "close")
                .body(Empty::<Bytes>::new())
                .unwrap();
            let exchange = async {
                let (head, body) = sender.send_request(request).await.unwrap().into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let kind = head.headers[CONTENT_TYPE].to_str().unwrap().to_owned();
                (head.status.as_u16(), kind, String::from_utf8(body.to_vec()).unwrap())
            };
            tokio::join!(exchange, connection).0
        })
    }
}

#[test]
fn liveness_does_not_depend_on_the_app() {
    let fixture = start_admin();
    for state in State::ALL {
        fixture.health.set(state);
        let (status, _, body) = fixture.get("/healthz");
        assert_eq!((status, body.as_str()), (200, "ok\n"));
    }
}

#[test]
fn readiness_follows_the_lifecycle() {
    let fixture = start_admin();
    let words = [
        (State::Starting, 503, "starting\n"),
        (State::Ready, 200, "ready\n"),
        (State::Draining, 503, "draining\n"),
        (State::AppDown, 503, "app_down\n"),
    ];
    for (state, status, word) in words {
        fixture.health.set(state);
        let answer = fixture.get("/readyz");
        assert_eq!((answer.0, answer.2.as_str()), (status, word));
    }
}

#[test]
fn healthcheck_says_in_one_line_what_is_wrong() {
    let fixture = start_admin();
    let addr = fixture.admin.addr().to_owned();
    assert_eq!(healthcheck(&fixture.listen, PATIENCE), Err(format!("{addr}: starting (503)")));
    fixture.health.set(State::Ready);
    assert_eq!(healthcheck(&fixture.listen, PATIENCE), Ok(()));
    let nobody = Listen::Unix(fixture.dir.path().join("other.sock"));
    let said = healthcheck(&nobody, PATIENCE).unwrap_err();
    assert!(said.starts_with("unix:") && said.contains("No such file"), "{said}");
    assert!(!said.contains('\n'));
}

#[test]
fn healthcheck_asks_a_tcp_listener_of_every_address_at_the_local_one() {
    let (server, config) = server();
    let health = Arc::new(Health::default());
    health.set(State::Ready);
    let any = Listen::Tcp(([0, 0, 0, 0], 0).into());
    let admin = start(&any, server, config, health).unwrap();
    assert_eq!(healthcheck(&Listen::Tcp(admin.addr().parse().unwrap()), PATIENCE), Ok(()));
}

#[test]
fn every_metric_has_help_and_type_and_every_reason_a_sample() {
    let fixture = start_admin();
    METRICS.ends[Reason::QueueFull as usize].add(1);
    let (status, kind, text) = fixture.get("/metrics");
    assert_eq!((status, kind.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
    let mut typed = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(!typed.contains(&name), "{name} twice");
            typed.push(name);
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            assert_eq!(Some(&series.split('{').next().unwrap()), typed.last(), "{line}");
        }
    }
    for reason in Reason::ALL {
        let series = format!("bufproxy_requests_total{{reason=\"{}\"}} ", reason.name());
        assert_eq!(text.matches(&series).count(), 1, "{series}");
    }
    assert!(!text.contains("reason=\"queue_full\"} 0\n"));
    assert!(text.contains("bufproxy_responses_total{class=\"5xx\"} "));
}

#[test]
fn status_is_json_with_counts_upstreams_and_budgets() {
    let fixture = start_admin();
    let (_, kind, text) = fixture.get("/status");
    assert_eq!(kind, "application/json");
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["state"], "starting");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["in_flight"], 0);
    assert_eq!(status["drain"]["cut"], 0);
    assert_eq!(status["upstreams"][0]["address"], "unix:/tmp/app.sock");
    assert_eq!(status["spooled"]["memory"], 0);
    assert!(status["spooled"]["memory_max"].as_u64() > Some(0));
}

#[test]
fn a_drain_is_asked_for_by_post_and_not_by_a_page() {
    let fixture = start_admin();
    let asked = || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = fixture.health.drain_asked() => true,
                () = std::future::ready(()) => false,
            }
        })
    };
    assert_eq!(fixture.get("/drain").0, 405);
    let from_a_page =
        b"POST /drain HTTP/1.1\r\nHost: x\r\nOrigin: null\r\nContent-Length: 0\r\n\r\n";
    let Listen::Unix(socket) = &fixture.listen else { unreachable!() };
    let mut page = UnixStream::connect(socket).unwrap();
    page.write_all(from_a_page).unwrap();
    let mut answer = [0; 12];
    page.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
    assert!(!asked());

    assert_eq!(drain(&fixture.listen, false, PATIENCE), Ok(()));
    assert!(asked());
}

#[test]
fn a_drain_that_takes_too_long_says_what_is_under_way() {
    let fixture = start_admin();
    let said = drain(&fixture.listen, true, Duration::from_millis(200)).unwrap_err();
    let counts = "0 receiving, 0 queued, 0 in flight, 0 delivering";
    assert_eq!(said, format!("{}: not drained within 0.2 s: {counts}", fixture.admin.addr()));
    let nobody = Listen::Unix(fixture.dir.path().join("other.sock"));
    let said = drain(&nobody, true, PATIENCE).unwrap_err();
    assert!(said.contains("No such file"), "{said}");
}

#[test]
fn other_paths_name_those_that_are_there() {
    let (status, _, body) = start_admin().get("/");
    assert_eq!(
        (status, body.as_str()),
        (404, "/healthz, /readyz, /metrics, /status, POST /drain\n")
    );
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
    let fixture = start_admin();
    let Listen::Unix(live) = &fixture.listen else { unreachable!() };
    assert_eq!(bind_unix(live).unwrap_err().kind(), io::ErrorKind::AddrInUse);

    let dead = fixture.dir.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    bind_unix(&dead).unwrap();

    let file = fixture.dir.path().join("notes.txt");
    std::fs::write(&file, "mine").unwrap();
    bind_unix(&file).unwrap_err();
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
}

#[test]
fn the_socket_is_removed_at_the_end() {
    let Fixture { admin, listen, dir: _dir, .. } = start_admin();
    let Listen::Unix(socket) = listen else { unreachable!() };
    assert!(socket.exists());
    drop(admin);
    assert!(!socket.exists());
}
