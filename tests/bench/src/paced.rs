//! Hostile connections at a steady rate, from many addresses of loopback, for `chaos addresses`.

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::mutate::Chance;

/// Connections that are being made at the same time.
const CLIENTS: u64 = 8;

/// Connections that a client keeps open at a time; most say nothing more.
const OPEN_CONNECTIONS: usize = 200;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const IO_TIMEOUT: Duration = Duration::from_millis(500);

/// What became of the connections.
#[derive(Default)]
pub(crate) struct ConnectionOutcomes {
    pub sent: AtomicU64,
    /// Those that got as far as the attack needs: a handshake, a session.
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    pub not_connected: AtomicU64,
}

impl ConnectionOutcomes {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many connections there are, and from how many addresses.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub connections: u64,
    /// Connections per second.
    pub rate: u64,
    /// Addresses from 127.0.1.1 on.
    pub addresses: u8,
    pub seed: u64,
}

impl Pace {
    /// Connects to `to` again and again, has `attack` do its part, and keeps what it returns open for a while.
    pub(crate) fn run<H>(
        &self,
        to: SocketAddr,
        outcomes: &ConnectionOutcomes,
        attack: impl Fn(TcpStream, &mut Chance) -> io::Result<H> + Sync,
    ) {
        let (next, began) = (AtomicU64::new(0), Instant::now());
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (next, attack) = (&next, &attack);
                scope.spawn(move || {
                    let mut chance = Chance::new(self.seed ^ (client << 48));
                    let mut open = VecDeque::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.connections {
                            break;
                        }
                        let due = Duration::from_secs_f64(number as f64 / self.rate.max(1) as f64);
                        thread::sleep((began + due).saturating_duration_since(Instant::now()));
                        ConnectionOutcomes::count(&outcomes.sent);
                        let Ok(stream) = connect_from(self.address(number), to) else {
                            ConnectionOutcomes::count(&outcomes.not_connected);
                            continue;
                        };
                        // A gateway that closes is within its rights.
                        open.extend(attack(stream, &mut chance).ok());
                        if open.len() > OPEN_CONNECTIONS {
                            open.pop_front();
                        }
                    }
                });
            }
        });
    }

    fn address(&self, number: u64) -> Ipv4Addr {
        Ipv4Addr::new(127, 0, 1, 1 + (number % u64::from(self.addresses.max(1))) as u8)
    }
}

/// A TCP connection from a chosen address of this machine.
fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), CONNECT_TIMEOUT)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, net::TcpListener, sync::Mutex};

    #[test]
    fn connections_come_from_as_many_addresses_as_were_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let pace = Pace {
            connections: 30,
            rate: 10_000,
            addresses: 7,
            seed: 1,
        };
        let (seen, outcomes) = (Mutex::new(HashSet::new()), ConnectionOutcomes::default());
        pace.run(to, &outcomes, |stream, _| {
            seen.lock().unwrap().insert(stream.local_addr()?.ip());
            Ok(stream)
        });
        assert_eq!(seen.into_inner().unwrap().len(), 7);
        assert_eq!(outcomes.sent.into_inner(), 30);
        assert_eq!(outcomes.not_connected.into_inner(), 0);
    }
}
