//! AES-128 decryption of segments (RFC 8216 §4.3.2.4): CBC mode, PKCS7 padding.

use aws_lc_rs::cipher::{AES_128, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use bytes::Bytes;

/// Decrypts a whole segment. Returns `None` if the key is wrong.
pub(super) fn decrypt_aes_128_cbc(key: &[u8; 16], iv: [u8; 16], segment: &[u8]) -> Option<Bytes> {
    let key = UnboundCipherKey::new(&AES_128, key).ok()?;
    let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).ok()?;
    let mut bytes = segment.to_vec();
    let context = DecryptionContext::Iv128(FixedLength::from(iv));
    let length = key.decrypt(&mut bytes, context).ok()?.len();
    bytes.truncate(length);
    Some(bytes.into())
}

/// Returns the initialization vector of a segment whose playlist gives none: its media sequence number.
pub(super) fn iv_from_media_sequence_number(number: u64) -> [u8; 16] {
    u128::from(number).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_openssl_encrypted_is_read() {
        // echo -n 'sixteen bytes and more' | openssl enc -aes-128-cbc -K 000102…0f -iv 0…07 | xxd -p
        let key: [u8; 16] = std::array::from_fn(|index| index as u8);
        let encrypted = ENCRYPTED;
        assert_eq!(
            decrypt_aes_128_cbc(&key, iv_from_media_sequence_number(7), encrypted).as_deref(),
            Some(&b"sixteen bytes and more"[..])
        );
        assert_eq!(
            decrypt_aes_128_cbc(&[9; 16], iv_from_media_sequence_number(7), encrypted),
            None
        );
        assert_eq!(
            decrypt_aes_128_cbc(&key, iv_from_media_sequence_number(7), &encrypted[..20]),
            None
        );
        assert_eq!(decrypt_aes_128_cbc(&key, iv_from_media_sequence_number(7), &[]), None);
    }

    const ENCRYPTED: &[u8] = &[
        0xc0, 0x23, 0x6d, 0xfa, 0x29, 0xdf, 0xc4, 0x6d, 0x5a, 0x4b, 0xd6, 0xbe, 0xfc, 0x9e, 0x95, 0x26, 0x60, 0x9e,
        0x35, 0x5a, 0x52, 0xd7, 0xdc, 0xca, 0x25, 0xd0, 0x3f, 0x36, 0xc7, 0x8b, 0x42, 0xe0,
    ];
}
