//! Decrypts the files of one rendition with the keys that its playlist names.

use bytes::Bytes;
use url::Url;

use super::crypt;
use super::error::HlsError;

/// Decrypts files, and keeps the last key.
#[derive(Debug, Default)]
pub(super) struct SegmentDecryptor {
    cached: Option<CachedKey>,
}

#[derive(Clone, Debug)]
struct CachedKey {
    url: Url,
    key: [u8; 16],
    /// With the key as it was just fetched, a segment did not begin as media does: the begin of others says nothing about it.
    has_unknown_begin: bool,
}

impl SegmentDecryptor {
    /// Decrypts a file. A key that was fetched before may be another one by now; `fetch` fetches it again.
    pub(super) async fn decrypt(
        &mut self,
        bytes: &Bytes,
        iv: [u8; 16],
        url: &Url,
        fetch: impl Future<Output = Result<Bytes, HlsError>>,
    ) -> Result<Bytes, HlsError> {
        let cached = self.cached.as_ref().filter(|cached| cached.url == *url);
        let by_cached = cached.and_then(|cached| {
            let decrypted = crypt::decrypt_aes_128_cbc(&cached.key, iv, bytes)?;
            // One of 256 wrong keys gives a right padding.
            let is_right = cached.has_unknown_begin || crypt::begins_as_media(&decrypted);
            Some((decrypted, is_right))
        });
        let by_cached = match by_cached {
            Some((decrypted, true)) => return Ok(decrypted),
            Some((decrypted, false)) => Some(decrypted),
            None => None,
        };
        let fetched = fetch
            .await
            .and_then(|file| crypt::read_aes_128_key(&file).ok_or(HlsError::UndecryptableSegment));
        let by_fetched = fetched.and_then(|key| {
            let decrypted = crypt::decrypt_aes_128_cbc(&key, iv, bytes).ok_or(HlsError::UndecryptableSegment)?;
            Ok((key, decrypted))
        });
        match (by_fetched, by_cached) {
            (Ok((key, decrypted)), _) => {
                self.cached = Some(CachedKey {
                    url: url.clone(),
                    key,
                    has_unknown_begin: !crypt::begins_as_media(&decrypted),
                });
                Ok(decrypted)
            }
            (Err(_), Some(decrypted)) => Ok(decrypted),
            (Err(error), None) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
    use aws_lc_rs::iv::FixedLength;

    use super::*;

    const IV: [u8; 16] = [2; 16];
    const MEDIA: &[u8] = b"\x00\x00\x00\x10moof and more";
    const OTHER: &[u8] = b"\x00\x00\x00\x10mdat and more";

    fn encrypt(key: u8, media: &[u8]) -> Bytes {
        let key = UnboundCipherKey::new(&AES_128, &[key; 16]).expect("16 bytes");
        let key = EncryptingKey::cbc(key).expect("a key");
        let padding = 16 - media.len() % 16;
        let mut bytes = [media, &vec![padding as u8; padding]].concat();
        let context = EncryptionContext::Iv128(FixedLength::from(IV));
        key.less_safe_encrypt(&mut bytes, context).expect("whole blocks");
        bytes.into()
    }

    fn url() -> Url {
        Url::parse("https://x.test/key").expect("a URL")
    }

    /// Decrypts a file; the key server has `served`, or does not answer. Returns what it is, and whether the server was asked.
    async fn decrypt(
        decryptor: &mut SegmentDecryptor,
        (key, media): (u8, &[u8]),
        served: Option<u8>,
    ) -> (Option<Bytes>, bool) {
        let mut is_asked = false;
        let fetch = async {
            is_asked = true;
            let key = served.map(|served| Bytes::from(vec![served; 16]));
            key.ok_or(HlsError::StreamEnded)
        };
        let decrypted = decryptor.decrypt(&encrypt(key, media), IV, &url(), fetch).await;
        (decrypted.ok(), is_asked)
    }

    #[tokio::test]
    async fn the_key_of_segments_that_do_not_begin_as_media_is_fetched_once() {
        let mut decryptor = SegmentDecryptor::default();
        for expected in [true, false, false] {
            let (decrypted, is_asked) = decrypt(&mut decryptor, (1, OTHER), Some(1)).await;
            assert_eq!((decrypted.as_deref(), is_asked), (Some(OTHER), expected));
        }
    }

    #[tokio::test]
    async fn a_segment_that_does_not_begin_as_media_is_not_lost_with_the_key_server() {
        let mut decryptor = SegmentDecryptor::default();
        decrypt(&mut decryptor, (1, MEDIA), Some(1)).await;
        let (decrypted, is_asked) = decrypt(&mut decryptor, (1, OTHER), None).await;
        assert_eq!((decrypted.as_deref(), is_asked), (Some(OTHER), true));
        let (decrypted, is_asked) = decrypt(&mut decryptor, (1, MEDIA), None).await;
        assert_eq!(
            (decrypted.as_deref(), is_asked),
            (Some(MEDIA), false),
            "the key is kept"
        );
    }

    #[tokio::test]
    async fn a_key_that_was_replaced_at_its_address_is_fetched_again() {
        let mut decryptor = SegmentDecryptor::default();
        for (key, media) in [(1, MEDIA), (2, MEDIA), (3, OTHER), (4, OTHER), (5, MEDIA)] {
            let (decrypted, is_asked) = decrypt(&mut decryptor, (key, media), Some(key)).await;
            assert_eq!((decrypted.as_deref(), is_asked), (Some(media), true), "{key}");
        }
        assert_eq!(decrypt(&mut decryptor, (6, MEDIA), None).await, (None, true));
        assert_eq!(
            decrypt(&mut decryptor, (5, MEDIA), None).await,
            (Some(MEDIA.into()), false)
        );
    }
}
