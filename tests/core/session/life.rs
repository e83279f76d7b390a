//! How long a session lives, where its media goes meanwhile, and how it says goodbye.

use std::time::Duration;

use millstream_core::session::dtls_filter::PacketDropReason;
use millstream_core::session::{CloseReason, Session, TransportEvent};
use millstream_test_support::{DtlsRole, IceStyle, LinkConfig, PeerEvent};

use crate::session::heap;
use crate::session::world::{ELSEWHERE, PEER, SECOND, SERVER, STRANGER, Setup, World, record, rtp};

const SILENT: IceStyle = IceStyle {
    keep_alive: false,
    ..IceStyle::BROWSER
};

fn silent() -> Setup {
    Setup {
        ice: SILENT,
        ..Setup::default()
    }
}

/// D-05, C-12.
#[test]
fn a_session_from_which_nothing_arrives_for_thirty_seconds_ends() {
    let mut world = World::connected(silent());
    let sent_to_peer = |world: &World| world.wire.iter().filter(|(to, _)| *to == PEER).count();
    let sent = sent_to_peer(&world);
    world.run(27 * SECOND);
    assert_eq!(world.reason(), None);
    world.run(3 * SECOND);
    assert_eq!(world.reason(), Some(CloseReason::PeerSilent));
    println!("measured: ended between 27 and 30 s after the last packet");
    // RFC 7675 §5.2: without consent nothing is sent but the goodbye.
    assert_eq!(sent_to_peer(&world), sent + 1);
}

/// C-13.
#[test]
fn media_alone_keeps_a_session_alive() {
    for rtcp in [false, true] {
        let mut world = World::connected(silent());
        for seq in 0..20 {
            world.run(10 * SECOND);
            assert!(if rtcp {
                world.peer.send_rtcp(&[0x80, 201, 0, 1, 9, 9, 9, 9])
            } else {
                world.peer.send_rtp(&rtp(seq))
            });
        }
        world.run(SECOND);
        assert_eq!(world.reason(), None);
        assert_eq!(world.rtp().len() + world.rtcp().len(), 20);
    }
}

#[test]
fn checks_alone_keep_a_session_alive() {
    let mut world = World::connected(Setup::default());
    world.run(300 * SECOND);
    assert_eq!(world.reason(), None);
    assert!(world.both_connected());
}

#[test]
fn what_is_forged_or_replayed_keeps_nothing_alive() {
    let mut world = World::connected(silent());
    assert!(world.peer.send_rtp(&rtp(1)));
    let packet = world.intercept().pop().expect("sealed");
    world.inject(PEER, &packet);
    let mut forged = packet.to_vec();
    forged[3] = 9;
    for _ in 0..31 {
        world.run(SECOND);
        world.inject(PEER, &packet);
        world.inject(PEER, &forged);
    }
    assert_eq!(world.reason(), Some(CloseReason::PeerSilent));
}

#[test]
fn a_peer_that_never_comes_is_given_up_after_fifteen_seconds() {
    let mut world = World::new(Setup {
        link: LinkConfig {
            loss: 1.0,
            ..LinkConfig::default()
        },
        ..Setup::default()
    });
    world.run(Duration::from_millis(14_999));
    assert_eq!(world.reason(), None);
    world.run(Duration::from_millis(1));
    assert_eq!(world.reason(), Some(CloseReason::NoConnectivityChecks));
    assert_eq!(world.session.poll_timeout(), None);
}

/// Our own player gives up after ten seconds.
#[test]
fn a_client_that_deletes_an_unconnected_session_leaves_the_cause_behind() {
    let lost = Setup {
        link: LinkConfig {
            loss: 1.0,
            ..LinkConfig::default()
        },
        ..Setup::default()
    };
    let mut world = World::new(lost);
    world.run(10 * SECOND);
    world.session.close(world.now, CloseReason::Deleted);
    world.collect();
    assert_eq!(world.reason(), Some(CloseReason::NoConnectivityChecks));

    let mut world = World::new(Setup::default());
    world.peer.handle_timeout(world.now);
    for datagram in world.intercept().iter().filter(|datagram| datagram[0] < 4) {
        world.inject(PEER, datagram);
    }
    world.session.close(world.now, CloseReason::Deleted);
    world.collect();
    assert_eq!(world.reason(), Some(CloseReason::NoHandshake));

    // Causes that the gateway decides on stay as they are.
    let mut world = World::new(Setup::default());
    world.session.close(world.now, CloseReason::TakenOver);
    world.collect();
    assert_eq!(world.reason(), Some(CloseReason::TakenOver));
}

#[test]
fn a_peer_that_only_ever_checks_is_given_up_after_fifteen_seconds() {
    for role in [DtlsRole::Client, DtlsRole::Server] {
        let mut world = World::new(Setup {
            role,
            ..Setup::default()
        });
        // Its own handshake never reaches us.
        for _ in 0..1_490 {
            world.peer.handle_timeout(world.now);
            for datagram in world.intercept().iter().filter(|d| d[0] < 4) {
                world.inject(PEER, datagram);
            }
            world.session.handle_timeout(world.now);
            world.collect();
            world.now += Duration::from_millis(10);
        }
        let expected = match role {
            DtlsRole::Client => None,
            // We began a handshake, which has ten seconds of its own.
            DtlsRole::Server => Some(CloseReason::NoHandshake),
        };
        assert_eq!(world.reason(), expected, "{role:?}");
        world.now += Duration::from_millis(100);
        world.session.handle_timeout(world.now);
        world.collect();
        assert_eq!(world.reason(), Some(CloseReason::NoHandshake), "{role:?}");
    }
}

/// C-14.
#[test]
fn invariant_7_the_path_moves_with_a_nomination_and_media_goes_on() {
    let mut world = World::connected(Setup::default());
    let mut seq = 0;
    let mut send_for = |world: &mut World, times: u32| {
        for _ in 0..times {
            world.send_rtp(seq);
            seq += 1;
            world.run(Duration::from_millis(10));
        }
        world.run(Duration::from_millis(100));
    };
    send_for(&mut world, 50);
    let moves = |world: &World| {
        world
            .events
            .iter()
            .filter(|e| matches!(e, TransportEvent::DestinationMoved(_)))
            .count()
    };
    assert_eq!(moves(&world), 1);

    // The peer's new network: media from there is not believed before a check.
    world.peer.set_ice_style(IceStyle {
        nominate: false,
        ..IceStyle::BROWSER
    });
    let received = world.rtp().len();
    assert!(world.peer.send_rtp(&rtp(30_000)));
    let early = world.intercept().pop().expect("sealed");
    world.inject(ELSEWHERE, &early);
    assert_eq!(world.rtp().len(), received);
    assert!(world.dropped(PacketDropReason::UnknownAddress) > 0);

    // A check without nomination makes the address valid; media for the peer stays where it was.
    world.peer_address = ELSEWHERE;
    world.peer.check_now(world.now);
    world.run(Duration::from_millis(100));
    send_for(&mut world, 50);
    assert_eq!(world.rtp().len(), 100, "from both addresses");
    assert_eq!((world.session.remote_destination(), moves(&world)), (Some(PEER), 1));

    world.peer.set_ice_style(IceStyle::BROWSER);
    world.peer.check_now(world.now);
    world.run(Duration::from_millis(100));
    assert_eq!(
        (world.session.remote_destination(), moves(&world)),
        (Some(ELSEWHERE), 2)
    );
    send_for(&mut world, 50);
    assert_eq!(world.rtp().len(), 150);
    assert_eq!(world.reason(), None);
}

#[test]
fn invariant_7_no_forged_nomination_moves_the_path() {
    let mut world = World::connected(Setup {
        ice: IceStyle {
            nominate: false,
            ..IceStyle::BROWSER
        },
        ..Setup::default()
    });
    world.peer.check_now(world.now);
    world.peer.handle_timeout(world.now);
    let check = world.intercept().pop().expect("a check");
    // USE-CANDIDATE (0x0025, empty), behind the integrity and before it; the length in the header is made to fit.
    let nomination = [0, 0x25, 0, 0];
    for at in [20, check.len() - 32, check.len() - 8, check.len()] {
        let mut forged = check.to_vec();
        forged.splice(at..at, nomination);
        let length = u16::from_be_bytes([forged[2], forged[3]]) + 4;
        forged[2..4].copy_from_slice(&length.to_be_bytes());
        world.inject(STRANGER, &forged);
        assert_eq!(world.session.remote_destination(), Some(PEER), "inserted at {at}");
    }
}

#[test]
fn an_address_is_forgotten_when_nothing_authentic_comes_from_it() {
    let mut world = World::connected(Setup::default());
    world.peer_address = ELSEWHERE;
    world.peer.check_now(world.now);
    world.run(31 * SECOND);
    assert!(world.both_connected());
    let received = world.rtp().len();
    assert!(world.peer.send_rtp(&rtp(1)));
    let packet = world.intercept().pop().expect("sealed");
    world.inject(PEER, &packet);
    assert_eq!(world.rtp().len(), received, "the old address");
    world.inject(ELSEWHERE, &packet);
    assert_eq!(world.rtp().len(), received + 1, "the new one");
}

/// D-04.
#[test]
fn the_goodbye_of_a_peer_ends_the_session_at_once() {
    for role in [DtlsRole::Client, DtlsRole::Server] {
        let mut world = World::connected(Setup {
            role,
            ..Setup::default()
        });
        world.peer.close(world.now);
        world.run(Duration::from_millis(25));
        assert_eq!(world.reason(), Some(CloseReason::PeerClosed), "{role:?}");
        assert!(!world.session.is_connected() && world.session.outgoing_rtp_cipher().is_none());
    }
}

/// D-03.
#[test]
fn our_goodbye_reaches_the_peer_and_nothing_follows_it() {
    for role in [DtlsRole::Client, DtlsRole::Server] {
        let mut world = World::connected(Setup {
            role,
            ..Setup::default()
        });
        world.session.close(world.now, CloseReason::Deleted);
        world.collect();
        let last = world.wire.len();
        world.run(Duration::from_millis(25));
        assert!(world.peer_events.contains(&PeerEvent::Closed), "{role:?}");
        world.session.close(world.now, CloseReason::Shutdown);
        world.inject(PEER, &rtp(1));
        world.peer.check_now(world.now);
        world.run(60 * SECOND);
        assert_eq!(world.reason(), Some(CloseReason::Deleted), "the first reason stays");
        let from_us = world.wire.iter().skip(last).filter(|(to, _)| *to != SERVER);
        assert_eq!(from_us.count(), 0);
        assert!(world.session.encrypt_rtcp(&[0x80, 201, 0, 1, 0, 0, 0, 1]).is_none());
    }
}

/// A session whose DTLS handshake was released, because the peer has sent SRTCP.
fn released(role: DtlsRole) -> World {
    let mut world = World::connected(Setup {
        role,
        link: LinkConfig::default(),
        ..Setup::default()
    });
    assert!(world.peer.send_rtcp(&[0x80, 201, 0, 1, 0, 0, 0, 9]));
    world.run(5 * SECOND);
    world
}

#[test]
fn goodbyes_are_understood_both_ways_after_the_handshake_was_released() {
    for role in [DtlsRole::Client, DtlsRole::Server] {
        let mut world = released(role);
        world.peer.close(world.now);
        world.run(Duration::from_millis(25));
        assert_eq!(world.reason(), Some(CloseReason::PeerClosed), "{role:?}");

        let mut world = released(role);
        world.session.close(world.now, CloseReason::Deleted);
        world.collect();
        world.run(Duration::from_millis(25));
        assert!(world.peer_events.contains(&PeerEvent::Closed), "{role:?}");
    }
}

#[test]
fn records_that_come_after_the_handshake_was_released_do_no_harm() {
    for role in [DtlsRole::Client, DtlsRole::Server] {
        let mut world = released(role);
        let sent = world.wire.len();
        // Application data, which nobody has negotiated, and forged records.
        world.peer.send_dtls_data(world.now, b"hello");
        for content in [20, 21, 22, 23] {
            for number in 0..100 {
                world.inject(PEER, &record(content, 1, number, &[0x5a; 48]));
            }
        }
        world.run(SECOND);
        let from_us = world
            .wire
            .iter()
            .skip(sent)
            .filter(|(to, datagram)| *to != SERVER && (20..=63).contains(&datagram[0]));
        assert_eq!(from_us.count(), 0, "nothing is answered");
        world.send_rtp(1);
        world.run(5 * SECOND);
        assert_eq!((world.reason(), world.rtp().len()), (None, 1), "{role:?}");
        // The stack was made for them, and released again.
        let (before, session) = (heap::live(), world.session);
        drop(session);
        let freed = before - heap::live();
        assert!(freed <= MAX_SESSION, "{role:?}: {freed} bytes");

        let mut world = released(role);
        world.peer.close(world.now);
        let goodbye = world.intercept().pop().expect("a close_notify");
        let with_late_handshake = [&record(22, 1, 9, &[0x5a; 48])[..], &goodbye].concat();
        world.inject(PEER, &with_late_handshake);
        world.run(SECOND);
        assert_eq!(world.reason(), Some(CloseReason::PeerClosed), "{role:?}");
    }
}

/// Heap of one viewer's session, in bytes. What the crypto library allocates in C is not seen.
const MAX_SESSION: isize = 5 << 10;

#[test]
fn a_connected_viewer_costs_at_most_5_kib_of_heap() {
    for role in [DtlsRole::Client, DtlsRole::Server] {
        let mut world = World::connected(Setup {
            role,
            ..Setup::default()
        });
        for _ in 0..60 {
            assert!(world.peer.send_rtcp(&[0x80, 201, 0, 1, 0, 0, 0, 9]));
            assert!(world.session.encrypt_rtcp(&[0x80, 201, 0, 1, 0, 0, 0, 8]).is_some());
            world.run(SECOND);
        }
        assert!(world.session.is_connected());
        let before = heap::live();
        drop(world.session);
        let freed = before - heap::live();
        println!(
            "peer as {role:?}: {freed} bytes of heap, {} inline",
            size_of::<Session>()
        );
        assert!(freed > 0 && freed <= MAX_SESSION, "{freed} bytes");
    }
}
