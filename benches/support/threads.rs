//! Two threads or workers: requests a second and CPU per request, with few connections, as a router
//! keeps them, and with many.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use super::app::{App, Upstream};
use super::load::{self, block_on, closed_loop};
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown, median};

const THREADS: usize = 2;
const CONNECTIONS: [usize; 3] = [32, 256, 1024];

/// Gives the table.
pub(crate) fn run(kinds: &[Kind], quick: bool, dir: &Path) -> io::Result<String> {
    let (rounds, requests) = if quick { (3, 5_000) } else { (9, 15_000) };
    let mut rows = Vec::new();
    for upstream in [Upstream::KeepAlive, Upstream::ConnectionPerRequest] {
        let app = App::start(dir, upstream)?;
        let start = |kind: &Kind| Proxy::with_threads(*kind, &app.socket, upstream, THREADS, dir);
        let proxies = kinds.iter().map(start).collect::<io::Result<Vec<_>>>()?;
        for connections in CONNECTIONS {
            // They take turns, round by round.
            let mut measured = vec![(Vec::new(), Vec::new()); proxies.len()];
            for _ in 0..rounds {
                for (proxy, (rates, micros)) in proxies.iter().zip(&mut measured) {
                    let (rate, cpu) = measure(proxy, connections, requests)?;
                    rates.push(rate);
                    micros.push(cpu);
                }
            }
            for (proxy, (rates, micros)) in proxies.iter().zip(measured) {
                rows.push(vec![
                    format!("{}, {}", proxy.kind.name(), upstream.name()),
                    connections.to_string(),
                    figure(median(&rates)),
                    figure(median(&micros)),
                ]);
            }
        }
    }
    let columns = ["two threads, 100 B", "connections", "requests/s", "CPU per request, µs"];
    Ok(markdown(&columns.map(String::from), &rows))
}

/// Requests a second, and microseconds of CPU per request.
fn measure(proxy: &Proxy, connections: usize, requests: usize) -> io::Result<(f64, f64)> {
    let request: Rc<[u8]> = load::get("/100").into();
    block_on(async move {
        let clients = (0..connections).map(|_| proxy.client()).collect();
        let clients = closed_loop(clients, request.clone(), 2 * connections).await?;
        let (before, begun) = (proxy.process.cpu(), Instant::now());
        closed_loop(clients, request, requests).await?;
        let (time, spent) = (begun.elapsed(), proxy.process.cpu().since(before));
        let requests = requests as f64;
        Ok((requests / time.as_secs_f64(), spent.as_secs_f64() * 1e6 / requests))
    })
}
