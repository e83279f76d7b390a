//! How clients read our answers, re-made from their described behaviour.

use crate::sdp::description::Description;
use crate::sdp::{
    CHROMIUM_VIEWER, FFMPEG, FIREFOX_VIEWER_NO_H264, OBS_SIMULCAST, all_recorded, high_and_opus, is_viewer, play,
    publish, recorded, vp8_and_opus,
};

/// OBS 32 cuts from `a=simulcast` to the next CRLF and counts layers; with fewer than it offered it gives up.
fn obs_layers(answer: &str) -> Option<usize> {
    let line = &answer[answer.find("a=simulcast")?..];
    let line = &line[..line.find("\r\n")?];
    Some(line.split(';').count())
}

/// I-06, I-07, R-06.
#[test]
fn obs_finds_all_its_layers() {
    let (plan, answer) = publish(&recorded(OBS_SIMULCAST)).unwrap();
    assert_eq!(obs_layers(&answer), Some(3));
    assert!(answer.contains("\r\na=simulcast:recv 0;1;2\r\n"));
    let rids: Vec<&str> = plan.tracks[1].rids.iter().map(|rid| &*rid.0).collect();
    assert_eq!(rids, ["0", "1", "2"]);
}

/// What FFmpeg 9 takes from an answer.
#[derive(Debug, PartialEq)]
struct FfmpegAnswer {
    ufrag: String,
    pwd: String,
    host: String,
    port: u16,
}

/// Reads 8192 bytes, line by line: the first ufrag, the first pwd, and of the first candidate line with `host` what
/// follows the first `udp` in it.
fn ffmpeg(answer: &str) -> Option<FfmpegAnswer> {
    if answer.len() >= 8192 || !answer.starts_with("v=") {
        return None;
    }
    let value = |prefix: &str| {
        answer
            .lines()
            .find_map(|line| line.strip_prefix(prefix))
            .map(str::to_owned)
    };
    let candidate = answer
        .lines()
        .find(|line| line.starts_with("a=candidate:") && line.contains("host"))?;
    let after = &candidate[candidate.to_ascii_lowercase().find("udp")? + 3..];
    let mut fields = after.split_whitespace();
    let _priority: i32 = fields.next()?.parse().ok()?;
    Some(FfmpegAnswer {
        ufrag: value("a=ice-ufrag:")?,
        pwd: value("a=ice-pwd:")?,
        host: fields.next()?.to_owned(),
        port: fields.next()?.parse().ok()?,
    })
}

/// C-06.
#[test]
fn ffmpeg_finds_the_first_address_and_we_are_its_dtls_client() {
    for (name, offer) in all_recorded().into_iter().filter(|(name, _)| !is_viewer(name)) {
        let (_, answer) = publish(&offer).unwrap();
        let expected = FfmpegAnswer {
            ufrag: "00Millstream".to_owned(),
            pwd: "0123456789abcdefghijklmn".to_owned(),
            host: "198.51.100.7".to_owned(),
            port: 8189,
        };
        assert_eq!(ffmpeg(&answer), Some(expected), "{name}");
    }
    let (plan, answer) = publish(&recorded(FFMPEG)).unwrap();
    assert_eq!(
        plan.transport.gateway_dtls_role,
        millstream_core::sdp::negotiation_result::DtlsRole::Client
    );
    assert_eq!(answer.matches("a=setup:active\r\n").count(), 2);
}

/// What made Chromium 156 refuse a whole answer when it was tried; see the interoperability notes.
fn chromium_takes(offer: &str, answer: &str) -> Result<(), String> {
    let (offer, answer) = (Description::read(offer), Description::read(answer));
    let group = answer.bundles().first().cloned().ok_or("no BUNDLE group")?;
    for (offered, answered) in offer.sections.iter().zip(&answer.sections) {
        if answered.formats().is_empty() {
            return Err("a line without a format".to_owned());
        }
        let mid = answered.first("mid").ok_or("no mid")?;
        if (answered.port() == "0") == group.contains(&mid) {
            return Err(format!("section {mid}: port 0 inside BUNDLE, or not in it"));
        }
        if answered.port() == "0" {
            continue;
        }
        let wanted = if offered.has("a=recvonly") {
            "a=sendonly"
        } else {
            "a=recvonly"
        };
        let is_whole = answered.has(wanted)
            && answered.has("a=rtcp-mux")
            && answered.first("ice-pwd").is_some_and(|pwd| pwd.len() >= 22)
            && answered.first("fingerprint").is_some()
            && matches!(answered.first("setup"), Some("active" | "passive"));
        if !is_whole {
            return Err(format!("section {mid} is not whole"));
        }
        let members = answered.all("ssrc-group").join(" ");
        let lines = answered.all("ssrc");
        let has_line = |ssrc: &&str| lines.iter().any(|line| line.split(' ').next() == Some(*ssrc));
        let listed = members.split(' ').skip(1).filter(has_line).count();
        if listed != 0 && listed != 2 {
            return Err("a FID group with one of its SSRCs".to_owned());
        }
    }
    Ok(())
}

/// S-06.
#[test]
fn chromium_takes_every_answer() {
    for (name, offer) in all_recorded() {
        let answer = match name.as_str() {
            FIREFOX_VIEWER_NO_H264 => play(&offer, vp8_and_opus()).unwrap().1,
            name if is_viewer(name) => play(&offer, high_and_opus()).unwrap().1,
            _ => publish(&offer).unwrap().1,
        };
        assert_eq!(chromium_takes(&offer, &answer), Ok(()), "{name}");
    }
    let silent = millstream_core::sdp::negotiation_result::AudioVideoFormats {
        audio: None,
        ..high_and_opus()
    };
    let offer = recorded(CHROMIUM_VIEWER);
    assert_eq!(chromium_takes(&offer, &play(&offer, silent).unwrap().1), Ok(()));
}
