//! How peers of every kind connect, and how they do not.

use std::time::Duration;

use millstream_core::session::dtls_filter::PacketDropReason;
use millstream_core::session::{CloseReason, TransportEvent};
use millstream_test_support::{DtlsRole, IceStyle, LinkConfig, PeerEvent, Profiles, SyntheticVideo, VideoConfig};

use crate::session::world::{SECOND, STRANGER, Setup, World, rtp};

/// STUN attribute at the end of a check: header and CRC.
const FINGERPRINT_LEN: usize = 8;

const ROLES: [DtlsRole; 2] = [DtlsRole::Client, DtlsRole::Server];

/// T-06.
#[test]
fn every_kind_of_peer_connects_and_media_flows_both_ways() {
    for role in ROLES {
        for profiles in [Profiles::CmThenGcm, Profiles::GcmThenCm, Profiles::CmOnly] {
            for ice in [IceStyle::BROWSER, IceStyle::FFMPEG] {
                let mut world = World::connected(Setup {
                    role,
                    profiles,
                    ice,
                    ..Setup::default()
                });
                let packets = SyntheticVideo::new(VideoConfig::default()).next_frame().packets;
                for packet in &packets {
                    assert!(world.peer.send_rtp(packet));
                }
                let report = [0x80, 201, 0, 1, 0, 0, 0, 1];
                assert!(world.peer.send_rtcp(&report));
                let sealed = world.session.encrypt_rtcp(&report).expect("connected");
                world
                    .peer
                    .handle_datagram(world.now, crate::session::world::SERVER, &sealed);
                world.run(SECOND);
                assert_eq!(world.rtp(), packets, "{role:?} {profiles:?} {ice:?}");
                assert_eq!(world.rtcp(), [&report[..]]);
                assert!(world.peer_events.contains(&PeerEvent::Rtcp(report.to_vec().into())));
                assert_eq!(world.reason(), None);
            }
        }
    }
}

/// T-05.
#[test]
fn aes_gcm_is_chosen_wherever_the_peer_can_whatever_it_prefers() {
    for role in ROLES {
        for (profiles, expected) in [
            (Profiles::CmThenGcm, true),
            (Profiles::GcmThenCm, true),
            (Profiles::CmOnly, false),
        ] {
            let world = World::connected(Setup {
                role,
                profiles,
                ..Setup::default()
            });
            let connected = PeerEvent::Connected { gcm: expected };
            assert_eq!(world.peer_events, [connected], "{role:?} {profiles:?}");
        }
    }
}

/// FFmpeg 8.0 offers `setup:passive` and AES-CM only; its checks carry neither PRIORITY nor ICE-CONTROLLING nor
/// USE-CANDIDATE, and it sends none after the handshake.
/// C-10.
#[test]
fn a_peer_like_ffmpeg_that_never_nominates_connects_within_a_second() {
    let mut world = World::new(Setup {
        role: DtlsRole::Server,
        profiles: Profiles::CmOnly,
        ice: IceStyle::FFMPEG,
        ..Setup::default()
    });
    world.run(SECOND);
    assert!(world.both_connected());
    assert_eq!(world.session.remote_destination(), Some(world.peer_address));
    world.send_rtp(1);
    world.run(SECOND);
    assert_eq!(world.rtp(), [rtp(1)]);
}

/// T-04, B-40.
#[test]
fn a_certificate_that_was_not_signalled_ends_the_session_before_there_is_a_key() {
    for role in ROLES {
        let mut world = World::new(Setup {
            role,
            wrong_fingerprint: true,
            ..Setup::default()
        });
        for seq in 0..200 {
            world.run(Duration::from_millis(10));
            // The peer may hold keys already; nothing that it sends is taken.
            world.peer.send_rtp(&rtp(seq));
        }
        assert_eq!(world.reason(), Some(CloseReason::WrongCertificate), "{role:?}");
        assert!(!world.session.is_connected());
        assert!(
            world.session.outgoing_rtp_cipher().is_none()
                && world.session.encrypt_rtcp(&[0x80, 201, 0, 1, 0, 0, 0, 1]).is_none()
        );
        let believed = |event: &&TransportEvent| {
            matches!(
                event,
                TransportEvent::Connected | TransportEvent::Rtp(_) | TransportEvent::Rtcp(_)
            )
        };
        assert_eq!(world.events.iter().filter(believed).count(), 0, "{role:?}");
    }
}

/// Checks and flights of both sides are lost, repeated, overtaken and doubled; every one of these peers connects in
/// time all the same.
#[test]
fn handshakes_complete_at_twenty_percent_loss() {
    for role in ROLES {
        let mut slowest = Duration::ZERO;
        for seed in 0..60 {
            let mut world = World::new(Setup {
                role,
                link: LinkConfig {
                    loss: 0.2,
                    delay: Duration::from_millis(50),
                    jitter: Duration::from_millis(20),
                    reorder: true,
                    duplicate: 0.02,
                    ..LinkConfig::default()
                },
                seed,
                ..Setup::default()
            });
            let start = world.now;
            while !world.both_connected() && world.reason().is_none() {
                world.run(Duration::from_millis(50));
            }
            assert!(world.both_connected(), "{role:?}, seed {seed}: {:?}", world.events);
            slowest = slowest.max(world.now - start);
        }
        println!("peer as {role:?}: slowest of 60 after {slowest:?}");
        assert!(slowest < Duration::from_secs(8), "{slowest:?}");
    }
}

/// GnuTLS, which FFmpeg of Debian is built with, sends each record by itself: any of them may be lost or overtaken.
#[test]
fn a_server_that_sends_each_record_by_itself_connects_at_ten_percent_loss() {
    for seed in 0..60 {
        let mut world = World::new(Setup {
            role: DtlsRole::Server,
            profiles: Profiles::CmOnly,
            ice: IceStyle::FFMPEG,
            link: LinkConfig {
                loss: 0.1,
                delay: Duration::from_millis(20),
                jitter: Duration::from_millis(5),
                reorder: true,
                duplicate: 0.0,
                ..LinkConfig::default()
            },
            seed,
            ..Setup::default()
        });
        world.one_record_each = true;
        while !world.both_connected() && world.reason().is_none() {
            world.run(Duration::from_millis(50));
        }
        assert!(world.both_connected(), "seed {seed}: {:?}", world.events);
    }
}

/// FFmpeg 9.0.2 never sends the end of its handshake again.
#[test]
fn a_change_cipher_spec_that_is_lost_is_not_missed() {
    let mut world = World::new(Setup {
        role: DtlsRole::Server,
        profiles: Profiles::CmOnly,
        ice: IceStyle::FFMPEG,
        ..Setup::default()
    });
    world.one_record_each = true;
    world.lost_content = Some(20);
    world.run(SECOND);
    assert!(world.both_connected(), "{:?}", world.events);
    world.send_rtp(1);
    world.run(SECOND);
    assert_eq!(world.rtp(), [rtp(1)]);
}

/// A phone on a train.
#[test]
fn a_handshake_survives_an_outage_of_three_seconds_at_any_point() {
    for role in ROLES {
        for begin in (60..=460).step_by(40).map(Duration::from_millis) {
            let good = LinkConfig::delay(Duration::from_millis(50));
            let mut world = World::new(Setup {
                role,
                link: good,
                ..Setup::default()
            });
            world.run(begin);
            let dead = LinkConfig { loss: 1.0, ..good };
            world.up.set_config(dead);
            world.down.set_config(dead);
            world.run(3 * SECOND);
            world.up.set_config(good);
            world.down.set_config(good);
            world.run(5 * SECOND);
            assert!(world.both_connected(), "{role:?}, {begin:?}: {:?}", world.events);
        }
    }
}

/// T-07.
#[test]
fn invariant_7_a_client_hello_of_a_stranger_is_dropped_and_the_real_handshake_completes() {
    // The stranger's hello is a good one, made by a peer of another session.
    let mut other = World::new(Setup {
        seed: 99,
        ..Setup::default()
    });
    other.run(SECOND);
    let hello = other
        .wire
        .iter()
        .find(|(_, d)| d[0] == 22)
        .expect("it sent one")
        .1
        .clone();
    for steps in 0..40 {
        let mut world = World::new(Setup::default());
        world.run(Duration::from_millis(5 * steps));
        let sent = world.wire.len();
        world.inject(STRANGER, &hello);
        assert_eq!(world.wire.len(), sent, "nothing is answered");
        assert_eq!(world.dropped(PacketDropReason::UnknownAddress), 1);
        world.run(2 * SECOND);
        assert!(world.both_connected(), "injected after {} ms", 5 * steps);
        assert_eq!(world.session.remote_destination(), Some(world.peer_address));
    }
}

/// C-16.
#[test]
fn invariant_7_without_the_password_nobody_is_answered() {
    let mut stranger = World::new(Setup {
        seed: 99,
        ..Setup::default()
    });
    let mut world = World::new(Setup::default());
    // A check that is meant for another session.
    stranger.peer.handle_timeout(stranger.now);
    let check = stranger.intercept().pop().expect("a check");
    world.inject(STRANGER, &check);
    assert_eq!(world.dropped(PacketDropReason::InvalidConnectivityCheck), 1);
    // The peer's own check with any bit changed that its integrity covers; what follows is FINGERPRINT, which anybody
    // can compute.
    world.peer.handle_timeout(world.now);
    let check = world.intercept().pop().expect("a check");
    for bit in 0..(check.len() - FINGERPRINT_LEN) * 8 {
        let mut forged = check.to_vec();
        forged[bit / 8] ^= 1 << (bit % 8);
        world.inject(STRANGER, &forged);
    }
    assert_eq!((world.wire.len(), world.events.len()), (0, 0), "{:?}", world.events);
    assert_eq!(world.session.remote_destination(), None);
}
