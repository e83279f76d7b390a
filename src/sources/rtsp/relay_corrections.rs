//! Writes the answers of cameras as a strict RTSP client reads them (RFC 2326, RFC 8866): what such a client needs of a
//! session description, and the headers whose form it checks.

use std::borrow::Cow;

use url::Url;

/// Longest line of a description that is kept, and most of them.
const MAX_LINE_CHARS: usize = 8 * 1024;
const MAX_LINES: usize = 1_000;

/// Writes a session description anew, of its media sections and attributes alone: names, addresses, bandwidths and times
/// are where cameras deviate, and no client needs them.
pub(super) fn correct_description(description: &[u8]) -> Vec<u8> {
    let text: Cow<'_, str> = String::from_utf8_lossy(description);
    let mut out = "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n".to_owned();
    let mut section = Section::Session;
    let trimmed = text
        .split(['\n', '\r'])
        .map(|line| line.trim_matches(|c: char| c.is_whitespace() || c == '\0' || c == '\u{feff}'));
    for line in trimmed.filter(|line| !line.is_empty()).take(MAX_LINES) {
        if line.len() > MAX_LINE_CHARS {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let corrected = match key.trim() {
            "m" | "M" => {
                let media = correct_media_line(value);
                section = if media.is_some() {
                    Section::Media
                } else {
                    Section::Unusable
                };
                media
            }
            "a" | "A" if section != Section::Unusable => correct_attribute(value),
            _ => None,
        };
        if let Some(corrected) = corrected {
            out += &corrected;
            out += "\r\n";
        }
    }
    out.into_bytes()
}

/// Where a line is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Session,
    Media,
    /// Below a media line that says too little.
    Unusable,
}

/// `<media> <port> <proto> <fmt> ...`. The port of a description by RTSP means nothing (RFC 2326 appendix C.1.2).
fn correct_media_line(value: &str) -> Option<String> {
    let mut words = value.split_whitespace();
    let (media, _port, protocol) = (words.next()?, words.next()?, words.next()?);
    let formats: Vec<&str> = words.collect();
    let media = media.to_ascii_lowercase();
    let protocol = protocol.to_ascii_uppercase();
    (!formats.is_empty()).then(|| format!("m={media} 0 {protocol} {}", formats.join(" ")))
}

/// `<name>` or `<name>:<value>`.
fn correct_attribute(attribute: &str) -> Option<String> {
    let (name, value) = match attribute.split_once(':') {
        Some((name, value)) => (name.trim(), Some(value.trim())),
        None => (attribute.trim(), None),
    };
    // The tool is known to the client by its exact name.
    let lower = name.to_ascii_lowercase();
    match (lower.as_str(), value) {
        ("", _) | ("rtpmap" | "fmtp" | "control", None | Some("")) => None,
        ("rtpmap", Some(value)) => correct_rtpmap(value),
        ("fmtp", Some(value)) => {
            let (payload_type, parameters) = value.split_once(char::is_whitespace)?;
            Some(format!("a=fmtp:{payload_type} {}", parameters.trim()))
        }
        (_, Some(value)) => Some(format!("a={lower}:{value}")),
        (_, None) => Some(format!("a={lower}")),
    }
}

/// `<payload type> <encoding>/<clock rate>[/<channels>]`.
fn correct_rtpmap(value: &str) -> Option<String> {
    let (payload_type, encoding) = value.split_once(char::is_whitespace)?;
    let mut parts = encoding.split('/').map(str::trim);
    let (name, rate) = (parts.next()?, parts.next()?);
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>();
    let (rate, channels) = (digits(rate), parts.next().map(digits).unwrap_or_default());
    let channels = channels.parse::<u16>().ok().filter(|channels| *channels > 0);
    let channels = channels.map(|channels| format!("/{channels}")).unwrap_or_default();
    let is_complete = !name.is_empty() && !rate.is_empty();
    is_complete.then(|| format!("a=rtpmap:{payload_type} {name}/{rate}{channels}"))
}

/// Returns the base of the control URLs (RFC 2326 appendix C.1.1) that a client can read; `None` if the camera names none.
pub(super) fn correct_content_base(named: Option<&str>, request: &str) -> Option<Url> {
    let named = named.map(str::trim).filter(|named| !named.is_empty())?;
    let scheme_less = || Url::parse(&format!("rtsp://{named}"));
    let is_usable = |url: &Url| url.scheme() == "rtsp" && url.host_str().is_some_and(|host| !host.is_empty());
    let mut url = match Url::parse(named) {
        Ok(url) if is_usable(&url) => url,
        _ if named.starts_with('/') => Url::parse(request).ok()?.join(named).ok()?,
        _ if named.contains("://") => return None,
        _ => scheme_less().ok().filter(is_usable)?,
    };
    let is_without_credentials = url.set_username("").is_ok() && url.set_password(None).is_ok();
    is_without_credentials.then_some(url)
}

/// Whether a client can read an `RTP-Info` header (RFC 2326 §12.33).
pub(super) fn is_valid_rtp_info(value: &str) -> bool {
    value.split(',').all(|stream| {
        let mut parts = stream.trim().split(';');
        let has_url = parts.next().is_some_and(|url| url.starts_with("url="));
        let is_valid = |part: &str| match part.split_once('=') {
            Some(("seq", seq)) => seq.parse::<u16>().is_ok(),
            Some(_) => true,
            None => part.is_empty(),
        };
        has_url && parts.all(is_valid)
    })
}

/// Whether a client can read a header line.
pub(super) fn is_valid_header(name: &str, value: &str) -> bool {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty()
        && name.chars().all(is_token)
        && !value.is_empty()
        && value.chars().all(|c| (' '..='~').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corrected(description: &str) -> String {
        let text = String::from_utf8(correct_description(description.as_bytes())).expect("text");
        let start = "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n";
        text.strip_prefix(start).expect("a start").to_owned()
    }

    #[test]
    fn descriptions_keep_their_media_and_attributes_alone() {
        for (description, wanted) in [
            (
                "v=0\no=- -8959200248001175080 1698143674.978737 IN IP4\ns=\nb=AS:x\nt=now\na=tool:LIVE555 Streaming Media v2013\n\
                 m=video -1353744643 RTP/AVP 96\nc=IN \nb=AS\ni=a\ni=b\na=rtpmap:96 H264/90000\na=control:track0",
                "a=tool:LIVE555 Streaming Media v2013\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:track0\r\n",
            ),
            (
                " M=Video  0  rtp/avp  96  97 \r\nA=RTPMAP:  96\tH264 / 90000 / \r\na=fmtp:  96   packetization-mode=1 \r\n\
                 a=Control: trackID=1 \r\na=recvonly\r\n\0",
                "m=video 0 RTP/AVP 96 97\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:trackID=1\r\n\
                 a=recvonly\r\n",
            ),
            (
                "\u{feff}m=audio 0 RTP/AVP 97\ra=rtpmap:97 opus/48000/x\ra=rtpmap\ra=rtpmap:98\ra=rtpmap:99 L16\ra=fmtp:97\ra=\r",
                "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 opus/48000\r\n",
            ),
            (
                "m=video 0\na=control:1\nm=audio 0 RTP/AVP 0\na=control:2\n",
                "m=audio 0 RTP/AVP 0\r\na=control:2\r\n",
            ),
            ("junk\n=\nz\n", ""),
        ] {
            assert_eq!(corrected(description), wanted, "{description}");
        }
        assert!(
            correct_description(b"m=video 0 RTP/AVP 96\na=x:\xff\xfe\n")
                .ends_with("a=x:\u{fffd}\u{fffd}\r\n".as_bytes())
        );
    }

    #[test]
    fn the_base_of_control_urls_is_absolute_or_left_out() {
        let request = "rtsp://cam:8554/live/main?x=1";
        for (named, wanted) in [
            (Some("rtsp://10.0.0.5/live/"), Some("rtsp://10.0.0.5/live/")),
            (Some("10.0.0.5:554/live/"), Some("rtsp://10.0.0.5:554/live/")),
            (Some("/live/main/"), Some("rtsp://cam:8554/live/main/")),
            (Some("  "), None),
            (Some("rtsp://"), None),
            (None, None),
        ] {
            let base = correct_content_base(named, request);
            assert_eq!(base.as_ref().map(Url::as_str), wanted, "{named:?}");
        }
    }

    #[test]
    fn headers_that_a_strict_client_refuses_are_told_apart() {
        for (value, wanted) in [
            ("url=rtsp://a/0;seq=1;rtptime=2,url=rtsp://a/1;seq=0;", true),
            ("rtsp://a/0", false),
            ("url=rtsp://a/0;seq=70000", false),
            ("url=rtsp://a/0;seq", false),
            ("", false),
        ] {
            assert_eq!(is_valid_rtp_info(value), wanted, "{value}");
        }
        assert!(is_valid_header("Date", "now") && !is_valid_header("Date", ""));
        assert!(!is_valid_header("Content Type", "x") && !is_valid_header("X", "caf\u{e9}"));
    }
}
