//! Sends datagrams in batches (sendmmsg(2)), and runs of equal length in one piece (UDP_SEGMENT).

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use socket2::SockAddr;

use super::control_message::{CONTROL_BUFFER_BYTES, ControlMessageBuffer, write_control_message};
use super::socket::{AddressFamily, ShardSocket};
use millstream_core::session::outbox::{DatagramSink, GsoRun};
use millstream_core::shard::counters::SendCounters;

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
