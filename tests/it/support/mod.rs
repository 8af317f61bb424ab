//! What the tests are written with: an app that follows a script, a client that speaks raw bytes,
//! and the real binary between them. Every test has its own three; nothing is shared.

mod app;
mod client;
mod lines;
mod message;
mod mutate;
mod proxy;
mod python;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub(crate) use app::{App, AppConn, ok, unix_path};
pub(crate) use client::Client;
pub(crate) use lines::Lines;
pub(crate) use message::{Message, chunked, pattern};
pub(crate) use mutate::mutate;
pub(crate) use proxy::{Proxy, bufproxy};
pub(crate) use python::{repository, venv};

/// How long anything may take that a promise does not time. It only ends a test that has failed
/// already; no test waits for it.
pub(crate) const GUARD: Duration = Duration::from_secs(25);

/// A port that is free, for a command that has to be told one. From below the range of which the kernel
/// gives ports to clients: one of theirs could take it before the command does.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 128 * 128;
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Relaxed)) % 20_000;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

/// Looks again and again, for what has nothing that could be waited for.
#[track_caller]
pub(crate) fn until(mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + GUARD;
    while !happened() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}
