//! The loop of one client: idle without a buffer, one exchange after the other, the end.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use super::{Counted, Dormant, Gauge, Loop, parked};
use crate::config::Peer;
use crate::error::Reason;
use crate::exchange::{self, Exchange, Next, Served, Slow, Start};
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
    tokio::task::spawn_local(run(conn, Begin::Idle(since)));
}

/// Where a task takes a connection up.
enum Begin {
    /// Idle since then.
    Idle(Instant),
    /// Behind a response that a smaller task has delivered, or not.
    Delivered(Box<Exchange>, Result<Next, Reason>),
}

/// Where it leaves it.
enum Left {
    /// The client is idle since then, and needs no task for it.
    Idle(Instant),
    /// All that is left of the response is for its client to take.
    Slow(Box<Exchange>, Slow),
    End,
}

#[expect(clippy::manual_async_fn, reason = "an async fn would have room for `conn` twice")]
fn run(conn: Conn, begin: Begin) -> impl Future<Output = ()> {
    async move {
        let cut = CutUnfinished(&conn);
        let left = watched(&conn, pin!(serve(&conn, begin))).await;
        match left {
            Some(Left::Idle(since)) => {
                drop(cut);
                let Conn { stream, peer, id, requests, lp, counted, .. } = conn;
                let socket = stream.into_socket();
                let requests = requests.get();
                parked::park(&lp, Dormant { socket, peer, id, requests, counted }, since);
            }
            Some(Left::Slow(x, slow)) => {
                std::mem::forget(cut);
                tokio::task::spawn_local(deliver(conn, x, slow));
            }
            Some(Left::End) | None => {}
        }
    }
}

/// The end of a response, for a client that takes it slowly.
#[expect(clippy::manual_async_fn, reason = "as above")]
fn deliver(conn: Conn, mut x: Box<Exchange>, mut slow: Slow) -> impl Future<Output = ()> {
    async move {
        let cut = CutUnfinished(&conn);
        let delivered = watched(&conn, pin!(slow.finish(&conn, &mut x))).await;
        if let Some(delivered) = delivered {
            std::mem::forget(cut);
            tokio::task::spawn_local(run(conn, Begin::Delivered(x, delivered)));
        }
    }
}

/// The one place where the task's waker is left for the timer, and where an abort ends it: None.
fn watched<T>(
    conn: &Conn,
    mut serving: Pin<&mut impl Future<Output = T>>,
) -> impl Future<Output = Option<T>> {
    poll_fn(move |cx| {
        conn.timer.register(cx.waker());
        if conn.lp.shared.aborted() {
            Poll::Ready(None)
        } else {
            serving.as_mut().poll(cx).map(Some)
        }
    })
}

async fn serve(c: &Conn, begin: Begin) -> Left {
    let (mut since, mut ready) = match begin {
        Begin::Idle(since) => (since, None),
        Begin::Delivered(x, delivered) => (c.timer.now(), Some((x, Start::Delivered(delivered)))),
    };
    loop {
        let (mut x, start) = match ready.take() {
            Some(ready) => ready,
            None => match idle(c, since).await {
                Woken::Bytes(first) => (exchange::take(&c.lp), Start::Head(Some(first))),
                Woken::Park => return Left::Idle(since),
                Woken::End => return Left::End,
            },
        };
        // Not boxed: whoever is idle for long is no task, and the others would allocate each time.
        let next = match exchange::serve(c, &mut x, start).await {
            Served::Whole(next) => next,
            Served::Slow(slow) => return Left::Slow(x, slow),
        };
        if next != Next::Idle {
            c.requests.set(c.requests.get().saturating_add(1));
            since = c.timer.now();
        }
        let more = !x.input.is_empty();
        match next {
            Next::KeepAlive if more => ready = Some((exchange::next(&c.lp, x), Start::Head(None))),
            Next::KeepAlive | Next::Idle => exchange::give_back(x),
            Next::Close if !more && !c.has_input() => {
                exchange::give_back(x);
                return Left::End;
            }
            Next::Close | Next::Linger => {
                x.input.clear();
                exchange::give_back(x);
                // The drain waits: the end of the process would take the answer with it.
                let _delivering = Gauge::delivering(&c.lp);
                linger(c).await;
                return Left::End;
            }
            Next::Reset => {
                c.stream.reset();
                return Left::End;
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
