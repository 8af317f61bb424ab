//! The end of a worker whose client has left. Closing a connection does not stop a sync worker: its
//! slot ends when it closes, not before (invariant 2).

use std::future::poll_fn;
use std::net::Shutdown;
use std::time::Duration;

use super::Slot;
use crate::config::UpstreamAddr;
use crate::metrics::METRICS;
use crate::net::Stream;

/// The longest that a slot waits for its worker to close.
const LIMIT: Duration = Duration::from_secs(300);
/// A response of which more than this was read is not worth reading to its end.
const WORTH_READING: u64 = 1024 * 1024;

/// Reads what the worker still writes, until it closes. `stream`: the response never ends by
/// itself; `seen`: bytes of it that were read so far.
pub(crate) async fn discard(upstream: Stream, slot: Slot, stream: bool, mut seen: u64) {
    let unix = matches!(slot.addr(), UpstreamAddr::Unix(_));
    let ended = tokio::time::timeout(LIMIT, async {
        // 16 KiB for the rest of a response that nobody waits for.
        let mut sink = vec![0; 16 * 1024];
        let mut refused = false;
        loop {
            if !refused && (stream || seen > WORTH_READING) {
                if !unix {
                    return;
                }
                // The worker's next write fails with EPIPE, and its close is still seen.
                upstream.shutdown(Shutdown::Read);
                refused = true;
            }
            match poll_fn(|cx| upstream.poll_read(cx, &mut sink)).await {
                Ok(0) if refused => return wait_for_close(&upstream).await,
                Ok(0) | Err(_) => return,
                Ok(n) => seen += n as u64,
            }
        }
    })
    .await;
    if ended.is_err() {
        METRICS.slot_lost.add(1);
    }
}

/// After SHUT_RD a read says 0 at once, whether or not the worker has closed: its close is an error
/// or hang-up on the write side, for which the kernel gives no edge of its own here; looked at
/// twice a second.
async fn wait_for_close(upstream: &Stream) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        let mut fds = [PollFd::new(upstream.socket(), PollFlags::empty())];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let hung_up = poll(&mut fds, Some(&zero)).is_err()
            || fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
        if hung_up {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
