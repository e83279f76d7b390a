//! Steps through playlists as origins serve them.

use super::super::playlist::Playlist;
use super::*;

fn live(first: u64, count: u64) -> MediaPlaylist {
    let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n");
    for number in first..first + count {
        text += &format!("#EXTINF:4,\n{number}.ts\n");
    }
    media(&text)
}

fn media(text: &str) -> MediaPlaylist {
    match Playlist::parse(text) {
        Ok(Playlist::Media(media)) => media,
        other => panic!("{other:?}"),
    }
}

fn fetched(step: CursorStep) -> (u64, u64) {
    match step {
        CursorStep::FetchSegment(segment, timeline) => (segment.media_sequence_number, timeline),
        other => panic!("{other:?}"),
    }
}

#[test]
fn live_begins_with_the_newest_segment_and_follows() {
    let mut cursor = PlaylistCursor::new(true);
    let list = live(10, 5);
    cursor.on_playlist_loaded(&list);
    assert_eq!(fetched(cursor.advance_to_next_step(&list)), (14, 0));
    assert_eq!(
        cursor.advance_to_next_step(&list),
        CursorStep::ReloadPlaylist(Duration::from_secs(4))
    );
    cursor.on_playlist_loaded(&list);
    assert_eq!(
        cursor.advance_to_next_step(&list),
        CursorStep::ReloadPlaylist(Duration::from_secs(2)),
        "nothing new"
    );
    let list = live(12, 5);
    cursor.on_playlist_loaded(&list);
    assert_eq!(fetched(cursor.advance_to_next_step(&list)).0, 15);
    assert_eq!(fetched(cursor.advance_to_next_step(&list)).0, 16);
}

const PARTS: &str = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=3\n\
    #EXT-X-PART-INF:PART-TARGET=1\n#EXT-X-MEDIA-SEQUENCE:7\n#EXTINF:4,\n7.mp4\n\
    #EXT-X-PART:DURATION=1,URI=\"8.0\",INDEPENDENT=YES\n#EXT-X-PART:DURATION=1,URI=\"8.1\"\n";

fn uri(step: CursorStep) -> String {
    match step {
        CursorStep::FetchSegment(segment, _) => segment.uri,
        other => panic!("{other:?}"),
    }
}

#[test]
fn parts_are_fetched_one_by_one_and_no_segment_twice() {
    let mut cursor = PlaylistCursor::new(true);
    let list = media(PARTS);
    cursor.on_playlist_loaded(&list);
    assert_eq!(
        [
            uri(cursor.advance_to_next_step(&list)),
            uri(cursor.advance_to_next_step(&list))
        ],
        ["8.0", "8.1"]
    );
    assert_eq!(
        cursor.advance_to_next_step(&list),
        CursorStep::ReloadPlaylist(MIN_RELOAD_INTERVAL)
    );
    assert_eq!((cursor.next_segment_number(), cursor.next_part_index()), (Some(8), 2));
    // The segment is complete, and the next one begins.
    let more = "#EXT-X-PART:DURATION=1,URI=\"8.2\"\n#EXTINF:3,\n8.mp4\n\
        #EXT-X-DISCONTINUITY\n#EXT-X-PART:DURATION=1,URI=\"9.0\"\n#EXT-X-PART:DURATION=1,URI=\"9.1\",BYTERANGE=\"5@2\"\n";
    let list = media(&(PARTS.to_owned() + more));
    cursor.on_playlist_loaded(&list);
    assert_eq!(uri(cursor.advance_to_next_step(&list)), "8.2");
    let CursorStep::FetchSegment(first, timeline) = cursor.advance_to_next_step(&list) else {
        panic!()
    };
    let CursorStep::FetchSegment(second, same) = cursor.advance_to_next_step(&list) else {
        panic!()
    };
    assert_eq!(
        (first.uri.as_str(), timeline, same),
        ("9.0", 1, 1),
        "the discontinuity counts once"
    );
    assert_eq!(second.byte_range.map(|range| (range.begin, range.length)), Some((2, 5)));
    // Its parts are not listed any more: what was missed is a gap.
    let list = media(&PARTS.replace("SEQUENCE:7", "SEQUENCE:9").replace("\"8.", "\"10."));
    cursor.on_playlist_loaded(&list);
    assert_eq!(uri(cursor.advance_to_next_step(&list)), "10.0");
}

#[test]
fn segments_without_parts_among_those_with_parts_are_fetched_whole() {
    let mut cursor = PlaylistCursor::new(true);
    let list = media(&PARTS.replace("INDEPENDENT=YES", "X=Y"));
    cursor.on_playlist_loaded(&list);
    assert_eq!(
        uri(cursor.advance_to_next_step(&list)),
        "7.mp4",
        "no part can be started with"
    );
    assert_eq!(
        [
            uri(cursor.advance_to_next_step(&list)),
            uri(cursor.advance_to_next_step(&list))
        ],
        ["8.0", "8.1"]
    );
}

#[test]
fn a_twin_is_followed_where_the_other_stopped() {
    let mut cursor = PlaylistCursor::new(true);
    let list = live(10, 5);
    cursor.on_playlist_loaded(&list);
    assert_eq!(fetched(cursor.advance_to_next_step(&list)), (14, 0));
    let twin = live(12, 4);
    cursor.continue_or_restart_on_other_server(&twin);
    assert_eq!(fetched(cursor.advance_to_next_step(&twin)), (15, 0));
    let other = live(900, 4);
    cursor.continue_or_restart_on_other_server(&other);
    assert_eq!(
        fetched(cursor.advance_to_next_step(&other)),
        (903, 1 << 32),
        "numbered otherwise"
    );
}

#[test]
fn after_an_outage_it_goes_on_at_the_live_edge() {
    let mut cursor = PlaylistCursor::new(true);
    let list = live(0, 3);
    cursor.on_playlist_loaded(&list);
    assert_eq!(fetched(cursor.advance_to_next_step(&list)).0, 2);
    let list = live(20, 3);
    cursor.on_playlist_loaded(&list);
    assert_eq!(
        fetched(cursor.advance_to_next_step(&list)),
        (22, 0),
        "a gap on the same timeline"
    );
}

#[test]
fn an_origin_that_was_restarted_begins_another_timeline() {
    let mut cursor = PlaylistCursor::new(true);
    let list = live(100, 3);
    cursor.on_playlist_loaded(&list);
    assert_eq!(fetched(cursor.advance_to_next_step(&list)), (102, 0));
    let restarted = live(0, 2);
    cursor.on_playlist_loaded(&restarted);
    assert!(matches!(
        cursor.advance_to_next_step(&restarted),
        CursorStep::FetchSegment(..) | CursorStep::ReloadPlaylist(_)
    ));
    cursor.on_playlist_loaded(&restarted);
    assert_eq!(fetched(cursor.advance_to_next_step(&restarted)), (1, 1 << 32));
}

#[test]
fn an_older_list_of_another_server_is_waited_out() {
    let mut cursor = PlaylistCursor::new(true);
    let (old, new) = (live(9, 3), live(10, 3));
    cursor.on_playlist_loaded(&new);
    assert_eq!(fetched(cursor.advance_to_next_step(&new)), (12, 0));
    cursor.on_playlist_loaded(&old);
    assert!(matches!(
        cursor.advance_to_next_step(&old),
        CursorStep::ReloadPlaylist(_)
    ));
    let newer = live(11, 3);
    cursor.on_playlist_loaded(&newer);
    assert_eq!(fetched(cursor.advance_to_next_step(&newer)), (13, 0));
}

#[test]
fn a_server_that_lags_is_waited_for() {
    let mut cursor = PlaylistCursor::new(true);
    let (old, new) = (live(9, 3), live(10, 3));
    cursor.on_playlist_loaded(&new);
    assert_eq!(fetched(cursor.advance_to_next_step(&new)), (12, 0));
    for _ in 0..5 {
        cursor.on_playlist_loaded(&old);
        let step = cursor.advance_to_next_step(&old);
        assert!(matches!(step, CursorStep::ReloadPlaylist(_)), "{step:?}");
    }
    let newer = live(11, 3);
    cursor.on_playlist_loaded(&newer);
    assert_eq!(fetched(cursor.advance_to_next_step(&newer)), (13, 0));
    // The origin was restarted shortly after it began.
    for _ in 0..OLDER_PLAYLISTS_BEFORE_RESTART {
        cursor.on_playlist_loaded(&old);
    }
    assert_eq!(fetched(cursor.advance_to_next_step(&old)), (11, 1 << 32));
}

#[test]
fn a_gap_at_the_live_edge_is_passed_and_what_was_before_is_not_shown_again() {
    let list = |first: u64, gaps: &[u64]| {
        let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n");
        for number in first..first + 4 {
            text += if gaps.contains(&number) { "#EXT-X-GAP\n" } else { "" };
            text += &format!("#EXTINF:4,\n{number}.ts\n");
        }
        media(&text)
    };
    let mut cursor = PlaylistCursor::new(true);
    let ad = list(10, &[12, 13]);
    cursor.on_playlist_loaded(&ad);
    let step = cursor.advance_to_next_step(&ad);
    assert!(matches!(step, CursorStep::ReloadPlaylist(_)), "{step:?}");
    let ad = list(11, &[12, 13, 14]);
    cursor.on_playlist_loaded(&ad);
    let CursorStep::FetchSegment(gap, _) = cursor.advance_to_next_step(&ad) else {
        panic!("the gap goes on")
    };
    assert!(gap.is_gap && gap.media_sequence_number == 14);
    let over = list(13, &[13, 14]);
    cursor.on_playlist_loaded(&over);
    assert_eq!(fetched(cursor.advance_to_next_step(&over)).0, 15);
}

#[test]
fn parts_of_an_encrypted_segment_are_gaps() {
    let key = "#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"x\"\n#EXT-X-PART:DURATION=1,URI=\"8.0\"";
    let list = media(&PARTS.replace("#EXT-X-PART:DURATION=1,URI=\"8.0\"", key));
    let mut cursor = PlaylistCursor::new(true);
    cursor.on_playlist_loaded(&list);
    assert_eq!(uri(cursor.advance_to_next_step(&list)), "7.mp4");
    let CursorStep::FetchSegment(part, _) = cursor.advance_to_next_step(&list) else {
        panic!()
    };
    assert!(part.is_gap, "{part:?}");
}

#[test]
fn a_recording_is_told_from_the_end_of_a_live_stream() {
    let recording = |kind: &str, first: u64, count: usize| {
        media(&format!(
            "#EXTM3U\n{kind}#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n{}#EXT-X-ENDLIST\n",
            "#EXTINF:4,\na\n".repeat(count)
        ))
    };
    for (kind, first, count, is_played) in [
        ("", 0, 1, true),
        ("", 1, 1, true),
        ("", 2, 29, false),
        ("", 9_000, 30, false),
        ("#EXT-X-PLAYLIST-TYPE:VOD\n", 9_000, 1, true),
        ("#EXT-X-PLAYLIST-TYPE:EVENT\n", 9_000, 1, true),
    ] {
        let list = recording(kind, first, count);
        let mut cursor = PlaylistCursor::new(true);
        for _ in 0..2 {
            cursor.on_playlist_loaded(&list);
            let step = cursor.advance_to_next_step(&list);
            let begins =
                matches!(&step, CursorStep::FetchSegment(segment, _) if segment.media_sequence_number == first);
            assert_eq!(begins, is_played, "{kind}{first} {count}: {step:?}");
            // It is repeated.
            for _ in 1..count {
                cursor.advance_to_next_step(&list);
            }
        }
    }
}

#[test]
fn a_discontinuity_number_that_is_never_advanced_does_not_go_back() {
    let list = |first: u64, marks: [bool; 2]| {
        let mut text = format!(
            "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n#EXT-X-DISCONTINUITY-SEQUENCE:0\n"
        );
        for mark in marks {
            text += if mark { "#EXT-X-DISCONTINUITY\n" } else { "" };
            text += "#EXTINF:4,\nx\n";
        }
        media(&text)
    };
    let mut cursor = PlaylistCursor::new(true);
    let lists = [
        list(0, [false, false]),
        list(1, [false, true]),
        list(2, [true, false]),
        // The mark has slid out, and there is another one.
        list(3, [false, true]),
        list(4, [true, false]),
        list(5, [false, false]),
        list(6, [false, true]),
    ];
    let timelines = lists.map(|list| {
        cursor.on_playlist_loaded(&list);
        fetched(cursor.advance_to_next_step(&list)).1
    });
    assert_eq!(timelines, [0, 1, 1, 2, 2, 2, 3]);
}

#[test]
fn a_film_plays_from_its_beginning_and_again() {
    let text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\na\n#EXT-X-DISCONTINUITY\n#EXTINF:4,\nb\n#EXT-X-ENDLIST\n";
    let list = media(text);
    let mut cursor = PlaylistCursor::new(true);
    cursor.on_playlist_loaded(&list);
    let steps: Vec<_> = (0..4).map(|_| fetched(cursor.advance_to_next_step(&list))).collect();
    assert_eq!(steps, [(0, 0), (1, 1), (0, 1 << 32), (1, 1 << 32 | 1)]);
    let mut once = PlaylistCursor::new(false);
    once.on_playlist_loaded(&list);
    once.advance_to_next_step(&list);
    once.advance_to_next_step(&list);
    assert_eq!(once.advance_to_next_step(&list), CursorStep::Ended);
}

#[test]
fn a_live_stream_that_has_ended_is_not_shown_again() {
    let text = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:7\n#EXTINF:4,\na\n#EXT-X-ENDLIST\n";
    let ended = media(text);
    let mut cursor = PlaylistCursor::new(true);
    cursor.on_playlist_loaded(&ended);
    assert_eq!(cursor.advance_to_next_step(&ended), CursorStep::Ended);
    let mut watched = PlaylistCursor::new(true);
    let list = live(6, 1);
    watched.on_playlist_loaded(&list);
    assert_eq!(fetched(watched.advance_to_next_step(&list)).0, 6);
    watched.on_playlist_loaded(&ended);
    assert_eq!(fetched(watched.advance_to_next_step(&ended)).0, 7);
    assert_eq!(watched.advance_to_next_step(&ended), CursorStep::Ended);
}

#[test]
fn discontinuities_count_whether_the_list_counts_them_or_not() {
    let list = |counted: &str, first: u64, marks: [bool; 2]| {
        let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n{counted}");
        for mark in marks {
            text += if mark { "#EXT-X-DISCONTINUITY\n" } else { "" };
            text += "#EXTINF:4,\nx\n";
        }
        media(&text)
    };
    for counted in [true, false] {
        let count = |number: u64| match counted {
            true => format!("#EXT-X-DISCONTINUITY-SEQUENCE:{number}\n"),
            false => String::new(),
        };
        let mut cursor = PlaylistCursor::new(true);
        let lists = [
            list(&count(5), 0, [false, false]),
            list(&count(5), 1, [false, true]),
            // The mark has slid out.
            list(&count(6), 2, [false, false]),
        ];
        let mut timelines = Vec::new();
        for list in &lists {
            cursor.on_playlist_loaded(list);
            timelines.push(fetched(cursor.advance_to_next_step(list)).1);
        }
        let first = if counted { 5 } else { 0 };
        assert_eq!(timelines, [first, first + 1, first + 1], "counted: {counted}");
    }
}

/// A wrong duration must not keep a live playlist from being loaded.
#[test]
fn durations_do_not_delay_the_next_load_for_long() {
    // Three times the stated target duration is believed.
    for (stated, seconds) in [("", [10, 10, 10]), ("#EXT-X-TARGETDURATION:4\n", [10, 6, 6])] {
        let list = media(&format!("#EXTM3U\n{stated}#EXTINF:3600,\na\n#EXTINF:9999,\nb\n"));
        let mut cursor = PlaylistCursor::new(true);
        for expected in seconds {
            cursor.on_playlist_loaded(&list);
            while let CursorStep::FetchSegment(..) = cursor.advance_to_next_step(&list) {}
            assert_eq!(
                cursor.advance_to_next_step(&list),
                CursorStep::ReloadPlaylist(Duration::from_secs(expected)),
                "{stated}"
            );
        }
    }
}

#[test]
fn a_segment_is_taken_back_once() {
    let mut cursor = PlaylistCursor::new(true);
    assert!(!cursor.return_last_segment());
    let list = live(10, 5);
    cursor.on_playlist_loaded(&list);
    assert_eq!(fetched(cursor.advance_to_next_step(&list)).0, 14);
    assert!(cursor.return_last_segment());
    assert_eq!(fetched(cursor.advance_to_next_step(&list)).0, 14);
    assert!(!cursor.return_last_segment());
    assert!(matches!(
        cursor.advance_to_next_step(&list),
        CursorStep::ReloadPlaylist(_)
    ));
}

/// The servers of redundant variants count from different numbers.
#[test]
fn dates_tell_where_another_server_goes_on() {
    let dated = |first: u64, second: u64| {
        let mut text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MEDIA-SEQUENCE:{first}\n");
        for index in 0..4 {
            let date = format!("2026-01-01T00:00:{:02}.100Z", second + index * 4);
            text += &format!("#EXT-X-PROGRAM-DATE-TIME:{date}\n#EXTINF:4,\n{}.ts\n", first + index);
        }
        media(&text)
    };
    // A number that is listed, and one that is not.
    for other in [11, 900] {
        let mut cursor = PlaylistCursor::new(true);
        let list = dated(10, 0);
        cursor.on_playlist_loaded(&list);
        assert_eq!(fetched(cursor.advance_to_next_step(&list)), (13, 0));
        let twin = dated(other, 8);
        cursor.continue_or_restart_on_other_server(&twin);
        assert_eq!(fetched(cursor.advance_to_next_step(&twin)), (other + 2, 0), "at 16 s");
    }
    // The same numbers, and dates that do not meet.
    for second in [8, 41] {
        let mut cursor = PlaylistCursor::new(true);
        let list = dated(10, 0);
        cursor.on_playlist_loaded(&list);
        assert_eq!(fetched(cursor.advance_to_next_step(&list)), (13, 0));
        let twin = dated(12, second);
        cursor.continue_or_restart_on_other_server(&twin);
        assert_eq!(fetched(cursor.advance_to_next_step(&twin)), (14, 0));
    }
}
