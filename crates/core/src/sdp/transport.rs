//! ICE credentials, certificate fingerprints and the DTLS role: the attributes of the bundled transport
//! (RFC 8839 §5.4, RFC 8122 §5, RFC 8842).
//!
//! Each may be given at session level and then applies to every section without its own. OBS 32.2.2 does so with the
//! fingerprint, OBS 30 with all of them.

use super::error::OfferError;
use super::negotiation_result::{DtlsRole, Fingerprint, FingerprintHashFunction, IceCredentials};
use super::sdp_lines::{AttributeWithLineNumber, attributes_named, first_attribute_named};

/// The transport attributes of one m-section, including those of the session level. They may be incomplete: in a BUNDLE
/// group only one section must have them (RFC 9143 §7.1.3).
#[derive(Debug)]
pub(super) struct SectionTransportAttributes {
    /// Line number of the m-line, for errors about missing attributes.
    line_number: usize,
    ufrag: Option<String>,
    pwd: Option<String>,
    fingerprints: Vec<Fingerprint>,
    /// Line number of a fingerprint whose hash function is not accepted.
    weak_fingerprint_line: Option<usize>,
    offered_setup: Option<(usize, DtlsRole, DtlsSetup)>,
}

/// The offered `a=setup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DtlsSetup {
    Actpass,
    Active,
    Passive,
}

impl SectionTransportAttributes {
    pub(crate) fn parse(
        line: usize,
        session: &[AttributeWithLineNumber],
        section: &[AttributeWithLineNumber],
    ) -> Result<Self, OfferError> {
        let (mut fingerprints, mut weak_fingerprint) = read_fingerprints(section)?;
        if fingerprints.is_empty() {
            let (common, weak) = read_fingerprints(session)?;
            (fingerprints, weak_fingerprint) = (common, weak_fingerprint.or(weak));
        }
        let ice = |key, shortest| read_ice_credential(session, section, key, shortest);
        Ok(Self {
            line_number: line,
            ufrag: ice("ice-ufrag", MIN_UFRAG_LEN)?,
            pwd: ice("ice-pwd", MIN_PWD_LEN)?,
            fingerprints,
            weak_fingerprint_line: weak_fingerprint,
            offered_setup: first_attribute_named(section, "setup")
                .or(first_attribute_named(session, "setup"))
                .map(parse_setup_attribute)
                .transpose()?,
        })
    }
}

/// Returns the common transport of bundled sections. The first of `sections` is the tagged one (RFC 9143 §7.1.3);
/// attributes that it lacks are taken from the next section that has them.
pub(super) fn choose_bundle_transport<'a>(
    sections: impl Iterator<Item = &'a SectionTransportAttributes> + Clone,
) -> Result<(IceCredentials, Vec<Fingerprint>, DtlsRole), OfferError> {
    let line = sections.clone().next().ok_or(OfferError::NoMedia)?.line_number;
    let mut setups = sections.clone().filter_map(|section| section.offered_setup);
    let (_, role, setup) = setups.next().ok_or(OfferError::SetupMissing { line })?;
    if let Some((line, ..)) = setups.find(|(_, _, other)| *other != setup) {
        return Err(OfferError::SetupConflict { line });
    }
    let credentials = choose_bundle_ice_credentials(line, sections.clone())?;
    let fingerprints = sections
        .clone()
        .find(|section| !section.fingerprints.is_empty())
        .map(|section| section.fingerprints.clone());
    match (
        fingerprints,
        sections.clone().find_map(|section| section.weak_fingerprint_line),
    ) {
        (Some(fingerprints), _) => Ok((credentials, fingerprints, role)),
        (None, Some(line)) => Err(OfferError::WeakFingerprint { line }),
        (None, None) => Err(OfferError::FingerprintMissing { line }),
    }
}

/// Bundled sections have one transport, and so the same credentials (RFC 9143 §7.1.3); those of other ones are never
/// used in checks.
fn choose_bundle_ice_credentials<'a>(
    line: usize,
    sections: impl Iterator<Item = &'a SectionTransportAttributes> + Clone,
) -> Result<IceCredentials, OfferError> {
    let missing = |name| OfferError::IceCredentialsMissing { line, name };
    let ufrag = sections.clone().find_map(|section| section.ufrag.as_ref());
    let pwd = sections.clone().find_map(|section| section.pwd.as_ref());
    let (ufrag, pwd) = (ufrag.ok_or(missing("ice-ufrag"))?, pwd.ok_or(missing("ice-pwd"))?);
    let is_other = |own: &Option<String>, common| own.as_ref().is_some_and(|own| own != common);
    let mut others = sections.filter(|section| is_other(&section.ufrag, ufrag) || is_other(&section.pwd, pwd));
    match others.next() {
        Some(section) => Err(OfferError::IceCredentialsDiffer {
            line: section.line_number,
        }),
        None => Ok(IceCredentials {
            ufrag: ufrag.clone(),
            pwd: pwd.clone(),
        }),
    }
}

/// RFC 8839 §5.4: at least 24 bits for the ufrag and 128 bits for the password.
pub const MIN_UFRAG_LEN: usize = 4;
pub const MIN_PWD_LEN: usize = 22;

/// Whether a text is a valid ICE ufrag or password (RFC 8839 §5.4).
pub fn is_valid_ice_credential(text: &str, shortest: usize) -> bool {
    let is_ice_char = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    (shortest..=256).contains(&text.len()) && text.bytes().all(is_ice_char)
}

fn read_ice_credential(
    session: &[AttributeWithLineNumber],
    section: &[AttributeWithLineNumber],
    key: &str,
    shortest: usize,
) -> Result<Option<String>, OfferError> {
    let Some(attribute) = first_attribute_named(section, key).or(first_attribute_named(session, key)) else {
        return Ok(None);
    };
    is_valid_ice_credential(&attribute.value, shortest)
        .then(|| Some(attribute.value.clone()))
        .ok_or(OfferError::BadIceCredentials {
            line: attribute.line_number,
        })
}

/// Returns the fingerprints of a level with accepted hash functions, and the line of one with another hash function.
fn read_fingerprints(level: &[AttributeWithLineNumber]) -> Result<(Vec<Fingerprint>, Option<usize>), OfferError> {
    let (mut fingerprints, mut weak) = (Vec::new(), None);
    for attribute in attributes_named(level, "fingerprint").take(MAX_FINGERPRINTS) {
        let bad = OfferError::BadFingerprint {
            line: attribute.line_number,
        };
        let Some((name, digest)) = attribute.value.split_once(' ') else {
            return Err(bad);
        };
        let (hash, length) = match name.to_ascii_lowercase().as_str() {
            "sha-256" => (FingerprintHashFunction::Sha256, 32),
            "sha-384" => (FingerprintHashFunction::Sha384, 48),
            "sha-512" => (FingerprintHashFunction::Sha512, 64),
            // RFC 8827 §6.5 excludes md5 and sha-1. An unknown hash function cannot be verified.
            _ => {
                weak = Some(attribute.line_number);
                continue;
            }
        };
        match parse_fingerprint_digest(digest.trim()) {
            Some(digest) if digest.len() == length => fingerprints.push(Fingerprint {
                hash_function: hash,
                digest,
            }),
            _ => return Err(bad),
        }
    }
    Ok((fingerprints, weak))
}

fn parse_fingerprint_digest(text: &str) -> Option<Vec<u8>> {
    text.split(':')
        .map(|byte| {
            let is_hex = byte.len() == 2 && byte.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| u8::from_str_radix(byte, 16).ok()).flatten()
        })
        .collect()
}

/// The gateway is the DTLS client only if the peer offers `passive` (RFC 8842 §5.3), as FFmpeg 9.0.2 does.
fn parse_setup_attribute(attribute: &AttributeWithLineNumber) -> Result<(usize, DtlsRole, DtlsSetup), OfferError> {
    let line = attribute.line_number;
    match attribute.value.to_ascii_lowercase().as_str() {
        "actpass" => Ok((line, DtlsRole::Server, DtlsSetup::Actpass)),
        "active" => Ok((line, DtlsRole::Server, DtlsSetup::Active)),
        "passive" => Ok((line, DtlsRole::Client, DtlsSetup::Passive)),
        "holdconn" => Err(OfferError::Holdconn { line }),
        _ => Err(OfferError::BadSetup { line }),
    }
}

/// aiortc writes three, one per hash function.
const MAX_FINGERPRINTS: usize = 8;
