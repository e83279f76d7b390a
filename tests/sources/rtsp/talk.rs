//! `/talk/{stream}`: audio of a WebRTC talker arrives at the back channel of a camera.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millstream::Gateway;
use millstream::config::Config;
use millstream::http::api::streams;
use millstream_core::hub::name::StreamName;
use millstream_test_support::{
    Answer, Credentials, DtlsRole, IceStyle, Peer, PeerConfig, PeerEvent, PeerIdentity, Profiles,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::rtsp::{Camera, PATIENCE};

const SSRC: u32 = 0x0a0b_0c0d;
/// Samples of a packet, and bytes of its payload: 20 ms of G.711.
const SAMPLES: usize = 160;

#[expect(clippy::disallowed_methods, reason = "the time of real sockets")]
fn now() -> Instant {
    Instant::now()
}

async fn gateway(source: &str) -> Gateway {
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n[pipelines]\ntranscode = false\n\
         [auth]\npublish_token = \"publish\"\ntalk_token = \"talk\"\napi_token = \"api\"\n\
         tokens = [{{ token = \"gate\", talk = \"gate\" }}]\n[streams.\"door\"]\n{source}"
    );
    let config = Config::parse(&text, "test.toml".as_ref(), []);
    Gateway::start(config.expect("valid")).await.expect("free ports")
}

/// An offer as browsers make it with a microphone, with these payload types beside Opus.
fn offer(credentials: &Credentials, fingerprint: &str, with_video: bool) -> String {
    let Credentials { ufrag, pwd } = credentials;
    let transport = |mid: &str| {
        format!(
            "c=IN IP4 0.0.0.0\r\na=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\na=fingerprint:{fingerprint}\r\n\
             a=setup:actpass\r\na=mid:{mid}\r\na=sendonly\r\na=rtcp-mux\r\n"
        )
    };
    let group = if with_video { "0 1" } else { "0" };
    let mut text = format!(
        "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE {group}\r\n\
         m=audio 9 UDP/TLS/RTP/SAVPF 111 0 8 13\r\n{}a=rtpmap:111 opus/48000/2\r\na=rtpmap:0 PCMU/8000\r\n\
         a=rtpmap:8 PCMA/8000\r\na=rtpmap:13 CN/8000\r\na=ssrc:{SSRC} cname:talker\r\n",
        transport("0")
    );
    if with_video {
        text += "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n";
        text += &transport("1");
        text += "a=rtpmap:96 VP8/90000\r\na=ssrc:7 cname:talker\r\n";
    }
    text
}

/// The response to an offer.
struct Reply {
    status: u16,
    session: Option<String>,
    text: String,
}

impl Reply {
    /// The code and the text of a problem document.
    fn problem(&self) -> (String, String) {
        let problem: Value = serde_json::from_str(&self.text).unwrap_or_default();
        let member = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        (member("code"), member("detail"))
    }
}

async fn post(gateway: &Gateway, stream: &str, token: Option<&str>, offer: String) -> Reply {
    let url = format!("http://{}/talk/{stream}", gateway.http_address());
    let mut request = reqwest::Client::new()
        .post(url)
        .header("content-type", "application/sdp");
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let response = request.body(offer).send().await.expect("an answer");
    Reply {
        status: response.status().as_u16(),
        session: response
            .headers()
            .get("location")
            .map(|path| path.to_str().expect("a path").to_owned()),
        text: response.text().await.expect("an answer"),
    }
}

/// What a request is refused with.
async fn refusal(gateway: &Gateway, stream: &str, token: Option<&str>) -> (u16, String, String) {
    let identity = PeerIdentity::generate();
    let offer = offer(&Credentials::from_seed(9), &identity.fingerprint(), false);
    let reply = post(gateway, stream, token, offer).await;
    let (code, detail) = reply.problem();
    (reply.status, code, detail)
}

/// A talker on a socket of its own, who sends a packet every 20 ms once it is connected.
struct Talker {
    session: String,
    answer: String,
    task: JoinHandle<()>,
}

impl Talker {
    async fn start(gateway: &Gateway, payload_type: u8) -> Self {
        let identity = PeerIdentity::generate();
        let local = Credentials::from_seed(3);
        let reply = post(
            gateway,
            "door",
            Some("talk"),
            offer(&local, &identity.fingerprint(), false),
        )
        .await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        let server = gateway.media_plane().local_addr();
        let peer = Peer::new(
            now(),
            PeerConfig {
                identity,
                local,
                remote: Answer::parse(&reply.text).credentials(),
                server,
                role: DtlsRole::Client,
                profiles: Profiles::CmThenGcm,
                ice: IceStyle::BROWSER,
                decrypt: false,
                seed: 3,
            },
        );
        Self {
            session: reply.session.expect("a session URL"),
            answer: reply.text,
            task: tokio::spawn(talk(peer, server, payload_type)),
        }
    }

    async fn leave(&self, gateway: &Gateway) {
        let url = format!("http://{}{}", gateway.http_address(), self.session);
        let response = reqwest::Client::new().delete(url).send().await;
        assert_eq!(response.expect("an answer").status().as_u16(), 200);
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The payload of packet `number`: each begins with its number, so that what arrives is known to be in order.
fn payload(number: u64) -> Vec<u8> {
    let mut payload = (number as u32).to_be_bytes().to_vec();
    payload.resize(SAMPLES, (number % 251) as u8);
    payload
}

async fn talk(mut peer: Peer, server: SocketAddr, payload_type: u8) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let mut buffer = vec![0; 2048];
    let (mut number, mut due) = (0_u64, now());
    loop {
        if peer.poll_timeout().is_some_and(|due| due <= now()) {
            peer.handle_timeout(now());
        }
        if peer.is_connected() && due <= now() {
            let mut packet = vec![0x80, payload_type | u8::from(number == 0) << 7];
            packet.extend((number as u16).wrapping_add(65_500).to_be_bytes());
            packet.extend((number as u32 * SAMPLES as u32).to_be_bytes());
            packet.extend(SSRC.to_be_bytes());
            packet.extend(payload(number));
            peer.send_rtp(&packet);
            number += 1;
            due = now() + Duration::from_millis(20);
        }
        while let Some(transmit) = peer.poll_transmit() {
            let _ = socket.send_to(&transmit.payload, transmit.to).await;
        }
        let reading = socket.recv_from(&mut buffer);
        if let Ok(Ok((length, _))) = tokio::time::timeout(Duration::from_millis(5), reading).await {
            peer.handle_datagram(now(), server, &buffer[..length]);
        }
        while let Some(event) = peer.poll_event() {
            if event == PeerEvent::Closed {
                return;
            }
        }
    }
}

/// A file that the camera writes what it hears to.
struct RecordedAudio(PathBuf);

impl RecordedAudio {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("millstream-talk-{name}-{}", std::process::id())))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap_or_default()
    }
}

impl Drop for RecordedAudio {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

fn has_talker(gateway: &Gateway) -> bool {
    let name = StreamName::parse("door").expect("a name");
    let shown = streams::describe_stream(&name, gateway.media_plane().hub(), gateway.source_registry(), |_| 0);
    shown.expect("it is configured").talker
}

async fn metric(gateway: &Gateway, name: &str) -> u64 {
    let url = format!("http://{}/metrics", gateway.http_address());
    let response = reqwest::Client::new().get(url).bearer_auth("api").send().await;
    let text = response.expect("an answer").text().await.expect("text");
    let mut samples = text.lines().filter_map(|line| line.rsplit_once(' '));
    let (_, value) = samples.find(|(sample, _)| *sample == name).expect(name);
    value.parse().expect("a number")
}

async fn session_roles(gateway: &Gateway) -> Vec<String> {
    let url = format!("http://{}/api/v1/sessions", gateway.http_address());
    let response = reqwest::Client::new().get(url).bearer_auth("api").send().await;
    let body: Value = response.expect("an answer").json().await.expect("JSON");
    let sessions = body["sessions"].as_array().cloned().unwrap_or_default();
    let running = sessions.iter().filter(|session| session["state"] != "ended");
    running
        .map(|session| session["role"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// What the camera heard is what was sent: whole packets, in order and without a change.
fn assert_unchanged(heard: &[u8]) {
    let packets: Vec<&[u8]> = heard.chunks_exact(SAMPLES).collect();
    let number = |packet: &[u8]| u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]);
    for pair in packets.windows(2) {
        assert!(number(pair[1]) > number(pair[0]), "in order");
    }
    for packet in packets {
        assert_eq!(packet, payload(u64::from(number(packet))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_talker_says_arrives_at_the_camera_unchanged_and_one_talks_at_a_time() {
    for (codec, payload_type, user) in [("pcmu", 0, ""), ("pcma", 8, "viewer:s3cret@")] {
        let heard = RecordedAudio::new(codec);
        let mut options = vec!["--back-channel", codec, heard.path()];
        if !user.is_empty() {
            options.extend(["--credentials", "viewer", "s3cret"]);
        }
        let camera = Camera::start(0, "h264+pcma", &options);
        let gateway = gateway(&format!("rtsp = \"rtsp://{user}127.0.0.1:{}/cam\"", camera.port)).await;
        let talker = Talker::start(&gateway, payload_type).await;
        let answered = format!("a=rtpmap:{payload_type} {}/8000", codec.to_uppercase());
        assert!(talker.answer.contains(&answered), "{}", talker.answer);
        assert_eq!(talker.answer.matches("a=rtpmap:").count(), 1, "{}", talker.answer);
        until("the camera hears a second of it", async || {
            heard.bytes().len() >= 50 * SAMPLES
        })
        .await;
        assert_unchanged(&heard.bytes());
        assert!(has_talker(&gateway));
        assert_eq!(session_roles(&gateway).await, ["talker"]);

        let (status, code, detail) = refusal(&gateway, "door", Some("talk")).await;
        assert_eq!((status, code.as_str()), (409, "already_talking"), "{detail}");
        talker.leave(&gateway).await;
        until("the camera is free again", async || {
            metric(&gateway, "millstream_talkers").await == 0
        })
        .await;
        assert!(metric(&gateway, "millstream_back_channel_packets_total").await >= 50);
        let next = Talker::start(&gateway, payload_type).await;
        until("the next one is heard", async || has_talker(&gateway)).await;
        drop(next);
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn talking_needs_a_right_of_its_own_and_audio_alone() {
    let heard = RecordedAudio::new("rights");
    let camera = Camera::start(0, "h264+pcma", &["--back-channel", "pcmu", heard.path()]);
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{}/cam\"", camera.port)).await;
    for (token, status, code) in [
        (None, 401, "token_missing"),
        (Some("wrong"), 401, "token_wrong"),
        (Some("publish"), 403, "insufficient_scope"),
        (Some("api"), 403, "insufficient_scope"),
        (Some("gate"), 403, "insufficient_scope"),
    ] {
        let (refused, given, detail) = refusal(&gateway, "door", token).await;
        assert_eq!((refused, given.as_str()), (status, code), "{token:?}: {detail}");
        assert!(
            !detail.ends_with(" of"),
            "{token:?}: the sentence is complete: {detail}"
        );
    }
    let identity = PeerIdentity::generate();
    let offered = offer(&Credentials::from_seed(4), &identity.fingerprint(), true);
    let without_g711 = offer(&Credentials::from_seed(4), &identity.fingerprint(), false)
        .replace("SAVPF 111 0 8 13", "SAVPF 111")
        .replace(
            "a=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:13 CN/8000\r\n",
            "",
        );
    let without_its_codec = offer(&Credentials::from_seed(4), &identity.fingerprint(), false)
        .replace("SAVPF 111 0 8 13", "SAVPF 111 8")
        .replace("a=rtpmap:0 PCMU/8000\r\n", "")
        .replace("a=rtpmap:13 CN/8000\r\n", "");
    for (offer, code, said) in [
        (offered, "audio_only", "offer one audio section"),
        (without_g711, "no_common_codec", "accepts PCMU and PCMA"),
        (without_its_codec, "no_common_codec", "the camera accepts PCMU,"),
    ] {
        let reply = post(&gateway, "door", Some("talk"), offer).await;
        let (given, detail) = reply.problem();
        assert_eq!((reply.status, given.as_str()), (422, code), "{detail}");
        assert!(detail.contains(said), "{detail}");
    }
    let (status, code, detail) = refusal(&gateway, "elsewhere", Some("talk")).await;
    assert_eq!((status, code.as_str()), (409, "no_camera"), "{detail}");
    assert_eq!(metric(&gateway, "millstream_talkers").await, 0);
    gateway.stop().await;
}

/// A camera for one client after the other: it answers each request as `answer` says, given the whole request, and tells of
/// each and of the end of the connection.
async fn scripted(
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (u16, mpsc::UnboundedReceiver<String>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let (tell, told) = mpsc::unbounded_channel();
    let (answer, audio_bytes) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    let counted = audio_bytes.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (answer, tell, counted) = (answer.clone(), tell.clone(), counted.clone());
            tokio::spawn(async move {
                let mut received = Vec::new();
                while matches!(stream.read_buf(&mut received).await, Ok(1..)) {
                    loop {
                        if received.first() == Some(&b'$') && received.len() >= 4 {
                            let length = 4 + usize::from(u16::from_be_bytes([received[2], received[3]]));
                            if received.len() < length {
                                break;
                            }
                            received.drain(..length);
                            counted.fetch_add(length - 16, Ordering::SeqCst);
                            continue;
                        }
                        let Some(end) = received.windows(4).position(|at| at == b"\r\n\r\n") else {
                            break;
                        };
                        let request: Vec<u8> = received.drain(..end + 4).collect();
                        let request = String::from_utf8(request).expect("text");
                        let cseq = request.lines().find(|line| line.starts_with("CSeq:"));
                        let text = answer(&request).replace("CSEQ", cseq.expect("a number"));
                        let _ = stream.write_all(text.as_bytes()).await;
                        let _ = tell.send(request);
                    }
                }
                let _ = tell.send("closed".to_owned());
            });
        }
    });
    (port, told, audio_bytes)
}

const SDP_OF_VIDEO: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=cam\r\nt=0 0\r\na=control:*\r\nm=video 0 RTP/AVP 96\r\n\
                            a=rtpmap:96 H264/90000\r\na=control:track0\r\n";

fn described(sdp: &str) -> String {
    let length = sdp.len();
    format!("RTSP/1.0 200 OK\r\nCSEQ\r\nContent-Type: application/sdp\r\nContent-Length: {length}\r\n\r\n{sdp}")
}

/// Whether a request is one of a back channel, and not of the source of the stream.
fn is_talk(request: &str) -> bool {
    request.contains("www.onvif.org/ver20/backchannel")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_that_takes_no_audio_is_named_with_the_reason() {
    let back = |format: &str| format!("{SDP_OF_VIDEO}m=audio 0 RTP/AVP {format}\r\na=control:track1\r\na=sendonly\r\n");
    let plain = format!("{SDP_OF_VIDEO}m=audio 0 RTP/AVP 0\r\na=control:track1\r\n");
    let refused = |status: &str| format!("RTSP/1.0 {status}\r\nCSEQ\r\n\r\n");
    for (answer, status, code, said) in [
        (
            refused("551 Option not supported"),
            409,
            "no_back_channel",
            "has no back channel",
        ),
        (described(SDP_OF_VIDEO), 409, "no_back_channel", "has no back channel"),
        (described(&plain), 409, "no_back_channel", "has no back channel"),
        (
            described(&back("97\r\na=rtpmap:97 MPEG4-GENERIC/16000/1")),
            409,
            "back_channel_codec",
            "accepts MPEG4-GENERIC/16000/1 on its audio back channel",
        ),
        (
            refused("401 Unauthorized"),
            502,
            "camera_unavailable",
            "requires credentials",
        ),
        (
            refused("500 Internal Server Error"),
            502,
            "camera_unavailable",
            "RTSP status 500",
        ),
        (
            "RTSP/1.0 200 OK\r\nContent-Length: 99999999\r\n\r\n".to_owned(),
            502,
            "camera_unavailable",
            "too long",
        ),
        ("\u{1}\u{2}\u{3}".repeat(30_000), 502, "camera_unavailable", "not RTSP"),
        // Bytes between messages are passed over, and numbers of responses not looked at.
        (
            "\u{1}\u{2}\u{3}RTSP/1.0 551 Option not supported\r\nCSeq: 77\r\n\r\n".to_owned(),
            409,
            "no_back_channel",
            "has no back channel",
        ),
        (String::new(), 504, "camera_timeout", "in time"),
    ] {
        let answer_talk = answer.clone();
        let (port, mut told, _) = scripted(move |request| match is_talk(request) {
            true => answer_talk.clone(),
            false => String::new(),
        })
        .await;
        let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{port}/cam\"\non_demand = true")).await;
        let (refused, given, detail) = refusal(&gateway, "door", Some("talk")).await;
        let answer = &answer[..answer.len().min(100)];
        assert_eq!((refused, given.as_str()), (status, code), "{answer}: {detail}");
        assert!(detail.contains(said), "{answer}: {detail}");
        let closed = async { while told.recv().await.is_some_and(|line| line != "closed") {} };
        assert!(tokio::time::timeout(PATIENCE, closed).await.is_ok(), "{answer}");
        assert_eq!(metric(&gateway, "millstream_talkers").await, 0, "{answer}");
        gateway.stop().await;
    }
    // Bound, so that nobody else gets the port, and without a listener.
    let nobody = TcpSocket::new_v4().expect("a socket");
    nobody.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    let port = nobody.local_addr().expect("it is bound").port();
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{port}/cam\"\non_demand = true")).await;
    let (status, code, detail) = refusal(&gateway, "door", Some("talk")).await;
    assert_eq!((status, code.as_str()), (502, "camera_unavailable"), "{detail}");
    assert!(detail.contains("refused"), "{detail}");
    gateway.stop().await;
}

/// Answers a back channel in PCMU; `keepalive` is the status of the response to OPTIONS.
fn intercom(request: &str, keepalive: &str) -> String {
    let back = format!("{SDP_OF_VIDEO}m=audio 0 RTP/AVP 0\r\na=control:track1\r\na=sendonly\r\n");
    let head = "RTSP/1.0 200 OK\r\nCSEQ\r\nSession: 7;timeout=10\r\n";
    match request.split(' ').next() {
        Some("DESCRIBE") => described(&back),
        Some("SETUP") => format!("{head}Transport: RTP/AVP/TCP;unicast;interleaved=4-5\r\n\r\n"),
        Some("OPTIONS") => format!("RTSP/1.0 {keepalive}\r\nCSEQ\r\n\r\n"),
        _ => format!("{head}\r\n"),
    }
}

async fn next(told: &mut mpsc::UnboundedReceiver<String>) -> String {
    let next = tokio::time::timeout(PATIENCE, told.recv()).await;
    next.expect("a request in time").expect("the camera runs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_with_the_camera_is_kept_alive_and_ends_with_the_talker() {
    let (port, mut told, audio_bytes) = scripted(|request| intercom(request, "200 OK")).await;
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{port}/cam\"\non_demand = true")).await;
    let talker = Talker::start(&gateway, 0).await;
    let uri = format!("rtsp://127.0.0.1:{port}/cam");
    for (line, headers) in [
        (
            format!("DESCRIBE {uri} "),
            &["Require: www.onvif.org/ver20/backchannel"][..],
        ),
        (
            format!("SETUP {uri}/track1 "),
            &["interleaved=0-1", "Require: www.onvif.org/ver20/backchannel"],
        ),
        (
            format!("PLAY {uri} "),
            &["Session: 7\r\n", "Require: www.onvif.org/ver20/backchannel"],
        ),
        (format!("OPTIONS {uri} "), &["Session: 7\r\n"]),
    ] {
        let request = next(&mut told).await;
        let has_headers = headers.iter().all(|header| request.contains(header));
        assert!(request.starts_with(&line) && has_headers, "{request}");
    }
    assert!(
        audio_bytes.load(Ordering::SeqCst) > 0,
        "audio goes on beside the keepalive"
    );
    talker.leave(&gateway).await;
    let end = async {
        loop {
            let request = next(&mut told).await;
            if !request.starts_with("OPTIONS") {
                return request;
            }
        }
    };
    let request = end.await;
    assert!(request.starts_with(&format!("TEARDOWN {uri} ")), "{request}");
    assert!(request.contains("Session: 7\r\n"), "{request}");
    assert_eq!(next(&mut told).await, "closed");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_that_ends_the_session_ends_that_of_the_talker() {
    let (port, ..) = scripted(|request| intercom(request, "454 Session Not Found")).await;
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{port}/cam\"\non_demand = true")).await;
    let _talker = Talker::start(&gateway, 0).await;
    let closed = "millstream_sessions_closed_total{reason=\"back_channel_closed\"}";
    until("the session of the talker ends", async || {
        metric(&gateway, closed).await == 1
    })
    .await;
    until("the camera is free", async || {
        metric(&gateway, "millstream_talkers").await == 0
    })
    .await;
    gateway.stop().await;
}
