//! Initialization sections of HLS origins, and the keys that hold for them.

use std::sync::{Arc, Mutex};

use aws_lc_rs::cipher::{AES_128, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use axum::response::IntoResponse as _;
use millstream_core::media::MediaKind;

use crate::pipeline::origin_servers::{Server, restarts};
use crate::pipeline::origins::{FRAME, Reader, film, source, steps};
use crate::pipeline::{plays, trouble};

pub(super) fn encrypt(key: u8, iv: u8, bytes: &[u8]) -> Vec<u8> {
    let mut iv_bytes = [0; 16];
    iv_bytes[15] = iv;
    let key = UnboundCipherKey::new(&AES_128, &[key; 16]).expect("16 bytes");
    let key = PaddedBlockEncryptingKey::cbc_pkcs7(key).expect("a key");
    let mut bytes = bytes.to_vec();
    let context = EncryptionContext::Iv128(FixedLength::from(iv_bytes));
    key.less_safe_encrypt(&mut bytes, context).expect("encrypted");
    bytes
}

/// Makes a film in fragmented MP4. Files are served as they are, or encrypted with a key of equal bytes: `KEY-IV-FILE`.
/// Keys are `key/KEY`. Returns what was asked for, too.
async fn origin(list: String) -> (Server, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (noted, folder) = (asked.clone(), Arc::new(Mutex::new(None)));
    let path: Arc<Mutex<Option<std::path::PathBuf>>> = folder.clone();
    let server = Server::start("init", move |file, _, _| {
        noted.lock().expect("no panic").push(file.to_owned());
        if file == "list.m3u8" {
            return Some(list.clone().into_response());
        }
        if let Some(key) = file.strip_prefix("key/") {
            let key = [key.parse::<u8>().expect("a key"); 16];
            // As a file that a person has edited.
            return Some([&key[..], b"\n"].concat().into_response());
        }
        let (key, rest) = file.split_once('-')?;
        let (iv, name) = rest.split_once('-')?;
        let folder = path.lock().expect("no panic").clone()?;
        let bytes = std::fs::read(folder.join(name)).ok()?;
        Some(encrypt(key.parse().ok()?, iv.parse().ok()?, &bytes).into_response())
    })
    .await;
    let options = ["-hls_playlist_type", "vod", "-hls_segment_type", "fmp4"];
    film(&server.folder.0, 4, &options, "film.m3u8");
    std::fs::copy(server.folder.0.join("init.mp4"), server.folder.0.join("other.mp4")).expect("copied");
    *folder.lock().expect("no panic") = Some(server.folder.0.clone());
    (server, asked)
}

fn playlist(lines: &[&str]) -> String {
    format!(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n{}\n#EXT-X-ENDLIST\n",
        lines.join("\n")
    )
}

/// RFC 8216 §4.3.2.5: a section is encrypted with the key that is listed before it, and that has an initialization vector
/// then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_initialization_section_has_the_key_before_it_whatever_follows() {
    let key = |key: u8, iv: u8| format!("#EXT-X-KEY:METHOD=AES-128,URI=\"key/{key}\",IV=0x{iv:032x}");
    let (first, second, no_iv) = (key(1, 9), key(2, 8), "#EXT-X-KEY:METHOD=AES-128,URI=\"key/3\"");
    let map = |file: &str| format!("#EXT-X-MAP:URI=\"{file}\"");
    let segment = |file: &str| format!("#EXTINF:1,\n{file}");
    let cases = [
        // One key for all.
        vec![
            first.clone(),
            map("1-9-init.mp4"),
            segment("1-9-film0.m4s"),
            segment("1-9-film1.m4s"),
        ],
        // The key follows the section, which it does not hold for.
        vec![
            map("init.mp4"),
            first.clone(),
            segment("1-9-film0.m4s"),
            segment("1-9-film1.m4s"),
        ],
        // Another key holds for the segments.
        vec![
            first.clone(),
            map("1-9-init.mp4"),
            second.clone(),
            segment("2-8-film0.m4s"),
            segment("2-8-film1.m4s"),
        ],
        // The segments are in the clear.
        vec![
            first.clone(),
            map("1-9-init.mp4"),
            "#EXT-X-KEY:METHOD=NONE".to_owned(),
            segment("film0.m4s"),
            segment("film1.m4s"),
        ],
        // The key has no initialization vector, so it holds for segments only: theirs is their number.
        vec![
            no_iv.to_owned(),
            map("init.mp4"),
            segment("3-0-film0.m4s"),
            segment("3-1-film1.m4s"),
        ],
        // Each segment names its key and the section again.
        vec![
            first.clone(),
            map("1-9-init.mp4"),
            segment("1-9-film0.m4s"),
            second,
            map("2-8-init.mp4"),
            segment("2-8-film1.m4s"),
        ],
    ];
    for lines in cases {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (server, _) = origin(playlist(&lines)).await;
        let gateway = source(&server.uri("list.m3u8"), "").await;
        let mut reader = Reader::open(&gateway);
        let times = reader.times(MediaKind::Video, 50).await;
        assert_eq!(steps(&times), [(FRAME, 49)], "{lines:?}");
        assert_eq!(trouble(&gateway, "far"), "", "{lines:?}");
        assert_eq!(restarts(&gateway).await, 0);
        drop(reader);
        gateway.stop().await;
    }
}

/// The key before a section changes while a playlist slides; the section is the same file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_initialization_section_is_fetched_again_only_if_it_is_another_file() {
    let list = playlist(&[
        "#EXT-X-MAP:URI=\"init.mp4\"\n#EXTINF:1,\nfilm0.m4s",
        "#EXT-X-KEY:METHOD=AES-128,URI=\"key/1\",IV=0x00000000000000000000000000000009",
        "#EXT-X-MAP:URI=\"init.mp4\"\n#EXTINF:1,\n1-9-film1.m4s",
        "#EXT-X-KEY:METHOD=AES-128,URI=\"key/2\",IV=0x00000000000000000000000000000008",
        "#EXT-X-MAP:URI=\"init.mp4\"\n#EXTINF:1,\n2-8-film2.m4s",
        "#EXT-X-MAP:URI=\"other.mp4\"\n#EXTINF:1,\n2-8-film3.m4s",
    ]);
    let (server, asked) = origin(list).await;
    let gateway = source(&server.uri("list.m3u8"), "repeat = false\n").await;
    plays(&gateway, "far").await;
    let mut reader = Reader::open(&gateway);
    reader.times(MediaKind::Video, 40).await;
    let count = |wanted: &str| {
        let asked = asked.lock().expect("no panic");
        asked.iter().filter(|file| *file == wanted).count()
    };
    assert_eq!(count("2-8-film3.m4s"), 1);
    assert_eq!((count("init.mp4"), count("other.mp4")), (1, 1));
    drop(reader);
    gateway.stop().await;
}
