//! What cameras send, and what the tracks of their streams say of it.

use std::time::Duration;

use millstream::http::api::streams;
use millstream_core::hub::name::StreamName;
use millstream_core::media::{Codec, CodecFormat};

use crate::rtsp::{Camera, NOTHING, gateway, plays_on, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_codec_is_recognised_and_only_b_frames_are_out_of_order() {
    for (media, video_codec, audio_codec, reordered) in [
        ("h264+opus", Codec::H264, Codec::Opus, false),
        ("h264+aac", Codec::H264, Codec::Aac, false),
        ("h265+opus", Codec::H265, Codec::Opus, false),
        ("mjpeg+pcma", Codec::Jpeg, Codec::Pcma, false),
        ("h264-b+aac", Codec::H264, Codec::Aac, true),
    ] {
        let camera = Camera::start(0, media, &[]);
        let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{}/cam\"", camera.port)).await;
        let seen = until(&gateway, media, |now| {
            now.is_some_and(|now| now.reordered == reordered) && plays_on(NOTHING, now)
        });
        let seen = seen.await.expect("it plays");
        let codecs = (
            seen.video_format.map(CodecFormat::codec),
            seen.audio_format.map(CodecFormat::codec),
        );
        assert_eq!(codecs, (Some(video_codec), Some(audio_codec)), "{media}");
        // RTP carries the size of a JPEG frame in blocks of eight pixels (RFC 2435 §3.1.5).
        let height = if video_codec == Codec::Jpeg { 184 } else { 180 };
        assert_eq!(seen.resolution, Some((320, height)), "{media}");
        if let Some(CodecFormat::Aac(config)) = seen.audio_format {
            assert_eq!((config.sample_rate, config.channel_configuration), (44_100, 1));
        }
        // A second of it, and the rates are known.
        let (hub, fetched) = (gateway.media_plane().hub(), gateway.source_registry());
        let name = StreamName::parse("door").expect("a name");
        let shown = async {
            loop {
                let shown = streams::describe_stream(&name, hub, fetched, |_| 0).expect("it is there");
                if shown.video.as_ref().is_some_and(|video| video.bitrate > 0) {
                    return shown;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let shown = tokio::time::timeout(crate::rtsp::PATIENCE, shown)
            .await
            .expect("measured");
        let (source, video) = (shown.source.expect("configured"), shown.video.expect("video"));
        assert_eq!(
            (source.kind, source.state, source.last_error, source.restarts),
            ("rtsp", "live", None, 0)
        );
        assert!((8.0..12.0).contains(&video.frame_rate), "{media}: {video:?}");
        assert_eq!((video.codec, video.b_frames), (video_codec.name(), reordered));
        assert_eq!(shown.audio.map(|audio| audio.codec), Some(audio_codec.name()));
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_resolution_is_followed() {
    let camera = Camera::start(0, "h264+pcma", &[]);
    let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{}/cam\"", camera.port)).await;
    let before = until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
    camera.signal("USR1");
    let after = until(&gateway, "another size", |now| {
        now.is_some_and(|now| now.resolution == Some((240, 160)))
    });
    let after = after.await;
    until(&gateway, "plays on", |now| plays_on(after, now)).await;
    assert_eq!(before.and_then(|seen| seen.resolution), Some((320, 180)));
    gateway.stop().await;
}

/// Video and audio of a camera have separate clocks; its sender reports synchronize them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn video_and_audio_are_on_one_clock() {
    for media in ["h264+pcma", "h264+opus"] {
        let camera = Camera::start(0, media, &[]);
        let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{}/cam\"", camera.port)).await;
        until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
        // A report comes within some seconds of the start (RFC 3550 §6.2); before it the arrivals serve, and these are
        // delayed alike on one machine.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let stream = gateway
            .media_plane()
            .hub()
            .find_stream(StreamName::parse("door").expect("a name"));
        let stream = stream.expect("it plays");
        let age = |track: &millstream_core::hub::track::Track| {
            let (newest, arrival) = track.ring().newest_track_time_and_arrival().expect("packets");
            let captured_now = track.clock().track_time_for_capture_at(arrival).expect("a clock");
            let rate = f64::from(track.format().expect("a format").codec().clock_rate());
            (captured_now as f64 - newest as f64) / rate
        };
        let (video_age, audio_age) = stream.with_state(|state| (age(&state.video), age(&state.audio)));
        println!(
            "{media}: what arrives is {:.0} ms old (video), {:.0} ms (audio)",
            video_age * 1e3,
            audio_age * 1e3
        );
        assert!((video_age - audio_age).abs() < 0.3, "{video_age} {audio_age}");
        gateway.stop().await;
    }
}
