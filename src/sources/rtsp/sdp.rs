//! Reads attributes of a session description that retina does not expose.

/// Returns the value of the `fmtp` attribute of a payload type in the first section of this media; empty without one.
pub(super) fn fmtp(description: &[u8], media: &str, payload_type: u8) -> String {
    let text = String::from_utf8_lossy(description);
    let mut is_inside = false;
    let pt = payload_type.to_string();
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix("m=") {
            let mut words = section.split_ascii_whitespace();
            is_inside = words.next() == Some(media) && words.nth(2) == Some(&pt);
        }
        let value = line.strip_prefix("a=fmtp:").filter(|_| is_inside);
        if let Some((of, value)) = value.map(str::trim_start).and_then(|value| value.split_once(' '))
            && of == pt
        {
            return value.trim().to_owned();
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fmtp_of_a_payload_type_is_found() {
        let text = b"v=0\r\nm=video 0 RTP/AVP 97\r\na=fmtp:97 a=1\r\nm=audio 0 RTP/AVP 97\na=fmtp:98 b=2\na=fmtp:97  c=3; d=\xfc\n";
        assert_eq!(fmtp(text, "audio", 97), "c=3; d=\u{fffd}");
        assert_eq!(fmtp(text, "video", 97), "a=1");
        assert_eq!(fmtp(text, "audio", 99), "");
    }
}
