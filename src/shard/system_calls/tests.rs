use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::receiver::DatagramReceiver;
use super::sender::DatagramSender;
use super::socket::ShardSocket;
use super::wait::{ShardWaker, wait_for_datagram_or_wake_up};
use millstream_core::session::outbox::{DatagramSink as _, Destination, GsoRun};
use millstream_core::shard::counters::SendCounters;

fn exchange(listen: SocketAddr, from: SocketAddr, segmentation: bool) {
    let port = Arc::new(ShardSocket::bind(listen).expect("binds"));
    let peer = std::net::UdpSocket::bind(from).expect("binds");
    peer.set_read_timeout(Some(Duration::from_secs(5))).expect("sets");
    let target = SocketAddr::new(from.ip(), port.local_addr().port());
    peer.send_to(b"hello", target).expect("sends");
    let mut receiver = DatagramReceiver::new();
    wait_for_datagram_or_wake_up(
        &port,
        &ShardWaker::new().expect("eventfd"),
        Some(Duration::from_secs(5)),
    );
    assert_eq!(receiver.receive(&port).expect("receives"), 1);
    let received = receiver.datagrams().next().expect("one");
    assert_eq!(
        (&*received.bytes, received.peer_address),
        (&b"hello"[..], peer.local_addr().expect("bound"))
    );
    assert_eq!(received.local_ip, Some(from.ip()));
    let destination = Destination {
        to: received.peer_address,
        local_ip: received.local_ip,
    };
    let counters = Arc::new(SendCounters::default());
    counters.gso_unavailable.store(!segmentation, Ordering::Relaxed);
    let mut sender = DatagramSender::new(port, counters.clone());
    let buffer: Vec<u8> = (0..250u8).collect();
    sender.send_gso_runs(
        &buffer,
        &[GsoRun {
            destination,
            start: 0,
            end: 250,
            segment_size: 100,
        }],
    );
    for (start, end) in [(0, 100), (100, 200), (200, 250)] {
        let mut datagram = [0; 512];
        let (length, source) = peer.recv_from(&mut datagram).expect("arrives");
        assert_eq!((&datagram[..length], source), (&buffer[start..end], target));
    }
    assert_eq!(counters.sent_datagrams.load(Ordering::Relaxed), 3);
    assert_eq!(
        counters.send_calls.load(Ordering::Relaxed),
        if segmentation { 1 } else { 3 }
    );
}

#[test]
fn one_port_serves_both_families_with_and_without_segmentation() {
    let any6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let any4 = SocketAddr::from(([0, 0, 0, 0], 0));
    for segmentation in [true, false] {
        exchange(any4, SocketAddr::from(([127, 0, 0, 1], 0)), segmentation);
        // The rest needs a machine with IPv6.
        if std::net::UdpSocket::bind("[::1]:0").is_ok() {
            exchange(any6, SocketAddr::from(([127, 0, 0, 1], 0)), segmentation);
            exchange(any6, SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), segmentation);
        }
    }
}

#[test]
fn a_destination_that_the_kernel_refuses_does_not_stop_the_others() {
    let port = Arc::new(ShardSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds"));
    let peer = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    peer.set_read_timeout(Some(Duration::from_secs(5))).expect("sets");
    let counters = Arc::new(SendCounters::default());
    let mut sender = DatagramSender::new(port, counters.clone());
    let bad = Destination {
        to: SocketAddr::from(([127, 0, 0, 1], 0)),
        local_ip: None,
    };
    let good = Destination {
        to: peer.local_addr().expect("bound"),
        local_ip: None,
    };
    let runs = [bad, good].map(|destination| GsoRun {
        destination,
        start: 0,
        end: 10,
        segment_size: 10,
    });
    sender.send_gso_runs(&[7; 10], &runs);
    assert_eq!(peer.recv(&mut [0; 64]).expect("arrives"), 10);
    assert_eq!(counters.dropped_by_kernel.load(Ordering::Relaxed), 1);
}
