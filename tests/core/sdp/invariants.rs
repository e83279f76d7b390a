//! What holds for every answer, whatever the offer.

use std::collections::HashSet;

use millstream_core::media::Ssrc;
use millstream_core::sdp::negotiation_result::{
    DtlsRole, NegotiatedCodec, NegotiatedPlayback, NegotiatedPublication, RtpHeaderExtensionIds,
};

use crate::sdp::Us;
use crate::sdp::description::{Description, Section};

/// Checks the answer to a publisher.
pub(super) fn check_publication(offer: &str, answer: &str, plan: &NegotiatedPublication) {
    let (offer, answer) = check_answer(offer, answer, plan.transport.gateway_dtls_role);
    assert!(!plan.tracks.is_empty() && plan.tracks.len() <= 2);
    for (offered, answered) in offer.sections.iter().zip(&answer.sections) {
        let is_disabled = offered.port() == "0" && !offered.has_flag("bundle-only");
        // All or nothing; a data channel is neither.
        if offered.media() != "application" {
            assert_eq!(answered.port() == "9", !is_disabled);
        }
        if answered.port() == "0" || answered.media() == "application" {
            continue;
        }
        assert!(answered.has("a=recvonly"));
        let mid = answered.first("mid").unwrap_or("0");
        let track = plan.tracks.iter().find(|track| &*track.mid.0 == mid).expect("a track");
        assert_eq!(track.kind.to_string(), answered.media());
        check_codecs(answered, &track.codecs);
        let rids: Vec<&str> = track.rids.iter().map(|rid| &*rid.0).collect();
        match answered.first("simulcast") {
            None => assert!(rids.is_empty()),
            Some(simulcast) => {
                assert_eq!(simulcast, format!("recv {}", rids.join(";")));
                assert!(rids.iter().all(|rid| answered.has(&format!("a=rid:{rid} recv"))));
                assert!(track.extension_ids.rid.is_some());
            }
        }
        check_extension_ids(answered, &track.extension_ids, &track.codecs);
    }
}

/// The ids of the plan are those of the answer, and transport-wide feedback stands beside its header extension.
fn check_extension_ids(answered: &Section, ids: &RtpHeaderExtensionIds, codecs: &[NegotiatedCodec]) {
    assert_eq!(
        codecs.iter().any(|codec| codec.rtcp_feedback.transport_cc),
        ids.transport_cc.is_some()
    );
    for (id, uri) in [
        (ids.mid, "urn:ietf:params:rtp-hdrext:sdes:mid"),
        (ids.rid, "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"),
        (ids.transport_cc, TRANSPORT_CC),
        (
            ids.playout_delay,
            "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay",
        ),
    ] {
        let answered = answered.all("extmap").into_iter().find(|map| map.ends_with(uri));
        let answered = answered.map(|map| map.split(['/', ' ']).next().unwrap().parse().unwrap());
        assert_eq!(answered, id);
    }
}

/// A viewer gets transport-wide numbers exactly where its section offers the header extension, and the codec that is sent
/// the feedback.
fn check_transport_cc(offer: &Description, offered: &Section, answered: &Section) {
    let pts = answered.formats();
    let offers_feedback = pts.first().is_some_and(|pt| {
        let feedback = offered.of_pt("rtcp-fb", pt);
        feedback
            .iter()
            .any(|feedback| feedback.split_whitespace().eq(["transport-cc"]))
    });
    // The first line of the URI is the one that counts.
    let maps = [offer.all("extmap"), offered.all("extmap")].concat();
    let usable = maps.iter().find_map(|map| {
        let (id, uri) = map.trim().split_once(char::is_whitespace)?;
        let (id, direction) = id.split_once('/').unwrap_or((id, "sendrecv"));
        let is_ours = uri.split_whitespace().next() == Some(TRANSPORT_CC);
        let fits = id.parse().is_ok_and(|id: u16| (1..=14).contains(&id));
        (is_ours && fits && direction != "inactive").then_some(direction)
    });
    let expected = offers_feedback && matches!(usable, Some("sendrecv" | "recvonly"));
    let is_answered = answered.all("extmap").iter().any(|map| map.ends_with(TRANSPORT_CC));
    assert_eq!(is_answered, expected, "{:?}", offered.first("mid"));
}

const TRANSPORT_CC: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";

/// Checks the answer to a viewer.
pub(super) fn check_playback(offer: &str, answer: &str, plan: &NegotiatedPlayback) {
    let (offered, answer) = check_answer(offer, answer, plan.transport.gateway_dtls_role);
    let mut ssrcs = HashSet::new();
    let mut streams = HashSet::new();
    let open = answer
        .sections
        .iter()
        .filter(|section| section.port() == "9" && section.media() != "application");
    let (held, accepted): (Vec<&Section>, Vec<&Section>) = open.partition(|section| section.has("a=inactive"));
    assert!(held.len() <= 1, "the tagged section alone may be held");
    for section in held {
        let tagged = answer
            .session
            .iter()
            .find_map(|line| line.strip_prefix("a=group:BUNDLE "));
        let tagged = tagged.map(|mids| mids.split(' ').next().unwrap());
        assert!(tagged.is_none() || tagged == section.first("mid"));
        assert!(section.all("ssrc").is_empty() && section.all("extmap").is_empty());
    }
    assert_eq!(accepted.len(), plan.tracks.len());
    for (answered, track) in accepted.iter().zip(&plan.tracks) {
        assert!(answered.has("a=sendonly"));
        assert_eq!(answered.first("mid").unwrap_or("0"), &*track.mid.0);
        assert_eq!(track.kind.to_string(), answered.media());
        check_codecs(answered, &track.codecs);
        check_extension_ids(answered, &track.extension_ids, &track.codecs);
        let index = answer
            .sections
            .iter()
            .position(|section| std::ptr::eq(section, *answered));
        check_transport_cc(&offered, &offered.sections[index.expect("of the answer")], answered);
        let msid = answered.first("msid").expect("an msid");
        streams.insert(msid.split(' ').next().unwrap().to_owned());
        let has_rtx = track.codecs.iter().any(|codec| codec.rtx_pt.is_some());
        assert_eq!(track.rtx_ssrc.is_some(), has_rtx);
        let own: Vec<Ssrc> = std::iter::once(track.ssrc).chain(track.rtx_ssrc).collect();
        let lines: Vec<String> = own
            .iter()
            .map(|ssrc| format!("{} cname:{}", ssrc.0, plan.cname))
            .collect();
        assert_eq!(answered.all("ssrc"), lines);
        let group = track.rtx_ssrc.map(|rtx| format!("FID {} {}", track.ssrc.0, rtx.0));
        assert_eq!(answered.first("ssrc-group"), group.as_deref());
        for ssrc in own {
            assert!(ssrc.0 != 0 && ssrcs.insert(ssrc), "{ssrc:?} is zero or taken");
            let id = ssrc.0.to_string();
            let offered = Description::read(offer);
            // What is refused is not sent, whatever SSRCs it lists.
            let pairs = offered.sections.iter().zip(&answer.sections);
            let open = pairs.filter(|(_, answered)| answered.port() == "9");
            let mut declared = open.flat_map(|(section, _)| section.all("ssrc"));
            let is_taken = declared.any(|value| value.split(' ').next() == Some(id.as_str()));
            assert!(!is_taken, "{ssrc:?} is the viewer's");
        }
    }
    assert_eq!(streams.len(), 1, "one MediaStream");
    let kinds: HashSet<&str> = accepted.iter().map(|section| section.media()).collect();
    assert_eq!(kinds.len(), accepted.len(), "one track of a kind");
}

/// Section 8.2 of the interoperability notes: what offer and answer have to agree on.
fn check_answer(offer: &str, answer: &str, role: DtlsRole) -> (Description, Description) {
    assert!(answer.len() < 8192, "FFmpeg reads 8 KiB");
    assert!(answer.starts_with("v=0\r\n") && answer.ends_with("\r\n"));
    assert!(answer.is_ascii());
    assert_eq!(answer.matches('\n').count(), answer.matches("\r\n").count());
    assert_eq!(answer.matches('\r').count(), answer.matches("\r\n").count());

    let (offer, answer) = (Description::read(offer), Description::read(answer));
    assert!(answer.has("a=ice-lite") && answer.has("a=ice-options:trickle ice2"));
    assert_eq!(offer.sections.len(), answer.sections.len());
    let mut accepted = Vec::new();
    for (offered, answered) in offer.sections.iter().zip(&answer.sections) {
        assert_eq!(offered.media(), answered.media());
        assert_eq!(offered.proto(), answered.proto());
        assert_eq!(offered.first("mid"), answered.first("mid"));
        match answered.port() {
            "0" => check_refused(&answer, offered, answered),
            "9" if answered.media() == "application" => {
                accepted.push(answered);
                check_accepted_data_channels(offered, answered);
            }
            "9" => {
                accepted.push(answered);
                check_accepted(&offer, offered, answered, role);
            }
            port => panic!("port {port}"),
        }
    }
    assert!(!accepted.is_empty());
    check_bundle(&offer, &answer, &accepted);
    check_candidates(&answer);
    (offer, answer)
}

/// A refused section has the transport of the others, for webrtcbin, and nothing of media.
fn check_refused(answer: &Description, offered: &Section, answered: &Section) {
    assert_eq!(answered.formats().len(), 1);
    assert!(offered.formats().contains(&answered.formats()[0]));
    assert!(answered.has("a=inactive"));
    let accepted = answer.sections.iter().find(|section| section.port() == "9");
    let accepted = accepted.expect("a section is accepted");
    for key in ["ice-ufrag", "ice-pwd", "fingerprint", "setup"] {
        assert_eq!(answered.all(key), accepted.all(key), "{key} in a refused section");
    }
    for key in ["candidate", "ssrc", "rtpmap", "fmtp", "rtcp-fb", "extmap", "msid"] {
        assert!(answered.all(key).is_empty(), "{key} in a refused section");
    }
}

/// An accepted section of data channels has the transport and its own attributes, and nothing of media.
fn check_accepted_data_channels(offered: &Section, answered: &Section) {
    assert_eq!(answered.formats(), ["webrtc-datachannel"]);
    assert_eq!(offered.formats().first(), Some(&"webrtc-datachannel"));
    let own = [
        "mid",
        "ice-ufrag",
        "ice-pwd",
        "fingerprint",
        "setup",
        "sctp-port",
        "max-message-size",
    ];
    for key in own {
        assert!(answered.all(key).len() == 1 || key == "mid", "{key}");
    }
    for line in answered.lines.iter().filter_map(|line| line.strip_prefix("a=")) {
        let key = line.split(':').next().unwrap();
        let is_of_candidates = ["candidate", "end-of-candidates"].contains(&key);
        assert!(is_of_candidates || own.contains(&key), "{line}");
    }
}

fn check_accepted(offer: &Description, offered: &Section, answered: &Section, role: DtlsRole) {
    let directions = ["a=recvonly", "a=sendonly", "a=sendrecv", "a=inactive"];
    assert_eq!(directions.iter().filter(|line| answered.has(line)).count(), 1);
    for key in ["ice-ufrag", "ice-pwd", "fingerprint", "setup"] {
        assert_eq!(answered.all(key).len(), 1, "{key}");
    }
    let setup = offered.first("setup").or(offer.all("setup").first().copied());
    let setup = setup.map(str::to_ascii_lowercase);
    let expected = match setup.as_deref() {
        Some("passive") => ("active", DtlsRole::Client),
        Some("actpass" | "active") => ("passive", DtlsRole::Server),
        // The section relies on the others of its BUNDLE.
        None => match role {
            DtlsRole::Client => ("active", role),
            DtlsRole::Server => ("passive", role),
        },
        other => panic!("{other:?} was accepted"),
    };
    assert_eq!((answered.first("setup").unwrap(), role), expected);
    assert!(answered.has("a=rtcp-mux") && answered.has("a=rtcp-mux-only"));
    assert!(offered.has_flag("rtcp-mux") || offered.has_flag("rtcp-mux-only"));
    assert!(!answered.has("a=bundle-only"));
    assert!(!answered.has("a=rtcp-rsize") || offered.has_flag("rtcp-rsize"));

    let pts = answered.formats();
    assert!(!pts.is_empty());
    assert_eq!(pts.iter().collect::<HashSet<_>>().len(), pts.len());
    for pt in &pts {
        assert!(offered.formats().contains(pt), "payload type {pt} was not offered");
        assert!(
            !(64..=95).contains(&pt.parse::<u8>().unwrap()),
            "{pt} collides with RTCP"
        );
        let codec = answered.codec(pt).expect("an rtpmap");
        assert_eq!(offered.codec(pt).as_ref(), Some(&codec));
        match codec.split('/').next().unwrap() {
            "rtx" => {
                let apt = answered.parameter(pt, "apt").expect("apt");
                assert_eq!(offered.parameter(pt, "apt"), Some(apt));
                assert!(pts.contains(&apt), "rtx of a payload type that is gone");
            }
            "h264" => {
                let mode = offered.parameter(pt, "packetization-mode");
                // What makes no sense counts as absent.
                let mode = mode.filter(|mode| ["0", "1"].contains(mode)).unwrap_or("0");
                assert_eq!(answered.parameter(pt, "packetization-mode").unwrap_or("0"), mode);
                if let Some(profile) = answered.parameter(pt, "profile-level-id") {
                    assert_eq!(offered.parameter(pt, "profile-level-id"), Some(profile));
                }
            }
            "h265" | "vp8" | "vp9" | "av1" | "opus" | "pcmu" | "pcma" => {}
            other => panic!("{other} does not pass through"),
        }
        for feedback in answered.of_pt("rtcp-fb", pt) {
            let offered = offered.of_pt("rtcp-fb", pt);
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert!(
                offered.iter().any(|o| words(o) == words(feedback)),
                "{feedback} was not offered"
            );
        }
    }
    check_extmaps(offer, offered, answered);
}

fn check_extmaps(offer: &Description, offered: &Section, answered: &Section) {
    let read = |maps: Vec<&str>| -> Vec<(u16, String)> {
        maps.into_iter()
            .map(|map| {
                let mut fields = map.split_whitespace();
                let id = fields.next().unwrap().split('/').next().unwrap().parse().unwrap();
                (id, fields.next().unwrap().to_owned())
            })
            .collect()
    };
    let offered = read([offer.all("extmap"), offered.all("extmap")].concat());
    let answered = read(answered.all("extmap"));
    let ids: HashSet<u16> = answered.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), answered.len());
    for extmap in answered {
        assert!((1..=14).contains(&extmap.0));
        assert!(offered.contains(&extmap), "{extmap:?} was not offered");
    }
}

fn check_bundle(offer: &Description, answer: &Description, accepted: &[&Section]) {
    let bundles = answer.bundles();
    assert!(bundles.len() <= 1);
    let Some(group) = bundles.first() else {
        assert_eq!(accepted.len(), 1, "several sections without BUNDLE");
        return;
    };
    let mids: HashSet<&str> = accepted.iter().filter_map(|section| section.first("mid")).collect();
    assert_eq!(
        mids,
        group.iter().copied().collect::<HashSet<_>>(),
        "BUNDLE is what was accepted"
    );
    assert_eq!(group.len(), accepted.len());
    let is_in_order = |offered: &Vec<&str>| {
        let mut rest = offered.iter();
        group.iter().all(|mid| rest.any(|o| o == mid))
    };
    assert!(
        offer.bundles().iter().any(is_in_order),
        "BUNDLE keeps the order of the offer"
    );
}

fn check_candidates(answer: &Description) {
    let with = |line: &str| {
        answer
            .sections
            .iter()
            .filter(|section| section.has(line))
            .collect::<Vec<_>>()
    };
    let [section] = with("a=end-of-candidates")[..] else {
        panic!("end-of-candidates stands once");
    };
    let candidates = section.all("candidate");
    let total: usize = answer
        .sections
        .iter()
        .map(|section| section.all("candidate").len())
        .sum();
    assert_eq!(candidates.len(), total);
    assert_eq!(candidates.len(), Us::new().candidates.len());
    let mut last = u32::MAX;
    for (candidate, address) in candidates.iter().zip(&Us::new().candidates) {
        let fields: Vec<&str> = candidate.split(' ').collect();
        let [foundation, "1", "udp", priority, ip, port, "typ", "host"] = fields[..] else {
            panic!("{candidate}");
        };
        assert!(!foundation.contains("udp"));
        assert_eq!((ip, port), (&*address.ip().to_string(), &*address.port().to_string()));
        let priority: u32 = priority.parse().unwrap();
        assert!(priority < last && priority < 1 << 31);
        last = priority;
    }
    if let Some(tagged) = answer.bundles().first().and_then(|group| group.first()) {
        assert_eq!(section.first("mid"), Some(*tagged));
    }
}

/// The plan says of payload types what the text says.
fn check_codecs(answered: &Section, codecs: &[NegotiatedCodec]) {
    let planned: Vec<String> = codecs
        .iter()
        .flat_map(|codec| std::iter::once(codec.pt).chain(codec.rtx_pt))
        .map(|pt| pt.0.to_string())
        .collect();
    assert_eq!(answered.formats(), planned);
    for codec in codecs {
        let pt = codec.pt.0.to_string();
        let name = answered.codec(&pt).unwrap();
        assert!(name.starts_with(&codec.format.codec().name().to_ascii_lowercase()));
        let mut feedback = answered.of_pt("rtcp-fb", &pt);
        let mut planned = Vec::new();
        for (used, name) in [
            (codec.rtcp_feedback.nack, "nack"),
            (codec.rtcp_feedback.pli, "nack pli"),
            (codec.rtcp_feedback.fir, "ccm fir"),
            (codec.rtcp_feedback.transport_cc, "transport-cc"),
            (codec.rtcp_feedback.remb, "goog-remb"),
        ] {
            planned.extend(used.then_some(name));
        }
        feedback.sort_unstable();
        planned.sort_unstable();
        assert_eq!(feedback, planned);
    }
}
