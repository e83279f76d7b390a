//! What the fuzz targets share: how an input is split, and virtual time.

use std::sync::OnceLock;
use std::time::Instant;

/// Splits an input into packets, each behind its length in two bytes (big-endian), as in `tests/data/rtp`. The last one
/// may be cut off.
pub fn packets(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (length, body) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length)).min(body.len());
        let (packet, next) = body.split_at(length);
        rest = next;
        Some(packet)
    })
}

/// An instant to count from. Only differences matter, so that every run of an input is the same.
pub fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    *ORIGIN.get_or_init(Instant::now)
}

/// Numbers for SSRCs and transaction ids: 1, 2, 3 and so on.
pub fn counter() -> impl FnMut() -> u32 {
    let mut last = 0;
    move || {
        last += 1;
        last
    }
}
