//! What answers agree on against loss: requests for audio packets, in-band FEC, the playout delay.

use millstream_core::media::{MediaKind, PayloadType};
use millstream_core::sdp::negotiation_result::NegotiatedPlayback;
use millstream_core::sdp::{Offer, answer_whep_offer};

use crate::sdp::invariants::{check_playback, check_publication};
use crate::sdp::{
    CHROMIUM_PUBLISHER, CHROMIUM_VIEWER, FIREFOX_VIEWER, GSTREAMER_VIEWER, Us, all_recorded, edit, high_and_opus,
    is_viewer, play, publish, recorded, vp8_and_opus,
};

/// Of the recorded clients whepclientsrc alone offers it; browsers do when their offer is edited before they set it.
#[test]
fn requests_for_audio_packets_are_agreed_with_publishers_and_viewers_that_offer_them() {
    for offers_rtx in [false, true] {
        let rtx = "a=rtpmap:112 rtx/48000\r\na=fmtp:112 apt=111\r\n";
        let lines = format!("a=rtcp-fb:111 nack\r\n{}", if offers_rtx { rtx } else { "" });
        let offer = |name: &str| {
            let with_nack = edit(
                &recorded(name),
                "a=rtcp-fb:111 transport-cc\r\n",
                &format!("a=rtcp-fb:111 transport-cc\r\n{lines}"),
            );
            edit(
                &with_nack,
                "SAVPF 111 63 ",
                if offers_rtx {
                    "SAVPF 111 112 63 "
                } else {
                    "SAVPF 111 63 "
                },
            )
        };
        let offered = offer(CHROMIUM_PUBLISHER);
        let (plan, answer) = publish(&offered).unwrap();
        check_publication(&offered, &answer, &plan);
        let published = plan.tracks.iter().find(|track| track.kind == MediaKind::Audio).unwrap();
        let viewed = offer(CHROMIUM_VIEWER);
        let (plan, viewer_answer) = play(&viewed, high_and_opus()).unwrap();
        check_playback(&viewed, &viewer_answer, &plan);
        let played = plan.tracks.iter().find(|track| track.kind == MediaKind::Audio).unwrap();
        for (codec, answer) in [(&published.codecs[0], answer), (&played.codecs[0], viewer_answer)] {
            assert!(codec.rtcp_feedback.nack);
            assert_eq!(codec.rtx_pt, offers_rtx.then_some(PayloadType(112)));
            assert!(answer.contains("a=rtcp-fb:111 nack\r\n"), "{answer}");
            assert_eq!(answer.contains("a=fmtp:112 apt=111\r\n"), offers_rtx);
        }
    }
}

#[test]
fn requests_for_audio_packets_are_not_agreed_where_they_were_not_offered() {
    for (name, offer) in all_recorded() {
        let offers_nack: Vec<bool> = if is_viewer(&name) {
            let (plan, _) = play(&offer, vp8_and_opus()).unwrap();
            let audio = plan.tracks.iter().filter(|track| track.kind == MediaKind::Audio);
            audio.map(|track| track.codecs[0].rtcp_feedback.nack).collect()
        } else {
            let (plan, _) = publish(&offer).unwrap();
            let audio = plan.tracks.iter().filter(|track| track.kind == MediaKind::Audio);
            audio.map(|track| track.codecs[0].rtcp_feedback.nack).collect()
        };
        assert_eq!(offers_nack, [name == GSTREAMER_VIEWER], "{name}");
    }
}

/// RFC 7587 §6.1: the receiver of Opus says whether it uses in-band FEC; a sender adds it for one that does. The payload passes
/// unchanged. RED (RFC 2198) is offered by Chromium, not preferred by it, and declined.
#[test]
fn in_band_fec_of_opus_is_agreed_from_end_to_end_and_redundant_audio_is_declined() {
    let mut offers_of_red = 0;
    for (name, offer) in all_recorded() {
        let answer = if is_viewer(&name) {
            play(&offer, vp8_and_opus()).unwrap().1
        } else {
            publish(&offer).unwrap().1
        };
        let rtpmap = answer.lines().find(|line| line.to_lowercase().contains(" opus/48000"));
        let pt = rtpmap.and_then(|line| line.strip_prefix("a=rtpmap:")?.split(' ').next());
        let pt = pt.unwrap_or_else(|| panic!("{name}: Opus is answered"));
        let fmtp = answer.lines().find(|line| line.starts_with(&format!("a=fmtp:{pt} ")));
        assert!(
            fmtp.is_some_and(|line| line.contains("useinbandfec=1")),
            "{name}: {fmtp:?}"
        );
        offers_of_red += u32::from(offer.contains("red/48000"));
        assert!(!answer.contains("red/48000"), "{name}");
    }
    assert!(offers_of_red >= 4, "{offers_of_red}");
}

fn playout_delay_ids(plan: &NegotiatedPlayback) -> Vec<(MediaKind, Option<u8>)> {
    let tracks = plan.tracks.iter();
    tracks
        .map(|track| (track.kind, track.extension_ids.playout_delay))
        .collect()
}

/// A retransmission that is the same packet could not have another header.
#[test]
fn the_playout_delay_is_agreed_for_video_with_rtx_of_viewers_that_offer_it() {
    use MediaKind::{Audio, Video};
    let ids = |offer: &str| {
        let (plan, answer) = play(offer, high_and_opus()).unwrap();
        check_playback(offer, &answer, &plan);
        playout_delay_ids(&plan)
    };
    let uri = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
    let chromium = recorded(CHROMIUM_VIEWER);
    assert_eq!(ids(&chromium), [(Audio, None), (Video, Some(5))]);
    let firefox = recorded(FIREFOX_VIEWER);
    assert_eq!(ids(&firefox), [(Audio, None), (Video, Some(6))]);
    let (_, answer) = play(&firefox, high_and_opus()).unwrap();
    assert!(answer.contains(&format!("a=extmap:6/sendonly {uri}\r\n")), "{answer}");
    let sent_by_peer = edit(
        &chromium,
        &format!("a=extmap:5 {uri}"),
        &format!("a=extmap:5/sendonly {uri}"),
    );
    assert_eq!(ids(&sent_by_peer), [(Audio, None), (Video, None)]);
    let without_rtx = edit(&chromium, " rtx/90000", " other/90000");
    assert_eq!(ids(&without_rtx), [(Audio, None), (Video, None)]);
    let gstreamer = ids(&recorded(GSTREAMER_VIEWER));
    assert!(gstreamer.iter().all(|(_, id)| id.is_none()), "{gstreamer:?}");

    let us = Us::new();
    let mut local = us.local();
    local.viewer_playout_delay = false;
    let offer = Offer::parse(chromium.as_bytes()).unwrap();
    let (plan, answer) = answer_whep_offer(&offer, &high_and_opus(), &local, &mut || 7).unwrap();
    assert_eq!(playout_delay_ids(&plan), [(Audio, None), (Video, None)]);
    assert!(!answer.sdp.contains(uri));

    let (plan, answer) = publish(&recorded(CHROMIUM_PUBLISHER)).unwrap();
    assert!(
        plan.tracks
            .iter()
            .all(|track| track.extension_ids.playout_delay.is_none())
    );
    assert!(!answer.contains(uri), "publishers are not asked for it");
}
