//! Who may do what: bearer tokens (RFC 6750, RFC 9725 §4.7).
//!
//! The header is read by hand: without a token of our own any `Authorization` is tolerated, also one that breaks the
//! grammar (some players send `Bearer undefined`, or a key without a scheme).

use std::borrow::Cow;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use super::problem::Problem;
use crate::config::Secret;

/// The tokens in force.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub publish: Secret,
    pub play: Option<Secret>,
    pub api: Option<Secret>,
    /// Whether `?token=` stands for the header where a client cannot send one (RFC 9725 §4.7.1).
    pub in_query: bool,
}

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    Publish,
    Play,
    Api,
}

impl Permission {
    fn verb(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Play => "watch",
            Self::Api => "use the API",
        }
    }
}

impl Tokens {
    /// Lets a request pass, or says why not: 401 without a token or with an unknown one, 403 with one that is good for
    /// something else. The publish token and the API token also let their owner watch. A header goes before the `query`.
    pub fn check(&self, headers: &HeaderMap, query: Option<&str>, permission: Permission) -> Result<(), Problem> {
        let accepted: &[Option<&Secret>] = match permission {
            Permission::Publish => &[Some(&self.publish)],
            Permission::Play if self.play.is_none() => return Ok(()),
            Permission::Play => &[self.play.as_ref(), Some(&self.publish), self.api.as_ref()],
            Permission::Api => &[self.api.as_ref()],
        };
        let given = self.given(headers, query, permission)?;
        if any_matches(accepted, &given) {
            return Ok(());
        }
        if any_matches(&[Some(&self.publish), self.play.as_ref(), self.api.as_ref()], &given) {
            let detail = format!("this token is not good to {}", permission.verb());
            return Err(Problem::new(StatusCode::FORBIDDEN, "insufficient_scope", detail)
                .with(header::WWW_AUTHENTICATE, HeaderValue::from_static(INSUFFICIENT)));
        }
        Err(challenge("token_wrong", "the bearer token is wrong", INVALID))
    }

    /// As [`Self::check`] for watching, for players of HLS: media elements cannot send a header, so the query counts too,
    /// and a cookie of the name [`COOKIE`]. It opens what is read only, so no other site gains by having it sent.
    pub fn check_player(&self, headers: &HeaderMap, query: Option<&str>) -> Result<(), Problem> {
        let by_query = Self {
            in_query: true,
            ..self.clone()
        };
        let has_other = headers.contains_key(header::AUTHORIZATION) || query.and_then(query_token).is_some();
        match cookie(headers).filter(|_| !has_other) {
            Some(token) => by_query.check(&HeaderMap::new(), Some(&format!("token={token}")), Permission::Play),
            None => by_query.check(headers, query, Permission::Play),
        }
    }

    /// The token that came with the request.
    fn given<'a>(
        &self,
        headers: &'a HeaderMap,
        query: Option<&'a str>,
        permission: Permission,
    ) -> Result<Cow<'a, str>, Problem> {
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            let detail = "the Authorization header holds no bearer token: send `Authorization: Bearer TOKEN`";
            let given = bearer(value).ok_or_else(|| challenge("token_malformed", detail, INVALID))?;
            return Ok(Cow::Borrowed(given));
        }
        let given = query.filter(|_| self.in_query).and_then(query_token);
        given.map(Cow::Owned).ok_or_else(|| {
            let detail = format!("a bearer token is needed to {}", permission.verb());
            challenge("token_missing", detail, r#"Bearer realm="millstream""#)
        })
    }
}

/// Name of the cookie that holds a play token.
pub const COOKIE: &str = "millstream-play";

/// The play token in a cookie (RFC 6265 §4.2).
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let lines = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok());
    let mut pairs = lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, token) = pairs.find(|(name, _)| *name == COOKIE)?;
    (!token.is_empty()).then_some(token)
}

const INVALID: &str = r#"Bearer realm="millstream", error="invalid_token""#;
const INSUFFICIENT: &str = r#"Bearer realm="millstream", error="insufficient_scope""#;

fn challenge(code: &'static str, detail: impl Into<String>, challenge: &'static str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, code, detail)
        .with(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

/// Compares with all of them, so that the time taken does not tell which one it is.
fn any_matches(secrets: &[Option<&Secret>], given: &str) -> bool {
    secrets
        .iter()
        .flatten()
        .fold(false, |found, secret| secret.matches(given) | found)
}

/// The token in `Bearer TOKEN`; the scheme is case-insensitive (RFC 9110 §11.1).
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ')).then_some(token)
}

/// The first `token` of a query, unless it is empty.
fn query_token(query: &str) -> Option<String> {
    let mut parameters = query.split('&').filter_map(|parameter| parameter.split_once('='));
    let (_, value) = parameters.find(|(name, _)| *name == "token")?;
    (!value.is_empty()).then(|| decode_percent(value))
}

/// Undoes percent encoding (RFC 3986 §2.1). A `+` is a `+`: tokens hold no spaces, but people paste them unescaped. What
/// is no escape, or no UTF-8, stays or becomes something that no token holds.
fn decode_percent(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%').then(|| after.split_first_chunk::<2>()).flatten();
        let byte = escaped.and_then(|(&[high, low], after)| Some((hex(high)? << 4 | hex(low)?, after)));
        let (byte, after) = byte.unwrap_or((first, after));
        decoded.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(play: Option<&str>) -> Tokens {
        Tokens {
            publish: Secret::new("pub").expect("valid"),
            play: play.and_then(Secret::new),
            api: Secret::new("api"),
            in_query: true,
        }
    }

    fn status(tokens: &Tokens, permission: Permission, authorization: Option<&str>) -> u16 {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).expect("header"));
        }
        tokens
            .check(&headers, None, permission)
            .map_or_else(|problem| problem.status.as_u16(), |()| 200)
    }

    #[test]
    fn a_token_opens_what_it_is_for_and_nothing_else() {
        use Permission::{Api, Play, Publish};
        let tokens = tokens(Some("play"));
        for (permission, authorization, expected) in [
            (Publish, Some("Bearer pub"), 200),
            (Publish, Some("bearer pub"), 200),
            (Publish, Some("BEARER   pub "), 200),
            (Publish, None, 401),
            (Publish, Some("Bearer wrong"), 401),
            (Publish, Some("Bearer"), 401),
            (Publish, Some("Bearer "), 401),
            (Publish, Some("pub"), 401),
            (Publish, Some("Basic pub"), 401),
            (Publish, Some("Bearer pub pub"), 401),
            (Publish, Some("Bearer caf\u{e9}"), 401),
            (Publish, Some("Bearer play"), 403),
            (Publish, Some("Bearer api"), 403),
            (Play, Some("Bearer play"), 200),
            (Play, Some("Bearer pub"), 200),
            (Play, Some("Bearer api"), 200),
            (Play, None, 401),
            (Play, Some("Bearer undefined"), 401),
            (Api, Some("Bearer api"), 200),
            (Api, Some("Bearer pub"), 403),
        ] {
            assert_eq!(
                status(&tokens, permission, authorization),
                expected,
                "{permission:?} {authorization:?}"
            );
        }
    }

    #[test]
    fn a_player_may_send_its_token_as_a_cookie() {
        let tokens = tokens(Some("play"));
        let status = |line: &str, query: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, HeaderValue::from_str(line).expect("header"));
            let checked = tokens.check_player(&headers, query);
            checked.map_or_else(|problem| problem.status.as_u16(), |()| 200)
        };
        assert_eq!(status("a=b; millstream-play=play; c=d", None), 200);
        assert_eq!(status("millstream-play=wrong", None), 401);
        assert_eq!(status("other=play", None), 401);
        assert_eq!(
            status("millstream-play=wrong", Some("token=play")),
            200,
            "what is said in the request goes first"
        );
        // A cookie opens nothing but playback.
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, HeaderValue::from_static("millstream-play=play"));
        assert!(tokens.check(&headers, None, Permission::Play).is_err());
    }

    #[test]
    fn a_query_is_read_as_people_paste_tokens_into_it() {
        for (query, token) in [
            ("token=abc", Some("abc")),
            ("a=b&token=abc&token=other", Some("abc")),
            ("token=a+b/c~=", Some("a+b/c~=")),
            ("token=a%2Bb%2fc%7E%3D", Some("a+b/c~=")),
            ("token=%", Some("%")),
            ("token=%2", Some("%2")),
            ("token=%zz", Some("%zz")),
            ("token=%+1", Some("%+1")),
            ("token=%ff", Some("\u{fffd}")),
            ("token=", None),
            ("token", None),
            ("Token=abc", None),
            ("", None),
        ] {
            assert_eq!(query_token(query).as_deref(), token, "{query}");
        }
    }

    #[test]
    fn without_a_play_token_any_authorization_is_tolerated() {
        let tokens = tokens(None);
        for authorization in [None, Some("Bearer undefined"), Some("key"), Some("Basic eDp5")] {
            assert_eq!(status(&tokens, Permission::Play, authorization), 200);
        }
    }
}
