//! Capacity: 5,000 clients that stall in each of the four ways a client can, all at once, and what
//! that does to eight fast ones and to the proxy's memory. bufproxy has the memory budget that it
//! gives itself in a container of 64 MB; then both are in one, where that can be had, and 10,000 in
//! one of 512 MB. Beside each there is another like it, without stalled clients: the fast ones ask both
//! by turns, a second each, so that what the machine does meanwhile is the same for both.

use std::cell::Cell;
use std::io::{self, ErrorKind::WouldBlock};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::spawn_local;
use tokio::time::sleep;

use super::app::{App, Upstream};
use super::load::{self, Client, block_on};
use super::memory::{self, MEGABYTE};
use super::process::Cgroup;
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown, median};

/// In a container of 64 MB.
const STALLED: usize = 5000;
/// Cgroups: their limits, and how many stall.
const LIMITED: [(u64, usize); 2] = [(64, STALLED), (512, 10_000)];
const FAST: usize = 8;
/// Room for 5 GB of bodies; more clients than a third of the descriptors, and no idle one ended above
/// nine tenths of them; and time for the windows: whoever stalls is let do so for as long as nginx does.
const OPTIONS: [&str; 10] = [
    "--spool-max",
    "16g",
    "--max-connections",
    "12000",
    "--header-timeout",
    "60s",
    "--body-timeout",
    "60s",
    "--body-min-rate",
    "off",
];
const OF_LIMIT: [&str; 2] = ["--memory", "4m"];
const SETTLE: Duration = Duration::from_secs(4);
const WINDOW: Duration = Duration::from_secs(1);
const SAMPLE: Duration = Duration::from_millis(50);

/// Gives the table.
pub(crate) fn run(kinds: &[Kind], filter: &str, quick: bool, dir: &Path) -> io::Result<String> {
    if !"5000 stalled".contains(filter) {
        return Ok(String::new());
    }
    let app = App::start(dir, Upstream::ConnectionPerRequest)?;
    let mut rows = Vec::new();
    for kind in kinds {
        let options = [&OPTIONS[..], &OF_LIMIT].concat();
        let start = || Proxy::start(*kind, &app.socket, app.upstream, "off", &options, dir);
        let (proxy, other) = (start()?, start()?);
        let (mut row, most) = block_on(one(&proxy, &other, &app, STALLED, windows(quick), None))?;
        row.push(figure(most.resident as f64 / MEGABYTE as f64));
        eprintln!("{row:?}");
        rows.push(row);
    }
    let columns = [
        "5,000 stalled clients",
        "fast requests/s alone",
        "while they come",
        "with them",
        "kept",
        "fast failed",
        "most memory, MiB",
    ];
    Ok(markdown(&columns.map(String::from), &rows))
}

/// The same in cgroups, with no budget set. Gives the table; empty where there can be no cgroup.
pub(crate) fn limited(kinds: &[Kind], filter: &str, quick: bool, dir: &Path) -> io::Result<String> {
    let app = App::start(dir, Upstream::ConnectionPerRequest)?;
    let mut rows = Vec::new();
    for (megabytes, stalled) in LIMITED {
        let case = format!("{stalled} in {megabytes} MB");
        for kind in kinds.iter().filter(|_| case.contains(filter)) {
            let limited = || Cgroup::limited(megabytes * MEGABYTE as u64);
            let start = || Proxy::start(*kind, &app.socket, app.upstream, "off", &OPTIONS, dir);
            let cgroup = match limited() {
                Ok(cgroup) => cgroup,
                Err(error) => {
                    eprintln!("left out: a cgroup cannot be made here: {error}");
                    return Ok(String::new());
                }
            };
            let proxy = start()?;
            let (_limit, other) = (limited()?, start()?);
            let ran = block_on(one(&proxy, &other, &app, stalled, windows(quick), Some(&cgroup)));
            drop((proxy, other));
            let killed = cgroup.killed();
            let mut row = match ran {
                Ok((mut row, most)) => {
                    let bytes =
                        [most.resident, most.cached, most.kernel, cgroup.most(), most.queued];
                    row.extend(bytes.map(|bytes| figure(bytes as f64 / MEGABYTE as f64)));
                    row
                }
                // Whoever is killed ends it.
                Err(error) if killed > 0 || *kind != Kind::Bufproxy => {
                    let error = error.to_string();
                    [vec![kind.name().into(), error], vec!["–".into(); 9]].concat()
                }
                Err(error) => return Err(error),
            };
            row[0] = format!("{}, {case}", row[0]);
            row.push(killed.to_string());
            eprintln!("{row:?}");
            rows.push(row);
        }
    }
    let columns = [
        "the same in a cgroup",
        "fast requests/s alone",
        "while they come",
        "with them",
        "kept",
        "fast failed",
        "most memory, MiB",
        "most page cache",
        "most in the kernel",
        "most of the cgroup",
        "in queues to clients",
        "killed for it",
    ];
    Ok(markdown(&columns.map(String::from), &rows))
}

/// Of a second each, beside the stalled clients and without.
const fn windows(quick: bool) -> usize {
    if quick { 3 } else { 10 }
}

/// The most of each, in bytes.
#[derive(Clone, Copy, Default)]
struct Most {
    resident: u64,
    /// Of a cgroup.
    cached: u64,
    kernel: u64,
    /// In the send queues to the stalled ones, which the cgroup does not count.
    queued: u64,
}

async fn one(
    proxy: &Proxy,
    other: &Proxy,
    app: &App,
    stalled: usize,
    windows: usize,
    cgroup: Option<&Cgroup>,
) -> io::Result<(Vec<String>, Most)> {
    let most = Rc::new(Cell::new(Most::default()));
    let watch = async {
        loop {
            let Most { resident, cached, kernel, queued } = most.get();
            most.set(Most {
                resident: resident.max(proxy.process.resident()),
                cached: cached.max(cgroup.map_or(0, Cgroup::cached)),
                kernel: kernel.max(cgroup.map_or(0, Cgroup::kernel)),
                queued,
            });
            sleep(SAMPLE).await;
        }
    };
    let work = async {
        // What is loaded or allocated at the first requests.
        for proxy in [proxy, other] {
            fast(proxy, passed()).await?;
        }
        let part = stalled / 4;
        let (get, post) = (load::get("/1048576"), load::post("/100", 2 * MEGABYTE, MEGABYTE));
        let head = load::get("/100");
        let half = head[..head.len() / 2].to_vec();
        let come = async {
            let readers = memory::partial(proxy, app, part, get).await?;
            let uploads = memory::partial(proxy, app, part, post).await?;
            let halves = memory::partial(proxy, app, part, half).await?;
            Ok((readers, uploads, halves, memory::idle(proxy, part).await?))
        };
        let begun = Instant::now();
        let (clients, coming, mut failed) = fast(proxy, come).await?;
        let coming = format!("{} for {:.0} s", figure(coming), begun.elapsed().as_secs_f64());
        sleep(SETTLE).await;
        let (mut alone, mut with) = (Vec::new(), Vec::new());
        for _ in 0..windows {
            let ((), rate, lost) = fast(proxy, passed()).await?;
            with.push(rate);
            failed += lost;
            alone.push(fast(other, passed()).await?.1);
        }
        let queued = memory::send_queues(proxy.address.port())?;
        most.set(Most { queued, ..most.get() });
        // Of readers the kernel has bytes that wait.
        let (_readers, uploads, halves, idle) = clients;
        let others = uploads.iter().chain(&halves).chain(&idle);
        let ended = others.filter(
            |client| !matches!(client.try_read(&mut [0]), Err(error) if error.kind() == WouldBlock),
        );
        let ended = ended.count();
        if ended > 0 {
            return Err(io::Error::other(format!("{ended} of the stalled clients were ended")));
        }
        Ok((median(&alone), median(&with), coming, failed))
    };
    let (alone, with, coming, failed) = tokio::select! {
        result = work => result?,
        () = watch => unreachable!("it does not end"),
    };
    let row = vec![
        proxy.kind.name().into(),
        figure(alone),
        coming,
        figure(with),
        format!("{:.3}", with / alone),
        failed.to_string(),
    ];
    Ok((row, most.get()))
}

async fn passed() -> io::Result<()> {
    sleep(WINDOW).await;
    Ok(())
}

/// What `meanwhile` gives; requests per second of eight clients in a closed loop as long as it takes, and
/// how many failed.
async fn fast<T>(
    proxy: &Proxy,
    meanwhile: impl Future<Output = io::Result<T>>,
) -> io::Result<(T, f64, usize)> {
    let request: Rc<[u8]> = load::get("/12288").into();
    let (ended, begun) = (Rc::new(Cell::new(false)), Instant::now());
    let clients: Vec<_> = (0..FAST)
        .map(|_| {
            let (mut client, request): (Client, _) = (proxy.client(), request.clone());
            let ended = ended.clone();
            spawn_local(async move {
                let (mut done, mut failed) = (0, 0);
                while !ended.get() {
                    match client.exchange(&request).await {
                        Ok(()) => done += 1,
                        Err(_) => failed += 1,
                    }
                }
                (done, failed)
            })
        })
        .collect();
    let result = meanwhile.await;
    ended.set(true);
    let (mut done, mut failed) = (0, 0);
    for client in clients {
        let (more, lost) = client.await.map_err(io::Error::other)?;
        done += more;
        failed += lost;
    }
    Ok((result?, f64::from(done) / begun.elapsed().as_secs_f64(), failed))
}
