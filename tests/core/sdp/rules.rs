//! Single rules of negotiation.

use millstream_core::media::{Codec, CodecFormat, MediaKind, PayloadType, Ssrc};
use millstream_core::sdp::Offer;
use millstream_core::sdp::answer_whep_offer;
use millstream_core::sdp::negotiation_result::{AudioVideoFormats, DtlsRole, NegotiatedPlayback, OutgoingTrack};

use crate::sdp::description::Description;
use crate::sdp::invariants::{check_playback, check_publication};
use crate::sdp::refusals::PROFILES;
use crate::sdp::{
    CHROMIUM_PUBLISHER, CHROMIUM_VIEWER, FFMPEG, FIREFOX_VIEWER, FIREFOX_VIEWER_NO_H264, GSTREAMER, GSTREAMER_VIEWER,
    OBS, OBS_SIMULCAST, OPUS, Us, edit, h264, high_and_opus, play, publish, recorded, vp8_and_opus,
};

fn video(format: CodecFormat) -> AudioVideoFormats {
    AudioVideoFormats {
        video: Some(format),
        audio: None,
    }
}

fn video_track(plan: &NegotiatedPlayback) -> &OutgoingTrack {
    plan.tracks.iter().find(|track| track.kind == MediaKind::Video).unwrap()
}

/// Profile of the payload type that a viewer gets first.
fn first_profile(offer: &str, source: [u8; 3]) -> String {
    let (plan, answer) = play(offer, video(h264(source))).unwrap();
    check_playback(offer, &answer, &plan);
    match video_track(&plan).codecs[0].format {
        CodecFormat::H264 {
            profile,
            packetization_mode: 1,
        } => profile.to_string(),
        other => panic!("{other:?}"),
    }
}

/// V-02, V-04, V-06.
#[test]
fn viewers_get_the_profile_that_the_source_sends() {
    let chromium = recorded(CHROMIUM_VIEWER);
    assert_eq!(first_profile(&chromium, [0x42, 0xe0, 0x28]), "42e01f");
    assert_eq!(first_profile(&chromium, [0x42, 0x00, 0x28]), "42001f");
    assert_eq!(first_profile(&chromium, [0x4d, 0x00, 0x28]), "4d001f");
    // High is not offered: Main is the closest profile.
    assert_eq!(first_profile(&chromium, [0x64, 0x00, 0x28]), "4d001f");
    let hardware = edit(
        &chromium,
        "packetization-mode=1;profile-level-id=f4001f",
        "packetization-mode=1;profile-level-id=64001f",
    );
    assert_eq!(first_profile(&hardware, [0x64, 0x00, 0x28]), "64001f");
    assert_eq!(first_profile(&hardware, [0x64, 0x0c, 0x28]), "64001f");
    // Firefox offers the Baseline family only; its decoder copes.
    let firefox = recorded(FIREFOX_VIEWER);
    assert_eq!(first_profile(&firefox, [0x64, 0x00, 0x28]), "42e01f");
    assert_eq!(first_profile(&firefox, [0x42, 0x00, 0x28]), "42001f");
}

/// V-07.
#[test]
fn viewers_are_never_answered_with_packetization_mode_0() {
    let offer = recorded(CHROMIUM_VIEWER);
    let (plan, _) = play(&offer, high_and_opus()).unwrap();
    for codec in plan.tracks.iter().flat_map(|track| &track.codecs) {
        assert!(!matches!(
            codec.format,
            CodecFormat::H264 {
                packetization_mode: 0,
                ..
            }
        ));
    }
    let mode_0 = edit(
        &recorded(FIREFOX_VIEWER),
        "profile-level-id=42e01f;",
        "profile-level-id=42e01f;packetization-mode=0;",
    );
    let mode_0 = edit(
        &mode_0,
        "profile-level-id=42001f;",
        "profile-level-id=42001f;packetization-mode=0;",
    );
    let mode_0 = edit(&mode_0, ";packetization-mode=1", "");
    let error = play(&mode_0, video(h264([0x42, 0xe0, 0x1f]))).unwrap_err();
    assert_eq!(error.code(), "nothing_playable");
    // The error names what is missing, which is not H.264.
    assert!(
        error.to_string().contains("H264 not in packetization mode 1"),
        "{error}"
    );
}

/// V-07. GStreamer says nothing of the mode, which is mode 0 by RFC 6184 §8.1, and takes fragments.
#[test]
fn a_viewer_that_never_speaks_of_the_packetization_mode_gets_h264() {
    let offer = recorded(GSTREAMER_VIEWER);
    assert!(!offer.contains("packetization-mode"));
    let (plan, answer) = play(&offer, high_and_opus()).unwrap();
    check_playback(&offer, &answer, &plan);
    let codec = &video_track(&plan).codecs[0];
    assert_eq!((codec.pt, codec.format.codec()), (PayloadType(97), Codec::H264));
    // RFC 6184 §8.2.2: the mode is the same in offer and answer.
    assert!(!answer.contains("packetization-mode"));
    // Where the mode is spoken of, mode 1 it is.
    let both = edit(
        &offer,
        "a=rtpmap:98 VP9/90000",
        "a=rtpmap:98 H264/90000\r\na=fmtp:98 packetization-mode=1",
    );
    let (plan, _) = play(&both, high_and_opus()).unwrap();
    let h264 = video_track(&plan)
        .codecs
        .iter()
        .filter(|codec| codec.format.codec() == Codec::H264);
    assert_eq!(h264.map(|codec| codec.pt).collect::<Vec<_>>(), [PayloadType(98)]);
}

/// V-01. RFC 8866 §6.6: names in any case; RFC 7587 §7: two channels, which GStreamer leaves out.
#[test]
fn opus_is_taken_with_and_without_its_channels_and_answered_as_it_was_offered() {
    let offer = recorded(GSTREAMER_VIEWER);
    for name in ["OPUS/48000", "opus/48000", "opus/48000/2", "Opus/48000/1"] {
        let offer = edit(&offer, "OPUS/48000", name);
        let (plan, answer) = play(&offer, vp8_and_opus()).unwrap();
        check_playback(&offer, &answer, &plan);
        let audio = plan.tracks.iter().find(|track| track.kind == MediaKind::Audio);
        assert_eq!(audio.map(|track| track.codecs[0].pt), Some(PayloadType(101)), "{name}");
        let published = edit(&recorded(OBS), "opus/48000/2", name);
        let (plan, answer) = publish(&published).unwrap();
        check_publication(&published, &answer, &plan);
    }
    for name in ["opus/48000/6", "opus/24000/2"] {
        let offer = edit(&offer, "OPUS/48000", name);
        let (plan, _) = play(&offer, vp8_and_opus()).unwrap();
        assert!(plan.tracks.iter().all(|track| track.kind == MediaKind::Video), "{name}");
    }
}

/// S-09. webrtcbin of GStreamer 1.28.8 looks for these in every section, even in rejected ones.
#[test]
fn every_section_of_an_answer_has_what_webrtcbin_looks_for() {
    let offer = recorded(GSTREAMER_VIEWER);
    let audio = AudioVideoFormats {
        video: None,
        audio: Some(OPUS),
    };
    for (offer, source) in [
        (offer.clone(), video(CodecFormat::Vp8)),
        (offer.clone(), audio),
        (edit(&offer, "OPUS/48000", "L16/48000"), vp8_and_opus()),
        (recorded(FIREFOX_VIEWER_NO_H264), audio),
    ] {
        let (_, answer) = play(&offer, source).unwrap();
        for section in Description::read(&answer).sections {
            // aiortc wants this in rejected sections too.
            assert!(section.has("a=rtcp-mux"), "{answer}");
            for key in ["mid", "ice-ufrag", "ice-pwd", "setup", "fingerprint"] {
                assert!(
                    section.first(key).is_some_and(|value| !value.is_empty()),
                    "{key}: {answer}"
                );
            }
        }
    }
}

/// E-12.
#[test]
fn viewers_keep_every_codec_that_another_source_may_have() {
    let (plan, _) = play(&recorded(CHROMIUM_VIEWER), vp8_and_opus()).unwrap();
    let codecs = |kind| -> Vec<Codec> {
        let track = plan.tracks.iter().find(|track| track.kind == kind).unwrap();
        let mut codecs: Vec<Codec> = track.codecs.iter().map(|codec| codec.format.codec()).collect();
        codecs.dedup();
        codecs
    };
    assert_eq!(
        codecs(MediaKind::Video),
        [Codec::Vp8, Codec::Vp9, Codec::H264, Codec::Av1]
    );
    assert_eq!(codecs(MediaKind::Audio), [Codec::Opus, Codec::Pcmu, Codec::Pcma]);
    let (plan, answer) = play(&recorded(CHROMIUM_VIEWER), video(CodecFormat::Av1 { profile: 0 })).unwrap();
    assert_eq!(video_track(&plan).codecs[0].format, CodecFormat::Av1 { profile: 0 });
    assert_eq!(video_track(&plan).codecs[0].rtx_pt, Some(PayloadType(46)));
    assert!(answer.contains("m=video 9 UDP/TLS/RTP/SAVPF 45 46 96 97 "));
}

/// E-09.
#[test]
fn a_section_without_a_source_is_accepted_and_stays_empty_until_one_comes() {
    let offer = recorded(CHROMIUM_VIEWER);
    let silent = video(CodecFormat::Vp8);
    let (plan, answer) = play(&offer, silent).unwrap();
    check_playback(&offer, &answer, &plan);
    assert!(answer.contains("m=audio 9 UDP/TLS/RTP/SAVPF 111 0 8\r\n"));
    assert!(answer.contains("a=group:BUNDLE 0 1\r\n"));
    let error = play(&offer, AudioVideoFormats::default()).unwrap_err();
    assert_eq!((error.http_status(), error.code()), (422, "nothing_playable"));
    // VP9 of a profile that no browser decodes.
    let deep = edit(&recorded(FIREFOX_VIEWER_NO_H264), "max-fs", "x");
    let error = play(&deep, video(CodecFormat::Vp9 { profile: 2 }))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("carries VP9 (profile 2)") && error.contains("but not in the profile of the stream"),
        "{error}"
    );
    assert!(play(&deep, video(h264([0x42, 0xe0, 0x1f]))).is_err());
    let h265 = CodecFormat::H265 {
        profile_id: 1,
        tier_flag: 0,
    };
    assert!(play(&deep, video(h265)).is_err());
}

#[test]
fn only_one_track_of_a_kind_goes_to_a_viewer() {
    let offer = recorded(CHROMIUM_VIEWER);
    let section = &offer[offer.find("m=video").unwrap()..];
    let offer = edit(
        &format!("{offer}{}", edit(section, "a=mid:1", "a=mid:2")),
        "BUNDLE 0 1",
        "BUNDLE 0 1 2",
    );
    let (plan, answer) = play(&offer, high_and_opus()).unwrap();
    check_playback(&offer, &answer, &plan);
    assert_eq!(Description::read(&answer).sections[2].port(), "0");
}

/// T-01, I-05.
#[test]
fn the_dtls_role_follows_the_offer() {
    for (offered, role) in [
        ("actpass", DtlsRole::Server),
        ("active", DtlsRole::Server),
        ("passive", DtlsRole::Client),
    ] {
        let offer = edit(&recorded(OBS), "actpass", offered);
        let (plan, answer) = publish(&offer).unwrap();
        check_publication(&offer, &answer, &plan);
        assert_eq!(plan.transport.gateway_dtls_role, role, "{offered}");
    }
}

/// S-02.
#[test]
fn transport_attributes_may_stand_at_session_level() {
    // OBS 30 has all of them there.
    let obs = recorded(OBS);
    let ice = "a=setup:actpass\r\na=ice-ufrag:7XDb\r\na=ice-pwd:h/pfbD5oBAZuE1GgK0VfB8\r\n";
    let old = edit(&edit(&obs, ice, ""), "t=0 0\r\n", &format!("t=0 0\r\n{ice}"));
    let (plan, answer) = publish(&old).unwrap();
    assert_eq!(plan.transport.remote_credentials.ufrag, "7XDb");
    assert_eq!(plan.transport.remote_credentials.pwd, "h/pfbD5oBAZuE1GgK0VfB8");
    assert_eq!(answer, publish(&obs).unwrap().1);
    // LF alone is taken, CRLF is sent.
    assert_eq!(answer, publish(&obs.replace("\r\n", "\n")).unwrap().1);
}

#[test]
fn the_tagged_section_gives_the_transport() {
    let offer = recorded(CHROMIUM_VIEWER);
    let (plan, _) = play(&offer, high_and_opus()).unwrap();
    assert_eq!(plan.transport.remote_credentials.ufrag, "ptnA");
    // This viewer cannot decode the audio, but its section carries the transport: it is inactive, not rejected.
    let no_pcma = edit(&offer, "a=rtpmap:8 PCMA/8000", "a=rtpmap:8 L8/8000");
    let source = AudioVideoFormats {
        video: Some(CodecFormat::Vp8),
        audio: Some(CodecFormat::Pcma),
    };
    let (plan, answer) = play(&no_pcma, source).unwrap();
    check_playback(&no_pcma, &answer, &plan);
    assert!(answer.contains("m=audio 9 ") && answer.contains("a=inactive"));
    assert_eq!(
        (plan.tracks.len(), &*plan.transport.remote_credentials.ufrag),
        (1, "ptnA")
    );
    // Video without a source is refused where it carries nothing.
    let radio = AudioVideoFormats {
        video: None,
        audio: Some(CodecFormat::Opus { stereo: true }),
    };
    let (plan, answer) = play(&offer, radio).unwrap();
    check_playback(&offer, &answer, &plan);
    assert!(answer.contains("m=video 0 "));
    assert_eq!(plan.tracks.len(), 1);
    // GStreamer's bundled audio, were it without attributes, relies on the video section.
    let swapped = edit(&recorded(GSTREAMER), "BUNDLE video0 audio1", "BUNDLE audio1 video0");
    let (plan, answer) = publish(&swapped).unwrap();
    check_publication(&swapped, &answer, &plan);
    assert!(answer.contains("a=group:BUNDLE audio1 video0\r\n"));
}

/// S-04, S-08.
#[test]
fn bundle_names_no_ghosts() {
    let offer = recorded(FFMPEG);
    let (head, rest) = offer.split_once("m=audio").unwrap();
    let video_only = format!("{head}m=video{}", rest.split_once("m=video").unwrap().1);
    let (plan, answer) = publish(&video_only).unwrap();
    check_publication(&video_only, &answer, &plan);
    assert!(answer.contains("a=group:BUNDLE 1\r\n"));
}

/// S-13. RFC 5506 §5: a section that offers it gets it, whatever the others offer.
#[test]
fn reduced_size_rtcp_is_agreed_for_each_section() {
    for (name, wanted) in [
        (FFMPEG, [(MediaKind::Audio, false), (MediaKind::Video, true)]),
        (GSTREAMER, [(MediaKind::Video, true), (MediaKind::Audio, true)]),
        (OBS, [(MediaKind::Audio, false), (MediaKind::Video, false)]),
    ] {
        let (plan, answer) = publish(&recorded(name)).unwrap();
        let agreed: Vec<(MediaKind, bool)> = plan
            .tracks
            .iter()
            .map(|track| (track.kind, track.reduced_size_rtcp))
            .collect();
        assert_eq!(agreed, wanted, "{name}");
        let written = Description::read(&answer).sections;
        let written: Vec<bool> = written.iter().map(|section| section.has("a=rtcp-rsize")).collect();
        assert_eq!(written, wanted.map(|(_, agreed)| agreed), "{name}");
    }
}

///
#[test]
fn retransmission_ssrcs_are_paired() {
    let (plan, _) = publish(&recorded(FFMPEG)).unwrap();
    let [ssrc] = plan.tracks[1].ssrcs[..] else { panic!() };
    assert_eq!(
        (ssrc.primary, ssrc.rtx),
        (Ssrc(2_204_954_837), Some(Ssrc(2_204_954_838)))
    );
    let (plan, _) = publish(&recorded(CHROMIUM_PUBLISHER)).unwrap();
    let [ssrc] = plan.tracks[1].ssrcs[..] else { panic!() };
    assert_eq!((ssrc.primary, ssrc.rtx), (Ssrc(887_226_075), Some(Ssrc(1_085_435_526))));
    assert!(publish(&recorded(OBS_SIMULCAST)).unwrap().0.tracks[1].ssrcs.is_empty());
}

/// T-11.
#[test]
fn congestion_feedback_is_transport_cc_or_remb_never_both() {
    let (plan, answer) = publish(&recorded(CHROMIUM_PUBLISHER)).unwrap();
    let video = &plan.tracks[1];
    assert_eq!(
        (video.extension_ids.transport_cc, video.extension_ids.abs_send_time),
        (Some(3), None)
    );
    assert!(
        video
            .codecs
            .iter()
            .all(|codec| codec.rtcp_feedback.transport_cc && !codec.rtcp_feedback.remb)
    );
    assert!(!answer.contains("goog-remb"));
    let (plan, answer) = publish(&recorded(OBS)).unwrap();
    assert!(plan.tracks[1].codecs[0].rtcp_feedback.remb);
    assert!(!answer.contains("transport-cc"));
    // The feedback without its header extension is nothing.
    let (plan, _) = publish(&recorded("simple-whip-client-20240308-gst1.28.8-post")).unwrap();
    assert!(!plan.tracks[0].codecs[0].rtcp_feedback.transport_cc);
    let (plan, _) = publish(&recorded("aiortc-1.16.0-sendonly")).unwrap();
    assert_eq!(plan.tracks[1].extension_ids.abs_send_time, Some(3));
}

/// Congestion feedback of a viewer needs its header extension in the same section, in a direction that we send in.
#[test]
fn viewers_give_transport_wide_feedback_where_they_offer_both_lines() {
    let numbered = |offer: &str| -> Vec<Option<u8>> {
        let (plan, answer) = play(offer, high_and_opus()).unwrap();
        check_playback(offer, &answer, &plan);
        plan.tracks
            .iter()
            .map(|track| track.extension_ids.transport_cc)
            .collect()
    };
    let chromium = recorded(CHROMIUM_VIEWER);
    assert_eq!(numbered(&chromium), [Some(3), Some(3)]);
    assert_eq!(numbered(&recorded(FIREFOX_VIEWER)), [Some(7), Some(7)]);
    assert_eq!(numbered(&recorded(GSTREAMER_VIEWER)), [None, None]);
    let uri = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
    let sent_by_peer = chromium.replace(&format!("a=extmap:3 {uri}"), &format!("a=extmap:3/sendonly {uri}"));
    assert_eq!(numbered(&sent_by_peer), [None, None]);
    let received = chromium.replace(&format!("a=extmap:3 {uri}"), &format!("a=extmap:3/recvonly {uri}"));
    assert_eq!(numbered(&received), [Some(3), Some(3)]);
    let without_feedback = edit(&chromium, "a=rtcp-fb:111 transport-cc\r\n", "");
    assert_eq!(numbered(&without_feedback), [None, Some(3)]);
    // Other codecs have it, but not the one that is sent.
    let without_for_sent = edit(&chromium, "a=rtcp-fb:116 transport-cc\r\n", "");
    assert_eq!(numbered(&without_for_sent), [Some(3), None]);
    // Switched off, nothing of it is answered.
    let us = Us::new();
    let mut local = us.local();
    local.viewer_congestion_control = false;
    let offer = Offer::parse(chromium.as_bytes()).unwrap();
    let (plan, answer) = answer_whep_offer(&offer, &high_and_opus(), &local, &mut || 7).unwrap();
    assert!(
        plan.tracks
            .iter()
            .all(|track| track.extension_ids.transport_cc.is_none())
    );
    assert!(!answer.sdp.contains("transport-cc") && !answer.sdp.contains("transport-wide-cc"));
}

///
#[test]
fn simulcast_keeps_order_and_drops_marks() {
    let obs = recorded(OBS_SIMULCAST);
    let offer = edit(&obs, "send 0;1;2", "send 2;~0,1");
    let (plan, answer) = publish(&offer).unwrap();
    check_publication(&offer, &answer, &plan);
    assert!(answer.contains("a=simulcast:recv 2;0\r\n"));
    let legacy = edit(&obs, "a=simulcast:send 0;1;2", "a=simulcast: send rid=0;1;2");
    assert!(publish(&legacy).unwrap().0.tracks[1].rids.is_empty());
}

/// V-14.
#[test]
fn answers_to_publishers_request_stereo() {
    let (plan, answer) = publish(&recorded(CHROMIUM_PUBLISHER)).unwrap();
    // What a sender says of itself is nothing for us to say.
    assert!(
        answer.contains("a=fmtp:111 minptime=10;stereo=1;useinbandfec=1\r\n"),
        "{answer}"
    );
    assert_eq!(plan.tracks[0].codecs[0].format, CodecFormat::Opus { stereo: false });
    let (_, answer) = play(&recorded(CHROMIUM_VIEWER), high_and_opus()).unwrap();
    assert!(answer.contains("a=fmtp:111 minptime=10;sprop-stereo=1;useinbandfec=1\r\n"));
}

/// V-15.
#[test]
fn static_payload_types_need_no_rtpmap() {
    let offer = edit(&recorded(CHROMIUM_VIEWER), "a=rtpmap:0 PCMU/8000\r\n", "");
    let source = AudioVideoFormats {
        video: None,
        audio: Some(CodecFormat::Pcmu),
    };
    let (plan, answer) = play(&offer, source).unwrap();
    check_playback(&offer, &answer, &plan);
    assert_eq!(plan.tracks[0].codecs[0].pt, PayloadType(0));
}

#[test]
fn a_viewers_own_ssrcs_and_zero_are_not_given_out() {
    let offer = Offer::parse(recorded(FIREFOX_VIEWER).as_bytes()).unwrap();
    let us = Us::new();
    let mut stuck = || 2_242_961_367;
    let (plan, _) = answer_whep_offer(&offer, &high_and_opus(), &us.local(), &mut stuck).unwrap();
    let ssrcs: Vec<u32> = plan.tracks.iter().map(|track| track.ssrc.0).collect();
    assert_eq!(ssrcs, [2_242_961_368, 2_242_961_369]);
    let mut zero = || 0;
    let (plan, _) = answer_whep_offer(&offer, &high_and_opus(), &us.local(), &mut zero).unwrap();
    assert!(plan.tracks.iter().all(|track| track.ssrc.0 != 0));
    assert_eq!(plan.tracks[0].codecs[0].format.codec(), OPUS.codec());
}

///
#[test]
fn retransmission_has_the_clock_rate_of_its_codec() {
    let offer = edit(&recorded(FFMPEG), "rtx/90000", "rtx/48000");
    let (plan, answer) = publish(&offer).unwrap();
    check_publication(&offer, &answer, &plan);
    assert_eq!(plan.tracks[1].codecs[0].rtx_pt, None);
}

#[test]
fn feedback_for_all_payload_types_is_feedback_for_each() {
    let offer = edit(&recorded(OBS), "rtcp-fb:96 nack pli", "rtcp-fb:* nack pli");
    let (plan, answer) = publish(&offer).unwrap();
    check_publication(&offer, &answer, &plan);
    assert!(plan.tracks[1].codecs[0].rtcp_feedback.pli);
}

#[test]
fn a_header_extension_of_one_direction_is_answered_with_the_reverse() {
    let mid = "a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid";
    let sent = edit(&recorded(OBS), mid, &mid.replace(":1 ", ":1/sendonly "));
    let (plan, answer) = publish(&sent).unwrap();
    assert_eq!(plan.tracks[1].extension_ids.mid, Some(1));
    assert!(answer.contains("a=extmap:1/recvonly urn:ietf:params:rtp-hdrext:sdes:mid\r\n"));
    let received = edit(&recorded(OBS), mid, &mid.replace(":1 ", ":1/recvonly "));
    assert_eq!(publish(&received).unwrap().0.tracks[1].extension_ids.mid, None);
}

#[test]
fn capture_times_are_accepted_from_publishers_that_offer_them_and_not_sent_to_viewers() {
    let uri = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";
    let add = |offer: &str| format!("{offer}a=extmap:13 {uri}\r\n");
    let (plan, answer) = publish(&add(&recorded(OBS))).unwrap();
    let ids: Vec<Option<u8>> = plan.tracks.iter().map(|t| t.extension_ids.abs_capture_time).collect();
    assert_eq!(ids, [None, Some(13)]);
    assert!(answer.contains(&format!("a=extmap:13 {uri}\r\n")), "{answer}");
    let (_, answer) = publish(&recorded(OBS)).unwrap();
    assert!(!answer.contains(uri), "{answer}");
    let (_, answer) = play(&add(&recorded(FIREFOX_VIEWER)), high_and_opus()).unwrap();
    assert!(!answer.contains(uri), "{answer}");
}

#[test]
fn the_longest_answer_fits_into_what_ffmpeg_reads() {
    let mut section = String::new();
    let pts: Vec<u32> = (0..32).map(|n| 96 + n).chain(20..52).collect();
    for pair in pts.chunks(2) {
        let (pt, rtx) = (pair[0], pair[1]);
        section += &format!("a=rtpmap:{pt} H264/90000\r\na=rtpmap:{rtx} rtx/90000\r\na=fmtp:{rtx} apt={pt}\r\n");
        section += &format!("a=fmtp:{pt} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=64001f\r\n");
        for feedback in ["nack", "nack pli", "ccm fir", "goog-remb"] {
            section += &format!("a=rtcp-fb:{pt} {feedback}\r\n");
        }
    }
    let list: Vec<String> = pts.iter().map(u32::to_string).collect();
    let obs = edit(
        &edit(&recorded(OBS), "SAVPF 111", "SAVPF 0"),
        ":111 opus/48000/2",
        ":0 PCMU/8000",
    );
    let obs = edit(&obs, "SAVPF 96", &format!("SAVPF {}", list.join(" ")));
    let (head, _) = obs.split_once("a=rtpmap:96").unwrap();
    let tail = "a=setup:actpass\r\na=ice-ufrag:7XDb\r\na=ice-pwd:h/pfbD5oBAZuE1GgK0VfB8\r\n";
    let mut us = Us::new();
    us.candidates = (0..40u16)
        .map(|n| {
            (
                std::net::Ipv6Addr::from([0x2001, 0xdb8, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xff00 + n]),
                8189,
            )
                .into()
        })
        .collect();
    let offer = Offer::parse(format!("{head}{section}{tail}").as_bytes()).unwrap();
    let (plan, answer) = millstream_core::sdp::answer_whip_offer(&offer, &us.local()).unwrap();
    assert_eq!(plan.tracks[1].codecs.len(), 20);
    assert_eq!(answer.sdp.matches("a=candidate:").count(), 16);
    assert!(answer.sdp.len() < 8192, "{}", answer.sdp.len());
}

/// S-19. RFC 8829 §5.1.2: in an offer with fingerprints all of them mean the same, and the answer repeats the one offered.
#[test]
fn every_profile_of_rtp_is_taken_and_repeated() {
    for profile in PROFILES {
        let offer = edit(&recorded(OBS), "UDP/TLS/RTP/SAVPF", profile);
        let (plan, answer) = publish(&offer).unwrap_or_else(|error| panic!("{profile}: {error}"));
        check_publication(&offer, &answer, &plan);
        assert_eq!(answer.matches(&format!(" 9 {profile} ")).count(), 2, "{answer}");
        let viewer = edit(&recorded(CHROMIUM_VIEWER), "UDP/TLS/RTP/SAVPF", profile);
        let (_, answer) = play(&viewer, high_and_opus()).unwrap();
        assert_eq!(answer.matches(&format!(" 9 {profile} ")).count(), 2, "{answer}");
        // Without a fingerprint it is no DTLS, and that is what the refusal says.
        let open: String = offer
            .lines()
            .filter(|line| !line.starts_with("a=fingerprint"))
            .map(|line| format!("{line}\r\n"))
            .collect();
        assert_eq!(publish(&open).unwrap_err().code(), "fingerprint_missing", "{profile}");
    }
}

/// A viewer that offers many codecs gets the one that the stream carries, wherever it stands.
#[test]
fn the_codec_of_the_stream_is_found_behind_many_others() {
    let pts: Vec<String> = (96..126).map(|pt| pt.to_string()).collect();
    let maps: String = (96..125).map(|pt| format!("a=rtpmap:{pt} VP9/90000\r\n")).collect();
    let offer = recorded(GSTREAMER_VIEWER);
    let (head, _) = offer.split_once("m=video").unwrap();
    let head = edit(head, "BUNDLE video0 audio1", "BUNDLE video0");
    let offer = format!(
        "{head}m=video 9 UDP/TLS/RTP/SAVPF {}\r\na=setup:actpass\r\na=ice-ufrag:abcd\r\n\
         a=ice-pwd:0123456789012345678901\r\na=rtcp-mux\r\na=recvonly\r\na=mid:video0\r\n\
         a=fingerprint:sha-256 {}\r\n{maps}a=rtpmap:125 VP8/90000\r\n",
        pts.join(" "),
        vec!["AB"; 32].join(":")
    );
    let (plan, _) = play(&offer, vp8_and_opus()).unwrap();
    let codecs = &video_track(&plan).codecs;
    assert_eq!((codecs[0].pt, codecs.len()), (PayloadType(125), 20));
}
