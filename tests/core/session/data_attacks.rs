//! SCTP as nobody sends it, from a peer that has finished DTLS: what it costs, and that the session goes on.

use std::time::Duration;

use bytes::Bytes;
use millstream_core::sdp::negotiation_result::DataPeerRole;
use millstream_test_support::PeerEvent;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::session::heap;
use crate::session::world::{SECOND, Setup, World, rtp};

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const ABORT: u8 = 6;
const ERROR: u8 = 9;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const RE_CONFIG: u8 = 130;
const FORWARD_TSN: u8 = 192;

const OWN_TAG: u32 = 0x5eed_0001;
const FIRST_TSN: u32 = 1_000;

/// Bytes by which an attack may grow the heap: of the gateway, and of what the test keeps of its packets.
const MAX_GROWTH: isize = 1 << 20;

/// A peer that writes each packet by itself.
struct Attacker {
    world: World,
    gateway_tag: u32,
    /// Packets from the gateway that were looked at.
    seen: usize,
}

/// A chunk (RFC 9260 §3.2).
fn chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind, flags];
    chunk.extend((4 + value.len() as u16).to_be_bytes());
    chunk.extend(value);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// A DATA chunk: flags 3 is a whole message, 2 its beginning, 0 its middle, 4 is unordered.
fn data(flags: u8, tsn: u32, stream: u16, ssn: u16, payload: &[u8]) -> Vec<u8> {
    let mut value = tsn.to_be_bytes().to_vec();
    value.extend(stream.to_be_bytes());
    value.extend(ssn.to_be_bytes());
    value.extend(51_u32.to_be_bytes());
    value.extend(payload);
    chunk(0, flags, &value)
}

fn init(tag: u32, parameters: &[u8]) -> Vec<u8> {
    let mut value = tag.to_be_bytes().to_vec();
    value.extend(65_536_u32.to_be_bytes());
    value.extend([0, 16, 0, 16]);
    value.extend(FIRST_TSN.to_be_bytes());
    // Forward-TSN-Supported, and Supported Extensions: FORWARD-TSN and RE-CONFIG.
    value.extend([0xc0, 0, 0, 4, 0x80, 8, 0, 6, FORWARD_TSN, RE_CONFIG, 0, 0]);
    value.extend(parameters);
    chunk(INIT, 0, &value)
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

impl Attacker {
    /// A peer that has finished DTLS and sent nothing of SCTP.
    fn before_init() -> Self {
        let setup = Setup {
            data_channels: Some(DataPeerRole::Viewer),
            ..Setup::default()
        };
        Self {
            world: World::connected(setup),
            gateway_tag: 0,
            seen: 0,
        }
    }

    /// A peer with an association.
    fn established() -> Self {
        let mut attacker = Self::before_init();
        attacker.send(0, &[init(OWN_TAG, &[])]);
        let answers = attacker.answers();
        let [(INIT_ACK, value)] = &answers[..] else {
            panic!("{answers:?}")
        };
        attacker.gateway_tag = u32::from_be_bytes(*value.first_chunk().expect("a tag"));
        // The parameters begin behind 16 bytes; the cookie is of type 7.
        let mut parameters = &value[16..];
        let cookie = loop {
            let length = usize::from(u16::from_be_bytes([parameters[2], parameters[3]]));
            if parameters[..2] == [0, 7] {
                break parameters[4..length].to_vec();
            }
            parameters = &parameters[length.next_multiple_of(4)..];
        };
        attacker.attack(&[chunk(COOKIE_ECHO, 0, &cookie)]);
        assert_eq!(attacker.answers().first().map(|(kind, _)| *kind), Some(COOKIE_ACK));
        attacker
    }

    fn send(&mut self, tag: u32, chunks: &[Vec<u8>]) {
        let mut packet = [5_000_u16.to_be_bytes(), 5_000_u16.to_be_bytes()].concat();
        packet.extend(tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(chunks.concat());
        let checksum = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&checksum);
        self.world.peer.send_dtls_data(self.world.now, &packet);
        self.world.run(Duration::from_millis(6));
    }

    /// Sends a packet of the association.
    fn attack(&mut self, chunks: &[Vec<u8>]) {
        self.send(self.gateway_tag, chunks);
    }

    /// The chunks that the gateway has sent since the last call.
    fn answers(&mut self) -> Vec<(u8, Vec<u8>)> {
        self.world.run(SECOND / 4);
        let packets: Vec<Bytes> = self
            .world
            .peer_events
            .iter()
            .filter_map(|event| match event {
                PeerEvent::ApplicationData(packet) => Some(packet.clone()),
                _ => None,
            })
            .skip(self.seen)
            .collect();
        self.seen += packets.len();
        let mut chunks = Vec::new();
        for packet in packets {
            let mut rest = &packet[12..];
            while rest.len() >= 4 {
                let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
                chunks.push((rest[0], rest[4..length].to_vec()));
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
        chunks
    }

    fn is_aborted(&mut self) -> bool {
        self.answers().iter().any(|(kind, _)| *kind == ABORT)
    }

    /// Whatever was sent, the session lives and takes media.
    fn assert_session_goes_on(&mut self) {
        self.world.peer.send_rtp(&rtp(1));
        self.world.run(SECOND);
        assert_eq!((self.world.rtp().len(), self.world.reason()), (1, None));
    }
}

#[test]
fn a_cause_that_is_longer_than_its_chunk_harms_nobody() {
    for kind in [ABORT, ERROR] {
        for length in [0_u16, 3, 5, 200, 65_535] {
            let mut attacker = Attacker::established();
            let cause = [[0, 12], length.to_be_bytes()].concat();
            attacker.attack(&[chunk(kind, 0, &cause)]);
            attacker.assert_session_goes_on();
        }
    }
}

#[test]
fn a_jump_of_the_sequence_ends_the_association() {
    for ahead in [2_000, (1 << 31) - 2] {
        let mut attacker = Attacker::established();
        let cumulative = (FIRST_TSN - 1).wrapping_add(ahead);
        attacker.attack(&[chunk(FORWARD_TSN, 0, &cumulative.to_be_bytes())]);
        assert!(attacker.is_aborted());
        attacker.assert_session_goes_on();
    }
    let mut attacker = Attacker::established();
    attacker.attack(&[chunk(FORWARD_TSN, 0, &(FIRST_TSN + 9).to_be_bytes())]);
    assert!(!attacker.is_aborted(), "what was given up is passed over");
}

#[test]
fn a_message_without_end_ends_the_association() {
    for flags in [0, 4] {
        let mut attacker = Attacker::established();
        let mut is_aborted = false;
        let grown = heap::growth(|| {
            for n in 0..200 {
                let begins = if n == 0 { 2 } else { 0 };
                attacker.attack(&[data(flags | begins, FIRST_TSN + n, 0, 0, &[7; 1_000])]);
                attacker.world.wire.clear();
            }
            is_aborted = attacker.is_aborted();
        });
        println!("a message without end: {grown} bytes");
        assert!(is_aborted && grown < MAX_GROWTH, "{is_aborted} {grown}");
        attacker.assert_session_goes_on();
    }
}

#[test]
fn stream_resets_for_the_future_take_no_memory() {
    let mut attacker = Attacker::established();
    let request = |n: u32| {
        let mut parameter = vec![0, 13, 0, 18];
        parameter.extend((FIRST_TSN + n).to_be_bytes());
        parameter.extend(0_u32.to_be_bytes());
        parameter.extend((FIRST_TSN + 900).to_be_bytes());
        parameter.extend([0, 1]);
        chunk(RE_CONFIG, 0, &parameter)
    };
    let grown = heap::growth(|| {
        for packet in 0..500 {
            let chunks: Vec<_> = (0..40).map(|n| request(packet * 40 + n)).collect();
            attacker.attack(&chunks);
            attacker.world.wire.clear();
            attacker.world.peer_events.clear();
        }
    });
    println!("20,000 stream resets for the future: {grown} bytes");
    assert!(grown < MAX_GROWTH, "{grown}");
    attacker.assert_session_goes_on();
}

#[test]
fn many_streams_reset_at_once_end_the_association() {
    let mut attacker = Attacker::established();
    let mut parameter = vec![0, 13, 0, 16 + 2 * 17];
    parameter.extend([0; 12]);
    parameter.extend([0, 1].repeat(17));
    attacker.attack(&[chunk(RE_CONFIG, 0, &parameter)]);
    assert!(attacker.is_aborted());
    attacker.assert_session_goes_on();
}

#[test]
fn an_init_is_answered_once_for_each_time_that_it_comes_and_opens_one_association() {
    let mut attacker = Attacker::before_init();
    // An empty last parameter.
    for _ in 0..5 {
        attacker.send(0, &[init(OWN_TAG, &[0x80, 1, 0, 4])]);
    }
    let answers = attacker.answers();
    assert!(answers.iter().all(|(kind, _)| *kind == INIT_ACK), "{answers:?}");
    let tags: Vec<&[u8]> = answers.iter().map(|(_, value)| &value[..4]).collect();
    assert!(!tags.is_empty() && tags.iter().all(|tag| *tag == tags[0]), "{tags:?}");
    attacker.assert_session_goes_on();
}

#[test]
fn a_second_association_is_not_opened() {
    for mut attacker in [Attacker::before_init(), Attacker::established()] {
        attacker.send(0, &[init(OWN_TAG, &[])]);
        attacker.answers();
        let grown = heap::growth(|| {
            for tag in 0..2_000 {
                attacker.send(0, &[init(tag + 1, &[])]);
                attacker.world.wire.clear();
            }
        });
        assert_eq!(attacker.answers(), []);
        assert!(grown < MAX_GROWTH, "{grown}");
        attacker.assert_session_goes_on();
    }
}

#[test]
fn a_stream_id_beyond_those_negotiated_ends_the_association() {
    let mut attacker = Attacker::established();
    for (n, stream) in (0..16).enumerate() {
        attacker.attack(&[data(3, FIRST_TSN + n as u32, stream, 0, b"x")]);
    }
    assert!(!attacker.is_aborted());
    attacker.attack(&[data(3, FIRST_TSN + 16, 16, 0, b"x")]);
    assert!(attacker.is_aborted());
    attacker.assert_session_goes_on();
}

#[test]
fn every_second_sequence_number_is_acknowledged_in_little() {
    let mut attacker = Attacker::established();
    let mut longest = 0;
    let grown = heap::growth(|| {
        for packet in 0..400 {
            let chunks = (0..50).map(|n| data(3, FIRST_TSN + 1 + 2 * (packet * 50 + n), 0, 0, b"x"));
            attacker.attack(&chunks.collect::<Vec<_>>());
            attacker.world.wire.clear();
            for (kind, value) in attacker.answers() {
                assert_eq!(kind, SACK);
                longest = longest.max(value.len());
            }
            attacker.world.peer_events.clear();
            attacker.seen = 0;
        }
    });
    println!("20,000 chunks, every second number: acknowledgements of up to {longest} bytes, {grown} bytes of heap");
    assert!((1_000..=12 + 4 * 512).contains(&longest), "{longest}");
    assert!(grown < MAX_GROWTH, "{grown}");
    attacker.assert_session_goes_on();
}

#[test]
fn messages_that_wait_for_one_that_never_comes_end_the_association() {
    let mut attacker = Attacker::established();
    let mut is_aborted = false;
    let grown = heap::growth(|| {
        // Their numbers are without a gap, and so acknowledged; the first message of the stream is missing.
        for packet in 0..100_u32 {
            let chunks = (0..50).map(|n| {
                let n = packet * 50 + n;
                data(3, FIRST_TSN + n, 0, 1 + (n % 30_000) as u16, b"x")
            });
            attacker.attack(&chunks.collect::<Vec<_>>());
            attacker.world.run(Duration::from_millis(14));
            attacker.world.wire.clear();
        }
        is_aborted = attacker.is_aborted();
    });
    println!("messages that wait: {grown} bytes of heap");
    assert!(is_aborted && grown < MAX_GROWTH, "{is_aborted} {grown}");
    attacker.assert_session_goes_on();
}

/// Chunks of all kinds with some bytes changed, in any order.
#[test]
fn no_mutated_packet_harms_the_session() {
    for seed in 0..60 {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut attacker = Attacker::established();
        for n in 0..150_u32 {
            let mut chunks: Vec<Vec<u8>> = (0..rng.random_range(1..4))
                .map(|_| {
                    let tsn = FIRST_TSN.wrapping_add(n).wrapping_add(rng.random_range(0..3));
                    let value: Vec<u8> = (0..rng.random_range(0..40)).map(|_| rng.random()).collect();
                    match rng.random_range(0..6) {
                        0 => data(
                            rng.random_range(0..8),
                            tsn,
                            rng.random_range(0..16),
                            rng.random_range(0..4),
                            &value,
                        ),
                        1 => chunk(FORWARD_TSN, 0, &[&tsn.to_be_bytes()[..], &value].concat()),
                        2 => chunk(RE_CONFIG, 0, &[&[0, 13, 0, 18][..], &[0; 12], &[0, 1], &value].concat()),
                        3 => chunk(SACK, 0, &[&value[..], &[0; 12]].concat()),
                        4 => init(rng.random(), &value),
                        _ => chunk(
                            [4, 7, 8, COOKIE_ECHO, 14, 64][rng.random_range(0..6)],
                            rng.random(),
                            &value,
                        ),
                    }
                })
                .collect();
            for chunk in &mut chunks {
                if rng.random_bool(0.3) {
                    let at = rng.random_range(0..chunk.len());
                    chunk[at] = rng.random();
                }
            }
            attacker.attack(&chunks);
        }
        attacker.assert_session_goes_on();
    }
}

#[test]
fn packets_that_are_none_are_dropped() {
    let mut attacker = Attacker::established();
    for length in 0..64 {
        attacker.world.peer.send_dtls_data(attacker.world.now, &vec![0; length]);
        attacker.world.run(Duration::from_millis(6));
    }
    for chunks in [
        vec![vec![0, 3, 0, 3]],
        vec![vec![0, 3, 0xff, 0xff]],
        vec![chunk(5, 0, &[0; 8])],
        vec![chunk(77, 0, &[0; 8])],
        vec![data(3, FIRST_TSN, 0, 0, b"x"), vec![1]],
    ] {
        attacker.attack(&chunks);
    }
    assert_eq!(attacker.answers(), []);
    attacker.attack(&[data(3, FIRST_TSN, 0, 0, b"x")]);
    assert_eq!(attacker.answers().first().map(|(kind, _)| *kind), Some(SACK));
    attacker.attack(&[vec![0; 1_300]]);
    assert!(attacker.is_aborted(), "longer than any packet");
    attacker.assert_session_goes_on();
}
