//! `POST /api/v1/sources/test` with a camera that works.

use millstream::Gateway;
use millstream::config::Config;
use serde_json::{Value, json};

use crate::rtsp::Camera;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_camera_is_described_without_becoming_a_stream() {
    let camera = Camera::start(0, "h264+pcma", &[]);
    let text = "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n[pipelines]\ntranscode = false\n\
                [auth]\napi_token = \"operator\"\n[api]\nsource_test_timeout = 30\n";
    let config = Config::parse(text, "test.toml".as_ref(), []).expect("valid");
    let gateway = Gateway::start(config).await.expect("free ports");
    let url = format!("http://{}/api/v1/sources/test", gateway.http_address());
    let settings = json!({ "url": format!("rtsp://127.0.0.1:{}/cam", camera.port) });
    let request = reqwest::Client::new().post(url).bearer_auth("operator").json(&settings);
    let response = request.send().await.expect("answers");
    assert_eq!(response.status(), 200);
    let shown: Value = response.json().await.expect("JSON");
    assert_eq!(shown["ok"], true, "{shown}");
    let stream = &shown["stream"];
    assert_eq!(
        (&stream["video"]["codec"], &stream["audio"]["codec"]),
        (&json!("H264"), &json!("PCMA")),
        "{shown}"
    );
    assert!(
        stream["video"]["width"].as_u64() > Some(0) && stream["video"]["height"].as_u64() > Some(0),
        "{shown}"
    );
    assert!(stream["video"]["key_frame_interval"].as_f64() > Some(0.0), "{shown}");
    assert_eq!(shown["browsers"], json!({ "video": "as_is", "audio": "as_is" }));
    assert_eq!(shown["snapshot"], Value::Null, "transcoding is off");
    assert!(gateway.media_plane().hub().streams().is_empty() && gateway.source_registry().all().is_empty());
    gateway.stop().await;
}
