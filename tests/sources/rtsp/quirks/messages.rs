//! Cameras whose RTSP messages and session descriptions deviate, as users of other programs reported them.

use super::reports::{CREDENTIALS, Quirk, VIDEO, answering, by_relay, described, quirk, with};
use crate::rtsp::scripted::{Request, Script, sdp};

const HEAD: &str = "v=0\no=- 1 1 IN IP4 0.0.0.0\ns=a\nt=0 0\n";

/// An answer with these lines behind the status and before the number.
fn answer(request: &Request, lines: &str) -> String {
    format!("RTSP/1.0 200 OK\r\n{lines}CSeq: {}\r\n", request.cseq)
}

/// The answer to DESCRIBE, with these headers.
fn description(request: &Request, lines: &str) -> String {
    let body = String::from_utf8(sdp("")).expect("text");
    format!(
        "{}Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{body}",
        answer(request, lines),
        body.len()
    )
}

pub(super) fn descriptions() -> Vec<Quirk> {
    let origin = |origin: &str| described(&format!("v=0\n{origin}\ns=a\nt=0 0\n{VIDEO}"));
    let section = |section: &str| described(&format!("{HEAD}{section}"));
    vec![
        // Y-Cam: a negative version; others: a fraction, and no address.
        by_relay(
            "bluenviron/mediamtx#2708",
            origin("o=- 1 -8959200248001175080 IN IP4 1.2.3.4"),
        ),
        by_relay(
            "bluenviron/mediamtx#2555",
            origin("o=- 1698143674.9 1698143674.978737 IN IP4 1.2.3.4"),
        ),
        by_relay(
            "bluenviron/mediamtx#2762",
            origin("o=Channel1 3910280086 3910366486 IN IP4"),
        ),
        // Uniview: `c=IN ` in the media section; and an empty `c=`.
        by_relay(
            "bluenviron/mediamtx#5033",
            section(&VIDEO.replace("a=rt", "c=IN \na=rt")),
        ),
        by_relay("bluenviron/mediamtx#68", section(&VIDEO.replace("a=rt", "c=\na=rt"))),
        // Scrypted: the last line has no end. Others end lines with CR or LF alone.
        quirk("themactep/thingino-firmware#1621", section(VIDEO.trim_end())),
        quirk(
            "lines that end with LF",
            Script {
                sdp: format!("{HEAD}{VIDEO}").into_bytes(),
                ..Script::default()
            },
        ),
        // Control URLs of an address that only the camera knows, and of the session alone.
        quirk(
            "mpromonet/webrtc-streamer#215",
            section(&VIDEO.replace("control:track0", "control:rtsp://172.16.99.9:10554/mpeg4/1/track0")),
        ),
        quirk(
            "scottlamb/retina#9",
            described(&format!(
                "{HEAD}a=control:*\n{}",
                VIDEO.replace("a=control:track0\n", "")
            )),
        ),
        // Mobotix and others: a static payload type without rtpmap beside the video.
        quirk(
            "AxisCommunications/media-stream-library-js#725",
            section(&format!("{VIDEO}m=audio 0 RTP/AVP 0\na=control:track1\n")),
        ),
        // Titles and bandwidths that no parser takes, and a section without a payload type.
        by_relay(
            "two titles",
            section(&format!(
                "{VIDEO}i=a\ni=b\nb=AS\nm=application 0 RTP/AVP\na=control:track3\n"
            )),
        ),
        by_relay(
            "names in another case",
            section(
                &VIDEO
                    .replace("a=rtpmap:96", "a=rtpmap: 96")
                    .replace("RTP/AVP", "rtp/avp"),
            ),
        ),
    ]
}

pub(super) fn answers() -> Vec<Quirk> {
    let describing = |lines: &'static str| {
        answering(move |request| (request.method == "DESCRIBE").then(|| description(request, lines)))
    };
    vec![
        // A header without a value, one without a colon, and a base that is no URL.
        by_relay("bluenviron/mediamtx#34", describing("Content-Base: \r\nDate:\r\n")),
        by_relay("a header without a colon", describing("Server\r\n")),
        // The client takes it for a URL without a host; this camera does not mind.
        quirk("a relative base", describing("Content-Base: /cam/\r\n")),
        // The number of the request has a space behind it, or is missing.
        quirk(
            "bluenviron/gortsplib#437",
            answering(|request| {
                (request.method == "SETUP").then(|| {
                    let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1";
                    format!(
                        "RTSP/1.0 200 OK\r\nCSeq: {} \r\nSession: 1\r\n{transport}\r\n\r\n",
                        request.cseq
                    )
                })
            }),
        ),
        by_relay(
            "unispeech/unimrcp#21",
            answering(|request| (request.method == "PLAY").then(|| "RTSP/1.0 200 OK\r\nSession: 1\r\n\r\n".to_owned())),
        ),
        // LF alone ends the lines of answers: the client waits for more, as for a camera that does not answer. The relay,
        // which reads cameras with credentials from the start, reads them.
        Quirk {
            keys: CREDENTIALS,
            ..quirk(
                "messages that end with LF",
                answering(|request| {
                    (request.method == "DESCRIBE")
                        .then(|| description(request, "").replace("\r\n", "\n"))
                        .map(|text| {
                            let (head, body) = text.split_once("\n\n").expect("a body");
                            let lines = head.lines().filter(|line| !line.starts_with("Content-Length"));
                            let head = lines.collect::<Vec<_>>().join("\n");
                            format!("{head}\nContent-Length: {}\n\n{body}", body.len())
                        })
                }),
            )
        },
        // An old camera: `source` of the transport is empty.
        by_relay(
            "bluenviron/mediamtx#986",
            Script {
                transport: |channel| format!("RTP/AVP/TCP;unicast;source=;interleaved={channel}-{}", channel + 1),
                ..Script::default()
            },
        ),
        // Session headers.
        by_relay("a timeout in upper case", session("7;Timeout=60")),
        by_relay("a timeout with a unit", session("7; timeout=60s")),
        by_relay("a timeout of zero", session("7;timeout=0")),
        // The client panics at a space behind the identifier, and at an empty one.
        by_relay("a session with a space", session("7 ;timeout=60")),
        by_relay("a session without a name", session(";timeout=60")),
        // The answer is on its way.
        by_relay(
            "an interim answer",
            answering(|request| {
                (request.method == "DESCRIBE").then(|| {
                    format!(
                        "RTSP/1.0 100 Continue\r\nCSeq: {}\r\n\r\n{}",
                        request.cseq,
                        description(request, "")
                    )
                })
            }),
        ),
    ]
}

fn session(session: &str) -> Script {
    Script {
        session: session.to_owned(),
        ..Script::default()
    }
}

pub(super) fn keepalives_and_requests() -> Vec<Quirk> {
    let keepalives = |refuse: fn(&Request) -> Option<String>| Script {
        session: "1;timeout=2".to_owned(),
        answer: Box::new(move |request| {
            let is_keepalive = matches!(request.method.as_str(), "OPTIONS" | "GET_PARAMETER" | "SET_PARAMETER");
            is_keepalive.then(|| refuse(request)).flatten()
        }),
        ..Script::default()
    };
    vec![
        // Tapo and others refuse keepalives, with the number of the request before.
        by_relay(
            "scottlamb/retina#136",
            keepalives(|request| {
                let previous = request.cseq.parse::<u32>().map_or(0, |cseq| cseq.saturating_sub(1));
                Some(format!("RTSP/1.0 400 Bad Request\r\nCSeq: {previous}\r\n\r\n"))
            }),
        ),
        // Without any number, and as methods that are not supported.
        by_relay(
            "keepalives without a number",
            keepalives(|_| Some("RTSP/1.0 200 OK\r\n\r\n".to_owned())),
        ),
        quirk(
            "methods that are not supported",
            keepalives(|request| {
                Some(format!(
                    "RTSP/1.0 501 Not Implemented\r\nCSeq: {}\r\n\r\n",
                    request.cseq
                ))
            }),
        ),
        quirk(
            "a session that is unknown",
            keepalives(|request| {
                Some(format!(
                    "RTSP/1.0 454 Session Not Found\r\nCSeq: {}\r\n\r\n",
                    request.cseq
                ))
            }),
        ),
        // The camera asks before it answers.
        by_relay(
            "bluenviron/gortsplib#56",
            answering(|request| {
                (request.method == "SETUP").then(|| {
                    let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1";
                    format!(
                        "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\nRTSP/1.0 200 OK\r\nCSeq: {}\r\nSession: 1\r\n{transport}\r\n\r\n",
                        request.cseq
                    )
                })
            }),
        ),
        // Empty lines and answers to nothing between packets.
        quirk(
            "answers to nothing",
            with(|_, sender| sender.raw(b"\r\n\r\nRTSP/1.0 454 Session Not Found\r\nCSeq: 99\r\n\r\n")),
        ),
    ]
}
