//! Incoming SRTP: roll-over counters, replay protection and decryption (RFC 3711 §3.3).

use bytes::Bytes;

use super::replay::ReplayProtection;
use super::srtp::RtpCipher;
use crate::media::rtp::ParsedRtpHeader;

/// Decrypts the RTP packets of one peer.
pub(crate) struct SrtpDecryptor {
    cipher: RtpCipher,
    replay: ReplayProtection,
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SrtpRejection {
    Malformed,
    Forged,
    Replayed,
}

impl SrtpDecryptor {
    pub(crate) fn new(cipher: RtpCipher) -> Self {
        Self {
            cipher,
            replay: ReplayProtection::default(),
        }
    }

    /// Decrypts a packet in place. Its bytes are overwritten even on failure.
    ///
    /// # Errors
    ///
    /// [`SrtpRejection`]; the packet leaves no state behind.
    pub(crate) fn decrypt_in_place_and_copy(&mut self, packet: &mut [u8]) -> Result<Bytes, SrtpRejection> {
        let header = ParsedRtpHeader::parse_srtp_header(packet).map_err(|_| SrtpRejection::Malformed)?;
        let (ssrc, seq, header_len) = (header.ssrc, header.seq, header.payload_range().start);
        let index = self.replay.packet_index(ssrc, seq);
        if !self.replay.is_new_packet(ssrc, index) {
            return Err(SrtpRejection::Replayed);
        }
        let length = self
            .cipher
            .decrypt(packet, header_len, ssrc, index)
            .map_err(|_| SrtpRejection::Forged)?;
        self.replay.mark_received(ssrc, index);
        Ok(Bytes::copy_from_slice(packet.get(..length).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Ssrc;
    use crate::session::srtp::SrtpProfile;
    use rtc_crypto::RTCCryptoProvider as _;
    use rtc_crypto::providers::AwsLcRsProvider;

    fn cipher(profile: SrtpProfile) -> RtpCipher {
        let salt = match profile {
            SrtpProfile::AeadAes128Gcm => vec![5; 12],
            SrtpProfile::Aes128CmSha1_80 => vec![5; 14],
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
        cipher.encrypt(&mut packet, 12, Ssrc(ssrc), seq).expect("seals");
        packet
    }

    #[test]
    fn every_packet_is_taken_once_in_any_order_across_the_roll_over() {
        for profile in [SrtpProfile::AeadAes128Gcm, SrtpProfile::Aes128CmSha1_80] {
            let (mut ours, mut receiver) = (cipher(profile), SrtpDecryptor::new(cipher(profile)));
            let mut order: Vec<u64> = (64_000..68_000).collect();
            for pair in order[1..].chunks_exact_mut(7) {
                pair.reverse();
            }
            for seq in &order {
                let mut packet = sealed(&mut ours, 9, *seq);
                let opened = receiver
                    .decrypt_in_place_and_copy(&mut packet)
                    .unwrap_or_else(|e| panic!("{profile:?} {seq}: {e:?}"));
                assert_eq!(opened[12..], seq.to_be_bytes());
            }
            for seq in order.iter().rev().step_by(50) {
                let mut packet = sealed(&mut ours, 9, *seq);
                assert_eq!(
                    receiver.decrypt_in_place_and_copy(&mut packet),
                    Err(SrtpRejection::Replayed),
                    "{seq}"
                );
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused_and_moves_nothing() {
        let (mut ours, mut receiver) = (
            cipher(SrtpProfile::AeadAes128Gcm),
            SrtpDecryptor::new(cipher(SrtpProfile::AeadAes128Gcm)),
        );
        receiver
            .decrypt_in_place_and_copy(&mut sealed(&mut ours, 9, 1))
            .expect("authentic");
        let good = sealed(&mut ours, 9, 2);
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[position] ^= 1 << bit;
                assert!(
                    receiver.decrypt_in_place_and_copy(&mut bad).is_err(),
                    "{position}.{bit}"
                );
            }
        }
        assert!(receiver.decrypt_in_place_and_copy(&mut good.clone()).is_ok());
    }

    /// A peer may change its SSRC all the time; none of its packets is taken twice nevertheless.

    #[test]
    fn packets_of_many_ssrcs_are_not_replayed() {
        let (mut ours, mut receiver) = (
            cipher(SrtpProfile::AeadAes128Gcm),
            SrtpDecryptor::new(cipher(SrtpProfile::AeadAes128Gcm)),
        );
        let recorded: Vec<Vec<u8>> = (0..100).map(|ssrc| sealed(&mut ours, ssrc, 1)).collect();
        for (packet, number) in recorded.iter().zip(7..) {
            receiver
                .decrypt_in_place_and_copy(&mut packet.clone())
                .expect("authentic");
            receiver
                .decrypt_in_place_and_copy(&mut sealed(&mut ours, 1_000, number))
                .expect("in use");
        }
        for packet in &recorded {
            assert_eq!(
                receiver.decrypt_in_place_and_copy(&mut packet.clone()),
                Err(SrtpRejection::Replayed)
            );
        }
        assert_eq!(
            receiver.decrypt_in_place_and_copy(&mut sealed(&mut ours, 1_000, 7)),
            Err(SrtpRejection::Replayed),
            "of one in use"
        );
    }
}
