//! After the app's 101: bytes both ways, until one side ends (RFC 9110, 7.8). Not a byte of the
//! client goes to the app before that.

use std::future::poll_fn;
use std::io::IoSlice;
use std::task::{Context, Poll};

use super::gzip::elements;
use super::{Answer, Client, Exchange, Next, client_head};
use crate::error::Reason;
use crate::http1::{FieldId, RequestHead, ResponseHead};
use crate::net::Stream;
use crate::scratch::Scratch;
use crate::server::Gauge;

/// Reads of one direction before other connections of the loop have their turn.
const TURN: u32 = 16;

/// Passes the app's 101 on and tunnels. The worker is held for as long as the tunnel.
pub(super) async fn tunnel(
    c: &Client<'_>,
    x: &mut Exchange,
    answer: Answer,
) -> Result<Next, Reason> {
    // It needs the app, but it need not end before the app is told to stop: the app says goodbye
    // in its own protocol (a WebSocket close), and that ends the tunnel.
    x.enter(Gauge::delivering(&x.lp));
    x.record.upstream_status = x.response.status;
    x.record.status = x.response.status;
    x.record.tunnel = true;
    let Answer { attempt, slot, rest } = answer;
    let upstream = attempt.into_stream();
    let mut down = Direction { waiting: std::mem::take(&mut x.interim), ..Direction::default() };
    client_head::write_switching(&mut down.waiting, &x.response);
    let head = down.waiting.len() as u64;
    down.waiting.extend_from_slice(rest.bytes());
    drop(rest);
    let mut up = Direction { waiting: std::mem::take(&mut x.input), ..Direction::default() };
    let idle = c.config().tunnel_idle_timeout;
    c.timer.set(idle);
    let (sent, received) = (x.record.bytes_sent, x.record.request_length);
    let result = poll_fn(|cx| {
        let mut moved = false;
        for _ in 0..TURN {
            let now = up.poll(&c.stream, &upstream, cx) | down.poll(&upstream, &c.stream, cx);
            if now {
                moved = true;
            } else {
                break;
            }
        }
        // As it goes: the record is written when the task is dropped, too.
        x.record.bytes_sent = sent + down.passed;
        x.record.body_bytes_sent = down.passed.saturating_sub(head);
        x.record.request_length = received + up.passed;
        // Whoever ends first ends it, once the other has what was sent.
        let client_ended = up.ended || down.refused;
        if client_ended && up.waiting.is_empty() || down.ended && down.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if moved {
            c.timer.set(idle);
            // It may be that TURN has cut it short.
            cx.waker().wake_by_ref();
        } else if c.timer.expired() {
            return Poll::Ready(Err(Reason::AppIdleTimeout));
        }
        Poll::Pending
    })
    .await;
    x.marks.app_done = Some(c.timer.now());
    drop((upstream, slot));
    result?;
    // A client that has not ended may be sending: its bytes must not take the app's last ones away.
    Ok(if up.ended { Next::Close } else { Next::Linger })
}

/// The 101 names what it switches to, and the client has offered that (RFC 9110, 7.8).
pub(super) fn is_offered(request: &RequestHead, response: &ResponseHead) -> bool {
    let mut chosen = elements(&response.fields, &response.bytes, FieldId::Upgrade).peekable();
    chosen.peek().is_some()
        && chosen.all(|protocol| {
            elements(&request.fields, &request.bytes, FieldId::Upgrade)
                .any(|offered| offered.eq_ignore_ascii_case(protocol))
        })
}

/// One direction. Holds no buffer while nothing waits.
#[derive(Default)]
struct Direction {
    /// Read and not yet taken by the other side, at most one read.
    waiting: Vec<u8>,
    passed: u64,
    /// Who is read from has ended.
    ended: bool,
    /// Who is written to takes nothing more. It may still have something to say.
    refused: bool,
}

impl Direction {
    /// True: something moved.
    fn poll(&mut self, from: &Stream, to: &Stream, cx: &mut Context<'_>) -> bool {
        if !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            return self.write(&waiting, to, cx);
        }
        if self.ended || self.refused {
            return false;
        }
        let mut buf = Scratch::take();
        match from.poll_read(cx, &mut buf) {
            Poll::Ready(Ok(n)) if n > 0 => {
                self.write(&buf[..n], to, cx);
            }
            Poll::Ready(_) => self.ended = true,
            Poll::Pending => return false,
        }
        true
    }

    /// What is not taken now waits. True: something moved.
    fn write(&mut self, bytes: &[u8], to: &Stream, cx: &mut Context<'_>) -> bool {
        let taken = match to.poll_write(cx, &[IoSlice::new(bytes)]) {
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => {
                self.refused = true;
                return true;
            }
            Poll::Pending => 0,
        };
        self.passed += taken as u64;
        self.waiting.extend_from_slice(&bytes[taken..]);
        taken > 0
    }
}
