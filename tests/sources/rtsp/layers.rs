//! The main and the sub stream of a camera as layers of one stream: two RTSP servers, a whole gateway, and viewers that speak
//! WHEP, ICE, DTLS and SRTP with it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millstream::Gateway;
use millstream::config::Config;
use millstream::http::api::streams::{self, Stream};
use millstream_core::hub::name::StreamName;
use millstream_core::media::codec::PayloadInspector;
use millstream_core::media::rtp::{ParsedRtpHeader, extend_rtp_timestamp, extend_seq};
use millstream_core::media::{Codec, PayloadType};
use millstream_test_support::sdp::{H264_PT, OPUS_PT};
use millstream_test_support::{
    Answer, DtlsRole, IceStyle, OfferParameters, Peer, PeerConfig, PeerEvent, PeerIdentity, Profiles, VideoCodec,
};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::rtsp::{Camera, PATIENCE};

const MAIN: (u16, u16) = (640, 360);
const SUB: (u16, u16) = (320, 180);

/// A camera with two streams. They are servers of their own, whose RTP clocks begin anywhere (RFC 3550 §5.1).
struct CameraPair {
    main: Camera,
    sub: Camera,
}

impl CameraPair {
    fn start(main: &str, sub: &str) -> Self {
        Self {
            main: Camera::start(0, main, &["--size", "640x360"]),
            sub: Camera::start(0, sub, &["--size", "320x180"]),
        }
    }

    fn urls(&self) -> String {
        let [main, sub] = [&self.main, &self.sub].map(|camera| camera.port);
        format!("[\"rtsp://127.0.0.1:{main}/cam\", \"rtsp://127.0.0.1:{sub}/cam\"]")
    }
}

fn config(streams: &str) -> Config {
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 2\n[auth]\napi_token = \"secret\"\n\
         [pipelines]\ntranscode = false\n{streams}"
    );
    Config::parse(&text, "test.toml".as_ref(), []).expect("valid")
}

async fn gateway(streams: &str) -> Gateway {
    Gateway::start(config(streams)).await.expect("free ports")
}

fn shown(gateway: &Gateway) -> Stream {
    let name = StreamName::parse("door").expect("a name");
    let shown = streams::describe_stream(&name, gateway.media_plane().hub(), gateway.source_registry(), |_| 0);
    shown.expect("it is configured")
}

async fn until(gateway: &Gateway, what: &str, wanted: impl Fn(&Stream) -> bool) {
    let waiting = async {
        while !wanted(&shown(gateway)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{what}: {:#?}", shown(gateway));
}

/// Waits until both streams were measured, and the main stream is not connected any more.
async fn until_measured(gateway: &Gateway) {
    until(gateway, "the main stream was measured", |stream| {
        let [main, sub] = &stream.layers[..] else { return false };
        main.on_demand && main.width == Some(MAIN.0) && main.bitrate > 0 && sub.active && stream.source_connections == 1
    })
    .await;
}

#[expect(clippy::disallowed_methods, reason = "the time of real sockets")]
fn now() -> Instant {
    Instant::now()
}

/// What a viewer has received.
#[derive(Default)]
struct Received {
    /// Timestamps of the packets by extended sequence number.
    video: BTreeMap<u64, u64>,
    audio_packets: usize,
    last_audio_at: Option<Instant>,
    longest_audio_gap: Duration,
    /// Size of the picture in the newest parameter sets, and all sizes in turn.
    size: Option<(u16, u16)>,
    sizes: Vec<(u16, u16)>,
}

impl Received {
    fn take_packet(&mut self, inspector: &mut PayloadInspector, packet: &[u8]) {
        let header = ParsedRtpHeader::parse(packet).expect("the gateway sends valid RTP");
        let payload = bytes::Bytes::copy_from_slice(&packet[header.payload_range()]);
        if header.pt == PayloadType(OPUS_PT) || header.pt == PayloadType(8) {
            let at = now();
            if let Some(last) = self.last_audio_at.replace(at) {
                self.longest_audio_gap = self.longest_audio_gap.max(at - last);
            }
            self.audio_packets += 1;
        }
        if header.pt != PayloadType(H264_PT) {
            return;
        }
        inspector.inspect_rtp_payload(header.time, &payload);
        let newest = self.video.last_key_value().map(|(seq, time)| (*seq, *time));
        let (seq, time) = match newest {
            Some((seq, time)) => (extend_seq(seq, header.seq), extend_rtp_timestamp(time, header.time)),
            None => ((1 << 16) + u64::from(header.seq), (1 << 32) + u64::from(header.time)),
        };
        self.video.insert(seq, time);
        if let Some(size) = inspector.resolution().filter(|size| self.size != Some(*size)) {
            self.size = Some(size);
            self.sizes.push(size);
        }
    }
}

/// A viewer on a socket of its own.
struct Viewer {
    received: Arc<Mutex<Received>>,
    session: String,
    task: JoinHandle<()>,
}

impl Viewer {
    async fn watch(gateway: &Gateway, seed: u64) -> Self {
        let identity = PeerIdentity::generate();
        let offer = OfferParameters::viewer(seed, identity.fingerprint(), &[VideoCodec::H264]);
        // As browsers do, it takes G.711 too, which cameras send.
        let text = offer.whep().replace("SAVPF 111\r\n", "SAVPF 111 8\r\n").replace(
            "a=rtpmap:111 opus/48000/2\r\n",
            "a=rtpmap:111 opus/48000/2\r\na=rtpmap:8 PCMA/8000\r\n",
        );
        let url = format!("http://{}/whep/door", gateway.http_address());
        let request = reqwest::Client::new()
            .post(url)
            .header("content-type", "application/sdp");
        let response = request.body(text).send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let answer = response.text().await.expect("an answer");
        assert_eq!(status, 201, "{answer}");
        let server = gateway.media_plane().local_addr();
        let config = PeerConfig {
            identity,
            local: offer.credentials,
            remote: Answer::parse(&answer).credentials(),
            server,
            role: DtlsRole::Client,
            profiles: Profiles::CmThenGcm,
            ice: IceStyle::BROWSER,
            decrypt: true,
            seed,
        };
        let received = Arc::new(Mutex::new(Received::default()));
        let task = tokio::spawn(run_peer(Peer::new(now(), config), server, received.clone()));
        let session = headers["location"].to_str().expect("a path").to_owned();
        Self {
            received,
            session,
            task,
        }
    }

    /// Selects a layer by the WHEP extension.
    async fn select(&self, gateway: &Gateway, selection: Value) {
        let url = format!("http://{}{}/layer", gateway.http_address(), self.session);
        let response = reqwest::Client::new().post(url).json(&selection).send().await;
        assert_eq!(response.expect("an answer").status().as_u16(), 200);
    }

    async fn leave(self, gateway: &Gateway) {
        let url = format!("http://{}{}", gateway.http_address(), self.session);
        let response = reqwest::Client::new().delete(url).send().await;
        assert_eq!(response.expect("an answer").status().as_u16(), 200);
    }

    fn read<T>(&self, read: impl Fn(&Received) -> T) -> T {
        read(&self.received.lock().expect("not poisoned"))
    }

    /// Waits for more packets of video.
    async fn gets_more_packets(&self, count: u64) {
        let newest = || self.read(|received| received.video.last_key_value().map_or(0, |(seq, _)| *seq));
        let wanted = newest() + count;
        let waiting = async {
            while newest() < wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "video goes on");
    }

    /// Waits until pictures of this size come, and ten more packets.
    async fn sees(&self, what: &str, size: (u16, u16)) {
        let newest = || self.read(|received| received.video.last_key_value().map_or(0, |(seq, _)| *seq));
        let waiting = async {
            while self.read(|received| received.size) != Some(size) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let begin = newest();
            while newest() < begin + 10 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(
            waited.is_ok(),
            "{what}: {:?}",
            self.read(|received| received.sizes.clone())
        );
    }

    /// One line: no sequence number is missing, and timestamps rise without a jump to another clock, whose origin is hours
    /// away. While a camera dies there may be seconds without a picture.
    fn assert_unbroken(&self) {
        self.read(|received| {
            let packets: Vec<(u64, u64)> = received.video.iter().map(|(seq, time)| (*seq, *time)).collect();
            for pair in packets.windows(2) {
                assert_eq!(pair[1].0, pair[0].0 + 1, "a sequence number is missing");
                let step = pair[1].1.checked_sub(pair[0].1);
                assert!(step.is_some_and(|step| step < 60 * 90_000), "{pair:?}");
            }
        });
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run_peer(mut peer: Peer, server: SocketAddr, received: Arc<Mutex<Received>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let mut inspector = PayloadInspector::new(Codec::H264);
    let mut buffer = vec![0; 2048];
    loop {
        if peer.poll_timeout().is_some_and(|due| due <= now()) {
            peer.handle_timeout(now());
        }
        while let Some(transmit) = peer.poll_transmit() {
            let _ = socket.send_to(&transmit.payload, transmit.to).await;
        }
        let reading = socket.recv_from(&mut buffer);
        if let Ok(Ok((length, _))) = tokio::time::timeout(Duration::from_millis(20), reading).await {
            peer.handle_datagram(now(), server, &buffer[..length]);
        }
        while let Some(event) = peer.poll_event() {
            if let PeerEvent::Rtp(packet) = event {
                let mut received = received.lock().expect("not poisoned");
                received.take_packet(&mut inspector, &packet);
            }
        }
    }
}

/// What the API says of the viewers: the layer of each, and why it is not a better one.
async fn qualities(gateway: &Gateway) -> Vec<(Value, Value)> {
    let url = format!("http://{}/api/v1/sessions", gateway.http_address());
    let response = reqwest::Client::new().get(url).bearer_auth("secret").send().await;
    let body: Value = response.expect("an answer").json().await.expect("JSON");
    let sessions = body["sessions"].as_array().cloned().unwrap_or_default();
    let quality = |session: &Value| {
        (
            session["quality"]["layer"].clone(),
            session["quality"]["limitation"].clone(),
        )
    };
    let mut all: Vec<(Value, Value)> = sessions.iter().map(quality).collect();
    all.sort_by_key(|(layer, _)| layer.to_string());
    all
}

async fn until_qualities(gateway: &Gateway, wanted: &[(Value, Value)]) {
    let waiting = async {
        while qualities(gateway).await != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{:?} instead of {wanted:?}", qualities(gateway).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_get_different_layers_from_two_connections_and_the_loss_of_one_leaves_the_other() {
    let pair = CameraPair::start("h264+pcma", "h264+pcma");
    let gateway = gateway(&format!("[streams.door]\nrtsp = {}\nstop_after = 1\n", pair.urls())).await;
    until_measured(&gateway).await;

    let small = Viewer::watch(&gateway, 1).await;
    small.select(&gateway, json!({ "maxWidth": 400 })).await;
    small.sees("a small viewer", SUB).await;
    until(&gateway, "the sub stream alone", |stream| {
        stream.source_connections == 1
    })
    .await;
    // Until the next key frame of its layer it is sent the stream itself, which carries the largest one that is there.
    small.gets_more_packets(60).await;
    small.received.lock().expect("not poisoned").sizes = vec![SUB];

    let large = Viewer::watch(&gateway, 2).await;
    large.sees("the best layer", MAIN).await;
    assert_eq!(shown(&gateway).source_connections, 2);
    assert_eq!(small.read(|received| received.size), Some(SUB));
    let layers = [("main", "none"), ("sub", "none")].map(|(layer, reason)| (json!(layer), json!(reason)));
    until_qualities(&gateway, &layers).await;

    // The main stream dies: the API says which, and the sub stream goes on.
    let port = pair.main.port;
    drop(pair.main);
    large
        .sees("the sub stream after the loss of the main stream", SUB)
        .await;
    until(&gateway, "the API says which", |stream| {
        let named = stream
            .warnings
            .iter()
            .any(|warning| warning.text.contains("`main` of the camera cannot be read"));
        let main = stream.sources.iter().find(|source| source.name == "main");
        let error = main.and_then(|source| source.connection.as_ref()?.last_error.clone());
        named && stream.live && error.is_some()
    })
    .await;
    let main = Camera::start(port, "h264+pcma", &["--size", "640x360"]);
    large.sees("the main stream again", MAIN).await;

    for viewer in [&small, &large] {
        viewer.assert_unbroken();
        assert!(viewer.read(|received| received.audio_packets) > 50);
        println!(
            "measured: longest pause of audio {:?}",
            viewer.read(|received| received.longest_audio_gap)
        );
    }
    assert_eq!(
        small.read(|received| received.sizes.clone()),
        [SUB],
        "it sees nothing else once it has its layer"
    );
    large.select(&gateway, json!({ "rid": "sub" })).await;
    large.sees("a selected layer", SUB).await;
    until(&gateway, "the main stream is not needed", |stream| {
        stream.source_connections == 1
    })
    .await;
    drop((main, pair.sub));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_in_the_list_does_not_matter_once_the_sizes_are_known() {
    let CameraPair {
        main: large,
        sub: small,
    } = CameraPair::start("h264+pcma", "h264+pcma");
    let swapped = CameraPair {
        main: small,
        sub: large,
    };
    let gateway = gateway(&format!("[streams.door]\nrtsp = {}\nstop_after = 1\n", swapped.urls())).await;
    until(&gateway, "the larger one is first and not connected", |stream| {
        let sizes: Vec<Option<u16>> = stream.layers.iter().map(|layer| layer.width).collect();
        sizes == [Some(MAIN.0), Some(SUB.0)] && stream.layers[0].on_demand && stream.source_connections == 1
    })
    .await;
    assert_eq!(shown(&gateway).layers[0].rid, "sub");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_viewer_without_a_decoder_of_the_main_stream_gets_the_sub_stream() {
    let pair = CameraPair::start("h265+pcma", "h264+pcma");
    let gateway = gateway(&format!("[streams.door]\nrtsp = {}\nstop_after = 1\n", pair.urls())).await;
    until_measured(&gateway).await;
    let codecs: Vec<Option<&str>> = shown(&gateway).layers.iter().map(|layer| layer.codec).collect();
    assert_eq!(codecs, [Some("H265"), Some("H264")]);
    // LL-HLS reads the best layer, so that the stream itself is H.265 while the viewer is there.
    let playlist = format!("http://{}/hls/door/index.m3u8", gateway.http_address());
    let _ = reqwest::get(playlist).await;
    until(&gateway, "the stream is H.265", |stream| {
        stream.video.as_ref().is_some_and(|video| video.codec == "H265")
    })
    .await;
    let viewer = Viewer::watch(&gateway, 3).await;
    viewer.sees("the sub stream", SUB).await;
    until_qualities(&gateway, &[(json!("sub"), json!("codec"))]).await;
    assert!(shown(&gateway).transcodes.is_empty());
    viewer.assert_unbroken();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_adds_and_removes_layers_and_its_viewers_stay() {
    let pair = CameraPair::start("h264+pcma", "h264+pcma");
    let one = format!("[streams.door]\nrtsp = \"rtsp://127.0.0.1:{}/cam\"\n", pair.sub.port);
    let two = format!("[streams.door]\nrtsp = {}\nstop_after = 1\n", pair.urls());
    let mut gateway = gateway(&one).await;
    until(&gateway, "it is live", |stream| {
        stream.live && stream.source_connections == 1
    })
    .await;
    let viewer = Viewer::watch(&gateway, 4).await;
    viewer.sees("the only stream", SUB).await;

    let reloaded = gateway.replace_config(config(&two)).await.expect("valid");
    assert_eq!(
        (reloaded.started, reloaded.stopped),
        (
            vec!["door (main)".to_owned(), "door (sub)".to_owned()],
            vec!["door".to_owned()]
        )
    );
    viewer.sees("the main stream", MAIN).await;
    assert_eq!(shown(&gateway).layers.len(), 2);

    let reloaded = gateway.replace_config(config(&one)).await.expect("valid");
    assert_eq!(reloaded.stopped, ["door (main)", "door (sub)"]);
    viewer.sees("the only stream again", SUB).await;
    let shown = shown(&gateway);
    assert!(shown.layers.is_empty() && shown.sources.is_empty(), "{shown:#?}");
    assert_eq!(shown.source_connections, 1);
    viewer.assert_unbroken();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_on_demand_is_connected_by_its_first_viewer_and_left_after_the_last() {
    let pair = CameraPair::start("h264+pcma", "h264+pcma");
    let streams = format!(
        "[streams.door]\nrtsp = {}\non_demand = true\nstop_after = 1\n",
        pair.urls()
    );
    let gateway = gateway(&streams).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(shown(&gateway).source_connections, 0);
    let viewer = Viewer::watch(&gateway, 5).await;
    viewer.sees("the main stream", MAIN).await;
    viewer.leave(&gateway).await;
    until(&gateway, "it is left", |stream| {
        stream.source_connections == 0 && !stream.live
    })
    .await;
    gateway.stop().await;
}
