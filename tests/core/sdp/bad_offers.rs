//! Bad offers and what they are answered with; the numbers are those of the interoperability notes.

use millstream_core::sdp::{Offer, OfferError};

use crate::sdp::{CHROMIUM_VIEWER, FFMPEG, OBS, OBS_SIMULCAST, edit, high_and_opus, play, publish, recorded};

/// Status, code and line of a WHIP refusal.
fn whip(offer: &str) -> (u16, &'static str, Option<usize>) {
    let error = publish(offer).err().unwrap_or_else(|| panic!("was accepted:\n{offer}"));
    (error.http_status(), error.code(), error.line_number())
}

fn whep(offer: &str) -> (u16, &'static str, Option<usize>) {
    let error = play(offer, high_and_opus())
        .err()
        .unwrap_or_else(|| panic!("was accepted:\n{offer}"));
    (error.http_status(), error.code(), error.line_number())
}

fn parse(body: &[u8]) -> OfferError {
    Offer::parse(body).expect_err("a refusal")
}

fn line_of(offer: &str, line: &str) -> Option<usize> {
    Some(1 + offer.lines().position(|l| l == line).expect("the line"))
}

/// OBS without its audio section.
fn video_only() -> String {
    let obs = recorded(OBS);
    let (head, rest) = obs.split_once("m=audio").unwrap();
    let (_, video) = rest.split_once("m=video").unwrap();
    format!("{head}m=video{video}")
}

/// B-01, B-05, H-04.
#[test]
fn b01_b05_bodies_that_are_no_offer() {
    assert_eq!(parse(b"").code(), "offer_missing");
    assert_eq!(parse(b" \r\n").code(), "offer_missing");
    let json = parse(br#"{"type":"offer","sdp":"v=0\r\n"}"#);
    assert_eq!((json.http_status(), json.code()), (400, "offer_is_json"));
    assert!(
        json.to_string().contains("looks like JSON: send only the raw SDP"),
        "{json}"
    );
    assert_eq!(
        (parse(b"hello").http_status(), parse(b"hello").code()),
        (400, "bad_syntax")
    );
}

/// B-09.
#[test]
fn b06_b09_sizes() {
    let obs = recorded(OBS);
    assert_eq!(parse(&vec![b'a'; 65_537]).code(), "offer_too_large");
    let long = edit(&obs, "s=-", &format!("s={}", "x".repeat(3_000)));
    assert_eq!(whip(&long), (400, "line_too_long", Some(3)));
}

/// B-08.
#[test]
fn b08_nul_bytes_and_broken_utf8() {
    let obs = recorded(OBS);
    assert_eq!(whip(&edit(&obs, "a=mid:1", "a=mid:\0")).1, "not_text");
    let mut bytes = obs.into_bytes();
    bytes[8] = 0xff;
    let error = parse(&bytes);
    assert_eq!(
        (error.http_status(), error.code(), error.line_number()),
        (400, "not_text", Some(2))
    );
}

/// B-10.
#[test]
fn b10_an_offer_that_was_cut_off_names_the_line() {
    let obs = recorded(OBS);
    let cut = &obs[..obs.find("a=fmtp:96").unwrap() + 12];
    assert_eq!(whip(cut), (400, "offer_cut_off", Some(cut.lines().count())));
}

/// B-11.
#[test]
fn b11_version_and_grammar() {
    let obs = recorded(OBS);
    assert_eq!(whip(&edit(&obs, "v=0", "v=1")), (400, "bad_version", Some(1)));
    // What ends within its header was cut off.
    assert_eq!(whip("v=0\r\n").1, "bad_syntax");
    assert_eq!(whip("v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\n").1, "bad_syntax");
    // The version tells a description from other text.
    assert_eq!(whip(&edit(&obs, "v=0\r\n", "")).1, "bad_syntax");
    let media = line_of(&obs, "m=video 9 UDP/TLS/RTP/SAVPF 96");
    assert_eq!(
        whip(&edit(&obs, "m=video 9", "m=video 99999")),
        (400, "bad_syntax", media)
    );
    assert_eq!(whip(&edit(&obs, "SAVPF 96", "SAVPF")), (400, "bad_syntax", media));
    assert_eq!(whip(&edit(&obs, "a=mid:1\r\n", "mid:1\r\n")).1, "bad_syntax");
    // Lines that are not looked at do not shift the count.
    let shifted = edit(&obs, "t=0 0", "b=AS:1\r\n\r\nt=never 0");
    let shifted = edit(&shifted, "m=video 9", "m=video 99999");
    assert_eq!(whip(&shifted), (400, "bad_syntax", media.map(|line| line + 2)));
}

/// B-12.
#[test]
fn b12_no_media() {
    let obs = recorded(OBS);
    let (head, _) = obs.split_once("m=audio").unwrap();
    assert_eq!(whip(head), (422, "no_media", None));
    let disabled = edit(&edit(&obs, "m=audio 9", "m=audio 0"), "m=video 9", "m=video 0");
    assert_eq!(whip(&disabled), (422, "no_media", Some(10)));
    let other = edit(&obs, "UDP/TLS/RTP/SAVPF", "UDP/TLS/RTP/OTHER");
    assert_eq!(whip(&other), (422, "unsupported_section", Some(10)));
}

/// C-17: of two lite agents neither sends checks.
#[test]
fn an_offer_of_a_lite_agent_is_refused() {
    let obs = recorded(OBS);
    let lite = edit(&obs, "t=0 0\r\n", "t=0 0\r\na=ice-lite\r\n");
    assert_eq!(whip(&lite), (422, "ice_lite", Some(5)));
    assert!(publish(&lite).unwrap_err().to_string().contains("use full ICE"));
    let in_section = edit(&obs, "a=mid:1\r\n", "a=mid:1\r\na=ice-lite\r\n");
    assert_eq!(whip(&in_section), (422, "ice_lite", Some(26)));
    let viewer = edit(&recorded(CHROMIUM_VIEWER), "t=0 0\r\n", "t=0 0\r\na=ice-lite\r\n");
    assert_eq!(whep(&viewer).1, "ice_lite");
}

/// B-13, I-04.
#[test]
fn b13_a_second_track_of_a_kind() {
    let obs = recorded(OBS);
    let video = &obs[obs.find("m=video").unwrap()..];
    let second = edit(&edit(video, "a=mid:1", "a=mid:2"), "3121366323", "77");
    let offer = edit(&format!("{obs}{second}"), "BUNDLE 0 1", "BUNDLE 0 1 2");
    let line = Some(obs.lines().count() + 1);
    assert_eq!(whip(&offer), (422, "too_many_tracks", line));
}

/// B-14.
#[test]
fn b14_five_hundred_sections() {
    let obs = recorded(OBS);
    let offer = format!("{obs}{}", "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n".repeat(498));
    assert_eq!(whip(&offer), (400, "too_many_sections", Some(obs.lines().count() + 15)));
}

/// B-15, B-16, I-01, E-04.
#[test]
fn b15_b16_directions() {
    let obs = recorded(OBS);
    for direction in ["recvonly", "inactive"] {
        assert_eq!(whip(&edit(&obs, "sendonly", direction)).1, "bad_direction");
    }
    assert_eq!(whip(&edit(&obs, "sendonly", "recvonly")).0, 422);
    let viewer = recorded(CHROMIUM_VIEWER);
    for direction in ["sendonly", "inactive"] {
        assert_eq!(
            whep(&edit(&viewer, "recvonly", direction)),
            (422, "bad_direction", Some(8))
        );
    }
    // Session level holds where a section is silent.
    let silent = edit(
        &edit(&obs, "a=sendonly\r\n", ""),
        "t=0 0\r\n",
        "t=0 0\r\na=inactive\r\n",
    );
    assert_eq!(whip(&silent).1, "bad_direction");
}

/// B-17, B-18, I-03, E-10.
#[test]
fn b17_b18_no_common_codec() {
    let obs = recorded(OBS);
    let theora = edit(&obs, "H264/90000", "theora/90000");
    let line = line_of(&obs, "m=video 9 UDP/TLS/RTP/SAVPF 96");
    assert_eq!(whip(&theora), (422, "no_common_codec", line));
    assert!(publish(&theora).unwrap_err().to_string().contains("VP8"));
    let viewer = recorded(CHROMIUM_VIEWER);
    let video = edit(&viewer, "H264/90000", "theora/90000");
    let source = millstream_core::sdp::negotiation_result::AudioVideoFormats {
        audio: None,
        ..high_and_opus()
    };
    let error = play(&video, source).unwrap_err();
    assert_eq!((error.http_status(), error.code()), (422, "nothing_playable"));
    assert!(error.to_string().contains("H264"), "{error}");
}

/// B-19, B-20, T-03.
#[test]
fn b19_b20_fingerprints() {
    let obs = recorded(OBS);
    let line = obs.lines().find(|line| line.starts_with("a=fingerprint")).unwrap();
    assert_eq!(whip(&edit(&obs, &format!("{line}\r\n"), "")).1, "fingerprint_missing");
    assert_eq!(
        whip(&edit(&obs, "sha-256", "sha-1")),
        (422, "weak_fingerprint", line_of(&obs, line))
    );
    for bad in ["sha-256 D8:55", "sha-256", "sha-256 zz:zz", "sha-512 D8:55"] {
        let offer = edit(&obs, line, &format!("a=fingerprint:{bad}"));
        assert_eq!(whip(&offer), (400, "bad_fingerprint", line_of(&obs, line)), "{bad}");
    }
    let lower = edit(&obs, line, &line.to_ascii_lowercase());
    assert_eq!(publish(&lower).unwrap().0.transport.fingerprints.len(), 1);
}

/// B-21, C-15.
#[test]
fn b21_ice_credentials() {
    let obs = recorded(OBS);
    assert_eq!(
        whip(&edit(&obs, "a=ice-ufrag:7XDb\r\n", "")).1,
        "ice_credentials_missing"
    );
    for (from, to) in [
        ("h/pfbD5oBAZuE1GgK0VfB8", "short".to_owned()),
        ("ice-ufrag:7XDb", format!("ice-ufrag:{}", "a".repeat(300))),
        ("ice-ufrag:7XDb", "ice-ufrag:a b-c".to_owned()),
    ] {
        let (status, code, line) = whip(&edit(&obs, from, &to));
        assert_eq!((status, code), (400, "bad_ice_credentials"));
        assert!(line.is_some());
    }
}

/// S-22. RFC 9143 §7.1.3: one transport has one ufrag and one password.
#[test]
fn bundled_sections_with_other_credentials_are_refused() {
    let obs = recorded(OBS);
    let (audio, video) = obs.split_at(obs.find("m=video").unwrap());
    for (from, to) in [
        ("ice-ufrag:7XDb", "ice-ufrag:8XDb"),
        ("h/pfbD5oBAZuE1GgK0VfB8", "i/pfbD5oBAZuE1GgK0VfB8"),
    ] {
        let offer = format!("{audio}{}", edit(video, from, to));
        assert_eq!(whip(&offer), (422, "ice_credentials_differ", Some(23)));
    }
    let silent = video
        .lines()
        .filter(|line| !line.starts_with("a=ice-"))
        .fold(audio.to_owned(), |text, line| text + line + "\r\n");
    assert!(publish(&silent).is_ok(), "a section may leave them out");
}

/// B-22, T-02.
#[test]
fn b22_dtls_roles() {
    let obs = recorded(OBS);
    assert_eq!(whip(&edit(&obs, "actpass", "holdconn")).1, "setup_holdconn");
    assert_eq!(
        whip(&edit(&obs, "a=setup:actpass\r\n", "")),
        (400, "setup_missing", Some(10))
    );
    assert_eq!(whip(&edit(&obs, "actpass", "sometimes")).1, "bad_setup");
    let (audio, video) = obs.split_at(obs.find("m=video").unwrap());
    let mixed = format!("{audio}{}", edit(video, "actpass", "active"));
    assert_eq!(whip(&mixed).0, 422);
    assert_eq!(whip(&mixed).1, "setup_conflict");
}

/// B-23, B-24, S-11.
#[test]
fn b23_b24_one_port_for_all() {
    let obs = recorded(OBS);
    assert_eq!(
        whip(&edit(&obs, "a=rtcp-mux\r\n", "")),
        (422, "rtcp_mux_missing", Some(10))
    );
    let apart = edit(&obs, "a=group:BUNDLE 0 1\r\n", "");
    assert_eq!(whip(&apart).1, "bundle_required");
    assert_eq!(whip(&edit(&obs, "BUNDLE 0 1", "BUNDLE 1")).0, 422);
    let viewer = edit(&recorded(CHROMIUM_VIEWER), "a=group:BUNDLE 0 1\r\n", "");
    assert_eq!(whep(&viewer), (422, "bundle_required", Some(39)));
}

/// B-25.
#[test]
fn b25_mids() {
    let obs = recorded(OBS);
    assert_eq!(
        whip(&edit(&obs, "a=mid:1", "a=mid:0")),
        (400, "duplicate_mid", Some(25))
    );
    assert_eq!(whip(&edit(&obs, "a=mid:1\r\n", "")).1, "mid_missing");
    assert_eq!(
        whip(&edit(&obs, "a=mid:1", &format!("a=mid:{}", "m".repeat(200)))).1,
        "bad_mid"
    );
    assert_eq!(whip(&edit(&obs, "a=mid:1", "a=mid:a b")).1, "bad_mid");
    let lone = edit(&edit(&video_only(), "a=mid:1\r\n", ""), "a=group:BUNDLE 0 1\r\n", "");
    let (plan, answer) = publish(&lone).unwrap();
    assert_eq!(&*plan.tracks[0].mid.0, "0");
    assert!(!answer.contains("a=mid") && !answer.contains("a=group"));
}

/// B-26, R-02.
#[test]
fn b26_header_extension_ids() {
    let obs = recorded(OBS);
    assert_eq!(
        whip(&edit(&obs, "extmap:1 ", "extmap:0 ")),
        (400, "bad_extmap", Some(26))
    );
    assert_eq!(
        whip(&edit(&obs, "extmap:2 ", "extmap:1 ")),
        (400, "bad_extmap", Some(27))
    );
    assert_eq!(whip(&edit(&obs, "extmap:1 ", "extmap:x ")).1, "bad_extmap");
    let (plan, answer) = publish(&edit(&obs, "extmap:1 ", "extmap:15 ")).unwrap();
    assert_eq!(plan.tracks[1].extension_ids.mid, None);
    assert!(!answer.contains("extmap:15"));
    let clash = edit(
        &obs,
        "a=mid:0\r\n",
        "a=mid:0\r\na=extmap:2 urn:ietf:params:rtp-hdrext:sdes:mid\r\n",
    );
    assert_eq!(whip(&clash).1, "bad_extmap");
}

/// B-27, V-17.
#[test]
fn b27_payload_types() {
    let obs = recorded(OBS);
    assert_eq!(whip(&edit(&obs, "96", "111")).1, "payload_type_reused");
    let twice = edit(
        &obs,
        "a=rtpmap:96 H264/90000",
        "a=rtpmap:96 H264/90000\r\na=rtpmap:96 VP8/90000",
    );
    assert_eq!(whip(&twice), (400, "payload_type_reused", Some(34)));
    for formats in ["96 96", "96 128", "96 x", "-1"] {
        assert_eq!(
            whip(&edit(&obs, "SAVPF 96", &format!("SAVPF {formats}"))).1,
            "bad_payload_type"
        );
    }
    // RFC 8866 §6.6, §9: an integer begins with another digit than 0; the answer could not repeat it.
    for map in ["H264/090000", "H264/90000/01", "H264/x"] {
        assert_eq!(whip(&edit(&obs, "H264/90000", map)).1, "bad_payload_type", "{map}");
    }
    let many: Vec<String> = (0..65).map(|pt| pt.to_string()).collect();
    assert_eq!(
        whip(&edit(&obs, "SAVPF 96", &format!("SAVPF {}", many.join(" ")))).1,
        "too_many_payload_types"
    );
    let rtx = |apt: &str| {
        let offer = edit(&obs, "SAVPF 96", "SAVPF 96 97");
        let lines = format!("a=rtpmap:97 rtx/90000\r\na=fmtp:97 {apt}\r\na=rtpmap:96");
        publish(&edit(&offer, "a=rtpmap:96", &lines)).unwrap().0.tracks[1].codecs[0].rtx_pt
    };
    assert!(rtx("apt=96").is_some());
    for apt in ["apt=98", "apt=abc", "apt=97", "nothing"] {
        assert_eq!(rtx(apt), None, "{apt}");
    }
    // 64 to 95 look like RTCP.
    assert_eq!(whip(&edit(&obs, "96", "72")).1, "no_common_codec");
}

/// B-28.
#[test]
fn b28_simulcast() {
    let obs = recorded(OBS_SIMULCAST);
    for (from, to, code) in [
        ("a=rid:1 send", "a=rid:! send", "bad_rid"),
        ("a=rid:1 send", "a=rid:0 send", "bad_rid"),
        ("a=rid:1 send", "a=rid:1", "bad_rid"),
        ("send 0;1;2", "send 0;1;3", "bad_simulcast"),
        ("send 0;1;2", "send 0;1;1", "bad_simulcast"),
        ("send 0;1;2", "send 0;;1", "bad_simulcast"),
    ] {
        let (status, actual, line) = whip(&edit(&obs, from, to));
        assert_eq!((status, actual), (400, code), "{to}");
        assert!(line.is_some());
    }
    let fifty: String = (3..53).map(|rid| format!("a=rid:{rid} send\r\n")).collect();
    assert_eq!(
        whip(&edit(&obs, "a=simulcast", &format!("{fifty}a=simulcast"))).1,
        "too_many_layers"
    );
    let blind = edit(&obs, "a=extmap:2 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id\r\n", "");
    assert_eq!(whip(&blind), (422, "rid_extension_missing", Some(23)));
}

/// B-29, V-03.
#[test]
fn b29_format_parameters_that_make_no_sense_count_as_absent() {
    for profile in ["zz", "42e01", "42e01f0", "+2e01f", ""] {
        let offer = edit(
            &recorded(OBS),
            "profile-level-id=42e01f",
            &format!("profile-level-id={profile}"),
        );
        let (plan, answer) = publish(&offer).unwrap();
        assert_eq!(plan.tracks[1].codecs[0].format, crate::sdp::h264([0x42, 0xe0, 0x1f]));
        assert!(!answer.contains("profile-level-id"));
    }
}

/// S-19.
#[test]
fn sections_that_are_not_media_fail_whip_and_are_refused_by_whep() {
    let section = "m=text 9 UDP/TLS/RTP/SAVPF 98\r\na=mid:t\r\n";
    assert_eq!(whip(&format!("{}{section}", recorded(OBS))).1, "unsupported_section");
    let plain = format!("{}m=audio 9 RTP/AVP 0\r\na=mid:t\r\n", recorded(FFMPEG));
    let error = publish(&plain).unwrap_err();
    assert_eq!(error.code(), "unsupported_section");
    assert!(error.to_string().contains("with an `a=fingerprint`"), "{error}");
    for section in [
        section,
        "m=haptic 9 UDP/TLS/RTP/SAVPF 98\r\na=mid:t\r\n",
        "m=audio 9 RTP/AVP 0\r\na=mid:t\r\n",
    ] {
        let offer = format!("{}{section}", recorded(CHROMIUM_VIEWER));
        let (plan, answer) = play(&offer, high_and_opus()).unwrap();
        crate::sdp::invariants::check_playback(&offer, &answer, &plan);
        assert_eq!(plan.tracks.len(), 2);
    }
}

/// An error text is one line for a log: what it repeats of an offer is short and has no control characters.
#[test]
fn an_error_text_repeats_no_control_characters() {
    let obs = edit(&recorded(OBS), "H264/90000", "re\tal/90000");
    let error = publish(&obs).expect_err("no codec that is known");
    assert_eq!(error.code(), "no_common_codec");
    let text = error.to_string();
    assert!(text.contains("real") && !text.contains(char::is_control), "{text:?}");
}
