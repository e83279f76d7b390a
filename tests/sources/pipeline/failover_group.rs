//! Streams with several sources, with real workers: one takes over from another, and a slate runs once for all streams.

use std::time::Duration;

use millstream::Gateway;
use millstream::http::api::streams::{self, Stream};
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::ShardIndex;

use crate::pipeline::{PATIENCE, gateway, plays, workers};

/// The tests of this file count worker processes, so each runs in a separate process.
#[test]
fn failover_groups_in_a_process_of_their_own() {
    crate::pipeline::alone(&[
        "pipeline::failover_group::a_slate_is_one_worker_for_all_streams_that_show_it",
        "pipeline::failover_group::a_slate_stands_in_while_the_source_is_away",
    ]);
}

fn shown(gateway: &Gateway, name: &str) -> Stream {
    let name = StreamName::parse(name).expect("a name");
    let shown = streams::describe_stream(&name, gateway.media_plane().hub(), gateway.source_registry(), |_| 0);
    shown.expect("it is configured")
}

/// Waits until a stream shows this source.
async fn shows(gateway: &Gateway, stream: &str, source: &str) {
    let waiting = async {
        loop {
            let shown = shown(gateway, stream);
            if shown.sources.iter().any(|own| own.selected && own.name == source) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(
        waited.is_ok(),
        "{stream} never shows {source}: {:?}",
        shown(gateway, stream)
    );
}

async fn post(gateway: &Gateway, path: &str) {
    let url = format!("http://{}/api/v1/sources/{path}", gateway.http_address());
    let response = reqwest::Client::new().post(url).bearer_auth("secret").send().await;
    let response = response.expect("an answer");
    assert_eq!(response.status().as_u16(), 204, "{path}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn a_slate_is_one_worker_for_all_streams_that_show_it() {
    let list = |stream: &str, text: &str| {
        format!(
            "[streams.\"{stream}\"]\nsources = [{{ whip = \"main\" }}, {{ pipeline = \"slate\", name = \"slate\", \
             params = {{ text = \"{text}\" }} }}]\n"
        )
    };
    let text = [
        list("one", "Back soon"),
        list("two", "Back soon"),
        list("three", "Later"),
    ]
    .concat();
    let gateway = gateway(&text).await;
    for stream in ["one", "two", "three"] {
        plays(&gateway, stream).await;
        assert_eq!(shown(&gateway, stream).publisher, Some("pipeline"));
    }
    assert_eq!(workers().len(), 2, "one for two streams, and one with another text");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn a_slate_stands_in_while_the_source_is_away() {
    let gateway = gateway(
        "[auth]\napi_token = \"secret\"\n[streams.\"show\"]\nsources = [{ pipeline = \"test\", name = \"studio\" }, \
         { pipeline = \"slate\", name = \"slate\", standby = \"cold\" }]\nhold_off = 1\n",
    )
    .await;
    shows(&gateway, "show", "studio").await;
    let hub = gateway.media_plane().hub();
    let name = StreamName::parse("show").expect("a name");
    let stream = hub.open_and_update_stream(&name, |state| state.add_viewer(ShardIndex(0)));
    for _ in 0..2 {
        let before = plays(&gateway, "show").await;
        post(&gateway, "stop/show?source=studio").await;
        shows(&gateway, "show", "slate").await;
        let during = plays(&gateway, "show").await;
        assert!(
            during.video > before.video && during.audio > before.audio,
            "{before:?} {during:?}"
        );
        post(&gateway, "start/show?source=studio").await;
        shows(&gateway, "show", "studio").await;
    }
    plays(&gateway, "show").await;
    let now = hub.find_stream(&name).expect("it is there");
    assert_eq!(now.id, stream.id, "viewers kept their stream");
    hub.update_stream_and_remove_if_unused(&stream, |state| state.remove_viewer(ShardIndex(0)));
    gateway.stop().await;
}
