//! Incoming SRTP: roll-over counters, replay windows and decryption (RFC 3711 §3.3).

use bytes::Bytes;

use super::srtp::RtpCipher;
use crate::media::Ssrc;
use crate::media::rtp::{Header, extend_seq};

/// Decrypts the RTP packets of one peer.
pub struct RtpReceiver {
    cipher: RtpCipher,
    sources: Vec<Source>,
    /// Number of authentic packets so far.
    packets: u64,
}

struct Source {
    ssrc: Ssrc,
    /// Number of the packet of this peer that was its last one.
    last_packet: u64,
    window: ReplayWindow,
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Malformed,
    Forged,
    Replayed,
}

/// Maximum number of SSRCs of one peer: three simulcast layers with their retransmissions, audio, and room to spare. An
/// SSRC is only remembered once a packet of it was authentic; the one that is silent for the longest time is forgotten then.
pub const MAX_SOURCES: usize = 32;

impl RtpReceiver {
    pub fn new(cipher: RtpCipher) -> Self {
        Self {
            cipher,
            sources: Vec::new(),
            packets: 0,
        }
    }

    /// Decrypts a packet in place. Its bytes are overwritten even on failure.
    ///
    /// # Errors
    ///
    /// [`Refused`]; the packet leaves no state behind.
    pub fn open(&mut self, packet: &mut [u8]) -> Result<Bytes, Refused> {
        let header = Header::parse_sealed(packet).map_err(|_| Refused::Malformed)?;
        let (ssrc, seq, header_len) = (header.ssrc, header.seq, header.payload().start);
        let existing = self.sources.iter().position(|s| s.ssrc == ssrc);
        let index = match existing.and_then(|at| self.sources.get(at)) {
            Some(source) => {
                let index = source.window.extend(seq);
                if !source.window.is_new(index) {
                    return Err(Refused::Replayed);
                }
                index
            }
            // RFC 3711 §3.3.1: the roll-over counter starts at zero.
            None => u64::from(seq),
        };
        let length = self
            .cipher
            .open(packet, header_len, ssrc, index)
            .map_err(|_| Refused::Forged)?;
        self.packets += 1;
        match existing.and_then(|at| self.sources.get_mut(at)) {
            Some(source) => {
                source.window.accept(index);
                source.last_packet = self.packets;
            }
            None => self.remember(ssrc, index),
        }
        Ok(Bytes::copy_from_slice(packet.get(..length).unwrap_or_default()))
    }

    fn remember(&mut self, ssrc: Ssrc, index: u64) {
        if self.sources.len() >= MAX_SOURCES {
            let oldest = (0..self.sources.len()).min_by_key(|at| self.sources.get(*at).map(|s| s.last_packet));
            oldest.map(|at| self.sources.swap_remove(at));
        }
        self.sources.push(Source {
            ssrc,
            last_packet: self.packets,
            window: ReplayWindow::starting_at(index),
        });
    }
}

/// Records which of the last [`WINDOW`] packet indices were received.
struct ReplayWindow {
    highest: u64,
    /// Bit `i % WINDOW` represents index `i`.
    bits: [u64; WINDOW as usize / 64],
}

/// OBS retransmits on the original SSRC and sequence number, up to seconds later. RFC 3711 requires at least 64.
const WINDOW: u64 = 2_048;

impl ReplayWindow {
    fn starting_at(index: u64) -> Self {
        let mut window = Self {
            highest: index,
            bits: [0; WINDOW as usize / 64],
        };
        window.set(index, true);
        window
    }

    fn extend(&self, seq: u16) -> u64 {
        extend_seq(self.highest, seq)
    }

    fn is_new(&self, index: u64) -> bool {
        index > self.highest || (index + WINDOW > self.highest && !self.has(index))
    }

    fn accept(&mut self, index: u64) {
        if index > self.highest {
            let cleared = (index - self.highest).min(WINDOW);
            for ahead in 1..=cleared {
                self.set(index - cleared + ahead, false);
            }
            self.highest = index;
        }
        self.set(index, true);
    }

    fn bit(index: u64) -> (usize, u64) {
        let bit = index % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn has(&self, index: u64) -> bool {
        let (word, mask) = Self::bit(index);
        self.bits.get(word).is_some_and(|bits| bits & mask != 0)
    }

    fn set(&mut self, index: u64, value: bool) {
        let (word, mask) = Self::bit(index);
        if let Some(bits) = self.bits.get_mut(word) {
            if value { *bits |= mask } else { *bits &= !mask }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::srtp::Profile;
    use rtc_crypto::RTCCryptoProvider as _;
    use rtc_crypto::providers::AwsLcRsProvider;

    fn cipher(profile: Profile) -> RtpCipher {
        let salt = match profile {
            Profile::AeadAes128Gcm => vec![5; 12],
            Profile::Aes128CmSha1_80 => vec![5; 14],
        };
        RtpCipher::new(profile, &[3; 16], &salt, AwsLcRsProvider::new().crypto()).expect("lengths fit")
    }

    fn sealed(cipher: &mut RtpCipher, ssrc: u32, seq: u64) -> Vec<u8> {
        let mut packet = vec![0x80, 96];
        packet.extend_from_slice(&(seq as u16).to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0, 1]);
        packet.extend_from_slice(&ssrc.to_be_bytes());
        packet.extend_from_slice(&seq.to_be_bytes());
        packet.resize(packet.len() + cipher.tag_len(), 0);
        cipher.seal(&mut packet, 12, Ssrc(ssrc), seq).expect("seals");
        packet
    }

    #[test]
    fn every_packet_is_taken_once_in_any_order_across_the_roll_over() {
        for profile in [Profile::AeadAes128Gcm, Profile::Aes128CmSha1_80] {
            let (mut ours, mut receiver) = (cipher(profile), RtpReceiver::new(cipher(profile)));
            let mut order: Vec<u64> = (64_000..68_000).collect();
            for pair in order[1..].chunks_exact_mut(7) {
                pair.reverse();
            }
            for seq in &order {
                let mut packet = sealed(&mut ours, 9, *seq);
                let opened = receiver
                    .open(&mut packet)
                    .unwrap_or_else(|e| panic!("{profile:?} {seq}: {e:?}"));
                assert_eq!(opened[12..], seq.to_be_bytes());
            }
            for seq in order.iter().rev().step_by(50) {
                let mut packet = sealed(&mut ours, 9, *seq);
                assert_eq!(receiver.open(&mut packet), Err(Refused::Replayed), "{seq}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused_and_moves_nothing() {
        let (mut ours, mut receiver) = (
            cipher(Profile::AeadAes128Gcm),
            RtpReceiver::new(cipher(Profile::AeadAes128Gcm)),
        );
        receiver.open(&mut sealed(&mut ours, 9, 1)).expect("authentic");
        let good = sealed(&mut ours, 9, 2);
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[position] ^= 1 << bit;
                assert!(receiver.open(&mut bad).is_err(), "{position}.{bit}");
            }
        }
        assert!(receiver.open(&mut good.clone()).is_ok());
        assert_eq!(receiver.sources.len(), 1);
    }

    #[test]
    fn a_peer_has_a_bounded_number_of_sources_and_the_oldest_silent_one_is_forgotten() {
        let (mut ours, mut receiver) = (
            cipher(Profile::AeadAes128Gcm),
            RtpReceiver::new(cipher(Profile::AeadAes128Gcm)),
        );
        for ssrc in 0..100 {
            receiver.open(&mut sealed(&mut ours, ssrc, 1)).expect("authentic");
            let number = u64::from(ssrc) + 7;
            receiver.open(&mut sealed(&mut ours, 1_000, number)).expect("in use");
            assert!(receiver.sources.len() <= MAX_SOURCES);
        }
        assert_eq!(
            receiver.open(&mut sealed(&mut ours, 1_000, 7)),
            Err(Refused::Replayed),
            "one in use is never forgotten"
        );
    }
}
