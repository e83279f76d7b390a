//! Why a listen address cannot be bound, and which process uses its port.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use crate::http::server;

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportProtocol {
    Tcp,
    Udp,
}

/// A process that uses a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortOwner {
    pub name: String,
    pub pid: u32,
}

impl PortOwner {
    /// Returns whether it is another process of this program.
    pub fn is_other_gateway(&self) -> bool {
        !self.is_this_process() && process_name("self").as_deref() == Some(&*self.name)
    }

    /// Returns whether it is this process.
    pub fn is_this_process(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

impl fmt::Display for TransportProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Why a listen address cannot be bound. This is the only text about it: `serve`, `check` and `doctor` share it.
#[derive(Clone, Debug)]
pub struct BindFailure {
    /// The configuration key of the address.
    pub config_key: &'static str,
    pub protocol: TransportProtocol,
    pub address: SocketAddr,
    /// Whether another socket uses the port; otherwise the address itself cannot be used.
    pub is_in_use: bool,
    /// The process that uses the port, if it can be found.
    pub owner: Option<PortOwner>,
    /// What to do about it.
    pub remedy: &'static str,
    problem: String,
}

impl BindFailure {
    /// Finds out what an error of `bind` means for a key.
    pub fn new(key: &'static str, protocol: TransportProtocol, address: SocketAddr, error: &io::Error) -> Self {
        let is_in_use = error.kind() == io::ErrorKind::AddrInUse;
        let owner = is_in_use.then(|| find_port_owner(protocol, address.port())).flatten();
        let is_own = owner.as_ref().is_some_and(PortOwner::is_this_process);
        let (reason, remedy) = match (&owner, error.kind()) {
            // HTTP is bound first.
            (Some(_), _) if is_own && key != HTTP_LISTEN_KEY => (
                format!("`{HTTP_LISTEN_KEY}` uses this port too"),
                "choose another port, or set `webrtc.tcp = false`",
            ),
            (Some(owner), _) => (
                format!("{owner} is using this port"),
                "stop that process, or choose another port",
            ),
            (None, io::ErrorKind::AddrInUse) => (
                "another process is using this port".to_owned(),
                "find the process with `ss -tulpn` as root and stop it, or choose another port",
            ),
            (None, io::ErrorKind::PermissionDenied) => (
                "ports below 1024 need the capability CAP_NET_BIND_SERVICE".to_owned(),
                "choose a higher port, or grant the capability",
            ),
            (None, io::ErrorKind::AddrNotAvailable) => (
                "this host does not have this address".to_owned(),
                "choose an address that `ip address` lists, or `[::]` for all addresses",
            ),
            (None, _) => (error.to_string(), "choose another address"),
        };
        Self {
            config_key: key,
            protocol,
            address,
            is_in_use,
            owner,
            remedy,
            problem: format!("cannot be bound: {protocol} {address}: {reason}"),
        }
    }

    /// What is wrong, to follow the key.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for BindFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}; {}", self.config_key, self.problem, self.remedy)
    }
}

impl std::error::Error for BindFailure {}

/// The key whose address is bound first.
const HTTP_LISTEN_KEY: &str = "http.listen";

/// Binds a UDP port as the media plane does: `[::]` becomes `0.0.0.0` where the kernel has no IPv6.
pub fn bind_udp_with_ipv4_fallback(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(address).or_else(|error| match server::ipv4_fallback_if_no_ipv6(address) {
        Some(address) => UdpSocket::bind(address),
        None => Err(error),
    })
}

/// Returns the process that uses a port, on any address. `None` if its descriptors cannot be read: another user's
/// process.
pub fn find_port_owner(protocol: TransportProtocol, port: u16) -> Option<PortOwner> {
    let tables = match protocol {
        TransportProtocol::Tcp => ["tcp", "tcp6"],
        TransportProtocol::Udp => ["udp", "udp6"],
    };
    let read = |table: &str| std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
    let sockets: Vec<String> = tables
        .iter()
        .flat_map(|table| listening_socket_inodes(&read(table), protocol, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| process_has_any_socket(*pid, &sockets))
        .find_map(|pid| {
            let name = process_name(&pid.to_string())?;
            Some(PortOwner { name, pid })
        })
}

/// Returns the inodes of the sockets in a kernel table that are bound to a port and, for TCP, listen.
fn listening_socket_inodes(table: &str, protocol: TransportProtocol, port: u16) -> Vec<u64> {
    let has_port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, own) = fields.get(1)?.rsplit_once(':')?;
        let listens = protocol == TransportProtocol::Udp || *fields.get(3)? == TCP_STATE_LISTEN;
        let is_it = listens && u16::from_str_radix(own, 16).ok()? == port;
        is_it.then(|| fields.get(9)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(has_port).collect()
}

/// Socket state LISTEN.
const TCP_STATE_LISTEN: &str = "0A";

fn process_has_any_socket(pid: u32, sockets: &[String]) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let mut targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

fn process_name(process: &str) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_to_do_for_each_reason() {
        let failure = |key, address: &str, error: io::ErrorKind| {
            let address = address.parse().expect("an address");
            BindFailure::new(key, TransportProtocol::Tcp, address, &error.into()).to_string()
        };
        // Nothing listens on port 0, so that no owner is found.
        for (error, wanted) in [
            (io::ErrorKind::AddrInUse, "ss -tulpn"),
            (io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            (io::ErrorKind::AddrNotAvailable, "ip address"),
            (io::ErrorKind::OutOfMemory, "choose another address"),
        ] {
            let text = failure("http.listen", "192.0.2.1:0", error);
            assert!(text.contains(wanted), "{text}");
        }
        let bound = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = bound.local_addr().expect("bound").to_string();
        let text = failure("webrtc.listen", &address, io::ErrorKind::AddrInUse);
        let wanted = format!("`webrtc.listen` cannot be bound: TCP {address}: `http.listen` uses this port too; ");
        assert!(text.starts_with(&wanted), "{text}");
        let text = failure("http.listen", &address, io::ErrorKind::AddrInUse);
        let wanted = format!("(process {}) is using this port; stop that process", std::process::id());
        assert!(text.contains(&wanted), "{text}");
    }

    #[test]
    fn a_port_of_this_process_is_owned_by_this_process() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        for (protocol, address) in [
            (TransportProtocol::Tcp, tcp.local_addr()),
            (TransportProtocol::Udp, udp.local_addr()),
        ] {
            let owner = find_port_owner(protocol, address.expect("bound").port()).expect("our own");
            assert!(owner.is_this_process() && !owner.is_other_gateway(), "{owner}");
        }
    }
}
