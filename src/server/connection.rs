//! The loop of one client: idle without a buffer, one exchange after the other, the end.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::IoSlice;
use std::net::{Shutdown, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use super::{Accepted, Counted, Loop};
use crate::config::Peer;
use crate::error::Reason;
use crate::exchange::{self, Next};
use crate::metrics::METRICS;
use crate::net::{Stream, unmapped};
use crate::scratch::{Filled, Scratch};
use crate::timer::Timer;

/// Bytes that a lingering close reads and throws away (nginx has no bound but time).
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// One client connection.
pub(crate) struct Conn {
    pub(crate) stream: Stream,
    pub(crate) timer: Timer,
    pub(crate) peer: Peer,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) id: u64,
    /// Requests served on this connection so far.
    pub(crate) requests: Cell<u32>,
    /// What was sent last is a part of a response: the end of this connection must not look like
    /// its end (invariant 6).
    pub(crate) unfinished: Cell<bool>,
    /// Every request of this connection is refused: there are too many.
    pub(crate) refused: Option<Reason>,
    lp: Rc<Loop>,
    _counted: Counted,
}

impl Conn {
    /// The process is stopping: this connection ends with the response that it is at.
    pub(crate) fn closing(&self) -> bool {
        self.lp.shared.closing() || self.refused.is_some()
    }

    /// Writes a short message, inside `send-timeout`. Err is why it could not be written.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Reason> {
        self.timer.set(self.lp.settings().config.send_timeout);
        while !bytes.is_empty() {
            let n = poll_fn(|cx| match self.stream.poll_write(cx, &[IoSlice::new(bytes)]) {
                Poll::Ready(Ok(n)) => Poll::Ready(Ok(n)),
                Poll::Ready(Err(_)) => Poll::Ready(Err(Reason::ClientGone)),
                Poll::Pending if self.timer.expired() => Poll::Ready(Err(Reason::SendTimeout)),
                Poll::Pending => Poll::Pending,
            })
            .await?;
            bytes = &bytes[n..];
        }
        self.timer.clear();
        Ok(())
    }

    /// The client has sent something that was not read: a close would be a reset.
    fn has_input(&self) -> bool {
        self.stream.poll_readable(&mut Context::from_waker(Waker::noop())).is_ready()
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if self.unfinished.get() {
            self.stream.reset();
        }
    }
}

/// Serves a connection as a task of this loop.
pub(crate) fn spawn(lp: &Rc<Loop>, accepted: Accepted) {
    let Accepted { socket, peer, counted } = accepted;
    let local = match peer {
        Peer::Ip(_) => socket.local_addr().ok().and_then(|a| a.as_socket()).map(unmapped),
        Peer::Unix => None,
    };
    let stream = match Stream::new(socket) {
        Ok(stream) => stream,
        Err(e) => return tracing::warn!("cannot watch a connection: {e}"),
    };
    let full = counted.before >= lp.settings().config.max_connections;
    let conn = Conn {
        stream,
        timer: Timer::new(&lp.timers),
        peer,
        local,
        id: lp.shared.next_connection.fetch_add(1, Relaxed),
        requests: Cell::new(0),
        unfinished: Cell::new(false),
        refused: full.then_some(Reason::TooManyConnections),
        lp: lp.clone(),
        _counted: counted,
    };
    tokio::task::spawn_local(run(conn));
}

async fn run(conn: Conn) {
    let mut serving = pin!(serve(&conn));
    // One place where the task's waker is left for the timer, and where an abort ends it.
    poll_fn(|cx| {
        conn.timer.register(cx.waker());
        if conn.lp.shared.aborted() { Poll::Ready(()) } else { serving.as_mut().poll(cx) }
    })
    .await;
}

async fn serve(c: &Conn) {
    let mut pipelined = None;
    loop {
        let (mut x, first) = match pipelined.take() {
            Some(x) => (x, None),
            None => match idle(c).await {
                Some(first) => (exchange::take(&c.lp), Some(first)),
                None => return,
            },
        };
        // Boxed, so that an idle connection does not carry the size of a busy one.
        let next = Box::pin(exchange::serve(c, &mut x, first)).await;
        c.requests.set(c.requests.get() + 1);
        let more = !x.input.is_empty();
        match next {
            Next::KeepAlive if more => pipelined = Some(x),
            Next::KeepAlive => exchange::give_back(x),
            Next::Close if !more && !c.has_input() => return exchange::give_back(x),
            Next::Close | Next::Linger => {
                x.input.clear();
                exchange::give_back(x);
                linger(c).await;
                return;
            }
            Next::Reset => return c.stream.reset(),
        }
    }
}

/// Waits for the first bytes of a request, holding no buffer meanwhile. None: the end.
async fn idle(c: &Conn) -> Option<Filled> {
    c.timer.set(c.lp.settings().config.client_keepalive);
    let first = poll_fn(|cx| {
        let mut buf = Scratch::take();
        match c.stream.poll_read(cx, &mut buf) {
            Poll::Ready(Ok(n)) if n > 0 => Poll::Ready(Ok(Filled::new(buf, 0, n))),
            Poll::Ready(_) => Poll::Ready(Err(false)),
            Poll::Pending if c.lp.shared.closing_idle() => Poll::Ready(Err(true)),
            Poll::Pending if c.timer.expired() => Poll::Ready(Err(true)),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    match first {
        Ok(first) => Some(first),
        Err(ours) => {
            // A request that crosses our FIN is lost; it is counted.
            if ours && c.requests.get() > 0 && linger(c).await > 0 {
                METRICS.crossed_close.add(1);
            }
            None
        }
    }
}

/// Closes so that a client that is still sending reads what it was sent: a close with unread bytes
/// would reset the connection and take the answer with it. Bounded in time and bytes. Gives the
/// bytes that still came.
async fn linger(c: &Conn) -> usize {
    c.stream.shutdown(Shutdown::Write);
    c.timer.set(c.lp.settings().config.linger_timeout);
    let mut read = 0;
    poll_fn(|cx| {
        let mut buf = Scratch::take();
        loop {
            match c.stream.poll_read(cx, &mut buf) {
                Poll::Ready(Ok(n)) if n > 0 && read < LINGER_BYTES => read += n,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if c.timer.expired() => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    read
}
