//! Local ICE username fragments. The first character is the index of the shard, so that a connectivity check can be passed
//! on to its session from any shard.

use crate::hub::stream::ShardIndex;
use crate::sdp::negotiation_result::IceCredentials;

/// ice-chars (RFC 8839 §5.4) without `+` and `/`, which a client could take for separators.
const ALPHANUMERIC_ICE_CHARS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Maximum number of shards that the first character can encode.
pub const MAX_SHARDS: usize = ALPHANUMERIC_ICE_CHARS.len();

/// Number of random characters: 65 bits. RFC 8839 §5.4 requires at least 4 characters (24 bits).
const UFRAG_RANDOM_LEN: usize = 11;

/// Length of the password. RFC 8839 §5.4 requires at least 22 characters (128 bits).
const PWD_LEN: usize = 24;

/// Makes credentials for a session on this shard.
pub fn generate_ice_credentials(shard: ShardIndex, random: &mut dyn FnMut() -> u32) -> IceCredentials {
    let mut text = |length: usize| -> String { (0..length).map(|_| alphanumeric_ice_char(random())).collect() };
    let mut ufrag = String::with_capacity(1 + UFRAG_RANDOM_LEN);
    ufrag.push(alphanumeric_ice_char(u32::from(shard.0)));
    ufrag.push_str(&text(UFRAG_RANDOM_LEN));
    IceCredentials {
        ufrag,
        pwd: text(PWD_LEN),
    }
}

fn alphanumeric_ice_char(number: u32) -> char {
    ALPHANUMERIC_ICE_CHARS
        .get(number as usize % ALPHANUMERIC_ICE_CHARS.len())
        .copied()
        .map_or('0', char::from)
}

/// Returns the shard that a username fragment names.
pub fn shard_of_ufrag(ufrag: &str) -> Option<ShardIndex> {
    let first = ufrag.bytes().next()?;
    ALPHANUMERIC_ICE_CHARS
        .iter()
        .position(|c| *c == first)
        .map(|index| ShardIndex(index as u16))
}
