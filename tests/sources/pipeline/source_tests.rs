//! `POST /api/v1/sources/test` where this host can transcode: with a snapshot.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millstream::Gateway;
use millstream::config::Config;
use serde_json::{Value, json};

use crate::pipeline::programs;

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
