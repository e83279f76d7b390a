//! Which credential issued a token. The token is valid only as long as that credential is.

use super::request::{Grant, GrantBasis, VerifiedJwt, token_digest};

/// The credential that issued a token. The state file keeps digests of it, which reveal nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIssuer {
    /// As the API and the log name it, such as `auth.api_token`.
    pub name: String,
    pub(super) credential: IssuingCredentialDigest,
}

/// A credential by the SHA-256 of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum IssuingCredentialDigest {
    StaticToken([u8; 32]),
    /// Of its URL.
    Webhook([u8; 32]),
    Jwt(JwtProvenanceDigests),
}

/// What the validity of a signed token depends on, besides its expiry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct JwtProvenanceDigests {
    pub(super) key: [u8; 32],
    /// Of the URL of the key set that the key is from.
    pub(super) key_set: Option<[u8; 32]>,
    pub(super) issuer: Option<[u8; 32]>,
    pub(super) audiences: Vec<[u8; 32]>,
}

/// Maximum number of audiences of a signed token that are kept.
const MAX_AUDIENCES: usize = 64;

const STATIC_TOKEN_DIGEST_LABEL: &str = "token";
const WEBHOOK_DIGEST_LABEL: &str = "webhook";
const JWT_KEY_DIGEST_LABEL: &str = "jwt_key";
const JWT_KEY_SET_DIGEST_LABEL: &str = "jwt_key_set";
const JWT_ISSUER_DIGEST_LABEL: &str = "jwt_iss";
const JWT_AUDIENCE_DIGEST_LABEL: &str = "jwt_aud";

impl TokenIssuer {
    /// Returns the credential of a grant; `None` if the grant was not given for a credential that may issue tokens.
    pub(super) fn from_grant(grant: &Grant, name: String) -> Option<Self> {
        let credential = match &grant.basis {
            GrantBasis::OpenPlayback | GrantBasis::IssuedToken(_) => return None,
            GrantBasis::StaticToken(digest) => IssuingCredentialDigest::StaticToken(*digest),
            GrantBasis::Webhook(url) => IssuingCredentialDigest::Webhook(token_digest(url)),
            GrantBasis::VerifiedJwt(token) => {
                IssuingCredentialDigest::Jwt(JwtProvenanceDigests::from_verified_jwt(token))
            }
        };
        grant.is_token_based.then_some(Self { name, credential })
    }

    /// Reads what [`Self::to_state_file_digests`] returns. `None` if it is malformed.
    pub(super) fn from_state_file_digests(name: String, texts: &[String]) -> Option<Self> {
        let parts = texts.iter().map(|text| {
            let (part, digest) = text.split_once(':')?;
            Some((part, digest_from_hex(digest)?))
        });
        let parts: Option<Vec<(&str, [u8; 32])>> = parts.collect();
        let credential = match parts?.as_slice() {
            [(STATIC_TOKEN_DIGEST_LABEL, digest)] => IssuingCredentialDigest::StaticToken(*digest),
            [(WEBHOOK_DIGEST_LABEL, digest)] => IssuingCredentialDigest::Webhook(*digest),
            [(JWT_KEY_DIGEST_LABEL, key), claims @ ..] => {
                let mut origin = JwtProvenanceDigests {
                    key: *key,
                    ..JwtProvenanceDigests::default()
                };
                for (part, digest) in claims {
                    match *part {
                        JWT_KEY_SET_DIGEST_LABEL => origin.key_set = Some(*digest),
                        JWT_ISSUER_DIGEST_LABEL => origin.issuer = Some(*digest),
                        JWT_AUDIENCE_DIGEST_LABEL => origin.audiences.push(*digest),
                        _ => return None,
                    }
                }
                IssuingCredentialDigest::Jwt(origin)
            }
            _ => return None,
        };
        Some(Self { name, credential })
    }

    /// Returns the credential as the state file keeps it: `PART:SHA-256` for each of its parts.
    pub(super) fn to_state_file_digests(&self) -> Vec<String> {
        let text = |(part, digest): (&str, &[u8; 32])| format!("{part}:{}", to_hex_digits(digest));
        match &self.credential {
            IssuingCredentialDigest::StaticToken(digest) => vec![text((STATIC_TOKEN_DIGEST_LABEL, digest))],
            IssuingCredentialDigest::Webhook(digest) => vec![text((WEBHOOK_DIGEST_LABEL, digest))],
            IssuingCredentialDigest::Jwt(origin) => {
                let key_set = origin.key_set.iter().map(|digest| (JWT_KEY_SET_DIGEST_LABEL, digest));
                let issuer = origin.issuer.iter().map(|digest| (JWT_ISSUER_DIGEST_LABEL, digest));
                let audiences = origin
                    .audiences
                    .iter()
                    .map(|digest| (JWT_AUDIENCE_DIGEST_LABEL, digest));
                let parts = std::iter::once((JWT_KEY_DIGEST_LABEL, &origin.key));
                parts.chain(key_set).chain(issuer).chain(audiences).map(text).collect()
            }
        }
    }
}

impl JwtProvenanceDigests {
    fn from_verified_jwt(token: &VerifiedJwt) -> Self {
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
pub(super) fn to_hex_digits(bytes: &[u8]) -> String {
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
        let signed = JwtProvenanceDigests {
            key: digest("key"),
            key_set: Some(digest("https://example.org/keys")),
            issuer: Some(digest("us")),
            audiences: vec![digest("a"), digest("b")],
        };
        for credential in [
            IssuingCredentialDigest::StaticToken(digest("operator")),
            IssuingCredentialDigest::Webhook(digest("https://example.org/hook")),
            IssuingCredentialDigest::Jwt(signed),
            IssuingCredentialDigest::Jwt(JwtProvenanceDigests {
                key: digest("key"),
                ..JwtProvenanceDigests::default()
            }),
        ] {
            let issuer = TokenIssuer {
                name: "auth.api_token".to_owned(),
                credential,
            };
            let texts = issuer.to_state_file_digests();
            assert_eq!(
                TokenIssuer::from_state_file_digests(issuer.name.clone(), &texts),
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
            assert_eq!(
                TokenIssuer::from_state_file_digests(String::new(), &texts),
                None,
                "{texts:?}"
            );
        }
    }
}
