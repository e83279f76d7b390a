//! Writes the challenges of cameras as a strict parser reads them (RFC 9110 §11.6.1).

use http_auth::PasswordClient;

use crate::header_list::split_outside_quotes;

/// Parameters that mean as much when they are empty as when they are missing.
const OPTIONAL_PARAMETERS: [&str; 5] = ["qop", "algorithm", "stale", "charset", "userhash"];

/// Writes each challenge of a `WWW-Authenticate` header with one space behind its scheme, and each value between quotes.
/// Empty parameters that may be left out are.
pub(super) fn normalize_challenges(header: &str) -> String {
    let mut challenges: Vec<(&str, Vec<String>)> = Vec::new();
    for element in non_empty_elements(header) {
        let (head, value) = element.split_once('=').unwrap_or((element, ""));
        let mut words = head.split_whitespace();
        let (first, second) = (words.next(), words.next());
        // `Scheme key=value`, `Scheme`, or `key=value`.
        let key = match (first, second) {
            (Some(scheme), key) if key.is_some() || !element.contains('=') => {
                challenges.push((scheme, Vec::new()));
                key
            }
            (key, _) => key,
        };
        let Some((key, (_, parameters))) = key.zip(challenges.last_mut()) else {
            continue;
        };
        let value = value.trim();
        let value = match value.strip_prefix('"') {
            Some(quoted) => quoted.strip_suffix('"').unwrap_or(quoted),
            None => value,
        };
        let is_optional = OPTIONAL_PARAMETERS.iter().any(|name| name.eq_ignore_ascii_case(key));
        if !is_optional || value.contains(|c: char| !c.is_whitespace() && c != ',') {
            parameters.push(format!("{key}=\"{value}\""));
        }
    }
    let written = challenges
        .iter()
        .map(|(scheme, parameters)| format!("{scheme} {}", parameters.join(", ")));
    let written: Vec<String> = written.map(|challenge| challenge.trim_end().to_owned()).collect();
    written.join(", ")
}

/// Returns the elements of a list, without those that are empty.
fn non_empty_elements(header: &str) -> impl Iterator<Item = &str> {
    let elements = split_outside_quotes(header.as_bytes(), b',').elements.into_iter();
    let texts = elements.filter_map(|element| std::str::from_utf8(element).ok());
    texts.map(str::trim).filter(|element| !element.is_empty())
}

/// Returns what answers the challenges in the `WWW-Authenticate` headers of a refusal, `None` if none can be answered, and
/// whether one of them says that the nonce was stale.
pub(super) fn read_challenges(headers: &[(String, String)]) -> (Option<PasswordClient>, bool) {
    let challenges = headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("www-authenticate"));
    let mut builder = PasswordClient::builder();
    let mut is_stale = false;
    for (_, value) in challenges {
        is_stale |= value
            .to_ascii_lowercase()
            .replace([' ', '"'], "")
            .contains("stale=true");
        builder = builder.challenges(&remove_auth_int_qop(&normalize_challenges(value)));
    }
    (builder.build().ok(), is_stale)
}

/// Offers `auth` alone where a challenge offers `auth-int` too.
fn remove_auth_int_qop(challenge: &str) -> String {
    let lower = challenge.to_ascii_lowercase();
    let Some(list) = lower.find("qop=\"").map(|at| at + 5) else {
        return challenge.to_owned();
    };
    let Some((before, rest)) = challenge.split_at_checked(list) else {
        return challenge.to_owned();
    };
    let (offered, after) = rest.split_once('"').unwrap_or((rest, ""));
    if offered.split(',').any(|qop| qop.trim().eq_ignore_ascii_case("auth")) {
        format!("{before}auth\"{after}")
    } else {
        challenge.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_written_as_the_standard_has_them() {
        for (header, wanted) in [
            (
                "Digest  realm=\"a, b\",nonce = \"1\" , qop=\"\"",
                "Digest realm=\"a, b\", nonce=\"1\"",
            ),
            (
                "Digest\trealm=cam,,nonce=a+b/c==,opaque=\"\",",
                "Digest realm=\"cam\", nonce=\"a+b/c==\", opaque=\"\"",
            ),
            (
                "Digest realm=\"a \\\"b\\\",\", nonce=\"1\", algorithm=, qop=\"auth,auth-int\"",
                "Digest realm=\"a \\\"b\\\",\", nonce=\"1\", qop=\"auth,auth-int\"",
            ),
            (
                "Digest realm=\"a \\\", b\", nonce=\"1\"",
                "Digest realm=\"a \\\", b\", nonce=\"1\"",
            ),
            (
                "Negotiate, Basic   realm=\"x\", Digest realm=\"y\", nonce=\"1\", qop=\" , \"",
                "Negotiate, Basic realm=\"x\", Digest realm=\"y\", nonce=\"1\"",
            ),
            ("Digest realm=\"unfinished", "Digest realm=\"unfinished\""),
            ("realm=\"no scheme\"", ""),
            ("", ""),
        ] {
            assert_eq!(normalize_challenges(header), wanted, "{header}");
        }
    }
}
