//! `POST /api/v1/sources/test` where this host can transcode: with a snapshot.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millstream::Gateway;
use millstream::config::Config;
use serde_json::{Value, json};

use crate::pipeline::{Folder, programs};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_tested_is_shown_as_an_image() {
    let text = "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n[auth]\napi_token = \"operator\"\n\
                [api]\nsource_test_timeout = 60\n";
    let config = Config::parse(text, "test.toml".as_ref(), []).expect("valid");
    let gateway = Gateway::start_with_worker_programs(config, programs())
        .await
        .expect("free ports");
    let url = format!("http://{}/api/v1/sources/test", gateway.http_address());
    let request = reqwest::Client::new().post(url).bearer_auth("operator");
    let response = request
        .json(&json!({ "pipeline": "test" }))
        .send()
        .await
        .expect("answers");
    let shown: Value = response.json().await.expect("JSON");
    assert_eq!(shown["ok"], true, "{shown}");
    assert_eq!(
        shown["browsers"],
        json!({ "video": "as_is", "audio": "as_is" }),
        "{shown}"
    );
    let snapshot = shown["snapshot"].as_str().expect("a snapshot");
    let image = snapshot.strip_prefix("data:image/jpeg;base64,").expect("a data URL");
    let image = STANDARD.decode(image).expect("base64");
    assert_eq!(image.get(..2), Some(&[0xff, 0xd8][..]));
    gateway.stop().await;
}

/// Returns the width of a JPEG, from its frame header (ITU-T T.81 B.2.2).
fn width_of_jpeg(image: &[u8]) -> u16 {
    let header = image
        .windows(2)
        .position(|marker| matches!(marker, [0xff, 0xc0..=0xc2]));
    let header = header.expect("a frame header");
    u16::from_be_bytes([image[header + 7], image[header + 8]])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_uses_the_pipelines_of_the_newest_reload() {
    let folder = Folder::new("test-pipelines");
    let small = "description = \"Small\"\nlaunch = \"appsrc name=video_in ! decodebin ! videoconvert ! videoscale \
                 ! video/x-raw,format=I420,width=64,height=36 ! jpegenc ! appsink name=video\"\n";
    std::fs::write(folder.0.join("to-jpeg.toml"), small).expect("written");
    let config = |pipelines: &str| {
        let text = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\nshards = 1\n[auth]\n\
             api_token = \"operator\"\n[api]\nsource_test_timeout = 60\n{pipelines}"
        );
        Config::parse(&text, "test.toml".as_ref(), []).expect("valid")
    };
    let own = config(&format!("[pipelines]\nfolder = \"{}\"\n", folder.0.display()));
    let mut gateway = Gateway::start_with_worker_programs(own, programs())
        .await
        .expect("free ports");
    let width = async |gateway: &Gateway| {
        let url = format!("http://{}/api/v1/sources/test", gateway.http_address());
        let request = reqwest::Client::new().post(url).bearer_auth("operator");
        let response = request.json(&json!({ "pipeline": "test" })).send().await;
        let shown: Value = response.expect("answers").json().await.expect("JSON");
        let snapshot = shown["snapshot"].as_str().unwrap_or_else(|| panic!("{shown}"));
        let image = snapshot.strip_prefix("data:image/jpeg;base64,").expect("a data URL");
        width_of_jpeg(&STANDARD.decode(image).expect("base64"))
    };
    assert_eq!(width(&gateway).await, 64);
    gateway.replace_config(config("")).await.expect("valid");
    assert!(width(&gateway).await > 64);
    gateway.stop().await;
}
