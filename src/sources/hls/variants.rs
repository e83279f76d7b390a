//! Ranks the variants of a multivariant playlist.

use super::error::HlsError;
use super::playlist::{MultivariantPlaylist, Variant};

/// Limits for the variant: the best variant within them is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VariantLimits {
    /// In pixels.
    pub max_height: Option<u32>,
    /// In bit/s.
    pub max_bandwidth: Option<u64>,
}

/// Ranks how well viewers can play a variant; `None` if not at all. A variant without codecs is tried.
fn codec_playability_score(variant: &Variant) -> Option<u8> {
    let mut best = None;
    for name in media_codec_names(variant) {
        let found = match name.as_str() {
            "avc1" | "avc3" | "mp4a" | "opus" => 2,
            "hvc1" | "hev1" => 1,
            name if UNPLAYABLE_VIDEO_CODECS.contains(&name) => return None,
            // With audio that is not supported, or data, the video still plays.
            _ => 0,
        };
        best = Some(best.unwrap_or(found).min(found));
    }
    best.or(Some(1))
}

/// Video that is not played.
const UNPLAYABLE_VIDEO_CODECS: [&str; 15] = [
    "dvh1", "dvhe", "dav1", "dva1", "dvav", "av01", "vp8", "vp08", "vp9", "vp09", "mp4v", "mp2v", "vvc1", "vvi1",
    "theora",
];

/// Returns the names of the codecs that a variant lists, without their profiles and without subtitles.
fn media_codec_names(variant: &Variant) -> impl Iterator<Item = String> {
    let codecs = variant.codecs.as_deref().unwrap_or_default().split(',');
    codecs
        .map(|codec| codec.split('.').next().unwrap_or_default().trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty() && !SUBTITLE_CODECS.contains(&name.as_str()))
}

/// Subtitles and captions, which are not played.
const SUBTITLE_CODECS: [&str; 8] = ["stpp", "wvtt", "sbtt", "stxt", "tx3g", "c608", "c708", "webvtt"];

/// Whether a variant has audio alone, as far as its attributes say.
fn is_audio_only(variant: &Variant) -> bool {
    let is_audio = |name: &String| ["mp4a", "opus", "ac-3", "ec-3", "ac-4", "flac", "mp3"].contains(&name.as_str());
    let mut names = media_codec_names(variant).peekable();
    variant.height.is_none() && names.peek().is_some() && names.all(|name| is_audio(&name))
}

/// Maximum number of variants that are named as left out.
const MAX_LISTED_UNPLAYABLE_VARIANTS: usize = 4;

/// Returns the variants that cannot be played, such as `variant dvh1.05.06, ec-3`.
pub(super) fn unplayable_variant_names(multivariant: &MultivariantPlaylist) -> Vec<String> {
    let mut left_out: Vec<String> = Vec::new();
    for variant in &multivariant.variants {
        let codecs = variant
            .codecs
            .as_deref()
            .filter(|_| codec_playability_score(variant).is_none());
        let name =
            codecs.map(|codecs| millstream_worker_runtime::wire::sanitize_worker_text(&format!("variant {codecs}")));
        left_out.extend(name.filter(|name| !left_out.contains(name)));
    }
    left_out.truncate(MAX_LISTED_UNPLAYABLE_VARIANTS);
    left_out
}

/// Returns the playable variants, best first: those within the limits, then the others from the smallest on. Those with
/// audio alone come last. Redundant variants stand next to each other, in their order.
pub(super) fn rank_playable_variants(
    multivariant: &MultivariantPlaylist,
    choice: VariantLimits,
) -> Result<Vec<&Variant>, HlsError> {
    let mut playable: Vec<(u8, &Variant)> = multivariant
        .variants
        .iter()
        .filter_map(|variant| Some((codec_playability_score(variant)?, variant)))
        .collect();
    let within = |variant: &Variant| {
        let height = variant
            .height
            .zip(choice.max_height)
            .is_none_or(|(height, most)| height <= most);
        height && choice.max_bandwidth.is_none_or(|most| variant.bandwidth <= most)
    };
    let size = |variant: &Variant| (variant.height.unwrap_or_default(), variant.bandwidth);
    playable.sort_by(|(rank, variant), (other_rank, other)| {
        let (own, others) = (within(variant), within(other));
        let best_first = (other_rank, size(other)).cmp(&(rank, size(variant)));
        let by_size = if own {
            best_first
        } else {
            size(variant).cmp(&size(other))
        };
        let video_first = is_audio_only(variant).cmp(&is_audio_only(other));
        video_first.then(others.cmp(&own)).then(by_size)
    });
    if playable.is_empty() {
        let codecs = multivariant
            .variants
            .iter()
            .filter_map(|variant| variant.codecs.as_deref());
        let codecs = codecs.collect::<Vec<_>>().join("; ");
        return Err(HlsError::NoPlayableVariant(
            millstream_worker_runtime::wire::sanitize_worker_text(&codecs),
        ));
    }
    Ok(playable.into_iter().map(|(_, variant)| variant).collect())
}

/// Returns the URI of a variant's audio rendition, if its audio is separate.
pub(super) fn audio_rendition_uri<'a>(multivariant: &'a MultivariantPlaylist, variant: &Variant) -> Option<&'a str> {
    let group = variant.audio_group_id.as_deref()?;
    let mut renditions = multivariant
        .audio_renditions
        .iter()
        .filter(|rendition| rendition.group_id == group);
    let default = renditions.clone().find(|rendition| rendition.is_default);
    let uri = default.or_else(|| renditions.next())?.uri.as_deref();
    // A variant with audio alone is listed as its own rendition.
    uri.filter(|uri| *uri != variant.uri)
}

#[cfg(test)]
mod tests {
    use super::super::playlist::Playlist;
    use super::*;

    fn multivariant(text: &str) -> MultivariantPlaylist {
        match Playlist::parse(&format!("#EXTM3U\n{text}")) {
            Ok(Playlist::Multivariant(multivariant)) => multivariant,
            other => panic!("{other:?}"),
        }
    }

    const LADDER: &str = "#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"b\",URI=\"other.m3u8\"\n\
        #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"a\",DEFAULT=YES,URI=\"audio.m3u8\"\n\
        #EXT-X-STREAM-INF:BANDWIDTH=5000000,RESOLUTION=1920x1080,CODECS=\"hvc1.1.6.L120.90,mp4a.40.2\",AUDIO=\"a\"\nh265.m3u8\n\
        #EXT-X-STREAM-INF:BANDWIDTH=4000000,RESOLUTION=1920x1080,CODECS=\"avc1.640028,mp4a.40.2\",AUDIO=\"a\"\n1080.m3u8\n\
        #EXT-X-STREAM-INF:BANDWIDTH=1500000,RESOLUTION=1280x720,CODECS=\"avc1.64001f,mp4a.40.2\"\n720.m3u8\n\
        #EXT-X-STREAM-INF:BANDWIDTH=9000000,RESOLUTION=3840x2160,CODECS=\"dvh1.05.06,ec-3\"\n2160.m3u8\n";

    #[test]
    fn the_best_variant_within_limits_is_used_and_h264_comes_first() {
        let ladder = multivariant(LADDER);
        for (max_height, max_bandwidth, uri) in [
            (None, None, "1080.m3u8"),
            (Some(720), None, "720.m3u8"),
            (None, Some(2_000_000), "720.m3u8"),
            (Some(100), None, "720.m3u8"),
        ] {
            let choice = VariantLimits {
                max_height,
                max_bandwidth,
            };
            let ranked = rank_playable_variants(&ladder, choice).expect("playable");
            assert_eq!((ranked[0].uri.as_str(), ranked.len()), (uri, 3));
        }
    }

    #[test]
    fn a_separate_audio_rendition_is_found() {
        let ladder = multivariant(LADDER);
        let by_uri = |uri: &str| {
            ladder
                .variants
                .iter()
                .find(|variant| variant.uri == uri)
                .expect("listed")
        };
        assert_eq!(audio_rendition_uri(&ladder, by_uri("1080.m3u8")), Some("audio.m3u8"));
        assert_eq!(audio_rendition_uri(&ladder, by_uri("720.m3u8")), None);
        let audio_only = "#EXT-X-STREAM-INF:BANDWIDTH=64000,CODECS=\"mp4a.40.2\",AUDIO=\"a\"\naudio.m3u8\n";
        let ladder = multivariant(&(LADDER.to_owned() + audio_only));
        let variant = ladder.variants.last().expect("listed");
        assert_eq!(audio_rendition_uri(&ladder, variant), None, "its own playlist");
    }

    #[test]
    fn a_source_without_a_playable_variant_is_an_error() {
        let none = multivariant("#EXT-X-STREAM-INF:BANDWIDTH=1,CODECS=\"dvh1.05.06\"\nx\n");
        let error = rank_playable_variants(&none, VariantLimits::default()).expect_err("nothing to play");
        assert_eq!(error, HlsError::NoPlayableVariant("dvh1.05.06".to_owned()));
    }

    #[test]
    fn audio_alone_is_the_last_choice() {
        let line = |attributes: &str, uri: &str| format!("#EXT-X-STREAM-INF:BANDWIDTH={attributes}\n{uri}\n");
        let audio = line("64000,CODECS=\"mp4a.40.2\"", "audio");
        for (video, limit) in [
            (
                "3000000,RESOLUTION=1280x720,CODECS=\"hvc1.1.6.L120.90,mp4a.40.2\"",
                None,
            ),
            ("3000000,RESOLUTION=1280x720,CODECS=\"avc1.64001f,ac-3\"", None),
            ("3000000,CODECS=\"avc1.64001f,mp4a.40.2\"", Some(1_000_000)),
            ("3000000", None),
            // Some list the codec of the audio alone.
            ("3000000,RESOLUTION=1280x720,CODECS=\"mp4a.40.2\"", Some(1_000_000)),
        ] {
            let multivariant = multivariant(&[audio.clone(), line(video, "video")].concat());
            let choice = VariantLimits {
                max_height: None,
                max_bandwidth: limit,
            };
            let ranked = rank_playable_variants(&multivariant, choice).expect("playable");
            let uris: Vec<&str> = ranked.iter().map(|variant| variant.uri.as_str()).collect();
            assert_eq!(uris, ["video", "audio"], "{video}");
        }
    }

    #[test]
    fn empty_codecs_and_subtitles_do_not_matter() {
        let lines = [
            "1000000,CODECS=\"\"\nnone",
            "9000000,RESOLUTION=1920x1080,CODECS=\"avc1.640028,\"\nempty",
            "8000000,RESOLUTION=1920x1080,CODECS=\"avc1.640028, mp4a.40.2 ,,stpp.ttml.im1t\"\nsubtitles",
            "7000000,RESOLUTION=1920x1080,CODECS=\"avc1.640028,mp4a.40.2,c608\"\ncaptions",
            "64000,CODECS=\"mp4a.40.2,wvtt,\"\naudio",
            "7000000,RESOLUTION=1920x1080,CODECS=\"dvh1.05.06,wvtt\"\nforeign",
        ];
        let lines = lines.map(|line| format!("#EXT-X-STREAM-INF:BANDWIDTH={line}\n"));
        let multivariant = multivariant(&lines.concat());
        let ranked = rank_playable_variants(&multivariant, VariantLimits::default()).expect("playable");
        let uris: Vec<&str> = ranked.iter().map(|variant| variant.uri.as_str()).collect();
        assert_eq!(uris, ["empty", "subtitles", "captions", "none", "audio"]);
    }

    /// video-dev/hls.js#7118: data and audio of other codecs beside video that is played.
    #[test]
    fn codecs_that_are_not_known_hide_no_variant() {
        for (codecs, is_playable) in [
            ("avc1.64001f,mp4a.40.2,mett", true),
            ("avc1.64001f,mhm1.0x0D", true),
            ("hvc1.1.6.L120.90,dts-", true),
            ("hvc1.2.4.L153.b0,dvh1.08.06", false),
            ("av01.0.08M.08,opus", false),
            ("mp4v.20.9,mp4a.40.2", false),
        ] {
            let multivariant = multivariant(&format!("#EXT-X-STREAM-INF:BANDWIDTH=1,CODECS=\"{codecs}\"\nx\n"));
            let ranked = rank_playable_variants(&multivariant, VariantLimits::default());
            assert_eq!(ranked.is_ok(), is_playable, "{codecs}");
        }
    }

    #[test]
    fn redundant_variants_follow_each_other_in_their_order() {
        let line = |bandwidth: u32, uri: &str| format!("#EXT-X-STREAM-INF:BANDWIDTH={bandwidth}\n{uri}\n");
        let lines = [line(9, "a"), line(5, "b"), line(9, "c"), line(20, "d"), line(30, "e")];
        let choice = VariantLimits {
            max_height: None,
            max_bandwidth: Some(10),
        };
        let multivariant = multivariant(&lines.concat());
        let ranked = rank_playable_variants(&multivariant, choice).expect("playable");
        let uris: Vec<&str> = ranked.iter().map(|variant| variant.uri.as_str()).collect();
        assert_eq!(uris, ["a", "c", "b", "d", "e"]);
    }
}
