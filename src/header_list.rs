//! Lists in header fields of HTTP and RTSP, whose elements may hold quoted strings (RFC 9110 §5.6).

/// The parts of a list, in order.
pub(crate) struct ListElements<'a> {
    pub(crate) elements: Vec<&'a [u8]>,
    /// The last quoted string has no end: nobody knows where the elements after its beginning are.
    pub(crate) has_unterminated_quote: bool,
}

/// Splits at a separator that is not within a quoted string (RFC 9110 §5.6.4), where `\` escapes the next character.
pub(crate) fn split_outside_quotes(text: &[u8], separator: u8) -> ListElements<'_> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let elements = text.split(|byte| {
        let was_escaped = std::mem::take(&mut is_escaped);
        match byte {
            b'\\' if is_quoted && !was_escaped => is_escaped = true,
            b'"' if !was_escaped => is_quoted = !is_quoted,
            _ => return *byte == separator && !is_quoted,
        }
        false
    });
    let elements = elements.collect();
    ListElements {
        elements,
        has_unterminated_quote: is_quoted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_strings_and_escapes_in_them_are_not_split() {
        for (text, elements, has_unterminated_quote) in [
            ("a,b", &["a", "b"][..], false),
            ("", &[""], false),
            (r#"a="x,y",b"#, &[r#"a="x,y""#, "b"], false),
            (r#"a="x\",y",b"#, &[r#"a="x\",y""#, "b"], false),
            (r#"a="x\\",b"#, &[r#"a="x\\""#, "b"], false),
            // Outside of a quoted string a backslash is a character as any other.
            (r#"a\,b"#, &[r"a\", "b"], false),
            (r#"a="x,b"#, &[r#"a="x,b"#], true),
            (r#"a="x\","#, &[r#"a="x\","#], true),
        ] {
            let split = split_outside_quotes(text.as_bytes(), b',');
            let expected: Vec<&[u8]> = elements.iter().map(|element| element.as_bytes()).collect();
            assert_eq!(
                (split.elements, split.has_unterminated_quote),
                (expected, has_unterminated_quote),
                "{text}"
            );
        }
    }
}
