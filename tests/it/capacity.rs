//! docs/capacity.md in a simulation: slow clients on real spools and budgets, by a clock of its own.
//! Against it stands what the page says by Little's law.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bufproxy::spool::{Budget, MAX_PUSH, Spool, SpoolLimits};

use crate::support::repository;

/// What a client's socket takes at once (`TCP_NOTSENT_LOWAT`).
const KERNEL: u64 = 64 * 1024;
const STEP: f64 = 0.5;
/// Virtual seconds that are measured, once the first clients have gone.
const MEASURED: f64 = 20.0;

struct Site {
    /// Slow responses a second; bytes of each; bytes a second that its client takes.
    rate: f64,
    body: u64,
    speed: f64,
}

/// Means over the measured time, the most for memory.
#[derive(Debug, Default)]
struct Seen {
    clients: f64,
    spooled: f64,
    files: f64,
    most_memory: u64,
    most_descriptors: u64,
}

impl Site {
    fn clients(&self) -> f64 {
        self.rate * self.body as f64 / self.speed
    }

    /// A body is there whole when it comes and not at all when its client goes.
    fn spooled(&self) -> f64 {
        let body = (self.body - KERNEL) as f64;
        self.rate * body / self.speed * body / 2.0
    }
}

async fn run(site: &Site, memory: u64, seed: u64) -> Seen {
    let dir = tempfile::tempdir().unwrap();
    let budget = Budget::new(memory, 1 << 30, dir.path().to_owned());
    let limits = SpoolLimits { memory: 256 * 1024, disk: 256 << 20, replay: false };
    let mut random = fastrand::Rng::with_seed(seed);
    let mut clients: Vec<(Spool, f64)> = Vec::new();
    let (mut seen, mut steps, mut now, mut next) = (Seen::default(), 0.0, 0.0, 0.0);
    let begins = 1.5 * site.body as f64 / site.speed;
    while now < begins + MEASURED {
        while next <= now {
            next += -(1.0 - random.f64()).ln() / site.rate;
            clients.push((respond(&budget, limits, site.body - KERNEL).await, 0.0));
        }
        for (spool, taken) in &mut clients {
            *taken += site.speed * STEP;
            // The kernel is filled again from the spool.
            let mut wanted = (*taken as u64).min(spool.len()) - (spool.len() - spool.unread());
            while wanted > 0 {
                let took = poll_fn(|cx: &mut Context<'_>| {
                    let data = std::task::ready!(spool.poll_data(cx, wanted as usize)).unwrap();
                    Poll::Ready(data.len().min(wanted as usize))
                });
                let took = took.await;
                spool.consume(took);
                wanted -= took as u64;
            }
        }
        clients.retain(|(_, taken)| *taken < site.body as f64);
        if now >= begins {
            let (memory, disk) = (budget.memory_used(), budget.disk_used());
            let unread: u64 = clients.iter().map(|(spool, _)| spool.unread()).sum();
            assert!(memory + disk + 4096 * clients.len() as u64 >= unread, "it is somewhere");
            steps += 1.0;
            seen.clients += clients.len() as f64;
            seen.spooled += unread as f64;
            seen.files += budget.files_open() as f64;
            seen.most_memory = seen.most_memory.max(memory);
            seen.most_descriptors =
                seen.most_descriptors.max(clients.len() as u64 + budget.files_open());
        }
        now += STEP;
    }
    for mean in [&mut seen.clients, &mut seen.spooled, &mut seen.files] {
        *mean /= steps;
    }
    seen
}

/// The app's response, taken off its worker at once.
async fn respond(budget: &Arc<Budget>, limits: SpoolLimits, bytes: u64) -> Spool {
    let mut spool = Spool::new(budget, limits);
    let piece = vec![0; MAX_PUSH];
    while spool.len() < bytes {
        poll_fn(|cx| spool.poll_ready(cx)).await.unwrap();
        spool.push(&piece[..MAX_PUSH.min((bytes - spool.len()) as usize)]);
    }
    spool
}

#[test]
fn slow_clients_take_what_the_page_on_capacity_says() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (site, memory) in [
        (Site { rate: 5.0, body: 500_000, speed: 100_000.0 }, 32 << 20),
        (Site { rate: 5.0, body: 500_000, speed: 20_000.0 }, 32 << 20),
        (Site { rate: 5.0, body: 500_000, speed: 20_000.0 }, 4 << 20),
    ] {
        let Site { rate, body, speed } = site;
        let seen = runtime.block_on(run(&site, memory, 1));
        let said = format!(
            "{rate}/s of {body} bytes at {speed}/s, memory {memory}: {} clients, {} bytes; {seen:?}",
            site.clients(),
            site.spooled()
        );
        println!("{said}");
        let near = |mean: f64, formula: f64| (mean / formula - 1.0).abs() < 0.25;
        assert!(near(seen.clients, site.clients()), "{said}");
        assert!(near(seen.spooled, site.spooled()), "{said}");
        assert!(seen.most_memory <= memory, "{said}");
        assert!(seen.most_descriptors as f64 <= 2.0 * 1.5 * site.clients(), "{said}");
    }
}

#[test]
fn formula_of_the_page_bounds_what_was_measured() {
    let read = |page: &str| std::fs::read_to_string(repository().join("docs").join(page)).unwrap();
    let page = read("capacity.md");
    let formula = page.lines().find(|line| line.ends_with("+ memory + 8192")).unwrap();
    let each = |name: &str| -> f64 {
        let term =
            formula.split(" + ").find_map(|term| term.strip_suffix(name)?.strip_suffix(" × "));
        term.unwrap_or_else(|| panic!("no {name} in {formula}")).parse().unwrap()
    };
    let mut rows = 0;
    for row in read("benchmarks/memory.tsv").lines().filter(|row| !row.starts_with('–')) {
        let Some((what, rest)) = row.split_once('\t') else { continue };
        let Ok(measured) = rest.split('\t').next().unwrap().parse::<f64>() else { continue };
        let kind = match what {
            what if what.contains("idle") => "idle",
            what if what.contains("heads") => "heads",
            _ => "bodies",
        };
        assert!(measured <= each(kind), "{what}: {measured} KiB, {formula}");
        rows += 1;
    }
    assert_eq!(rows, 8);
    // A quarter of each kind in a cgroup, of which `memory` is a sixteenth. Page cache is no part of it.
    let mut rows = 0;
    for row in page.lines().filter_map(|line| line.strip_prefix("| bufproxy, ")) {
        let Some((case, figures)) = row.split_once(" MB |") else { continue };
        let (stalled, limit) = case.split_once(" in ").unwrap();
        let [stalled, limit] = [stalled, limit].map(|number| number.parse::<f64>().unwrap());
        let most: f64 = figures.split('|').nth(5).unwrap().trim().parse().unwrap();
        let kinds = each("idle") + each("heads") + 2.0 * each("bodies");
        let bound = (5120.0 + stalled / 4.0 * kinds) / 1024.0 + (limit / 16.0).min(32.0);
        assert!(most <= bound, "{row}: {bound} MiB by {formula}");
        rows += 1;
    }
    assert_eq!(rows, 2);
}
