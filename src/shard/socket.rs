//! The shared UDP port: receives and sends in batches, by system calls that the standard library does not provide.
//!
//! The only module with `unsafe` code. It does not interpret the datagrams.
#![expect(
    unsafe_code,
    reason = "recvmmsg, sendmmsg, eventfd, ppoll, malloc_trim and mallopt have no safe wrapper"
)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use millstream_core::session::outbox::{DatagramSink, GsoRun};
use millstream_core::shard::counters::SendCounters;

/// One shard's socket. All shards bind the same port; the kernel spreads the peers over them (SO_REUSEPORT).
#[derive(Debug)]
pub struct ShardSocket {
    udp_socket: Socket,
    family: AddressFamily,
    local_addr: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressFamily {
    V4,
    /// Receives IPv4 too, with mapped addresses.
    V6,
}

/// Requested size of the receive buffer in bytes. The kernel may grant less.
pub const UDP_RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// Requested size of the send buffer in bytes: the packets of one tick to thousands of viewers.
pub const UDP_SEND_BUFFER_BYTES: usize = 16 << 20;

impl ShardSocket {
    /// Binds to an address, which other shards may share. The unspecified IPv6 address receives IPv4 too.
    ///
    /// # Errors
    ///
    /// The error of the kernel, e.g. address in use, not available or not permitted.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let (domain, family) = match address {
            SocketAddr::V4(_) => (Domain::IPV4, AddressFamily::V4),
            SocketAddr::V6(_) => (Domain::IPV6, AddressFamily::V6),
        };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        if family == AddressFamily::V6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(true)?;
        // Smaller buffers work too: the kernel counts what overflows, and retransmissions recover it.
        let _ = socket.set_recv_buffer_size(UDP_RECEIVE_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(UDP_SEND_BUFFER_BYTES);
        socket.bind(&address.into())?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
        let bound = Self {
            udp_socket: socket,
            family,
            local_addr: local,
        };
        match family {
            AddressFamily::V4 => bound.enable_socket_option(libc::IPPROTO_IP, libc::IP_PKTINFO)?,
            AddressFamily::V6 => bound.enable_socket_option(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?,
        }
        Ok(bound)
    }

    /// Returns the bound address, with the port that the kernel chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    fn enable_socket_option(&self, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open, and the pointer and length describe `on`.
        let result = unsafe {
            libc::setsockopt(
                self.udp_socket.as_raw_fd(),
                level,
                option,
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
pub struct ReceivedDatagram<'a> {
    pub peer_address: SocketAddr,
    /// The local address that it was sent to.
    pub local_ip: Option<IpAddr>,
    pub bytes: &'a mut [u8],
}

/// Buffers for one batch of datagrams.
pub struct DatagramReceiver {
    buffers: Vec<[u8; MAX_DATAGRAM_BYTES]>,
    datagram_info: Vec<(usize, SocketAddr, Option<IpAddr>)>,
}

/// Maximum length of a datagram in bytes. WebRTC uses about 1,200; longer datagrams are truncated and fail authentication.
const MAX_DATAGRAM_BYTES: usize = 2_048;

/// Maximum number of datagrams per receiving system call.
const RECEIVE_BATCH_SIZE: usize = 64;

/// Space for control messages in bytes: packet info and segment size.
const CONTROL_BUFFER_BYTES: usize = 64;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct ControlMessageBuffer([u8; CONTROL_BUFFER_BYTES]);

impl DatagramReceiver {
    pub fn new() -> Self {
        Self {
            buffers: vec![[0; MAX_DATAGRAM_BYTES]; RECEIVE_BATCH_SIZE],
            datagram_info: Vec::with_capacity(RECEIVE_BATCH_SIZE),
        }
    }

    /// Receives the datagrams that have arrived, up to one batch. Returns their number.
    ///
    /// # Errors
    ///
    /// The error of the kernel, except that nothing has arrived.
    pub fn receive(&mut self, socket: &ShardSocket) -> io::Result<usize> {
        self.datagram_info.clear();
        // SAFETY: all-zero is a valid value of these C structures.
        let mut addresses: [libc::sockaddr_storage; RECEIVE_BATCH_SIZE] = unsafe { mem::zeroed() };
        let mut control_buffers = [ControlMessageBuffer([0; CONTROL_BUFFER_BYTES]); RECEIVE_BATCH_SIZE];
        let mut iovecs = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; RECEIVE_BATCH_SIZE];
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; RECEIVE_BATCH_SIZE] = unsafe { mem::zeroed() };
        for (index, buffer) in self.buffers.iter_mut().enumerate() {
            iovecs[index] = libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: MAX_DATAGRAM_BYTES,
            };
            let header = &mut headers[index].msg_hdr;
            header.msg_name = (&raw mut addresses[index]).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut iovecs[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut control_buffers[index]).cast();
            header.msg_controllen = CONTROL_BUFFER_BYTES as _;
        }
        // SAFETY: every pointer in `message_headers` points to memory of this call that outlives it.
        let count = unsafe {
            libc::recvmmsg(
                socket.udp_socket.as_raw_fd(),
                headers.as_mut_ptr(),
                RECEIVE_BATCH_SIZE as libc::c_uint,
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
        for (header, name) in headers.iter().zip(&addresses).take(count) {
            let from = to_socket_addr(name).unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
            self.datagram_info
                .push((header.msg_len as usize, from, received_destination_ip(&header.msg_hdr)));
        }
        Ok(count)
    }

    /// Returns the datagrams of the last batch.
    pub fn datagrams(&mut self) -> impl Iterator<Item = ReceivedDatagram<'_>> + '_ {
        self.buffers
            .iter_mut()
            .zip(&self.datagram_info)
            .filter_map(|(buffer, (length, from, to))| {
                Some(ReceivedDatagram {
                    peer_address: *from,
                    local_ip: *to,
                    bytes: buffer.get_mut(..*length)?,
                })
            })
    }
}

impl Default for DatagramReceiver {
    fn default() -> Self {
        Self::new()
    }
}

fn to_socket_addr(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    // SAFETY: the kernel filled the structure in; socket2 reads the member that its family names.
    let address = unsafe { SockAddr::new(mem::transmute_copy(name), mem::size_of::<libc::sockaddr_storage>() as _) };
    address.as_socket().map(unmap_ipv4)
}

/// Converts the mapped address of an IPv4 peer of an IPv6 socket to an IPv4 address.
fn unmap_ipv4(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn received_destination_ip(header: &libc::msghdr) -> Option<IpAddr> {
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
pub struct DatagramSender {
    socket: Arc<ShardSocket>,
    counters: Arc<SendCounters>,
    batch: Box<SendBatch>,
    uses_segmentation_offload: bool,
}

/// Maximum number of runs per sending system call.
const SEND_BATCH_SIZE: usize = 64;

struct SendBatch {
    destinations: [MaybeUninit<SockAddr>; SEND_BATCH_SIZE],
    control_buffers: [ControlMessageBuffer; SEND_BATCH_SIZE],
    iovecs: [libc::iovec; SEND_BATCH_SIZE],
    message_headers: [libc::mmsghdr; SEND_BATCH_SIZE],
    datagram_counts: [u64; SEND_BATCH_SIZE],
}

// SAFETY: the raw pointers inside are only written and used within one call of `flush`.
unsafe impl Send for SendBatch {}

impl DatagramSender {
    pub fn new(socket: Arc<ShardSocket>, counters: Arc<SendCounters>) -> Self {
        let segmentation = !counters.gso_unavailable.load(Ordering::Relaxed);
        // SAFETY: all-zero is a valid value of these C structures.
        let headers = unsafe { mem::zeroed() };
        let batch = Box::new(SendBatch {
            destinations: [const { MaybeUninit::uninit() }; SEND_BATCH_SIZE],
            control_buffers: [ControlMessageBuffer([0; CONTROL_BUFFER_BYTES]); SEND_BATCH_SIZE],
            iovecs: [libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }; SEND_BATCH_SIZE],
            message_headers: headers,
            datagram_counts: [0; SEND_BATCH_SIZE],
        });
        Self {
            socket,
            counters,
            batch,
            uses_segmentation_offload: segmentation,
        }
    }

    fn send_batch(&mut self, buffer: &[u8], runs: &[GsoRun]) {
        let count = runs.len().min(SEND_BATCH_SIZE);
        for (index, run) in runs.iter().take(count).enumerate() {
            self.fill_message_header(index, buffer, run);
        }
        let mut sent = 0;
        while sent < count {
            // SAFETY: headers `sent..count` were prepared above and point into the batch and `buffer`, both alive.
            let result = unsafe {
                libc::sendmmsg(
                    self.socket.udp_socket.as_raw_fd(),
                    self.batch.message_headers.as_mut_ptr().add(sent),
                    (count - sent) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            self.counters.send_calls.fetch_add(1, Ordering::Relaxed);
            if let Ok(more @ 1..) = usize::try_from(result) {
                let datagrams = self.batch.datagram_counts.iter().skip(sent).take(more).sum();
                self.counters.sent_datagrams.fetch_add(datagrams, Ordering::Relaxed);
                sent += more;
                continue;
            }
            let error = io::Error::last_os_error();
            if let Some(run) = runs.get(sent) {
                self.recover_from_send_error(&error, buffer, run, sent);
            }
            sent += 1;
        }
    }

    /// Handles an error of the kernel for the run at `index`.
    fn recover_from_send_error(&mut self, error: &io::Error, buffer: &[u8], run: &GsoRun, index: usize) {
        let segmented = run.end - run.start > run.segment_size;
        let refused = matches!(
            error.raw_os_error(),
            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP)
        );
        if segmented && self.uses_segmentation_offload && refused {
            // EIO: the driver cannot compute checksums of segments. EINVAL: the kernel does not support the option.
            if error.raw_os_error() != Some(libc::EMSGSIZE) {
                self.uses_segmentation_offload = false;
                self.counters.gso_unavailable.store(true, Ordering::Relaxed);
            }
            return self.send_each_datagram(buffer, run);
        }
        let lost = self.batch.datagram_counts.get(index).copied().unwrap_or(1);
        let counter = match error.kind() {
            io::ErrorKind::WouldBlock => &self.counters.dropped_buffer_full,
            _ => &self.counters.dropped_by_kernel,
        };
        counter.fetch_add(lost, Ordering::Relaxed);
    }

    fn send_each_datagram(&mut self, buffer: &[u8], run: &GsoRun) {
        let name = self.destination_address(run);
        for start in (run.start..run.end).step_by(run.segment_size.max(1)) {
            let datagram = buffer
                .get(start..run.end.min(start + run.segment_size))
                .unwrap_or_default();
            self.counters.send_calls.fetch_add(1, Ordering::Relaxed);
            let counter = match self.socket.udp_socket.send_to(datagram, &name) {
                Ok(_) => &self.counters.sent_datagrams,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => &self.counters.dropped_buffer_full,
                Err(_) => &self.counters.dropped_by_kernel,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn destination_address(&self, run: &GsoRun) -> SockAddr {
        let to = run.destination.to;
        match (self.socket.family, to.ip()) {
            (AddressFamily::V6, IpAddr::V4(ip)) => SocketAddrV6::new(ip.to_ipv6_mapped(), to.port(), 0, 0).into(),
            _ => to.into(),
        }
    }

    fn fill_message_header(&mut self, index: usize, buffer: &[u8], run: &GsoRun) {
        let name = self.destination_address(run);
        let batch = &mut *self.batch;
        let (name_ptr, name_len) = {
            let name = batch.destinations[index].write(name);
            (name.as_ptr(), name.len())
        };
        let bytes = buffer.get(run.start..run.end).unwrap_or_default();
        batch.iovecs[index] = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        batch.datagram_counts[index] = bytes.len().div_ceil(run.segment_size.max(1)) as u64;
        let header = &mut batch.message_headers[index].msg_hdr;
        header.msg_name = name_ptr.cast_mut().cast();
        header.msg_namelen = name_len;
        header.msg_iov = &raw mut batch.iovecs[index];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut batch.control_buffers[index]).cast();
        header.msg_controllen = CONTROL_BUFFER_BYTES as _;
        let mut used = 0;
        let segment = (bytes.len() > run.segment_size).then_some(run.segment_size as u16);
        // SAFETY: the control buffer is aligned for cmsghdr and larger than the two messages written to it.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(header);
            if let Some(segment) = segment {
                used += write_control_message(message, libc::SOL_UDP, libc::UDP_SEGMENT, segment);
                message = libc::CMSG_NXTHDR(header, message);
            }
            match (self.socket.family, run.destination.local_ip) {
                (AddressFamily::V6, Some(from)) => {
                    let ip: Ipv6Addr = match from {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                        IpAddr::V6(ip) => ip,
                    };
                    let info = libc::in6_pktinfo {
                        ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                        ipi6_ifindex: 0,
                    };
                    used += write_control_message(message, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
                }
                (AddressFamily::V4, Some(IpAddr::V4(ip))) => {
                    let source = libc::in_addr {
                        s_addr: u32::from_ne_bytes(ip.octets()),
                    };
                    let info = libc::in_pktinfo {
                        ipi_ifindex: 0,
                        ipi_spec_dst: source,
                        ipi_addr: source,
                    };
                    used += write_control_message(message, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
                }
                (_, None) | (AddressFamily::V4, Some(IpAddr::V6(_))) => {}
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
unsafe fn write_control_message<T>(
    message: *mut libc::cmsghdr,
    level: libc::c_int,
    kind: libc::c_int,
    value: T,
) -> usize {
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

impl DatagramSink for DatagramSender {
    fn send_gso_runs(&mut self, buffer: &[u8], runs: &[GsoRun]) {
        let mut rest = runs;
        while !rest.is_empty() {
            if self.uses_segmentation_offload {
                let (batch, more) = rest.split_at(rest.len().min(SEND_BATCH_SIZE));
                self.send_batch(buffer, batch);
                rest = more;
            } else {
                rest.iter().for_each(|run| self.send_each_datagram(buffer, run));
                rest = &[];
            }
        }
    }
}

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

/// Returns the kernel's id of the calling thread: its folder in `/proc/self/task`.
pub fn thread_id() -> u32 {
    // SAFETY: the call has no arguments and always succeeds (gettid(2)).
    let id = unsafe { libc::gettid() };
    u32::try_from(id).unwrap_or_default()
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

/// Gives memory that was freed back to the system. The allocator keeps what lies between allocations that live on, in an
/// arena of each thread: after a flood of requests that is most of the process.
pub fn trim_free_heap_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and locks each arena while it walks its free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Processors for which the allocator has an arena.
const PROCESSORS_PER_ARENA: usize = 4;

/// Returns the number of arenas of the allocator on a machine.
fn allocator_arena_count(processors: usize) -> usize {
    processors.div_ceil(PROCESSORS_PER_ARENA).max(1)
}

/// Limits the arenas of the allocator, unless `MALLOC_ARENA_MAX` does. To be called before other threads are started. By
/// default nearly each thread has an arena: what is free in one of them is not used by another thread, and can be given
/// back only where a whole page is free.
pub fn limit_malloc_arenas() {
    #[cfg(target_env = "gnu")]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let arenas = allocator_arena_count(processors).min(libc::c_int::MAX as usize) as libc::c_int;
        // SAFETY: it takes no pointer; the value is positive.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
        }
    }
}

#[cfg(test)]
mod tests;
