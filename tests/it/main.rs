//! The promises of the README and the design, kept against the real binary: one file each.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod support;

// One line for each request, and who was slow.
mod access_log;
// Apart from the data path.
mod admin;
// A worker never waits for a client.
mod buffering;
// What slow clients cost, by the page that says it.
mod capacity;
// The child process: started, signalled, reaped.
mod child;
// What is typed, and what is said about it.
mod command_line;
// Every message means to us what it means to hyper.
mod differential;
// What the pages in docs/ say can be done.
mod docs;
// A stop without a signal, and one that loses nothing though everybody gets it.
mod drain;
// 100 Continue is ours to say.
mod expect;
// What becomes of a head on its way.
mod forwarding;
// Every message has one reading; a cut one never looks complete.
mod framing;
// No bytes break a promise.
mod fuzzing;
// The real one, wrapped.
mod gunicorn;
// Fewer bytes for those who ask.
mod gzip;
// The app's end loses nothing that waits for it.
mod handover;
// Client connections are kept when both sides may.
mod keep_alive;
// The wrapped command from boot to exit.
mod lifecycle;
// Everything has one.
mod limits;
// What brings it onto a machine.
mod packaging;
// Requests wait here, not at the app.
mod queueing;
// HUP loses nothing.
mod reload;
// The files for Kubernetes and the clouds mean what they say.
mod platforms;
// What is sent again, and what never.
mod retries;
// TERM loses nothing.
mod shutdown;
// A slot lasts as long as its worker works.
mod slots;
// Disks fill and fail.
mod spooling;
// Streams come as they are made.
mod streams;
// A unit with a socket of its own.
mod systemd;
// Who takes too long is cut, and named.
mod timeouts;
// Nothing goes through before the app has agreed.
mod upgrades;
// As many slots as workers.
mod workers;
