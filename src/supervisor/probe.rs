//! Has the app answered? Asked by the lifecycle at boot, while the port is closed. A listening
//! socket proves nothing (gunicorn listens before it has workers): only an HTTP answer counts.
//! (gunicorn's READY=1 of sd_notify proves no more: it is sent at the same moment.)
//!
//! One request at a time, and never given up while it is pending: the app would execute each.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::{Config, UpstreamAddr};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a socket that is passed is not used.
const NOT_TAKEN: &str = "gunicorn does not take it with reuse_port, nor behind a launcher that starts \
                         it as its child (uv run): name a socket for both (--upstream and --bind)";

/// Waits for the app, at most `boot-timeout`: for `ready-file` where that is set, else for an answer
/// of every upstream. Ok says what was seen (`app answered HEAD / after 6.2 s (200)`), Err what is
/// missing. `ours` are the addresses that we have bound and do not listen on yet: if somebody does,
/// it is the app, and waiting is in vain.
pub async fn wait_until_ready(config: &Config, ours: &[String]) -> Result<String, String> {
    let began = tokio::time::Instant::now();
    let mut missing = Missing::default();
    let ready = async {
        tokio::select! {
            ready = ready(config, &mut missing) => Ok(ready),
            taken = port_taken(ours) => Err(taken),
        }
    };
    match tokio::time::timeout(config.boot_timeout, ready).await {
        Ok(Err(taken)) if config.pass_socket => Err(format!(
            "the app listens on {taken} itself, where bufproxy is to listen: it has not taken the \
             socket that was passed to it. {NOT_TAKEN}"
        )),
        Ok(Err(taken)) => Err(format!(
            "the app listens on {taken} itself, where bufproxy is to listen: bind the app to the \
             upstream (gunicorn --bind {}; without --bind it takes $PORT)",
            config.upstream[0]
        )),
        Ok(Ok(what)) => Ok(match what {
            Ready::File => {
                format!("ready-file appeared after {:.1} s", began.elapsed().as_secs_f64())
            }
            Ready::Answer(status) => format!(
                "app answered HEAD {} after {:.1} s ({})",
                config.ready_path,
                began.elapsed().as_secs_f64(),
                status.as_u16()
            ),
        }),
        Err(_) => Err(missing.sentence(config)),
    }
}

enum Ready {
    File,
    Answer(StatusCode),
}

/// The last thing that was seen, and of whom.
#[derive(Default)]
struct Missing {
    upstream: Option<UpstreamAddr>,
    seen: Seen,
}

#[derive(Default)]
enum Seen {
    #[default]
    Nothing,
    ConnectFailed(io::Error),
    /// Connected, the request sent, no answer yet.
    Pending,
    /// The connection ended without an answer, or with something that is not HTTP.
    NoAnswer,
    Refused(StatusCode),
}

async fn ready(config: &Config, missing: &mut Missing) -> Ready {
    if let Some(file) = &config.ready_file {
        while !file.exists() {
            tokio::time::sleep(PAUSE).await;
        }
        return Ready::File;
    }
    let mut last = StatusCode::OK;
    for upstream in &config.upstream {
        missing.upstream = Some(upstream.clone());
        last = loop {
            match ask(config, upstream, &mut missing.seen).await {
                Ok(status) if counts(config, status) => break status,
                Ok(status) => missing.seen = Seen::Refused(status),
                Err(seen) => missing.seen = seen,
            }
            tokio::time::sleep(PAUSE).await;
        };
    }
    Ready::Answer(last)
}

/// Waits until somebody else listens on one of `ours`. (To be able to start again at once we bind
/// with SO_REUSEADDR, which lets a second socket bind until one of the two listens.)
async fn port_taken(ours: &[String]) -> SocketAddr {
    let tcp: Vec<SocketAddr> = ours.iter().filter_map(|addr| addr.parse().ok()).collect();
    loop {
        for addr in &tcp {
            // The app may have bound 0.0.0.0 where we have [::].
            for ip in [addr.ip(), Ipv4Addr::LOCALHOST.into()] {
                let near = ip == addr.ip() || addr.ip().is_unspecified();
                if near && TcpStream::connect((ip, addr.port())).await.is_ok() {
                    return *addr;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Any final answer proves that a worker runs the app; a path that was chosen can say more.
fn counts(config: &Config, status: StatusCode) -> bool {
    !config.ready_path_set || status.is_success() || status.is_redirection()
}

/// One try.
async fn ask(
    config: &Config,
    upstream: &UpstreamAddr,
    seen: &mut Seen,
) -> Result<StatusCode, Seen> {
    let request = Request::builder()
        .method(Method::HEAD)
        .version(Version::HTTP_11)
        .uri(&config.ready_path)
        .header("host", &config.ready_host)
        .header("user-agent", "bufproxy-ready")
        // Else an app that redirects to https would answer only that.
        .header("x-forwarded-proto", "https")
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| Seen::NoAnswer)?;
    match upstream {
        UpstreamAddr::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(Seen::ConnectFailed)?;
            *seen = Seen::Pending;
            head(stream, request).await
        }
        UpstreamAddr::Tcp(host, port) => {
            let stream =
                TcpStream::connect((host.as_str(), *port)).await.map_err(Seen::ConnectFailed)?;
            *seen = Seen::Pending;
            head(stream, request).await
        }
    }
    .map_err(|_| Seen::NoAnswer)
}

/// Sends `request` and gives the status of the final answer. Closes at once: a lingering connection
/// holds a sync worker.
async fn head(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<StatusCode> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut answer = pin!(sender.send_request(request));
    // The connection moves the bytes, in this same task.
    let response = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The answer may have come with the end.
        _ = connection => answer.await,
    };
    Ok(response?.status())
}

impl Missing {
    fn sentence(&self, config: &Config) -> String {
        let timeout = format!("within boot-timeout {}s", config.boot_timeout.as_secs_f64());
        if let Some(file) = &config.ready_file {
            return format!("ready-file {} did not appear {timeout}", file.display());
        }
        let path = &config.ready_path;
        let Some(upstream) = &self.upstream else {
            return format!("no upstream was asked {timeout}");
        };
        let socket = match upstream {
            UpstreamAddr::Unix(path) => Some(path.display()),
            UpstreamAddr::Tcp(..) => None,
        };
        let what = match (&self.seen, socket) {
            (Seen::ConnectFailed(e), Some(socket)) if e.kind() == ErrorKind::NotFound => format!(
                "the socket does not exist. Does the app bind it? (gunicorn --bind unix:{socket})"
            ),
            (Seen::ConnectFailed(e), Some(_)) if e.kind() == ErrorKind::ConnectionRefused => {
                "the socket exists, but nobody listens on it".into()
            }
            (Seen::ConnectFailed(e), Some(_)) if e.kind() == ErrorKind::PermissionDenied => {
                "this user may not connect to the socket (permission denied)".into()
            }
            (Seen::ConnectFailed(e), None) if e.kind() == ErrorKind::ConnectionRefused => {
                "nobody listens there".into()
            }
            (Seen::ConnectFailed(e), _) => format!("cannot connect: {e}"),
            (Seen::Nothing, _) => "it was not reached".into(),
            (Seen::Pending, _) if config.pass_socket => format!(
                "the socket was passed to the app, but HEAD {path} is not answered. If the app has \
                 started: {NOT_TAKEN}"
            ),
            (Seen::Pending, _) => {
                format!("it accepts connections, but HEAD {path} is not answered")
            }
            (Seen::NoAnswer, _) => format!("it closed the connection of HEAD {path} unanswered"),
            (Seen::Refused(status), _) => {
                let status = status.as_u16();
                return format!(
                    "upstream {upstream} was not ready {timeout}: HEAD {path} is answered with \
                     {status}, and ready-path wants 2xx or 3xx"
                );
            }
        };
        format!("upstream {upstream} did not answer {timeout}: {what}")
    }
}

#[cfg(test)]
mod tests;
