//! Just enough SDP for a test client: writes the two offers, reads what a client needs from an answer.

use std::net::SocketAddr;

use crate::media::VideoCodec;
use crate::peer::Credentials;

/// What the peer writes into its offer.
#[derive(Clone, Debug)]
pub struct OfferParameters {
    pub credentials: Credentials,
    /// Value of `a=fingerprint`.
    pub fingerprint: String,
    /// `actpass`, `active` or `passive`.
    pub setup: &'static str,
    /// In order of preference.
    pub video: &'static [VideoCodec],
    /// Retransmissions are offered as a stream of their own (RFC 4588); OBS offers none.
    pub rtx: bool,
    /// SSRCs of a publisher, audio and video; a viewer has none.
    pub audio_ssrc: u32,
    pub video_ssrc: u32,
    /// SSRCs of a publisher's simulcast layers, the best first; `video_ssrc` is one of them then.
    pub layer_ssrcs: Vec<u32>,
    /// Transport-wide feedback and its header extension are offered.
    pub transport_cc: bool,
}

/// Id of the header extension for transport-wide numbers.
pub const TRANSPORT_CC_ID: u8 = 3;

const TRANSPORT_CC_URI: &str = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";

/// Payload types in the offers.
pub const OPUS_PT: u8 = 111;
pub const H264_PT: u8 = 102;
pub const VP8_PT: u8 = 96;

/// The retransmissions of a video payload type have the next one.
pub const RTX_DISTANCE: u8 = 1;

impl OfferParameters {
    /// A viewer's, with retransmissions. `seed` makes its ICE credentials.
    pub fn viewer(seed: u64, fingerprint: String, video: &'static [VideoCodec]) -> Self {
        Self {
            credentials: Credentials::from_seed(seed),
            fingerprint,
            setup: "actpass",
            video,
            rtx: true,
            audio_ssrc: 0,
            video_ssrc: 0,
            layer_ssrcs: Vec::new(),
            transport_cc: false,
        }
    }

    /// A WHEP offer as browsers make it: receive video and Opus.
    pub fn whep(&self) -> String {
        self.offer("recvonly")
    }

    /// A WHIP offer: send video and Opus.
    pub fn whip(&self) -> String {
        self.offer("sendonly")
    }

    /// SSRC of a publisher's retransmissions.
    pub fn rtx_ssrc(&self) -> u32 {
        !self.video_ssrc
    }

    fn offer(&self, direction: &str) -> String {
        let sends = direction == "sendonly";
        let mut lines: Vec<String> = [
            "v=0",
            "o=- 4611731400430051336 2 IN IP4 127.0.0.1",
            "s=-",
            "t=0 0",
            "a=group:BUNDLE 0 1",
            "a=extmap-allow-mixed",
            "a=msid-semantic: WMS *",
        ]
        .map(str::to_owned)
        .into();
        lines.push(format!("m=audio 9 UDP/TLS/RTP/SAVPF {OPUS_PT}"));
        lines.extend(self.transport("0", direction));
        lines.push(format!("a=rtpmap:{OPUS_PT} opus/48000/2"));
        lines.push(format!("a=fmtp:{OPUS_PT} minptime=10;useinbandfec=1"));
        lines.extend(self.transport_cc.then(|| format!("a=rtcp-fb:{OPUS_PT} transport-cc")));
        if sends {
            lines.push("a=msid:stream audio".to_owned());
            lines.push(format!("a=ssrc:{} cname:peer", self.audio_ssrc));
        }
        let payload_types: Vec<String> = self.video.iter().flat_map(|c| self.payload_types(*c)).collect();
        lines.push(format!("m=video 9 UDP/TLS/RTP/SAVPF {}", payload_types.join(" ")));
        lines.extend(self.transport("1", direction));
        lines.extend(self.video.iter().flat_map(|c| self.codec(*c)));
        if sends {
            lines.push("a=msid:stream video".to_owned());
            if !self.layer_ssrcs.is_empty() {
                let layers: Vec<String> = self.layer_ssrcs.iter().map(u32::to_string).collect();
                lines.push(format!("a=ssrc-group:SIM {}", layers.join(" ")));
                lines.extend(layers.iter().map(|ssrc| format!("a=ssrc:{ssrc} cname:peer")));
            }
            let ssrcs = [Some(self.video_ssrc), self.rtx.then_some(self.rtx_ssrc())];
            let ssrcs = ssrcs.map(|ssrc| ssrc.filter(|_| self.layer_ssrcs.is_empty()));
            if self.rtx && self.layer_ssrcs.is_empty() {
                lines.push(format!("a=ssrc-group:FID {} {}", self.video_ssrc, self.rtx_ssrc()));
            }
            lines.extend(ssrcs.iter().flatten().map(|ssrc| format!("a=ssrc:{ssrc} cname:peer")));
        }
        lines.iter().map(|line| format!("{line}\r\n")).collect()
    }

    fn payload_types(&self, codec: VideoCodec) -> Vec<String> {
        let pt = payload_type(codec);
        let all = [Some(pt), self.rtx.then_some(pt + RTX_DISTANCE)];
        all.into_iter().flatten().map(|pt| pt.to_string()).collect()
    }

    fn codec(&self, codec: VideoCodec) -> Vec<String> {
        let pt = payload_type(codec);
        let mut lines = match codec {
            VideoCodec::H264 => vec![
                format!("a=rtpmap:{pt} H264/90000"),
                format!("a=fmtp:{pt} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f"),
            ],
            VideoCodec::Vp8 => vec![format!("a=rtpmap:{pt} VP8/90000")],
        };
        lines.extend(["nack", "nack pli", "ccm fir"].map(|feedback| format!("a=rtcp-fb:{pt} {feedback}")));
        lines.extend(self.transport_cc.then(|| format!("a=rtcp-fb:{pt} transport-cc")));
        if self.rtx {
            let rtx = pt + RTX_DISTANCE;
            lines.push(format!("a=rtpmap:{rtx} rtx/90000"));
            lines.push(format!("a=fmtp:{rtx} apt={pt}"));
        }
        lines
    }

    fn transport(&self, mid: &str, direction: &str) -> Vec<String> {
        let extension = self
            .transport_cc
            .then(|| format!("a=extmap:{TRANSPORT_CC_ID} {TRANSPORT_CC_URI}"));
        let lines = [
            "c=IN IP4 0.0.0.0".to_owned(),
            "a=rtcp:9 IN IP4 0.0.0.0".to_owned(),
            format!("a=ice-ufrag:{}", self.credentials.ufrag),
            format!("a=ice-pwd:{}", self.credentials.pwd),
            "a=ice-options:trickle".to_owned(),
            format!("a=fingerprint:{}", self.fingerprint),
            format!("a=setup:{}", self.setup),
            format!("a=mid:{mid}"),
            "a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid".to_owned(),
            format!("a={direction}"),
            "a=rtcp-mux".to_owned(),
            "a=rtcp-rsize".to_owned(),
        ];
        lines.into_iter().chain(extension).collect()
    }
}

fn payload_type(codec: VideoCodec) -> u8 {
    match codec {
        VideoCodec::H264 => H264_PT,
        VideoCodec::Vp8 => VP8_PT,
    }
}

/// What a client needs from an answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub ufrag: String,
    pub pwd: String,
    /// Value of `a=fingerprint`.
    pub fingerprint: String,
    /// Value of `a=setup`.
    pub setup: String,
    pub candidates: Vec<SocketAddr>,
    pub media: Vec<AnswerMedia>,
}

/// One m-section of an answer.
#[derive(Clone, Debug, Default)]
pub struct AnswerMedia {
    /// `audio` or `video`.
    pub kind: String,
    /// Zero: rejected.
    pub port: u16,
    pub mid: String,
    /// `sendonly`, `recvonly`, `inactive` or `sendrecv`.
    pub direction: String,
    /// Payload type and encoding name.
    pub codecs: Vec<(u8, String)>,
    pub ssrcs: Vec<u32>,
    /// Groups of `a=ssrc-group:FID`: primary and retransmission.
    pub fid: Option<(u32, u32)>,
}

impl Answer {
    /// Parses leniently: unknown lines are skipped.
    pub fn parse(text: &str) -> Self {
        let mut answer = Self::default();
        for line in text.lines().map(str::trim_end) {
            if let Some(media) = line.strip_prefix("m=") {
                let mut words = media.split(' ');
                answer.media.push(AnswerMedia {
                    kind: words.next().unwrap_or_default().to_owned(),
                    port: words.next().and_then(|w| w.parse().ok()).unwrap_or_default(),
                    ..AnswerMedia::default()
                });
            } else if let Some(attribute) = line.strip_prefix("a=") {
                let (name, value) = attribute.split_once(':').unwrap_or((attribute, ""));
                answer.transport_attribute(name, value);
                if let Some(media) = answer.media.last_mut() {
                    media.attribute(name, value);
                }
            }
        }
        answer
    }

    pub fn credentials(&self) -> Credentials {
        Credentials {
            ufrag: self.ufrag.clone(),
            pwd: self.pwd.clone(),
        }
    }

    fn transport_attribute(&mut self, name: &str, value: &str) {
        match name {
            "ice-ufrag" => value.clone_into(&mut self.ufrag),
            "ice-pwd" => value.clone_into(&mut self.pwd),
            "fingerprint" => value.clone_into(&mut self.fingerprint),
            "setup" => value.clone_into(&mut self.setup),
            "candidate" => {
                let words: Vec<&str> = value.split(' ').collect();
                let address = (
                    words.get(4).and_then(|w| w.parse().ok()),
                    words.get(5).and_then(|w| w.parse().ok()),
                );
                if let (Some(ip), Some(port)) = address {
                    let candidate = SocketAddr::new(ip, port);
                    if words.get(2).is_some_and(|w| w.eq_ignore_ascii_case("udp"))
                        && !self.candidates.contains(&candidate)
                    {
                        self.candidates.push(candidate);
                    }
                }
            }
            _ => {}
        }
    }
}

impl AnswerMedia {
    fn attribute(&mut self, name: &str, value: &str) {
        let first = value.split(' ').next().unwrap_or_default();
        match name {
            "mid" => value.clone_into(&mut self.mid),
            "sendonly" | "recvonly" | "inactive" | "sendrecv" => name.clone_into(&mut self.direction),
            "rtpmap" => {
                let encoding = value.split(' ').nth(1).and_then(|e| e.split('/').next());
                if let (Ok(pt), Some(encoding)) = (first.parse(), encoding) {
                    self.codecs.push((pt, encoding.to_owned()));
                }
            }
            "ssrc" => {
                if let Ok(ssrc) = first.parse()
                    && !self.ssrcs.contains(&ssrc)
                {
                    self.ssrcs.push(ssrc);
                }
            }
            "ssrc-group" => {
                let mut ssrcs = value
                    .strip_prefix("FID ")
                    .unwrap_or_default()
                    .split(' ')
                    .map(str::parse);
                if let (Some(Ok(primary)), Some(Ok(rtx))) = (ssrcs.next(), ssrcs.next()) {
                    self.fid = Some((primary, rtx));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_says_is_found() {
        let answer = Answer::parse(
            "v=0\r\na=ice-lite\r\na=fingerprint:sha-256 AA:BB\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=ice-ufrag:u\r\n\
             a=ice-pwd:p\r\na=setup:passive\r\na=candidate:1 1 UDP 2130706431 192.0.2.1 8189 typ host\r\na=mid:0\r\n\
             a=sendonly\r\na=rtpmap:111 opus/48000/2\r\na=ssrc-group:FID 1 2\r\na=ssrc:1 cname:x\r\na=ssrc:2 cname:x\r\n",
        );
        assert_eq!(
            (answer.ufrag.as_str(), answer.pwd.as_str(), answer.setup.as_str()),
            ("u", "p", "passive")
        );
        assert_eq!(answer.candidates, [SocketAddr::from(([192, 0, 2, 1], 8189))]);
        let media = &answer.media[0];
        assert_eq!(
            (media.kind.as_str(), media.mid.as_str(), media.direction.as_str()),
            ("audio", "0", "sendonly")
        );
        assert_eq!(media.codecs, [(111, "opus".to_owned())]);
        assert_eq!((media.ssrcs.as_slice(), media.fid), ([1, 2].as_slice(), Some((1, 2))));
    }
}
