//! What somebody on the path can send from the peer's own address: records that nobody has authenticated.

use millstream::session::CloseReason;
use millstream::session::guard::DropReason;
use millstream_test_support::DtlsRole;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngCore as _, SeedableRng as _};

use crate::heap;
use crate::world::{SECOND, Setup, World, record};

const ROLES: [DtlsRole; 2] = [DtlsRole::Client, DtlsRole::Server];

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// What one hostile session may make the heap grow by.
const MAX_GROWTH: isize = 1 << 20;

/// A handshake fragment (RFC 6347 §4.2.2) in a record of its own.
fn fragment(kind: u8, message: u16, total: u32, offset: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(&total.to_be_bytes()[1..]);
    bytes.extend_from_slice(&message.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes()[1..]);
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    bytes.extend_from_slice(body);
    record(HANDSHAKE, 0, &bytes)
}

/// A session whose peer ICE has authenticated, and which has not begun to shake hands.
fn checked(role: DtlsRole) -> World {
    let setup = Setup {
        role,
        ..Setup::default()
    };
    let mut world = setup.world();
    let end = world.now + SECOND;
    while world.session.destination().is_none() && world.step(end) {}
    assert!(world.session.destination().is_some());
    world.cut();
    world
}

#[test]
fn ten_thousand_records_in_clear_text_do_nothing_to_an_established_session() {
    let forged = [
        ("a fatal alert", record(ALERT, 0, &[2, 40])),
        ("close_notify", record(ALERT, 0, &[1, 0])),
        ("a handshake message", fragment(1, 0, 100, 0, &[7; 100])),
        ("a broken handshake message", record(HANDSHAKE, 0, b"short")),
        ("a Finished", fragment(20, 5, 12, 0, &[7; 12])),
        ("a ChangeCipherSpec", record(20, 0, &[1])),
        ("application data", record(APPLICATION_DATA, 0, &[7; 64])),
        ("an unknown record", record(40, 0, &[7; 64])),
    ];
    for role in ROLES {
        for (name, datagram) in &forged {
            let setup = Setup {
                role,
                ..Setup::default()
            };
            let mut world = setup.connected();
            let (from, sent) = (world.peer_address, world.sent.len());
            let growth = heap::growth(|| (0..10_000).for_each(|_| world.inject(from, datagram)));
            assert_eq!(world.sent.len(), sent, "{name} is not answered");
            assert_eq!(world.dropped(DropReason::PlainText), 10_000, "{name}");
            assert!(growth < MAX_GROWTH, "{name}: {growth} bytes");
            world.assert_media_flows(1);
            world.run(10 * SECOND);
            assert_eq!(world.closed(), None, "{name}");
        }
    }
}

#[test]
fn records_under_a_wrong_key_do_nothing_to_an_established_session() {
    for role in ROLES {
        for content in [20, ALERT, HANDSHAKE, APPLICATION_DATA] {
            for epoch in [1, 2, 0xffff] {
                let setup = Setup {
                    role,
                    ..Setup::default()
                };
                let mut world = setup.connected();
                let (from, sent) = (world.peer_address, world.sent.len());
                let datagram = record(content, epoch, &[7; 64]);
                let growth = heap::growth(|| (0..1_000).for_each(|_| world.inject(from, &datagram)));
                assert!(growth < MAX_GROWTH, "{growth} bytes");
                assert_eq!(world.sent.len(), sent, "content {content}, epoch {epoch}");
                world.assert_media_flows(1);
                assert_eq!(world.closed(), None, "content {content}, epoch {epoch}");
                world.peer.close(world.now);
                world.run(SECOND);
                assert_eq!(
                    world.closed(),
                    Some(CloseReason::PeerClosed),
                    "the real goodbye still counts"
                );
            }
        }
    }
}

#[test]
fn a_bomb_of_28_000_fragments_ends_its_session_and_nothing_else() {
    let seed = 5;
    println!("seed {seed}");
    let ascending: Vec<u32> = (0..28_000).collect();
    let descending: Vec<u32> = ascending.iter().rev().copied().collect();
    let mut shuffled = ascending.clone();
    shuffled.shuffle(&mut StdRng::seed_from_u64(seed));
    let orders = [
        ("ascending", ascending),
        ("descending", descending),
        ("shuffled", shuffled),
        ("one", vec![1; 28_000]),
    ];
    for role in ROLES {
        // A ClientHello is reassembled by us, anything else by the stack.
        for (kind, message) in [(1, 0), (2, 0), (11, 1), (1, 40_000)] {
            for (name, order) in &orders {
                for body in [&b"x"[..], b""] {
                    for total in [16_000, 28_000, 0xff_ffff] {
                        let bomb = |offset: &u32| fragment(kind, message, total, offset % total.min(28_000), body);
                        let mut world = checked(role);
                        let from = world.peer_address;
                        let growth = heap::growth(|| order.iter().for_each(|offset| world.inject(from, &bomb(offset))));
                        let context = format!("{role:?} {kind} {message} {name} {total} {growth} bytes");
                        assert_eq!(world.closed(), Some(CloseReason::HandshakeFailed), "{context}");
                        assert!(growth < MAX_GROWTH, "{context}");
                    }
                }
            }
        }
    }
    Setup::default().connected().assert_media_flows(1);
}

#[test]
fn fragments_packed_into_full_datagrams_or_sent_in_between_a_handshake_are_bounded_too() {
    for role in ROLES {
        let packed: Vec<u8> = (0..50u32)
            .flat_map(|offset| fragment(1, 3, 16_000, offset * 2, b"x"))
            .collect();
        let mut world = checked(role);
        let from = world.peer_address;
        let growth = heap::growth(|| (0..1_000).for_each(|_| world.inject(from, &packed)));
        assert_eq!(world.closed(), Some(CloseReason::HandshakeFailed), "{role:?}");
        assert!(growth < MAX_GROWTH, "{role:?}: {growth} bytes");
        // Messages of the largest size, none of them complete.
        let mut world = checked(role);
        let from = world.peer_address;
        let growth = heap::growth(|| {
            for message in 1..1_000 {
                world.inject(from, &fragment(11, message, 16_384, 1, &[7; 1_300]));
            }
        });
        assert_eq!(world.closed(), Some(CloseReason::HandshakeFailed), "{role:?}");
        assert!(growth < MAX_GROWTH, "{role:?}: {growth} bytes");
    }
}

/// 150,000 records of 1,400 bytes: 210 MB.
#[test]
fn a_flood_of_200_mb_for_the_next_epoch_is_not_kept() {
    let mut junk = [0; 1_387];
    StdRng::seed_from_u64(1).fill_bytes(&mut junk);
    for role in ROLES {
        for (content, epoch) in [(APPLICATION_DATA, 1), (HANDSHAKE, 1), (APPLICATION_DATA, 2)] {
            for connected in [false, true] {
                let setup = Setup {
                    role,
                    ..Setup::default()
                };
                let mut world = if connected { setup.connected() } else { checked(role) };
                let from = world.peer_address;
                let datagram = record(content, epoch, &junk);
                let growth = heap::growth(|| (0..150_000).for_each(|_| world.inject(from, &datagram)));
                let context = format!("{role:?} content {content} epoch {epoch} connected {connected}: {growth} bytes");
                assert!(growth < MAX_GROWTH, "{context}");
                // Application data before the keys are there fits no honest peer; the rest is left out.
                let ends = !connected && (content, epoch) == (APPLICATION_DATA, 1);
                assert_eq!(
                    world.closed(),
                    ends.then_some(CloseReason::HandshakeFailed),
                    "{context}"
                );
                world.mend();
                if !connected && !ends {
                    assert!(world.connect(5 * SECOND), "{context}: {}", world.describe());
                }
                if !ends {
                    world.assert_media_flows(1);
                }
            }
        }
    }
}
