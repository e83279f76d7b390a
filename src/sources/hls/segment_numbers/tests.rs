//! Playlists of origins that do not count, or count anew.

use std::ops::Range;

use super::super::cursor::{CursorStep, PlaylistCursor};
use super::super::playlist::Playlist;
use super::*;

/// A live playlist of segments with these names.
fn list(head: &str, names: impl IntoIterator<Item = String>) -> Arc<MediaPlaylist> {
    let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:4\n{head}\n");
    for name in names {
        text += &format!("#EXTINF:4,\n{name}\n");
    }
    match Playlist::parse(&text) {
        Ok(Playlist::Media(media)) => Arc::new(media),
        other => panic!("{other:?}"),
    }
}

fn sequence(number: u64) -> String {
    format!("#EXT-X-MEDIA-SEQUENCE:{number}")
}

fn names(range: Range<u64>) -> impl Iterator<Item = String> {
    range.map(|number| format!("{number}.ts"))
}

/// What a source fetches that loads these playlists, each until it has to load it again.
fn fetched(lists: impl IntoIterator<Item = Arc<MediaPlaylist>>) -> (Vec<String>, SegmentNumberCorrector) {
    let (mut cursor, mut numbers) = (PlaylistCursor::new(true), SegmentNumberCorrector::default());
    let mut uris = Vec::new();
    for list in lists {
        let list = numbers.correct(list);
        cursor.on_playlist_loaded(&list);
        while let CursorStep::FetchSegment(segment, _) = cursor.advance_to_next_step(&list) {
            uris.push(segment.uri);
        }
    }
    (uris, numbers)
}

/// video-dev/hls.js#3913, ossrs/srs#3506.
#[test]
fn segments_of_an_origin_that_does_not_count_are_known_by_their_names() {
    for head in [
        "",
        &sequence(0),
        "#EXT-X-MEDIA-SEQUENCE:1.5",
        "#EXT-X-MEDIA-SEQUENCE:99999999999999999999999",
    ] {
        let steps = [0, 1, 1, 2, 4, 4, 5, 9];
        let lists = steps.map(|first| list(head, names(first..first + 5)));
        let (uris, numbers) = fetched(lists);
        assert_eq!(uris, names(4..14).collect::<Vec<_>>(), "{head}");
        assert!(numbers.has_corrected());
    }
}

#[test]
fn queries_may_be_tokens_or_the_names_themselves() {
    let lists = |make: fn(usize, u64) -> String| {
        (0..6_usize).map(move |load| list("", (load as u64..load as u64 + 4).map(move |number| make(load, number))))
    };
    let numbers = |uris: Vec<String>| -> Vec<String> {
        let digits = |uri: &String| uri.split('n').nth(1).map(|rest| rest.chars().take(1).collect());
        uris.iter().filter_map(digits).collect()
    };
    let expected = ["3", "4", "5", "6", "7", "8"];
    let (uris, _) = fetched(lists(|load, number| format!("n{number}.ts?token={load}")));
    assert_eq!(numbers(uris), expected, "a token for each request");
    let (uris, _) = fetched(lists(|load, number| format!("http://{load}.test/n{number}.ts")));
    assert_eq!(numbers(uris), expected, "another server for each request");
    let (uris, _) = fetched(lists(|_, number| format!("get.ts?n{number}")));
    assert_eq!(numbers(uris), expected, "names in the query");
}

#[test]
fn dates_tell_what_names_do_not() {
    // Each request has a token in the path.
    let dated = |load: u64, first: u64| {
        let date = format!("#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:{:02}Z", first * 4);
        list(&date, (first..first + 3).map(|number| format!("{load}/{number}.ts")))
    };
    let (uris, numbers) = fetched([dated(0, 0), dated(1, 1), dated(2, 1), dated(3, 3)]);
    assert_eq!(uris, ["0/2.ts", "1/3.ts", "3/4.ts", "3/5.ts"]);
    assert!(numbers.has_corrected());
    // The names of a ring of three come again.
    let ring = |first: u64| {
        let date = format!("#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:{:02}Z", first * 4);
        list(&date, (first..first + 3).map(|number| format!("{}.ts", number % 3)))
    };
    let (uris, _) = fetched([ring(0), ring(1), ring(3), ring(5)]);
    assert_eq!(uris, ["2.ts", "0.ts", "1.ts", "2.ts", "0.ts", "1.ts"]);
}

#[test]
fn numbers_that_go_back_while_the_segments_go_on_are_corrected() {
    let lists = [
        list(&sequence(632), names(10..16)),
        list(&sequence(1), names(11..17)),
        list(&sequence(3), names(13..19)),
        list(&sequence(0), names(14..20)),
    ];
    let (uris, numbers) = fetched(lists);
    assert_eq!(uris, names(15..20).collect::<Vec<_>>());
    assert_eq!((numbers.has_corrected(), numbers.listed_number(642)), (true, 6));
}

/// A number that is right is believed, whatever the names: tokens in paths, names of a ring, and one name for all.
#[test]
fn numbers_that_go_on_are_believed() {
    let with_token = (0..4).map(|load| list(&sequence(load), (load..load + 3).map(|n| format!("{load}/{n}.ts"))));
    let ring = (0..4).map(|load| list(&sequence(load), (load..load + 3).map(|n| format!("{}.ts", n % 3))));
    let one_name = (0..4).map(|load| list(&sequence(load), (load..load + 3).map(|_| "x.ts".to_owned())));
    let after_outage =
        [0, 1, 50, 51].map(|load| list(&sequence(load), (load..load + 3).map(|n| format!("{}.ts", n % 5))));
    let lists: [Vec<Arc<MediaPlaylist>>; 4] = [
        with_token.collect(),
        ring.collect(),
        one_name.collect(),
        after_outage.into_iter().collect(),
    ];
    for lists in lists {
        let (uris, numbers) = fetched(lists);
        assert_eq!(uris.len(), 4, "{uris:?}");
        assert!(!numbers.has_corrected(), "{uris:?}");
    }
}

/// A source whose origin stands still must not show the last segments again and again.
#[test]
fn a_playlist_with_other_tokens_is_not_a_new_one() {
    let lists = (0..30).map(|load| list("", (0..3).map(|number| format!("{load}/{number}.ts"))));
    let (uris, numbers) = fetched(lists);
    assert_eq!((uris.len(), numbers.has_corrected()), (1, false), "{uris:?}");
}

#[test]
fn an_origin_that_was_restarted_is_not_taken_for_a_lagging_one() {
    // The numbers and the names begin anew.
    let lists = [
        &[(100, 100..105), (101, 101..106)][..],
        &[(0, 0..1), (0, 0..1), (0, 0..2), (0, 0..3)],
    ];
    let lists = lists
        .concat()
        .into_iter()
        .map(|(first, range)| list(&sequence(first), names(range)));
    let (uris, numbers) = fetched(lists);
    assert_eq!(uris, ["104.ts", "105.ts", "0.ts", "1.ts", "2.ts"]);
    assert!(!numbers.has_corrected());
    // An origin that does not count: all segments are new, and those that are missing are a gap.
    let lists = [0..5, 1..6, 2..7].into_iter().map(|range| list("", names(range)));
    let after = [0..2, 0..3].map(|range| list("", range.map(|number| format!("again/{number}.ts"))));
    let (uris, _) = fetched(lists.chain(after));
    assert_eq!(uris, ["4.ts", "5.ts", "6.ts", "again/0.ts", "again/1.ts", "again/2.ts"]);
}

#[test]
fn an_older_playlist_of_a_cache_is_not_a_new_one() {
    for head in ["", "counted"] {
        let lists = [0_u64, 2, 1, 2, 0, 3].map(|first| {
            let head = if head.is_empty() {
                String::new()
            } else {
                sequence(first)
            };
            list(&head, names(first..first + 5))
        });
        let (uris, _) = fetched(lists);
        assert_eq!(uris, names(4..8).collect::<Vec<_>>(), "{head}");
    }
}

/// An event is listed from its beginning, and may take hours.
#[test]
fn an_event_that_grows_is_followed_at_its_end() {
    let event = |count: u64| list("#EXT-X-PLAYLIST-TYPE:EVENT", names(0..count));
    let lists = [1, 2, 3, 990, 999, 1_000, 1_001, 1_002, 5_000, 5_001].map(event);
    let (uris, numbers) = fetched(lists);
    let expected = [0..3, 3..990, 990..1_002].into_iter().flat_map(names);
    let after_outage = [4_999, 5_000].map(|number| format!("{number}.ts"));
    assert_eq!(uris, expected.chain(after_outage).collect::<Vec<_>>());
    assert!(!numbers.has_corrected());
}

/// An origin may date all segments anew, by the length of one.
#[test]
fn names_that_are_unique_are_believed_more_than_dates() {
    let dated = |first: u64, seconds: u64, head: &str| {
        let date = format!("{head}\n#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:{seconds:02}Z");
        list(&date, names(first..first + 5))
    };
    for counts in [true, false] {
        let lists = [(0, 10), (1, 14), (2, 22), (3, 26), (4, 26)].map(|(first, seconds)| {
            let head = if counts { sequence(first) } else { String::new() };
            dated(first, seconds, &head)
        });
        let (uris, numbers) = fetched(lists);
        assert_eq!(uris, names(4..9).collect::<Vec<_>>(), "{counts}");
        assert_eq!(numbers.has_corrected(), !counts);
    }
}

#[test]
fn the_search_for_a_position_is_bounded() {
    let identity = |number| SegmentIdentity::of(&list("", names(number..number + 1)).segments[0]);
    let (same, end, new) = (identity(0), identity(1), identity(2));
    let position = |count: usize| {
        let known = [vec![same.clone(); count], vec![end.clone()]].concat();
        let listed = [vec![same.clone(); count / 2], vec![end.clone(), new.clone()]].concat();
        PlaylistComparison::new(&known, &listed).find_shift(1)
    };
    assert_eq!(position(1_000), Some(500));
    // Half of the positions differ at the end only.
    let many = 2 * (MAX_COMPARED_SEGMENTS.isqrt() + 1);
    assert_eq!(position(many), None);
}

/// The numbers of another server's playlist say nothing about those that were corrected.
#[test]
fn a_cursor_with_corrected_numbers_begins_anew_on_another_server() {
    let next_after = |sequences: [u64; 3]| {
        let (mut cursor, mut numbers) = (PlaylistCursor::new(true), SegmentNumberCorrector::default());
        for (first, listed) in (10..).zip(sequences) {
            let list = numbers.correct(list(&sequence(listed), names(first..first + 5)));
            while let CursorStep::FetchSegment(..) = cursor.advance_to_next_step(&list) {}
        }
        let other = list(&sequence(sequences[2] + 5), names(17..22));
        let can_continue = numbers.can_continue_in_playlist(&cursor, &other);
        numbers.continue_on_other_server(&mut cursor, &other);
        (can_continue, cursor.next_segment_number())
    };
    assert_eq!(next_after([5, 6, 7]), (true, Some(12)));
    assert_eq!(next_after([5, 5, 5]), (false, None), "numbers stand still");
}
