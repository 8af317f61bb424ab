//! The life of one request, on one screen (`story`), and the steps of it.
//!
//! Everything about one request lives in one `Exchange`, which is reused: its vectors keep their
//! capacity, its record is written when it ends or is dropped (invariant 5).

pub mod client_head;
mod deliver;
pub mod forward;
mod gzip;
mod pace;
mod receive;
pub mod reply;
mod retry;
mod tunnel;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::IoSlice;
use std::net::IpAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant, SystemTime};

use crate::access_log::Record;
use crate::config::{Config, Peer, UpstreamAddr};
use crate::error::Reason;
use crate::http1::{RequestBody, ResponseHead, Version};
use crate::scratch::{Filled, Scratch};
use crate::server::connection::Conn;
use crate::server::{Gauge, Loop, OfClient, Settings, Tunnel};
use crate::spool::{Owner, Spool, SpoolLimits};
use crate::trust::{self, Resolved};
use crate::upstream::attempt::{Attempt, Event, Failure, NOT_ASKED, SWITCHING};
use crate::upstream::discard::{self, Abandoned, Rest};
use crate::upstream::{self, Refusal, Slot, Tried};
pub(crate) use deliver::Slow;
use forward::ForwardedHead;
use retry::{Again, Tries};

/// Bytes of next requests that are read while one is at work: its end is seen behind them.
const PIPELINED: usize = 8 * 1024;
/// How often a request that no worker has taken is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    KeepAlive,
    /// No request has come, only empty lines: the client is as idle as before.
    Idle,
    Close,
    /// Close so that a client that is still sending can read the answer.
    Linger,
    /// Close by a reset: what was sent must not look complete.
    Reset,
}

/// What an exchange begins with.
pub(crate) enum Start {
    /// Its head, and what of it was read (with what `input` holds from before).
    Head(Option<Filled>),
    /// Its end: this has become of a slow delivery.
    Delivered(Result<Next, Reason>),
}

/// How far an exchange has come.
pub(crate) enum Served {
    Whole(Next),
    /// What is left of it is for the client to take, which has taken nothing for a while.
    Slow(Slow),
}

/// All that one request needs. Reused through a free list of the thread.
pub(crate) struct Exchange {
    lp: Rc<Loop>,
    settings: Arc<Settings>,
    pub(crate) record: Record,
    /// Bytes received and not yet used: a part of a head, or the next request.
    pub(crate) input: Vec<u8>,
    body: Spool,
    forwarded: ForwardedHead,
    response: ResponseHead,
    /// The response head as it goes to the client.
    out: Vec<u8>,
    /// What the client has not yet taken of a 1xx head. Goes out before whatever comes next.
    interim: Vec<u8>,
    marks: Marks,
    gauge: Option<Gauge>,
    /// Counts for its client, where clients have a limit.
    of_client: Option<OfClient>,
    /// The place that a tunnel would have, held from the request for it.
    tunnel: Option<Tunnel>,
    /// Whose share of the queue, the budgets and the requests at once this request counts for. None:
    /// it is not known who that is.
    client_key: Option<IpAddr>,
    /// The record waits to be written.
    open: bool,
}

/// When each phase ended; None: not yet. A record's phases are the differences.
#[derive(Clone, Copy)]
struct Marks {
    started: Instant,
    received: Option<Instant>,
    granted: Option<Instant>,
    connected: Option<Instant>,
    first_byte: Option<Instant>,
    app_done: Option<Instant>,
}

impl Marks {
    fn new(now: Instant) -> Marks {
        Marks {
            started: now,
            received: None,
            granted: None,
            connected: None,
            first_byte: None,
            app_done: None,
        }
    }
}

/// A response head has come: what is needed to deliver it.
struct Answer {
    attempt: Attempt,
    slot: Slot,
    rest: Filled,
}

/// An attempt without a response head.
struct Failed {
    failure: Failure,
    attempt: Attempt,
    slot: Slot,
}

/// The client of one exchange: its connection, and the settings that hold from the first byte of
/// this request to its last, whatever is reloaded meanwhile.
struct Client<'a> {
    conn: &'a Conn,
    settings: &'a Settings,
}

impl Client<'_> {
    fn config(&self) -> &Config {
        &self.settings.config
    }
}

impl Deref for Client<'_> {
    type Target = Conn;
    fn deref(&self) -> &Conn {
        self.conn
    }
}

/// Serves one request, or what is left of one.
pub(crate) async fn serve(conn: &Conn, x: &mut Exchange, start: Start) -> Served {
    let settings = x.settings.clone();
    let c = &Client { conn, settings: &settings };
    let served = match start {
        Start::Head(first) => {
            x.begin(conn);
            story(c, x, first).await
        }
        Start::Delivered(delivered) => delivered.map(Served::Whole),
    };
    let next = match served {
        Ok(Served::Whole(next)) => next,
        Ok(slow @ Served::Slow(_)) => return slow,
        Err(reason) => x.refuse(c, reason).await,
    };
    x.end();
    Served::Whole(next)
}

async fn story(c: &Client<'_>, x: &mut Exchange, first: Option<Filled>) -> Result<Served, Reason> {
    if !receive::head(c, x, first).await? {
        x.open = false;
        return Ok(Served::Whole(Next::Idle));
    }
    if let Some(next) = x.admit(c).await? {
        return Ok(Served::Whole(next));
    }
    receive::body(c, x).await?;
    let mut tries = Tries::default();
    let mut slot = x.wait_for_slot(c, None).await?;
    let answer = loop {
        let Failed { failure, attempt, slot: failed } = match x.attempt(c, slot).await? {
            Ok(answer) => break answer,
            Err(failed) => failed,
        };
        let ran = x.marks.connected.map_or(Duration::ZERO, |at| c.timer.now() - at);
        match tries.after(c.config().retry, &x.record.head, &failure, ran) {
            Again::Yes => x.record.retry = x.record.retry.saturating_add(1),
            Again::No(reason) => {
                // It may work on: what it said may be no HTTP and still not its end.
                x.abandon(attempt, Some(Rest::worthless()), failed);
                return Err(reason);
            }
        }
        drop(attempt);
        x.body.rewind();
        slot = x.slot_again(c, failed).await?;
    };
    match x.response.status {
        // Boxed: it is larger than what else may be under way here.
        SWITCHING => Box::pin(tunnel::tunnel(c, x, answer)).await.map(Served::Whole),
        _ => deliver::deliver(c, x, answer).await,
    }
}

impl Exchange {
    fn new(lp: &Rc<Loop>, settings: Arc<Settings>) -> Exchange {
        let limits =
            SpoolLimits { memory: settings.config.body_memory, disk: u64::MAX, replay: true };
        Exchange {
            lp: lp.clone(),
            settings,
            record: Record::new(Peer::Unix),
            input: Vec::new(),
            body: Spool::new(&lp.shared.budget, limits),
            forwarded: ForwardedHead::default(),
            response: ResponseHead::default(),
            out: Vec::new(),
            interim: Vec::new(),
            marks: Marks::new(lp.timers.now()),
            gauge: None,
            of_client: None,
            tunnel: None,
            client_key: None,
            open: false,
        }
    }

    fn begin(&mut self, c: &Conn) {
        self.marks = Marks::new(c.timer.now());
        self.interim.clear();
        self.record.reset();
        self.record.time = self.lp.timers.wall();
        self.record.peer = c.peer;
        self.record.local = c.local;
        self.record.client = c.peer.ip();
        self.record.connection = c.id;
        self.record.connection_requests = c.requests.get();
        self.open = true;
        self.enter(Gauge::receiving(&self.lp));
    }

    /// Moves this exchange to another phase of the counts.
    fn enter(&mut self, gauge: Gauge) {
        self.gauge = Some(gauge);
    }

    /// The time left until the first byte of the response is due.
    fn app_deadline(&self, c: &Client<'_>) -> Instant {
        self.marks.received.unwrap_or(self.marks.started) + c.config().app_timeout
    }

    /// Limits known from the head; resolves the client and writes the head for the app. Some: the
    /// request was answered here.
    async fn admit(&mut self, c: &Client<'_>) -> Result<Option<Next>, Reason> {
        let config = c.config();
        let resolved = trust::resolve(config, c.peer, &self.record.head);
        self.record.client = resolved.client;
        self.record.scheme = resolved.scheme;
        self.client_key = client_key(c.peer, &resolved);
        self.forwarded.write(
            &self.record.head,
            &forward::Forward {
                config,
                peer: c.peer,
                local: c.local,
                resolved,
                started_ms: unix_ms(self.record.time),
                keep_alive: config.upstream_keepalive.is_some(),
            },
        );
        let id = self.forwarded.request_id.of(&self.forwarded.bytes);
        self.record.request_id.extend_from_slice(id);
        if let Some(reason) = c.refused {
            return Err(reason);
        }
        if let (Some(client), Some(max)) = (self.client_key, config.max_requests_per_client) {
            let of_client = OfClient::new(&self.lp.shared, client, max);
            self.of_client = Some(of_client.ok_or(Reason::ClientLimit)?);
        }
        if self.record.head.upgrade {
            let tunnel = Tunnel::new(&self.lp, config.max_tunnels);
            self.tunnel = Some(tunnel.ok_or(Reason::TooManyConnections)?);
        }
        if forward::max_forwards_zero(&self.record.head) {
            return Ok(Some(self.answer_here(c).await));
        }
        if matches!(self.record.head.body, RequestBody::Length(n) if n > config.max_body) {
            tracing::debug!("413: a body is larger than max-body");
            return Err(Reason::BodyTooLarge);
        }
        Ok(None)
    }

    /// The slot for another try: at another upstream if there is one, else the same.
    async fn slot_again(&mut self, c: &Client<'_>, failed: Slot) -> Result<Slot, Reason> {
        if self.lp.shared.upstreams.only_one() {
            return Ok(failed);
        }
        self.wait_for_slot(c, Some(failed)).await
    }

    /// A slot, or the reason why there is none in time. A client that leaves is taken out of the
    /// line unserved; a request that `failed` keeps its place.
    async fn wait_for_slot(
        &mut self,
        c: &Client<'_>,
        failed: Option<Slot>,
    ) -> Result<Slot, Reason> {
        let shared = self.lp.shared.clone();
        let entered = c.timer.now();
        let safe = matches!(self.record.head.method(), b"GET" | b"HEAD");
        let mut failed = Some(failed);
        let mut place = None;
        let slot = poll_fn(|cx| {
            if let Some(failed) = failed.take() {
                match shared.upstreams.enter(self.client_key, safe, failed, cx) {
                    Ok(entered) => place = Some(entered),
                    Err(refusal) => return Poll::Ready(Err(refused(refusal))),
                }
            }
            let Some(place) = &mut place else { return Poll::Pending };
            match place.poll(cx) {
                // Who has not waited is never refused for the time that is left: the rule would
                // keep itself up.
                Poll::Ready(Ok(slot)) if place.is_line() && self.is_too_late(c) => {
                    drop(slot);
                    return Poll::Ready(Err(Reason::Deadline));
                }
                Poll::Ready(slot) => return Poll::Ready(slot.map_err(refused)),
                Poll::Pending => {}
            }
            if self.gauge.as_ref().is_none_or(|g| !g.is_queued()) {
                self.gauge = Some(Gauge::queued(&self.lp));
            }
            if shared.app_is_gone() {
                return Poll::Ready(Err(shared.gone_reason()));
            }
            let (end, reason) = self.end_of_wait(c, entered);
            if c.timer.now() >= end {
                return Poll::Ready(Err(reason));
            }
            c.timer.set_at(end);
            self.poll_client_left(c, cx).map(Err)
        })
        .await?;
        c.timer.clear();
        // Of a request that waits again the first: what follows is the app's doing, not the queue's.
        self.marks.granted.get_or_insert_with(|| c.timer.now());
        self.enter(Gauge::in_flight(&self.lp));
        Ok(slot)
    }

    /// When a place in the line that was taken at `entered` is given up, and why.
    fn end_of_wait(&self, c: &Client<'_>, entered: Instant) -> (Instant, Reason) {
        let config = c.config();
        let queue_end = (entered + config.queue_timeout, Reason::QueueTimeout);
        let mut end = earlier(queue_end, (self.last_start(c), Reason::Deadline));
        if let Some(since) = self.lp.shared.upstreams.down_since() {
            let until = since.max(entered) + config.connect_retry;
            end = earlier(end, (until, self.lp.shared.unavailable_reason()));
        }
        end
    }

    /// The last moment at which the app can begin with a request that has waited and be done in time.
    fn last_start(&self, c: &Client<'_>) -> Instant {
        let usual = self.lp.shared.upstreams.median_service();
        self.app_deadline(c) - usual.min(c.config().app_timeout / 4)
    }

    fn is_too_late(&self, c: &Client<'_>) -> bool {
        c.timer.now() >= self.last_start(c)
    }

    /// One try to have the request answered. The outer error ends the exchange, the inner one may
    /// be tried again.
    async fn attempt(
        &mut self,
        c: &Client<'_>,
        mut slot: Slot,
    ) -> Result<Result<Answer, Failed>, Reason> {
        let shared = self.lp.shared.clone();
        let deadline = self.app_deadline(c);
        let until = deadline.min(c.timer.now() + c.config().connect_retry);
        let stream = loop {
            self.record.upstream_addr = Some(slot.index());
            let kept = c
                .config()
                .upstream_keepalive
                .and_then(|limit| slot.take_kept(limit, c.timer.now()));
            // Over TCP one that the app is about to close could prove nothing when it fails.
            let unix = matches!(slot.addr(), UpstreamAddr::Unix(_));
            if let Some(stream) = kept.filter(|_| unix || self.record.head.is_idempotent()) {
                break stream;
            }
            match self.connect(c, &slot, deadline, until).await? {
                Tried::Connected(stream) => break stream,
                Tried::Move => slot = self.wait_for_slot(c, Some(slot)).await?,
            }
        };
        let connected_at = c.timer.now();
        self.marks.connected = Some(connected_at);
        self.marks.first_byte = None;
        let unix = matches!(slot.addr(), UpstreamAddr::Unix(_));
        let upgrade = self.record.head.upgrade;
        let head = &self.forwarded.bytes;
        let mut attempt = Attempt::start(stream, unix, upgrade, head, &mut self.body);
        let mut look_at = slot.look_at(connected_at);
        let reason = loop {
            let event = poll_fn(|cx| {
                let head = &self.forwarded.bytes;
                let method = self.record.head.method();
                let event = attempt.poll(cx, head, &mut self.body, &mut self.response, method);
                if event.is_ready() {
                    return event.map(Ok);
                }
                let now = c.timer.now();
                if now >= deadline {
                    return Poll::Ready(Err(shared.timeout_reason()));
                }
                if look_at.is_some_and(|at| now >= at) {
                    slot.set_unread(attempt.is_unread());
                    look_at = slot.is_unread().then(|| now + LOOK_AGAIN);
                }
                c.timer.set_at(look_at.map_or(deadline, |at| at.min(deadline)));
                self.poll_client_left(c, cx).map(Err)
            })
            .await;
            if attempt.received > 0 {
                slot.set_unread(false);
                self.marks.first_byte.get_or_insert(c.timer.now());
            }
            match event {
                Ok(Ok(Event::Head(rest))) => {
                    c.timer.clear();
                    shared.app_answered();
                    let now = c.timer.now();
                    slot.answered(now - connected_at, now);
                    let switches = self.response.status == SWITCHING;
                    if switches && !tunnel::is_offered(&self.record.head, &self.response) {
                        let failure = Failure::Invalid(NOT_ASKED);
                        return Ok(Err(Failed { failure, attempt, slot }));
                    }
                    return Ok(Ok(Answer { attempt, slot, rest }));
                }
                Ok(Ok(Event::Informational)) => {
                    if let Err(reason) = self.pass_informational(c) {
                        break reason;
                    }
                }
                Ok(Err(failure)) => return Ok(Err(Failed { failure, attempt, slot })),
                Err(reason) => break reason,
            }
        };
        self.abandon(attempt, None, slot);
        Err(reason)
    }

    async fn connect(
        &mut self,
        c: &Client<'_>,
        slot: &Slot,
        deadline: Instant,
        until: Instant,
    ) -> Result<Tried, Reason> {
        let shared = self.lp.shared.clone();
        let mut connecting =
            std::pin::pin!(upstream::connect(slot, until, |error| shared.app_has_gone(error)));
        c.timer.set_at(deadline);
        let connected = poll_fn(|cx| {
            if let Poll::Ready(done) = connecting.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            if c.timer.expired() {
                return Poll::Ready(Err(shared.timeout_reason()));
            }
            self.poll_client_left(c, cx).map(Err)
        })
        .await?;
        connected.map_err(|error| {
            if shared.app_has_gone(&error) {
                return shared.gone_reason();
            }
            shared.say_unreachable(slot.addr(), c.config().connect_retry, &error);
            shared.unavailable_reason()
        })
    }

    /// A 103 and the like goes to an HTTP/1.1 client as it comes; others are not for it. A client that
    /// does not take it now gets it with the final head, and no other before that: the worker must
    /// not wait for it (invariant 2).
    fn pass_informational(&mut self, c: &Client<'_>) -> Result<(), Reason> {
        const CONTINUE: u16 = 100;
        let old = self.record.head.version == Version::Http10;
        if old || self.response.status == CONTINUE || !self.interim.is_empty() {
            return Ok(());
        }
        client_head::write_informational(&mut self.interim, &self.response);
        // Nobody is woken when there is room: the final head does not wait for that either.
        let mut cx = Context::from_waker(Waker::noop());
        let taken = match c.stream.poll_write(&mut cx, &[IoSlice::new(&self.interim)]) {
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => return Err(Reason::ClientGone),
            Poll::Pending => 0,
        };
        self.interim.drain(..taken);
        self.record.bytes_sent += taken as u64;
        Ok(())
    }

    /// Reads what the client sends while the app works: its next request is kept, its end means that
    /// it has left. Ready only for the latter.
    fn poll_client_left(&mut self, c: &Client<'_>, cx: &mut Context<'_>) -> Poll<Reason> {
        self.relieve(c);
        // A client that pipelines more than this is not read further; its end is seen later.
        while self.input.len() < PIPELINED {
            if ready!(c.stream.poll_readable(cx)).is_err() {
                return Poll::Ready(Reason::ClientGone);
            }
            let mut buf = Scratch::take();
            let room = PIPELINED - self.input.len();
            match ready!(c.stream.poll_read(cx, &mut buf[..room])) {
                Ok(0) | Err(_) => return Poll::Ready(Reason::ClientGone),
                Ok(n) => self.input.extend_from_slice(&buf[..n]),
            }
        }
        Poll::Pending
    }

    /// The request's body does not wait in memory for long.
    fn relieve(&mut self, c: &Client<'_>) {
        if self.body.relieve() {
            c.timer.hold();
        }
    }

    /// Whose share of the budgets bodies count for.
    fn owner(&self) -> Owner {
        self.lp.shared.budget.owner(self.client_key)
    }

    /// The worker goes on for nobody: a task of its own holds the slot until it is done.
    fn abandon(&mut self, attempt: Attempt, rest: Option<Rest>, slot: Slot) {
        let work = Abandoned {
            attempt,
            head: std::mem::take(&mut self.forwarded.bytes),
            body: self.body.take(),
            method: self.record.head.method().to_vec(),
            rest,
            slot,
        };
        // Who leaves does not get rid of what it has asked for.
        let counted = (Gauge::in_flight(&self.lp), self.of_client.take());
        tokio::task::spawn_local(async move {
            let _counted = counted;
            discard::finish(work).await;
        });
    }

    /// Answers OPTIONS and TRACE that may not be forwarded further (RFC 9110, 7.6.2).
    async fn answer_here(&mut self, c: &Client<'_>) -> Next {
        let mut out = Vec::new();
        let no_body = matches!(self.record.head.body, RequestBody::None | RequestBody::Length(0));
        let next = self.after_own(c, no_body);
        self.record.status = reply::write_max_forwards(
            &mut out,
            &self.record.head,
            next == Next::KeepAlive,
            &reply::date(self.lp.timers.wall()),
        );
        self.send_own(c, &out, next).await
    }

    /// Our own answer for this reason, or a cut where the response has begun.
    async fn refuse(&mut self, c: &Client<'_>, reason: Reason) -> Next {
        self.record.end = reason;
        if self.record.status != 0 {
            // The response has begun: it must not look complete (invariant 6).
            return Next::Reset;
        }
        // To a client that has left, or does not read, nothing can be said.
        if matches!(reason, Reason::ClientGone | Reason::SendTimeout) {
            self.record.status = Reason::ClientGone.status();
            return if reason == Reason::ClientGone { Next::Close } else { Next::Reset };
        }
        self.record.status = reason.status();
        self.lp.shared.count_refused(reason);
        let next = self.after_own(c, self.marks.received.is_some());
        let mut out = std::mem::take(&mut self.interim);
        let before = out.len();
        let head_len = reply::write(
            &mut out,
            &reply::Reply {
                reason,
                head: &self.record.head,
                request_id: &self.record.request_id,
                keep_alive: next == Next::KeepAlive,
                error_page: c.config().error_page.as_deref(),
                date: &reply::date(self.lp.timers.wall()),
                retry_after: 1,
            },
        );
        let sent = self.record.bytes_sent;
        let next = self.send_own(c, &out, next).await;
        if self.record.bytes_sent > sent {
            self.record.body_bytes_sent = (out.len() - before - head_len) as u64;
        }
        next
    }

    /// What follows an answer of our own. `in_step`: all of the request was read.
    fn after_own(&self, c: &Client<'_>, in_step: bool) -> Next {
        match in_step {
            true if self.may_keep_alive(c) => Next::KeepAlive,
            true => Next::Close,
            false => Next::Linger,
        }
    }

    async fn send_own(&mut self, c: &Client<'_>, out: &[u8], next: Next) -> Next {
        match c.write_all(out).await {
            Ok(()) => {
                self.record.bytes_sent += out.len() as u64;
                next
            }
            Err(_) => Next::Close,
        }
    }

    fn may_keep_alive(&self, c: &Client<'_>) -> bool {
        self.record.head.keep_alive && !c.closing()
    }

    /// Gives up what was for the app, which is done, and room that nothing is in: the client is slow.
    fn slim(&mut self) {
        self.body.clear();
        self.forwarded = ForwardedHead::default();
        self.response = ResponseHead { status: self.response.status, ..ResponseHead::default() };
        self.interim.shrink_to_fit();
        self.input.shrink_to_fit();
        self.record.shrink_to_fit();
    }

    /// Writes the record and makes the exchange ready for the next request.
    fn end(&mut self) {
        self.write_record();
        self.gauge = None;
        self.tunnel = None;
        self.of_client = None;
        self.body.clear();
    }

    fn write_record(&mut self) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let end = self.lp.timers.now();
        let m = self.marks;
        let received = m.received.unwrap_or(end);
        let granted = m.granted.unwrap_or(end);
        let connected = m.connected.unwrap_or(end);
        let app_done = m.app_done.unwrap_or(end);
        // Marks of one turn of the loop are the same time.
        let between = |from: Instant, to: Instant| match from == to {
            true => Duration::ZERO,
            false => to.saturating_duration_since(from),
        };
        let record = &mut self.record;
        record.service = between(m.started, end);
        record.receive = between(m.started, received);
        record.queue = between(received, granted);
        record.connect = between(granted, connected);
        record.first_byte = m.first_byte.map(|at| between(connected, at));
        record.upstream = between(connected, app_done);
        record.send = between(app_done, end);
        self.lp.shared.ended(&self.settings, record);
    }
}

/// A task that is dropped (deadline of the drain, a panic) still leaves its record.
impl Drop for Exchange {
    fn drop(&mut self) {
        if self.open {
            self.lp.timers.refresh();
            if self.record.head.line.is_empty() {
                receive::remember_partial(self);
            }
            if self.record.status == 0 {
                self.record.status = Reason::ClientGone.status();
            }
            let panics = std::thread::panicking();
            self.record.end = if panics { Reason::Internal } else { Reason::Draining };
            self.lp.shared.count_cut();
            self.write_record();
        }
    }
}

/// Whose share a request counts for, of the queue, the budgets and the requests at once: a client that
/// trust names, else the peer, unless that is one behind which all clients may be: of this machine or
/// of a private network.
fn client_key(peer: Peer, resolved: &Resolved) -> Option<IpAddr> {
    let client = resolved.client?;
    let is_peer = peer.ip().is_some_and(|ip| ip.to_canonical() == client);
    let known = match resolved.trusted {
        true => !is_peer,
        false => !trust::is_private(client),
    };
    known.then(|| upstream::client_key(client))
}

fn refused(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::Full => Reason::QueueFull,
        Refusal::Shed => Reason::Shed,
        Refusal::Share => Reason::ClientLimit,
    }
}

fn earlier(one: (Instant, Reason), other: (Instant, Reason)) -> (Instant, Reason) {
    if one.0 <= other.0 { one } else { other }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

thread_local! {
    #[expect(clippy::vec_box, reason = "taken and given back as a pointer, not by a copy of it all")]
    static FREE: RefCell<Vec<Box<Exchange>>> = const { RefCell::new(Vec::new()) };
}

/// Exchanges that a thread keeps for the next requests.
const KEPT: usize = 64;

/// An exchange of the free list, or a new one.
pub(crate) fn take(lp: &Rc<Loop>) -> Box<Exchange> {
    let settings = lp.settings();
    match FREE.with_borrow_mut(Vec::pop) {
        Some(x) if Arc::ptr_eq(&x.settings, &settings) => x,
        None => Box::new(Exchange::new(lp, settings)),
        Some(_) => {
            // From before a reload, as the others mostly are: they hold its settings, and its log.
            drop_kept();
            Box::new(Exchange::new(lp, settings))
        }
    }
}

/// The exchange of a request that its client has sent behind that of `x`: by the settings that hold now.
pub(crate) fn next(lp: &Rc<Loop>, mut x: Box<Exchange>) -> Box<Exchange> {
    if Arc::ptr_eq(&x.settings, &lp.settings()) {
        return x;
    }
    let mut next = take(lp);
    next.input = std::mem::take(&mut x.input);
    next
}

/// Drops this thread's free list. Its parts lie all over the heap of a burst, and hold its pages.
pub(crate) fn drop_kept() {
    drop(FREE.take());
}

/// Gives an exchange back. One that large heads have grown is not kept.
pub(crate) fn give_back(x: Box<Exchange>) {
    const LARGE: usize = 32 * 1024;
    let buffers = [
        &x.input,
        &x.record.head.bytes,
        &x.forwarded.bytes,
        &x.response.bytes,
        &x.out,
        &x.interim,
        &x.record.response_head,
    ];
    if buffers.map(Vec::capacity).iter().sum::<usize>() > LARGE {
        return;
    }
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT {
            free.push(x);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future that this function makes.
    fn size_of_future<'a, F: Future>(_: fn(&'a Conn, &'a mut Exchange, Start) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn busy_client_without_its_buffers_is_under_two_and_a_half_kilobytes() {
        let (future, state) = (size_of_future(serve), size_of::<Exchange>());
        assert!(future + state <= 2400, "future {future}, exchange {state}");
    }
}
