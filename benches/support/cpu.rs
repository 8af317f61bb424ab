//! CPU per request: user and system time of the proxy's processes over a fixed number of requests,
//! 32 kept-alive clients in a closed loop. The proxies take turns, case by case and round by round,
//! so that what else happens on the machine hits all of them.

use std::io;
use std::path::Path;
use std::rc::Rc;

use super::app::{App, Upstream};
use super::load::{self, block_on, closed_loop};
use super::proxies::{Kind, Proxy};
use super::table::{figure, markdown, median};

const CLIENTS: usize = 32;

struct Case {
    name: &'static str,
    upstream: Upstream,
    request: fn() -> Vec<u8>,
    /// Of one round: about a tenth of a second of nginx's time and more.
    requests: usize,
}

const CASES: [Case; 11] = {
    use Upstream::{ConnectionPerRequest as Close, KeepAlive as Keep};
    const fn case(
        name: &'static str,
        upstream: Upstream,
        request: fn() -> Vec<u8>,
        requests: usize,
    ) -> Case {
        Case { name, upstream, request, requests }
    }
    [
        case("100 B, keep-alive", Keep, || load::get("/100"), 7_000),
        case("100 B, connection per request", Close, || load::get("/100"), 5_000),
        case("100 B after 2 ms, connection per request", Close, || load::get("/100?2"), 5_000),
        case("12 KB, keep-alive", Keep, || load::get("/12288"), 5_000),
        case("12 KB, connection per request", Close, || load::get("/12288"), 4_000),
        case("100 KB, keep-alive", Keep, || load::get("/102400"), 1_500),
        case("100 KB, connection per request", Close, || load::get("/102400"), 1_500),
        case("1 MiB, keep-alive", Keep, || load::get("/1048576"), 250),
        case("1 MiB, connection per request", Close, || load::get("/1048576"), 250),
        case("POST of 64 KB, keep-alive", Keep, upload, 1_500),
        case("POST of 64 KB, connection per request", Close, upload, 1_500),
    ]
};

fn upload() -> Vec<u8> {
    const SIZE: usize = 64 * 1024;
    load::post("/100", SIZE, SIZE)
}

/// Measures the cases whose name contains `filter`; gives the table.
pub(crate) fn run(kinds: &[Kind], filter: &str, rounds: usize, dir: &Path) -> io::Result<String> {
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(filter)).collect();
    let apps =
        [App::start(dir, Upstream::ConnectionPerRequest)?, App::start(dir, Upstream::KeepAlive)?];
    // All run from the start: an idle proxy costs nothing.
    let mut proxies = Vec::new();
    for app in &apps {
        for kind in kinds {
            proxies.push((
                app.upstream,
                Proxy::start(*kind, &app.socket, app.upstream, "off", &[], dir)?,
            ));
        }
    }
    let mut micros = vec![vec![Vec::new(); kinds.len()]; cases.len()];
    for round in 0..rounds {
        for (case, micros) in cases.iter().zip(&mut micros) {
            for turn in 0..kinds.len() {
                let index = (round + turn) % kinds.len();
                let proxy = proxies.iter().find(|(upstream, proxy)| {
                    *upstream == case.upstream && proxy.kind == kinds[index]
                });
                let Some((_, proxy)) = proxy else { continue };
                let spent = measure(case, proxy).map_err(|error| {
                    io::Error::other(format!("{}: {}: {error}", proxy.kind.name(), case.name))
                })?;
                eprintln!("round {round}: {}: {}: {spent:.1} us", case.name, proxy.kind.name());
                micros[index].push(spent);
            }
        }
    }
    Ok(table(kinds, &cases, &micros))
}

/// Microseconds of CPU per request.
fn measure(case: &Case, proxy: &Proxy) -> io::Result<f64> {
    let request = (case.request)().into();
    block_on(async move {
        let clients = (0..CLIENTS).map(|_| proxy.client()).collect();
        let clients = closed_loop(clients, Rc::clone(&request), 4 * CLIENTS).await?;
        let before = proxy.process.cpu();
        let clients = closed_loop(clients, request, case.requests).await?;
        let spent = proxy.process.cpu().since(before);
        drop(clients);
        Ok(spent.as_secs_f64() * 1e6 / case.requests as f64)
    })
}

/// Medians; behind each of the others in brackets what part of it bufproxy takes.
fn table(kinds: &[Kind], cases: &[&Case], micros: &[Vec<Vec<f64>>]) -> String {
    let ours = kinds.iter().position(|kind| *kind == Kind::Bufproxy);
    let mut columns = vec!["CPU per request, µs".to_string()];
    columns.extend(kinds.iter().map(|kind| kind.name().to_string()));
    let row = |(case, micros): (&&Case, &Vec<Vec<f64>>)| {
        let ours = ours.map(|index| median(&micros[index]));
        let mut row = vec![case.name.to_string()];
        for (kind, values) in kinds.iter().zip(micros) {
            let theirs = median(values);
            row.push(match ours {
                Some(ours) if *kind != Kind::Bufproxy => {
                    format!("{} ({:.2})", figure(theirs), ours / theirs)
                }
                _ => figure(theirs),
            });
        }
        row
    };
    markdown(&columns, &cases.iter().zip(micros).map(row).collect::<Vec<_>>())
}
