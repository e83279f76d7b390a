//! Parses bytes into lines and attributes: checks the form of every line, lets `rtc-sdp` check the grammar (RFC 8866
//! §9), and records the line number of every attribute. The meaning of attributes is not handled here.
//!
//! Lines that are not needed (bandwidth, keys, addresses, candidates) are removed before `rtc-sdp` parses the text, so
//! that mistakes in them do not reject the offer.

use std::io::Cursor;

use rtc_sdp::description::session::SessionDescription;

use super::error::OfferError;
use super::quirks;

/// The lines of an offer, grouped by section.
pub(super) struct Document {
    /// Attributes before the first m-line.
    pub session: Vec<Attribute>,
    pub sections: Vec<RawSection>,
}

/// An m-section as written in the text.
pub(super) struct RawSection {
    /// Line number of the m-line.
    pub line: usize,
    /// `audio`, `video`, `application` or any other token.
    pub media: String,
    pub port: u16,
    pub proto: String,
    /// Never empty.
    pub formats: Vec<String>,
    pub attributes: Vec<Attribute>,
}

/// An `a=key:value`. The value of a flag is empty.
pub(super) struct Attribute {
    pub line: usize,
    pub key: String,
    pub value: String,
}

/// Returns all attributes with this key in order. Some clients write names with capitals.
pub(super) fn all<'a>(attributes: &'a [Attribute], key: &'a str) -> impl Iterator<Item = &'a Attribute> {
    attributes
        .iter()
        .filter(move |attribute| attribute.key.eq_ignore_ascii_case(key))
}

/// Returns the first attribute with this key.
pub(super) fn first<'a>(attributes: &'a [Attribute], key: &'a str) -> Option<&'a Attribute> {
    all(attributes, key).next()
}

/// Whether `text` is a token (RFC 8866 §9).
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]".contains(&b))
}

/// Parses the body of a request.
pub(super) fn read(body: &[u8]) -> Result<Document, OfferError> {
    let text = as_text(body)?;
    let kept = keep_lines(text)?;
    let mut cursor = Cursor::new(kept.text.as_bytes());
    let description =
        SessionDescription::unmarshal(&mut cursor).map_err(|source| kept.error_at(cursor.position(), source))?;
    kept.with_line_numbers(description)
}

fn as_text(body: &[u8]) -> Result<&str, OfferError> {
    if body.len() > MAX_BODY {
        return Err(OfferError::TooLarge { limit: MAX_BODY });
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        let valid = body.get(..error.valid_up_to()).unwrap_or_default();
        OfferError::NotText {
            line: 1 + count_line_ends(valid),
        }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.trim_start().bytes().next() {
        None => Err(OfferError::Missing),
        Some(b'{' | b'[' | b'"') => Err(OfferError::Json),
        Some(_) => Ok(text),
    }
}

/// The lines that `rtc-sdp` parses, with their line numbers in the offer.
#[derive(Default)]
struct SdpLines<'a> {
    text: String,
    numbers: Vec<usize>,
    /// Line numbers of the `a=` lines.
    attributes: Vec<usize>,
    /// Line numbers and media tokens of the `m=` lines.
    sections: Vec<(usize, &'a str)>,
    /// How many of [`HEADER`] were written.
    header: usize,
}

/// The lines that begin a description (RFC 8866 §5), with what is assumed for those that an offer leaves out: none of
/// them is needed to answer it.
const HEADER: [(u8, &str); 4] = [
    (b'v', "v=0"),
    (b'o', "o=- 0 0 IN IP4 0.0.0.0"),
    (b's', "s=-"),
    (b't', "t=0 0"),
];

fn keep_lines(text: &str) -> Result<SdpLines<'_>, OfferError> {
    let mut kept = SdpLines::default();
    for (index, raw) in text.split_inclusive('\n').enumerate() {
        let number = index + 1;
        // RFC 8866 §5 requires CRLF and allows parsers to accept a single LF. Blanks at the end of a line mean nothing.
        let line = raw.trim_end_matches(['\r', '\n', ' ', '\t']);
        if line.is_empty() {
            continue;
        }
        check_shape(number, line)?;
        if !raw.ends_with('\n') {
            return Err(OfferError::CutOff { line: number });
        }
        kept.push(number, line)?;
    }
    Ok(kept)
}

fn check_shape(number: usize, line: &str) -> Result<(), OfferError> {
    if line.len() > MAX_LINE {
        return Err(OfferError::LineTooLong {
            line: number,
            limit: MAX_LINE,
        });
    }
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(OfferError::NotText { line: number });
    }
    // RFC 8866 §5: a description with an unknown line type must be ignored as a whole.
    match line.as_bytes() {
        [b'v', b'=', ..] if line.trim_end() != "v=0" => Err(OfferError::BadVersion { line: number }),
        [kind, b'=', ..] if b"vosiuepcbtrzkam".contains(kind) => Ok(()),
        _ => Err(OfferError::Syntax {
            line: number,
            rule: "a line is a known type letter, `=` and a value",
        }),
    }
}

impl<'a> SdpLines<'a> {
    fn push(&mut self, number: usize, line: &'a str) -> Result<(), OfferError> {
        let mut written = line.to_owned();
        match line.as_bytes().first() {
            Some(b'm') => {
                if self.sections.len() == MAX_SECTIONS {
                    return Err(OfferError::TooManySections {
                        line: number,
                        limit: MAX_SECTIONS,
                    });
                }
                let media = check_media_line(number, line)?;
                written = quirks::with_known_media(line, media);
                self.sections.push((number, media));
            }
            // An ICE-lite agent learns addresses from connectivity checks. The peer's candidates are not used; they
            // would allow reflection attacks (RFC 8445 §2.5).
            Some(b'a') if line.starts_with("a=candidate:") => return Ok(()),
            Some(b'a') => self.attributes.push(number),
            // Some clients leave the name of the session empty.
            Some(b's') => "s=-".clone_into(&mut written),
            Some(b'v' | b'o' | b't') => {}
            _ => return Ok(()),
        }
        match HEADER
            .iter()
            .position(|(kind, _)| line.as_bytes().first() == Some(kind))
        {
            // The version tells a description from other text: it is never assumed.
            Some(0) => self.header = self.header.max(1),
            Some(_) if self.header == 0 => {}
            Some(place) => {
                self.assume_header(place, number);
                self.header = self.header.max(place + 1);
            }
            None => self.complete_header(number),
        }
        self.write(number, &written);
        Ok(())
    }

    fn write(&mut self, number: usize, line: &str) {
        self.numbers.push(number);
        self.text.push_str(line);
        self.text.push_str("\r\n");
    }

    /// Writes the lines of the header before `place` that the offer lacks, in front of its line `number`.
    fn assume_header(&mut self, place: usize, number: usize) {
        for (_, assumed) in HEADER.iter().take(place).skip(self.header) {
            self.write(number, assumed);
        }
    }

    fn complete_header(&mut self, number: usize) {
        if self.header > 0 {
            self.assume_header(HEADER.len(), number);
            self.header = HEADER.len();
        }
    }

    /// Returns the error for the line that `rtc-sdp` was parsing when it failed at `position`.
    fn error_at(&self, position: u64, source: rtc_shared::error::Error) -> OfferError {
        let read = usize::try_from(position).unwrap_or(usize::MAX).saturating_sub(1);
        let read = self.text.as_bytes().get(..read).unwrap_or_default();
        let line = self.numbers.get(count_line_ends(read)).or(self.numbers.last());
        OfferError::Grammar {
            line: line.copied().unwrap_or(1),
            source,
        }
    }

    /// Combines the parsed description with the line numbers. Both are in the order of the text.
    fn with_line_numbers(&self, description: SessionDescription) -> Result<Document, OfferError> {
        let mut numbers = self.attributes.iter().copied();
        let mut attributes = |read: Vec<rtc_sdp::description::common::Attribute>| {
            read.into_iter()
                .zip(&mut numbers)
                .map(|(attribute, line)| Attribute {
                    line,
                    key: attribute.key,
                    value: attribute.value.unwrap_or_default().trim().to_owned(),
                })
                .collect::<Vec<_>>()
        };
        let session = attributes(description.attributes);
        let sections = description
            .media_descriptions
            .into_iter()
            .zip(&self.sections)
            .map(|(section, (line, media))| RawSection {
                line: *line,
                media: (*media).to_owned(),
                port: u16::try_from(section.media_name.port.value).unwrap_or(0),
                proto: section.media_name.protos.join("/"),
                formats: section.media_name.formats,
                attributes: attributes(section.attributes),
            })
            .collect::<Vec<_>>();
        if sections.is_empty() {
            return Err(OfferError::NoMedia);
        }
        Ok(Document { session, sections })
    }
}

/// Returns the media token of an m-line after checking that its fields can be repeated in the answer.
fn check_media_line(number: usize, line: &str) -> Result<&str, OfferError> {
    let rule = "an m-line has a media kind, a port, a protocol and formats, each a short token";
    let error = OfferError::Syntax { line: number, rule };
    let fields = line.get(2..).unwrap_or_default();
    let is_short = |field: &str| field.len() <= MAX_FIELD && field.bytes().all(|b| b.is_ascii_graphic());
    match fields.split_whitespace().next() {
        Some(media) if is_token(media) && fields.split_whitespace().all(is_short) => Ok(media),
        _ => Err(error),
    }
}

fn count_line_ends(text: &[u8]) -> usize {
    text.iter().filter(|b| **b == b'\n').count()
}

/// Chromium with every codec and three simulcast layers writes 7 KiB. The HTTP server enforces the same limit earlier.
const MAX_BODY: usize = 64 * 1024;
/// The longest known line is an H.264 fmtp with parameter sets, about 300 bytes.
const MAX_LINE: usize = 2 * 1024;
/// Publishers and viewers use one audio, one video and a data channel section. Conference clients offer some more.
const MAX_SECTIONS: usize = 16;
/// The longest known field of an m-line is `webrtc-datachannel`. Limits what the answer repeats of a rejected section.
const MAX_FIELD: usize = 32;
