//! Streams with several sources, from the outside.

use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream::{Config, Gateway};
use millstream_core::hub::name::{SourceName, StreamName};
use millstream_core::hub::stream::SessionId;
use millstream_core::media::Codec;
use millstream_core::sources::frame_source::{FrameSink as _, FrameSource, NalFraming};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::access::{http, serve};
use crate::http::client::{OBS, Reply, Request, from_text};

const SHOW: &str = "[auth]\napi_token = \"secret\"\n[streams.show]\nsources = [{ whip = \"main\" }, { whip = \"backup\" }]\nhold_off = 1\nstall_timeout_ms = 2000\n";

const KEY_FRAME: &[u8] = &[
    0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4, 0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80, 0, 0, 0, 1, 0x65, 0x88,
];
const OTHER_FRAME: &[u8] = &[0, 0, 0, 1, 0x41, 0x88];

#[expect(clippy::disallowed_methods, reason = "the time of a live source")]
fn now() -> Instant {
    Instant::now()
}

/// Feeds a source of `show` as its publisher would, until it is aborted.
fn feed(gateway: &Gateway, source: &str) -> tokio::task::JoinHandle<()> {
    let media = gateway.media_plane().clone();
    let source = SourceName::parse(source).expect("a source name");
    let key = StreamName::parse("show").expect("a name").failover_source_key(&source);
    let id = SessionId([source.as_str().len() as u8; 16]);
    tokio::spawn(async move {
        let mut feed = FrameSource::new(key, id, &[Codec::H264.into()]).expect("a codec");
        for frame in 0u64.. {
            let head = if frame.is_multiple_of(10) {
                KEY_FRAME
            } else {
                OTHER_FRAME
            };
            let bytes = Bytes::from([head, &[0x55; 200]].concat());
            feed.packetize_and_queue_video(now(), frame * 1_800, &bytes, NalFraming::AnnexB)
                .expect("short");
            assert!(media.publish_frames_unless_displaced(&mut feed), "no other source");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

/// A request to the API and the metrics, with their token.
async fn api(gateway: &Gateway, method: &str, path: &str, body: &str) -> Reply {
    Request::new(method, path)
        .bearer("secret")
        .body(body)
        .send(gateway)
        .await
}

async fn show(gateway: &Gateway) -> Value {
    let reply = api(gateway, "GET", "/api/v1/streams/show", "").await;
    serde_json::from_slice(&reply.body).expect("JSON")
}

/// Waits until the stream shows this source.
async fn shows(gateway: &Gateway, source: Option<&str>) -> Value {
    let waiting = async {
        loop {
            let shown = show(gateway).await;
            let sources = shown["sources"].as_array().expect("sources").iter();
            let mut selected = sources.filter(|source| source["selected"] == true);
            if selected.next().and_then(|source| source["name"].as_str()) == source {
                return shown;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let shown = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    shown.unwrap_or_else(|_| panic!("never shows {source:?}"))
}

async fn choose(gateway: &Gateway, body: &str) -> Reply {
    api(gateway, "PUT", "/api/v1/streams/show/source", body).await
}

#[tokio::test]
async fn publishers_name_the_source_that_they_feed() {
    let gateway = from_text(&format!(
        "{SHOW}[streams.far]\nsources = [{{ pipeline = \"slate\", standby = \"cold\" }}]\n"
    ))
    .await;
    for path in ["/whip/show", "/whip/show?source=main", "/whip/show?source=backup"] {
        let reply = Request::publish(path, OBS).send(&gateway).await;
        assert_eq!(reply.status, 201, "{path}: {}", reply.text());
    }
    let sessions = api(&gateway, "GET", "/api/v1/sessions", "").await;
    let sessions: Value = serde_json::from_slice(&sessions.body).expect("JSON");
    let mut fed: Vec<&str> = sessions["sessions"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|session| session["source"].as_str())
        .collect();
    fed.sort_unstable();
    assert_eq!(fed, ["backup", "main", "main"]);
    for (path, status, code, detail) in [
        ("/whip/show?source=third", 404, "unknown_source", "it has main, backup"),
        (
            "/whip/other?source=main",
            404,
            "unknown_source",
            "the stream has only one source",
        ),
        (
            "/whip/far",
            409,
            "no_publisher_source",
            "no entry of `sources` of this stream is for a publisher",
        ),
    ] {
        let reply = Request::publish(path, OBS).send(&gateway).await;
        assert_eq!((reply.status, reply.problem().as_str()), (status, code), "{path}");
        assert!(reply.text().contains(detail), "{path}: {}", reply.text());
    }
    gateway.stop().await;
}

/// Stream, state and cause of all sessions.
async fn sessions_by_stream(gateway: &Gateway) -> Vec<(String, String, String)> {
    let reply = api(gateway, "GET", "/api/v1/sessions", "").await;
    let listed: Value = serde_json::from_slice(&reply.body).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let sessions = listed["sessions"].as_array().expect("a list").iter();
    sessions
        .map(|session| {
            (
                text(&session["stream"]),
                text(&session["state"]),
                text(&session["cause"]),
            )
        })
        .collect()
}

/// Publishers that have not connected yet when a reload changes what their stream is made of.
#[tokio::test]
async fn a_reload_ends_publishers_whose_source_it_removes() {
    let single = "[auth]\napi_token = \"secret\"\n";
    let other = format!(
        "{single}[streams.show]\nsources = [{{ whip = \"main\" }}, {{ pipeline = \"slate\", standby = \"cold\" }}]\n"
    );
    let config = |text: &str| Config::parse(text, "test.toml".as_ref(), []).expect("valid");
    for (before, target, after) in [
        (single, "/whip/show", SHOW),
        (SHOW, "/whip/show?source=backup", other.as_str()),
        (SHOW, "/whip/show?source=main", single),
    ] {
        let mut gateway = from_text(before).await;
        let publisher = Request::publish(target, OBS).send(&gateway).await.location();
        let untouched = Request::publish("/whip/untouched", OBS).send(&gateway).await.location();
        gateway.replace_config(config(after)).await.expect("valid");
        // The shard of the session is told, and ends it.
        let ending = async {
            loop {
                let listed = sessions_by_stream(&gateway).await;
                if listed
                    .iter()
                    .any(|(stream, _, cause)| stream == "show" && cause == "source_removed")
                {
                    return listed;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let listed = tokio::time::timeout(Duration::from_secs(20), ending).await;
        let listed = listed.unwrap_or_else(|_| panic!("{target}: never ended"));
        let connecting = listed.iter().filter(|(_, state, _)| state == "connecting");
        assert_eq!(
            connecting.map(|(stream, ..)| stream.as_str()).collect::<Vec<_>>(),
            ["untouched"]
        );
        for location in [publisher, untouched] {
            Request::new("DELETE", &location).send(&gateway).await;
        }
        gateway.stop().await;
    }
}

#[tokio::test]
async fn the_api_lists_the_sources_and_chooses_between_them() {
    let gateway = from_text(SHOW).await;
    let configured = show(&gateway).await;
    assert_eq!(
        (&configured["live"], &configured["source"]),
        (&false.into(), &Value::Null)
    );
    for (index, name) in ["main", "backup"].into_iter().enumerate() {
        let source = &configured["sources"][index];
        assert_eq!((&source["name"], &source["kind"]), (&name.into(), &"whip".into()));
        assert_eq!(
            (&source["selected"], &source["connection"]),
            (&false.into(), &Value::Null)
        );
    }
    let main = feed(&gateway, "main");
    shows(&gateway, Some("main")).await;
    let backup = feed(&gateway, "backup");
    assert_eq!(choose(&gateway, "{\"source\": \"backup\"}").await.status, 204);
    let shown = shows(&gateway, Some("backup")).await;
    assert_eq!(
        (&shown["live"], &shown["chosen_source"]),
        (&true.into(), &"backup".into())
    );
    let last = shown["source_switches"]
        .as_array()
        .and_then(|all| all.last())
        .expect("switches");
    assert_eq!(
        (&last["from"], &last["to"], &last["reason"]),
        (&"main".into(), &"backup".into(), &"chosen".into())
    );
    backup.abort();
    let shown = shows(&gateway, Some("main")).await;
    let last = shown["source_switches"]
        .as_array()
        .and_then(|all| all.last())
        .expect("switches");
    assert!(
        ["stalled", "ended"].contains(&last["reason"].as_str().expect("a reason")),
        "{last}"
    );
    assert_eq!(choose(&gateway, "{\"source\": null}").await.status, 204);
    assert_eq!(show(&gateway).await["chosen_source"], Value::Null);
    for (body, status, code) in [
        ("{\"source\": \"third\"}", 404, "unknown_source"),
        ("{}", 400, "bad_source_choice"),
        ("{\"source\": 1}", 400, "bad_source_choice"),
        ("", 400, "bad_source_choice"),
    ] {
        let reply = choose(&gateway, body).await;
        assert_eq!((reply.status, reply.problem().as_str()), (status, code), "{body}");
    }
    let other = api(&gateway, "PUT", "/api/v1/streams/other/source", "{\"source\": \"a\"}").await;
    assert_eq!((other.status, other.problem().as_str()), (404, "unknown_source"));
    let metrics = api(&gateway, "GET", "/metrics", "").await;
    for sample in [
        "millstream_stream_source_selected{stream=\"show\",source=\"main\"} 1",
        "millstream_stream_source_state{stream=\"show\",source=\"backup\",state=\"stalled\"} 1",
        "millstream_stream_source_switches_total{stream=\"show\",reason=\"chosen\"} 1",
    ] {
        assert!(metrics.text().lines().any(|line| line == sample), "{sample}");
    }
    main.abort();
    gateway.stop().await;
}

#[tokio::test]
async fn hls_playlists_have_a_discontinuity_where_another_source_begins() {
    let gateway = from_text(SHOW).await;
    let feeds = ["main", "backup"].map(|source| feed(&gateway, source));
    shows(&gateway, Some("main")).await;
    let discontinuities = async || {
        let playlist = Request::new("GET", "/hls/show/video.m3u8").send(&gateway).await;
        let text = String::from_utf8_lossy(&playlist.body).into_owned();
        let segments = text.lines().filter(|line| line.starts_with("#EXTINF")).count();
        (
            segments,
            text.lines().filter(|line| *line == "#EXT-X-DISCONTINUITY").count(),
        )
    };
    let until = async |wanted: usize| {
        let waiting = async {
            while discontinuities().await.1 < wanted || discontinuities().await.0 <= wanted {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
        assert!(waited.is_ok(), "{:?}", discontinuities().await);
    };
    until(0).await;
    for (switches, source) in [(1, "backup"), (2, "main")] {
        assert_eq!(
            choose(&gateway, &format!("{{\"source\": \"{source}\"}}")).await.status,
            204
        );
        shows(&gateway, Some(source)).await;
        until(switches).await;
    }
    feeds.iter().for_each(tokio::task::JoinHandle::abort);
    gateway.stop().await;
}

#[tokio::test]
async fn switches_are_events_with_their_reason() {
    let gateway = from_text(SHOW).await;
    let main = feed(&gateway, "main");
    shows(&gateway, Some("main")).await;
    let backup = feed(&gateway, "backup");
    main.abort();
    shows(&gateway, Some("backup")).await;
    let mut stream = TcpStream::connect(gateway.http_address()).await.expect("connects");
    let request = b"GET /api/v1/events HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer secret\r\n\r\n";
    stream.write_all(request).await.expect("writes");
    let mut text = String::new();
    let reading = async {
        let mut buffer = [0; 4_096];
        let is_switch = |line: &&str| line.starts_with("data: ") && line.contains("\"reason\"") && line.ends_with('}');
        while text.lines().filter(is_switch).count() < 2 {
            let read = stream.read(&mut buffer).await.expect("reads");
            text += &String::from_utf8_lossy(&buffer[..read]);
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(20), reading).await;
    assert!(read.is_ok(), "{text}");
    let datas = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = datas.filter_map(|data| serde_json::from_str(data).ok()).collect();
    let switches: Vec<&Value> = events.iter().filter(|event| event.get("reason").is_some()).collect();
    let parts = |event: &Value| ["from", "to", "reason"].map(|part| event[part].as_str().map(str::to_owned));
    let owned = |parts: [Option<&str>; 3]| parts.map(|part| part.map(str::to_owned));
    assert_eq!(parts(switches[0]), owned([None, Some("main"), Some("available")]));
    assert_eq!(
        parts(switches[1]),
        owned([Some("main"), Some("backup"), Some("stalled")])
    );
    backup.abort();
    gateway.stop().await;
}

/// Tokens are for streams. The webhook alone can keep the publisher of one source from taking over another.
#[tokio::test]
async fn the_webhook_is_told_of_the_source_that_a_publisher_would_feed() {
    let (address, _) = serve(|question| match (&question["stream"], &question["source"]) {
        (Value::String(stream), Value::String(source)) if stream == "show" && source == "backup" => {
            http("204 No Content", "")
        }
        (Value::String(stream), Value::Null) if stream == "single" => http("204 No Content", ""),
        _ => http("403 Forbidden", ""),
    })
    .await;
    let text = SHOW.replace("[auth]\n", &format!("[auth]\nwebhook_url = \"http://{address}/\"\n"));
    let gateway = from_text(&text).await;
    for (path, status, code) in [
        ("/whip/show?source=backup", 201, ""),
        ("/whip/show?source=main", 403, "insufficient_scope"),
        // The first source for publishers.
        ("/whip/show", 403, "insufficient_scope"),
        ("/whip/show?source=other", 403, "insufficient_scope"),
        ("/whip/single", 201, ""),
    ] {
        let reply = Request::offer(path, OBS).bearer("some-token").send(&gateway).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
        if !code.is_empty() {
            assert_eq!(reply.problem(), code, "{path}");
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_reload_changes_the_list_of_sources() {
    let mut gateway = from_text(SHOW).await;
    let main = feed(&gateway, "main");
    shows(&gateway, Some("main")).await;
    let reload = |text: &str| Config::parse(text, std::path::Path::new("test.toml"), []).expect("valid");
    assert_eq!(choose(&gateway, "{\"source\": \"main\"}").await.status, 204);
    // Other times leave the sources alone, and what was chosen.
    gateway
        .replace_config(reload(&SHOW.replace("hold_off = 1", "hold_off = 2")))
        .await
        .expect("valid");
    let shown = shows(&gateway, Some("main")).await;
    assert_eq!(shown["chosen_source"], "main");
    let renamed = SHOW.replace("backup", "spare");
    gateway.replace_config(reload(&renamed)).await.expect("valid");
    let shown = shows(&gateway, Some("main")).await;
    assert_eq!(
        (&shown["sources"][1]["name"], &shown["chosen_source"]),
        (&"spare".into(), &Value::Null)
    );
    gateway
        .replace_config(reload("[auth]\napi_token = \"secret\"\n"))
        .await
        .expect("valid");
    let gone = api(&gateway, "GET", "/api/v1/streams/show", "").await;
    assert_eq!(gone.status, 404);
    main.abort();
    gateway.stop().await;
}

#[tokio::test]
async fn the_streams_of_a_camera_are_neither_published_to_nor_chosen_by_hand() {
    let gateway = from_text(
        "[auth]\napi_token = \"secret\"\n[streams.show]\nrtsp = [\"rtsp://127.0.0.1:9/1\", \"rtsp://127.0.0.1:9/2\"]\n\
         on_demand = true\n",
    )
    .await;
    let reply = Request::publish("/whip/show", OBS).send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (409, "no_publisher_source"));
    assert!(reply.text().contains("publish to another stream"), "{}", reply.text());
    let reply = choose(&gateway, "{\"source\": \"sub\"}").await;
    assert_eq!((reply.status, reply.problem().as_str()), (409, "camera_layers"));
    let shown = show(&gateway).await;
    let names: Vec<&str> = shown["sources"]
        .as_array()
        .expect("sources")
        .iter()
        .filter_map(|source| source["name"].as_str())
        .collect();
    assert_eq!(names, ["main", "sub"]);
    assert_eq!(shown["source_connections"], 0, "nobody watches");
    gateway.stop().await;
}
