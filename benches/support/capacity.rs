//! Capacity: 5,000 clients that stall in each of the four ways a client can, all at once, and what
//! that does to eight fast ones and to the proxy's memory. bufproxy has the memory budget that it
//! gives itself in a container of 64 MB; then both are in one, where that can be had.

use std::cell::Cell;
use std::io;
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
use super::table::{figure, markdown};

const STALLED: usize = 5000;
const FAST: usize = 8;
const LIMIT: u64 = 64 * MEGABYTE as u64;
/// Their bodies are 2.5 GB.
const ROOM: [&str; 2] = ["--spool-max", "8g"];
const OF_LIMIT: [&str; 2] = ["--memory", "4m"];
const SETTLE: Duration = Duration::from_secs(4);
const SAMPLE: Duration = Duration::from_millis(50);

/// Gives the table.
pub(crate) fn run(kinds: &[Kind], quick: bool, dir: &Path) -> io::Result<String> {
    let app = App::start(dir, Upstream::ConnectionPerRequest)?;
    let window = Duration::from_secs(if quick { 1 } else { 4 });
    let mut rows = Vec::new();
    for kind in kinds {
        let options = [ROOM, OF_LIMIT].concat();
        let proxy = Proxy::start(*kind, &app.socket, app.upstream, "off", &options, dir)?;
        let (mut row, most) = block_on(one(&proxy, &app, window, None))?;
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

/// The same in a cgroup of 64 MB, with no budget set. Gives the table; empty where there can be no cgroup.
pub(crate) fn limited(kinds: &[Kind], quick: bool, dir: &Path) -> io::Result<String> {
    let app = App::start(dir, Upstream::ConnectionPerRequest)?;
    let window = Duration::from_secs(if quick { 1 } else { 4 });
    let mut rows = Vec::new();
    for kind in kinds {
        let cgroup = match Cgroup::limited(LIMIT) {
            Ok(cgroup) => cgroup,
            Err(error) => {
                eprintln!("left out: a cgroup of 64 MB cannot be made here: {error}");
                return Ok(String::new());
            }
        };
        let proxy = Proxy::start(*kind, &app.socket, app.upstream, "off", &ROOM, dir)?;
        let ran = block_on(one(&proxy, &app, window, Some(&cgroup)));
        drop(proxy);
        let killed = cgroup.killed();
        let mut row = match ran {
            Ok((mut row, most)) => {
                let bytes = [most.resident, most.cached, most.kernel];
                row.extend(bytes.map(|bytes| figure(bytes as f64 / MEGABYTE as f64)));
                row
            }
            // Whoever is killed ends it.
            Err(error) if killed > 0 || *kind != Kind::Bufproxy => {
                let error = error.to_string();
                [vec![kind.name().into(), error], vec!["–".into(); 7]].concat()
            }
            Err(error) => return Err(error),
        };
        row.push(killed.to_string());
        eprintln!("{row:?}");
        rows.push(row);
    }
    let columns = [
        "the same in a cgroup of 64 MB",
        "fast requests/s alone",
        "while they come",
        "with them",
        "kept",
        "fast failed",
        "most memory, MiB",
        "most page cache",
        "most in the kernel",
        "killed for it",
    ];
    Ok(markdown(&columns.map(String::from), &rows))
}

/// The most of each, in bytes.
#[derive(Clone, Copy, Default)]
struct Most {
    resident: u64,
    /// Of a cgroup.
    cached: u64,
    kernel: u64,
}

async fn one(
    proxy: &Proxy,
    app: &App,
    window: Duration,
    cgroup: Option<&Cgroup>,
) -> io::Result<(Vec<String>, Most)> {
    let most = Rc::new(Cell::new(Most::default()));
    let watch = async {
        loop {
            let Most { resident, cached, kernel } = most.get();
            most.set(Most {
                resident: resident.max(proxy.process.resident()),
                cached: cached.max(cgroup.map_or(0, Cgroup::cached)),
                kernel: kernel.max(cgroup.map_or(0, Cgroup::kernel)),
            });
            sleep(SAMPLE).await;
        }
    };
    let work = async {
        let ((), before, _) = fast(proxy, passed(window)).await?;
        let part = STALLED / 4;
        let (get, post) = (load::get("/1048576"), load::post("/100", 2 * MEGABYTE, MEGABYTE));
        let head = load::get("/100");
        let come = async {
            let readers = memory::partial(proxy, app, part, get).await?;
            let uploads = memory::partial(proxy, app, part, post).await?;
            Ok((readers, uploads, memory::idle(proxy, part).await?))
        };
        let (stalled, coming, failed) = fast(proxy, come).await?;
        sleep(SETTLE).await;
        // The last ones: after 10 s they are answered 408.
        let halves = memory::partial(proxy, app, part, head[..head.len() / 2].to_vec()).await?;
        let ((), with, failed_then) = fast(proxy, passed(window)).await?;
        drop((stalled, halves));
        sleep(SETTLE).await;
        let ((), after, _) = fast(proxy, passed(window)).await?;
        let alone = f64::midpoint(before, after);
        io::Result::Ok((alone, coming, with, failed + failed_then))
    };
    let (alone, coming, with, failed) = tokio::select! {
        result = work => result?,
        () = watch => unreachable!("it does not end"),
    };
    let row = vec![
        proxy.kind.name().into(),
        figure(alone),
        figure(coming),
        figure(with),
        format!("{:.3}", with / alone),
        failed.to_string(),
    ];
    Ok((row, most.get()))
}

async fn passed(time: Duration) -> io::Result<()> {
    sleep(time).await;
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
