//! The calls that no safe wrapper offers: the only `unsafe` of the crate.
#![allow(unsafe_code)]

use std::cell::OnceCell;
use std::ffi::{c_int, c_uint};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, dup2, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};
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

/// Takes the `count` descriptors from 3 on that this process was started with (socket activation).
/// They are closed on exec from now on. To be called before anything else opens a descriptor.
///
/// # Errors
/// One of them is not open.
pub(crate) fn passed_descriptors(count: u16) -> io::Result<Vec<OwnedFd>> {
    let close_on_exec = |fd: OwnedFd| fcntl_setfd(&fd, FdFlags::CLOEXEC).map(|()| fd);
    (3..3 + RawFd::from(count)).map(|number| Ok(close_on_exec(claim(number)?)?)).collect()
}

/// Makes descriptor 3 what descriptor `number` is, over an exec, and closes `number`. For the exec
/// shim, which opens nothing itself and has the number from its parent.
pub(crate) fn move_to_three(number: u16) -> io::Result<()> {
    let mut three = claim(number.into())?;
    if number != 3 {
        let passed = three;
        // What is open there is a leftover of our own parent. Else 3 is the lowest that is free.
        three = claim(3).or_else(|_| fcntl_dupfd_cloexec(&passed, 3).map_err(io::Error::from))?;
        dup2(&passed, &mut three)?;
    }
    fcntl_setfd(&three, FdFlags::empty())?;
    // For the program that comes next.
    let _ = three.into_raw_fd();
    Ok(())
}

/// Takes over a descriptor that came with the exec of this process.
fn claim(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asked about; for a number that is not open the answer is EBADF.
    fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: it is open, and nothing in this process owns what was open before its first line.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Gives pages of the heap on which nothing lies back to the system: glibc does so by itself only at
/// the heap's end, where something always lies. 0.6 ms for 9 MB. Other allocators do as they like.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: this is how malloc.h declares it. It may be called at any time, from any thread.
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        malloc_trim(0);
    }
}

/// Lets every signal come to this thread and to those that it starts: whoever has started us may have
/// blocked some, and that outlives an exec.
pub(crate) fn unblock_signals() {
    /// `sigset_t` of glibc and of musl.
    type Signals = [u64; 16];
    const SIG_SETMASK: c_int = 2;
    unsafe extern "C" {
        fn pthread_sigmask(how: c_int, set: *const Signals, old: *mut Signals) -> c_int;
    }
    // SAFETY: the set is a whole one, of no signal, and lives during the call; the old one is not asked
    // for. It fails for another `how` alone.
    unsafe { pthread_sigmask(SIG_SETMASK, &[0; 16], std::ptr::null_mut()) };
}

/// Registers what owns its descriptor with the current event loop.
pub(crate) fn watch<T: AsRawFd + Into<OwnedFd>>(
    owner: T,
    interest: Interest,
) -> io::Result<AsyncFd<T>> {
    // SAFETY: `register` asks that `as_raw_fd` names the same open descriptor for as long as the
    // value lives; `Socket` and `OwnedFd`, which this is called with, own their descriptor, never swap
    // it and close it when dropped.
    Ok(unsafe { AsyncFd::register_with_interest(owner, interest) }?)
}

/// A socket, with its registration with an event loop once it has one.
#[derive(Debug)]
pub(crate) struct Watched {
    // Dropped in this order: the registration before the descriptor that it names is closed.
    registration: OnceCell<AsyncFd<Number>>,
    socket: Socket,
}

/// The descriptor of the socket beside it.
#[derive(Debug)]
pub(crate) struct Number(RawFd);

impl AsRawFd for Number {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Watched {
    pub(crate) fn not_yet(socket: Socket) -> Watched {
        Watched { registration: OnceCell::new(), socket }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) fn is_registered(&self) -> bool {
        self.registration.get().is_some()
    }

    /// The registration, with the current event loop if there is none yet.
    pub(crate) fn registered(&self, interest: Interest) -> io::Result<&AsyncFd<Number>> {
        if let Some(registration) = self.registration.get() {
            return Ok(registration);
        }
        let number = Number(self.socket.as_raw_fd());
        // SAFETY: `register` asks that `as_raw_fd` names the same open descriptor for as long as the
        // value lives. `socket` owns it, is never swapped, and outlives the registration: that is
        // dropped before it, by the order of the fields and in `take_off` and `into_socket`.
        let registration = unsafe { AsyncFd::register_with_interest(number, interest) }?;
        Ok(self.registration.get_or_init(|| registration))
    }

    /// No loop watches it any more.
    pub(crate) fn take_off(&mut self) {
        self.registration.take();
    }

    pub(crate) fn into_socket(mut self) -> Socket {
        self.take_off();
        self.socket
    }
}

/// Writes `range` of `file` to disk and waits for it: its pages, not the metadata (nothing here is
/// to outlive a crash), which spares the journal and the flush of fdatasync.
pub(crate) fn write_back(file: &File, range: Range<u64>) -> io::Result<()> {
    /// SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER.
    const ALL: c_uint = 1 | 2 | 4;
    sync_range(file, range, ALL)
}

/// Whether the kernel could write all that it has tried to write of `file`: Err, once, if not. Writes
/// nothing and waits for nothing. A page that could not be written is forgotten, and what is read in
/// its place may be zeros.
pub(crate) fn written(file: &File) -> io::Result<()> {
    /// SYNC_FILE_RANGE_WAIT_BEFORE: of a range in which there is nothing, the errors of all.
    const WAIT: c_uint = 1;
    const BEYOND: u64 = 1 << 62;
    sync_range(file, BEYOND..BEYOND + 1, WAIT)
}

fn sync_range(file: &File, range: Range<u64>, flags: c_uint) -> io::Result<()> {
    unsafe extern "C" {
        fn sync_file_range(fd: c_int, offset: i64, bytes: i64, flags: c_uint) -> c_int;
    }
    let signed = |n: u64| i64::try_from(n).map_err(io::Error::other);
    let (offset, bytes) = (signed(range.start)?, signed(range.end.saturating_sub(range.start))?);
    // SAFETY: takes numbers only; `file` is open as long as it is borrowed.
    match unsafe { sync_file_range(file.as_raw_fd(), offset, bytes, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
