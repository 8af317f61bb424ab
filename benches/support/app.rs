//! The app of the CPU and memory cases: a thread of the bench that answers fixed bytes on a Unix
//! socket, so that the proxy is what costs. `GET /N` is answered with N bytes, `GET /N?M` after M
//! milliseconds; a POST's body is read and thrown away first.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as Socket;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::task::{LocalSet, spawn_local};

#[derive(Debug)]
pub(crate) struct App {
    pub(crate) socket: PathBuf,
    pub(crate) upstream: Upstream,
    open: Arc<AtomicUsize>,
}

/// What the app does after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upstream {
    /// Closes, as gunicorn's sync worker does.
    ConnectionPerRequest,
    KeepAlive,
}

impl Upstream {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Upstream::ConnectionPerRequest => "connection per request",
            Upstream::KeepAlive => "keep-alive",
        }
    }
}

impl App {
    /// Serves on a new socket below `dir` for as long as the bench runs.
    pub(crate) fn start(dir: &Path, upstream: Upstream) -> io::Result<App> {
        let dir = tempfile::Builder::new().prefix("app").tempdir_in(dir)?.keep();
        let socket = dir.join("app.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        let open = Arc::new(AtomicUsize::new(0));
        let count = open.clone();
        thread::Builder::new().name("app".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let serve = async { accept(UnixListener::from_std(listener)?, upstream, count).await };
            LocalSet::new().block_on(&runtime, serve)
        })?;
        Ok(App { socket, upstream, open })
    }

    /// Connections open now. Of a sync app each is a worker that is held.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: UnixListener,
    upstream: Upstream,
    open: Arc<AtomicUsize>,
) -> io::Result<()> {
    let answers = Rc::new(Answers { upstream, made: RefCell::default() });
    loop {
        let (stream, _) = listener.accept().await?;
        open.fetch_add(1, Ordering::Relaxed);
        let (answers, open) = (answers.clone(), open.clone());
        spawn_local(async move {
            // A proxy that leaves early is the proxy's business.
            let _ = async { serve(stream.into_std()?, &answers).await }.await;
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn serve(stream: Socket, answers: &Answers) -> io::Result<()> {
    let stream = watch(stream, Interest::READABLE)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut filled = 0;
        let (answer, pause, mut missing) = loop {
            let read = read_some(&stream, &mut buffer[filled..]).await?;
            if read == 0 {
                return Ok(());
            }
            filled += read;
            if let Some((head, size, pause, body)) = parse(&buffer[..filled])? {
                break (answers.of(size), pause, (head + body).saturating_sub(filled));
            }
        };
        while missing > 0 {
            let read = read_some(&stream, &mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            missing = missing.saturating_sub(read);
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        write_all(&stream, &answer).await?;
        if answers.upstream == Upstream::ConnectionPerRequest {
            return Ok(());
        }
    }
}

#[expect(deprecated, reason = "what replaces it is unsafe; a socket of std owns its descriptor")]
fn watch(socket: Socket, interest: Interest) -> io::Result<AsyncFd<Socket>> {
    AsyncFd::with_interest(socket, interest)
}

async fn read_some(stream: &AsyncFd<Socket>, buffer: &mut [u8]) -> io::Result<usize> {
    stream.async_io(Interest::READABLE, |mut stream| stream.read(buffer)).await
}

/// Watches for room only where there is none, as the loops of gunicorn, uvicorn and node do: who
/// watches for it always is woken each time that the proxy reads, which costs the proxy.
async fn write_all(stream: &AsyncFd<Socket>, mut rest: &[u8]) -> io::Result<()> {
    let mut full = None;
    while !rest.is_empty() {
        match stream.get_ref().write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let full = match &full {
                    Some(full) => full,
                    None => full.insert(watch(stream.get_ref().try_clone()?, Interest::WRITABLE)?),
                };
                full.writable().await?.clear_ready();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Length of the head, bytes asked for, the pause before them, bytes of the request's body; None: the
/// head is not whole.
fn parse(bytes: &[u8]) -> io::Result<Option<(usize, usize, Duration, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes).map_err(io::Error::other)? {
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete(head) => {
            let path = request.path.and_then(|path| path.get(1..)).unwrap_or_default();
            let mut numbers = path.split('?');
            let mut number = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
            let (size, pause) = (number(), Duration::from_millis(number() as u64));
            Ok(Some((head, size, pause, super::load::content_length(request.headers))))
        }
    }
}

/// Answers that are kept. Where every client asks for another size they would be gigabytes.
const KEPT: usize = 64;

/// Whole responses, made at their first use.
struct Answers {
    upstream: Upstream,
    made: RefCell<HashMap<usize, Bytes>>,
}

impl Answers {
    fn of(&self, size: usize) -> Bytes {
        let mut made = self.made.borrow_mut();
        if let Some(answer) = made.get(&size) {
            return answer.clone();
        }
        let answer = self.make(size);
        if made.len() < KEPT {
            made.insert(size, answer.clone());
        }
        answer
    }

    /// The head is what Django under gunicorn sends.
    fn make(&self, size: usize) -> Bytes {
        let connection = match self.upstream {
            Upstream::ConnectionPerRequest => "close",
            Upstream::KeepAlive => "keep-alive",
        };
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: Mon, 23 Nov 2026 09:00:00 GMT\r\n\
             Connection: {connection}\r\nContent-Type: text/html; charset=utf-8\r\n\
             X-Frame-Options: DENY\r\nContent-Length: {size}\r\nVary: Cookie\r\n\
             X-Content-Type-Options: nosniff\r\nReferrer-Policy: same-origin\r\n\r\n"
        )
        .into_bytes();
        answer.resize(answer.len() + size, b'x');
        answer.into()
    }
}
