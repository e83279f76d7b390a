//! An SDP parser independent of the gateway's: lines, sections, first and all values of an attribute.

pub(super) struct Description {
    pub session: Vec<String>,
    pub sections: Vec<Section>,
}

#[derive(Clone)]
pub(super) struct Section {
    /// Fields of the m-line.
    pub fields: Vec<String>,
    /// Lines below it.
    pub lines: Vec<String>,
}

impl Description {
    pub(super) fn read(text: &str) -> Self {
        let mut description = Self {
            session: Vec::new(),
            sections: Vec::new(),
        };
        // Spaces around a value are no part of it, for the gateway's parser either.
        let without_spaces = |line: &str| match line.split_once('=') {
            Some((kind, value)) => format!("{kind}={}", value.trim()),
            None => line.trim_end().to_owned(),
        };
        let lines = text.split('\n').map(without_spaces);
        for line in lines.filter(|line| !line.is_empty()) {
            if let Some(media) = line.strip_prefix("m=") {
                description.sections.push(Section {
                    // The gateway takes media types in any case.
                    fields: media
                        .split_whitespace()
                        .enumerate()
                        .map(|(index, field)| {
                            if index == 0 {
                                field.to_ascii_lowercase()
                            } else {
                                field.to_owned()
                            }
                        })
                        .collect(),
                    lines: Vec::new(),
                });
            } else if let Some(section) = description.sections.last_mut() {
                section.lines.push(line);
            } else {
                description.session.push(line);
            }
        }
        description
    }

    /// All values of a session attribute.
    pub(super) fn all(&self, key: &str) -> Vec<&str> {
        values(&self.session, key)
    }

    pub(super) fn has(&self, line: &str) -> bool {
        self.session.iter().any(|l| l == line)
    }

    /// The BUNDLE groups.
    pub(super) fn bundles(&self) -> Vec<Vec<&str>> {
        self.all("group")
            .iter()
            .map(|group| group.split_whitespace().collect::<Vec<_>>())
            .filter(|group| {
                group
                    .first()
                    .is_some_and(|semantics| semantics.eq_ignore_ascii_case("BUNDLE"))
            })
            .map(|group| group[1..].to_vec())
            .collect()
    }
}

impl Section {
    pub(super) fn media(&self) -> &str {
        &self.fields[0]
    }

    pub(super) fn port(&self) -> &str {
        &self.fields[1]
    }

    pub(super) fn proto(&self) -> &str {
        &self.fields[2]
    }

    pub(super) fn formats(&self) -> Vec<&str> {
        self.fields[3..].iter().map(String::as_str).collect()
    }

    pub(super) fn all(&self, key: &str) -> Vec<&str> {
        values(&self.lines, key)
    }

    pub(super) fn first(&self, key: &str) -> Option<&str> {
        self.all(key).first().copied()
    }

    pub(super) fn has(&self, line: &str) -> bool {
        self.lines.iter().any(|l| l.eq_ignore_ascii_case(line))
    }

    /// Whether there is a flag. A colon and a value behind it do not count, for the gateway's parser either.
    pub(super) fn has_flag(&self, key: &str) -> bool {
        let mut attributes = self.lines.iter().filter_map(|line| line.strip_prefix("a="));
        attributes.any(|attribute| attribute.split(':').next().is_some_and(|k| k.eq_ignore_ascii_case(key)))
    }

    /// `rtpmap` of a payload type, in lower case, without the one channel that may be left out and what follows it.
    pub(super) fn codec(&self, pt: &str) -> Option<String> {
        let map = self
            .of_pt("rtpmap", pt)
            .first()
            .map(|map| map.trim().to_ascii_lowercase());
        let map = map.or(match pt {
            "0" => Some("pcmu/8000".to_owned()),
            "8" => Some("pcma/8000".to_owned()),
            _ => None,
        })?;
        let fields: Vec<&str> = map.split('/').take(3).collect();
        let map = fields.join("/");
        Some(map.strip_suffix("/1").unwrap_or(&map).to_owned())
    }

    /// Values of `key:<pt> value`.
    pub(super) fn of_pt(&self, key: &str, pt: &str) -> Vec<&str> {
        self.all(key)
            .into_iter()
            .filter_map(|value| value.split_once(' '))
            .filter(|(p, _)| *p == pt || (*p == "*" && key == "rtcp-fb"))
            .map(|(_, value)| value.trim())
            .collect()
    }

    /// A format parameter, of any line of its payload type.
    pub(super) fn parameter(&self, pt: &str, key: &str) -> Option<&str> {
        self.of_pt("fmtp", pt)
            .into_iter()
            .flat_map(|line| line.split(';'))
            .filter_map(|parameter| parameter.split_once('='))
            .find(|(k, _)| k.trim().eq_ignore_ascii_case(key))
            .map(|(_, value)| value.trim())
    }
}

fn values<'a>(lines: &'a [String], key: &str) -> Vec<&'a str> {
    lines
        .iter()
        .filter_map(|line| line.strip_prefix("a=")?.split_once(':'))
        .filter(|(k, _)| k.eq_ignore_ascii_case(key))
        .map(|(_, value)| value.trim())
        .collect()
}
