//! What a session takes from the network without harm: forgeries, floods, replays, noise.

use std::time::Duration;

use bytes::Bytes;
use millstream_core::session::CloseReason;
use millstream_core::session::dtls_filter::{
    MAX_ENCRYPTED_RECORDS_BEFORE_KEYS, MAX_FRAGMENTS_PER_HANDSHAKE_MESSAGE, MAX_HANDSHAKE_RECORDS, PacketDropReason,
};
use millstream_test_support::{DtlsRole, LinkConfig, Profiles};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use crate::session::heap;
use crate::session::world::{PEER, SECOND, STRANGER, Setup, World, record, rtp};

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// A path without delay: everything is over at once.
fn switch_at_once() -> Setup {
    Setup {
        link: LinkConfig::default(),
        ..Setup::default()
    }
}

#[test]
fn invariant_7_forged_clear_text_ends_no_session_that_is_connected() {
    let close_notify = record(ALERT, 0, 900, &[1, 0]);
    let fatal = record(ALERT, 0, 901, &[2, 40]);
    let spec = record(CHANGE_CIPHER_SPEC, 0, 902, &[1]);
    let broken = record(HANDSHAKE, 0, 903, b"short");
    let hello = handshake_fragment(904, 1, 40, 0, &[0; 40]);
    let data = record(APPLICATION_DATA, 0, 905, &[0; 9]);
    for forged in [close_notify, fatal, spec, broken, hello, data] {
        let mut world = World::connected(switch_at_once());
        let sent = world.wire.len();
        for _ in 0..10_000 {
            world.inject(PEER, &forged);
        }
        assert_eq!(world.wire.len(), sent, "nothing is answered");
        assert_eq!(world.dropped(PacketDropReason::PlaintextDtlsRecord), 10_000);
        world.send_rtp(1);
        world.run(SECOND);
        assert_eq!((world.reason(), world.rtp()), (None, vec![rtp(1).into()]));
    }
}

#[test]
fn forged_records_of_the_encrypted_epoch_end_no_session_that_is_connected() {
    for content in [CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA, 24, 99] {
        for epoch in [1, 2, 65_535] {
            let mut world = World::connected(switch_at_once());
            for number in 0..1_000 {
                world.inject(PEER, &record(content, epoch, number, &[0x5a; 48]));
            }
            world.send_rtp(1);
            world.run(SECOND);
            assert_eq!((world.reason(), world.rtp().len()), (None, 1), "{content} {epoch}");
            // Its own goodbye is still understood: no forged record number has closed the window before it.
            world.peer.close(world.now);
            world.run(SECOND);
            assert_eq!(world.reason(), Some(CloseReason::PeerClosed), "{content} {epoch}");
        }
    }
}

/// What one hostile session may make the heap grow by, in bytes.
const MAX_GROWTH: isize = 1 << 20;

/// A session whose peer ICE has authenticated, and which has not begun to shake hands.
fn checked(role: DtlsRole) -> World {
    let mut world = World::new(Setup {
        role,
        ..switch_at_once()
    });
    world.peer.handle_timeout(world.now);
    for check in world.intercept() {
        world.inject(PEER, &check);
    }
    world
}

/// Injects the datagrams and returns by how much the heap grew; what is merely recorded by the test does not count.
fn growth(world: &mut World, datagrams: impl Iterator<Item = Vec<u8>>) -> isize {
    heap::growth(|| datagrams.for_each(|datagram| world.inject(PEER, &datagram)))
}

/// One fragment is one byte of a message of 16,000 bytes: the stack would keep them all and sort them again and again.
/// Others are empty, or claim to be part of far more than a message may hold.
#[test]
fn invariant_9_a_bomb_of_fragments_ends_its_own_session_and_is_not_kept() {
    let ascending: Vec<u32> = (0..28_000).collect();
    let mut shuffled = ascending.clone();
    shuffled.shuffle(&mut StdRng::seed_from_u64(5));
    let descending = ascending.iter().rev().copied().collect();
    for role in [DtlsRole::Client, DtlsRole::Server] {
        for order in [&ascending, &descending, &shuffled, &vec![1; 28_000]] {
            for (body, total) in [(&b"x"[..], 16_000), (b"x", 28_000), (b"", 16_000), (b"", 0xff_ffff)] {
                let bomb = order.iter().zip(0..);
                let bomb = bomb.map(|(offset, n)| handshake_fragment(n, 1, total, offset % total, body));
                let mut world = checked(role);
                let grown = growth(&mut world, bomb);
                assert_eq!(world.reason(), Some(CloseReason::HandshakeFailed), "{role:?} {total}");
                assert!(grown < MAX_GROWTH, "{role:?} {total}: {grown} bytes");
            }
        }
    }
}

/// A path that cuts every message into small pieces and mixes them is no bomb.
#[test]
fn a_client_hello_in_many_pieces_in_any_order_is_answered_like_a_whole_one() {
    let seed = 4_711;
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for pieces in [2, 7, usize::from(MAX_FRAGMENTS_PER_HANDSHAKE_MESSAGE) / 2] {
        let mut world = World::new(switch_at_once());
        world.peer.handle_timeout(world.now);
        for check in world.intercept() {
            world.inject(PEER, &check);
        }
        let response = world.down.poll(world.now).expect("answered");
        world.peer.handle_datagram(world.now, response.from, &response.payload);
        let hello = world.intercept().pop().expect("begins the handshake");
        assert_eq!((hello[0], hello[13]), (HANDSHAKE, 1));
        let body = &hello[25..];
        let size = body.len().div_ceil(pieces);
        let mut fragments: Vec<Vec<u8>> = body
            .chunks(size)
            .zip(0..)
            .map(|(piece, n)| handshake_fragment(n, 1, body.len() as u32, n * size as u32, piece))
            .collect();
        fragments.shuffle(&mut rng);
        for fragment in fragments {
            world.inject(PEER, &fragment);
        }
        let answers = world.wire.iter().filter(|(to, d)| *to == PEER && d[0] == HANDSHAKE);
        assert_eq!(answers.count(), 1, "{pieces} pieces");
        assert_eq!(world.reason(), None);
    }
}

#[test]
fn invariant_9_a_flood_of_the_next_epoch_ends_a_handshake_within_its_limit() {
    for role in [DtlsRole::Client, DtlsRole::Server] {
        let mut world = checked(role);
        for number in 0..MAX_ENCRYPTED_RECORDS_BEFORE_KEYS as u32 {
            world.inject(PEER, &record(APPLICATION_DATA, 1, number, &[0; 1_000]));
            assert_eq!(world.reason(), None, "{number}");
        }
        // 200 MB of them.
        let flood = (0..200_000).map(|number| record(APPLICATION_DATA, 1, number, &[0; 1_000]));
        let grown = growth(&mut world, flood);
        assert_eq!(world.reason(), Some(CloseReason::HandshakeFailed), "{role:?}");
        assert!(grown < MAX_GROWTH, "{role:?}: {grown} bytes");
    }
}

#[test]
fn invariant_9_a_flood_of_hellos_is_answered_a_bounded_number_of_times() {
    let mut world = World::new(switch_at_once());
    world.run(Duration::from_millis(1));
    let hello = world
        .wire
        .iter()
        .find(|(_, d)| d[0] == HANDSHAKE)
        .expect("it sent one")
        .1
        .clone();
    let mut flooded = World::new(switch_at_once());
    flooded.peer.handle_timeout(flooded.now);
    for check in flooded.intercept() {
        flooded.inject(PEER, &check);
    }
    let before: usize = flooded.wire.iter().map(|(_, d)| d.len()).sum();
    for _ in 0..10_000 {
        flooded.inject(PEER, &hello);
    }
    let sent: usize = flooded.wire.iter().map(|(_, d)| d.len()).sum::<usize>() - before;
    println!("{sent} bytes for 10,000 hellos of {} bytes", hello.len());
    assert!(sent <= MAX_HANDSHAKE_RECORDS * hello.len(), "no amplification: {sent}");
}

/// T-08.
#[test]
fn replayed_rtp_is_dropped_and_counted() {
    let mut world = World::connected(switch_at_once());
    let mut packets = Vec::new();
    for seq in 0..300u16 {
        assert!(world.peer.send_rtp(&rtp(seq)));
        packets.extend(world.intercept());
    }
    for packet in packets.iter().chain(&packets).chain(packets.iter().rev()) {
        world.inject(PEER, packet);
    }
    assert_eq!(world.rtp(), (0..300).map(rtp).collect::<Vec<_>>());
    assert_eq!(world.dropped(PacketDropReason::Replayed), 600);
}

#[test]
fn replayed_rtcp_is_dropped_and_counted() {
    let mut world = World::connected(switch_at_once());
    let mut compounds = Vec::new();
    for _ in 0..50 {
        assert!(world.peer.send_rtcp(&[0x80, 201, 0, 1, 9, 9, 9, 9]));
        compounds.extend(world.intercept());
    }
    for compound in compounds.iter().chain(&compounds) {
        world.inject(PEER, compound);
    }
    assert_eq!(
        (world.rtcp().len(), world.dropped(PacketDropReason::Replayed)),
        (50, 50)
    );
}

/// More senders than the SRTP stack keeps state for at a time.
#[test]
fn replayed_rtcp_of_many_senders_is_dropped_and_counted() {
    for profiles in [Profiles::GcmThenCm, Profiles::CmOnly] {
        let mut world = World::connected(Setup {
            profiles,
            ..switch_at_once()
        });
        let mut compounds = Vec::new();
        for sender in 0..100 {
            assert!(world.peer.send_rtcp(&[0x80, 201, 0, 1, 9, 9, 9, sender]));
            compounds.extend(world.intercept());
        }
        for compound in compounds.iter().chain(&compounds) {
            world.inject(PEER, compound);
        }
        let counts = (world.rtcp().len(), world.dropped(PacketDropReason::Replayed));
        assert_eq!(counts, (100, 100), "{profiles:?}");
    }
}

#[test]
fn media_with_any_bit_changed_is_dropped_and_the_true_packet_is_still_taken() {
    for profiles in [Profiles::GcmThenCm, Profiles::CmOnly] {
        let mut world = World::connected(Setup {
            profiles,
            ..switch_at_once()
        });
        world.send_rtp(10);
        world.run(Duration::ZERO);
        let report = [0x80, 201, 0, 1, 9, 9, 9, 9];
        assert!(world.peer.send_rtp(&rtp(11)) && world.peer.send_rtcp(&report));
        let sealed = world.intercept();
        let taken = |world: &World| world.rtp().len() + world.rtcp().len();
        for (packet, is_rtcp) in sealed.iter().zip([false, true]) {
            for bit in 0..packet.len() * 8 {
                let mut forged = packet.to_vec();
                forged[bit / 8] ^= 1 << (bit % 8);
                world.inject(PEER, &forged);
                assert_eq!(taken(&world), 1 + usize::from(is_rtcp), "{profiles:?}, bit {bit}");
            }
            world.inject(PEER, packet);
        }
        assert_eq!(world.rtp(), [rtp(10), rtp(11)]);
        assert_eq!(world.rtcp(), [&report[..]]);
        assert_eq!(world.reason(), None);
    }
}

/// The stack gives back SRTCP that says it is not encrypted as it is, authenticated or not.
#[test]
fn invariant_7_rtcp_in_clear_text_is_not_believed() {
    for profiles in [Profiles::GcmThenCm, Profiles::CmOnly] {
        let mut world = World::connected(Setup {
            profiles,
            ..switch_at_once()
        });
        for index in [1u32, 2, 1_000, 0x7fff_ffff] {
            let mut forged = vec![0x81, 206, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7];
            forged.extend(index.to_be_bytes());
            forged.extend([0; 10]);
            for length in forged.len()..forged.len() + 10 {
                forged.resize(length, 0);
                world.inject(PEER, &forged);
            }
        }
        assert_eq!(world.rtcp(), Vec::<Bytes>::new(), "{profiles:?}");
        let report = [0x80, 201, 0, 1, 0, 0, 0, 1];
        assert!(world.peer.send_rtcp(&report));
        world.run(SECOND);
        assert_eq!(world.rtcp(), [&report[..]], "the peer's own is taken: {profiles:?}");
    }
}

#[test]
fn forged_media_of_many_senders_shuts_the_peer_out_of_nothing() {
    let mut world = World::connected(switch_at_once());
    for ssrc in 0..5_000u32 {
        for first in [[0x80, 201, 0, 1], [0x80, 96, 0, 1]] {
            let mut forged = first.to_vec();
            forged.extend([0; 4].iter().filter(|_| first[1] == 96));
            forged.extend(ssrc.to_be_bytes());
            forged.resize(60, 7);
            world.inject(PEER, &forged);
        }
    }
    world.send_rtp(1);
    assert!(world.peer.send_rtcp(&[0x80, 201, 0, 1, 9, 9, 9, 9]));
    world.run(SECOND);
    assert_eq!((world.rtp().len(), world.rtcp().len(), world.reason()), (1, 1, None));
}

/// Datagrams made from real ones by a seeded hand, before, during and after the handshake, from the peer's own address
/// and from a stranger's.
#[test]
fn invariant_8_a_hundred_thousand_damaged_datagrams_are_no_panic() {
    let seed = 20_260;
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let corpus = corpus();
    let (mut failed, mut survived) = (0, 0);
    for round in 0..1_000u64 {
        let role = if round % 2 == 0 {
            DtlsRole::Client
        } else {
            DtlsRole::Server
        };
        let mut world = World::new(Setup {
            role,
            seed: round % 7,
            link: LinkConfig::delay(Duration::from_millis(10)),
            ..Setup::default()
        });
        // One hundred datagrams, begun at any moment of a handshake of about 80 ms, or after it.
        world.run(Duration::from_millis(rng.random_range(0..160)));
        for _ in 0..100 {
            let datagram = damaged(&corpus, &world.wire, &mut rng);
            let from = if rng.random_bool(0.2) { STRANGER } else { PEER };
            world.inject(from, &datagram);
            if rng.random_bool(0.1) {
                world.run(Duration::from_millis(2));
            }
        }
        world.run(2 * SECOND);
        if world.both_connected() {
            survived += 1;
            world.send_rtp(60_000);
            world.run(SECOND);
            assert!(world.rtp().contains(&rtp(60_000).into()), "round {round}");
        } else {
            failed += 1;
        }
    }
    println!("{survived} sessions connected all the same, {failed} were given up");
    assert!(survived > 0 && failed > 0);
}

/// What both sides send in good sessions of both roles.
fn corpus() -> Vec<Bytes> {
    let mut corpus = Vec::new();
    for role in [DtlsRole::Client, DtlsRole::Server] {
        let mut world = World::connected(Setup {
            role,
            ..switch_at_once()
        });
        for seq in 0..3 {
            world.send_rtp(seq);
        }
        assert!(world.peer.send_rtcp(&[0x80, 201, 0, 1, 9, 9, 9, 9]));
        world.peer.close(world.now);
        world.collect();
        corpus.extend(world.wire.into_iter().map(|(_, datagram)| datagram));
    }
    corpus
}

fn damaged(corpus: &[Bytes], wire: &[(std::net::SocketAddr, Bytes)], rng: &mut StdRng) -> Vec<u8> {
    // What this very session has sent and received has the right passwords and keys.
    let own = wire.choose(rng).filter(|_| rng.random_bool(0.5)).map(|(_, d)| d);
    let mut datagram = own.or(corpus.choose(rng)).expect("not empty").to_vec();
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..=datagram.len());
        match rng.random_range(0..7) {
            0 => datagram.truncate(at),
            1 => datagram.extend(corpus.choose(rng).expect("not empty")),
            2 => datagram.insert(at, rng.random()),
            3 => datagram.resize(rng.random_range(0..2_000), rng.random()),
            4 => rng.fill_bytes(datagram.get_mut(..at.min(16)).unwrap_or_default()),
            _ => datagram
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|b| *b ^= 1 << rng.random_range(0..8)),
        }
    }
    datagram
}

/// A record with one fragment of the first handshake message (RFC 6347 §4.2.2).
fn handshake_fragment(number: u32, kind: u8, total: u32, offset: u32, bytes: &[u8]) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend(&total.to_be_bytes()[1..]);
    body.extend([0, 0]);
    body.extend(&offset.to_be_bytes()[1..]);
    body.extend(&(bytes.len() as u32).to_be_bytes()[1..]);
    body.extend(bytes);
    record(HANDSHAKE, 0, number, &body)
}
