//! Receives datagrams in batches (recvmmsg(2)).

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::SockAddr;

use super::control_message::{CONTROL_BUFFER_BYTES, ControlMessageBuffer, received_destination_ip};
use super::socket::ShardSocket;

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
