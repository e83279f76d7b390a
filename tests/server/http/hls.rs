//! HLS over HTTP: what caches may keep.

use std::time::{Duration, Instant};

use bytes::Bytes;
use millstream::Gateway;
use millstream_core::hub::name::StreamName;
use millstream_core::hub::stream::SessionId;
use millstream_core::media::Codec;
use millstream_core::sources::frame_source::{FrameSource, NalFraming};

use crate::http::client::{PUBLISH, Reply, Request, gateway};

const KEY_FRAME: &[u8] = &[
    0, 0, 0, 1, 0x67, 0x42, 0xe0, 0x1f, 0xda, 0x11, 0xe4, 0, 0, 0, 1, 0x68, 0xce, 0x3c, 0x80, 0, 0, 0, 1, 0x65, 0x88,
];
const OTHER_FRAME: &[u8] = &[0, 0, 0, 1, 0x41, 0x88];

/// Publishes H.264 at 25 frames per second with a key frame every second, until the gateway stops. Each frame has
/// `size` bytes.
pub(super) fn publish_h264(gateway: &Gateway, stream: &str, size: usize) -> tokio::task::JoinHandle<()> {
    let media = gateway.media_plane().clone();
    let name = StreamName::parse(stream).expect("a name");
    tokio::spawn(async move {
        let mut source = FrameSource::new(name, SessionId([9; 16]), &[Codec::H264.into()]).expect("a codec");
        for frame in 0u64.. {
            let head = if frame.is_multiple_of(25) {
                KEY_FRAME
            } else {
                OTHER_FRAME
            };
            let bytes = Bytes::from([head, &vec![0x55; size]].concat());
            source
                .packetize_and_queue_video(now(), frame * 3_600, &bytes, NalFraming::AnnexB)
                .expect("short");
            source.publish_to_hub(media.hub());
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    })
}

#[expect(clippy::disallowed_methods, reason = "the time of a live source")]
fn now() -> Instant {
    Instant::now()
}

/// The names of complete segments, parts and the initialization segment that a media playlist has at present.
pub(super) async fn media_files(gateway: &Gateway, stream: &str, token: Option<&str>) -> Vec<String> {
    let mut playlist = Request::new("GET", &format!("/hls/{stream}/video.m3u8"));
    if let Some(token) = token {
        playlist = playlist.bearer(token);
    }
    let waiting = async {
        loop {
            let reply = playlist.send(gateway).await;
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            let mut is_gap = false;
            let mut segments = Vec::new();
            for line in text.lines() {
                match line {
                    "#EXT-X-GAP" => is_gap = true,
                    // A gap is the name of a segment that is not there.
                    name if name.starts_with("video-") => {
                        segments.extend((!std::mem::take(&mut is_gap)).then(|| name.to_owned()));
                    }
                    _ => {}
                }
            }
            if reply.status == 200 && !segments.is_empty() {
                let quoted = |tag: &str| {
                    let line = text.lines().rfind(|line| line.starts_with(tag));
                    line.and_then(|line| Some(line.split_once("URI=\"")?.1.split_once('"')?.0.to_owned()))
                };
                let more = [quoted("#EXT-X-MAP"), quoted("#EXT-X-PART:")];
                return more.into_iter().flatten().chain(segments.last().cloned()).collect();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .expect("segments")
}

fn scope(reply: &Reply) -> String {
    let cache = reply.header("cache-control").expect("Cache-Control");
    cache.split(',').next().unwrap_or_default().to_owned()
}

/// RFC 9111 §3.5: `public` lets a shared cache serve a response to requests with `Authorization` to everybody.
#[tokio::test]
async fn shared_caches_keep_only_what_everybody_may_watch() {
    for is_open in [true, false] {
        let gateway = match is_open {
            true => gateway(&[]).await,
            false => gateway(&[("MILLSTREAM_AUTH__PLAY_TOKEN", "play")]).await,
        };
        let source = publish_h264(&gateway, "live", 500);
        let files = media_files(&gateway, "live", (!is_open).then_some("play")).await;
        assert_eq!(files.len(), 3, "{files:?}");
        let files = files.iter().map(String::as_str).chain(["index.m3u8", "video.m3u8"]);
        for file in files {
            let request = Request::new("GET", &format!("/hls/live/{file}"));
            let ways = [
                ("none", request.clone()),
                ("header", request.clone().bearer("play")),
                ("the publisher's", request.clone().bearer(PUBLISH)),
                ("cookie", request.clone().header("Cookie", "millstream-play=play")),
                ("query", Request::new("GET", &format!("/hls/live/{file}?token=play"))),
            ];
            for (way, request) in ways {
                let reply = request.send(&gateway).await;
                if !is_open && way == "none" {
                    assert_eq!((reply.status, scope(&reply).as_str()), (401, "no-store"), "{file}");
                    continue;
                }
                assert_eq!(reply.status, 200, "{file} {way}");
                let wanted = if is_open && way != "query" { "public" } else { "private" };
                assert_eq!(scope(&reply), wanted, "{file} {way}");
                let vary = reply.all("vary").join(", ");
                assert_eq!(
                    vary.contains("Authorization") && vary.contains("Cookie"),
                    !is_open,
                    "{file} {way}: {vary}"
                );
            }
        }
        source.abort();
        gateway.stop().await;
    }
}
