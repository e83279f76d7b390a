//! The clock of the shards, which know time as an argument.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the shell that gives time to the shards")]
pub(super) fn now() -> Instant {
    Instant::now()
}
