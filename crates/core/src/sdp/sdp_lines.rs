//! Parses bytes into lines and attributes: checks the form of every line, lets `rtc-sdp` check the grammar (RFC 8866
//! §9), and records the line number of every attribute. The meaning of attributes is not handled here.
//!
//! Lines that are not needed (origin, name, times, bandwidth, keys, addresses, candidates) are removed or replaced before
//! `rtc-sdp` parses the text, so that mistakes in them do not reject the offer.

use std::io::Cursor;

use rtc_sdp::description::session::SessionDescription;

use super::error::OfferError;
use super::quirks;

/// The lines of an offer, grouped by section.
pub(super) struct SdpDocument {
    /// Attributes before the first m-line.
    pub session_attributes: Vec<AttributeWithLineNumber>,
    pub sections: Vec<RawSection>,
}

/// An m-section as written in the text.
pub(super) struct RawSection {
    /// Line number of the m-line.
    pub line_number: usize,
    /// `audio`, `video`, `application` or any other token.
    pub media_kind: String,
    pub port: u16,
    pub proto: String,
    /// Never empty.
    pub formats: Vec<String>,
    pub attributes: Vec<AttributeWithLineNumber>,
}

/// An `a=key:value`. The value of a flag is empty.
pub(super) struct AttributeWithLineNumber {
    pub line_number: usize,
    pub key: String,
    pub value: String,
}

/// Returns all attributes with this key in order. Some clients write names with capitals.
pub(super) fn attributes_named<'a>(
    attributes: &'a [AttributeWithLineNumber],
    key: &'a str,
) -> impl Iterator<Item = &'a AttributeWithLineNumber> {
    attributes
        .iter()
        .filter(move |attribute| attribute.key.eq_ignore_ascii_case(key))
}

/// Returns the first attribute with this key.
pub(super) fn first_attribute_named<'a>(
    attributes: &'a [AttributeWithLineNumber],
    key: &'a str,
) -> Option<&'a AttributeWithLineNumber> {
    attributes_named(attributes, key).next()
}

/// Whether `sdp_text` is a token (RFC 8866 §9).
pub(super) fn is_sdp_token(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]".contains(&b))
}

/// Parses the body of a request.
pub(super) fn parse_document(body: &[u8]) -> Result<SdpDocument, OfferError> {
    let text = validate_and_decode_body(body)?;
    let kept = normalize_lines_for_parser(text)?;
    let mut cursor = Cursor::new(kept.sdp_text.as_bytes());
    let description = SessionDescription::unmarshal(&mut cursor)
        .map_err(|source| kept.grammar_error_at(cursor.position(), source))?;
    kept.attach_line_numbers(description)
}

fn validate_and_decode_body(body: &[u8]) -> Result<&str, OfferError> {
    if body.len() > MAX_OFFER_BYTES {
        return Err(OfferError::TooLarge { limit: MAX_OFFER_BYTES });
    }
    let text = std::str::from_utf8(body).map_err(|error| {
        let valid = body.get(..error.valid_up_to()).unwrap_or_default();
        OfferError::NotText {
            line: 1 + count_line_ends(valid),
        }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.trim_start().bytes().next() {
        None => Err(OfferError::EmptyBody),
        Some(b'{' | b'[' | b'"') => Err(OfferError::JsonBody),
        Some(_) => Ok(text),
    }
}

/// The lines that `rtc-sdp` parses, with their line numbers in the offer.
#[derive(Default)]
struct SdpLines<'a> {
    sdp_text: String,
    line_numbers: Vec<usize>,
    /// Line numbers of the `a=` lines.
    attribute_line_numbers: Vec<usize>,
    /// Line numbers and media tokens of the `m=` lines.
    media_lines: Vec<(usize, &'a str)>,
    has_version: bool,
    has_session_lines: bool,
}

/// The lines behind the version (RFC 8866 §5). None of them is needed to answer an offer, so that mistakes in them, and
/// what is missing, do not matter.
const SESSION_LINES: [&str; 3] = ["o=- 0 0 IN IP4 0.0.0.0", "s=-", "t=0 0"];

fn normalize_lines_for_parser(text: &str) -> Result<SdpLines<'_>, OfferError> {
    let mut kept = SdpLines::default();
    for (index, raw) in text.split_inclusive('\n').enumerate() {
        let number = index + 1;
        // RFC 8866 §5 requires CRLF and allows parsers to accept a single LF. Blanks at the end of a line mean nothing.
        let line = raw.trim_end_matches(['\r', '\n', ' ', '\t']);
        if line.is_empty() {
            continue;
        }
        validate_line_syntax(number, line)?;
        if !raw.ends_with('\n') {
            return Err(OfferError::MissingLineEnd { line: number });
        }
        kept.push_line_needed_by_parser(number, line)?;
    }
    Ok(kept)
}

fn validate_line_syntax(number: usize, line: &str) -> Result<(), OfferError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(OfferError::LineTooLong {
            line: number,
            limit: MAX_LINE_BYTES,
        });
    }
    if line.chars().any(|c| c.is_control() && c != '\t') {
        return Err(OfferError::NotText { line: number });
    }
    // RFC 8866 §5: a description with an unknown line type must be ignored as a whole.
    match line.as_bytes() {
        [b'v', b'=', ..] if line.trim_end() != "v=0" => Err(OfferError::BadVersion { line: number }),
        [kind, b'=', ..] if b"vosiuepcbtrzkam".contains(kind) => Ok(()),
        _ => Err(OfferError::SyntaxRuleViolated {
            line: number,
            rule: "expected a known type letter, `=` and a value",
        }),
    }
}

impl<'a> SdpLines<'a> {
    fn push_line_needed_by_parser(&mut self, number: usize, line: &'a str) -> Result<(), OfferError> {
        let mut written = line.to_owned();
        match line.as_bytes().first() {
            Some(b'm') => {
                if self.media_lines.len() == MAX_SECTIONS {
                    return Err(OfferError::TooManySections {
                        line: number,
                        limit: MAX_SECTIONS,
                    });
                }
                let media = parse_m_line_media_type(number, line)?;
                written = quirks::replace_unknown_media_kind(line, media);
                self.media_lines.push((number, media));
            }
            // An ICE-lite agent learns addresses from connectivity checks. The peer's candidates are not used; they
            // would allow reflection attacks (RFC 8445 §2.5).
            Some(b'a') if line.starts_with("a=candidate:") => return Ok(()),
            Some(b'a') => self.attribute_line_numbers.push(number),
            // The version tells a description from other text: it is never assumed.
            Some(b'v') if !self.has_version => {
                self.has_version = true;
                self.write_line(number, line);
                return Ok(());
            }
            Some(b'o' | b's') if self.has_version => return Ok(()),
            Some(b't') if self.has_version => {
                self.write_session_lines(number);
                return Ok(());
            }
            Some(b'v' | b'o' | b's' | b't') => {}
            _ => return Ok(()),
        }
        if self.has_version {
            self.write_session_lines(number);
        }
        self.write_line(number, &written);
        Ok(())
    }

    /// Writes [`SESSION_LINES`], once: in front of the time, an attribute or a media section. An offer that has none of these
    /// was cut off.
    fn write_session_lines(&mut self, number: usize) {
        if !self.has_session_lines {
            self.has_session_lines = true;
            SESSION_LINES.iter().for_each(|line| self.write_line(number, line));
        }
    }

    fn write_line(&mut self, number: usize, line: &str) {
        self.line_numbers.push(number);
        self.sdp_text.push_str(line);
        self.sdp_text.push_str("\r\n");
    }

    /// Returns the error for the line that `rtc-sdp` was parsing when it failed at `position`.
    fn grammar_error_at(&self, position: u64, source: rtc_shared::error::Error) -> OfferError {
        let read = usize::try_from(position).unwrap_or(usize::MAX).saturating_sub(1);
        let read = self.sdp_text.as_bytes().get(..read).unwrap_or_default();
        let line = self
            .line_numbers
            .get(count_line_ends(read))
            .or(self.line_numbers.last());
        OfferError::RejectedByParser {
            line: line.copied().unwrap_or(1),
            source,
        }
    }

    /// Combines the parsed description with the line numbers. Both are in the order of the text.
    fn attach_line_numbers(&self, description: SessionDescription) -> Result<SdpDocument, OfferError> {
        let mut numbers = self.attribute_line_numbers.iter().copied();
        let mut attributes = |read: Vec<rtc_sdp::description::common::Attribute>| {
            read.into_iter()
                .zip(&mut numbers)
                .map(|(attribute, line)| AttributeWithLineNumber {
                    line_number: line,
                    key: attribute.key,
                    value: attribute.value.unwrap_or_default().trim().to_owned(),
                })
                .collect::<Vec<_>>()
        };
        let session = attributes(description.attributes);
        let sections = description
            .media_descriptions
            .into_iter()
            .zip(&self.media_lines)
            .map(|(section, (line, media))| RawSection {
                line_number: *line,
                media_kind: (*media).to_owned(),
                port: u16::try_from(section.media_name.port.value).unwrap_or(0),
                proto: section.media_name.protos.join("/"),
                formats: section.media_name.formats,
                attributes: attributes(section.attributes),
            })
            .collect::<Vec<_>>();
        if sections.is_empty() {
            return Err(OfferError::NoMedia);
        }
        Ok(SdpDocument {
            session_attributes: session,
            sections,
        })
    }
}

/// Returns the media token of an m-line after checking that its fields can be repeated in the answer.
fn parse_m_line_media_type(number: usize, line: &str) -> Result<&str, OfferError> {
    let rule = "expected `m=<media> <port> <proto> <fmt> ...`, each field of at most 32 printable ASCII characters";
    let error = OfferError::SyntaxRuleViolated { line: number, rule };
    let fields = line.get(2..).unwrap_or_default();
    let is_short = |field: &str| field.len() <= MAX_MEDIA_LINE_FIELD_LEN && field.bytes().all(|b| b.is_ascii_graphic());
    match fields.split_whitespace().next() {
        Some(media) if is_sdp_token(media) && fields.split_whitespace().all(is_short) => Ok(media),
        _ => Err(error),
    }
}

fn count_line_ends(text: &[u8]) -> usize {
    text.iter().filter(|b| **b == b'\n').count()
}

/// Chromium with every codec and three simulcast layers writes 7 KiB. The HTTP server enforces the same limit earlier.
const MAX_OFFER_BYTES: usize = 64 * 1024;
/// The longest known line is an H.264 fmtp with parameter sets, about 300 bytes.
const MAX_LINE_BYTES: usize = 2 * 1024;
/// Publishers and viewers use one audio, one video and a data channel section. Conference clients offer some more.
const MAX_SECTIONS: usize = 16;
/// The longest known field of an m-line is `webrtc-datachannel`. Limits what the answer repeats of a rejected section. The
/// text of the refusal names it.
const MAX_MEDIA_LINE_FIELD_LEN: usize = 32;
