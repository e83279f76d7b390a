//! The system calls that `std` has not: batched receive with kernel time stamps, segmented send, epoll, CPU clocks.
//!
//! The only module with `unsafe`. Everything it returns is checked and owned; no pointer leaves it.

#![expect(unsafe_code, reason = "system calls that std has no safe form of")]

use std::{
    io,
    mem::{self, MaybeUninit},
    net::{SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    time::Duration,
};

/// Datagrams taken per `recvmmsg`: a P frame is about ten, so a wake-up nearly always ends with one call.
pub(crate) const BATCH: usize = 32;

/// Room per datagram; nothing on this path is longer than an Ethernet frame.
const SLOT_LEN: usize = 1600;

/// Room for one `SCM_TIMESTAMPNS` control message, which is 32 bytes on 64-bit Linux.
const CONTROL_LEN: usize = 64;

/// Receives up to [`BATCH`] datagrams in one call.
pub(crate) struct ReceiveBatch {
    slots: Vec<[u8; SLOT_LEN]>,
    controls: Vec<Control>,
    filled: Vec<Filled>,
}

/// A control buffer with the alignment that `cmsghdr` needs.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

#[derive(Clone, Copy, Default)]
struct Filled {
    len: usize,
    arrived_ns: u64,
}

impl ReceiveBatch {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![[0; SLOT_LEN]; BATCH],
            controls: vec![Control([0; CONTROL_LEN]); BATCH],
            filled: Vec::with_capacity(BATCH),
        }
    }

    /// Takes what waits at the socket without blocking and returns how many datagrams that were.
    ///
    /// # Errors
    ///
    /// Those of `recvmmsg`; an empty socket is not one.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.filled.clear();
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|i| libc::iovec {
            iov_base: self.slots[i].as_mut_ptr().cast(),
            iov_len: SLOT_LEN,
        });
        let mut messages: [libc::mmsghdr; BATCH] = std::array::from_fn(|i| {
            let mut message = zeroed_mmsghdr();
            message.msg_hdr.msg_iov = &raw mut vectors[i];
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = self.controls[i].0.as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL_LEN;
            message
        });
        // SAFETY: every header points at an iovec, slot and control buffer that live until the call returns, with the
        // lengths given beside them; a null timeout is allowed.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        };
        for message in messages.iter().take(count) {
            self.filled.push(Filled {
                len: (message.msg_len as usize).min(SLOT_LEN),
                arrived_ns: timestamp(&message.msg_hdr).unwrap_or(0),
            });
        }
        Ok(count)
    }

    /// The datagram `index` of the last call and when the kernel got it, in ns of the real-time clock; 0 when the
    /// kernel did not say. Empty beyond the last.
    pub(crate) fn datagram(&self, index: usize) -> (&[u8], u64) {
        match (self.slots.get(index), self.filled.get(index)) {
            (Some(slot), Some(filled)) => (&slot[..filled.len], filled.arrived_ns),
            _ => (&[], 0),
        }
    }
}

fn zeroed_mmsghdr() -> libc::mmsghdr {
    // SAFETY: a plain C struct of integers and pointers, for which all zeroes is the documented empty state.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// Reads the receive time stamp out of the control messages of a datagram.
fn timestamp(header: &libc::msghdr) -> Option<u64> {
    // SAFETY: the kernel has set `msg_controllen` to what it wrote, and the buffer outlives this function; the CMSG
    // macros stay inside that length.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !control.is_null() {
        // SAFETY: not null, so it is a complete header inside the buffer.
        let (level, kind) = unsafe { ((*control).cmsg_level, (*control).cmsg_type) };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
            // SAFETY: a SCM_TIMESTAMPNS message carries one timespec; read unaligned, so alignment does not matter.
            let stamp: libc::timespec = unsafe { ptr::read_unaligned(libc::CMSG_DATA(control).cast()) };
            return Some(stamp.tv_sec as u64 * 1_000_000_000 + stamp.tv_nsec as u64);
        }
        // SAFETY: `control` is a header of this message.
        control = unsafe { libc::CMSG_NXTHDR(header, control) };
    }
    None
}

/// Sends `bytes` to `to` as datagrams of `segment` bytes, the last one shorter or equal, in one pass of the network
/// stack (`UDP_SEGMENT`, udp(7)). At most 64 segments and 65,507 bytes.
///
/// # Errors
///
/// Those of `sendmsg`.
pub(crate) fn send_segmented(socket: &UdpSocket, to: SocketAddrV4, bytes: &[u8], segment: u16) -> io::Result<usize> {
    let mut address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(to.ip().octets()),
        },
        sin_zero: [0; 8],
    };
    let mut vector = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = Control([0; CONTROL_LEN]);
    let mut message = zeroed_mmsghdr().msg_hdr;
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = mem::size_of::<libc::sockaddr_in>() as libc::socklen_t;
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    if bytes.len() > usize::from(segment) {
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic on a constant.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(mem::size_of::<u16>() as u32) } as usize;
        // SAFETY: the control buffer is aligned and longer than one header with a u16, so the first header exists and
        // its data lies inside; sendmsg reads address, vector and control, which all live until it returns.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = libc::UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(mem::size_of::<u16>() as u32) as usize;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast(), segment);
        }
    }
    // SAFETY: all pointers in `message` are to locals of this function and to `bytes`, with their true lengths.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Waits for many sockets at once.
pub(crate) struct Poller {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poller {
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            fd,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; 256],
        })
    }

    /// Watches a socket for input, level-triggered; closing the socket ends it.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl`.
    pub(crate) fn add(&self, socket: &UdpSocket, token: usize) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: token as u64,
        };
        // SAFETY: `event` is read during the call only.
        check(unsafe {
            libc::epoll_ctl(
                self.fd.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_raw_fd(),
                &raw mut event,
            )
        })
    }

    /// Waits until a socket has input or `timeout` (in whole ms, rounded down) has passed; gives the tokens.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait`, but not an interruption.
    pub(crate) fn wait(&mut self, timeout: Duration, ready: &mut Vec<usize>) -> io::Result<()> {
        ready.clear();
        let limit = self.events.len() as libc::c_int;
        let timeout = timeout.as_millis().min(1000) as libc::c_int;
        // SAFETY: the buffer holds `limit` events.
        let count = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), limit, timeout) };
        match usize::try_from(count) {
            Ok(count) => ready.extend(self.events.iter().take(count).map(|event| event.u64 as usize)),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Waits until the socket has input or `timeout` has passed, with the resolution of the kernel's high-resolution
/// timers. `SO_RCVTIMEO` has that of its tick, several ms.
///
/// # Errors
///
/// Those of `ppoll`, but not an interruption.
pub(crate) fn wait_readable(socket: &UdpSocket, timeout: Duration) -> io::Result<()> {
    let mut entry = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let limit = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    // SAFETY: one entry, one timespec, both alive during the call; a null mask changes no signal.
    let result = unsafe { libc::ppoll(&raw mut entry, 1, &raw const limit, ptr::null()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

/// Asks for kernel time stamps and a receive buffer of about `bytes`, past `net.core.rmem_max` where allowed.
///
/// # Errors
///
/// Those of `setsockopt`.
pub(crate) fn prepare_receiver(socket: &UdpSocket, bytes: u32) -> io::Result<()> {
    set_option(socket.as_raw_fd(), libc::SO_TIMESTAMPNS, 1)?;
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_option(socket.as_raw_fd(), libc::SO_RCVBUFFORCE, bytes)
        .or_else(|_| set_option(socket.as_raw_fd(), libc::SO_RCVBUF, bytes))
}

/// Makes the send buffer about `bytes` long, so that a sender is never the first to drop.
///
/// # Errors
///
/// Those of `setsockopt`.
pub(crate) fn set_send_buffer(socket: &UdpSocket, bytes: u32) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    set_option(socket.as_raw_fd(), libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set_option(socket.as_raw_fd(), libc::SO_SNDBUF, bytes))
}

fn set_option(fd: RawFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value is an int that lives during the call, and its length is given.
    check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
}

/// CPU time that the calling thread has used.
pub(crate) fn thread_cpu() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or_default()
}

/// CPU time that this process has used.
pub(crate) fn own_cpu() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap_or_default()
}

/// CPU time that all threads of a process have used by the scheduler's accounting, ended ones included.
///
/// # Errors
///
/// When there is no such process.
pub(crate) fn process_cpu(pid: u32) -> io::Result<Duration> {
    let mut id: libc::clockid_t = 0;
    // SAFETY: writes one clock id.
    let code = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut id) };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code));
    }
    clock(id)
}

/// The real-time clock in ns: the one that the kernel stamps datagrams with.
pub(crate) fn realtime_ns() -> u64 {
    clock(libc::CLOCK_REALTIME).map_or(0, |now| now.as_nanos() as u64)
}

fn clock(id: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    check(unsafe { libc::clock_gettime(id, &raw mut time) })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Asks a process to end (SIGTERM).
///
/// # Errors
///
/// When it is gone already.
pub(crate) fn terminate(pid: u32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) })
}

/// Lets the calling thread sleep without the 50 us that the kernel may add to a timer to save power, so that the
/// publisher's frames leave when they are due.
pub(crate) fn sharpen_timers() {
    // SAFETY: takes no pointer. It cannot fail for a valid option, and only makes timers later if it did.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Has the calling thread wait for all others when processors are short.
pub(crate) fn yield_to_others() {
    // SAFETY: plain numbers; 0 is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 10);
    }
}

/// Raises the limit of open descriptors to what the system allows: one socket per viewer.
pub(crate) fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: reads and writes one rlimit; failure leaves the limit as it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr};

    fn pair() -> (UdpSocket, UdpSocket, SocketAddrV4) {
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        prepare_receiver(&receiver, 1 << 20).unwrap();
        let SocketAddr::V4(to) = receiver.local_addr().unwrap() else {
            unreachable!()
        };
        (sender, receiver, to)
    }

    #[test]
    fn a_segmented_send_arrives_as_stamped_datagrams() {
        let (sender, receiver, to) = pair();
        let before = realtime_ns();
        let bytes: Vec<u8> = (0..250u8).collect();
        assert_eq!(send_segmented(&sender, to, &bytes, 100).unwrap(), 250);
        wait_readable(&receiver, Duration::from_secs(1)).unwrap();
        let mut batch = ReceiveBatch::new();
        assert_eq!(batch.receive(&receiver).unwrap(), 3);
        let lengths: Vec<usize> = (0..3).map(|i| batch.datagram(i).0.len()).collect();
        assert_eq!(lengths, [100, 100, 50]);
        assert_eq!(batch.datagram(2).0, &bytes[200..]);
        let stamp = batch.datagram(0).1;
        assert!((before..=realtime_ns()).contains(&stamp));
        assert_eq!(batch.receive(&receiver).unwrap(), 0);
        assert!(batch.datagram(0).0.is_empty());
    }

    #[test]
    fn the_poller_names_the_socket_that_has_input() {
        let (sender, receiver, to) = pair();
        let (_other_sender, other, _) = pair();
        let mut poller = Poller::new().unwrap();
        poller.add(&other, 1).unwrap();
        poller.add(&receiver, 7).unwrap();
        sender.send_to(b"x", to).unwrap();
        let mut ready = Vec::new();
        poller.wait(Duration::from_secs(1), &mut ready).unwrap();
        assert_eq!(ready, [7]);
    }

    #[test]
    fn cpu_clocks_count_this_process() {
        // One beyond the largest process id that Linux gives.
        const NO_PID: u32 = (1 << 22) + 1;
        let spent = |from: Duration| {
            let mut x = 1u64;
            while thread_cpu() < from + Duration::from_millis(5) {
                x = std::hint::black_box(x.wrapping_mul(31));
            }
        };
        let (own, process) = (own_cpu(), process_cpu(std::process::id()).unwrap());
        spent(thread_cpu());
        assert!(own_cpu() >= own + Duration::from_millis(4));
        // The kernel brings a foreign clock up to date once a tick only.
        assert!(process_cpu(std::process::id()).unwrap() >= process);
        assert!(process_cpu(NO_PID).is_err());
    }
}
