//! Finds the process that uses a port of this host.

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};

use crate::http::server;

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
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
    pub fn is_gateway(&self) -> bool {
        !self.is_own() && name_of("self").as_deref() == Some(&*self.name)
    }

    /// Returns whether it is this process.
    pub fn is_own(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// Binds a UDP port as the media plane does: `[::]` becomes `0.0.0.0` where the kernel has no IPv6.
pub fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(address).or_else(|error| match server::without_ipv6(address) {
        Some(address) => UdpSocket::bind(address),
        None => Err(error),
    })
}

/// Returns the process that uses a port, on any address. `None` if its descriptors cannot be read: another user's process.
pub fn owner(protocol: Protocol, port: u16) -> Option<PortOwner> {
    let tables = match protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
    };
    let read = |table: &str| std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
    let sockets: Vec<String> = tables
        .iter()
        .flat_map(|table| inodes(&read(table), protocol, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| has_any(*pid, &sockets)).find_map(|pid| {
        let name = name_of(&pid.to_string())?;
        Some(PortOwner { name, pid })
    })
}

/// Returns the inodes of the sockets in a kernel table that are bound to a port and, for TCP, listen.
fn inodes(table: &str, protocol: Protocol, port: u16) -> Vec<u64> {
    let has_port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, own) = fields.get(1)?.rsplit_once(':')?;
        let listens = protocol == Protocol::Udp || *fields.get(3)? == LISTEN;
        let is_it = listens && u16::from_str_radix(own, 16).ok()? == port;
        is_it.then(|| fields.get(9)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(has_port).collect()
}

/// Socket state LISTEN.
const LISTEN: &str = "0A";

fn has_any(pid: u32, sockets: &[String]) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let mut targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

fn name_of(process: &str) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_this_process_is_owned_by_this_process() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        for (protocol, address) in [(Protocol::Tcp, tcp.local_addr()), (Protocol::Udp, udp.local_addr())] {
            let owner = owner(protocol, address.expect("bound").port()).expect("our own");
            assert!(owner.is_own() && !owner.is_gateway(), "{owner}");
        }
    }
}
