//! Whether the app keeps up, for its owner: one line every `saturation-log`, in l2met's form, and
//! the same figures for the admin listener. Runs as a task of loop 0.

use std::fmt::Write;
use std::rc::Rc;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use super::{Loop, Shared};
use crate::access_log;
use crate::config::Config;
use crate::error::Reason;
use crate::metrics::METRICS;

/// How often the figures are made where the log does not say it.
const EVERY: Duration = Duration::from_secs(20);

/// The queue over one period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Saturation {
    /// Requests at the app at the period's end.
    pub busy: usize,
    /// Requests in line at the period's end.
    pub queue: usize,
    /// What 95 % of the requests did not wait longer than, those that left or were refused included.
    pub queue_wait_p95: Duration,
    /// Requests that the queue has refused.
    pub shed: u64,
}

pub(super) async fn run(lp: Rc<Loop>) {
    let mut shed_before = shed();
    loop {
        let every = lp.settings().config.saturation_log;
        tokio::time::sleep(every.unwrap_or(EVERY)).await;
        let waits = lp.shared.upstreams.take_waits();
        let shed = shed();
        let saturation = Saturation {
            busy: lp.shared.gauges[super::Gauge::IN_FLIGHT].load(super::Relaxed),
            queue: lp.shared.gauges[super::Gauge::QUEUED].load(super::Relaxed),
            queue_wait_p95: waits.percentile(95).unwrap_or_default(),
            shed: shed.saturating_sub(shed_before),
        };
        shed_before = shed;
        *lp.shared.saturation.lock().unwrap_or_else(PoisonError::into_inner) = saturation;
        let idle = Saturation { queue_wait_p95: Duration::ZERO, ..saturation };
        if every.is_some() && (waits.total() > 0 || idle != Saturation::default()) {
            say(&lp, saturation);
        }
    }
}

/// To the access log where its lines have the same form, else to the diagnostics: whoever reads
/// another format would stumble.
fn say(lp: &Loop, saturation: Saturation) {
    let settings = lp.settings();
    let line = line(&settings.config, saturation);
    if settings.config.log_format != "l2met" || settings.log.is_off() {
        tracing::info!("{line}");
        return;
    }
    let mut timed = Vec::new();
    if settings.config.log_time {
        access_log::write_time(SystemTime::now(), &mut timed);
    }
    timed.extend_from_slice(line.as_bytes());
    settings.log.push(&timed);
}

fn line(config: &Config, saturation: Saturation) -> String {
    let Saturation { busy, queue, queue_wait_p95, shed } = saturation;
    let (name, wait) = (&config.log_name, queue_wait_p95.as_secs_f64());
    let mut line = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        line,
        "sample#{name}.busy={busy} sample#{name}.queue={queue} \
         measure#{name}.queue_wait.p95={wait:.3} count#{name}.shed={shed}"
    );
    line
}

/// Requests that the queue has refused since the start.
fn shed() -> u64 {
    use Reason::{ClientLimit, Deadline, QueueFull, QueueTimeout, Shed};
    let refused = [QueueFull, QueueTimeout, Shed, Deadline, ClientLimit];
    let refused: u64 = refused.map(|reason| METRICS.ends[reason as usize].get()).iter().sum();
    // A client that asks for too much says nothing of the app.
    refused.saturating_sub(METRICS.client_limited.get())
}

impl Shared {
    pub(super) fn saturation(&self) -> Saturation {
        *self.saturation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_l2mets_form() {
        let saturation =
            Saturation { busy: 4, queue: 17, queue_wait_p95: Duration::from_millis(1250), shed: 3 };
        assert_eq!(
            line(&Config::for_tests(), saturation),
            "sample#bufproxy.busy=4 sample#bufproxy.queue=17 \
             measure#bufproxy.queue_wait.p95=1.250 count#bufproxy.shed=3"
        );
    }
}
