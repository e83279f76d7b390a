//! A playlist of an HLS origin, and the steps of a source that loads it again and again.
//!
//! A playlist takes memory in proportion to its text; its segments are numbered one after the other. A cursor fetches
//! only segments that are listed, and waits before it loads a playlist again.
#![no_main]

use millstream::sources::hls::{
    cursor::{Cursor, Step},
    playlist::{Media, Playlist},
};

/// Loads of a playlist, and steps after each.
const LOADS: usize = 4;
const STEPS: usize = 64;

libfuzzer_sys::fuzz_target!(|text: &str| {
    // Parts that follow each other are the playlist at different times.
    let parsed: Vec<Playlist> = text
        .split('\u{1}')
        .filter_map(|text| Playlist::parse(text).ok().inspect(|playlist| check(text, playlist)))
        .collect();
    for repeats in [false, true] {
        let mut cursor = Cursor::new(repeats);
        for playlist in parsed.iter().take(LOADS) {
            if let Playlist::Media(media) = playlist {
                follow(&mut cursor, media);
            }
        }
    }
});

fn check(text: &str, playlist: &Playlist) {
    match playlist {
        Playlist::Multivariant(list) => {
            assert!(!list.variants.is_empty());
            let uris = list
                .variants
                .iter()
                .map(|variant| variant.uri.len() + variant.codecs.as_ref().map_or(0, String::len));
            assert!(uris.sum::<usize>() <= text.len());
            assert!(list.audio.len() <= text.len() / 10);
        }
        Playlist::Media(media) => {
            let listed = || media.segments.iter().chain(&media.open);
            let uris = listed()
                .map(|segment| segment.uri.len() + segment.parts.iter().map(|part| part.uri.len()).sum::<usize>());
            assert!(uris.sum::<usize>() <= text.len());
            for pair in media.segments.windows(2) {
                assert_eq!(pair[1].number, pair[0].number.saturating_add(1));
                assert!(pair[1].discontinuities >= pair[0].discontinuities);
            }
            if let Some(last) = media.segments.last() {
                assert_eq!(media.next, last.number.saturating_add(1));
            }
            if let Some(open) = &media.open {
                assert_eq!(open.number, media.next);
                assert!(!open.parts.is_empty() && open.uri.is_empty());
            }
            let parts = listed()
                .flat_map(|segment| &segment.parts)
                .filter_map(|part| part.range);
            for range in listed().filter_map(|segment| segment.range).chain(parts) {
                assert!(range.begin.checked_add(range.length).is_some(), "{range:?}");
            }
            assert!(media.segments.iter().all(|segment| segment.duration.as_secs() <= 3_600));
        }
    }
}

fn follow(cursor: &mut Cursor, media: &Media) {
    cursor.loaded(media);
    for _ in 0..STEPS {
        match cursor.step(media) {
            Step::Fetch(segment, _) => {
                let mut listed = media.segments.iter().chain(&media.open);
                let found = listed.find(|listed| listed.number == segment.number).expect("listed");
                match cursor.next_part().checked_sub(1) {
                    Some(part) => {
                        assert_eq!(found.parts[part].uri, segment.uri);
                        assert_eq!(cursor.next_number(), Some(segment.number));
                    }
                    None => {
                        assert_eq!(found.uri, segment.uri);
                        assert_eq!(cursor.next_number(), Some(segment.number.saturating_add(1)));
                    }
                }
            }
            Step::Reload(wait) => {
                assert!(wait.as_millis() >= 300, "{wait:?}");
                return;
            }
            Step::Ended => {
                assert!(media.has_ended);
                return;
            }
        }
    }
}
