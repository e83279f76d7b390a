//! Two hundred reloads while a stream is read: what they do not touch loses nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millstream_core::hub::name::StreamName;
use millstream_core::hub::reader::RingReader;
use millstream_core::hub::ring::RingEntry;

use crate::pipeline::{config, gateway, plays, until};

const RELOADS: usize = 200;

fn text(round: usize) -> String {
    let more = match round % 3 {
        0 => "[streams.third]\npipeline = \"test\"\non_demand = true\n",
        _ => "",
    };
    format!(
        "[auth]\nplay_token = \"token-{round}\"\n\
         [streams.steady]\npipeline = \"test\"\n\
         [streams.other]\npipeline = \"test\"\non_demand = true\nparams = {{ bitrate = {} }}\n{more}",
        1_000 + round
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_reloads_cost_an_untouched_stream_nothing() {
    let mut gateway = gateway(&text(0)).await;
    plays(&gateway, "steady").await;
    let steady = gateway
        .media_plane()
        .hub()
        .find_stream(StreamName::parse("steady").expect("a name"))
        .expect("live");
    let (source, mut reader) =
        steady.with_state(|state| (state.source(), RingReader::starting_at_ring_end(state.video.ring())));
    let mut read: Vec<Arc<RingEntry>> = Vec::new();
    let (mut refused, mut restarted) = (0, 0);
    for round in 1..=RELOADS {
        let text = if round % 10 == 0 {
            format!("{}nonsense = true\n", text(round))
        } else {
            text(round)
        };
        match config(&text) {
            Ok(config) => {
                let reloaded = gateway.replace_config(config).await.expect("valid");
                assert_eq!(reloaded.changed, ["auth.play_token"]);
                restarted += reloaded.restarted.len();
                assert!(!reloaded.restarted.contains(&"steady".to_owned()), "{reloaded:?}");
            }
            Err(error) => {
                assert!(error.contains("nonsense"), "{error}");
                refused += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        #[expect(clippy::disallowed_methods, reason = "a reader takes the time as an argument")]
        let now = Instant::now();
        steady.with_state(|state| reader.append_available_packets(now, state.video.ring(), &mut read));
    }
    assert_eq!((refused, restarted), (RELOADS / 10, RELOADS - RELOADS / 10));
    assert_eq!(
        steady.with_state(|state| state.source()),
        source,
        "the same source all the time"
    );
    let holes = read
        .windows(2)
        .filter(|pair| pair[1].packet.seq != pair[0].packet.seq + 1)
        .count();
    assert!(read.len() > 50 && holes == 0, "{} packets, {holes} holes", read.len());
    println!(
        "measured: {RELOADS} reloads, {refused} of them refused: 0 of {} packets missing",
        read.len()
    );

    // A stream that is no longer configured ends, one that is new begins.
    let swapped = text(1).replace("streams.steady", "streams.new");
    let reloaded = gateway
        .replace_config(config(&swapped).expect("valid"))
        .await
        .expect("valid");
    assert_eq!(
        (reloaded.started.as_slice(), reloaded.stopped.len()),
        (&["new".to_owned()][..], 1)
    );
    until(&gateway, "steady", "ends", |seen| seen.is_none()).await;
    plays(&gateway, "new").await;
    gateway.stop().await;
}
