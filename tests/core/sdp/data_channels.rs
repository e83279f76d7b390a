//! Data channel sections of offers, and what is answered (RFC 8841).

use millstream_core::sdp::negotiation_result::{DataPeerRole, NegotiatedDataChannels};
use millstream_core::sdp::{LocalTransport, Offer, OfferError, answer_whip_offer, create_offer_to_viewer};

use crate::sdp::invariants::{check_playback, check_publication};
use crate::sdp::{CHROMIUM_VIEWER, OBS, Us, edit, high_and_opus, play, publish, recorded};

const DATA_CHANNEL: &str =
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=mid:2\r\na=sctp-port:5000\r\n";

/// An offer with a data channel section in its BUNDLE group, as its first member.
fn with_data_channel(name: &str, section: &str) -> String {
    edit(&format!("{}{section}", recorded(name)), "BUNDLE 0 1", "BUNDLE 2 0 1")
}

/// I-12, S-18.
#[test]
fn data_channels_are_accepted_beside_media() {
    let accepted = "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n";
    for (written, size) in [
        ("", 65_536),
        ("a=max-message-size:262144\r\n", 262_144),
        ("a=max-message-size:0\r\n", u32::MAX),
    ] {
        let section = format!("{DATA_CHANNEL}{written}");
        let offer = with_data_channel(OBS, &section);
        let (plan, answer) = publish(&offer).unwrap();
        check_publication(&offer, &answer, &plan);
        assert!(answer.contains(accepted) && answer.contains("a=group:BUNDLE 2 0 1\r\n"));
        assert!(answer.contains("a=sctp-port:5000\r\na=max-message-size:65536\r\n"));
        let negotiated = NegotiatedDataChannels {
            peer_role: DataPeerRole::Publisher,
            max_sent_message_size: size,
        };
        assert_eq!(plan.transport.data_channels, Some(negotiated));

        let offer = with_data_channel(CHROMIUM_VIEWER, &section);
        let (plan, answer) = play(&offer, high_and_opus()).unwrap();
        check_playback(&offer, &answer, &plan);
        assert!(answer.contains(accepted) && answer.contains("a=max-message-size:16384\r\n"));
        assert_eq!(
            plan.transport.data_channels.map(|data| data.peer_role),
            Some(DataPeerRole::Viewer)
        );
    }
    assert_eq!(publish(&recorded(OBS)).unwrap().0.transport.data_channels, None);
}

/// I-12, S-18, S-10.
#[test]
fn data_channels_of_no_use_are_refused_alone_by_both() {
    let outside = |name: &str| format!("{}{DATA_CHANNEL}", recorded(name));
    let drafts =
        "m=application 9 DTLS/SCTP 5000\r\nc=IN IP4 0.0.0.0\r\na=mid:2\r\na=sctpmap:5000 webrtc-datachannel 256\r\n";
    let without_port = edit(DATA_CHANNEL, "a=sctp-port:5000\r\n", "");
    let port_zero = edit(DATA_CHANNEL, "sctp-port:5000", "sctp-port:0");
    let offers = |name| {
        let sections = [drafts, &without_port, &port_zero].map(|section| with_data_channel(name, section));
        sections.into_iter().chain([outside(name)]).collect::<Vec<_>>()
    };
    for offer in offers(OBS) {
        let (plan, answer) = publish(&offer).unwrap();
        check_publication(&offer, &answer, &plan);
        assert!(answer.contains("m=application 0 ") && answer.contains("a=group:BUNDLE 0 1\r\n"));
        assert_eq!(plan.transport.data_channels, None);
    }
    for offer in offers(CHROMIUM_VIEWER) {
        let (plan, answer) = play(&offer, high_and_opus()).unwrap();
        check_playback(&offer, &answer, &plan);
        assert!(answer.contains("m=application 0 "));
        assert_eq!(plan.transport.data_channels, None);
    }
}

#[test]
fn of_two_data_channel_sections_one_is_accepted() {
    let second = edit(DATA_CHANNEL, "a=mid:2", "a=mid:3");
    let offer = format!("{}{DATA_CHANNEL}{second}", recorded(OBS));
    let offer = edit(&offer, "BUNDLE 0 1", "BUNDLE 0 1 2 3");
    let (_, answer) = publish(&offer).unwrap();
    assert_eq!(answer.matches("m=application 9 ").count(), 1);
    assert_eq!(answer.matches("m=application 0 ").count(), 1);
    assert!(answer.contains("a=group:BUNDLE 0 1 2\r\n"));
}

#[test]
fn data_channels_alone_are_not_enough() {
    let offer = recorded(OBS);
    let session = offer.split("m=").next().unwrap();
    let offer = format!("{}{DATA_CHANNEL}", edit(session, "BUNDLE 0 1", "BUNDLE 2"));
    assert!(matches!(publish(&offer), Err(OfferError::NoMedia)));
    assert!(matches!(play(&offer, high_and_opus()), Err(OfferError::NoMedia)));
}

#[test]
fn data_channels_are_refused_if_so_configured() {
    let us = Us::new();
    let local = LocalTransport {
        accepts_data_channels: false,
        ..us.local()
    };
    let offer = Offer::parse(with_data_channel(OBS, DATA_CHANNEL).as_bytes()).unwrap();
    let (plan, answer) = answer_whip_offer(&offer, &local).unwrap();
    assert_eq!(plan.transport.data_channels, None);
    assert!(answer.sdp.contains("m=application 0 "));
    let sections = |local| {
        let offer = create_offer_to_viewer(&high_and_opus(), local);
        let sections = offer.sdp.matches("m=").count();
        assert_eq!(offer.section_kinds_and_mids.len(), sections);
        (sections, offer.sdp.contains("a=group:BUNDLE 0 1 2\r\n"))
    };
    assert_eq!(sections(&local), (2, false));
    assert_eq!(sections(&us.local()), (3, true));
}
