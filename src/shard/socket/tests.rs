use super::*;
use millstream_core::session::outbox::Destination;

fn exchange(listen: SocketAddr, from: SocketAddr, segmentation: bool) {
    let port = Arc::new(UdpPort::bind(listen).expect("binds"));
    let peer = std::net::UdpSocket::bind(from).expect("binds");
    peer.set_read_timeout(Some(Duration::from_secs(5))).expect("sets");
    let target = SocketAddr::new(from.ip(), port.local().port());
    peer.send_to(b"hello", target).expect("sends");
    let mut receiver = Receiver::new();
    wait(&port, &Waker::new().expect("eventfd"), Some(Duration::from_secs(5)));
    assert_eq!(receiver.receive(&port).expect("receives"), 1);
    let received = receiver.datagrams().next().expect("one");
    assert_eq!(
        (&*received.bytes, received.from),
        (&b"hello"[..], peer.local_addr().expect("bound"))
    );
    assert_eq!(received.to, Some(from.ip()));
    let destination = Destination {
        to: received.from,
        from: received.to,
    };
    let counters = Arc::new(SendCounters::default());
    counters.without_segmentation.store(!segmentation, Ordering::Relaxed);
    let mut sender = Sender::new(port, counters.clone());
    let buffer: Vec<u8> = (0..250u8).collect();
    sender.send(
        &buffer,
        &[Run {
            destination,
            start: 0,
            end: 250,
            segment: 100,
        }],
    );
    for (start, end) in [(0, 100), (100, 200), (200, 250)] {
        let mut datagram = [0; 512];
        let (length, source) = peer.recv_from(&mut datagram).expect("arrives");
        assert_eq!((&datagram[..length], source), (&buffer[start..end], target));
    }
    assert_eq!(counters.datagrams.load(Ordering::Relaxed), 3);
    assert_eq!(counters.calls.load(Ordering::Relaxed), if segmentation { 1 } else { 3 });
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
    let port = Arc::new(UdpPort::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("binds"));
    let peer = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    peer.set_read_timeout(Some(Duration::from_secs(5))).expect("sets");
    let counters = Arc::new(SendCounters::default());
    let mut sender = Sender::new(port, counters.clone());
    let bad = Destination {
        to: SocketAddr::from(([127, 0, 0, 1], 0)),
        from: None,
    };
    let good = Destination {
        to: peer.local_addr().expect("bound"),
        from: None,
    };
    let runs = [bad, good].map(|destination| Run {
        destination,
        start: 0,
        end: 10,
        segment: 10,
    });
    sender.send(&[7; 10], &runs);
    assert_eq!(peer.recv(&mut [0; 64]).expect("arrives"), 10);
    assert_eq!(counters.dropped_refused.load(Ordering::Relaxed), 1);
}
