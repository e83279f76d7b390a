//! Our ICE username fragments: the first character names the shard, so that a check finds its session wherever the
//! kernel delivers it.

use crate::hub::stream::ShardIndex;
use crate::sdp::plan::IceCredentials;

/// ice-chars without `+` and `/` (RFC 8839 §5.4): nothing that a client could mistake for a separator.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Shards that the first character can name.
pub const MAX_SHARDS: usize = ALPHABET.len();

/// RFC 8839 §5.4 wants at least 4 characters (24 bits); 11 random ones are 65 bits.
const UFRAG_RANDOM: usize = 11;

/// RFC 8839 §5.4 wants at least 22 characters (128 bits).
const PWD: usize = 24;

/// Makes credentials for a session on this shard.
pub fn credentials(shard: ShardIndex, random: &mut dyn FnMut() -> u32) -> IceCredentials {
    let mut text = |length: usize| -> String { (0..length).map(|_| letter(random())).collect() };
    let mut ufrag = String::with_capacity(1 + UFRAG_RANDOM);
    ufrag.push(letter(u32::from(shard.0)));
    ufrag.push_str(&text(UFRAG_RANDOM));
    IceCredentials { ufrag, pwd: text(PWD) }
}

fn letter(number: u32) -> char {
    ALPHABET
        .get(number as usize % ALPHABET.len())
        .copied()
        .map_or('0', char::from)
}

/// The shard of the session that these credentials are of.
pub fn shard_of(ufrag: &str) -> Option<ShardIndex> {
    let first = ufrag.bytes().next()?;
    ALPHABET
        .iter()
        .position(|c| *c == first)
        .map(|index| ShardIndex(index as u16))
}
