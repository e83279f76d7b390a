//! Reads the few elements that are needed of the XML of ONVIF devices. Prefixes of namespaces differ by vendor, so
//! elements are known by their local names. Nothing is resolved: no entities but the predefined ones, no DTD.

/// An element: its local name, the text of its attributes, and the text directly in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    attributes: String,
    pub(super) text: String,
    /// Number of elements around it.
    pub(super) depth: usize,
}

/// Maximum length of a reference after its `&`, in bytes: `#1114111;`, `#x0010FFFF;`.
const MAX_REFERENCE_BYTES: usize = 12;

/// Maximum number of elements that are read; an answer has some hundred.
const MAX_XML_ELEMENTS: usize = 20_000;

impl Element {
    /// Returns the value of an attribute, by its local name.
    pub(super) fn attribute(&self, name: &str) -> Option<String> {
        let mut rest = self.attributes.as_str();
        while let Some((key, after)) = rest.split_once('=') {
            let after = after.trim_start();
            let quote = after.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
            let (value, next) = after.get(1..)?.split_once(quote)?;
            if local_name(key.trim()) == name {
                return Some(unescape(value));
            }
            rest = next;
        }
        None
    }
}

/// Returns all elements in the order of their begin.
pub(super) fn parse_elements(text: &str) -> Vec<Element> {
    let mut elements: Vec<Element> = Vec::new();
    // Indices of the elements around the current position.
    let mut open: Vec<usize> = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        append_text_to_open_element(&mut elements, &open, &unescape(before));
        let skipped = skip_comment_or_cdata(after);
        if let Some((content, next)) = skipped {
            append_text_to_open_element(&mut elements, &open, content);
            rest = next;
            continue;
        }
        let Some((tag, next)) = after.split_once('>') else {
            break;
        };
        rest = next;
        if tag.starts_with('/') {
            open.pop();
            continue;
        }
        if elements.len() >= MAX_XML_ELEMENTS {
            break;
        }
        let (content, is_empty) = match tag.strip_suffix('/') {
            Some(content) => (content, true),
            None => (tag, false),
        };
        let (name, attributes) = content.split_once(char::is_whitespace).unwrap_or((content, ""));
        elements.push(Element {
            name: local_name(name).to_owned(),
            attributes: attributes.to_owned(),
            text: String::new(),
            depth: open.len(),
        });
        if !is_empty {
            open.push(elements.len() - 1);
        }
    }
    for element in &mut elements {
        element.text = element.text.trim().to_owned();
    }
    elements
}

/// Returns the text of the first element with a name.
pub(super) fn text_of_first_element_named(elements: &[Element], name: &str) -> Option<String> {
    let mut named = elements.iter().filter(|element| element.name == name);
    named
        .next()
        .map(|element| element.text.clone())
        .filter(|text| !text.is_empty())
}

/// Returns the elements inside of each element with a name, that one first.
pub(super) fn element_subtrees<'a>(elements: &'a [Element], name: &str) -> Vec<&'a [Element]> {
    let starts = elements.iter().enumerate().filter(|(_, element)| element.name == name);
    let group = |(start, element): (usize, &Element)| {
        let inner = elements.get(start + 1..).unwrap_or_default();
        let length = inner.iter().take_while(|inner| inner.depth > element.depth).count();
        elements.get(start..=start + length).unwrap_or_default()
    };
    starts.map(group).collect()
}

/// Skips a comment, a declaration or a section of text that begins after `<`. Returns its text and what follows.
fn skip_comment_or_cdata(after: &str) -> Option<(&str, &str)> {
    let (begin, end, is_text) = if after.starts_with("!--") {
        ("!--", "-->", false)
    } else if after.starts_with("![CDATA[") {
        ("![CDATA[", "]]>", true)
    } else if after.starts_with('?') {
        ("?", "?>", false)
    } else if after.starts_with('!') {
        ("!", ">", false)
    } else {
        return None;
    };
    let content = after.strip_prefix(begin)?;
    let (content, next) = content.split_once(end).unwrap_or((content, ""));
    Some((if is_text { content } else { "" }, next))
}

fn append_text_to_open_element(elements: &mut [Element], open: &[usize], text: &str) {
    if let Some(element) = open.last().and_then(|index| elements.get_mut(*index)) {
        element.text.push_str(text);
    }
}

fn local_name(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}

/// Replaces the predefined entities and numeric references (XML 1.0 §4.1, §4.6). Others are kept as they are.
fn unescape(text: &str) -> String {
    let mut unescaped = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        unescaped.push_str(before);
        match parse_leading_entity_reference(after) {
            Some((referred, next)) => {
                unescaped.push(referred);
                rest = next;
            }
            None => {
                unescaped.push('&');
                rest = after;
            }
        }
    }
    unescaped + rest
}

/// Returns the character of the reference that follows a `&`, and what follows it. Text without `;` is not searched to
/// its end: it may be one `&` after the other.
fn parse_leading_entity_reference(after: &str) -> Option<(char, &str)> {
    let end = after.bytes().take(MAX_REFERENCE_BYTES).position(|byte| byte == b';')?;
    Some((char_of_entity_reference(after.get(..end)?)?, after.get(end + 1..)?))
}

fn char_of_entity_reference(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        name => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

/// Escapes text for an element or attribute.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_by_their_local_names() {
        let text = "<?xml version=\"1.0\"?><!-- <a/> --><e:Envelope xmlns:e=\"x\"><Profiles token='p&amp;1' fixed=\"true\">\n\
                    <tt:Name>Main &#38; <![CDATA[<first>]]></tt:Name><tt:Empty/></Profiles><Profiles token=\"p2\"/></e:Envelope>";
        let elements = parse_elements(text);
        let names: Vec<(&str, usize)> = elements.iter().map(|e| (e.name.as_str(), e.depth)).collect();
        assert_eq!(
            names,
            [
                ("Envelope", 0),
                ("Profiles", 1),
                ("Name", 2),
                ("Empty", 2),
                ("Profiles", 1)
            ]
        );
        assert_eq!(
            text_of_first_element_named(&elements, "Name").as_deref(),
            Some("Main & <first>")
        );
        let profiles = element_subtrees(&elements, "Profiles");
        assert_eq!(profiles.iter().map(|group| group.len()).collect::<Vec<_>>(), [3, 1]);
        assert_eq!(profiles[0][0].attribute("token").as_deref(), Some("p&1"));
        assert_eq!(profiles[0][0].attribute("fixed").as_deref(), Some("true"));
        assert_eq!(profiles[1][0].attribute("missing"), None);
    }

    /// How often a reference is looked for in the rest of the text is what grew with its square.
    #[test]
    fn a_reference_is_looked_for_nearby_only() {
        let ampersands = "&".repeat(1024 * 1024);
        assert_eq!(unescape(&ampersands), ampersands);
        let long = format!("&#{}65;", "0".repeat(20));
        assert_eq!(unescape(&long), long);
        assert_eq!(parse_leading_entity_reference("amp;b"), Some(('&', "b")));
        assert_eq!(parse_leading_entity_reference("#x0010FFFF;"), Some(('\u{10ffff}', "")));
        assert_eq!(parse_leading_entity_reference("ééééé;amp;"), None);
    }

    #[test]
    fn malformed_text_ends_and_does_not_panic() {
        for text in [
            "",
            "<",
            "<a",
            "</a></b>",
            "<a b=c>",
            "<a b='>",
            "<!--",
            "<![CDATA[x",
            "&#xffffffff;",
            "<a>&x;é</a>",
            "<é:é é='é'/>",
        ] {
            for element in parse_elements(text) {
                let _ = element.attribute("b");
            }
        }
        assert_eq!(parse_elements("<a>&x;&#65;</a>")[0].text, "&x;A");
        assert_eq!(parse_elements(&"<a>".repeat(100_000)).len(), MAX_XML_ELEMENTS);
    }
}
