//! The shared UDP port: receives and sends in batches, by system calls that the standard library does not provide.
//!
//! The only module with `unsafe` code. It does not interpret the datagrams.
#![expect(unsafe_code, reason = "recvmmsg, sendmmsg, eventfd and ppoll have no safe wrapper")]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use millstream_core::session::outbox::{Run, Sink};
use millstream_core::shard::counters::SendCounters;

/// One shard's socket. All shards bind the same port; the kernel spreads the peers over them (SO_REUSEPORT).
#[derive(Debug)]
pub struct UdpPort {
    socket: Socket,
    family: Family,
    local: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    /// Receives IPv4 too, with mapped addresses.
    V6,
}

/// Requested size of the receive buffer in bytes. The kernel may grant less.
pub const RECEIVE_BUFFER: usize = 8 << 20;

/// Requested size of the send buffer in bytes: the packets of one tick to thousands of viewers.
pub const SEND_BUFFER: usize = 16 << 20;

impl UdpPort {
    /// Binds to an address, which other shards may share. The unspecified IPv6 address receives IPv4 too.
    ///
    /// # Errors
    ///
    /// The error of the kernel, e.g. address in use, not available or not permitted.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let (domain, family) = match address {
            SocketAddr::V4(_) => (Domain::IPV4, Family::V4),
            SocketAddr::V6(_) => (Domain::IPV6, Family::V6),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if family == Family::V6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(true)?;
        // Smaller buffers work too: the kernel counts what overflows, and retransmissions recover it.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        let _ = socket.set_send_buffer_size(SEND_BUFFER);
        socket.bind(&address.into())?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        let port = Self { socket, family, local };
        match family {
            Family::V4 => port.set_option(libc::IPPROTO_IP, libc::IP_PKTINFO)?,
            Family::V6 => port.set_option(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?,
        }
        Ok(port)
    }

    /// Returns the bound address, with the port that the kernel chose.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    fn set_option(&self, level: libc::c_int, name: libc::c_int) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open, and the pointer and length describe `on`.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                (&raw const on).cast(),
                mem::size_of_val(&on) as libc::socklen_t,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// A datagram that was received.
#[derive(Debug)]
pub struct Received<'a> {
    pub from: SocketAddr,
    /// The local address that it was sent to.
    pub to: Option<IpAddr>,
    pub bytes: &'a mut [u8],
}

/// Buffers for one batch of datagrams.
pub struct Receiver {
    buffers: Vec<[u8; DATAGRAM]>,
    lengths: Vec<(usize, SocketAddr, Option<IpAddr>)>,
}

/// Maximum length of a datagram in bytes. WebRTC uses about 1,200; longer datagrams are truncated and fail authentication.
const DATAGRAM: usize = 2_048;

/// Maximum number of datagrams per receiving system call.
const RECEIVE_BATCH: usize = 64;

/// Space for control messages in bytes: packet info and segment size.
const CONTROL: usize = 64;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

impl Receiver {
    pub fn new() -> Self {
        Self {
            buffers: vec![[0; DATAGRAM]; RECEIVE_BATCH],
            lengths: Vec::with_capacity(RECEIVE_BATCH),
        }
    }

    /// Receives the datagrams that have arrived, up to one batch. Returns their number.
    ///
    /// # Errors
    ///
    /// The error of the kernel, except that nothing has arrived.
    pub fn receive(&mut self, port: &UdpPort) -> io::Result<usize> {
        self.lengths.clear();
        // SAFETY: all-zero is a valid value of these C structures.
        let mut names: [libc::sockaddr_storage; RECEIVE_BATCH] = unsafe { mem::zeroed() };
        let mut controls = [Control([0; CONTROL]); RECEIVE_BATCH];
        let mut parts = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; RECEIVE_BATCH];
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; RECEIVE_BATCH] = unsafe { mem::zeroed() };
        for (index, buffer) in self.buffers.iter_mut().enumerate() {
            parts[index] = libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: DATAGRAM,
            };
            let header = &mut headers[index].msg_hdr;
            header.msg_name = (&raw mut names[index]).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut parts[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[index]).cast();
            header.msg_controllen = CONTROL as _;
        }
        // SAFETY: every pointer in `headers` points to memory of this call that outlives it.
        let count = unsafe {
            libc::recvmmsg(
                port.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                RECEIVE_BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock {
                Ok(0)
            } else {
                Err(error)
            };
        }
        let count = usize::try_from(count).unwrap_or(0);
        for (header, name) in headers.iter().zip(&names).take(count) {
            let from = socket_address(name).unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
            self.lengths
                .push((header.msg_len as usize, from, destination(&header.msg_hdr)));
        }
        Ok(count)
    }

    /// Returns the datagrams of the last batch.
    pub fn datagrams(&mut self) -> impl Iterator<Item = Received<'_>> + '_ {
        self.buffers
            .iter_mut()
            .zip(&self.lengths)
            .filter_map(|(buffer, (length, from, to))| {
                Some(Received {
                    from: *from,
                    to: *to,
                    bytes: buffer.get_mut(..*length)?,
                })
            })
    }
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

fn socket_address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: the kernel filled the structure in; socket2 reads the member that its family names.
    let address = unsafe { SockAddr::new(mem::transmute_copy(name), mem::size_of::<libc::sockaddr_storage>() as _) };
    address.as_socket().map(unmapped)
}

/// Converts the mapped address of an IPv4 peer of an IPv6 socket to an IPv4 address.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn destination(header: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the kernel filled in the control buffer; the macros walk it within `msg_controllen`.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(control) = message.as_ref() {
            match (control.cmsg_level, control.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = libc::CMSG_DATA(message).cast::<libc::in_pktinfo>().read_unaligned();
                    return Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = libc::CMSG_DATA(message).cast::<libc::in6_pktinfo>().read_unaligned();
                    return Some(IpAddr::from(info.ipi6_addr.s6_addr).to_canonical());
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

/// Sends on a shard's socket.
pub struct Sender {
    port: Arc<UdpPort>,
    counters: Arc<SendCounters>,
    batch: Box<Batch>,
    segmentation: bool,
}

/// Maximum number of runs per sending system call.
const SEND_BATCH: usize = 64;

struct Batch {
    names: [MaybeUninit<SockAddr>; SEND_BATCH],
    controls: [Control; SEND_BATCH],
    parts: [libc::iovec; SEND_BATCH],
    headers: [libc::mmsghdr; SEND_BATCH],
    datagrams: [u64; SEND_BATCH],
}

// SAFETY: the raw pointers inside are only written and used within one call of `flush`.
unsafe impl Send for Batch {}

impl Sender {
    pub fn new(port: Arc<UdpPort>, counters: Arc<SendCounters>) -> Self {
        let segmentation = !counters.without_segmentation.load(Ordering::Relaxed);
        // SAFETY: all-zero is a valid value of these C structures.
        let headers = unsafe { mem::zeroed() };
        let batch = Box::new(Batch {
            names: [const { MaybeUninit::uninit() }; SEND_BATCH],
            controls: [Control([0; CONTROL]); SEND_BATCH],
            parts: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; SEND_BATCH],
            headers,
            datagrams: [0; SEND_BATCH],
        });
        Self {
            port,
            counters,
            batch,
            segmentation,
        }
    }

    fn send_batch(&mut self, buffer: &[u8], runs: &[Run]) {
        let count = runs.len().min(SEND_BATCH);
        for (index, run) in runs.iter().take(count).enumerate() {
            self.prepare(index, buffer, run);
        }
        let mut sent = 0;
        while sent < count {
            // SAFETY: headers `sent..count` were prepared above and point into the batch and `buffer`, both alive.
            let result = unsafe {
                libc::sendmmsg(
                    self.port.socket.as_raw_fd(),
                    self.batch.headers.as_mut_ptr().add(sent),
                    (count - sent) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            self.counters.calls.fetch_add(1, Ordering::Relaxed);
            if let Ok(more @ 1..) = usize::try_from(result) {
                let datagrams = self.batch.datagrams.iter().skip(sent).take(more).sum();
                self.counters.datagrams.fetch_add(datagrams, Ordering::Relaxed);
                sent += more;
                continue;
            }
            let error = io::Error::last_os_error();
            if let Some(run) = runs.get(sent) {
                self.on_error(&error, buffer, run, sent);
            }
            sent += 1;
        }
    }

    /// Handles an error of the kernel for the run at `index`.
    fn on_error(&mut self, error: &io::Error, buffer: &[u8], run: &Run, index: usize) {
        let segmented = run.end - run.start > run.segment;
        let refused = matches!(
            error.raw_os_error(),
            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
        );
        if segmented && self.segmentation && refused {
            // EIO: the driver cannot compute checksums of segments. EINVAL: the kernel does not support the option.
            if error.raw_os_error() != Some(libc::EMSGSIZE) {
                self.segmentation = false;
                self.counters.without_segmentation.store(true, Ordering::Relaxed);
            }
            return self.send_singly(buffer, run);
        }
        let lost = self.batch.datagrams.get(index).copied().unwrap_or(1);
        let counter = match error.kind() {
            io::ErrorKind::WouldBlock => &self.counters.dropped_full,
            _ => &self.counters.dropped_refused,
        };
        counter.fetch_add(lost, Ordering::Relaxed);
    }

    fn send_singly(&mut self, buffer: &[u8], run: &Run) {
        let name = self.name(run);
        for start in (run.start..run.end).step_by(run.segment.max(1)) {
            let datagram = buffer.get(start..run.end.min(start + run.segment)).unwrap_or_default();
            self.counters.calls.fetch_add(1, Ordering::Relaxed);
            let counter = match self.port.socket.send_to(datagram, &name) {
                Ok(_) => &self.counters.datagrams,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => &self.counters.dropped_full,
                Err(_) => &self.counters.dropped_refused,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn name(&self, run: &Run) -> SockAddr {
        let to = run.destination.to;
        match (self.port.family, to.ip()) {
            (Family::V6, IpAddr::V4(ip)) => SocketAddrV6::new(ip.to_ipv6_mapped(), to.port(), 0, 0).into(),
            _ => to.into(),
        }
    }

    fn prepare(&mut self, index: usize, buffer: &[u8], run: &Run) {
        let name = self.name(run);
        let batch = &mut *self.batch;
        let (name_ptr, name_len) = {
            let name = batch.names[index].write(name);
            (name.as_ptr(), name.len())
        };
        let bytes = buffer.get(run.start..run.end).unwrap_or_default();
        batch.parts[index] = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        batch.datagrams[index] = bytes.len().div_ceil(run.segment.max(1)) as u64;
        let header = &mut batch.headers[index].msg_hdr;
        header.msg_name = name_ptr.cast_mut().cast();
        header.msg_namelen = name_len;
        header.msg_iov = &raw mut batch.parts[index];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut batch.controls[index]).cast();
        header.msg_controllen = CONTROL as _;
        let mut used = 0;
        let segment = (bytes.len() > run.segment).then_some(run.segment as u16);
        // SAFETY: the control buffer is aligned for cmsghdr and larger than the two messages written to it.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(header);
            if let Some(segment) = segment {
                used += write_control(message, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
                message = libc::CMSG_NXTHDR(header, message);
            }
            match (self.port.family, run.destination.from) {
                (Family::V6, Some(from)) => {
                    let ip: Ipv6Addr = match from {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                        IpAddr::V6(ip) => ip,
                    };
                    let info = libc::in6_pktinfo {
                        ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                        ipi6_ifindex: 0,
                    };
                    used += write_control(message, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
                }
                (Family::V4, Some(IpAddr::V4(ip))) => {
                    let source = libc::in_addr {
                        s_addr: u32::from_ne_bytes(ip.octets()),
                    };
                    let info = libc::in_pktinfo {
                        ipi_ifindex: 0,
                        ipi_spec_dst: source,
                        ipi_addr: source,
                    };
                    used += write_control(message, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
                }
                (_, None) | (Family::V4, Some(IpAddr::V6(_))) => {}
            }
        }
        header.msg_controllen = used as _;
        if used == 0 {
            header.msg_control = std::ptr::null_mut();
        }
    }
}

/// Writes one control message and returns the space that it takes.
///
/// # Safety
///
/// `message` is a header inside a control buffer with room for `T` behind it.
unsafe fn write_control<T>(message: *mut libc::cmsghdr, level: libc::c_int, kind: libc::c_int, value: T) -> usize {
    let size = mem::size_of::<T>() as libc::c_uint;
    // SAFETY: promised by the caller.
    unsafe {
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(message).cast::<T>().write_unaligned(value);
        libc::CMSG_SPACE(size) as usize
    }
}

impl Sink for Sender {
    fn send(&mut self, buffer: &[u8], runs: &[Run]) {
        let mut rest = runs;
        while !rest.is_empty() {
            if self.segmentation {
                let (batch, more) = rest.split_at(rest.len().min(SEND_BATCH));
                self.send_batch(buffer, batch);
                rest = more;
            } else {
                rest.iter().for_each(|run| self.send_singly(buffer, run));
                rest = &[];
            }
        }
    }
}

/// Wakes a shard from [`wait`].
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
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

/// Returns the kernel's id of the calling thread: its folder in `/proc/self/task`.
pub fn thread_id() -> u32 {
    // SAFETY: the call has no arguments and always succeeds (gettid(2)).
    let id = unsafe { libc::gettid() };
    u32::try_from(id).unwrap_or_default()
}

/// Waits until a datagram arrives, the waker is used, or the timeout expires.
pub fn wait(port: &UdpPort, waker: &Waker, timeout: Option<Duration>) {
    let interest = |fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut interests = [interest(port.socket.as_raw_fd()), interest(waker.0.as_raw_fd())];
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

#[cfg(test)]
mod tests;
