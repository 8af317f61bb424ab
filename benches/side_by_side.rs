//! `cargo bench`: bufproxy beside nginx, HAProxy, a raw relay and a proxy on hyper, on this machine.
//! What is measured and how to read it: benches/README.md.

use std::env;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

mod reference;
mod relay;
mod support;

use support::proxies::Kind;
use support::rescue::Front;
use support::{
    capacity, churn, cpu, memory, overload, process, rescue, restart, results, tail, threads,
};

const USAGE: &str = "\
usage: cargo bench -- [--quick] [--case TEXT] [--proxy TEXT]... [PART]...
  PART          cpu, memory, rescue, capacity, overload, restart, threads, tail, pauses; without any, all
  churn         only when it is named: 2000000 connections, or --connections N; --quick: 60 s of them
  plots         draw the plots and write the tables of the documentation, after the other parts
  --quick       fewer rounds, fewer clients, shorter
  --case TEXT   only cases whose name contains TEXT
  --proxy TEXT  only proxies whose name contains TEXT
  --also PROGRAM  in the cpu, memory and capacity parts, another build of bufproxy beside this one";

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    match arguments.next().as_ref().and_then(|first| first.to_str()) {
        Some("exec") => process::enter(arguments),
        Some(program @ ("relay" | "reference")) => done(proxy(program, arguments)),
        _ => done(bench(env::args().skip(1))),
    }
}

fn done(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// This binary as one of the programs that it measures.
fn proxy(program: &str, arguments: impl Iterator<Item = std::ffi::OsString>) -> io::Result<()> {
    let arguments: Vec<_> = arguments.collect();
    let [port, socket, rest @ ..] = &arguments[..] else { return Err(io::Error::other(USAGE)) };
    let port = port.to_string_lossy().parse().map_err(io::Error::other)?;
    match (program, rest) {
        ("relay", [upstream]) => relay::run(port, socket.into(), upstream == "keep"),
        ("reference", [log, upstream]) => {
            reference::run(port, socket.into(), log.as_ref(), upstream == "keep")
        }
        _ => Err(io::Error::other(USAGE)),
    }
}

const CPU: [Kind; 6] =
    [Kind::Bufproxy, Kind::Nginx, Kind::NginxLarge, Kind::Haproxy, Kind::Hyper, Kind::Relay];
const MEMORY: [Kind; 4] = [Kind::Bufproxy, Kind::Nginx, Kind::Haproxy, Kind::Hyper];
const CAPACITY: [Kind; 2] = [Kind::Bufproxy, Kind::Nginx];
const OVERLOAD: [Kind; 3] = [Kind::Bufproxy, Kind::Nginx, Kind::Haproxy];
const THREADS: [Kind; 2] = [Kind::Bufproxy, Kind::Nginx];
const TAIL: [Kind; 3] = [Kind::Bufproxy, Kind::Nginx, Kind::Haproxy];
const RESCUE: [Front; 6] = [
    Front::Nothing,
    Front::Proxy(Kind::Bufproxy),
    Front::Proxy(Kind::Nginx),
    Front::Proxy(Kind::Haproxy),
    Front::Proxy(Kind::Caddy),
    Front::Waitress,
];

#[derive(Debug, Default)]
struct Options {
    quick: bool,
    case: String,
    proxies: Vec<String>,
    also: Vec<Kind>,
    parts: Vec<String>,
    connections: Option<u64>,
    plots: bool,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> io::Result<Options> {
        let mut options = Options::default();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| io::Error::other(USAGE));
            match argument.as_str() {
                // What `cargo bench` passes.
                "--bench" => {}
                "--quick" => options.quick = true,
                "--case" => options.case = value()?,
                "--proxy" => options.proxies.push(value()?.to_lowercase()),
                "--also" => options.also.push(Kind::Also(value()?.leak())),
                "--connections" => {
                    options.connections = Some(value()?.parse().map_err(io::Error::other)?);
                }
                "plots" => options.plots = true,
                // Not plotted.
                "threads" | "tail" | "pauses" | "churn" => options.parts.push(argument),
                part if results::PARTS.contains(&part) => options.parts.push(argument),
                _ => return Err(io::Error::other(USAGE)),
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() && !self.plots || self.parts.iter().any(|wanted| wanted == part)
    }

    /// Is asked for, and here. What is not here is said, with how to get it.
    fn selects(&self, name: &str, kind: Option<Kind>) -> bool {
        let name = name.to_lowercase();
        let wanted = self.proxies.is_empty() || self.proxies.iter().any(|part| name.contains(part));
        wanted
            && kind.is_none_or(|kind| {
                kind.version().map_err(|advice| eprintln!("left out: {advice}")).is_ok()
            })
    }

    fn select(&self, kinds: &[Kind]) -> Vec<Kind> {
        kinds.iter().copied().filter(|kind| self.selects(kind.name(), Some(*kind))).collect()
    }
}

fn bench(arguments: impl Iterator<Item = String>) -> io::Result<()> {
    let mut arguments = arguments.peekable();
    if arguments.peek().is_none() {
        // `cargo test --benches` runs us so: it has been shown that we build.
        println!("{USAGE}");
        return Ok(());
    }
    let options = Options::read(arguments)?;
    if options.plots && options.parts.is_empty() {
        return results::publish();
    }
    let dir = tempfile::tempdir()?;
    let machine = machine()?;
    println!("{machine}\n");
    let show = |part: &str, table: &str| {
        println!("{table}");
        // Of a part of the cases, or a short run, nothing is kept.
        let whole = !options.quick
            && options.case.is_empty()
            && options.proxies.is_empty()
            && options.also.is_empty();
        if whole { results::keep(part, &machine, table) } else { Ok(()) }
    };
    if options.wants("cpu") {
        let rounds = if options.quick { 3 } else { 9 };
        let kinds = [&options.also, &options.select(&CPU)[..]].concat();
        show("cpu", &cpu::run(&kinds, &options.case, rounds, dir.path())?)?;
    }
    if options.wants("memory") {
        let kinds = [&options.also, &options.select(&MEMORY)[..]].concat();
        show("memory", &memory::run(&kinds, &options.case, options.quick, dir.path())?)?;
    }
    if options.wants("rescue") {
        let selected = |front: &Front| match *front {
            Front::Proxy(kind) => options.selects(kind.name(), Some(kind)),
            front => options.selects(front.name(), None),
        };
        let fronts: Vec<_> = RESCUE.into_iter().filter(selected).collect();
        show("rescue", &rescue::run(&fronts, options.quick, dir.path())?)?;
    }
    if options.wants("capacity") {
        let kinds = [&options.also, &options.select(&CAPACITY)[..]].concat();
        show("capacity", &capacity::run(&kinds, &options.case, options.quick, dir.path())?)?;
        println!("{}", capacity::limited(&kinds, &options.case, options.quick, dir.path())?);
    }
    if options.wants("overload") {
        let kinds = options.select(&OVERLOAD);
        show("overload", &overload::run(&kinds, &options.case, options.quick, dir.path())?)?;
    }
    if options.wants("restart") {
        show("restart", &restart::run(&options.select(&OVERLOAD), dir.path())?)?;
    }
    if options.wants("threads") {
        println!("{}", threads::run(&options.select(&THREADS), options.quick, dir.path())?);
    }
    if options.wants("tail") {
        println!("{}", tail::run(&options.select(&TAIL), options.quick, dir.path())?);
    }
    if options.wants("pauses") {
        println!("{}", tail::pauses(&options.case, options.quick, dir.path())?);
    }
    if options.plots {
        results::publish()?;
    }
    if options.parts.iter().any(|part| part == "churn") {
        let connections = options.connections.unwrap_or(2_000_000);
        let limit = options.quick.then_some(Duration::from_secs(60));
        println!("{}", churn::run(connections, limit, dir.path())?);
    }
    Ok(())
}

/// Where and with what: one paragraph.
fn machine() -> io::Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name\t: "));
    let versions = [Kind::Bufproxy, Kind::Nginx, Kind::Haproxy, Kind::Caddy]
        .into_iter()
        .flat_map(|kind| kind.version().map(|version| format!("{} {version}", kind.name())))
        .chain([rescue::versions()?]);
    Ok(format!(
        "{}, {} cores of {}, Linux {}: {}.",
        httpdate::fmt_http_date(SystemTime::now()),
        std::thread::available_parallelism()?,
        model.unwrap_or("an unknown model"),
        std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim_end(),
        versions.collect::<Vec<_>>().join(", "),
    ))
}
