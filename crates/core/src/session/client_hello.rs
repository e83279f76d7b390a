//! The ClientHello of a peer, which may come in fragments: what it offers decides our configuration.

use super::dtls_filter::{MAX_HANDSHAKE_MESSAGE_LEN, handshake_fragments};

/// Maximum number of datagrams buffered for one ClientHello.
pub(super) const MAX_DATAGRAMS_BUFFERED_FOR_HELLO: usize = 16;

const CLIENT_HELLO: u8 = 1;

/// A ClientHello being reassembled, and the datagrams that carried its fragments.
#[derive(Default)]
pub(super) struct ClientHelloAssembler {
    body: Vec<u8>,
    received_ranges: Vec<(usize, usize)>,
    pub(super) buffered_datagrams: Vec<Vec<u8>>,
}

impl ClientHelloAssembler {
    /// Adds the records of a datagram. Once the ClientHello is complete, returns whether it offers AES-GCM.
    pub(super) fn add_records_and_check_gcm_offer(&mut self, records: Vec<u8>) -> Option<bool> {
        for fragment in handshake_fragments(&records)
            .into_iter()
            .filter(|f| f.kind == CLIENT_HELLO)
        {
            let end = fragment.offset + fragment.body.len();
            if fragment.message_len > MAX_HANDSHAKE_MESSAGE_LEN || end > fragment.message_len {
                continue;
            }
            self.body.resize(fragment.message_len, 0);
            if let Some(target) = self.body.get_mut(fragment.offset..end) {
                target.copy_from_slice(fragment.body);
                self.received_ranges.push((fragment.offset, end));
            }
        }
        if self.buffered_datagrams.len() < MAX_DATAGRAMS_BUFFERED_FOR_HELLO {
            self.buffered_datagrams.push(records);
        }
        self.is_complete().then(|| offers_gcm_srtp_profile(&self.body))
    }

    fn is_complete(&mut self) -> bool {
        self.received_ranges.sort_unstable();
        let reached = self.received_ranges.iter().fold(
            0,
            |reached, (from, to)| if *from <= reached { reached.max(*to) } else { reached },
        );
        !self.body.is_empty() && reached == self.body.len()
    }
}

/// Reads the use_srtp extension (14) of a ClientHello (RFC 5246 §7.4.1.2, RFC 5764 §4.1.1). A ClientHello that cannot
/// be read offers nothing; the stack rejects it with an alert.
fn offers_gcm_srtp_profile(hello: &[u8]) -> bool {
    offered_srtp_profiles(hello)
        .unwrap_or_default()
        .chunks_exact(2)
        .any(|p| p == [0x00, 0x07])
}

fn offered_srtp_profiles(hello: &[u8]) -> Option<&[u8]> {
    // Version and random, session id, cookie, cipher suites, compression methods.
    let rest = hello.get(34..)?;
    let rest = split_length_prefixed::<1>(rest)?.1;
    let rest = split_length_prefixed::<1>(rest)?.1;
    let rest = split_length_prefixed::<2>(rest)?.1;
    let rest = split_length_prefixed::<1>(rest)?.1;
    let mut extensions = split_length_prefixed::<2>(rest)?.0;
    while let Some((kind, rest)) = extensions.split_first_chunk::<2>() {
        let (body, rest) = split_length_prefixed::<2>(rest)?;
        if *kind == [0, 14] {
            return Some(split_length_prefixed::<2>(body)?.0);
        }
        extensions = rest;
    }
    None
}

/// Splits off a vector whose length is in its first `N` bytes.
fn split_length_prefixed<const N: usize>(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<N>()?;
    rest.split_at_checked(length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}
