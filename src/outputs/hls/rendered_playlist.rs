//! Playlists that are rendered once per change for all requests, whatever their query.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::rendition::{Msn, RenditionRole};

/// Stands for the query while a playlist is rendered. No stream name, number or codec string contains it.
pub const QUERY_PLACEHOLDER: &str = "\u{1}";

/// A playlist, and where the query of a request is inserted: after each of its URLs.
#[derive(Debug)]
pub struct RenderedPlaylist {
    /// The playlist without a query.
    text: Bytes,
    /// Ends of its URLs in `text`, in ascending order.
    url_ends: Vec<usize>,
}

impl RenderedPlaylist {
    /// Takes a playlist that was rendered with [`QUERY_PLACEHOLDER`].
    pub fn new(rendered: &str) -> Self {
        let mut text = BytesMut::with_capacity(rendered.len());
        let mut url_ends = Vec::new();
        for piece in rendered.split_inclusive(QUERY_PLACEHOLDER) {
            let stripped = piece.strip_suffix(QUERY_PLACEHOLDER);
            text.put_slice(stripped.unwrap_or(piece).as_bytes());
            if stripped.is_some() {
                url_ends.push(text.len());
            }
        }
        Self {
            text: text.freeze(),
            url_ends,
        }
    }

    /// Returns the playlist with a query, which is empty or begins with `?`.
    pub fn with_query(&self, query: &str) -> Bytes {
        if query.is_empty() {
            return self.text.clone();
        }
        let mut out = BytesMut::with_capacity(self.text.len() + self.url_ends.len() * query.len());
        let mut written = 0;
        for end in &self.url_ends {
            out.put_slice(self.text.get(written..*end).unwrap_or_default());
            out.put_slice(query.as_bytes());
            written = *end;
        }
        out.put_slice(self.text.get(written..).unwrap_or_default());
        out.freeze()
    }
}

/// Which playlist of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PlaylistKey {
    Media {
        role: RenditionRole,
        skip: bool,
        segment_without_counterpart: Option<Msn>,
    },
    /// `listed_roles` has one bit for each [`RenditionRole`], in the order of [`RenditionRole::ALL_ROLES`].
    Multivariant { listed_roles: u8 },
}

/// The playlists of a stream that were requested since its last change.
#[derive(Debug, Default)]
pub(super) struct PlaylistCache(HashMap<PlaylistKey, Arc<RenderedPlaylist>>);

impl PlaylistCache {
    /// Forgets everything: the stream has changed.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the cached playlist, or what `render` returns, which is kept.
    pub(super) fn get_or_render(
        &mut self,
        key: PlaylistKey,
        render: impl FnOnce() -> Option<String>,
    ) -> Option<Arc<RenderedPlaylist>> {
        if let Some(found) = self.0.get(&key) {
            return Some(found.clone());
        }
        let rendered = Arc::new(RenderedPlaylist::new(&render()?));
        self.0.insert(key, rendered.clone());
        Some(rendered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: PlaylistKey = PlaylistKey::Multivariant { listed_roles: 3 };

    #[test]
    fn the_query_is_inserted_after_each_url() {
        let rendered = RenderedPlaylist::new("#A:URI=\"a.mp4\u{1}\"\nb.m4s\u{1}\n#END\n");
        assert_eq!(rendered.with_query(""), "#A:URI=\"a.mp4\"\nb.m4s\n#END\n");
        assert_eq!(
            rendered.with_query("?token=x"),
            "#A:URI=\"a.mp4?token=x\"\nb.m4s?token=x\n#END\n"
        );
        let plain = RenderedPlaylist::new("#END\n");
        assert_eq!(plain.with_query("?token=x"), "#END\n");
    }

    #[test]
    fn a_playlist_is_rendered_once_until_the_stream_changes() {
        let mut cache = PlaylistCache::default();
        let mut render_count = 0;
        for _ in 0..3 {
            let rendered = cache.get_or_render(KEY, || {
                render_count += 1;
                Some(format!("a{QUERY_PLACEHOLDER}"))
            });
            assert_eq!(rendered.expect("rendered").with_query("?token=x"), "a?token=x");
        }
        assert_eq!(render_count, 1);
        cache.clear();
        assert!(cache.get_or_render(KEY, || None).is_none());
        let rendered = cache.get_or_render(KEY, || Some("b".into()));
        assert_eq!(rendered.expect("a refused rendering is not kept").with_query(""), "b");
    }
}
