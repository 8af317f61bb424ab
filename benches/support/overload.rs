//! The overload: four workers, more requests than they can do, and clients that leave. What counts is
//! what is answered before its client has left, while the load lasts.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::task::spawn_local;
use tokio::time::{sleep_until, timeout};

use super::app::Upstream;
use super::load::{self, Client, block_on};
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown};

const WORKERS: usize = 4;
/// How long the first request after the load is waited for.
const RECOVERY: Duration = Duration::from_secs(30);

/// How long a worker takes.
#[derive(Clone, Copy, Debug)]
enum Work {
    /// 100 ms.
    Fixed,
    /// Log-normal: a median of 50 ms, one in a hundred over 1 s.
    Spread,
}

impl Work {
    const SIGMA: f64 = 1.288;

    fn mean(self) -> f64 {
        match self {
            Work::Fixed => 0.1,
            Work::Spread => 0.05 * (Work::SIGMA * Work::SIGMA / 2.0).exp(),
        }
    }

    fn one(self, random: &mut fastrand::Rng) -> Duration {
        Duration::from_secs_f64(match self {
            Work::Fixed => 0.1,
            Work::Spread => {
                let normal = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
                0.05 * (Work::SIGMA * normal).exp()
            }
        })
    }
}

struct Case {
    name: &'static str,
    /// bufproxy alone, or beside the others.
    alone: bool,
    work: Work,
    times: f64,
    /// Seconds, of the clients.
    patience: &'static [f64],
}

const CASES: [Case; 9] = {
    const fn case(name: &'static str, work: Work, times: f64) -> Case {
        Case { name, alone: false, work, times, patience: &[1.0] }
    }
    const fn alone(name: &'static str, times: f64) -> Case {
        let patience = &[0.5, 2.0, 10.0];
        Case { name, alone: true, work: Work::Fixed, times, patience }
    }
    [
        case("100 ms, 1.2 times", Work::Fixed, 1.2),
        case("100 ms, 3 times", Work::Fixed, 3.0),
        case("50 ms to 1 s, 1.2 times", Work::Spread, 1.2),
        case("50 ms to 1 s, 3 times", Work::Spread, 3.0),
        alone("patience at 1.2 times", 1.2),
        alone("patience at 2 times", 2.0),
        alone("patience at 3 times", 3.0),
        alone("patience at 5 times", 5.0),
        alone("patience at 10 times", 10.0),
    ]
};

/// Runs the cases whose name contains `filter`; gives the table.
pub(crate) fn run(kinds: &[Kind], filter: &str, quick: bool, dir: &Path) -> io::Result<String> {
    let mut rows = Vec::new();
    for case in CASES.iter().filter(|case| case.name.contains(filter)) {
        for &patience in case.patience {
            for kind in kinds.iter().filter(|kind| !case.alone || **kind == Kind::Bufproxy) {
                // Long enough that the first clients have left when it ends.
                let seconds = if quick { 5.0_f64 } else { 10.0 }.max(1.5 * patience);
                rows.push(one(*kind, case, patience, seconds, dir)?);
            }
        }
    }
    let columns = [
        "four workers",
        "clients leave after, s",
        "proxy",
        "answered in time, of capacity",
        "p50 of them, ms",
        "done by the app",
        "next answer after the load, s",
    ];
    Ok(markdown(&columns.map(String::from), &rows))
}

fn one(
    kind: Kind,
    case: &Case,
    patience: f64,
    seconds: f64,
    dir: &Path,
) -> io::Result<Vec<String>> {
    let dir = tempfile::Builder::new().prefix("overload").tempdir_in(dir)?;
    let socket = dir.path().join("app.sock");
    let done = workers(&socket, case.work)?;
    let proxy = Proxy::start(kind, &socket, Upstream::ConnectionPerRequest, "4", &[], dir.path())?;
    let capacity = WORKERS as f64 / case.work.mean();
    let count = (capacity * case.times * seconds) as u32;
    let gap = Duration::from_secs(1).div_f64(capacity * case.times);
    let leave_after = Duration::from_secs_f64(patience);
    let (mut answered, recovery) = block_on(async {
        let answered = Rc::new(RefCell::new(Vec::new()));
        let load = Instant::now();
        let end = load + Duration::from_secs_f64(seconds);
        for n in 0..count {
            sleep_until((load + gap * n).into()).await;
            let (mut client, answered) = (Client::new(proxy.address), answered.clone());
            spawn_local(async move {
                let begun = Instant::now();
                let answer = timeout(leave_after, client.exchange(&load::get("/"))).await;
                if let Ok(Ok(())) = answer
                    && Instant::now() <= end
                {
                    answered.borrow_mut().push(begun.elapsed());
                }
            });
        }
        // The last ones leave.
        sleep_until((Instant::now() + leave_after).into()).await;
        let after = Instant::now();
        let mut client = Client::new(proxy.address);
        let next = timeout(RECOVERY, client.exchange(&load::get("/"))).await;
        Ok((answered.take(), next.is_ok_and(|next| next.is_ok()).then(|| after.elapsed())))
    })?;
    answered.sort_unstable();
    let part = answered.len() as f64 / (capacity * seconds);
    let p50 = answered.get(answered.len() / 2).map(|time| time.as_secs_f64() * 1e3);
    let row = vec![
        case.name.to_string(),
        format!("{patience}"),
        kind.name().to_string(),
        format!("{part:.2}"),
        p50.map_or("–".into(), figure),
        done.load(Relaxed).to_string(),
        recovery.map_or("over 30".into(), |time| figure(time.as_secs_f64())),
    ];
    eprintln!("{row:?}");
    Ok(row)
}

/// Sync workers on one listener: each takes a connection, works, answers and closes. Counts what they
/// have done.
fn workers(socket: &Path, work: Work) -> io::Result<Arc<AtomicUsize>> {
    let listener = Arc::new(UnixListener::bind(socket)?);
    let done = Arc::new(AtomicUsize::new(0));
    // The same sequence for each proxy.
    let random = Arc::new(Mutex::new(fastrand::Rng::with_seed(1)));
    for _ in 0..WORKERS {
        let (listener, done, random) = (listener.clone(), done.clone(), random.clone());
        thread::spawn(move || {
            while let Ok((mut connection, _)) = listener.accept() {
                let mut head = [0; 8192];
                if connection.read(&mut head).is_ok_and(|read| read > 0) {
                    let time = work.one(&mut random.lock().unwrap_or_else(PoisonError::into_inner));
                    thread::sleep(time);
                    done.fetch_add(1, Relaxed);
                    // The client may have left.
                    let _ = connection.write_all(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
                    );
                }
            }
        });
    }
    Ok(done)
}
