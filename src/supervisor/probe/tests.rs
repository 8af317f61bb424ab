use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

/// Long enough for an answer of this machine, short enough to wait for in a test.
const SHORT: Duration = Duration::from_millis(300);

fn config(socket: &Path) -> Config {
    Config {
        upstream: vec![UpstreamAddr::Unix(socket.into())],
        boot_timeout: Duration::from_secs(20),
        ..Config::for_tests()
    }
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Runs a test; one that hangs fails.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(Duration::from_secs(10), test).await };
    runtime.block_on(test).expect("it ends")
}

/// Answers each connection with the next of `answers`; gives the requests. The end of the list
/// closes the socket.
async fn app(listener: UnixListener, answers: &[&str]) -> Vec<String> {
    let mut requests = Vec::new();
    for answer in answers {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let n = stream.read(&mut head).await.unwrap();
        requests.push(String::from_utf8(head[..n].to_vec()).unwrap());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    requests
}

#[test]
fn it_asks_until_the_app_answers() {
    run(async {
        let dir = dir();
        let socket = dir.path().join("app.sock");
        let config = config(&socket);
        let boot = async {
            // Polled after the first try, which has failed.
            let listener = UnixListener::bind(&socket).unwrap();
            app(listener, &["", "not HTTP\r\n\r\n", "HTTP/1.1 500 Oops\r\n\r\n"]).await
        };
        let (ready, requests) = tokio::join!(wait_until_ready(&config, &[]), boot);
        let how = ready.unwrap();
        assert!(
            how.starts_with("app answered HEAD / after 0.") && how.ends_with(" s (500)"),
            "{how}"
        );
        assert_eq!(requests.len(), 3);
        assert_eq!(
            requests[2],
            "HEAD / HTTP/1.1\r\nhost: localhost\r\nuser-agent: bufproxy-ready\r\n\
             x-forwarded-proto: https\r\nconnection: close\r\n\r\n"
        );
    });
}

#[test]
fn a_passed_socket_that_is_not_taken_is_named() {
    run(async {
        let dir = dir();
        let socket = dir.path().join("app.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let config = Config { pass_socket: true, boot_timeout: SHORT, ..config(&socket) };
        let missing = wait_until_ready(&config, &[]).await.unwrap_err();
        assert!(
            missing.contains("passed to the app") && missing.contains("reuse_port"),
            "{missing}"
        );
    });
}

#[test]
fn a_path_that_was_set_wants_success() {
    run(async {
        let dir = dir();
        let socket = dir.path().join("app.sock");
        let config = Config {
            ready_path: "/health?deep=1".into(),
            ready_path_set: true,
            ready_host: "shop.example".into(),
            ..config(&socket)
        };
        let listener = UnixListener::bind(&socket).unwrap();
        let answers = ["HTTP/1.1 503 Not yet\r\n\r\n", "HTTP/1.1 302 Found\r\n\r\n"];
        let (ready, requests) =
            tokio::join!(wait_until_ready(&config, &[]), app(listener, &answers));
        assert!(ready.unwrap().ends_with("(302)"));
        let head = "HEAD /health?deep=1 HTTP/1.1\r\nhost: shop.example\r\n";
        assert!(requests[0].starts_with(head), "{}", requests[0]);
    });
}

#[test]
fn a_pending_probe_is_not_given_up_for_another() {
    run(async {
        let dir = dir();
        let socket = dir.path().join("app.sock");
        let config = Config { boot_timeout: SHORT, ..config(&socket) };
        let listener = UnixListener::bind(&socket).unwrap();
        let silent = async {
            let mut held = Vec::new();
            loop {
                held.push(listener.accept().await.unwrap());
                assert_eq!(held.len(), 1, "a second probe while the first is pending");
            }
        };
        let missing = tokio::select! {
            ready = wait_until_ready(&config, &[]) => ready.unwrap_err(),
            () = silent => unreachable!(),
        };
        let end = "within boot-timeout 0.3s: it accepts connections, but HEAD / is not answered";
        assert!(missing.ends_with(end), "{missing}");
    });
}

#[test]
fn what_is_missing_is_named() {
    run(async {
        let dir = dir();
        let socket = dir.path().join("app.sock");
        let path = socket.display();
        let config = Config { boot_timeout: SHORT, ..config(&socket) };
        let missing = async |config: &Config| wait_until_ready(config, &[]).await.unwrap_err();

        assert_eq!(
            missing(&config).await,
            format!(
                "upstream unix:{path} did not answer within boot-timeout 0.3s: the socket does not \
                 exist. Does the app bind it? (gunicorn --bind unix:{path})"
            )
        );

        drop(UnixListener::bind(&socket).unwrap());
        assert_eq!(
            missing(&config).await,
            format!(
                "upstream unix:{path} did not answer within boot-timeout 0.3s: the socket exists, \
                 but nobody listens on it"
            )
        );

        std::fs::remove_file(&socket).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let said = tokio::select! {
            said = missing(&config) => said,
            _ = app(listener, &[""; 100]) => unreachable!("more answers than probes"),
        };
        assert_eq!(
            said,
            format!(
                "upstream unix:{path} did not answer within boot-timeout 0.3s: it closed the \
                 connection of HEAD / unanswered"
            )
        );

        std::fs::remove_file(&socket).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let config = Config { ready_path_set: true, ready_path: "/up".into(), ..config };
        let said = tokio::select! {
            said = missing(&config) => said,
            _ = app(listener, &["HTTP/1.1 404 No\r\n\r\n"; 100]) => unreachable!("more answers than probes"),
        };
        assert_eq!(
            said,
            format!(
                "upstream unix:{path} was not ready within boot-timeout 0.3s: HEAD /up is answered \
                 with 404, and ready-path wants 2xx or 3xx"
            )
        );
    });
}

#[test]
fn a_tcp_port_without_listener_is_named() {
    run(async {
        // Bound and not listening: nobody else gets the port meanwhile.
        let free =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        free.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let port = free.local_addr().unwrap().as_socket().unwrap().port();
        let config = Config {
            upstream: vec![UpstreamAddr::Tcp("127.0.0.1".into(), port)],
            boot_timeout: SHORT,
            ..Config::for_tests()
        };
        assert_eq!(
            wait_until_ready(&config, &[]).await.unwrap_err(),
            format!(
                "upstream 127.0.0.1:{port} did not answer within boot-timeout 0.3s: nobody listens \
                 there"
            )
        );
    });
}

#[test]
fn a_ready_file_stands_for_an_answer() {
    run(async {
        let dir = dir();
        let file = dir.path().join("app-initialized");
        let config = Config {
            ready_file: Some(file.clone()),
            boot_timeout: SHORT,
            ..config(Path::new("/nonexistent"))
        };
        assert_eq!(
            wait_until_ready(&config, &[]).await.unwrap_err(),
            format!("ready-file {} did not appear within boot-timeout 0.3s", file.display())
        );
        std::fs::write(&file, "").unwrap();
        let how = wait_until_ready(&config, &[]).await.unwrap();
        assert_eq!(how, "ready-file appeared after 0.0 s");
    });
}

#[test]
fn an_app_that_takes_our_port_is_named_at_once() {
    run(async {
        let dir = dir();
        let config = config(&dir.path().join("app.sock"));
        let app = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
        let ours = format!("[::]:{}", app.local_addr().unwrap().port());
        assert_eq!(
            wait_until_ready(&config, std::slice::from_ref(&ours)).await.unwrap_err(),
            format!(
                "the app listens on {ours} itself, where bufproxy is to listen: bind the app to \
                 the upstream (gunicorn --bind {}; without --bind it takes $PORT)",
                config.upstream[0]
            )
        );
    });
}
