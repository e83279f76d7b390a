//! What cameras send, and what the tracks of their streams say of it.

use std::time::Duration;

use millstream::http::api::streams;
use millstream_core::hub::name::StreamName;
use millstream_core::media::{Codec, Format};

use crate::rtsp::{Camera, NOTHING, gateway, plays_on, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_codec_is_recognised_and_only_b_frames_are_out_of_order() {
    for (media, picture, sound, reordered) in [
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
        let codecs = (seen.picture.map(Format::codec), seen.sound.map(Format::codec));
        assert_eq!(codecs, (Some(picture), Some(sound)), "{media}");
        // RTP carries the size of a JPEG frame in blocks of eight pixels (RFC 2435 §3.1.5).
        let height = if picture == Codec::Jpeg { 184 } else { 180 };
        assert_eq!(seen.resolution, Some((320, height)), "{media}");
        if let Some(Format::Aac(config)) = seen.sound {
            assert_eq!((config.rate, config.channels), (44_100, 1));
        }
        // A second of it, and the rates are known.
        let (hub, fetched) = (gateway.media().hub(), gateway.fetched());
        let name = StreamName::parse("door").expect("a name");
        let shown = async {
            loop {
                let shown = streams::one(&name, hub, fetched, |_| 0).expect("it is there");
                if shown.video.as_ref().is_some_and(|video| video.bitrate > 0) {
                    return shown;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let shown = tokio::time::timeout(crate::rtsp::PATIENCE, shown)
            .await
            .expect("measured");
        let (source, video) = (shown.source.expect("configured"), shown.video.expect("a picture"));
        assert_eq!(
            (source.kind, source.state, source.last_error, source.restarts),
            ("rtsp", "live", None, 0)
        );
        assert!((8.0..12.0).contains(&video.frame_rate), "{media}: {video:?}");
        assert_eq!((video.codec, video.b_frames), (picture.name(), reordered));
        assert_eq!(shown.audio.map(|audio| audio.codec), Some(sound.name()));
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_picture_that_changes_its_size_is_followed() {
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
async fn picture_and_sound_are_on_one_clock() {
    for media in ["h264+pcma", "h264+opus"] {
        let camera = Camera::start(0, media, &[]);
        let gateway = gateway(&format!("rtsp = \"rtsp://127.0.0.1:{}/cam\"", camera.port)).await;
        until(&gateway, "plays", |now| plays_on(NOTHING, now)).await;
        // A report comes within some seconds of the start (RFC 3550 §6.2); before it the arrivals serve, and these are
        // delayed alike on one machine.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let stream = gateway.media().hub().find(StreamName::parse("door").expect("a name"));
        let stream = stream.expect("it plays");
        let age = |track: &millstream_core::hub::track::Track| {
            let (newest, arrival) = track.ring().newest().expect("packets");
            let captured_now = track.clock().time_at(arrival).expect("a clock");
            let rate = f64::from(track.format().expect("a format").codec().clock_rate());
            (captured_now as f64 - newest as f64) / rate
        };
        let (picture, sound) = stream.with(|state| (age(&state.video), age(&state.audio)));
        println!(
            "{media}: what arrives is {:.0} ms old (picture), {:.0} ms (sound)",
            picture * 1e3,
            sound * 1e3
        );
        assert!((picture - sound).abs() < 0.3, "{picture} {sound}");
        gateway.stop().await;
    }
}
