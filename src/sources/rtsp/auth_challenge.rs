//! Looks at the challenge of a camera that rejected the credentials: retina answers some challenges in a way that
//! cameras do not accept, and the credentials may be right.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use http_auth::PasswordClient;

use super::camera::Camera;
use super::connect::open_connection;
use super::lenient_challenge::normalize_challenges;

/// Longest answer that is read, in bytes.
const MAX_CHALLENGE_RESPONSE_BYTES: usize = 8 * 1024;

const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(3);

/// Asks the camera once without credentials, and returns whether its challenge offers `auth-int` (RFC 7616 §3.4.3), says
/// that the nonce is stale, or cannot be read. `is_normalized` says that the relay wrote it anew.
pub(super) async fn probe_for_unusual_challenge(camera: &Camera, is_normalized: bool) -> bool {
    let request = format!(
        "DESCRIBE {} RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: millstream\r\nAccept: application/sdp\r\n\r\n",
        camera.url
    );
    let asking = async {
        let mut connection = open_connection(camera).await.ok()?;
        connection.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        while !answer.windows(4).any(|end| end == b"\r\n\r\n") && answer.len() < MAX_CHALLENGE_RESPONSE_BYTES {
            if connection.read_buf(&mut answer).await.ok()? == 0 {
                break;
            }
        }
        Some(answer)
    };
    let answer = timeout(CHALLENGE_TIMEOUT, asking)
        .await
        .ok()
        .flatten()
        .unwrap_or_default();
    has_unusual_challenge(&String::from_utf8_lossy(&answer), is_normalized)
}

fn has_unusual_challenge(answer: &str, is_normalized: bool) -> bool {
    let headers = answer.lines().filter_map(|line| line.split_once(':'));
    let challenges: Vec<&str> = headers
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("www-authenticate"))
        .map(|(_, challenge)| challenge.trim())
        .collect();
    let is_odd = |challenge: &&str| {
        let challenge = challenge.to_ascii_lowercase();
        challenge.contains("auth-int") || challenge.contains("stale=true")
    };
    let mut readable = PasswordClient::builder();
    for challenge in &challenges {
        readable = if is_normalized {
            readable.challenges(&normalize_challenges(challenge))
        } else {
            readable.challenges(challenge)
        };
    }
    !challenges.is_empty() && (challenges.iter().any(is_odd) || readable.build().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_challenges_that_retina_cannot_answer_are_unusual() {
        for (challenge, wanted) in [
            ("Digest realm=\"a\", nonce=\"1\", qop=\"auth,auth-int\"", true),
            ("Digest realm=\"a\", nonce=\"1\", stale=TRUE", true),
            ("Digest realm=\"a\", nonce=\"1\", qop=\"auth\"", false),
            ("Basic realm=\"a\"", false),
        ] {
            let answer = format!("RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\nWWW-Authenticate: {challenge}\r\n\r\n");
            for is_normalized in [false, true] {
                assert_eq!(has_unusual_challenge(&answer, is_normalized), wanted, "{challenge}");
            }
        }
        assert!(!has_unusual_challenge("RTSP/1.0 200 OK\r\nX: auth-int\r\n\r\n", false));
        for (challenge, is_read_by_relay) in [
            ("Digest  realm=\"a\", nonce=\"1\"", true),
            ("Digest realm=\"a\", nonce=\"1\", qop=\"\"", true),
            ("Digest realm=\"\u{e9}\", nonce=\"1\"", false),
            ("Digest nonce=\"1\"", false),
        ] {
            let answer = format!("RTSP/1.0 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\n\r\n");
            assert!(has_unusual_challenge(&answer, false), "{challenge}");
            assert_eq!(has_unusual_challenge(&answer, true), !is_read_by_relay, "{challenge}");
        }
    }
}
