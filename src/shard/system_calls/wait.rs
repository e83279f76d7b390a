//! Waits for a datagram (ppoll(2)) or for another thread (eventfd(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::socket::ShardSocket;

/// Wakes a shard from [`wait_for_datagram_or_wake_up`].
#[derive(Clone, Debug)]
pub struct ShardWaker(Arc<OwnedFd>);

impl ShardWaker {
    /// Creates an eventfd.
    ///
    /// # Errors
    ///
    /// The process has reached its limit of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked before it becomes an owned descriptor.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Wakes the shard now, or at its next wait.
    pub fn wake(&self) {
        let one: u64 = 1;
        // SAFETY: eight bytes of `one`, as eventfd requires. It fails only if the counter is full, i.e. already awake.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    fn reset(&self) {
        let mut count: u64 = 0;
        // SAFETY: eight bytes into `count`.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

/// Waits until a datagram arrives, the waker is used, or the timeout expires.
pub fn wait_for_datagram_or_wake_up(socket: &ShardSocket, waker: &ShardWaker, timeout: Option<Duration>) {
    let interest = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut interests = [interest(socket.udp_socket.as_raw_fd()), interest(waker.0.as_raw_fd())];
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(3_600) as libc::time_t,
        tv_nsec: t.subsec_nanos().into(),
    });
    let pointer = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array and the timeout outlive the call. An error (a signal) is handled like a wake-up.
    unsafe {
        libc::ppoll(
            interests.as_mut_ptr(),
            interests.len() as libc::nfds_t,
            pointer,
            std::ptr::null(),
        )
    };
    if interests[1].revents != 0 {
        waker.reset();
    }
}
