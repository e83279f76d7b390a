//! The offers that the tool makes and what it needs of an answer. No more SDP than that.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// Payload types that the offers propose and the stream uses.
pub(crate) const VIDEO_PT: u8 = 96;
pub(crate) const AUDIO_PT: u8 = 111;
const RTX_PT: u8 = 97;

/// SSRCs of the publisher.
pub(crate) const VIDEO_SSRC: u32 = 0x1000_0001;
pub(crate) const AUDIO_SSRC: u32 = 0x1000_0002;

/// The transport as the offer describes it.
pub(crate) struct Local<'a> {
    pub ufrag: &'a str,
    pub pwd: &'a str,
    pub fingerprint: &'a str,
}

/// The transport as the answer describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub ufrag: String,
    pub pwd: String,
    pub fingerprint: String,
    pub address: SocketAddr,
}

/// A WHIP offer of one H.264 and one Opus track.
pub(crate) fn publish_offer(local: &Local) -> String {
    let video = format!("a=sendonly\r\na=ssrc:{VIDEO_SSRC} cname:bench\r\n");
    let audio = format!("a=sendonly\r\na=ssrc:{AUDIO_SSRC} cname:bench\r\n");
    offer(local, &audio, &video, true)
}

/// As [`publish_offer`] without RTX, which encoders such as OBS do not have.
pub(crate) fn encoder_offer(local: &Local) -> String {
    let video = format!("a=sendonly\r\na=ssrc:{VIDEO_SSRC} cname:bench\r\n");
    let audio = format!("a=sendonly\r\na=ssrc:{AUDIO_SSRC} cname:bench\r\n");
    offer(local, &audio, &video, false)
}

/// A WHEP offer for the same.
pub(crate) fn play_offer(local: &Local) -> String {
    offer(local, "a=recvonly\r\n", "a=recvonly\r\n", true)
}

fn offer(local: &Local, audio: &str, video: &str, rtx: bool) -> String {
    let Local {
        ufrag,
        pwd,
        fingerprint,
    } = local;
    let transport = format!(
        "c=IN IP4 0.0.0.0\r\na=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\na=fingerprint:{fingerprint}\r\na=setup:actpass\r\n\
         a=rtcp-mux\r\na=rtcp-rsize\r\n"
    );
    let head = "v=0\r\no=- 7 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\na=msid-semantic: WMS\r\n";
    let opus = format!("a=rtpmap:{AUDIO_PT} opus/48000/2\r\na=fmtp:{AUDIO_PT} minptime=10;useinbandfec=1\r\n");
    let h264 = format!(
        "a=rtpmap:{VIDEO_PT} H264/90000\r\n\
         a=fmtp:{VIDEO_PT} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f\r\n\
         a=rtcp-fb:{VIDEO_PT} nack\r\na=rtcp-fb:{VIDEO_PT} nack pli\r\na=rtcp-fb:{VIDEO_PT} ccm fir\r\n"
    );
    let (rtx_pt, rtx) = if rtx {
        let lines = format!("a=rtpmap:{RTX_PT} rtx/90000\r\na=fmtp:{RTX_PT} apt={VIDEO_PT}\r\n");
        (format!(" {RTX_PT}"), lines)
    } else {
        Default::default()
    };
    format!(
        "{head}m=audio 9 UDP/TLS/RTP/SAVPF {AUDIO_PT}\r\n{transport}a=mid:0\r\n{audio}{opus}\
         m=video 9 UDP/TLS/RTP/SAVPF {VIDEO_PT}{rtx_pt}\r\n{transport}a=mid:1\r\n{video}{h264}{rtx}"
    )
}

impl Answer {
    /// Reads what connects us; an error names what is missing.
    ///
    /// # Errors
    ///
    /// The missing or unusable line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("a=")?.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim).ok_or(format!("the answer has no {name}"))
        };
        if value("setup")? != "passive" {
            return Err("the answer does not leave the DTLS client's part to us".into());
        }
        let candidates = text.lines().filter_map(|line| line.strip_prefix("a=candidate:"));
        let address = candidates.filter_map(candidate).next();
        Ok(Self {
            ufrag: value("ice-ufrag")?.to_owned(),
            pwd: value("ice-pwd")?.to_owned(),
            fingerprint: value("fingerprint")?.to_owned(),
            address: address.ok_or("the answer has no UDP candidate on 127.0.0.1")?,
        })
    }
}

/// Address of a UDP candidate on loopback (RFC 8839 §5.1).
fn candidate(line: &str) -> Option<SocketAddr> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let udp = fields.get(2)?.eq_ignore_ascii_case("udp");
    let ip: Ipv4Addr = fields.get(4)?.parse().ok()?;
    let port = fields.get(5)?.parse().ok()?;
    (udp && ip.is_loopback()).then_some(SocketAddr::V4(SocketAddrV4::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=ice-ufrag:abcd\r\na=ice-pwd:secret\r\n\
        a=fingerprint:sha-256 AA:BB\r\na=setup:passive\r\na=candidate:1 1 udp 1 192.0.2.1 1 typ host\r\n\
        a=candidate:2 1 UDP 1 127.0.0.1 8189 typ host\r\n";

    #[test]
    fn the_answer_gives_the_transport() {
        let answer = Answer::parse(ANSWER).unwrap();
        assert_eq!((answer.ufrag.as_str(), answer.pwd.as_str()), ("abcd", "secret"));
        assert_eq!(answer.fingerprint, "sha-256 AA:BB");
        assert_eq!(answer.address, SocketAddr::from(([127, 0, 0, 1], 8189)));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (line, name) in [("ice-pwd", "ice-pwd"), ("setup", "setup"), ("127.0.0.1", "candidate")] {
            let error = Answer::parse(&ANSWER.replace(line, "x")).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        assert!(Answer::parse(&ANSWER.replace("passive", "active")).is_err());
    }

    #[test]
    fn each_section_of_an_offer_has_its_direction_and_no_empty_line() {
        let local = Local {
            ufrag: "u",
            pwd: "p",
            fingerprint: "sha-256 AA",
        };
        let offer = play_offer(&local);
        assert_eq!(offer.matches("a=recvonly\r\n").count(), 2);
        assert_eq!(offer.matches("\r\nm=").count(), 2);
        assert!(publish_offer(&local).contains("a=ssrc:268435457 cname:bench"));
        assert!(publish_offer(&local).contains("m=video 9 UDP/TLS/RTP/SAVPF 96 97\r\n"));
        assert!(!encoder_offer(&local).contains("97"));
        assert!(
            offer
                .split("\r\n")
                .take(offer.matches("\r\n").count())
                .all(|line| line.as_bytes()[1] == b'=')
        );
    }
}
