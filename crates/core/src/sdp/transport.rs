//! ICE credentials, certificate fingerprints and the DTLS role: the attributes of the bundled transport
//! (RFC 8839 §5.4, RFC 8122 §5, RFC 8842).
//!
//! Each may be given at session level and then applies to every section without its own. OBS 32.2.2 does so with the
//! fingerprint, OBS 30 with all of them.

use super::error::OfferError;
use super::plan::{DtlsRole, Fingerprint, FingerprintHash, IceCredentials};
use super::text::{Attribute, all, first};

/// The transport attributes of one m-section, including those of the session level. They may be incomplete: in a BUNDLE
/// group only one section must have them (RFC 9143 §7.1.3).
#[derive(Debug)]
pub(super) struct TransportAttributes {
    /// Line number of the m-line, for errors about missing attributes.
    line: usize,
    ufrag: Option<String>,
    pwd: Option<String>,
    fingerprints: Vec<Fingerprint>,
    /// Line number of a fingerprint whose hash function is not accepted.
    weak_fingerprint: Option<usize>,
    setup: Option<(usize, DtlsRole, Setup)>,
}

/// The offered `a=setup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    Actpass,
    Active,
    Passive,
}

impl TransportAttributes {
    pub(crate) fn read(line: usize, session: &[Attribute], section: &[Attribute]) -> Result<Self, OfferError> {
        let (mut fingerprints, mut weak_fingerprint) = read_fingerprints(section)?;
        if fingerprints.is_empty() {
            let (common, weak) = read_fingerprints(session)?;
            (fingerprints, weak_fingerprint) = (common, weak_fingerprint.or(weak));
        }
        let ice = |key, shortest| read_ice(session, section, key, shortest);
        Ok(Self {
            line,
            ufrag: ice("ice-ufrag", SHORTEST_UFRAG)?,
            pwd: ice("ice-pwd", SHORTEST_PWD)?,
            fingerprints,
            weak_fingerprint,
            setup: first(section, "setup")
                .or(first(session, "setup"))
                .map(read_setup)
                .transpose()?,
        })
    }
}

/// Returns the common transport of bundled sections. The first of `sections` is the tagged one (RFC 9143 §7.1.3);
/// attributes that it lacks are taken from the next section that has them.
pub(super) fn choose_transport<'a>(
    sections: impl Iterator<Item = &'a TransportAttributes> + Clone,
) -> Result<(IceCredentials, Vec<Fingerprint>, DtlsRole), OfferError> {
    let line = sections.clone().next().ok_or(OfferError::NoMedia)?.line;
    let mut setups = sections.clone().filter_map(|section| section.setup);
    let (_, role, setup) = setups.next().ok_or(OfferError::SetupMissing { line })?;
    if let Some((line, ..)) = setups.find(|(_, _, other)| *other != setup) {
        return Err(OfferError::SetupConflict { line });
    }
    let credentials = choose_credentials(line, sections.clone())?;
    let fingerprints = sections
        .clone()
        .find(|section| !section.fingerprints.is_empty())
        .map(|section| section.fingerprints.clone());
    match (
        fingerprints,
        sections.clone().find_map(|section| section.weak_fingerprint),
    ) {
        (Some(fingerprints), _) => Ok((credentials, fingerprints, role)),
        (None, Some(line)) => Err(OfferError::WeakFingerprint { line }),
        (None, None) => Err(OfferError::FingerprintMissing { line }),
    }
}

/// Bundled sections have one transport, and so the same credentials (RFC 9143 §7.1.3); those of other ones are never
/// used in checks.
fn choose_credentials<'a>(
    line: usize,
    sections: impl Iterator<Item = &'a TransportAttributes> + Clone,
) -> Result<IceCredentials, OfferError> {
    let missing = |name| OfferError::IceCredentialsMissing { line, name };
    let ufrag = sections.clone().find_map(|section| section.ufrag.as_ref());
    let pwd = sections.clone().find_map(|section| section.pwd.as_ref());
    let (ufrag, pwd) = (ufrag.ok_or(missing("ice-ufrag"))?, pwd.ok_or(missing("ice-pwd"))?);
    let is_other = |own: &Option<String>, common| own.as_ref().is_some_and(|own| own != common);
    let mut others = sections.filter(|section| is_other(&section.ufrag, ufrag) || is_other(&section.pwd, pwd));
    match others.next() {
        Some(section) => Err(OfferError::IceCredentialsDiffer { line: section.line }),
        None => Ok(IceCredentials {
            ufrag: ufrag.clone(),
            pwd: pwd.clone(),
        }),
    }
}

/// RFC 8839 §5.4: at least 24 bits for the ufrag and 128 bits for the password.
pub const SHORTEST_UFRAG: usize = 4;
pub const SHORTEST_PWD: usize = 22;

/// Whether a text is a valid ICE ufrag or password (RFC 8839 §5.4).
pub fn is_ice_text(text: &str, shortest: usize) -> bool {
    let is_ice_char = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    (shortest..=256).contains(&text.len()) && text.bytes().all(is_ice_char)
}

fn read_ice(
    session: &[Attribute],
    section: &[Attribute],
    key: &str,
    shortest: usize,
) -> Result<Option<String>, OfferError> {
    let Some(attribute) = first(section, key).or(first(session, key)) else {
        return Ok(None);
    };
    is_ice_text(&attribute.value, shortest)
        .then(|| Some(attribute.value.clone()))
        .ok_or(OfferError::BadIceCredentials { line: attribute.line })
}

/// Returns the fingerprints of a level with accepted hash functions, and the line of one with another hash function.
fn read_fingerprints(level: &[Attribute]) -> Result<(Vec<Fingerprint>, Option<usize>), OfferError> {
    let (mut fingerprints, mut weak) = (Vec::new(), None);
    for attribute in all(level, "fingerprint").take(MAX_FINGERPRINTS) {
        let bad = OfferError::BadFingerprint { line: attribute.line };
        let Some((name, digest)) = attribute.value.split_once(' ') else {
            return Err(bad);
        };
        let (hash, length) = match name.to_ascii_lowercase().as_str() {
            "sha-256" => (FingerprintHash::Sha256, 32),
            "sha-384" => (FingerprintHash::Sha384, 48),
            "sha-512" => (FingerprintHash::Sha512, 64),
            // RFC 8827 §6.5 excludes md5 and sha-1. An unknown hash function cannot be verified.
            _ => {
                weak = Some(attribute.line);
                continue;
            }
        };
        match read_digest(digest.trim()) {
            Some(digest) if digest.len() == length => fingerprints.push(Fingerprint { hash, digest }),
            _ => return Err(bad),
        }
    }
    Ok((fingerprints, weak))
}

fn read_digest(text: &str) -> Option<Vec<u8>> {
    text.split(':')
        .map(|byte| {
            let is_hex = byte.len() == 2 && byte.bytes().all(|b| b.is_ascii_hexdigit());
            is_hex.then(|| u8::from_str_radix(byte, 16).ok()).flatten()
        })
        .collect()
}

/// The gateway is the DTLS client only if the peer offers `passive` (RFC 8842 §5.3), as FFmpeg 9.0.2 does.
fn read_setup(attribute: &Attribute) -> Result<(usize, DtlsRole, Setup), OfferError> {
    let line = attribute.line;
    match attribute.value.to_ascii_lowercase().as_str() {
        "actpass" => Ok((line, DtlsRole::Server, Setup::Actpass)),
        "active" => Ok((line, DtlsRole::Server, Setup::Active)),
        "passive" => Ok((line, DtlsRole::Client, Setup::Passive)),
        "holdconn" => Err(OfferError::Holdconn { line }),
        _ => Err(OfferError::BadSetup { line }),
    }
}

/// aiortc writes three, one per hash function.
const MAX_FINGERPRINTS: usize = 8;
