//! bufproxy: a buffering reverse proxy for few-worker app servers.

pub mod access_log;
pub mod admin;
pub mod config;
pub mod error;
pub mod exchange;
pub mod http1;
pub mod lifecycle;
pub mod metrics;
mod net;
mod scratch;
pub mod server;
pub mod spool;
pub mod supervisor;
mod sys;
mod timer;
pub mod trust;
pub mod upstream;
