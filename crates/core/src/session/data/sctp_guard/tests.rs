use std::time::Duration;

use super::*;

/// A packet of chunks, each with its type and value.
fn packet(chunks: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut packet = vec![0; COMMON_HEADER_LEN];
    for (kind, value) in chunks {
        packet.extend([*kind, 3]);
        packet.extend((4 + value.len() as u16).to_be_bytes());
        packet.extend(value);
        packet.resize(packet.len().next_multiple_of(4), 0);
    }
    packet
}

fn init(tag: u32, initial_tsn: u32) -> (u8, Vec<u8>) {
    let fields = [tag, 65_536, 0x0010_0010, initial_tsn];
    (INIT, fields.iter().flat_map(|field| field.to_be_bytes()).collect())
}

fn data(tsn: u32, stream: u16, length: usize) -> (u8, Vec<u8>) {
    let mut value = tsn.to_be_bytes().to_vec();
    value.extend(stream.to_be_bytes());
    value.extend([0; 6]);
    value.resize(12 + length, 0);
    (DATA, value)
}

fn sack(cumulative: u32) -> (u8, Vec<u8>) {
    let mut value = cumulative.to_be_bytes().to_vec();
    value.extend([0; 8]);
    (SACK, value)
}

struct Guarded {
    guard: SctpGuard,
    now: Instant,
}

impl Guarded {
    /// A guard that has seen the INIT of a peer whose first number is 1.
    fn after_init(role: DataPeerRole) -> Self {
        #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
        let now = Instant::now();
        let mut guarded = Self {
            guard: SctpGuard::new(role),
            now,
        };
        assert_eq!(guarded.check(&[init(7, 1)]), Ok(()));
        guarded
    }

    fn check(&mut self, chunks: &[(u8, Vec<u8>)]) -> Result<(), SctpRejection> {
        self.guard.admit_packet(self.now, &packet(chunks))
    }
}

const DROP_UNEXPECTED: Result<(), SctpRejection> = Err(SctpRejection::Drop(SctpDropReason::Unexpected));

#[test]
fn one_init_may_be_repeated_until_the_association_is_established() {
    let mut guarded = Guarded::after_init(DataPeerRole::Viewer);
    assert_eq!(guarded.check(&[init(7, 1)]), Ok(()));
    assert_eq!(guarded.check(&[init(8, 1)]), DROP_UNEXPECTED);
    guarded.guard.mark_established();
    assert_eq!(guarded.check(&[init(7, 1)]), DROP_UNEXPECTED);
    let mut guard = SctpGuard::new(DataPeerRole::Viewer);
    let refused = guard.admit_packet(guarded.now, &packet(&[data(1, 0, 1)]));
    assert_eq!(refused, DROP_UNEXPECTED, "before the INIT");
}

#[test]
fn the_window_follows_what_the_gateway_acknowledges() {
    let mut guarded = Guarded::after_init(DataPeerRole::Publisher);
    let ahead = Err(SctpRejection::Drop(SctpDropReason::SequenceAhead));
    assert_eq!(guarded.check(&[data(1_024, 0, 1)]), Ok(()));
    assert_eq!(guarded.check(&[data(1_025, 0, 1)]), ahead);
    guarded.guard.record_sent_sacks(&packet(&[sack(500)]));
    assert_eq!(guarded.check(&[data(1_524, 0, 1)]), Ok(()));
    assert_eq!(guarded.check(&[data(1_525, 0, 1)]), ahead);
    assert_eq!(guarded.check(&[data(3, 0, 1)]), Ok(()), "an old number is sent again");
}

#[test]
fn a_viewer_is_held_to_its_rates_and_a_publisher_to_others() {
    for (role, most) in [(DataPeerRole::Viewer, 200), (DataPeerRole::Publisher, 2_000)] {
        let mut guarded = Guarded::after_init(role);
        let heartbeat = (HEARTBEAT, vec![0; 8]);
        let taken = (0..5_000).filter(|_| guarded.check(std::slice::from_ref(&heartbeat)).is_ok());
        // The INIT was one of them.
        assert_eq!(taken.count(), most - 1, "{role:?}");
        assert_eq!(
            guarded.check(&[sack(1)]),
            Ok(()),
            "acknowledgements have a rate of their own"
        );
        guarded.now += Duration::from_secs(1);
        assert_eq!(guarded.check(&[heartbeat]), Ok(()));
    }
    let mut guarded = Guarded::after_init(DataPeerRole::Viewer);
    let taken = (1..200)
        .filter(|n| guarded.check(&[data(*n, 0, 1_000)]).is_ok())
        .count();
    assert_eq!(taken, 63, "64 KiB of packets of 1,028 bytes, behind an INIT");
    let acknowledged = (0..5_000).filter(|_| guarded.check(&[sack(1)]).is_ok()).count();
    assert_eq!(acknowledged, 2_000);
}

#[test]
fn chunks_that_are_never_delivered_are_counted_once_and_end_the_transport_of_a_viewer() {
    let mut guarded = Guarded::after_init(DataPeerRole::Viewer);
    let mut result = Ok(());
    let mut sent = 0;
    while result.is_ok() {
        let chunks: Vec<_> = (1..=50).map(|n| data(sent + n, 0, 1)).collect();
        result = guarded.check(&chunks);
        if result.is_ok() {
            assert_eq!(guarded.check(&chunks), Ok(()), "a repetition is no new chunk");
        }
        sent += 50;
        guarded.guard.record_sent_sacks(&packet(&[sack(sent)]));
        guarded.now += Duration::from_secs(1);
    }
    assert_eq!(result, Err(SctpRejection::End(SctpLimitExceeded::UndeliveredChunks)));
    assert_eq!(sent, 1_550);
    guarded.guard.on_message_delivered(50);
    assert_eq!(guarded.check(&[data(sent + 1, 0, 1)]), Ok(()));
}

#[test]
fn limits_of_a_packet_end_the_transport() {
    let end = |limit| Err(SctpRejection::End(limit));
    let mut guarded = Guarded::after_init(DataPeerRole::Publisher);
    assert_eq!(guarded.check(&[data(1, 15, 1_236)]), Ok(()));
    assert_eq!(
        guarded.check(&[data(2, 0, 1_280)]),
        end(SctpLimitExceeded::PacketLength)
    );
    let tiny = vec![(HEARTBEAT, vec![]); 64];
    assert_eq!(guarded.check(&tiny), Ok(()));
    let more = vec![(HEARTBEAT, vec![]); 65];
    assert_eq!(guarded.check(&more), end(SctpLimitExceeded::ChunkCount));
    assert_eq!(guarded.check(&[data(2, 16, 1)]), end(SctpLimitExceeded::StreamId));
    let forward = |tsn: u32| (FORWARD_TSN, tsn.to_be_bytes().to_vec());
    assert_eq!(guarded.check(&[forward(1_024)]), Ok(()));
    assert_eq!(guarded.check(&[forward(1_025)]), end(SctpLimitExceeded::SequenceJump));
    let reset = |ids: &[u16]| {
        let mut value = vec![0, 13];
        value.extend((16 + 2 * ids.len() as u16).to_be_bytes());
        value.extend([0; 12]);
        value.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        (RE_CONFIG, value)
    };
    assert_eq!(guarded.check(&[reset(&[0, 15])]), Ok(()));
    assert_eq!(guarded.check(&[reset(&[16])]), end(SctpLimitExceeded::StreamReset));
    assert_eq!(guarded.check(&[reset(&[1; 17])]), end(SctpLimitExceeded::StreamReset));
}

#[test]
fn malformed_packets_are_dropped() {
    let mut guarded = Guarded::after_init(DataPeerRole::Viewer);
    let malformed = Err(SctpRejection::Drop(SctpDropReason::Malformed));
    let good = packet(&[data(1, 0, 5)]);
    for length in 0..COMMON_HEADER_LEN + 4 {
        assert_eq!(
            guarded.guard.admit_packet(guarded.now, &good[..length]),
            malformed,
            "{length}"
        );
    }
    for chunk in [
        (DATA, vec![0; 5]),
        (FORWARD_TSN, vec![0; 3]),
        (RE_CONFIG, vec![0, 13, 0, 99]),
        (RE_CONFIG, vec![0]),
    ] {
        assert_eq!(guarded.check(&[chunk]), malformed);
    }
    let heartbeat_ack = 5;
    for kind in [2, heartbeat_ack, 9, 11, 64, 194, 255] {
        assert_eq!(guarded.check(&[(kind, vec![0; 8])]), DROP_UNEXPECTED, "{kind}");
    }
}
