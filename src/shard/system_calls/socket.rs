//! The UDP port that all shards share.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

/// One shard's socket. All shards bind the same port; the kernel spreads the peers over them (SO_REUSEPORT).
#[derive(Debug)]
pub struct ShardSocket {
    pub(super) udp_socket: Socket,
    pub(super) family: AddressFamily,
    local_addr: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressFamily {
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
