//! The promises of the README and the design, kept against the real binary: one file each.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

// A worker never waits for a client.
mod buffering;
// Every message has one reading; a cut one never looks complete.
mod framing;
// Requests wait here, not at the app.
mod queueing;
// What is sent again, and what never.
mod retries;
// A slot lasts as long as its worker works.
mod slots;
