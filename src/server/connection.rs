//! The loop of one client: idle without a buffer, one exchange after the other, the end.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::{Counted, Dormant, Gauge, Loop, parked};
use crate::config::Peer;
use crate::error::Reason;
use crate::exchange::{self, Next};
use crate::metrics::METRICS;
use crate::net::{Stream, unmapped};
use crate::scratch::{self, Filled, Scratch};
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
    counted: Counted,
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
        !self.stream.is_quiet()
    }
}

/// However the task of a connection ends, what it has sent must not look complete if it is not.
struct CutUnfinished<'a>(&'a Conn);

impl Drop for CutUnfinished<'_> {
    fn drop(&mut self) {
        if self.0.unfinished.get() {
            self.0.stream.reset();
        }
    }
}

/// Serves a connection as a task of this loop. It is idle since then.
pub(super) fn spawn(lp: &Rc<Loop>, connection: Dormant, since: Instant) {
    let Dormant { socket, peer, id, requests, counted } = connection;
    let local = match peer {
        Peer::Ip(_) => socket.local_addr().ok().and_then(|a| a.as_socket()).map(unmapped),
        Peer::Unix => None,
    };
    let stream = match Stream::new(socket) {
        Ok(stream) => stream,
        Err(e) => return lp.shared.say_not_watched(&e),
    };
    let conn = Conn {
        stream,
        timer: Timer::new(&lp.timers),
        peer,
        local,
        id,
        requests: Cell::new(requests),
        unfinished: Cell::new(false),
        refused: counted.too_many.then_some(Reason::TooManyConnections),
        lp: lp.clone(),
        counted,
    };
    tokio::task::spawn_local(run(conn, since));
}

async fn run(conn: Conn, since: Instant) {
    let idle_since = {
        let _cut = CutUnfinished(&conn);
        let mut serving = pin!(serve(&conn, since));
        // One place where the task's waker is left for the timer, and where an abort ends it.
        poll_fn(|cx| {
            conn.timer.register(cx.waker());
            if conn.lp.shared.aborted() { Poll::Ready(None) } else { serving.as_mut().poll(cx) }
        })
        .await
    };
    if let Some(since) = idle_since {
        let Conn { stream, peer, id, requests, lp, counted, .. } = conn;
        let socket = stream.into_socket();
        let requests = requests.get();
        parked::park(&lp, Dormant { socket, peer, id, requests, counted }, since);
    }
}

/// Some: the client is idle since then, and needs no task for it.
async fn serve(c: &Conn, mut since: Instant) -> Option<Instant> {
    let mut pipelined = None;
    loop {
        let (mut x, first) = match pipelined.take() {
            Some(x) => (x, None),
            None => match idle(c, since).await {
                Woken::Bytes(first) => (exchange::take(&c.lp), Some(first)),
                Woken::Park => return Some(since),
                Woken::End => return None,
            },
        };
        // Not boxed: whoever is idle for long is no task, and the others would allocate each time.
        let next = exchange::serve(c, &mut x, first).await;
        if next != Next::Idle {
            c.requests.set(c.requests.get().saturating_add(1));
            since = c.timer.now();
        }
        let more = !x.input.is_empty();
        match next {
            Next::KeepAlive if more => pipelined = Some(x),
            Next::KeepAlive | Next::Idle => exchange::give_back(x),
            Next::Close if !more && !c.has_input() => {
                exchange::give_back(x);
                return None;
            }
            Next::Close | Next::Linger => {
                x.input.clear();
                exchange::give_back(x);
                // The drain waits: the end of the process would take the answer with it.
                let _delivering = Gauge::delivering(&c.lp);
                linger(c).await;
                return None;
            }
            Next::Reset => {
                c.stream.reset();
                return None;
            }
        }
    }
}

/// How an idle time ends.
enum Woken {
    Bytes(Filled),
    Park,
    End,
}

/// Waits for the first bytes of a request, holding no buffer meanwhile.
async fn idle(c: &Conn, since: Instant) -> Woken {
    let settings = c.lp.settings();
    let config = &settings.config;
    let max_connections = config.max_connections;
    // Who will be refused anyway has no right to be slow.
    let longest = if c.refused.is_some() { config.header_timeout } else { config.client_keepalive };
    drop(settings);
    let (end, park) = (since + longest, since + parked::AFTER);
    let parks = c.refused.is_none() && park < end;
    c.timer.set_at(if parks { park } else { end });
    let woken = poll_fn(|cx| {
        let mut buf = Scratch::take();
        let read = match c.stream.poll_read(cx, &mut buf[..scratch::HEAD]) {
            Poll::Ready(read) => read,
            Poll::Pending => {
                let closing = c.lp.shared.closing_idle();
                // A kept-alive client that somebody needs the place of is parked at once, because
                // the parked ones make room.
                let crowded =
                    parks && c.requests.get() > 0 && c.lp.shared.is_crowded(max_connections);
                if !(closing || crowded || c.timer.expired()) {
                    return Poll::Pending;
                }
                // What has just come, the runtime may not know of yet.
                match c.stream.try_read(&mut buf[..scratch::HEAD]) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        let park = parks && !closing && Instant::now() < end;
                        return Poll::Ready(if park { Ok(Woken::Park) } else { Err(()) });
                    }
                    read => read,
                }
            }
        };
        Poll::Ready(Ok(match read {
            Ok(n) if n > 0 => Woken::Bytes(Filled::new(buf, 0, n)),
            Ok(_) | Err(_) => Woken::End,
        }))
    })
    .await;
    match woken {
        Ok(woken) => woken,
        Err(()) => {
            // A request that crosses our FIN is lost; it is counted.
            if linger(c).await > 0 && c.requests.get() > 0 {
                METRICS.crossed_close.add(1);
            }
            Woken::End
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
