//! What real clients write, and is taken as it is meant.

use crate::sdp::{OBS, edit, publish, recorded};

/// S-01.
#[test]
fn lines_may_end_as_they_like_and_are_answered_with_crlf() {
    let crlf = recorded(OBS).replace("\r\n", "\n").replace('\n', "\r\n");
    for offer in [crlf.clone(), crlf.replace("\r\n", "\n")] {
        let (_, answer) = publish(&offer).expect("is taken");
        assert_eq!(answer.matches('\n').count(), answer.matches("\r\n").count());
        assert!(answer.ends_with("\r\n"));
    }
}

/// S-16.
#[test]
fn a_direction_may_be_missing_or_stand_at_session_level() {
    let obs = recorded(OBS);
    let without = obs.replace("a=sendonly\r\n", "");
    assert_ne!(obs, without);
    let (_, answer) = publish(&without).expect("means sendrecv");
    assert_eq!(answer.matches("a=recvonly\r\n").count(), 2);
    let at_session = edit(&without, "m=audio", "a=sendonly\r\nm=audio");
    let (_, answer) = publish(&at_session).expect("holds for every section");
    assert_eq!(answer.matches("a=recvonly\r\n").count(), 2);
}

/// S-07.
#[test]
fn one_section_needs_no_bundle() {
    let obs = recorded(OBS);
    let (head, video) = obs.split_once("m=video").expect("a video section");
    let (head, _) = head.split_once("m=audio").expect("an audio section");
    let lonely = format!("{}m=video{video}", edit(head, "a=group:BUNDLE 0 1\r\n", ""));
    let (_, answer) = publish(&lonely).expect("is taken");
    assert!(!answer.contains("a=group:BUNDLE"), "none was offered");
    let both = edit(&obs, "a=group:BUNDLE 0 1\r\n", "");
    assert_eq!(publish(&both).expect_err("two need one").code(), "bundle_required");
}

/// S-17.
#[test]
fn mids_are_echoed_as_they_are() {
    let mid = "Video-of+the.second_camera.1";
    let obs = recorded(OBS);
    let named = edit(
        &edit(&obs, "a=mid:1", &format!("a=mid:{mid}")),
        "BUNDLE 0 1",
        &format!("BUNDLE 0 {mid}"),
    );
    let (_, answer) = publish(&named).expect("is taken");
    assert!(answer.contains(&format!("a=mid:{mid}\r\n")), "{answer}");
}

/// C-09, P-25, B-30, B-31.
#[test]
fn candidates_of_any_kind_do_nothing() {
    let (plain, _) = publish(&recorded(OBS)).expect("is taken");
    let many = "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n".repeat(500);
    for candidates in [
        "a=candidate:garbage\r\n",
        "a=candidate:\r\n",
        "a=candidate:1 0 udp 1 192.0.2.1 99999 typ host\r\n",
        "a=candidate:1 1 udp 1 224.0.0.1 9 typ host\r\n",
        "a=candidate:1 1 udp 1 127.0.0.1 22 typ host\r\n",
        "a=candidate:1 1 udp 1 8f2c1ae4-3b5b.local 9 typ host\r\n",
        "a=candidate:1 1 udp 1 internal-database.corp.example 5432 typ host\r\n",
        many.as_str(),
    ] {
        let offer = edit(&recorded(OBS), "a=mid:1\r\n", &format!("a=mid:1\r\n{candidates}"));
        let (plan, answer) = publish(&offer).unwrap_or_else(|error| panic!("{error}: {candidates:.80}"));
        assert_eq!(plan.tracks.len(), plain.tracks.len());
        assert!(!answer.contains("internal-database") && !answer.contains(".local"));
    }
}

/// S-20. What is left out, written with blanks or capitals, or said twice.
#[test]
fn odd_writing_changes_nothing() {
    let obs = recorded(OBS);
    let (_, expected) = publish(&obs).expect("is taken");
    for (what, offer) in [
        ("no name", edit(&obs, "s=-\r\n", "")),
        ("an empty name", edit(&obs, "s=-", "s=")),
        ("no time", edit(&obs, "t=0 0\r\n", "")),
        (
            "parameters of a payload type in several lines",
            edit(&obs, ";packetization-mode=", "\r\na=fmtp:96 packetization-mode="),
        ),
        (
            "an origin without address",
            edit(&obs, "IN IP4 127.0.0.1\r\ns=", "IN IP4\r\ns="),
        ),
        ("an origin with words for numbers", edit(&obs, "818911080 0", "live -1")),
        (
            "an empty origin",
            edit(&obs, "o=rtc 818911080 0 IN IP4 127.0.0.1", "o="),
        ),
        ("a time in words", edit(&obs, "t=0 0", "t=never")),
        ("a time too long", edit(&obs, "t=0 0", "t=0 99999999999999999999 7")),
        ("two names and two times", edit(&obs, "t=0 0", "t=0 0\r\nt=1 2\r\ns=x")),
        ("a name before the origin", edit(&obs, "v=0\r\n", "v=0\r\ns=early\r\n")),
        (
            "mistakes in lines of the session that nobody needs",
            edit(
                &obs,
                "t=0 0\r\n",
                "i=\r\nu=:\r\ne=\r\np=\r\nc=IN\r\nb=x\r\nt=0 0\r\nr=\r\nz=1\r\nk=\r\n",
            ),
        ),
        ("no origin", edit(&obs, "o=rtc 818911080 0 IN IP4 127.0.0.1\r\n", "")),
        ("a byte order mark", format!("\u{feff}{obs}")),
        ("blanks at the end", edit(&obs, "\r\n", " \t\r\n")),
        ("blank lines", edit(&obs, "\r\n", "\r\n\r\n")),
        ("two carriage returns", edit(&obs, "\r\n", "\r\r\n")),
        (
            "a blank behind the colon",
            edit(&obs, "a=setup:actpass", "a=setup: actpass"),
        ),
        (
            "names in capitals",
            edit(&edit(&obs, "a=rtcp-mux", "a=RTCP-MUX"), "a=mid:", "a=Mid:"),
        ),
        (
            "values in capitals",
            edit(&edit(&obs, "actpass", "ActPass"), "sha-256", "SHA-256"),
        ),
        (
            "a group in small letters",
            edit(&obs, "a=group:BUNDLE", "a=group:bundle"),
        ),
        (
            "an extension of the session and of the section",
            edit(
                &obs,
                "t=0 0\r\n",
                "t=0 0\r\na=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid\r\n",
            ),
        ),
        (
            "a weak fingerprint in a section and a good one for the session",
            edit(&obs, "a=mid:0\r\n", "a=mid:0\r\na=fingerprint:sha-1 AB:CD\r\n"),
        ),
    ] {
        let (_, answer) = publish(&offer).unwrap_or_else(|error| panic!("{what}: {error}"));
        // An extension of the session is one of the audio section too.
        let answer = answer.replacen("a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid\r\n", "", 1);
        let expected = expected.replacen("a=extmap:1 urn:ietf:params:rtp-hdrext:sdes:mid\r\n", "", 1);
        if what.starts_with("an extension") {
            assert!(answer.contains("a=extmap:1"), "{answer}");
        } else {
            assert_eq!(answer, expected, "{what}");
        }
    }
}

/// RFC 4585 §4.2: feedback of more words is another kind, which nobody asked for.
#[test]
fn feedback_of_more_words_is_another_kind() {
    let obs = recorded(OBS);
    let (_, answer) = publish(&obs).expect("is taken");
    assert!(answer.contains(" nack pli\r\n"));
    let (_, answer) = publish(&edit(&obs, " nack pli\r\n", " nack pli often\r\n")).expect("is taken");
    assert!(!answer.contains("nack pli"), "{answer}");
}

/// S-09.
#[test]
fn what_follows_the_channels_of_an_rtpmap_means_nothing() {
    let obs = recorded(OBS);
    let (_, answer) = publish(&edit(&obs, "opus/48000/2", "opus/48000/2/7")).expect("is taken");
    assert!(answer.contains("opus/48000/2\r\n"), "{answer}");
}
