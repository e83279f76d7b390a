//! Playlists as origins write them, as `hls_m3u8` writes them, and malformed ones.

use hls_m3u8::MasterPlaylist;
use hls_m3u8::tags::{ExtXMedia, VariantStream};
use hls_m3u8::types::{MediaType, StreamData};

use super::parser::MAX_KEPT_LIVE_SEGMENTS;
use super::*;

fn media(text: &str) -> MediaPlaylist {
    match Playlist::parse(text) {
        Ok(Playlist::Media(media)) => media,
        other => panic!("{other:?}"),
    }
}

#[test]
fn segments_have_numbers_ranges_keys_and_initialization_sections() {
    let list = media(
        "#EXTM3U\r\n#EXT-X-VERSION:9\r\n#EXT-X-TARGETDURATION:6\r\n#EXT-X-MEDIA-SEQUENCE:4000000000\r\n\
         #EXT-X-MAP:URI=\"init.mp4\",BYTERANGE=\"700@0\"\r\n#EXTINF:5.96,title, with comma\r\n#EXT-X-BYTERANGE:1000@700\r\nall.mp4\r\n\
         #EXTINF:6\r\n#EXT-X-BYTERANGE:500\r\nall.mp4\r\n\
         #EXT-X-DISCONTINUITY\r\n#EXT-X-KEY:METHOD=AES-128,URI=\"k,ey\",IV=0x0000000000000000000000000000000A\r\n#EXT-X-GAP\r\n#EXTINF:6,\r\nb.mp4\r\n\
         #EXT-X-KEY:METHOD=NONE\r\n#EXTINF:6,\r\nc.mp4\r\n\
         #EXT-X-PART:DURATION=0.2,URI=\"part\"\r\n#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"next\"\r\n",
    );
    let numbers: Vec<u64> = list
        .segments
        .iter()
        .map(|segment| segment.media_sequence_number)
        .collect();
    assert_eq!(numbers, [4_000_000_000, 4_000_000_001, 4_000_000_002, 4_000_000_003]);
    assert_eq!(list.next_segment_number, 4_000_000_004);
    let [first, second, third, fourth] = &list.segments[..] else {
        panic!("{}", list.segments.len())
    };
    assert_eq!(
        first.byte_range,
        Some(ByteRange {
            begin: 700,
            length: 1_000
        })
    );
    assert_eq!(
        second.byte_range,
        Some(ByteRange {
            begin: 1_700,
            length: 500
        }),
        "behind the one before"
    );
    let init = second.init_section.as_ref().expect("it holds for all that follow");
    assert_eq!(
        (init.uri.as_str(), init.byte_range),
        ("init.mp4", Some(ByteRange { begin: 0, length: 700 }))
    );
    assert!(third.follows_discontinuity && third.is_gap && third.discontinuity_sequence == 1 && !fourth.is_gap);
    let key = third.decryption_key.as_ref().expect("a key");
    assert_eq!((key.uri.as_str(), key.iv.map(|iv| iv[15])), ("k,ey", Some(10)));
    assert_eq!(fourth.decryption_key, None);
    assert!(!list.has_ended && !list.can_block_reload);
    let open = list.segment_in_progress.as_ref().expect("a part of the next segment");
    assert_eq!(
        (open.media_sequence_number, open.parts.len(), open.parts[0].uri.as_str()),
        (list.next_segment_number, 1, "part")
    );
}

#[test]
fn what_hls_m3u8_writes_is_read() {
    let variant = VariantStream::ExtXStreamInf {
        uri: "720.m3u8".into(),
        frame_rate: None,
        audio: Some("audio".into()),
        subtitles: None,
        closed_captions: None,
        stream_data: StreamData::builder()
            .bandwidth(1_500_000)
            .resolution((1280, 720))
            .codecs(["avc1.64001f", "mp4a.40.2"])
            .build()
            .expect("complete"),
    };
    let audio = ExtXMedia::builder()
        .media_type(MediaType::Audio)
        .group_id("audio")
        .name("English, stereo")
        .uri("audio.m3u8")
        .is_default(true)
        .is_autoselect(true)
        .build()
        .expect("complete");
    let written = MasterPlaylist::builder()
        .media(vec![audio])
        .variant_streams(vec![variant])
        .build()
        .expect("audio")
        .to_string();
    let Ok(Playlist::Multivariant(multivariant)) = Playlist::parse(&written) else {
        panic!("{written}")
    };
    assert_eq!(
        multivariant.variants,
        [Variant {
            uri: "720.m3u8".to_owned(),
            bandwidth: 1_500_000,
            height: Some(720),
            codecs: Some("avc1.64001f,mp4a.40.2".to_owned()),
            audio_group_id: Some("audio".to_owned()),
        }]
    );
    assert_eq!(
        multivariant.audio_renditions,
        [AudioRendition {
            group_id: "audio".to_owned(),
            uri: Some("audio.m3u8".to_owned()),
            is_default: true,
        }]
    );
}

#[test]
fn a_playlist_without_anything_to_play_is_refused() {
    let refused = |text: &str| {
        let parsed = Playlist::parse(text).and_then(|list| match list {
            Playlist::Media(media) => media.require_supported_encryption(),
            Playlist::Multivariant(_) => Ok(()),
        });
        parsed.expect_err("refused").to_string()
    };
    assert!(refused("<html>").contains("#EXTM3U"));
    for empty in ["#EXTM3U\n", "#EXTM3U\na.ts\n", "#EXTM3U\n#EXT-X-TARGETDURATION:-1\n"] {
        assert!(refused(empty).contains("neither segments nor variants"), "{empty}");
    }
    assert!(refused("#EXTM3U\n#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"x\"\n").contains("SAMPLE-AES"));
    let foreign = "#EXT-X-KEY:METHOD=AES-128,URI=\"x\",KEYFORMAT=\"com.apple.streamingkeydelivery\"\n";
    assert!(refused(&format!("#EXTM3U\n{foreign}#EXTINF:1,\na\n")).contains("com.apple"));
    let many = format!(
        "#EXTM3U\n{}#EXT-X-ENDLIST\n",
        "#EXTINF:1,\na\n".repeat(MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST + 1)
    );
    assert_eq!(Playlist::parse(&many), Err(PlaylistError::TooManySegments));
}

#[test]
fn mistakes_are_passed_over() {
    let list = media(
        "\u{feff}\r\n#EXTM3U8 x\r\n\r\n#EXT-X-VERSION:x\r\n#EXT-X-TARGETDURATION:4,5\r\n#EXT-X-MEDIA-SEQUENCE: 7 \r\n\
         #EXT-X-UNKNOWN\r\nno duration.ts\r\n#EXTINF:,\r\nnone.ts\r\n#EXTINF:-1,title\r\nnegative.ts?a=b&c=d\r\n\
         #EXTINF:9,97,\r\n\r\n#comment\r\nlocale.ts\r\n#EXTINF:1e9\r\nlong.ts\r\n\
         #EXTINF:1,\r\n#EXT-X-BYTERANGE:18446744073709551615@2\r\nrange.ts\r\n#EXT-X-MAP:X=Y\r\n#EXTINF:1,\r\nlast.ts\r\n",
    );
    let seen: Vec<(u64, &str, u64, bool)> = list
        .segments
        .iter()
        .map(|segment| {
            (
                segment.media_sequence_number,
                segment.uri.as_str(),
                segment.duration.as_secs(),
                segment.is_gap,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (7, "none.ts", 3_600, false),
            (8, "negative.ts?a=b&c=d", 3_600, false),
            (9, "locale.ts", 9, false),
            (10, "long.ts", 3_600, false),
            (11, "range.ts", 1, true),
            (12, "last.ts", 1, false),
        ]
    );
}

#[test]
fn keys_of_others_stand_beside_ours_and_hide_only_their_segments() {
    let ours = "#EXT-X-KEY:METHOD=AES-128,URI=\"ours\"\n";
    let apple = "#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"skd://x\",KEYFORMAT=\"com.apple.streamingkeydelivery\"\n";
    let widevine = "#EXT-X-KEY:METHOD=SAMPLE-AES-CTR,URI=\"data:x\",KEYFORMAT=\"urn:uuid:edef8ba9\"\n";
    let none = "#EXT-X-KEY:METHOD=NONE\n";
    let found = |lines: &[&str]| -> Vec<(bool, bool)> {
        let text: String = lines.iter().map(|line| format!("{line}#EXTINF:1,\na\n")).collect();
        let list = media(&format!("#EXTM3U\n{text}"));
        list.segments
            .iter()
            .map(|segment| (segment.decryption_key.is_some(), segment.is_gap))
            .collect()
    };
    let (clear, ours_is_used, gap) = ((false, false), (true, false), (false, true));
    for both in [[ours, apple, widevine].concat(), [widevine, apple, ours].concat()] {
        assert_eq!(found(&[&both, none]), [ours_is_used, clear]);
    }
    assert_eq!(found(&["", apple, none]), [clear, gap, clear]);
    assert_eq!(found(&[widevine, ""]), [clear, clear], "an advertisement");
    assert_eq!(
        found(&[ours, "#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"x\"\n", ours]),
        [ours_is_used, gap, ours_is_used]
    );
    assert_eq!(
        found(&["#EXT-X-KEY:METHOD=AES-128\n", ours]),
        [gap, ours_is_used],
        "AES-128 without a key URI"
    );
}

/// RFC 8216 §4.3.2.5: an initialization section has the key that is listed before it.
#[test]
fn an_initialization_section_keeps_the_key_before_it() {
    let key = |name: &str| format!("#EXT-X-KEY:METHOD=AES-128,URI=\"{name}\",IV=0x01\n");
    let (map, segment) = ("#EXT-X-MAP:URI=\"init\"\n", "#EXTINF:1,\na\n");
    let keys = |text: String| -> Vec<[Option<String>; 2]> {
        let list = media(&format!("#EXTM3U\n{text}"));
        let name = |key: &Option<Arc<KeyUriAndIv>>| key.as_ref().map(|key| key.uri.clone());
        let of = |segment: &OriginSegment| {
            let init = segment.init_section.as_ref().expect("one for all");
            [name(&init.decryption_key), name(&segment.decryption_key)]
        };
        list.segments.iter().map(of).collect()
    };
    let (first, second) = (Some("1".to_owned()), Some("2".to_owned()));
    let clear = [map, &key("1"), segment].concat();
    assert_eq!(keys(clear), [[None, first.clone()]]);
    let rotated = [&key("1"), map, segment, &key("2"), segment].concat();
    assert_eq!(keys(rotated), [[first.clone(), first.clone()], [first, second]]);
}

#[test]
fn an_initialization_section_is_the_same_file_whatever_key_is_before_it() {
    let of = |range: &str, key: &str, uri: &str| {
        let list = media(&format!(
            "#EXTM3U\n{key}#EXT-X-MAP:URI=\"{uri}\"{range}\n#EXTINF:1,\na\n"
        ));
        list.segments[0].init_section.clone().expect("listed")
    };
    let (key, range) = ("#EXT-X-KEY:METHOD=AES-128,URI=\"k\",IV=0x01\n", ",BYTERANGE=\"7@0\"");
    let first = of(range, "", "init");
    assert!(first.is_same_file(&first) && first.is_same_file(&of(range, key, "init")));
    for other in [
        of("", "", "init"),
        of(",BYTERANGE=\"7@7\"", "", "init"),
        of(range, "", "other"),
    ] {
        assert!(!first.is_same_file(&other), "{other:?}");
    }
}

#[test]
fn of_a_long_live_playlist_the_end_is_kept() {
    let listed = "#EXTINF:1,\na\n".repeat(MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST + 7);
    let list = media(&format!("#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:5\n{listed}"));
    assert_eq!(list.segments.len(), MAX_KEPT_LIVE_SEGMENTS);
    assert_eq!(
        list.next_segment_number,
        (MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST + 7 + 5) as u64
    );
    assert_eq!(
        list.segments.last().map(|segment| segment.media_sequence_number + 1),
        Some(list.next_segment_number)
    );
}

/// Found by fuzzing: the segments before the tag had other numbers than their places tell.
#[test]
fn a_sequence_number_behind_a_segment_numbers_all_of_them() {
    let late = include_str!("../../../../tests/data/fuzz/playlist/late-media-sequence");
    for text in [late, &late.replace("MEDIA", "DISCONTINUITY")] {
        let list = media(text);
        let numbers: Vec<u64> = list
            .segments
            .iter()
            .map(|segment| segment.media_sequence_number)
            .collect();
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0].saturating_add(1)),
            "{numbers:?}"
        );
        assert!(list.segments.is_sorted_by_key(|segment| segment.discontinuity_sequence));
        assert_eq!(
            list.next_segment_number,
            numbers.last().map_or(0, |last| last.saturating_add(1))
        );
    }
}

#[test]
fn truncated_and_mutated_playlists_do_not_panic() {
    let text = "#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXT-X-MEDIA-SEQUENCE:7\n#EXT-X-MAP:URI=\"i\",BYTERANGE=\"7@0\"\n\
                #EXT-X-KEY:METHOD=AES-128,URI=\"k\",IV=0x01\n#EXTINF:6,\n#EXT-X-BYTERANGE:1@2\na\n#EXT-X-DISCONTINUITY\n#EXTINF:6,\nb\n";
    let odd = [
        "\"",
        ",",
        "=",
        ":",
        "@",
        "-1",
        "99999999999999999999",
        "\u{0}",
        "é",
        "NaN",
        "inf",
        "\n",
        "#EXT",
    ];
    let mut tried = 0;
    for at in 0..text.len() {
        let _ = Playlist::parse(&text[..at]);
        for other in odd {
            let _ = Playlist::parse(&format!("{}{other}{}", &text[..at], &text[at..]));
            let _ = Playlist::parse(&format!("{}{other}{}", &text[..at], &text[at + 1..]));
            tried += 2;
        }
    }
    assert!(tried > 3_000, "{tried}");
}

#[test]
fn lines_may_end_as_on_any_system() {
    let text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n\n#EXT-X-MEDIA-SEQUENCE:7\n#EXTINF:4,\na.ts\n#EXTINF:4,\nb.ts\n";
    let expected = media(text);
    assert_eq!(expected.segments.len(), 2);
    for end in ["\r\n", "\r", "\r\r\n", " \t\n"] {
        assert_eq!(media(&text.replace('\n', end)), expected, "{end:?}");
    }
}

/// globocom/m3u8#154, clappr/clappr#106: playlists that are read while they are written.
#[test]
fn a_last_line_without_end_is_noticed() {
    let text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\na.ts\n#EXTINF:4,\nsegment12.ts\n";
    assert!(!media(text).may_be_truncated);
    let cut = media(text.trim_end_matches("2.ts\n"));
    assert!(cut.may_be_truncated && cut.segments[1].uri == "segment1");
}

/// shaka-project/shaka-player#5414, Comcast/mamba#130, video-dev/hls.js#7905: an update that a cache serves to everybody.
#[test]
fn segments_that_an_update_leaves_out_are_counted() {
    for head in [
        "#EXT-X-MEDIA-SEQUENCE:7126\n#EXT-X-SKIP:SKIPPED-SEGMENTS=191\n",
        "#EXT-X-SKIP:SKIPPED-SEGMENTS=191,RECENTLY-REMOVED-DATERANGES=\"\"\n#EXT-X-MEDIA-SEQUENCE:7126\n",
    ] {
        let list = media(&format!(
            "#EXTM3U\n#EXT-X-TARGETDURATION:4\n{head}#EXTINF:4,\na\n#EXTINF:4,\nb\n"
        ));
        let numbers = list.segments.iter().map(|segment| segment.media_sequence_number);
        assert_eq!(numbers.collect::<Vec<_>>(), [7_317, 7_318]);
        assert_eq!(list.next_segment_number, 7_319);
    }
}

#[test]
fn a_target_duration_below_that_of_the_segments_is_raised() {
    for (stated, expected) in [("5", 12), ("4", 12), ("30", 30), ("x", 12)] {
        let list = media(&format!(
            "#EXTM3U\n#EXT-X-TARGETDURATION:{stated}\n#EXTINF:9.5,\na\n#EXTINF:12,\nb\n"
        ));
        assert_eq!(list.target_duration, Duration::from_secs(expected), "{stated}");
    }
}

#[test]
fn one_wrong_duration_raises_the_target_duration_to_three_times_what_is_stated() {
    let list = media("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\na\n#EXTINF:4000,\nb\n#EXTINF:4,\nc\n");
    assert_eq!(list.target_duration, Duration::from_secs(12));
}

#[test]
fn attributes_are_read_as_packagers_write_them() {
    let text = "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO, GROUP-ID= \"a\", NAME=\"x, y\", URI=\"\"\n\
        #EXT-X-STREAM-INF:PROGRAM-ID=1, BANDWIDTH=1500000.5, RESOLUTION=1280X720, CODECS= \"avc1.64001f, mp4a.40.2\", AUDIO=\"a\"\nv\n";
    let Ok(Playlist::Multivariant(multivariant)) = Playlist::parse(text) else {
        panic!("{text}")
    };
    assert_eq!(
        multivariant.audio_renditions[0].uri, None,
        "an empty one is none: hls.js#656"
    );
    let variant = &multivariant.variants[0];
    assert_eq!(
        variant.attributes(),
        (1_500_000, Some(720), Some("avc1.64001f, mp4a.40.2"))
    );
    let list = media(
        "#EXTM3U\n#EXT-X-KEY:METHOD=AES-128, URI=\"k\", IV=0000000000000000000000000000000A\n\
         #EXTINF:9.5 tvg-id=\"x,y\" group=\"1\",title\na\n#EXTINF: 4.5 ,\n#EXT-X-BYTERANGE: 5 @ 7 \nb\n",
    );
    let key = list.segments[0].decryption_key.as_ref().expect("a key");
    assert_eq!(key.iv.map(|iv| iv[15]), Some(10));
    let durations = list.segments.iter().map(|segment| segment.duration.as_millis());
    assert_eq!(durations.collect::<Vec<_>>(), [9_500, 4_500]);
    assert_eq!(list.segments[1].byte_range, Some(ByteRange { begin: 7, length: 5 }));
}

#[test]
fn a_byte_range_without_begin_behind_another_file_begins_with_the_file() {
    let list = media(
        "#EXTM3U\n#EXTINF:1,\n#EXT-X-BYTERANGE:10@5\na\n#EXTINF:1,\n#EXT-X-BYTERANGE:20\nb\n\
         #EXTINF:1,\n#EXT-X-BYTERANGE:30\nb\n",
    );
    let begins = list
        .segments
        .iter()
        .map(|segment| segment.byte_range.map(|range| range.begin));
    assert_eq!(begins.collect::<Vec<_>>(), [Some(5), Some(0), Some(20)]);
}

#[test]
fn segments_have_the_date_that_is_stated_or_follows() {
    let list = media(
        "#EXTM3U\n#EXTINF:1,\na\n#EXT-X-PROGRAM-DATE-TIME:1970-01-01T00:00:10.5Z\n#EXTINF:4,\nb\n#EXTINF:2.5,\nc\n\
         #EXTINF:,\nd\n#EXTINF:1,\ne\n#EXT-X-PROGRAM-DATE-TIME:1970-01-01T01:00:00+01:00\n#EXTINF:1,\nf\n",
    );
    let dates = list.segments.iter().map(|segment| segment.program_date_time);
    let expected = [None, Some(10_500), Some(14_500), Some(17_000), None, Some(0)];
    assert_eq!(dates.collect::<Vec<_>>(), expected);
}

/// rfc8216bis §4.4.2.3.
#[test]
fn variables_are_replaced_in_uris_and_attributes() {
    let context = |url: &str, variables: Arc<PlaylistVariables>| PlaylistContext {
        url: url::Url::parse(url).ok(),
        multivariant_variables: variables,
    };
    let text = "#EXTM3U\n#EXT-X-VERSION:11\n#EXT-X-DEFINE:NAME=\"host\",VALUE=\"https://cdn.test\"\n\
        #EXT-X-DEFINE:QUERYPARAM=\"token\"\n\
        #EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"a\",URI=\"{$host}/a.m3u8?{$token}\"\n\
        #EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO=\"a\"\n{$host}/v.m3u8?{$token}\n";
    let parsed = Playlist::parse_in_context(text, &context("https://o.test/m?token=t%201", Arc::default()));
    let Ok(Playlist::Multivariant(multivariant)) = parsed else {
        panic!("{parsed:?}")
    };
    assert_eq!(multivariant.variants[0].uri, "https://cdn.test/v.m3u8?t 1");
    assert_eq!(
        multivariant.audio_renditions[0].uri.as_deref(),
        Some("https://cdn.test/a.m3u8?t 1")
    );
    let text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-DEFINE:IMPORT=\"host\"\n#EXT-X-DEFINE:NAME=\"b\",VALUE=\"b/\"\n\
        #EXT-X-KEY:METHOD=AES-128,URI=\"{$host}/k\"\n#EXT-X-MAP:URI=\"{$b}i\"\n#EXTINF:4,{$title}\n{$host}/{$b}1.ts\n\
        #EXT-X-PART:DURATION=1,URI=\"{$b}2.ts\"\n";
    let parsed = Playlist::parse_in_context(text, &context("https://o.test/", multivariant.variables.clone()));
    let Ok(Playlist::Media(list)) = parsed else {
        panic!("{parsed:?}")
    };
    let segment = &list.segments[0];
    let key = segment.decryption_key.as_ref().map(|key| key.uri.as_str());
    let init = segment.init_section.as_ref().map(|init| init.uri.as_str());
    assert_eq!(
        (segment.uri.as_str(), key, init),
        ("https://cdn.test/b/1.ts", Some("https://cdn.test/k"), Some("b/i"))
    );
    let part = list.segment_in_progress.as_ref().map(|open| open.parts[0].uri.as_str());
    assert_eq!(part, Some("b/2.ts"));
    let error = Playlist::parse(text).expect_err("there is nothing to import");
    assert_eq!(
        error,
        PlaylistError::Variable(VariableError::Undefined("host".to_owned()))
    );
}
