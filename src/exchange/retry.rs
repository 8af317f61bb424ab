//! May a request be sent again? One pure table (invariant 7; RFC 9110, 9.2.2).

use std::time::{Duration, Instant};

use crate::config::Retry;
use crate::error::Reason;
use crate::http1::RequestHead;
use crate::upstream::attempt::Failure;

/// Tries of a request that no worker has read.
const MAX_UNREAD: u32 = 3;
/// A request that ran longer than this before it failed is not worth a second worker.
const WORTH_RETRYING: Duration = Duration::from_secs(1);

/// What was tried so far.
#[derive(Debug)]
pub(super) struct Tries {
    unread: u32,
    read: u32,
    begun: Instant,
    /// The upstream that has just failed: another is preferred.
    pub(super) failed_at: Option<u16>,
}

impl Default for Tries {
    fn default() -> Tries {
        Tries { unread: 0, read: 0, begun: Instant::now(), failed_at: None }
    }
}

pub(super) enum Again {
    Yes,
    No(Reason),
}

impl Tries {
    /// Decides after one failed attempt. No byte of a response has gone to the client.
    pub(super) fn after(&mut self, retry: Retry, head: &RequestHead, failure: &Failure) -> Again {
        let ran = self.begun.elapsed();
        self.begun = Instant::now();
        match failure {
            Failure::Invalid(violation) => {
                tracing::warn!("the app's response is not valid: {}", violation.rule);
                return Again::No(Reason::InvalidResponse);
            }
            Failure::Spool(error) => {
                tracing::error!("a request body could not be read back: {error}");
                return Again::No(Reason::Internal);
            }
            Failure::Unread if matches!(retry, Retry::Proven | Retry::Idempotent) => {
                self.unread += 1;
                if self.unread < MAX_UNREAD {
                    return Again::Yes;
                }
            }
            Failure::Unread | Failure::Reset => {
                let once = self.read == 0 && ran <= WORTH_RETRYING;
                if retry == Retry::Idempotent && once && head.is_idempotent() {
                    self.read += 1;
                    return Again::Yes;
                }
            }
        }
        Again::No(Reason::ResetBeforeResponse)
    }
}
