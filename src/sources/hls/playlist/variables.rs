//! Variables of playlists (rfc8216bis §4.3, §4.4.2.3): EXT-X-DEFINE, and `{$NAME}` in URIs and attributes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;
use url::Url;

use super::attributes::attribute_value;

/// The variables that a playlist defines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaylistVariables(BTreeMap<String, String>);

/// Where a playlist comes from: its variables may, too.
#[derive(Clone, Debug, Default)]
pub struct PlaylistContext {
    /// Its URL after redirects.
    pub url: Option<Url>,
    /// Variables of the multivariant playlist that lists it.
    pub multivariant_variables: Arc<PlaylistVariables>,
}

/// Why variables cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum VariableError {
    #[error(
        "the playlist uses the variable {0}, but does not define it (EXT-X-DEFINE), and neither do its multivariant playlist and its URL"
    )]
    Undefined(String),
    #[error(
        "the playlist is longer than {MAX_REPLACED_BYTES} bytes after the substitution of its variables (EXT-X-DEFINE)"
    )]
    TooLong,
}

/// Maximum number of variables; further ones are not defined.
const MAX_VARIABLES: usize = 256;

/// Maximum length of the text in which variables were replaced: as much as a playlist may have without variables.
const MAX_REPLACED_BYTES: usize = 16 << 20;

/// Replaces the variables of one playlist.
#[derive(Debug)]
pub(super) struct VariableReplacer<'c> {
    context: &'c PlaylistContext,
    /// Parameters of the URL, from the first time that one is asked for.
    query_parameters: Option<BTreeMap<String, String>>,
    defined: PlaylistVariables,
    replaced_bytes: usize,
}

impl<'c> VariableReplacer<'c> {
    pub(super) fn new(context: &'c PlaylistContext) -> Self {
        Self {
            context,
            query_parameters: None,
            defined: PlaylistVariables::default(),
            replaced_bytes: 0,
        }
    }

    /// Returns the variables that were defined.
    pub(super) fn into_variables(self) -> PlaylistVariables {
        self.defined
    }

    /// Reads an EXT-X-DEFINE. One whose value is not found defines nothing: that is an error where it is used.
    pub(super) fn define(&mut self, attributes: &str) {
        let attribute = |name| attribute_value(attributes, name);
        let (name, value) = if let Some(name) = attribute("NAME") {
            (name, attribute("VALUE"))
        } else if let Some(name) = attribute("IMPORT") {
            let value = self.context.multivariant_variables.0.get(&name).cloned();
            (name, value)
        } else if let Some(name) = attribute("QUERYPARAM") {
            let value = self.can_define(&name).then(|| self.query_parameter(&name)).flatten();
            (name, value)
        } else {
            return;
        };
        if let Some(value) = value
            && self.can_define(&name)
        {
            self.defined.0.insert(name, value);
        }
    }

    fn can_define(&self, name: &str) -> bool {
        self.defined.0.len() < MAX_VARIABLES || self.defined.0.contains_key(name)
    }

    /// Returns the first parameter of the URL that has this name. It may stand between quotes.
    fn query_parameter(&mut self, name: &str) -> Option<String> {
        let url = self.context.url.as_ref();
        let parameters = self.query_parameters.get_or_insert_with(|| {
            let mut first = BTreeMap::new();
            for (key, value) in url.iter().flat_map(|url| url.query_pairs()) {
                first
                    .entry(key.into_owned())
                    .or_insert_with(|| value.replace('"', "%22"));
            }
            first
        });
        parameters.get(name).cloned()
    }

    /// Replaces the variables in a URI or in a list of attributes.
    pub(super) fn replace<'t>(&mut self, text: &'t str) -> Result<Cow<'t, str>, VariableError> {
        let Some(mut at) = text.find(REFERENCE_BEGIN) else {
            return Ok(Cow::Borrowed(text));
        };
        let (mut out, mut rest) = (String::with_capacity(text.len()), text);
        loop {
            let (before, reference) = rest.split_at(at);
            out.push_str(before);
            match name_of_reference(reference) {
                Some(name) => {
                    let value = self.defined.0.get(name);
                    out.push_str(value.ok_or_else(|| VariableError::Undefined(name.chars().take(40).collect()))?);
                    rest = reference
                        .get(REFERENCE_BEGIN.len() + name.len() + 1..)
                        .unwrap_or_default();
                }
                None => {
                    out.push_str(REFERENCE_BEGIN);
                    rest = reference.get(REFERENCE_BEGIN.len()..).unwrap_or_default();
                }
            }
            if self.replaced_bytes.saturating_add(out.len()) > MAX_REPLACED_BYTES {
                return Err(VariableError::TooLong);
            }
            match rest.find(REFERENCE_BEGIN) {
                Some(next) => at = next,
                None => break,
            }
        }
        out.push_str(rest);
        self.replaced_bytes = self.replaced_bytes.saturating_add(out.len());
        Ok(Cow::Owned(out))
    }
}

const REFERENCE_BEGIN: &str = "{$";

/// Returns the name in `{$NAME}…`; `None` if it is none, and the characters stand for themselves.
fn name_of_reference(reference: &str) -> Option<&str> {
    let rest = reference.strip_prefix(REFERENCE_BEGIN)?;
    let is_name_character = |c: u8| c.is_ascii_alphanumeric() || b"-_".contains(&c);
    // The scan ends at the next reference at the latest: a line of references without end takes linear time.
    let length = rest.bytes().position(|c| !is_name_character(c))?;
    let (name, behind) = rest.split_at(length);
    (!name.is_empty() && behind.starts_with('}')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(url: &str, imported: &[(&str, &str)]) -> PlaylistContext {
        let imported = imported
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        PlaylistContext {
            url: Url::parse(url).ok(),
            multivariant_variables: Arc::new(PlaylistVariables(imported.collect())),
        }
    }

    #[test]
    fn variables_come_from_the_playlist_its_url_and_the_multivariant_playlist() {
        let context = context(
            "https://x.test/a?token=A%2F1%22&empty=&token=2",
            &[("host", "cdn.test")],
        );
        let mut variables = VariableReplacer::new(&context);
        for definition in [
            "NAME=\"path\",VALUE=\"live/1\"",
            "NAME=\"none\",VALUE=\"\"",
            "IMPORT=\"host\"",
            "QUERYPARAM=\"token\"",
            "QUERYPARAM=\"empty\"",
        ] {
            variables.define(definition);
        }
        for (text, expected) in [
            (
                "https://{$host}/{$path}/{$path}?t={$token}",
                "https://cdn.test/live/1/live/1?t=A/1%22",
            ),
            ("{$none}a{$empty}", "a"),
            ("plain.ts", "plain.ts"),
            ("{$}{$ a}{path}{$path", "{$}{$ a}{path}{$path"),
            ("é{$path}é", "élive/1é"),
        ] {
            assert_eq!(variables.replace(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_variable_that_is_not_defined_is_named() {
        let context = context("https://x.test/a?b=1", &[("other", "1")]);
        let mut variables = VariableReplacer::new(&context);
        for definition in [
            "IMPORT=\"absent\"",
            "QUERYPARAM=\"token\"",
            "NAME=\"no-value\"",
            "X=\"x\"",
        ] {
            variables.define(definition);
        }
        for name in ["absent", "token", "no-value", "other", "b"] {
            let error = variables.replace(&format!("a{{${name}}}")).expect_err("not defined");
            assert!(error.to_string().contains(&format!("the variable {name},")), "{error}");
        }
    }

    /// With quadratic time, each of the two takes minutes.
    #[test]
    fn references_without_end_and_parameters_that_are_absent_take_linear_time() {
        let query = (0..20_000).map(|number| format!("p{number}=1&")).collect::<String>();
        let context = context(&format!("https://x.test/a?{query}"), &[]);
        let mut variables = VariableReplacer::new(&context);
        let text = "{$a".repeat(1 << 21);
        assert_eq!(variables.replace(&text).as_deref(), Ok(text.as_str()));
        for number in 0..20_000 {
            variables.define(&format!("QUERYPARAM=\"absent{number}\""));
        }
        variables.define("QUERYPARAM=\"p19999\"");
        assert_eq!(variables.replace("{$p19999}").as_deref(), Ok("1"));
    }

    #[test]
    fn what_variables_are_replaced_by_is_bounded() {
        let context = PlaylistContext::default();
        let mut variables = VariableReplacer::new(&context);
        variables.define(&format!("NAME=\"a\",VALUE=\"{}\"", "x".repeat(1 << 20)));
        assert_eq!(variables.replace(&"{$a}".repeat(1 << 20)), Err(VariableError::TooLong));
        for _ in 0..16 {
            let replaced = variables.replace("{$a}");
            assert!(replaced.is_ok_and(|text| text.len() == 1 << 20));
        }
        assert_eq!(variables.replace("{$a}"), Err(VariableError::TooLong));
        for number in 0..MAX_VARIABLES * 2 {
            variables.define(&format!("NAME=\"v{number}\",VALUE=\"\""));
        }
        assert_eq!(variables.into_variables().0.len(), MAX_VARIABLES);
    }
}
