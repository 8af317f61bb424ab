//! The signals that we handle, as one stream. Installed before anything else: PID 1 has no default
//! actions, and a TERM at any moment is to be answered by a drain.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

use crate::sys;

/// In the order in which pending ones are given: a stop before the child's end, so that a TERM sent
/// to every process at once is a stop that was asked for.
const HANDLED: [(Signal, &str); 10] = [
    (Signal::TERM, "TERM"),
    (Signal::INT, "INT"),
    (Signal::QUIT, "QUIT"),
    (Signal::HUP, "HUP"),
    (Signal::USR1, "USR1"),
    (Signal::USR2, "USR2"),
    (Signal::TTIN, "TTIN"),
    (Signal::TTOU, "TTOU"),
    (Signal::WINCH, "WINCH"),
    (Signal::CHILD, "CHLD"),
];

/// The installed handlers. They stay for the life of the process, also when this is dropped.
pub struct Signals {
    streams: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    /// Must be called inside a runtime.
    pub fn install() -> io::Result<Signals> {
        sys::unblock_signals();
        let stream = |(signal, _): (Signal, _)| {
            Ok((signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?))
        };
        // A file that reaches a limit (ulimit -f) is that write's error, not our end.
        let _ = unix::signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?;
        Ok(Signals { streams: HANDLED.into_iter().map(stream).collect::<io::Result<_>>()? })
    }

    /// The next signal. Several of one kind that come together are one. Cancel safe.
    pub async fn next(&mut self) -> Signal {
        poll_fn(|cx| {
            for (signal, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// `TERM`, as the diagnostics write it.
pub fn name(signal: Signal) -> &'static str {
    HANDLED.iter().find(|(handled, _)| *handled == signal).map_or("signal", |(_, name)| name)
}
