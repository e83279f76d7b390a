//! AES-128 decryption of segments (RFC 8216 §4.3.2.4): CBC mode, PKCS7 padding.

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use bytes::Bytes;

/// Reads the file of a key. Some servers end it with a line break, which players ignore; a longer text is that of an error.
pub(super) fn read_aes_128_key(file: &[u8]) -> Option<[u8; 16]> {
    let (key, rest) = file.split_first_chunk()?;
    rest.trim_ascii().is_empty().then_some(*key)
}

/// Decrypts a whole segment. Returns `None` if the key is wrong. As players do, it passes over padding that is missing or
/// wrong and a last block that is cut off, if what is decrypted begins as media does: with a wrong key it would not.
pub(super) fn decrypt_aes_128_cbc(key: &[u8; 16], iv: [u8; 16], segment: &[u8]) -> Option<Bytes> {
    let key = UnboundCipherKey::new(&AES_128, key).ok()?;
    let key = DecryptingKey::cbc(key).ok()?;
    let mut bytes = segment.get(..segment.len() - segment.len() % BLOCK_BYTES)?.to_vec();
    let context = DecryptionContext::Iv128(FixedLength::from(iv));
    key.decrypt(&mut bytes, context).ok()?;
    let is_whole = bytes.len() == segment.len();
    match pkcs7_padding_length(&bytes).filter(|_| is_whole) {
        Some(padding) => bytes.truncate(bytes.len() - padding),
        None if begins_as_media(&bytes) => {}
        None => return None,
    }
    Some(bytes.into())
}

/// Length of a block, in bytes.
const BLOCK_BYTES: usize = 16;

/// Returns the length of the padding (RFC 5652 §6.3); `None` if it is malformed.
fn pkcs7_padding_length(bytes: &[u8]) -> Option<usize> {
    let last = *bytes.last()?;
    let length = usize::from(last);
    let padding = bytes.get(bytes.len().checked_sub(length)?..)?;
    ((1..=BLOCK_BYTES).contains(&length) && padding.iter().all(|byte| *byte == last)).then_some(length)
}

/// Whether bytes are the begin of MPEG-TS, fragmented MP4 or packed audio.
pub(super) fn begins_as_media(bytes: &[u8]) -> bool {
    let is_ts = bytes.first() == Some(&0x47) && bytes.get(188).is_none_or(|sync| *sync == 0x47);
    let is_mp4 = matches!(
        bytes.get(4..8),
        Some(b"ftyp" | b"styp" | b"moov" | b"moof" | b"sidx" | b"emsg" | b"prft" | b"free" | b"skip")
    );
    let is_audio = bytes.starts_with(b"ID3") || matches!(bytes, [0xff, second, ..] if second & 0xf6 == 0xf0);
    is_ts || is_mp4 || is_audio
}

/// Returns the initialization vector of a segment whose playlist gives none: its media sequence number.
pub(super) fn iv_from_media_sequence_number(number: u64) -> [u8; 16] {
    u128::from(number).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::cipher::{EncryptingKey, EncryptionContext};

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

    #[test]
    fn a_key_is_sixteen_bytes_and_perhaps_a_line_break() {
        let key = *b"sixteen bytes 16";
        for end in ["", "\n", "\r\n"] {
            assert_eq!(read_aes_128_key(&[&key[..], end.as_bytes()].concat()), Some(key));
        }
        for file in [
            "fifteen bytes !",
            "<html><body>Forbidden</body></html>",
            "000102030405060708090a0b0c0d0e0f",
        ] {
            assert_eq!(read_aes_128_key(file.as_bytes()), None, "{file}");
        }
    }

    /// Packagers leave out the padding of what ends with a block anyway, and servers cut off the end.
    #[test]
    fn media_is_read_whatever_its_padding() {
        let encrypt = |bytes: &[u8]| {
            let key = UnboundCipherKey::new(&AES_128, &[1; 16]).expect("16 bytes");
            let key = EncryptingKey::cbc(key).expect("a key");
            let mut bytes = bytes.to_vec();
            let context = EncryptionContext::Iv128(FixedLength::from([2; 16]));
            key.less_safe_encrypt(&mut bytes, context).expect("whole blocks");
            bytes
        };
        let packet = [&[0x47][..], &[0x40; 187]].concat();
        let media = packet.repeat(4);
        let decrypt = |key, bytes: &[u8]| decrypt_aes_128_cbc(&[key; 16], [2; 16], bytes);
        let encrypted = encrypt(&media);
        assert_eq!(decrypt(1, &encrypted).as_deref(), Some(&media[..]), "without padding");
        let cut = decrypt(1, &encrypted[..encrypted.len() - 7]).expect("media");
        assert_eq!(cut[..], media[..media.len() - 16], "without its last block");
        let padded = encrypt(&[&media[..], &[16; 16]].concat());
        assert_eq!(decrypt(1, &padded).as_deref(), Some(&media[..]));
        let wrong = encrypt(&[&media[..], &[5; 3], &[13; 13]].concat());
        assert_eq!(decrypt(1, &wrong).map(|bytes| bytes.len()), Some(media.len() + 3));
        for wrong in [17, 0] {
            let encrypted = encrypt(&[&media[..], &[wrong; 16]].concat());
            let length = decrypt(1, &encrypted).map(|bytes| bytes.len());
            assert_eq!(length, Some(media.len() + 16), "{wrong}");
        }
        for key in 2..50 {
            assert_eq!(decrypt(key, &encrypted), None, "{key}");
        }
    }

    const ENCRYPTED: &[u8] = &[
        0xc0, 0x23, 0x6d, 0xfa, 0x29, 0xdf, 0xc4, 0x6d, 0x5a, 0x4b, 0xd6, 0xbe, 0xfc, 0x9e, 0x95, 0x26, 0x60, 0x9e,
        0x35, 0x5a, 0x52, 0xd7, 0xdc, 0xca, 0x25, 0xd0, 0x3f, 0x36, 0xc7, 0x8b, 0x42, 0xe0,
    ];
}
