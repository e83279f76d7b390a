//! Texts for the syntax errors of the TOML parser.

/// Name in a table header that is not a bare key.
const UNQUOTED_NAME_TEXT: &str = "a name with characters other than letters, digits, `_` and `-` must be in quotes, such as \
                              [streams.\"studio/a\"]";

/// Returns whether a message of the parser is about a list or an inline table without its end.
pub(super) fn is_unclosed_list_or_table_error(message: &str) -> bool {
    message.starts_with("unclosed array,") || message.starts_with("unclosed inline table")
}

/// Returns the text for a message of the parser. `line` is the line of the error, and `is_empty` says that there is
/// nothing at its position. Messages without a better text are returned as they are.
pub(super) fn explain_syntax_error(message: &str, line: &str, is_empty: bool) -> String {
    let starts = |words: &[&str]| words.iter().any(|word| message.starts_with(word));
    let is_header = line.trim_start().starts_with('[');
    let text = if starts(&["string values must be quoted"]) && is_empty {
        "the value is missing"
    } else if starts(&[
        "string values must be quoted",
        "missing opening quote",
        "invalid float",
        "invalid integer",
        "invalid datetime",
        "unexpected leading zero",
    ]) {
        "expected a string in quotes (\"text\"), a number, `true` or `false`"
    } else if starts(&["invalid boolean"]) {
        "expected `true` or `false`"
    } else if starts(&["invalid basic string", "invalid literal string", "invalid multi-line"]) {
        match is_empty {
            true => "the string has no closing quote",
            false => "the string contains a control character: write an escape sequence such as `\\t`",
        }
    } else if starts(&["missing escaped value"]) {
        "unknown escape sequence: write a backslash as `\\\\`, or use single quotes"
    } else if starts(&["unclosed array,"]) {
        "the list that begins here has no closing `]`"
    } else if starts(&["unclosed inline table"]) {
        "the table that begins here has no closing `}`"
    } else if starts(&["unclosed table", "unclosed array table"]) && !line.contains(']') {
        "the table header has no closing `]`"
    } else if is_header && starts(&["unclosed table", "unclosed array table", "invalid unquoted key"]) {
        UNQUOTED_NAME_TEXT
    } else if is_header && starts(&["unquoted keys cannot be empty"]) {
        "the table header has no name"
    } else if starts(&["unexpected key or value"]) {
        match is_header {
            true => "unexpected text after the table header",
            false => "unexpected text after the value",
        }
    } else if starts(&[
        "key with no value",
        "invalid unquoted key",
        "invalid key-value pair",
        "unquoted keys cannot be empty",
    ]) {
        "expected `key = value`"
    } else {
        message.trim_end_matches(", expected nothing")
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;

    #[test]
    fn messages_of_the_parser_get_texts_that_say_what_to_write() {
        for (text, wanted) in [
            (
                "a = “x”",
                "expected a string in quotes (\"text\"), a number, `true` or `false`",
            ),
            (
                "a = 10s",
                "expected a string in quotes (\"text\"), a number, `true` or `false`",
            ),
            (
                "a = 0.0.0.0:80",
                "expected a string in quotes (\"text\"), a number, `true` or `false`",
            ),
            (
                "a = 01",
                "expected a string in quotes (\"text\"), a number, `true` or `false`",
            ),
            ("a = tru", "expected `true` or `false`"),
            ("a =", "the value is missing"),
            ("a = 'x", "the string has no closing quote"),
            ("a = \"\"\"x", "the string has no closing quote"),
            (
                "a = \"x\u{1}\"",
                "the string contains a control character: write an escape sequence such as `\\t`",
            ),
            ("a = \"x\" 1", "unexpected text after the value"),
            ("[a]]", "unexpected text after the table header"),
            ("[]", "the table header has no name"),
            ("[a", "the table header has no closing `]`"),
            ("[front door]", UNQUOTED_NAME_TEXT),
            ("[caf\u{e9}]", UNQUOTED_NAME_TEXT),
            ("{\"a\": 1}", "expected `key = value`"),
            ("= 1", "expected `key = value`"),
            ("a", "expected `key = value`"),
        ] {
            let (_, errors) = DeTable::parse_recoverable(text);
            let error = errors
                .iter()
                .min_by_key(|error| error.span().map(|span| span.start))
                .expect(text);
            let is_empty = error.span().is_none_or(|span| span.is_empty());
            assert_eq!(
                explain_syntax_error(error.message(), text, is_empty),
                wanted,
                "{text}: {}",
                error.message()
            );
        }
    }
}
