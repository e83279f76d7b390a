//! Datagrams of a good session, altered: before, during and after a handshake.

use std::time::Duration;

use bytes::Bytes;
use millstream_test_support::{DtlsRole, Profiles};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::heap;
use crate::world::{SECOND, Setup, World, is_dtls, receiver_report, rtp};

const SEED: u64 = 20_260_101;

/// Datagrams in each of the tests: 100,000 in all.
const BEFORE: usize = 30_000;
const DURING: usize = 30_000;
const AFTER: usize = 40_000;

const KINDS: [(DtlsRole, Profiles); 4] = [
    (DtlsRole::Client, Profiles::CmThenGcm),
    (DtlsRole::Client, Profiles::CmOnly),
    (DtlsRole::Server, Profiles::CmThenGcm),
    (DtlsRole::Server, Profiles::CmOnly),
];

fn setup(role: DtlsRole, profiles: Profiles) -> Setup {
    Setup {
        role,
        profiles,
        ..Setup::default()
    }
}

/// For a certificate the stack sets aside what three bytes can claim, 16 MiB, before it reads it; it fails and gives it
/// back at once. This is the most that a hostile session may take for a moment.
const MAX_GROWTH: isize = 17 << 20;

/// The most that it may keep.
const MAX_KEPT: isize = 256 << 10;

/// What a peer sent in a good session: checks, handshake, media, reports.
fn recording(world: &mut World) -> Vec<Bytes> {
    for seq in 0..20 {
        assert!(world.peer.send_rtp(&rtp(5, seq)));
        assert!(world.peer.send_rtcp(&receiver_report(5)));
        world.run(Duration::from_millis(20));
    }
    world.take_rtp();
    world.peer_sent.clone()
}

/// One datagram that differs from those of the corpus.
fn mutated(rng: &mut StdRng, corpus: &[Bytes]) -> Vec<u8> {
    loop {
        let original = &corpus[rng.random_range(0..corpus.len())];
        let mut bytes = original.to_vec();
        for _ in 0..rng.random_range(1..4) {
            alter(rng, corpus, &mut bytes);
        }
        if !corpus.iter().any(|good| *good == bytes) {
            return bytes;
        }
    }
}

fn alter(rng: &mut StdRng, corpus: &[Bytes], bytes: &mut Vec<u8>) {
    let at = rng.random_range(0..=bytes.len());
    match rng.random_range(0..8) {
        0 => bytes.truncate(at),
        1 => bytes.extend((0..rng.random_range(1..64)).map(|i: u8| i)),
        2 => {
            // The tail of another datagram.
            let other = &corpus[rng.random_range(0..corpus.len())];
            bytes.truncate(at);
            bytes.extend_from_slice(&other[at.min(other.len())..]);
        }
        3 => {
            let copy = bytes.clone();
            bytes.extend_from_slice(&copy);
        }
        4 => {
            // Lengths and sequence numbers at their limits.
            let value = [0x00, 0x01, 0x7f, 0x80, 0xff][rng.random_range(0..5)];
            let end = (at + rng.random_range(1..4)).min(bytes.len());
            bytes[at..end].fill(value);
        }
        5 => {
            // Headers are where parsers go wrong.
            let at = rng.random_range(0..26);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = rng.random();
            }
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.random_range(0..8);
            }
        }
    }
}

#[test]
fn altered_datagrams_before_a_handshake_neither_panic_nor_shut_the_next_session_out() {
    println!("seed {SEED}");
    let mut rng = StdRng::seed_from_u64(SEED);
    for (role, profiles) in KINDS {
        let corpus = recording(&mut setup(role, profiles).connected());
        let (mut most, before) = (0, heap::live());
        let growth = heap::growth(|| {
            for _ in 0..BEFORE / KINDS.len() / 50 {
                let mut world = setup(role, profiles).world();
                let from = world.peer_address;
                // Half of the sessions know the address already.
                if rng.random() {
                    world.run(Duration::from_millis(10));
                }
                for _ in 0..50 {
                    world.inject(from, &mutated(&mut rng, &corpus));
                }
                world.run(Duration::from_millis(100));
                most = most.max(heap::live() - before);
            }
        });
        println!("{role:?} {profiles:?}: {growth} bytes for a moment, {most} kept");
        assert!(growth < MAX_GROWTH && most < MAX_KEPT, "{growth} {most} bytes");
        setup(role, profiles).connected().assert_media_flows(1);
    }
}

#[test]
fn altered_datagrams_between_those_of_a_handshake_neither_panic_nor_give_keys_to_the_wrong_one() {
    println!("seed {SEED}");
    for (number, (role, profiles)) in (1..).zip(KINDS) {
        let mut rng = StdRng::seed_from_u64(SEED + number);
        let corpus = recording(&mut setup(role, profiles).connected());
        let (mut injected, mut connected, mut sessions) = (0, 0, 0);
        while injected < DURING / KINDS.len() {
            let mut world = setup(role, profiles).world();
            let from = world.peer_address;
            let end = world.now + 12 * SECOND;
            sessions += 1;
            while !world.is_connected() && world.closed().is_none() && world.step(end) {
                // Of this session and of another.
                let own = world.peer_sent.clone();
                for corpus in [&own, &corpus].into_iter().filter(|c| !c.is_empty()) {
                    if rng.random_bool(0.5) {
                        world.inject(from, &mutated(&mut rng, corpus));
                        injected += 1;
                    }
                }
            }
            if world.is_connected() {
                connected += 1;
                world.assert_media_flows(1);
            }
        }
        println!("{role:?} {profiles:?}: {injected} datagrams, {connected} of {sessions} handshakes completed");
        setup(role, profiles).connected().assert_media_flows(1);
    }
}

#[test]
fn altered_datagrams_do_nothing_to_an_established_session() {
    println!("seed {SEED}");
    for (number, (role, profiles)) in (10..).zip(KINDS) {
        let mut rng = StdRng::seed_from_u64(SEED + number);
        let mut world = setup(role, profiles).connected();
        let corpus = recording(&mut world);
        let (from, reports) = (world.peer_address, world.rtcp().len());
        let foreign = recording(&mut setup(role, profiles).connected());
        let growth = heap::growth(|| {
            for number in 0..AFTER / KINDS.len() {
                let corpus = if number % 4 == 0 { &foreign } else { &corpus };
                let datagram = mutated(&mut rng, corpus);
                world.inject(from, &datagram);
                assert_eq!(world.closed(), None, "by {datagram:02x?}");
                assert_eq!(world.session.destination(), Some(from), "by {datagram:02x?}");
                let delivered = world.take_rtp().len() + world.rtcp().len() - reports;
                assert_eq!(delivered, 0, "{datagram:02x?}");
            }
        });
        assert!(growth < MAX_KEPT, "{growth} bytes");
        world.assert_media_flows(1_000);
        assert!(corpus.iter().any(|datagram| is_dtls(datagram)));
        world.peer.close(world.now);
        world.run(SECOND);
        assert!(world.closed().is_some(), "the real goodbye still counts");
    }
}
