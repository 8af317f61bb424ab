//! Whose word counts: resolves the client's address and scheme of a request (invariant 13).

use std::net::IpAddr;

use crate::config::{Config, Peer};
use crate::http1::RequestHead;

/// What is believed of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The peer is trusted: its forwarded fields count.
    pub trusted: bool,
    /// The client's own address (None: a Unix-socket peer that says nothing).
    pub client: Option<IpAddr>,
    /// `http` or `https`.
    pub scheme: &'static str,
}

/// Resolves the client of one request.
pub fn resolve(config: &Config, peer: Peer, head: &RequestHead) -> Resolved {
    let _ = (config, head);
    Resolved { trusted: false, client: peer.ip(), scheme: "http" }
}
