//! Transcoding with real workers: the output is playable, and no worker outlives the last viewer.

use std::time::Duration;

use millstream::http::api::streams;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::{ShardIndex, StreamState};
use millstream_core::media::track_delivery::TranscodeTarget;
use millstream_core::media::{Codec, CodecFormat};

use crate::pipeline::{Folder, PATIENCE, gateway, plays, workers};

/// The tests of this file search for worker processes, so each runs in a separate process.
#[test]
fn transcodes_in_a_process_of_their_own() {
    crate::pipeline::alone(&[
        "pipeline::transcoding::aac_becomes_opus_while_somebody_needs_it",
        "pipeline::transcoding::a_transcode_that_cannot_work_ends_with_its_viewers",
    ]);
}

fn name() -> StreamName {
    StreamName::parse("film").expect("a name")
}

async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect(what)
}

fn one_more(state: &mut StreamState) {
    state.add_viewer(ShardIndex(0));
}

fn one_less(state: &mut StreamState) {
    state.remove_viewer(ShardIndex(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn aac_becomes_opus_while_somebody_needs_it() {
    let folder = Folder::new("transcode");
    let path = crate::pipeline::shipped::film(&folder, "film.mp4");
    let stream = format!("[streams.\"film\"]\npipeline = \"file\"\nparams = {{ path = \"{path}\" }}\n");
    let gateway = gateway(&stream).await;
    plays(&gateway, "film").await;
    let before = workers();
    let hub = gateway.media_plane().hub();
    assert!(hub.can_transcode_codec_for_browsers(Codec::Aac) && !hub.can_transcode_codec_for_browsers(Codec::Vp8));
    let transcoded = hub.open_and_update_stream(name().transcode_key(TranscodeTarget::Opus), one_more);
    // Its timestamps come to match those of the original audio, within the delay of an encoder. The first frames may be
    // behind: they are those that were in the ring when the worker started.
    let newest = |state: &mut StreamState| state.audio.ring().newest_track_time_and_arrival().map(|(time, _)| time);
    until("Opus beside the original audio", || {
        let opus = transcoded.with_state(newest)?;
        let film = hub.find_stream(name())?;
        let aac = film.with_state(newest)?;
        (opus.abs_diff(aac) < 48_000 / 2).then_some(())
    })
    .await;
    let codec = transcoded.with_state(|state| state.audio.format().map(CodecFormat::codec));
    assert_eq!(codec, Some(Codec::Opus));
    let shown = streams::describe_stream(&name(), hub, gateway.source_registry(), |_| 0).expect("it is there");
    assert_eq!(
        shown
            .transcodes
            .iter()
            .map(|transcode| (transcode.to, transcode.viewers, transcode.live))
            .collect::<Vec<_>>(),
        [("opus", 1, true)]
    );
    assert_eq!(workers().len(), before.len() + 1, "one worker more");
    hub.update_stream_and_remove_if_unused(&transcoded, one_less);
    until("its end", || (workers() == before).then_some(())).await;
    assert!(hub.find_stream(&transcoded.key).is_none());
    gateway.stop().await;
}

/// An audio-only stream that has ended: the transcode finds no input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs in a process of its own"]
async fn a_transcode_that_cannot_work_ends_with_its_viewers() {
    let gateway = gateway("").await;
    let hub = gateway.media_plane().hub();
    let transcoded = hub.open_and_update_stream(name().transcode_key(TranscodeTarget::H264), one_more);
    // Its viewers are subscribed to the stream itself too.
    let home = hub.open_and_update_stream(name(), |state| {
        one_more(state);
        state.replace_source(
            millstream_core::hub::stream::SourceRef {
                session_id: millstream_core::hub::stream::SessionId([9; 16]),
                shard: ShardIndex::NO_SHARD,
                accepts_key_frame_requests: false,
            },
            &millstream_core::sdp::negotiation_result::AudioVideoFormats {
                video: Some(CodecFormat::Vp8),
                audio: None,
            },
        );
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(workers().is_empty(), "there is nothing to do");
    hub.update_stream_and_remove_if_unused(&transcoded, one_less);
    hub.update_stream_and_remove_if_unused(&home, |state| {
        one_less(state);
        state.detach_source_if_current(millstream_core::hub::stream::SessionId([9; 16]));
    });
    until("the end", || hub.streams().is_empty().then_some(())).await;
    gateway.stop().await;
}
