//! May a request be sent again? One pure table (invariant 7; RFC 9110, 9.2.2).

use std::time::Duration;

use crate::config::Retry;
use crate::error::Reason;
use crate::http1::RequestHead;
use crate::upstream::attempt::Failure;

/// Tries of a request that no worker has read.
const MAX_UNREAD: u32 = 3;
/// A request that ran longer than this before it failed is not worth a second worker.
const WORTH_RETRYING: Duration = Duration::from_secs(1);

/// What was tried so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    unread: u32,
    read: u32,
}

pub(super) enum Again {
    Yes,
    No(Reason),
}

impl Tries {
    /// Decides after one failed attempt, which `ran` this long at the app. No byte of a response has
    /// gone to the client.
    pub(super) fn after(
        &mut self,
        retry: Retry,
        head: &RequestHead,
        failure: &Failure,
        ran: Duration,
    ) -> Again {
        match failure {
            Failure::Invalid(violation) => {
                tracing::warn!("the app's response is not valid: {}", violation.rule);
                return Again::No(Reason::InvalidResponse);
            }
            Failure::Own(error) => {
                tracing::error!("a request could not be brought to the app: {error}");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Limits, Violation};

    fn head(method: &str) -> RequestHead {
        let mut head = RequestHead::default();
        let text = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
        head.parse(text.as_bytes(), &Limits { head: 1000, fields: 10 }).expect("valid");
        head
    }

    /// How many tries a request has in all when every one fails like this.
    fn tries(retry: Retry, method: &str, failure: &Failure, ran: Duration) -> u32 {
        let (mut tries, head) = (Tries::default(), head(method));
        (1..)
            .find(|_| matches!(tries.after(retry, &head, failure, ran), Again::No(_)))
            .unwrap_or_default()
    }

    #[test]
    fn the_table() {
        use Retry::{Connect, Idempotent, Off, Proven};
        let (short, long) = (Duration::ZERO, Duration::from_millis(1001));
        let rows = [
            // What no worker has read may always be sent again, at most 3 tries.
            (Idempotent, "POST", Failure::Unread, short, 3),
            (Idempotent, "POST", Failure::Unread, long, 3),
            (Proven, "POST", Failure::Unread, short, 3),
            // What a worker may have read: once more, idempotent methods only.
            (Idempotent, "GET", Failure::Reset, short, 2),
            (Idempotent, "PUT", Failure::Reset, short, 2),
            (Idempotent, "POST", Failure::Reset, short, 1),
            (Idempotent, "PATCH", Failure::Reset, short, 1),
            (Proven, "GET", Failure::Reset, short, 1),
            // One that ran long is not worth a second worker.
            (Idempotent, "GET", Failure::Reset, long, 1),
            // Switched off.
            (Connect, "GET", Failure::Reset, short, 1),
            (Connect, "GET", Failure::Unread, short, 1),
            (Off, "GET", Failure::Unread, short, 1),
        ];
        for (retry, method, failure, ran, expected) in rows {
            let got = tries(retry, method, &failure, ran);
            assert_eq!(got, expected, "{retry:?} {method} {failure:?} after {ran:?}");
        }
    }

    #[test]
    fn an_answer_that_is_not_http_is_final() {
        let violation = Violation { reason: Reason::InvalidResponse, rule: "any" };
        assert_eq!(
            tries(Retry::Idempotent, "GET", &Failure::Invalid(violation), Duration::ZERO),
            1
        );
    }
}
