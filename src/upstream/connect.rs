//! Connecting to the app. A socket that is not there yet, nobody's, or full is waited for inside
//! `connect-retry` with growing pauses: what no worker has seen may always be sent again.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Slot;
use super::queue::Unreachable;
use crate::config::UpstreamAddr;
use crate::net::{self, Stream};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(250);
/// The longest that one TCP connect may take; the app is local or one hop away.
const TCP_CONNECT: Duration = Duration::from_secs(5);

/// What came of connecting.
pub(crate) enum Tried {
    /// A Unix socket is not watched by the loop yet: the first write needs no readiness.
    Connected(Stream),
    /// Another upstream is up, or another request tries here already: ask for another slot.
    Move,
}

/// Connects; where no upstream is up and this is the request that tries, again and again until
/// `until`. `gone` says that after this error the app will not come back.
pub(crate) async fn connect(
    slot: &Slot,
    until: Instant,
    gone: impl Fn(&io::Error) -> bool,
) -> io::Result<Tried> {
    let mut pause = FIRST_PAUSE;
    loop {
        let begun = Instant::now();
        let error = match once(slot).await {
            Ok(stream) => {
                slot.reachable();
                return Ok(Tried::Connected(stream));
            }
            Err(e) => e,
        };
        if gone(&error) {
            return Err(error);
        }
        let ours = is_ours(&error);
        if !ours && slot.unreachable(begun.elapsed()) == Unreachable::Move {
            return Ok(Tried::Move);
        }
        if !(ours || worth_waiting(&error)) || Instant::now() + pause > until {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// ENOENT and ECONNREFUSED: the app restarts; EAGAIN: its backlog is full. Anything else (EACCES,
/// a name that is too long) does not get better by waiting.
fn worth_waiting(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound, TimedOut, WouldBlock};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | WouldBlock | TimedOut)
}

/// EMFILE, ENFILE, ENOBUFS, ENOMEM: there was no socket to connect with, which says nothing of the app.
fn is_ours(error: &io::Error) -> bool {
    let of = Errno::from_io_error(error);
    matches!(of, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

async fn once(slot: &Slot) -> io::Result<Stream> {
    match slot.addr() {
        UpstreamAddr::Unix(path) => net::connect_unix(path).map(Stream::unwatched),
        UpstreamAddr::Tcp(host, port) => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for addr in addresses(slot, host, *port).await? {
                match tokio::time::timeout(TCP_CONNECT, tcp(addr)).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(e)) => last = e,
                    Err(_) => last = io::ErrorKind::TimedOut.into(),
                }
            }
            slot.names().doubt(slot.index());
            Err(last)
        }
    }
}

/// All addresses of a name. An address is taken as it is, and so is `localhost` (RFC 6761 section
/// 6.3): an empty image has no /etc/hosts that knows it.
async fn addresses(slot: &Slot, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host.eq_ignore_ascii_case("localhost") {
        // IPv4 last: without IPv6 its error is the one that tells of the app.
        return Ok(vec![(Ipv6Addr::LOCALHOST, port).into(), (Ipv4Addr::LOCALHOST, port).into()]);
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![(ip, port).into()]);
    }
    slot.names().addresses(slot.index(), host, port).await
}

async fn tcp(addr: SocketAddr) -> io::Result<Stream> {
    let stream = Stream::new(net::connect_tcp(addr)?)?;
    poll_fn(|cx| stream.poll_writable(cx)).await?;
    // Not SO_ERROR, which would eat the ECONNRESET that proves a request unread (invariant 7):
    // an unconnected socket has no peer.
    match stream.socket().peer_addr() {
        Ok(_) => Ok(stream),
        Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}
