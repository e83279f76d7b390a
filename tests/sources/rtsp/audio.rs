//! Audio of cameras that browsers do not play: it is converted, or named as left out.

use std::time::Duration;

use millstream::http::api::streams;
use millstream_core::hub::name::StreamName;
use millstream_core::media::{Codec, CodecFormat};

use crate::pipeline::programs;
use crate::rtsp::PATIENCE;
use crate::rtsp::quirks::{start, without_worker};
use crate::rtsp::scripted::{Script, Scripted, sdp};
use crate::rtsp::shown;

/// A camera that sends audio packets of this length between its frames, each 20 ms.
fn with_audio(encoding: &str, length: usize) -> Script {
    let lines = format!("m=audio 0 RTP/AVP 97\r\na=rtpmap:97 {encoding}\r\na=control:track1\r\n");
    let rate: u32 = encoding
        .split('/')
        .nth(1)
        .and_then(|rate| rate.parse().ok())
        .expect("a rate");
    Script {
        sdp: sdp(&lines),
        frame: Box::new(move |n, sender| {
            sender.frame(n);
            let video = (sender.seq, sender.time, sender.ssrc);
            let time = n as u32 * (rate / 50);
            (sender.channel, sender.payload_type) = (2, 97);
            (sender.seq, sender.time, sender.ssrc) = (n as u16, time, 0x9999);
            let noise: Vec<u8> = (0..length).map(|at| (at * at * 7 + n as usize) as u8).collect();
            sender.packet(&noise, false);
            (sender.channel, sender.payload_type) = (0, 96);
            (sender.seq, sender.time, sender.ssrc) = video;
        }),
        ..Script::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audio_that_browsers_lack_is_converted() {
    for (encoding, length) in [
        ("L16/8000", 320),
        ("L16/44100/2", 1_200),
        ("PCMU/16000", 320),
        ("PCMA/16000", 320),
        ("PCMU/32000", 640),
        ("G722/8000", 160),
        ("G726-32/8000", 80),
    ] {
        let camera = Scripted::start(with_audio(encoding, length)).await;
        let gateway = start(&camera, programs()).await;
        let (hub, name) = (gateway.media_plane().hub(), StreamName::parse("c0").expect("a name"));
        let arrived = async {
            loop {
                let has_both = hub.find_stream(&name).is_some_and(|stream| {
                    stream.with_state(|state| {
                        let is_opus = state.audio.format().map(CodecFormat::codec) == Some(Codec::Opus);
                        is_opus && state.audio.ring().end_seq() > 100 && state.video.ring().end_seq() > 100
                    })
                });
                if has_both {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let arrived = tokio::time::timeout(PATIENCE, arrived).await;
        let source = shown(&gateway, "c0");
        assert!(arrived.is_ok(), "{encoding}: {source:?}");
        assert_eq!(
            source.fallback,
            Some("the camera's audio has to be transcoded to Opus, which only a GStreamer pipeline does"),
            "{encoding}"
        );
        assert!(
            source.left_out.is_empty() && source.restarts == 0,
            "{encoding}: {source:?}"
        );
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audio_that_is_left_out_is_named() {
    let audio = "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 L16/44100/2\r\na=control:track1\r\n\
                 m=audio 0 RTP/AVP 98\r\na=rtpmap:98 PCMU/16000\r\na=control:track2\r\n";
    let script = Script {
        sdp: sdp(audio),
        ..Script::default()
    };
    let camera = Scripted::start(script).await;
    // Nothing can convert it here.
    let gateway = start(&camera, without_worker()).await;
    let plays = async {
        while shown(&gateway, "c0").state != "live" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, plays).await.expect("the video plays");
    assert_eq!(
        shown(&gateway, "c0").left_out,
        ["audio L16/44100/2", "audio PCMU/16000"]
    );
    let name = StreamName::parse("c0").expect("a name");
    let stream = streams::describe_stream(&name, gateway.media_plane().hub(), gateway.source_registry(), |_| 0)
        .expect("it is there");
    let warnings = stream.warnings;
    let is_named = |text: &str| text.contains("(L16/44100/2, PCMU/16000) is not supported");
    assert!(warnings.iter().any(|warning| is_named(&warning.text)), "{warnings:?}");
    gateway.stop().await;
}
