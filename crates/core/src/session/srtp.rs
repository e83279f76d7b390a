//! SRTP of one session. RTP is encrypted and decrypted in place, without allocation; RTCP goes through `rtc-srtp`.
//!
//! The cipher holds only keys. The caller passes the extended sequence number, from which the roll-over counter follows
//! (RFC 3711 §3.3.1), so no counter can get out of step. The caller is responsible for invariant 6.

use rtc_crypto::{
    AeadAlgorithm, AeadCipher, BlockCipherAlgorithm, CryptoError, HmacAlgorithm, Mac, RTCCrypto, StreamCipher,
    StreamCipherAlgorithm,
};

use crate::media::Ssrc;

/// Length of the longest authentication tag of the supported profiles, in bytes.
pub(crate) const MAX_AUTH_TAG_LEN: usize = 16;

/// Key derivation labels (RFC 3711 §4.3.1).
const KDF_LABEL_ENCRYPTION: u8 = 0;
const KDF_LABEL_AUTHENTICATION: u8 = 1;
const KDF_LABEL_SALT: u8 = 2;

/// The SRTP protection profiles we negotiate (RFC 5764 §4.1.2, RFC 7714 §14.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SrtpProfile {
    AeadAes128Gcm,
    Aes128CmSha1_80,
}

/// Why a packet could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SrtpError {
    #[error("the SRTP packet is too short for its header and authentication tag")]
    TooShort,
    #[error("the SRTP authentication tag does not match")]
    Forged,
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

/// Encrypts or decrypts the RTP packets of one direction of one session.
pub enum RtpCipher {
    /// RFC 7714.
    Gcm {
        cipher: Box<dyn AeadCipher>,
        salt: [u8; 12],
    },
    /// RFC 3711 with HMAC-SHA1-80; about six times as expensive.
    Cm {
        cipher: Box<dyn StreamCipher>,
        mac: Box<dyn Mac>,
        salt: [u8; 14],
    },
}

impl RtpCipher {
    /// Derives the session keys from the master key (16 bytes) and salt (12 bytes for GCM, 14 for CM).
    ///
    /// # Errors
    ///
    /// [`CryptoError`] when a length is wrong or the library does not support the algorithm.
    pub fn new(profile: SrtpProfile, key: &[u8], salt: &[u8], crypto: &dyn RTCCrypto) -> Result<Self, CryptoError> {
        let encryption = derive_session_key(crypto, key, salt, KDF_LABEL_ENCRYPTION, 16)?;
        Ok(match profile {
            SrtpProfile::AeadAes128Gcm => Self::Gcm {
                cipher: crypto.new_aead(AeadAlgorithm::Aes128Gcm, &encryption)?,
                salt: truncate_or_zero_pad_to_array(&derive_session_key(crypto, key, salt, KDF_LABEL_SALT, 12)?),
            },
            SrtpProfile::Aes128CmSha1_80 => Self::Cm {
                cipher: crypto.new_stream_cipher(StreamCipherAlgorithm::Aes128Ctr, &encryption)?,
                mac: crypto.new_hmac(
                    HmacAlgorithm::Sha1,
                    &derive_session_key(crypto, key, salt, KDF_LABEL_AUTHENTICATION, 20)?,
                )?,
                salt: truncate_or_zero_pad_to_array(&derive_session_key(crypto, key, salt, KDF_LABEL_SALT, 14)?),
            },
        })
    }

    /// Returns the length of the authentication tag in bytes.
    pub(crate) fn tag_len(&self) -> usize {
        match self {
            Self::Gcm { .. } => 16,
            Self::Cm { .. } => 10,
        }
    }

    /// Seals a packet in place. `packet` is the RTP header of `header_len` bytes, the payload, and room for the tag.
    /// `seq` is the extended sequence number; its low 16 bits are those in the header.
    ///
    /// # Errors
    ///
    /// [`SrtpError`]; the packet must not be sent.
    pub fn encrypt(&mut self, packet: &mut [u8], header_len: usize, ssrc: Ssrc, seq: u64) -> Result<(), SrtpError> {
        let tag_at = packet.len().checked_sub(self.tag_len()).ok_or(SrtpError::TooShort)?;
        let (sealed, tag) = packet.split_at_mut(tag_at);
        if header_len > sealed.len() {
            return Err(SrtpError::TooShort);
        }
        match self {
            Self::Gcm { cipher, salt } => {
                let (header, payload) = sealed.split_at_mut(header_len);
                Ok(cipher.seal_in_place(&gcm_nonce(salt, ssrc, seq), header, payload, tag)?)
            }
            Self::Cm { cipher, mac, salt } => {
                cipher.apply_keystream(&aes_cm_iv(salt, ssrc, seq), &mut sealed[header_len..])?;
                let roc = ((seq >> 16) as u32).to_be_bytes();
                let mut full = [0; 20];
                mac.sign(&[sealed, &roc], &mut full)?;
                tag.copy_from_slice(&full[..10]);
                Ok(())
            }
        }
    }

    /// Opens a packet in place; the counterpart of [`Self::encrypt`]. Returns the length without the tag.
    ///
    /// # Errors
    ///
    /// [`SrtpError`] when the packet is too short or not authentic; its bytes must not be used.
    pub fn decrypt(&mut self, packet: &mut [u8], header_len: usize, ssrc: Ssrc, seq: u64) -> Result<usize, SrtpError> {
        let tag_at = packet.len().checked_sub(self.tag_len()).ok_or(SrtpError::TooShort)?;
        let (sealed, tag) = packet.split_at_mut(tag_at);
        if header_len > sealed.len() {
            return Err(SrtpError::TooShort);
        }
        match self {
            Self::Gcm { cipher, salt } => {
                let (header, payload) = sealed.split_at_mut(header_len);
                cipher.open_in_place(&gcm_nonce(salt, ssrc, seq), header, payload, tag)?;
            }
            Self::Cm { cipher, mac, salt } => {
                let roc = ((seq >> 16) as u32).to_be_bytes();
                let mut full = [0; 20];
                mac.sign(&[sealed, &roc], &mut full)?;
                if !constant_time_eq(&full[..10], tag) {
                    return Err(SrtpError::Forged);
                }
                cipher.apply_keystream(&aes_cm_iv(salt, ssrc, seq), &mut sealed[header_len..])?;
            }
        }
        Ok(tag_at)
    }
}

/// RFC 7714 §8.1: two zero octets, SSRC, ROC, SEQ, xor salt.
fn gcm_nonce(salt: &[u8; 12], ssrc: Ssrc, seq: u64) -> [u8; 12] {
    let mut nonce = *salt;
    xor(&mut nonce[2..6], &ssrc.0.to_be_bytes());
    xor(&mut nonce[6..12], &seq.to_be_bytes()[2..]);
    nonce
}

/// RFC 3711 §4.1.1: salt * 2^16 xor SSRC * 2^64 xor index * 2^16.
fn aes_cm_iv(salt: &[u8; 14], ssrc: Ssrc, seq: u64) -> [u8; 16] {
    let mut iv = [0; 16];
    iv[..14].copy_from_slice(salt);
    xor(&mut iv[4..8], &ssrc.0.to_be_bytes());
    xor(&mut iv[8..14], &seq.to_be_bytes()[2..]);
    iv
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn xor(target: &mut [u8], mask: &[u8]) {
    for (t, m) in target.iter_mut().zip(mask) {
        *t ^= m;
    }
}

fn truncate_or_zero_pad_to_array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    for (o, b) in out.iter_mut().zip(bytes) {
        *o = *b;
    }
    out
}

/// AES-CM key derivation with a derivation rate of zero (RFC 3711 §4.3.3).
fn derive_session_key(
    crypto: &dyn RTCCrypto,
    key: &[u8],
    salt: &[u8],
    label: u8,
    length: usize,
) -> Result<Vec<u8>, CryptoError> {
    let mut input = [0u8; 16];
    for (i, s) in input.iter_mut().zip(salt) {
        *i = *s;
    }
    input[7] ^= label;
    let mut out = Vec::with_capacity(length.next_multiple_of(16));
    for counter in 0..length.div_ceil(16) as u8 {
        let mut block = input;
        block[15] = counter;
        crypto.block_encrypt(BlockCipherAlgorithm::Aes128, key, &mut block)?;
        out.extend_from_slice(&block);
    }
    out.truncate(length);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtc_crypto::RTCCryptoProvider as _;
    use rtc_crypto::providers::AwsLcRsProvider;
    use rtc_srtp::protection_profile::ProtectionProfile;

    fn packet(seq: u16, tag: usize) -> Vec<u8> {
        let mut p = vec![0x80, 96];
        p.extend_from_slice(&seq.to_be_bytes());
        p.extend_from_slice(&[0, 0, 0, 1, 0xde, 0xad, 0xbe, 0xef]);
        p.extend((0..100u8).chain(std::iter::repeat_n(0, tag)));
        p
    }

    #[test]
    fn sealed_packets_are_opened_by_an_independent_stack_across_the_roll_over() {
        let provider = AwsLcRsProvider::new();
        let cases = [
            (SrtpProfile::AeadAes128Gcm, ProtectionProfile::AeadAes128Gcm, 12),
            (SrtpProfile::Aes128CmSha1_80, ProtectionProfile::Aes128CmHmacSha1_80, 14),
        ];
        for (ours, theirs, salt_len) in cases {
            let (key, salt) = ([3u8; 16], vec![5u8; salt_len]);
            let mut sealer = RtpCipher::new(ours, &key, &salt, provider.crypto()).unwrap();
            let mut context =
                rtc_srtp::context::Context::new(&key, &salt, theirs, None, None, provider.crypto()).unwrap();
            for seq in [
                1u64, 2, 30_000, 60_000, 65_534, 65_535, 65_536, 65_537, 98_000, 130_000, 131_072,
            ] {
                let mut sealed = packet(seq as u16, sealer.tag_len());
                sealer.encrypt(&mut sealed, 12, Ssrc(0xdead_beef), seq).unwrap();
                let opened = context.decrypt_rtp(&sealed).unwrap();
                assert_eq!(&opened[..], packet(seq as u16, 0), "{ours:?} {seq}");
            }
        }
    }

    #[test]
    fn sealing_twice_gives_the_same_bytes() {
        let provider = AwsLcRsProvider::new();
        let mut sealer = RtpCipher::new(SrtpProfile::AeadAes128Gcm, &[3; 16], &[5; 12], provider.crypto()).unwrap();
        let seal = |sealer: &mut RtpCipher| {
            let mut p = packet(9, 16);
            sealer.encrypt(&mut p, 12, Ssrc(0xdead_beef), 9).unwrap();
            p
        };
        assert_eq!(seal(&mut sealer), seal(&mut sealer));
    }

    #[test]
    fn lengths_that_do_not_fit_are_an_error() {
        let provider = AwsLcRsProvider::new();
        let mut sealer = RtpCipher::new(SrtpProfile::AeadAes128Gcm, &[3; 16], &[5; 12], provider.crypto()).unwrap();
        assert!(sealer.encrypt(&mut [0; 10], 12, Ssrc(1), 1).is_err());
        assert!(sealer.encrypt(&mut [0; 20], 12, Ssrc(1), 1).is_err());
    }
}
