//! The calls that no safe wrapper offers: the only `unsafe` of the crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};
use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// SIOCOUTQ (the number of TIOCOUTQ): bytes in the send queue that the peer has not acknowledged
/// (TCP) or not read (Unix, unix(7)); 0 after the peer's close.
pub(crate) fn siocoutq(fd: impl AsFd) -> io::Result<u64> {
    const SIOCOUTQ: Opcode = 0x5411;
    // SAFETY: this request takes no input and writes one C int through the pointer it is given,
    // which is what `Getter<_, i32>` provides.
    let bytes = unsafe { ioctl(fd, Getter::<SIOCOUTQ, i32>::new()) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Registers a socket with the current event loop.
pub(crate) fn watch(socket: Socket, interest: Interest) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: `register` asks that `as_raw_fd` names the same open descriptor for as long as the
    // value lives; a `Socket` owns its descriptor, never swaps it and closes it when dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}
