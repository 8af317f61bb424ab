//! Two and four threads or workers: requests a second, CPU per request and how even it is over the
//! threads, with few connections, as a router keeps them, and with many.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::app::{App, Upstream};
use super::load::{self, block_on, closed_loop};
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown, median};

const THREADS: [usize; 2] = [2, 4];
const CONNECTIONS: [usize; 4] = [8, 32, 256, 1024];

/// Gives the table.
pub(crate) fn run(kinds: &[Kind], quick: bool, dir: &Path) -> io::Result<String> {
    let (rounds, requests) = if quick { (3, 5_000) } else { (9, 15_000) };
    let mut rows = Vec::new();
    for (threads, upstream) in THREADS.into_iter().flat_map(|threads| {
        [Upstream::KeepAlive, Upstream::ConnectionPerRequest].map(|upstream| (threads, upstream))
    }) {
        let app = App::start(dir, upstream)?;
        let start = |kind: &Kind| Proxy::with_threads(*kind, &app.socket, upstream, threads, dir);
        let proxies = kinds.iter().map(start).collect::<io::Result<Vec<_>>>()?;
        for connections in CONNECTIONS {
            // They take turns, round by round.
            let mut measured: Vec<_> = proxies.iter().map(|_| Vec::new()).collect();
            for _ in 0..rounds {
                for (proxy, rounds) in proxies.iter().zip(&mut measured) {
                    rounds.push(measure(proxy, threads, connections, requests)?);
                }
            }
            for (proxy, rounds) in proxies.iter().zip(measured) {
                let of = |field: fn(&Round) -> f64| {
                    figure(median(&rounds.iter().map(field).collect::<Vec<_>>()))
                };
                rows.push(vec![
                    format!("{} with {threads}, {}", proxy.kind.name(), upstream.name()),
                    connections.to_string(),
                    of(|round| round.rate),
                    of(|round| round.cpu),
                    of(|round| round.least),
                    of(|round| round.most),
                ]);
            }
        }
    }
    let columns = [
        "threads, 100 B",
        "connections",
        "requests/s",
        "CPU per request, µs",
        "least of a thread, %",
        "most of a thread, %",
    ];
    Ok(markdown(&columns.map(String::from), &rows))
}

struct Round {
    /// Requests a second.
    rate: f64,
    /// Microseconds per request, of all threads.
    cpu: f64,
    /// What the least and the most busy of the event loops had of the CPU time, in percent.
    least: f64,
    most: f64,
}

fn measure(
    proxy: &Proxy,
    threads: usize,
    connections: usize,
    requests: usize,
) -> io::Result<Round> {
    let request: Rc<[u8]> = load::get("/100").into();
    block_on(async move {
        let clients = (0..connections).map(|_| proxy.client()).collect();
        let clients = closed_loop(clients, request.clone(), 2 * connections).await?;
        let (before, each, begun) = (proxy.process.cpu(), proxy.process.threads(), Instant::now());
        closed_loop(clients, request, requests).await?;
        let (time, spent) = (begun.elapsed(), proxy.process.cpu().since(before));
        let mut busy: Vec<_> = (proxy.process.threads().into_iter())
            .map(|(task, time)| time.saturating_sub(each.get(&task).copied().unwrap_or_default()))
            .collect();
        // The loops: no other thread has as much to do as one of them.
        busy.sort_unstable_by(|one, other| other.cmp(one));
        busy.truncate(threads);
        let all: Duration = busy.iter().sum();
        let part = |time: Option<&Duration>| {
            100.0 * time.copied().unwrap_or_default().as_secs_f64() / all.as_secs_f64()
        };
        let requests = requests as f64;
        Ok(Round {
            rate: requests / time.as_secs_f64(),
            cpu: spent.as_secs_f64() * 1e6 / requests,
            least: part(busy.last()),
            most: part(busy.first()),
        })
    })
}
