//! The data path's outer part: listeners, event loops, connections. The lifecycle drives it through
//! `Server`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;

/// What is under way, for the drain's lines and `/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: usize,
    /// Heads and bodies on their way in.
    pub receiving: usize,
    pub queued: usize,
    /// At the app.
    pub in_flight: usize,
    /// The worker is done, the client still reads.
    pub delivering: usize,
    /// Kept alive, nothing of a next request yet.
    pub idle: usize,
}

/// Totals since `drain` was called, for the summary line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainTotals {
    pub finished: u64,
    pub delivered_after_app_end: u64,
    pub refused: u64,
    pub cut: u64,
}

/// The running data path. Cheap to clone; methods may be called from any thread.
#[derive(Clone)]
pub struct Server {
    _config: Arc<Config>,
}

impl Server {
    /// Binds every `listen` address without listening yet (a busy port is known at once), starts
    /// the log writer and, for `threads` beyond the first, the other loops. Must be called inside
    /// the runtime of loop 0, whose thread lives to the end.
    pub fn bind(config: Arc<Config>) -> io::Result<Server> {
        Ok(Server { _config: config })
    }
    /// Addresses as bound (port 0 resolved), as the boot line shows them.
    pub fn local_addrs(&self) -> Vec<String> {
        Vec::new()
    }
    /// Listens and accepts.
    pub fn open(&self) -> io::Result<()> {
        Ok(())
    }
    /// The app has answered once: until then (`open-port early`) requests that cannot be delivered
    /// within `connect-retry` are app_starting, later app_unavailable.
    pub fn app_answered(&self) {}
    /// Responses say `Connection: close` from now on; accepting goes on (drain-delay).
    pub fn announce_close(&self) {}
    /// Stops accepting; everything accepted is finished.
    pub fn drain(&self) {}
    /// The app has ended and will not come back: what cannot be dispatched is answered 503
    /// (draining or app_unavailable) at once.
    pub fn app_gone(&self) {}
    /// Closes connections that are idle (lingering).
    pub fn close_idle(&self) {}
    /// Cuts everything that is left, dropping the loops' tasks so that every record is written.
    pub async fn abort(&self) {}
    /// Flushes the access log and joins its writer, at most `limit`.
    pub fn close_log(&self, limit: Duration) {
        let _ = limit;
    }
    /// Opens the log file again (USR1).
    pub fn reopen_log(&self) {}
    pub fn counts(&self) -> Counts {
        Counts::default()
    }
    pub fn drain_totals(&self) -> DrainTotals {
        DrainTotals::default()
    }
    /// Ready when nothing is received, queued, in flight or delivered (idle ones do not count).
    pub async fn quiet(&self) {}
}
