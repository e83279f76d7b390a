//! The extensions of WHEP: server-sent events and layer selection.

use std::time::Duration;

use millstream::Gateway;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::{LayerOrigin, SessionId, SimulcastLayer};
use millstream_core::media::{CodecFormat, ProfileLevelId, Rid};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::client::{Reply, Request, VIEWER, gateway, make_live, recorded};

const PATIENCE: Duration = Duration::from_secs(20);

async fn viewer(gateway: &Gateway) -> String {
    let reply = Request::offer("/whep/live", VIEWER).send(gateway).await;
    reply.location()
}

fn change(gateway: &Gateway, change: impl FnOnce(&mut millstream_core::hub::stream::StreamState)) {
    let name = StreamName::parse("live").expect("a name");
    gateway.media_plane().hub().open_and_update_stream(&name, change);
}

fn layers(sizes: &[(&str, u16, u16)]) -> Vec<SimulcastLayer> {
    let layer = |(rid, width, height): &(&str, u16, u16)| SimulcastLayer {
        rid: Rid((*rid).into()),
        resolution: Some((*width, *height)),
        measured_bitrate: 100_000,
        active: true,
        is_carried_by_main_stream: false,
        is_lossy: false,
        origin: LayerOrigin::Pushed,
    };
    sizes.iter().map(layer).collect()
}

/// A stream of events that is being read.
struct Events {
    stream: TcpStream,
    text: String,
}

impl Events {
    async fn open(gateway: &Gateway, path: &str) -> Self {
        let mut stream = TcpStream::connect(gateway.http_address()).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut events = Self {
            stream,
            text: String::new(),
        };
        events.until("\r\n\r\n").await;
        events
    }

    /// Reads until this has come; what came before it is forgotten.
    async fn until(&mut self, wanted: &str) -> String {
        let reading = async {
            loop {
                if let Some(at) = self.text.find(wanted) {
                    let rest = self.text.split_off(at + wanted.len());
                    return std::mem::replace(&mut self.text, rest);
                }
                let mut bytes = [0; 4096];
                let read = self.stream.read(&mut bytes).await.unwrap_or(0);
                assert!(read > 0, "it ended before {wanted:?}: {}", self.text);
                self.text += &String::from_utf8_lossy(&bytes[..read]);
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("it comes")
    }

    async fn ends(&mut self) {
        let reading = async {
            let mut bytes = [0; 4096];
            loop {
                let read = self.stream.read(&mut bytes).await.unwrap_or(0);
                self.text += &String::from_utf8_lossy(&bytes[..read]);
                if read == 0 || self.text.ends_with("0\r\n\r\n") {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("it ends");
    }
}

/// E-14, X-01, X-07.
#[tokio::test]
async fn the_answer_names_the_extensions() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "live");
    let reply = Request::offer("/whep/live", VIEWER).send(&gateway).await;
    let session = reply.location();
    assert_eq!(
        reply.all("link"),
        [
            format!(
                "<{session}/events>; rel=\"urn:ietf:params:whep:ext:core:server-sent-events\"; \
                 events=\"active,inactive,layers,reconnect,viewercount,quality\""
            ),
            format!("<{session}/layer>; rel=\"urn:ietf:params:whep:ext:core:layer\""),
            format!("<{session}/delay>; rel=\"urn:millstream:whep:ext:delay\""),
        ]
    );
    gateway.stop().await;
}

/// E-16. Firefox without its H.264 plugin got an answer with audio only, and could not know that there is video.
#[tokio::test]
async fn a_session_that_cannot_carry_the_video_says_which_it_is_and_where_to_find_it() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "live");
    let without_h264 = recorded!("firefox-esr-153.7.0-noh264-recvonly.sdp");
    let alternates = |reply: &Reply| -> Vec<String> {
        let links = reply.all("link").into_iter();
        let alternates = links.filter(|link| link.contains("rel=\"alternate\""));
        alternates.map(str::to_owned).collect()
    };
    let h264 = CodecFormat::H264 {
        profile: ProfileLevelId::CONSTRAINED_BASELINE_3_1,
        packetization_mode: 1,
    };
    let ask = async |offer: &str| {
        let reply = Request::offer("/whep/live", offer).send(&gateway).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply
    };
    // VP8: it carries everything, until the stream changes to what it cannot.
    let created = ask(without_h264).await;
    assert_eq!(alternates(&created), [""; 0]);
    let layer = Request::new("GET", &format!("{}/layer", created.location()));
    assert_eq!(alternates(&layer.send(&gateway).await), [""; 0]);
    change(&gateway, |state| state.video.set_format_if_known(Some(h264)));
    let named = "</hls/live/index.m3u8>; rel=\"alternate\"; type=\"application/vnd.apple.mpegurl\"; video=\"H264\"";
    assert_eq!(alternates(&layer.send(&gateway).await), [named]);
    assert_eq!(alternates(&ask(without_h264).await), [named]);
    assert_eq!(alternates(&ask(VIEWER).await), [""; 0]);
    // Viewers that offer no video, and viewers of streams without video, get no such link.
    let cut = without_h264.find("m=video").expect("video");
    let audio_only = without_h264[..cut].replace("BUNDLE 0 1", "BUNDLE 0");
    assert_eq!(alternates(&ask(&audio_only).await), [""; 0]);
    change(&gateway, |state| state.video.begin_source(None));
    assert_eq!(alternates(&ask(without_h264).await), [""; 0]);
    gateway.stop().await;
}

///
/// B-44.
#[tokio::test]
async fn events_say_what_becomes_of_the_stream() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "live");
    let session = viewer(&gateway).await;
    let path = format!("{session}/events");
    for (body, status) in [
        ("[\"active\",\"inactive\"]", 201),
        ("", 201),
        ("[\"active\",\"scte35\"]", 400),
        ("{\"a\":1}", 400),
        ("[1]", 400),
        ("[", 400),
    ] {
        let reply = Request::new("POST", &path).body(body).send(&gateway).await;
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
        if status == 400 {
            assert_eq!(reply.problem(), "bad_events");
        }
    }
    let large = format!("[\"{}\"]", "x".repeat(1 << 20));
    assert_eq!(Request::new("POST", &path).body(large).send(&gateway).await.status, 413);
    // Two are open: two more, and no fifth.
    let open = Request::new("POST", &path);
    let stream = open.send(&gateway).await.location();
    assert!(stream.starts_with(&format!("{path}/")), "{stream}");
    assert_eq!(open.send(&gateway).await.status, 201);
    let more = open.send(&gateway).await;
    assert_eq!((more.status, more.problem().as_str()), (429, "too_many_streams"));

    let mut events = Events::open(&gateway, &stream).await;
    let first = events.until("event: viewercount\ndata: {\"viewercount\":1}\n\n").await;
    assert!(first.contains("event: active\ndata: {}\n\n"), "{first}");
    assert!(!first.contains("inactive"), "{first}");
    change(&gateway, |state| {
        state.set_layers(layers(&[("f", 1280, 720), ("h", 640, 360)]));
    });
    let sent = events.until("\n\n").await;
    let data = sent.split("data: ").nth(1).expect("data").trim();
    let data: serde_json::Value = serde_json::from_str(data).expect("one line of JSON");
    let expected = json!([
        {"rid": "f", "bitrate": 100_000, "width": 1280, "height": 720},
        {"rid": "h", "bitrate": 100_000, "width": 640, "height": 360},
    ]);
    let [index] = data
        .as_object()
        .expect("an object")
        .keys()
        .collect::<Vec<_>>()
        .try_into()
        .expect("one m-line");
    assert_eq!(data[index], expected);
    change(&gateway, |state| {
        state.detach_source_if_current(SessionId([7; 16]));
    });
    let sent = events.until("event: inactive\ndata: {}\n\n").await;
    assert!(!sent.contains("event: active"), "{sent}");
    make_live(&gateway, "live");
    events.until("event: active\ndata: {}\n\n").await;
    gateway.start_draining();
    events.until("event: reconnect\ndata: {}\n\n").await;
    // Dropped by its owner.
    assert_eq!(Request::new("DELETE", &stream).send(&gateway).await.status, 200);
    events.ends().await;
    for method in ["GET", "DELETE"] {
        assert_eq!(
            Request::new(method, &stream).send(&gateway).await.status,
            404,
            "{method}"
        );
    }
    gateway.stop().await;
}

#[tokio::test]
async fn events_end_with_the_session_and_are_no_others() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "live");
    let (one, other) = (viewer(&gateway).await, viewer(&gateway).await);
    let stream = Request::new("POST", &format!("{one}/events"))
        .send(&gateway)
        .await
        .location();
    let id = stream.rsplit('/').next().expect("an id").to_owned();
    let stolen = format!("{other}/events/{id}");
    assert_eq!(Request::new("GET", &stolen).send(&gateway).await.status, 404);
    let mut events = Events::open(&gateway, &stream).await;
    events.until("event: active").await;
    assert_eq!(Request::new("DELETE", &one).send(&gateway).await.status, 200);
    events.ends().await;
    let gone = Request::new("POST", &format!("{one}/events")).send(&gateway).await;
    assert_eq!(gone.status, 404);
    gateway.stop().await;
}

/// B45.
#[tokio::test]
async fn a_layer_is_chosen_by_name_or_size_and_wrong_ones_are_refused() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "live");
    change(&gateway, |state| {
        state.set_layers(layers(&[("f", 1280, 720), ("h", 640, 360), ("q", 320, 180)]));
    });
    let session = viewer(&gateway).await;
    let path = format!("{session}/layer");
    let listed = Request::new("GET", &path).send(&gateway).await;
    assert_eq!(listed.status, 200);
    let listed: serde_json::Value = serde_json::from_slice(&listed.body).expect("JSON");
    let index = listed
        .as_object()
        .and_then(|all| all.keys().next())
        .expect("one")
        .clone();
    let mid = VIEWER
        .split("m=video")
        .nth(1)
        .and_then(|video| video.lines().find_map(|line| line.strip_prefix("a=mid:")))
        .expect("a mid")
        .trim();
    for (choice, status) in [
        (json!({"mediaId": index, "rid": "h"}), 200),
        (json!({"mediaId": mid, "rid": "h"}), 200),
        (
            json!({"mediaId": index.parse::<u32>().expect("a number"), "rid": "q"}),
            200,
        ),
        (json!({"rid": "f"}), 200),
        (json!({"encodingId": "q"}), 200),
        (json!({"maxWidth": 640, "maxHeight": 480}), 200),
        (json!({"maxHeight": 10}), 200),
        (json!({}), 200),
        (json!({"mediaId": index}), 200),
        (json!({"rid": "none"}), 422),
        (json!({"mediaId": "17", "rid": "h"}), 422),
        (json!({"spatialLayerId": 1}), 422),
        (json!({"temporalLayerId": 0}), 422),
        (json!({"maxWidth": -1}), 400),
        (json!({"maxHeight": "720"}), 400),
        (json!({"rid": 1}), 400),
        (json!([]), 400),
    ] {
        let request = Request::new("POST", &path)
            .header("Content-Type", "application/json")
            .body(choice.to_string());
        let reply = request.send(&gateway).await;
        assert_eq!(reply.status, status, "{choice}: {}", reply.text());
    }
    let text = Request::new("POST", &path)
        .header("Content-Type", "text/plain")
        .body("{}");
    assert_eq!(text.send(&gateway).await.status, 415);
    let broken = Request::new("POST", &path)
        .header("Content-Type", "application/json")
        .body("{");
    assert_eq!(broken.send(&gateway).await.status, 400);
    assert_eq!(Request::new("PUT", &path).send(&gateway).await.status, 405);
    // A publisher has none.
    let publisher = Request::publish("/whip/other", crate::http::client::OBS)
        .send(&gateway)
        .await
        .location();
    let reply = Request::new("GET", &format!("{publisher}/layer")).send(&gateway).await;
    assert_eq!(reply.status, 404);
    gateway.stop().await;
}

/// A GET takes an event stream over: a player that reconnects does not wait for its old connection to time out.
#[tokio::test]
async fn an_event_stream_has_one_reader() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "live");
    let session = Request::offer("/whep/live", VIEWER).send(&gateway).await.location();
    let stream = Request::new("POST", &format!("{session}/events")).send(&gateway).await;
    let stream = stream.location();
    let mut readers = Vec::new();
    for _ in 0..8 {
        let mut events = Events::open(&gateway, &stream).await;
        events.until("event: active").await;
        readers.push(events);
    }
    let mut last = readers.pop().expect("eight");
    for mut replaced in readers {
        replaced.ends().await;
    }
    gateway.start_draining();
    last.until("event: reconnect").await;
    gateway.stop().await;
}
