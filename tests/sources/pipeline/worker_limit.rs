//! How many workers run: as many as `pipelines.max_workers` says, and a stream that needs a further one says so.

use std::time::Duration;

use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::ShardIndex;
use millstream_core::media::track_delivery::TranscodeTarget;

use crate::pipeline::{Folder, PATIENCE, gateway, plays, workers};

const RECVONLY_OFFER: &str = include_str!("../../data/offers/chromium-156-recvonly.sdp");

/// The tests of this file count worker processes, so each runs in a separate process.
#[test]
fn worker_limits_in_a_process_of_their_own() {
    crate::pipeline::alone(&[
        "pipeline::worker_limit::a_viewer_who_needs_a_further_worker_gets_503",
        "pipeline::worker_limit::a_transcode_beyond_the_limit_starts_no_worker",
        "pipeline::worker_limit::hls_lists_no_aac_that_no_worker_can_make",
    ]);
}

/// A configured stream with AAC, which WebRTC viewers get transcoded, and a limit of workers.
async fn film_gateway(folder: &Folder, max_workers: usize) -> millstream::Gateway {
    let path = crate::pipeline::shipped::film(folder, "film.mp4");
    let gateway = gateway(&format!(
        "[pipelines]\nmax_workers = {max_workers}\n\
         [streams.\"film\"]\npipeline = \"file\"\nparams = {{ path = \"{path}\" }}\n"
    ))
    .await;
    plays(&gateway, "film").await;
    gateway
}

/// Posts the offer of a viewer. Returns status and body of the answer.
async fn watch_film(gateway: &millstream::Gateway) -> (u16, String) {
    let url = format!("http://{}/whep/film", gateway.http_address());
    let request = reqwest::Client::new()
        .post(url)
        .header("content-type", "application/sdp");
    let response = request.body(RECVONLY_OFFER).send().await.expect("an answer");
    (response.status().as_u16(), response.text().await.expect("text"))
}

async fn metric(gateway: &millstream::Gateway, name: &str) -> u64 {
    let url = format!("http://{}/metrics", gateway.http_address());
    let page = reqwest::get(url).await.expect("an answer").text().await.expect("text");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).expect("the metric")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn a_viewer_who_needs_a_further_worker_gets_503() {
    let folder = Folder::new("worker-limit");
    for (max_workers, expected) in [(1, 503), (2, 201)] {
        let gateway = film_gateway(&folder, max_workers).await;
        let (status, text) = watch_film(&gateway).await;
        assert_eq!(status, expected, "{text}");
        if expected == 503 {
            assert!(
                text.contains("workers_full") && text.contains("pipelines.max_workers"),
                "{text}"
            );
        }
        assert_eq!(metric(&gateway, "millstream_workers_max").await, max_workers as u64);
        let refused = metric(&gateway, "millstream_workers_refused_total").await;
        assert_eq!(refused > 0, expected == 503, "{refused}");
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn a_transcode_beyond_the_limit_starts_no_worker() {
    let folder = Folder::new("worker-limit");
    let gateway = film_gateway(&folder, 1).await;
    let key = StreamName::parse("film")
        .expect("a name")
        .transcode_key(TranscodeTarget::Opus);
    let transcoded = gateway.media_plane().hub().open_and_update_stream(key, |state| {
        state.add_viewer(ShardIndex(0));
    });
    let refusing = async {
        while metric(&gateway, "millstream_workers_refused_total").await < 2 {
            assert_eq!(workers().len(), 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refusing).await.expect("it is refused");
    assert!(transcoded.with_state(|state| state.source().is_none()));
    // The transcoded stream exists, and no worker makes it.
    let (status, text) = watch_film(&gateway).await;
    assert!(status == 503 && text.contains("workers_full"), "{status}: {text}");
    gateway.stop().await;
}

/// The slate has Opus, which Apple's players get as AAC from a further worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn hls_lists_no_aac_that_no_worker_can_make() {
    for (max_workers, has_aac) in [(1, false), (3, true)] {
        let text = format!("[pipelines]\nmax_workers = {max_workers}\n[streams.\"slate\"]\npipeline = \"slate\"\n");
        let gateway = gateway(&text).await;
        plays(&gateway, "slate").await;
        let get = async |file: &str| {
            let url = format!("http://{}/hls/slate/{file}", gateway.http_address());
            let response = reqwest::get(url).await.expect("an answer");
            (response.status().as_u16(), response.text().await.expect("text"))
        };
        let (status, playlist) = get("index.m3u8").await;
        assert_eq!(status, 200, "{playlist}");
        assert_eq!(playlist.contains("aac.m3u8"), has_aac, "{playlist}");
        let (status, text) = get("aac.m3u8").await;
        let is_refused = status == 503 && text.contains("workers_full");
        assert_eq!(is_refused, !has_aac, "{status}: {text}");
        gateway.stop().await;
    }
}
