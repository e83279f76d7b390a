//! Cameras as users of other programs reported them: each plays. The reports are named as repository#number; what the
//! cameras do here was written for these tests.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream::Gateway;
use millstream::config::Config;
use millstream::http::api::streams;
use millstream::pipeline::programs::WorkerPrograms;
use millstream_core::hub::name::StreamName;

use crate::pipeline::programs;
use crate::rtsp::PATIENCE;
use crate::rtsp::scripted::{GOP, Request, Script, Scripted, Sender, sdp};

/// How a camera is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Client,
    Pipeline,
}

struct Quirk {
    name: &'static str,
    script: Script,
    way: Way,
    keys: &'static str,
    /// What the API shows.
    shows: &'static str,
}

fn quirk(name: &'static str, script: Script) -> Quirk {
    Quirk {
        name,
        script,
        way: Way::Client,
        keys: "",
        shows: "",
    }
}

fn by_pipeline(name: &'static str, script: Script) -> Quirk {
    Quirk {
        way: Way::Pipeline,
        ..quirk(name, script)
    }
}

fn showing(shows: &'static str, quirk: Quirk) -> Quirk {
    Quirk { shows, ..quirk }
}

fn described(sdp: &str) -> Script {
    Script {
        sdp: sdp.replace('\n', "\r\n").into_bytes(),
        ..Script::default()
    }
}

/// Sends something in addition to each tenth frame.
fn with(odd: impl Fn(u64, &mut Sender) + Send + Sync + 'static) -> Script {
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

fn answering(answer: impl Fn(&Request) -> Option<String> + Send + Sync + 'static) -> Script {
    Script {
        answer: Box::new(answer),
        ..Script::default()
    }
}

const VIDEO: &str = "m=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\na=fmtp:96 packetization-mode=1\na=control:track0\n";

/// Session descriptions.
fn descriptions() -> Vec<Quirk> {
    let audio = "m=audio 0 RTP/AVP 104\na=rtpmap:104 MPEG4-GENERIC/16000\na=control:track1\n\
                 a=fmtp:97 mode=AAC-hbr;sizelength=13;indexlength=3;indexdeltalength=3;config=1408\n";
    let back = "m=audio 0 RTP/AVP 0\na=control:track9\na=sendonly\n";
    vec![
        // Uniview: an address is missing in `o=` and `c=`, and there is no `t=`.
        by_pipeline(
            "AlexxIT/go2rtc#1663",
            described(&format!(
                "v=0\no=- 1001 1 IN \ns=VCP IPC Realtime stream\n{}",
                VIDEO.replace("a=rt", "c=IN \na=rt")
            )),
        ),
        // Tuya: a negative port, and an address that is no text.
        by_pipeline("AlexxIT/go2rtc#2316", {
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
fn contents() -> Vec<Quirk> {
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
        // An empty sprop-parameter-sets.
        quirk(
            "bluenviron/mediamtx#861",
            described(&format!(
                "v=0\no=- 1 1 IN IP4 0.0.0.0\ns=a\nt=0 0\n{}",
                VIDEO.replace("mode=1", "mode=1; sprop-parameter-sets=")
            )),
        ),
        // The content type has a parameter.
        by_pipeline(
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

const CREDENTIALS: &str = "username = \"u\"\npassword = \"p\"";

fn unauthorized(request: &Request, nonce: &str, qop: &str) -> String {
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
fn answers() -> Vec<Quirk> {
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
        by_pipeline(
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
        by_pipeline("pedroSG94/RTSP-Server#52", rtp_info("rtsp://127.0.0.1/track0")),
    ]
}

/// Refusals, of requests and of keepalives.
fn refusals() -> Vec<Quirk> {
    vec![
        // A nonce is good for one request.
        Quirk {
            keys: CREDENTIALS,
            ..by_pipeline("ngraziano/SharpRTSP#126", answering(one_time_nonces()))
        },
        Quirk {
            keys: CREDENTIALS,
            ..by_pipeline(
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
        by_pipeline(
            "ngraziano/SharpRTSP#63",
            Script {
                session: "1;timeout=2".to_owned(),
                answer: Box::new(|request| {
                    let is_keepalive = request.number > 3 && request.method != "TEARDOWN";
                    (request.connection == 1 && is_keepalive).then(String::new)
                }),
                ..Script::default()
            },
        ),
    ]
}

/// What is sent while playing.
fn packets() -> Vec<Quirk> {
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
fn resets() -> Vec<Quirk> {
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
        // The SSRC changes with each group of pictures.
        by_pipeline(
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
        by_pipeline(
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

/// Frames that arrived, as far as the packets tell: a group has a packet with parameter sets more.
fn frames(gateway: &Gateway, name: &str) -> u64 {
    let stream = gateway.media().hub().find(StreamName::parse(name).expect("a name"));
    let packets = stream.map_or(0, |stream| {
        stream.with(|state| state.video.ring().end()).saturating_sub(1 << 16)
    });
    packets * GOP / (GOP + 1)
}

fn shown(gateway: &Gateway, name: &str) -> streams::Source {
    let name = StreamName::parse(name).expect("a name");
    let shown = streams::one(&name, gateway.media().hub(), gateway.fetched(), |_| 0);
    shown.and_then(|stream| stream.source).expect("it is configured")
}

/// Frames of which nearly all have to arrive.
const ENOUGH: u64 = 150;

async fn play(quirks: Vec<Quirk>) {
    let mut text = "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n".to_owned();
    let mut cameras = Vec::new();
    for (index, quirk) in quirks.into_iter().enumerate() {
        let camera = Scripted::start(quirk.script).await;
        let (port, keys, shows) = (camera.port, quirk.keys, quirk.shows);
        text += &format!("[streams.\"c{index}\"]\nrtsp = \"rtsp://127.0.0.1:{port}/cam\"\n{keys}\n");
        cameras.push((format!("c{index}"), quirk.name, quirk.way, shows, camera));
    }
    let config = Config::parse(&text, "test.toml".as_ref(), []).map_err(|error| error.to_string());
    let gateway = Gateway::start_with_workers(config.expect("valid"), programs())
        .await
        .expect("free ports");
    let gateway = Arc::new(gateway);
    let mut playing = tokio::task::JoinSet::new();
    for (stream, name, way, shows, camera) in cameras {
        let gateway = gateway.clone();
        playing.spawn(async move {
            let problem = check(&gateway, &stream, way, &camera).await;
            let seen = summary(&gateway, &stream);
            let problem = problem.or((!seen.contains(shows)).then(|| format!("{shows}: {seen}")))?;
            Some(format!("{name}: {problem}"))
        });
    }
    let problems: Vec<String> = playing.join_all().await.into_iter().flatten().collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    if let Some(gateway) = Arc::into_inner(gateway) {
        gateway.stop().await;
    }
}

/// What the API shows of the audio, and of what was passed over.
fn summary(gateway: &Gateway, stream: &str) -> String {
    let name = StreamName::parse(stream).expect("a name");
    let shown = streams::one(&name, gateway.media().hub(), gateway.fetched(), |_| 0);
    let audio = shown
        .and_then(|stream| stream.audio)
        .map_or("none", |audio| audio.codec);
    let source = self::shown(gateway, stream);
    format!("audio {audio}; {}", source.passed_over_reason.unwrap_or_default())
}

/// Waits until nearly all frames of a camera arrive. Returns what is wrong.
async fn check(gateway: &Gateway, stream: &str, way: Way, camera: &Scripted) -> Option<String> {
    let source = || shown(gateway, stream);
    let plays = async {
        while source().state != "live" || (way == Way::Pipeline && source().fallback.is_none()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let sent = || camera.counts.frames.load(Ordering::SeqCst);
        let (arrived, first) = (frames(gateway, stream), sent());
        while sent() < first + ENOUGH {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What was sent until here arrives, but for one of a hundred.
        let wanted = arrived + (sent() - first) * 99 / 100;
        while frames(gateway, stream) < wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let played = tokio::time::timeout(PATIENCE, plays).await;
    let sessions = camera.counts.sessions.load(Ordering::SeqCst);
    let is_right = played.is_ok()
        && (source().fallback.is_some(), source().restarts) == (way == Way::Pipeline, 0)
        && sessions <= if way == Way::Client { 1 } else { 2 };
    (!is_right).then(|| {
        format!(
            "{:?}, {} frames, {sessions} sessions",
            source(),
            frames(gateway, stream)
        )
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptions_that_deviate_are_read() {
    play(descriptions()).await;
    play(contents()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_deviate_are_understood() {
    play(answers()).await;
    play(refusals()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_packets_are_passed_over() {
    play(packets()).await;
    play(resets()).await;
}

async fn start(camera: &Scripted, programs: WorkerPrograms) -> Gateway {
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n[streams.\"c0\"]\n\
         rtsp = \"rtsp://127.0.0.1:{}/cam\"\n",
        camera.port
    );
    let config = Config::parse(&text, "test.toml".as_ref(), []).map_err(|error| error.to_string());
    let started = Gateway::start_with_workers(config.expect("valid"), programs);
    started.await.expect("free ports")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audio_that_is_left_out_is_named() {
    let audio = "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 L16/44100/2\r\na=control:track1\r\n\
                 m=audio 0 RTP/AVP 98\r\na=rtpmap:98 PCMU/16000\r\na=control:track2\r\n";
    let script = Script {
        sdp: sdp(audio),
        ..Script::default()
    };
    let camera = Scripted::start(script).await;
    let gateway = start(&camera, programs()).await;
    let plays = async {
        while shown(&gateway, "c0").state != "live" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, plays).await.expect("the video plays");
    assert_eq!(
        shown(&gateway, "c0").left_out,
        ["audio L16/44100/2", "audio PCMU/16000"]
    );
    let name = StreamName::parse("c0").expect("a name");
    let stream = streams::one(&name, gateway.media().hub(), gateway.fetched(), |_| 0).expect("it is there");
    let warnings = stream.warnings;
    let is_named = |text: &str| text.contains("(L16/44100/2, PCMU/16000) is left out");
    assert!(warnings.iter().any(|warning| is_named(&warning.text)), "{warnings:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_gstreamer_the_status_says_why_it_is_needed() {
    let script = Script {
        session: "1;timeout=0".to_owned(),
        ..Script::default()
    };
    let camera = Scripted::start(script).await;
    let programs = WorkerPrograms {
        pipeline: PathBuf::from("/nonexistent/millstream-worker"),
        ..programs()
    };
    let gateway = start(&camera, programs).await;
    let says = |error: &str| error.contains("answers deviate from RTSP") && error.contains("millstream-worker");
    let said = async {
        while !shown(&gateway, "c0").last_error.is_some_and(|error| says(&error)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let said = tokio::time::timeout(PATIENCE, said).await;
    assert!(said.is_ok(), "{:?}", shown(&gateway, "c0").last_error);
    gateway.stop().await;
}

/// A camera that ends each session after the same time, such as one whose authentication expires for keepalives
/// (ffmpeg and VLC renew it): the next session begins before the last one ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_end_regularly_are_replaced_in_advance() {
    let script = Script {
        frame: Box::new(|n, sender| {
            sender.frame(n);
            sender.closes = n == 200;
        }),
        ..Script::default()
    };
    let camera = Scripted::start(script).await;
    let gateway = start(&camera, programs()).await;
    let replaced = async {
        while camera.counts.sessions.load(Ordering::SeqCst) < 6 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced)
        .await
        .expect("session after session");
    let source = shown(&gateway, "c0");
    assert_eq!(
        (source.restarts, source.state, source.fallback),
        (2, "live", None),
        "{source:?}"
    );
    gateway.stop().await;
}
