//! `cargo bench`: bufproxy beside nginx, HAProxy, a raw relay and a proxy on hyper, on this machine.
//! What is measured and how to read it: benches/README.md.

use std::env;
use std::io;
use std::process::ExitCode;

mod reference;
mod relay;
mod support;

use support::proxies::Kind;
use support::rescue::Front;
use support::{cpu, memory, process, rescue};

const USAGE: &str = "\
usage: cargo bench -- [--quick] [--case TEXT] [--proxy TEXT]... [cpu] [memory] [rescue]
  --quick       one round, fewer clients, shorter
  --case TEXT   only cases whose name contains TEXT
  --proxy TEXT  only proxies whose name contains TEXT";

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

struct Options {
    quick: bool,
    case: String,
    proxies: Vec<String>,
    parts: Vec<String>,
}

fn bench(arguments: impl Iterator<Item = String>) -> io::Result<()> {
    let mut options =
        Options { quick: false, case: String::new(), proxies: Vec::new(), parts: Vec::new() };
    let mut asked = false;
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| io::Error::other(USAGE));
        asked = true;
        match argument.as_str() {
            // What `cargo bench` passes.
            "--bench" => {}
            "--quick" => options.quick = true,
            "--case" => options.case = value()?,
            "--proxy" => options.proxies.push(value()?.to_lowercase()),
            "cpu" | "memory" | "rescue" => options.parts.push(argument),
            _ => return Err(io::Error::other(USAGE)),
        }
    }
    if !asked {
        // `cargo test --benches` runs us so: it has been shown that we build.
        println!("{USAGE}");
        return Ok(());
    }
    let wanted = |part: &str| options.parts.is_empty() || options.parts.iter().any(|p| p == part);
    let dir = tempfile::tempdir()?;
    let named = |name: &str| {
        let name = name.to_lowercase();
        options.proxies.is_empty() || options.proxies.iter().any(|text| name.contains(text))
    };
    let select = |kinds: &[Kind]| -> Vec<Kind> {
        let installed =
            |kind: &Kind| kind.version().map_err(|advice| eprintln!("left out: {advice}")).is_ok();
        kinds.iter().copied().filter(|kind| named(kind.name())).filter(installed).collect()
    };
    if wanted("cpu") {
        let kinds = select(&[
            Kind::Bufproxy,
            Kind::Nginx,
            Kind::NginxLarge,
            Kind::Haproxy,
            Kind::Hyper,
            Kind::Relay,
        ]);
        let rounds = if options.quick { 1 } else { 3 };
        println!("{}", cpu::run(&kinds, &options.case, rounds, dir.path())?);
    }
    if wanted("memory") {
        let kinds = select(&[
            Kind::Bufproxy,
            Kind::Nginx,
            Kind::NginxLarge,
            Kind::Haproxy,
            Kind::Caddy,
            Kind::Hyper,
            Kind::Relay,
        ]);
        println!("{}", memory::run(&kinds, &options.case, options.quick, dir.path())?);
    }
    if wanted("rescue") {
        let kinds = select(&[Kind::Bufproxy, Kind::Nginx, Kind::Haproxy, Kind::Caddy]);
        let mut fronts = vec![Front::Nothing];
        fronts.extend(kinds.into_iter().map(Front::Proxy));
        fronts.push(Front::Waitress);
        fronts.retain(|front| named(front.name()));
        println!("{}", rescue::run(&fronts, options.quick, dir.path())?);
    }
    Ok(())
}
