//! A playlist of an HLS origin, and the steps of a source that loads it again and again.
//!
//! A playlist takes memory in proportion to its text; its segments are numbered one after the other. A cursor fetches
//! only segments that are listed, and waits before it loads a playlist again.
#![no_main]

use millstream::sources::hls::{
    cursor::{CursorStep, PlaylistCursor},
    playlist::{MediaPlaylist, Playlist},
};

/// Maximum length of what variables are replaced by.
const MAX_REPLACED_BYTES: usize = 16 << 20;

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
        let mut cursor = PlaylistCursor::new(repeats);
        for playlist in parsed.iter().take(LOADS) {
            if let Playlist::Media(media) = playlist {
                follow(&mut cursor, media);
            }
        }
    }
});

fn check(text: &str, playlist: &Playlist) {
    // Variables may be replaced by longer texts.
    let replaced = if text.contains("{$") { MAX_REPLACED_BYTES } else { 0 };
    match playlist {
        Playlist::Multivariant(list) => {
            assert!(!list.variants.is_empty());
            let uris = list
                .variants
                .iter()
                .map(|variant| variant.uri.len() + variant.codecs.as_ref().map_or(0, String::len));
            assert!(uris.sum::<usize>() <= text.len() + replaced);
            assert!(list.audio_renditions.len() <= text.len() / 10);
        }
        Playlist::Media(media) => {
            let listed = || media.segments.iter().chain(&media.segment_in_progress);
            let uris = listed()
                .map(|segment| segment.uri.len() + segment.parts.iter().map(|part| part.uri.len()).sum::<usize>());
            assert!(uris.sum::<usize>() <= text.len() + replaced);
            for pair in media.segments.windows(2) {
                assert_eq!(
                    pair[1].media_sequence_number,
                    pair[0].media_sequence_number.saturating_add(1)
                );
                assert!(pair[1].discontinuity_sequence >= pair[0].discontinuity_sequence);
            }
            if let Some(last) = media.segments.last() {
                assert_eq!(media.next_segment_number, last.media_sequence_number.saturating_add(1));
            }
            if let Some(open) = &media.segment_in_progress {
                assert_eq!(open.media_sequence_number, media.next_segment_number);
                assert!(!open.parts.is_empty() && open.uri.is_empty());
            }
            let parts = listed()
                .flat_map(|segment| &segment.parts)
                .filter_map(|part| part.byte_range);
            for range in listed().filter_map(|segment| segment.byte_range).chain(parts) {
                assert!(range.begin.checked_add(range.length).is_some(), "{range:?}");
            }
            assert!(media.segments.iter().all(|segment| segment.duration.as_secs() <= 3_600));
        }
    }
}

fn follow(cursor: &mut PlaylistCursor, media: &MediaPlaylist) {
    cursor.on_playlist_loaded(media);
    for _ in 0..STEPS {
        match cursor.advance_to_next_step(media) {
            CursorStep::FetchSegment(segment, _) => {
                let mut listed = media.segments.iter().chain(&media.segment_in_progress);
                let found = listed
                    .find(|listed| listed.media_sequence_number == segment.media_sequence_number)
                    .expect("listed");
                match cursor.next_part_index().checked_sub(1) {
                    Some(part) => {
                        assert_eq!(found.parts[part].uri, segment.uri);
                        assert_eq!(cursor.next_segment_number(), Some(segment.media_sequence_number));
                    }
                    None => {
                        assert_eq!(found.uri, segment.uri);
                        assert_eq!(
                            cursor.next_segment_number(),
                            Some(segment.media_sequence_number.saturating_add(1))
                        );
                    }
                }
            }
            CursorStep::ReloadPlaylist(wait) => {
                assert!(wait.as_millis() >= 300, "{wait:?}");
                return;
            }
            CursorStep::Ended => {
                assert!(media.has_ended);
                return;
            }
        }
    }
}
