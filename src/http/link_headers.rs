//! `Link` headers: STUN and TURN servers for the peer (RFC 9725 §4.6), with short-lived credentials.
//!
//! TURN credentials follow the scheme that coturn calls `use-auth-secret`: the username consists of the expiry time and
//! a name, the password is an HMAC of the username with a secret that the gateway and the TURN server share. Each
//! session has its own name, because coturn applies `user-quota` per name. The expiry is checked when a client
//! allocates; an allocation may be refreshed after it, so [`IceServers::credential_lifetime`] can be shorter than a session.
//!
//! Credentials are sent to accepted sessions only, because their owner can use the relay for anything it permits.

use std::time::Duration;

use aws_lc_rs::hmac;
use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::session_url::{DELAY_PATH_SUFFIX, EVENTS_PATH_SUFFIX, LAYER_PATH_SUFFIX};
use crate::control::client_settings::{IceServers, TurnAuth};
use crate::control::sessions::SessionEventType;

/// Adds one `Link` header line per server, because some clients split joined lines at the wrong commas. `name`
/// identifies the session to the TURN server; it is unique and reveals nothing.
pub fn add_ice_server_links(servers: &IceServers, now: Duration, name: &str, headers: &mut HeaderMap) {
    for url in &servers.urls {
        let is_turn_url = is_turn_url(url);
        let credentials = match &servers.turn_auth {
            TurnAuth::SharedSecret(secret) if is_turn_url => Some(time_limited_turn_credentials(
                secret.reveal(),
                now + servers.credential_lifetime,
                name,
            )),
            TurnAuth::StaticCredentials { username, password } if is_turn_url => {
                Some((username.clone(), password.reveal().to_owned()))
            }
            _ => None,
        };
        let attributes = credentials.map_or_else(String::new, |(username, credential)| {
            // One player requires this order, and `credential-type`, which RFC 9725 no longer has.
            format!("; username=\"{username}\"; credential=\"{credential}\"; credential-type=\"password\"")
        });
        add_ice_server_link(url, &attributes, headers);
    }
}

/// Adds only the servers that need no credentials, for clients without a session.
pub fn add_ice_server_links_without_credentials(servers: &IceServers, headers: &mut HeaderMap) {
    let needs_none = |url: &&String| !is_turn_url(url) || matches!(servers.turn_auth, TurnAuth::NoCredentials);
    for url in servers.urls.iter().filter(needs_none) {
        add_ice_server_link(url, "", headers);
    }
}

fn is_turn_url(url: &str) -> bool {
    url.starts_with("turn")
}

fn add_ice_server_link(url: &str, attributes: &str, headers: &mut HeaderMap) {
    let line = format!("<{url}>; rel=\"ice-server\"{attributes}");
    if let Ok(line) = HeaderValue::from_str(&line) {
        headers.append(header::LINK, line);
    }
}

/// Link relations of the extensions (RFC 9725 §4.9).
const EVENTS_LINK_RELATION: &str = "urn:ietf:params:whep:ext:core:server-sent-events";
const LAYER_LINK_RELATION: &str = "urn:ietf:params:whep:ext:core:layer";

/// Not an extension of the draft: only the players of this gateway know it.
const DELAY_LINK_RELATION: &str = "urn:millstream:whep:ext:delay";

/// Adds a line for each extension of a viewer's session (WHEP §4.10).
pub fn add_extension_links(session: &str, headers: &mut HeaderMap) {
    let events = format!(
        "<{session}{EVENTS_PATH_SUFFIX}>; rel=\"{}\"; events=\"{}\"",
        EVENTS_LINK_RELATION,
        SessionEventType::comma_separated_event_names()
    );
    let layer = format!("<{session}{LAYER_PATH_SUFFIX}>; rel=\"{}\"", LAYER_LINK_RELATION);
    let delay = format!("<{session}{DELAY_PATH_SUFFIX}>; rel=\"{DELAY_LINK_RELATION}\"");
    for line in [events, layer, delay] {
        if let Ok(line) = HeaderValue::from_str(&line) {
            headers.append(header::LINK, line);
        }
    }
}

/// Returns username and password for a name, valid until a Unix time.
fn time_limited_turn_credentials(secret: &str, expires_at: Duration, name: &str) -> (String, String) {
    let username = format!("{}:{name}", expires_at.as_secs());
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    let credential = STANDARD.encode(hmac::sign(&key, username.as_bytes()));
    (username, credential)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    /// I-09.
    #[test]
    fn credentials_end_at_a_time_and_are_those_that_coturn_computes() {
        let secret = Secret::new("north").expect("a secret");
        let servers = IceServers {
            urls: vec![
                "stun:stun.example.org".into(),
                "turn:turn.example.org?transport=tcp".into(),
            ],
            turn_auth: TurnAuth::SharedSecret(secret),
            credential_lifetime: Duration::from_secs(100),
        };
        let mut headers = HeaderMap::new();
        add_ice_server_links(&servers, Duration::from_secs(1_700_000_000), "abc", &mut headers);
        let lines: Vec<&str> = headers
            .get_all(header::LINK)
            .iter()
            .filter_map(|line| line.to_str().ok())
            .collect();
        // printf 1700000100:abc | openssl dgst -sha1 -hmac north -binary | base64
        let expected = [
            "<stun:stun.example.org>; rel=\"ice-server\"",
            "<turn:turn.example.org?transport=tcp>; rel=\"ice-server\"; username=\"1700000100:abc\"; \
             credential=\"gbWygtTIMDELB+e6UCAvFY02+hc=\"; credential-type=\"password\"",
        ];
        assert_eq!(lines, expected);
    }
}
