//! Which credential issued a token. The token is valid only as long as that credential is.

use super::request::{Grant, GrantBasis, VerifiedJwt, token_digest};

/// The credential that issued a token. The state file keeps digests of it, which reveal nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIssuer {
    /// As the API and the log name it, such as `auth.api_token`.
    pub name: String,
    pub(super) credential: IssuingCredential,
}

/// A credential by the SHA-256 of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IssuingCredential {
    StaticToken([u8; 32]),
    /// Of its URL.
    Webhook([u8; 32]),
    Jwt(JwtOrigin),
}

/// What the validity of a signed token depends on, besides its expiry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct JwtOrigin {
    pub(super) key: [u8; 32],
    /// Of the URL of the key set that the key is from.
    pub(super) key_set: Option<[u8; 32]>,
    pub(super) issuer: Option<[u8; 32]>,
    pub(super) audiences: Vec<[u8; 32]>,
}

/// Maximum number of audiences of a signed token that are kept.
const MAX_AUDIENCES: usize = 64;

const STATIC_TOKEN: &str = "token";
const WEBHOOK: &str = "webhook";
const JWT_KEY: &str = "jwt_key";
const JWT_KEY_SET: &str = "jwt_key_set";
const JWT_ISSUER: &str = "jwt_iss";
const JWT_AUDIENCE: &str = "jwt_aud";

impl TokenIssuer {
    /// Returns the credential of a grant; `None` if the grant was not given for a credential that may issue tokens.
    pub(super) fn of_grant(grant: &Grant, name: String) -> Option<Self> {
        let credential = match &grant.basis {
            GrantBasis::OpenPlayback | GrantBasis::IssuedToken(_) => return None,
            GrantBasis::StaticToken(digest) => IssuingCredential::StaticToken(*digest),
            GrantBasis::Webhook(url) => IssuingCredential::Webhook(token_digest(url)),
            GrantBasis::VerifiedJwt(token) => IssuingCredential::Jwt(JwtOrigin::of_token(token)),
        };
        grant.is_token_based.then_some(Self { name, credential })
    }

    /// Reads what [`Self::to_digest_texts`] returns. `None` if it is malformed.
    pub(super) fn from_digest_texts(name: String, texts: &[String]) -> Option<Self> {
        let parts = texts.iter().map(|text| {
            let (part, digest) = text.split_once(':')?;
            Some((part, digest_from_hex(digest)?))
        });
        let parts: Option<Vec<(&str, [u8; 32])>> = parts.collect();
        let credential = match parts?.as_slice() {
            [(STATIC_TOKEN, digest)] => IssuingCredential::StaticToken(*digest),
            [(WEBHOOK, digest)] => IssuingCredential::Webhook(*digest),
            [(JWT_KEY, key), claims @ ..] => {
                let mut origin = JwtOrigin {
                    key: *key,
                    ..JwtOrigin::default()
                };
                for (part, digest) in claims {
                    match *part {
                        JWT_KEY_SET => origin.key_set = Some(*digest),
                        JWT_ISSUER => origin.issuer = Some(*digest),
                        JWT_AUDIENCE => origin.audiences.push(*digest),
                        _ => return None,
                    }
                }
                IssuingCredential::Jwt(origin)
            }
            _ => return None,
        };
        Some(Self { name, credential })
    }

    /// Returns the credential as the state file keeps it: `PART:SHA-256` for each of its parts.
    pub(super) fn to_digest_texts(&self) -> Vec<String> {
        let text = |(part, digest): (&str, &[u8; 32])| format!("{part}:{}", hex(digest));
        match &self.credential {
            IssuingCredential::StaticToken(digest) => vec![text((STATIC_TOKEN, digest))],
            IssuingCredential::Webhook(digest) => vec![text((WEBHOOK, digest))],
            IssuingCredential::Jwt(origin) => {
                let key_set = origin.key_set.iter().map(|digest| (JWT_KEY_SET, digest));
                let issuer = origin.issuer.iter().map(|digest| (JWT_ISSUER, digest));
                let audiences = origin.audiences.iter().map(|digest| (JWT_AUDIENCE, digest));
                let parts = std::iter::once((JWT_KEY, &origin.key));
                parts.chain(key_set).chain(issuer).chain(audiences).map(text).collect()
            }
        }
    }
}

impl JwtOrigin {
    fn of_token(token: &VerifiedJwt) -> Self {
        let digest = |text: &String| token_digest(text);
        Self {
            key: token.key_digest,
            key_set: token.key_set_url.as_ref().map(digest),
            issuer: token.issuer.as_ref().map(digest),
            audiences: token.audiences.iter().take(MAX_AUDIENCES).map(digest).collect(),
        }
    }
}

/// Returns bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the digits of a SHA-256.
pub(super) fn digest_from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 {
        return None;
    }
    let byte = |index: usize| u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_issued_a_token_is_read_as_it_was_written() {
        let digest = |text: &str| token_digest(text);
        let signed = JwtOrigin {
            key: digest("key"),
            key_set: Some(digest("https://example.org/keys")),
            issuer: Some(digest("us")),
            audiences: vec![digest("a"), digest("b")],
        };
        for credential in [
            IssuingCredential::StaticToken(digest("operator")),
            IssuingCredential::Webhook(digest("https://example.org/hook")),
            IssuingCredential::Jwt(signed),
            IssuingCredential::Jwt(JwtOrigin {
                key: digest("key"),
                ..JwtOrigin::default()
            }),
        ] {
            let issuer = TokenIssuer {
                name: "auth.api_token".to_owned(),
                credential,
            };
            let texts = issuer.to_digest_texts();
            assert_eq!(
                TokenIssuer::from_digest_texts(issuer.name.clone(), &texts),
                Some(issuer)
            );
        }
        let zeros = "0".repeat(64);
        for texts in [
            vec![],
            vec![zeros.clone()],
            vec!["token:00".to_owned()],
            vec![format!("other:{zeros}")],
            vec![format!("token:{zeros}"), format!("jwt_iss:{zeros}")],
            vec![format!("jwt_key:{zeros}"), format!("token:{zeros}")],
        ] {
            assert_eq!(TokenIssuer::from_digest_texts(String::new(), &texts), None, "{texts:?}");
        }
    }
}
