use super::*;
use millstream_core::session::outbox::Destination;

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

/// Resident memory of this process, in MiB.
#[cfg(target_env = "gnu")]
fn resident_mib() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: usize = text
        .split(' ')
        .nth(1)
        .expect("a second field")
        .parse()
        .expect("a number");
    pages * 4 / 1024
}

#[cfg(target_env = "gnu")]
#[test]
fn memory_between_allocations_that_live_on_is_given_back() {
    let allocate = || {
        // Each block of 32 KiB is followed by one that lives on, so that no end of an arena becomes free.
        let pairs = (0..4_096).map(|_| (vec![1_u8; 32 * 1024], Box::new([1_u8; 64])));
        let (blocks, kept): (Vec<_>, Vec<_>) = pairs.unzip();
        (blocks.len(), kept)
    };
    let (count, kept) = std::thread::spawn(allocate).join().expect("ends");
    let before = resident_mib();
    trim_free_heap_memory();
    let after = resident_mib();
    assert_eq!((count, kept.len()), (4_096, 4_096));
    // 128 MiB were freed; other tests allocate meanwhile.
    assert!(after + 64 < before, "{before} MiB before, {after} MiB after");
}

#[test]
fn small_machines_have_one_arena_and_large_ones_one_for_four_processors() {
    assert_eq!([1, 2, 4, 5, 16, 128].map(allocator_arena_count), [1, 1, 1, 2, 4, 32]);
}
