//! The response of the reference on its way from the app to the client.
//!
//! What must stay true: the app is read as fast as it writes. What hyper asks for goes to it without
//! a copy, what it does not ask for goes into a spool.

use std::cell::RefCell;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bufproxy::error::Reason;
use bufproxy::spool::{MAX_PUSH, Spool, SpoolLimits};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::exchange::Exchange;
use super::{Error, Upstream, take};

/// bufproxy's defaults.
const LIMITS: SpoolLimits = SpoolLimits { memory: 256 << 10, disk: 256 << 20, replay: false };

pub(super) struct Delivery {
    /// None: the app's part is over.
    app: Option<(Incoming, Upstream)>,
    /// What the client was not ready for; `next` comes behind it and is about to go there.
    spool: Spool,
    next: Bytes,
    failed: Option<Error>,
    /// The client waits for the app, which was asked just now.
    asked: bool,
    exchange: Exchange,
}

impl Delivery {
    pub(super) fn new(body: Incoming, upstream: Upstream, exchange: Exchange) -> Delivery {
        let spool = Spool::new(&exchange.proxy.budget, LIMITS);
        let empty = body.is_end_stream();
        let app = Some((body, upstream));
        let mut delivery =
            Delivery { app, spool, next: Bytes::new(), failed: None, asked: false, exchange };
        if empty {
            delivery.end_app();
        }
        delivery
    }

    /// What hyper writes next; None at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        self.asked = false;
        let data = if self.spool.unread() > 0 {
            ready!(take(&mut self.spool, cx))?
        } else if !self.next.is_empty() {
            mem::take(&mut self.next)
        } else {
            let polled = self.poll_app(cx);
            self.asked = polled.is_pending();
            match ready!(polled) {
                Some(data) => data,
                None => return Poll::Ready(self.failed.take().map(Err)),
            }
        };
        self.exchange.record.body_bytes_sent += data.len() as u64;
        Poll::Ready(Some(Ok(data)))
    }

    /// Takes from the app what the client did not ask for.
    pub(super) fn spool_the_rest(&mut self, cx: &mut Context<'_>) {
        while !self.asked {
            if self.next.is_empty() {
                match self.poll_app(cx) {
                    Poll::Ready(Some(data)) => self.next = data,
                    Poll::Ready(None) | Poll::Pending => return,
                }
            }
            // Only a spool that replays fails.
            if self.spool.poll_ready(cx).is_pending() {
                self.exchange.record.paced |= self.spool.blocked();
                return;
            }
            let data = self.next.split_to(self.next.len().min(MAX_PUSH));
            self.spool.push(&data);
        }
    }

    /// The app's next bytes; None at their end.
    fn poll_app(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while let Some((body, upstream)) = &mut self.app {
            upstream.drive(cx);
            let frame = ready!(Pin::new(&mut *body).poll_frame(cx)).transpose();
            if !matches!(frame, Ok(Some(_))) || body.is_end_stream() {
                self.end_app();
            }
            match frame {
                // Trailers end here: nobody has asked for them.
                Ok(frame) => {
                    if let Some(Ok(data)) = frame.map(Frame::into_data) {
                        return Poll::Ready(Some(data));
                    }
                }
                Err(error) => {
                    self.exchange.record.end = Reason::Truncated;
                    self.failed = Some(error.into());
                }
            }
        }
        Poll::Ready(None)
    }

    /// The app's last byte is here: its connection is kept, or closed at once.
    fn end_app(&mut self) {
        self.exchange.record.upstream = self.exchange.lap();
        self.exchange.record.end = Reason::Ok;
        let proxy = &self.exchange.proxy;
        if let Some((_, upstream)) = self.app.take()
            && proxy.keep_alive
            && !upstream.ended
        {
            proxy.kept.borrow_mut().push(upstream);
        }
    }

    /// Nothing is left to be written.
    fn is_over(&self) -> bool {
        self.app.is_none()
            && self.failed.is_none()
            && self.spool.unread() == 0
            && self.next.is_empty()
    }
}

/// What one client is being given, if anything: shared by its task and the body that hyper has.
pub(super) type Current = Rc<RefCell<Option<Delivery>>>;

/// hyper's handle on the delivery. hyper drops it, and the line is written, when it has taken the last
/// byte: up to 64 KiB before the kernel has.
pub(super) struct ToClient(pub(super) Current);

impl Body for ToClient {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut current = self.0.borrow_mut();
        let Some(delivery) = &mut *current else { return Poll::Ready(None) };
        delivery.poll_next(cx).map_ok(Frame::data)
    }

    fn is_end_stream(&self) -> bool {
        self.0.borrow().as_ref().is_none_or(Delivery::is_over)
    }

    /// hyper asks before the first frame, when all is still to come.
    fn size_hint(&self) -> SizeHint {
        match &*self.0.borrow() {
            Some(Delivery { app: Some((body, _)), .. }) => body.size_hint(),
            _ => SizeHint::with_exact(0),
        }
    }
}

impl Drop for ToClient {
    fn drop(&mut self) {
        if let Some(mut delivery) = self.0.take()
            && !delivery.is_over()
        {
            delivery.exchange.record.end = Reason::ClientGone;
        }
    }
}
