//! The cameras of the reports, each with what it does differently.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::rtsp::scripted::{GOP, IDR, PPS, Request, SPS, Script, Sender, sdp};

/// How a camera is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Client,
    /// With RTSP messages corrected.
    Relay,
    Pipeline,
}

pub(super) struct Quirk {
    pub(super) name: &'static str,
    pub(super) script: Script,
    pub(super) way: Way,
    pub(super) keys: &'static str,
    /// What the API shows.
    pub(super) shows: &'static str,
}

pub(super) fn quirk(name: &'static str, script: Script) -> Quirk {
    Quirk {
        name,
        script,
        way: Way::Client,
        keys: "",
        shows: "",
    }
}

pub(super) fn by_relay(name: &'static str, script: Script) -> Quirk {
    Quirk {
        way: Way::Relay,
        ..quirk(name, script)
    }
}

pub(super) fn showing(shows: &'static str, quirk: Quirk) -> Quirk {
    Quirk { shows, ..quirk }
}

pub(super) fn described(sdp: &str) -> Script {
    Script {
        sdp: sdp.replace('\n', "\r\n").into_bytes(),
        ..Script::default()
    }
}

/// Sends something in addition to each tenth frame.
pub(super) fn with(odd: impl Fn(u64, &mut Sender) + Send + Sync + 'static) -> Script {
    Script {
        frame: Box::new(move |n, sender| {
            sender.frame(n);
            if n % GOP == 5 {
                odd(n, sender);
            }
        }),
        ..Script::default()
    }
}

pub(super) fn answering(answer: impl Fn(&Request) -> Option<String> + Send + Sync + 'static) -> Script {
    Script {
        answer: Box::new(answer),
        ..Script::default()
    }
}

pub(super) const VIDEO: &str =
    "m=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\na=fmtp:96 packetization-mode=1\na=control:track0\n";

/// Session descriptions.
pub(super) fn descriptions() -> Vec<Quirk> {
    let audio = "m=audio 0 RTP/AVP 104\na=rtpmap:104 MPEG4-GENERIC/16000\na=control:track1\n\
                 a=fmtp:97 mode=AAC-hbr;sizelength=13;indexlength=3;indexdeltalength=3;config=1408\n";
    let back = "m=audio 0 RTP/AVP 0\na=control:track9\na=sendonly\n";
    vec![
        // Uniview: an address is missing in `o=` and `c=`, and there is no `t=`.
        by_relay(
            "AlexxIT/go2rtc#1663",
            described(&format!(
                "v=0\no=- 1001 1 IN \ns=VCP IPC Realtime stream\n{}",
                VIDEO.replace("a=rt", "c=IN \na=rt")
            )),
        ),
        // Tuya: a negative port, and an address that is no text.
        by_relay("AlexxIT/go2rtc#2316", {
            let mut text = sdp("");
            let port = text.windows(7).position(|at| at == b"video 0").expect("it is there");
            text.splice(port + 6..port + 7, *b"-1353744643");
            let name = text.windows(5).position(|at| at == b"s=cam").expect("it is there");
            text.splice(name + 2..name + 5, [b'\'', b'&', 0xff, 0xfe]);
            Script {
                sdp: text,
                ..Script::default()
            }
        }),
        // TP-LINK and MERCURY: a media type with a slash, and a payload type that is no number.
        quirk(
            "bluenviron/gortsplib#271",
            Script {
                sdp: sdp(
                    "m=application/MERCURY 0 RTP/AVP smart/1/90000\r\na=rtpmap:95 MERCURY/90000\r\na=control:track3\r\n",
                ),
                ..Script::default()
            },
        ),
        // Hikvision platform: the parameters of AAC have another payload type than its rtpmap.
        showing(
            "audio AAC",
            quirk(
                "bluenviron/gortsplib#658",
                described(&format!("v=0\no=- 1 1 IN IP4 0.0.0.0\ns=a\nt=0 0\n{VIDEO}{audio}")),
            ),
        ),
        // Dahua and Avigilon: a back channel is listed first.
        showing(
            "audio none",
            quirk(
                "bluenviron/gortsplib#501",
                described(&format!("v=0\no=- 1 1 IN IP4 0.0.0.0\ns=a\nt=0 0\n{back}{VIDEO}")),
            ),
        ),
    ]
}

/// Parameter sets and content types of session descriptions.
pub(super) fn contents() -> Vec<Quirk> {
    vec![
        // Parameter sets with start codes in the description.
        quirk(
            "scottlamb/moonfire-nvr#213",
            Script {
                sdp: String::from_utf8(sdp(""))
                    .expect("text")
                    .replace(
                        "packetization-mode=1",
                        "packetization-mode=1;sprop-parameter-sets=AAAAAWdC4B/aEeQ=,AAAAAWjOPIA= ",
                    )
                    .into_bytes(),
                frame: Box::new(|n, sender| sender.slices(n)),
                ..Script::default()
            },
        ),
        // The parameters in two lines.
        quirk(
            "two fmtp lines",
            Script {
                sdp: String::from_utf8(sdp(""))
                    .expect("text")
                    .replace(
                        "packetization-mode=1",
                        "packetization-mode=1\r\na=fmtp:96 sprop-parameter-sets=Z0LgH9oR5A==,aM48gA==",
                    )
                    .into_bytes(),
                frame: Box::new(|n, sender| sender.slices(n)),
                ..Script::default()
            },
        ),
        // An empty sprop-parameter-sets.
        quirk(
            "bluenviron/mediamtx#861",
            described(&format!(
                "v=0\no=- 1 1 IN IP4 0.0.0.0\ns=a\nt=0 0\n{}",
                VIDEO.replace("mode=1", "mode=1; sprop-parameter-sets=")
            )),
        ),
        // The content type has a parameter.
        by_relay(
            "scottlamb/moonfire-nvr#298",
            Script {
                describe: "Content-Type: application/sdp; charset=utf-8\r\n".to_owned(),
                ..Script::default()
            },
        ),
        // None at all.
        quirk(
            "scottlamb/moonfire-nvr#300",
            Script {
                describe: String::new(),
                ..Script::default()
            },
        ),
    ]
}

fn rtp_info(text: &str) -> Script {
    Script {
        play: format!("RTP-Info: {text}\r\n"),
        ..Script::default()
    }
}

pub(super) const CREDENTIALS: &str = "username = \"u\"\npassword = \"p\"";

pub(super) fn unauthorized(request: &Request, nonce: &str, qop: &str) -> String {
    format!(
        "RTSP/1.0 401 Unauthorized\r\nCSeq: {}\r\nWWW-Authenticate: Digest realm=\"cam\", nonce=\"{nonce}\", \
         algorithm=MD5, qop=\"{qop}\", stale=true\r\n\r\n",
        request.cseq
    )
}

/// Refuses requests without the nonce of the last refusal.
fn one_time_nonces() -> impl Fn(&Request) -> Option<String> {
    let nonces = Mutex::new((0, HashSet::new()));
    move |request| {
        let (count, fresh) = &mut *nonces.lock().expect("no panic");
        let nonce = request.header("authorization").split("nonce=\"").nth(1);
        let nonce = nonce.and_then(|text| text.split('"').next()).unwrap_or_default();
        if fresh.remove(nonce) {
            return None;
        }
        *count += 1;
        let nonce = format!("n{count}");
        fresh.insert(nonce.clone());
        Some(unauthorized(request, &nonce, "auth"))
    }
}

/// Answers and headers.
pub(super) fn answers() -> Vec<Quirk> {
    vec![
        // The numbers of the channels are not those that were asked for.
        quirk(
            "bluenviron/gortsplib#72",
            Script {
                transport: |channel| format!("RTP/AVP/TCP;unicast;interleaved={}-{}", channel + 4, channel + 5),
                frame: Box::new(|n, sender| {
                    sender.channel = 4;
                    sender.frame(n);
                }),
                ..Script::default()
            },
        ),
        // No timeout in the session header, and a space behind it.
        quirk(
            "AxisCommunications/media-stream-library-js#235",
            Script {
                session: "12345678 ".to_owned(),
                ..Script::default()
            },
        ),
        by_relay(
            "AlexxIT/go2rtc#382",
            Script {
                session: "12345678;timeout=60;foo=\"1\"".to_owned(),
                ..Script::default()
            },
        ),
        quirk(
            "scottlamb/retina#117",
            rtp_info("url=rtsp://192.168.1.19:554/0/main/trackID=0;seq=0;rtptime=0;"),
        ),
        // Numbers of another stream.
        quirk(
            "google/ExoPlayer#9619",
            rtp_info("url=rtsp://a/track0;seq=40000;rtptime=3000000000"),
        ),
        by_relay("pedroSG94/RTSP-Server#52", rtp_info("rtsp://127.0.0.1/track0")),
    ]
}

/// Answers to SETUP that do not say, or not properly, which channels the camera uses.
pub(super) fn unclear_channels() -> Vec<Quirk> {
    let transport = |transport: fn(u8) -> String| Script {
        transport,
        ..Script::default()
    };
    let other_channels = |transport: fn(u8) -> String| Script {
        transport,
        frame: Box::new(|n, sender| {
            sender.channel = 6;
            sender.frame(n);
        }),
        ..Script::default()
    };
    vec![
        by_relay("no channels", transport(|_| "RTP/AVP/TCP;unicast".to_owned())),
        by_relay("no Transport", transport(|_| String::new())),
        by_relay("no text", transport(|_| "RTP/AVP/TCP;unicast;interleaved=".to_owned())),
        by_relay(
            "spaces",
            other_channels(|_| "RTP/AVP/TCP; unicast; interleaved=6-7; ssrc=x".to_owned()),
        ),
        by_relay(
            "a gap",
            other_channels(|_| "RTP/AVP/TCP;unicast;interleaved=6-9".to_owned()),
        ),
        by_relay(
            "a name",
            transport(|channel| format!("RTP/AVP/TCP;source=cam.local;interleaved={channel}")),
        ),
    ]
}

/// Refusals, of requests and of keepalives.
pub(super) fn refusals() -> Vec<Quirk> {
    vec![
        // A nonce is good for one request.
        Quirk {
            keys: CREDENTIALS,
            ..quirk("ngraziano/SharpRTSP#126", answering(one_time_nonces()))
        },
        Quirk {
            keys: CREDENTIALS,
            ..quirk(
                "google/ExoPlayer#9800",
                answering(|request| {
                    let authorization = request.header("authorization");
                    let is_refused = authorization.is_empty() || authorization.contains("auth-int");
                    is_refused.then(|| unauthorized(request, "n1", "auth,auth-int"))
                }),
            )
        },
        // UDP alone was asked for, and the camera has RTP in the RTSP connection alone.
        Quirk {
            keys: "transport = \"udp\"",
            ..quirk(
                "scottlamb/retina#103",
                answering(|request| {
                    let is_refused = request.method == "SETUP" && request.header("transport").contains("UDP");
                    is_refused.then(|| format!("RTSP/1.0 461 Unsupported Transport\r\nCSeq: {}\r\n\r\n", request.cseq))
                }),
            )
        },
        // Keepalives are refused.
        quirk(
            "bluenviron/mediamtx#842",
            Script {
                session: "1;timeout=2".to_owned(),
                answer: Box::new(|request| {
                    let is_keepalive = matches!(request.method.as_str(), "OPTIONS" | "GET_PARAMETER" | "SET_PARAMETER");
                    is_keepalive.then(|| format!("RTSP/1.0 400 Bad Request\r\nCSeq: {}\r\n\r\n", request.cseq))
                }),
                ..Script::default()
            },
        ),
        // Keepalives are never answered.
        by_relay(
            "ngraziano/SharpRTSP#63",
            Script {
                session: "1;timeout=2".to_owned(),
                answer: Box::new(|request| {
                    let is_keepalive = request.number > 3 && request.method != "TEARDOWN";
                    is_keepalive.then(String::new)
                }),
                ..Script::default()
            },
        ),
    ]
}

fn key_frames_in_one_nal_unit() -> Script {
    Script {
        frame: Box::new(|n, sender| {
            if n.is_multiple_of(GOP) {
                let unit = [SPS, PPS, IDR].join(&[0, 0, 0, 1][..]);
                let (start, end) = unit.split_at(unit.len() - 2);
                sender.packet(&[&[0x7c, 0x87], &start[1..]].concat(), false);
                sender.packet(&[&[0x7c, 0x47], end].concat(), true);
            } else {
                sender.frame(n);
            }
        }),
        ..Script::default()
    }
}

/// What is sent while playing.
pub(super) fn packets() -> Vec<Quirk> {
    vec![
        // Uniview: packets of another payload type in the channel of the video.
        showing(
            "unannounced payload type",
            quirk(
                "AlexxIT/go2rtc#1570",
                with(|_, sender| {
                    sender.payload_type = 107;
                    sender.packet(&[0x65, 1, 2, 3], false);
                    sender.payload_type = 96;
                }),
            ),
        ),
        // Data of a channel that belongs to no track.
        quirk(
            "scottlamb/retina#17",
            with(|_, sender| sender.interleaved(9, &[0x80, 0x60, 0, 1])),
        ),
        // Bytes between frames that belong to none, with a dollar sign among them.
        by_relay(
            "bluenviron/gortsplib#653",
            with(|_, sender| sender.raw(b"\xff\xfe\0$\x0djunk")),
        ),
        // Parameter sets and key frame in one NAL unit, with start codes between them.
        quirk("scottlamb/retina#68", key_frames_in_one_nal_unit()),
        // Packets of an earlier session between those of this one.
        quirk(
            "scottlamb/moonfire-nvr#209",
            with(|_, sender| {
                let (ssrc, seq) = (sender.ssrc, sender.seq);
                (sender.ssrc, sender.seq) = (0xdead, 7);
                sender.packet(&[0x41, 1], true);
                (sender.ssrc, sender.seq) = (ssrc, seq);
            }),
        ),
        // RTP that is too short, and RTCP that is none.
        showing(
            "too short",
            quirk(
                "AlexxIT/go2rtc#236",
                with(|_, sender| {
                    sender.interleaved(0, &[0x80, 0x60, 0]);
                    sender.interleaved(0, &[]);
                    sender.interleaved(1, &[0x80, 200, 0, 9, 0]);
                }),
            ),
        ),
        // The report of a sender has another SSRC than its packets, and comes first.
        quirk(
            "bluenviron/gortsplib#480",
            Script {
                frame: Box::new(|n, sender| {
                    if n % GOP == 0 {
                        let mut report = vec![0x80, 200, 0, 6, 0, 0, 0, 9];
                        report.extend([0xe4, 0, 0, 0, 0, 0, 0, 1]);
                        report.extend(sender.time.to_be_bytes());
                        report.extend([0; 8]);
                        sender.interleaved(1, &report);
                    }
                    sender.frame(n);
                }),
                ..Script::default()
            },
        ),
        // Padding that is longer than its packet.
        quirk(
            "scottlamb/retina#115",
            with(|_, sender| {
                sender.interleaved(0, &[0xa0, 0x60, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0xff]);
                sender.packet(&[], false);
                sender.packet(&[0x7c, 0x85], false);
                sender.packet(&[0x7f, 1, 2], false);
            }),
        ),
    ]
}

/// Clocks, SSRCs and sequence numbers that begin again, and requests of the camera.
pub(super) fn resets() -> Vec<Quirk> {
    vec![
        // The clock is set while the camera sends.
        quirk(
            "home-assistant/core#144498",
            with(|n, sender| {
                if n == 5 + GOP {
                    sender.time = sender.time.wrapping_add(8_789_400);
                }
            }),
        ),
        // Intelbras: a frame of each group is stamped hours away from the others.
        quirk(
            "bluenviron/mediamtx#6255",
            Script {
                frame: Box::new(|n, sender| {
                    let stray: u32 = if n % (2 * GOP) == 7 { 37_600 } else { 9_800 };
                    let add = if n % GOP == 7 { stray.wrapping_mul(90_000) } else { 0 };
                    sender.time = sender.time.wrapping_add(add);
                    sender.frame(n);
                    sender.time = sender.time.wrapping_sub(add);
                }),
                ..Script::default()
            },
        ),
        // The SSRC changes with each group of pictures.
        by_relay(
            "bluenviron/gortsplib#687",
            Script {
                frame: Box::new(|n, sender| {
                    // Long enough to be seen as more than packets of an earlier session.
                    sender.ssrc = 0x1000 + (n / 50) as u32;
                    sender.frame(n);
                }),
                ..Script::default()
            },
        ),
        // The sequence numbers begin again.
        by_relay(
            "bluenviron/gortsplib#480-sequence",
            with(|n, sender| {
                if n == 45 {
                    sender.seq = sender.seq.wrapping_sub(20_000);
                }
            }),
        ),
        // Requests of the camera.
        quirk(
            "bluenviron/gortsplib#549",
            with(|n, sender| {
                let request = format!("OPTIONS * RTSP/1.0\r\nCSeq: {n}\r\nSession: 1\r\n\r\n");
                sender.raw(request.as_bytes());
                sender.raw(b"SET_PARAMETER rtsp://a/ RTSP/1.0\r\nCSeq: 9\r\nContent-Length: 3\r\n\r\na:b");
                sender.raw(b"\r\nRTSP/1.0 200 OK\r\nCSeq: 4\r\nSession: 1\r\n\r\n");
            }),
        ),
    ]
}
