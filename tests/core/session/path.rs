//! Where media goes: nowhere but to whom has shown to receive there (invariant 7).

use std::time::Duration;

use bytes::Bytes;
use millstream_core::session::TransportEvent;
use millstream_test_support::{DtlsRole, IceStyle, LinkConfig};

use crate::session::world::{ELSEWHERE, PEER, SECOND, STRANGER, Setup, World, rtp};

const ROLES: [DtlsRole; 2] = [DtlsRole::Client, DtlsRole::Server];

/// A check of the peer that nominates, not yet on its way.
fn nomination(world: &mut World) -> Bytes {
    world.collect();
    world.peer.check_now(world.now);
    world.peer.handle_timeout(world.now);
    world.intercept().pop().expect("a check")
}

/// What the peer says to the checks that the gateway has sent to an address since the wire had so many datagrams.
fn answers(world: &mut World, to: std::net::SocketAddr, since: usize) -> Vec<Bytes> {
    let checks = world.wire.iter().skip(since);
    let checks: Vec<Bytes> = checks
        .filter(|(receiver, datagram)| *receiver == to && datagram.starts_with(&[0, 1]))
        .map(|(_, datagram)| datagram.clone())
        .collect();
    for check in checks {
        world
            .peer
            .handle_datagram(world.now, crate::session::world::SERVER, &check);
    }
    world.intercept()
}

fn moves(world: &World) -> usize {
    world
        .events
        .iter()
        .filter(|e| matches!(e, TransportEvent::DestinationMoved(_)))
        .count()
}

#[test]
fn invariant_7_an_address_that_answers_nothing_gets_nothing_but_a_few_checks() {
    let mut world = World::connected(Setup::default());
    let mut forged = 0;
    for _ in 0..100 {
        let check = nomination(&mut world);
        forged += check.len();
        world.inject(STRANGER, &check);
        world.run(SECOND);
    }
    assert_eq!((world.session.remote_destination(), moves(&world)), (Some(PEER), 1));
    let sent: Vec<&Bytes> = world
        .wire
        .iter()
        .filter(|(to, _)| *to == STRANGER)
        .map(|(_, d)| d)
        .collect();
    assert!(sent.iter().all(|datagram| datagram[0] < 4), "STUN");
    let bytes: usize = sent.iter().map(|datagram| datagram.len()).sum();
    println!("{bytes} bytes for {forged}");
    assert!(bytes < 6 * forged, "{bytes} bytes for {forged}");
    assert_eq!(world.reason(), None);
}

#[test]
fn invariant_7_many_forged_addresses_are_no_lever_either() {
    let mut world = World::connected(Setup::default());
    let (mut forged, before) = (0, world.wire.len());
    for port in 1..1_000 {
        let check = nomination(&mut world);
        forged += check.len();
        world.inject(std::net::SocketAddr::new(STRANGER.ip(), port), &check);
        world.run(Duration::from_millis(1));
    }
    world.run(SECOND);
    assert_eq!((world.session.remote_destination(), moves(&world)), (Some(PEER), 1));
    let astray = world
        .wire
        .iter()
        .skip(before)
        .filter(|(to, _)| to.ip() == STRANGER.ip());
    let bytes: usize = astray.map(|(_, datagram)| datagram.len()).sum();
    println!("{bytes} bytes for {forged}");
    assert!(bytes < 3 * forged, "{bytes} bytes for {forged}");
}

#[test]
fn invariant_7_a_response_proves_one_address_by_one_check() {
    let mut world = World::connected(Setup::default());
    let check = nomination(&mut world);
    let mark = world.wire.len();
    world.inject(ELSEWHERE, &check);
    let answer = answers(&mut world, ELSEWHERE, mark).pop().expect("answered");
    for from in [PEER, STRANGER] {
        world.inject(from, &answer);
        assert_eq!(world.session.remote_destination(), Some(PEER), "from {from}");
    }
    for bit in 0..answer.len() * 8 {
        let mut forged = answer.to_vec();
        forged[bit / 8] ^= 1 << (bit % 8);
        // What follows MESSAGE-INTEGRITY is not authenticated and not read.
        if bit / 8 < answer.len() - 8 && bit / 8 != 3 {
            world.inject(ELSEWHERE, &forged);
            assert_eq!(world.session.remote_destination(), Some(PEER), "bit {bit}");
        }
    }
    world.inject(ELSEWHERE, &answer);
    assert_eq!(world.session.remote_destination(), Some(ELSEWHERE));

    // The same answer proves nothing for another address, nor for the same one later.
    let (back, away) = (nomination(&mut world), nomination(&mut world));
    let mark = world.wire.len();
    world.inject(PEER, &back);
    world.inject(PEER, &answer);
    let fresh = answers(&mut world, PEER, mark).pop().expect("answered");
    world.inject(PEER, &fresh);
    assert_eq!(world.session.remote_destination(), Some(PEER));
    world.inject(ELSEWHERE, &away);
    world.inject(ELSEWHERE, &answer);
    assert_eq!(world.session.remote_destination(), Some(PEER));
}

#[test]
fn the_newest_nomination_counts() {
    let mut world = World::connected(Setup::default());
    let (away, stays) = (nomination(&mut world), nomination(&mut world));
    let mark = world.wire.len();
    world.inject(ELSEWHERE, &away);
    world.inject(PEER, &stays);
    for answer in answers(&mut world, ELSEWHERE, mark) {
        world.inject(ELSEWHERE, &answer);
    }
    world.run(10 * SECOND);
    assert_eq!((world.session.remote_destination(), moves(&world)), (Some(PEER), 1));
}

#[test]
fn a_path_moves_one_round_trip_after_its_nomination() {
    for role in ROLES {
        let mut world = World::connected(Setup {
            role,
            ..Setup::default()
        });
        world.peer_address = ELSEWHERE;
        world.peer.check_now(world.now);
        world.run(Duration::from_millis(59));
        assert_eq!(world.session.remote_destination(), Some(PEER), "{role:?}");
        world.run(Duration::from_millis(1));
        assert_eq!(world.session.remote_destination(), Some(ELSEWHERE), "{role:?}");
    }
}

/// Browsers repeat the check of a new path every half second.
#[test]
fn a_path_moves_within_two_seconds_at_twenty_percent_loss() {
    let mut slowest = Duration::ZERO;
    for seed in 0..60 {
        let mut world = World::connected(Setup {
            link: LinkConfig::delay(Duration::from_millis(50)),
            seed,
            ..Setup::default()
        });
        for (link, salt) in [(&mut world.up, 1), (&mut world.down, 2)] {
            let lossy = LinkConfig {
                loss: 0.2,
                ..LinkConfig::delay(Duration::from_millis(50))
            };
            *link = millstream_test_support::LossyLink::new(lossy, seed << 8 | salt);
        }
        world.peer_address = ELSEWHERE;
        let moved = world.now;
        while world.session.remote_destination() != Some(ELSEWHERE) {
            if (world.now - moved).as_millis().is_multiple_of(500) {
                world.peer.check_now(world.now);
            }
            world.run(Duration::from_millis(10));
            assert!(world.now - moved < 2 * SECOND, "seed {seed}");
        }
        slowest = slowest.max(world.now - moved);
    }
    println!("slowest {slowest:?}");
}

/// C-02, P-16.
#[test]
fn a_peer_that_answers_no_check_keeps_its_session_on_the_path_that_it_has_proven() {
    let mut world = World::connected(Setup {
        ice: IceStyle {
            answers: false,
            ..IceStyle::BROWSER
        },
        ..Setup::default()
    });
    for round in 0..40 {
        let check = nomination(&mut world);
        world.inject(ELSEWHERE, &check);
        assert!(world.peer.send_rtp(&rtp(round)));
        let packet = world.intercept().pop().expect("sealed");
        world.inject(ELSEWHERE, &packet);
        world.run(SECOND);
    }
    assert_eq!(world.rtp().len(), 40, "what it sends from there is taken");
    assert_eq!((world.session.remote_destination(), world.reason()), (Some(PEER), None));
}

#[test]
fn invariant_7_no_nomination_during_the_handshake_diverts_media() {
    for role in ROLES {
        for moment in 0..160 {
            let mut world = World::new(Setup {
                role,
                link: LinkConfig::delay(Duration::from_millis(10)),
                ..Setup::default()
            });
            let forged = nomination(&mut world);
            world.peer.check_now(world.now);
            world.run(Duration::from_millis(moment));
            world.inject(STRANGER, &forged);
            for _ in 0..1_000 {
                world.run(Duration::from_millis(1));
                let diverted = world.session.is_connected() && world.session.remote_destination() == Some(STRANGER);
                assert!(!diverted, "{role:?} at {moment} ms");
            }
            world.run(4 * SECOND);
            assert!(world.both_connected(), "{role:?} at {moment} ms: {:?}", world.events);
            assert_eq!(
                world.session.remote_destination(),
                Some(PEER),
                "{role:?} at {moment} ms"
            );
            let astray = world.wire.iter().filter(|(to, _)| *to == STRANGER);
            let bytes: usize = astray.map(|(_, datagram)| datagram.len()).sum();
            assert!(bytes < 8_000, "{role:?} at {moment} ms: {bytes} bytes");
        }
    }
}
