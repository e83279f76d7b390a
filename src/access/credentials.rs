//! What the section `auth` of the configuration names, read: tokens from files and variables, keys from files.

use std::path::Path;

use super::hook::Hook;
use super::jwt::{Key, Verifier};
use super::pattern::Pattern;
use super::{FixedToken, Permissions};
use crate::config::{Auth, Mistake, Secret, TokenConfig, named};

/// What decides about access is made of this.
pub struct Credentials {
    /// `None`: the caller makes one.
    pub publish: Option<Secret>,
    pub(super) play: Option<Secret>,
    pub(super) api: Option<Secret>,
    /// Tokens for some streams.
    pub(super) tokens: Vec<FixedToken>,
    pub(super) verifier: Option<Verifier>,
    pub(super) hook: Option<Hook>,
    pub(super) in_query: bool,
}

impl Credentials {
    /// Reads the files and variables that the section names.
    ///
    /// # Errors
    ///
    /// All that cannot be used, by key.
    pub fn read(auth: &Auth) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let keys = keys(auth, &mut mistakes);
        let mut token = |key: &str, given: &Option<Secret>, file: Option<&Path>| match file {
            Some(file) => in_file(file)
                .map_err(|problem| mistakes.push(Mistake::new(key, problem)))
                .ok(),
            None => given.clone(),
        };
        let publish = token(
            "auth.publish_token_file",
            &auth.publish_token,
            auth.publish_token_file.as_deref(),
        );
        let play = token(
            "auth.play_token_file",
            &auth.play_token,
            auth.play_token_file.as_deref(),
        );
        let api = token("auth.api_token_file", &auth.api_token, auth.api_token_file.as_deref());
        let mut tokens = Vec::new();
        for (index, token) in auth.tokens.iter().enumerate() {
            match fixed(token) {
                Ok(token) => tokens.push(token),
                Err(wrong) => {
                    let path = format!("auth.tokens[{index}]");
                    mistakes.extend(wrong.into_iter().map(|mistake| mistake.below(&path)));
                }
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            publish,
            play,
            api,
            tokens,
            verifier: Verifier::new(auth, keys),
            hook: Hook::new(auth),
            in_query: auth.token_in_query,
        })
    }
}

fn keys(auth: &Auth, mistakes: &mut Vec<Mistake>) -> Vec<Key> {
    let secret = auth.jwt_secret.as_ref();
    let mut keys: Vec<Key> = secret
        .map(|secret| Key::secret(secret.reveal().as_bytes()))
        .into_iter()
        .collect();
    for (index, file) in auth.jwt_key_files.iter().enumerate() {
        let problem = match std::fs::read_to_string(file) {
            Ok(text) => match Key::read(&text) {
                Some(read) => {
                    keys.extend(read);
                    continue;
                }
                None => format!(
                    "has no public key: expected one in PEM (RSA, or EC on P-256) or a set in JSON in {}",
                    file.display()
                ),
            },
            Err(error) => unreadable(file, &error),
        };
        mistakes.push(Mistake::new(format!("auth.jwt_key_files[{index}]"), problem));
    }
    keys
}

/// A token of the list, and what it is good for.
fn fixed(config: &TokenConfig) -> Result<FixedToken, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut refuse = |key: &str, problem: String| mistakes.push(Mistake::new(key, problem));
    let token = match (&config.token, &config.token_file, &config.token_env) {
        (Some(token), None, None) => Some(token.clone()),
        (None, Some(file), None) => in_file(file).map_err(|problem| refuse("token_file", problem)).ok(),
        (None, None, Some(variable)) => {
            let text = named(variable).map_err(str::to_owned);
            let token = text.and_then(|text| Secret::new(text.trim()).ok_or_else(|| format!("names {NO_TOKEN}")));
            token.map_err(|problem| refuse("token_env", problem)).ok()
        }
        _ => {
            refuse("", "needs one of `token`, `token_file` and `token_env`".to_owned());
            None
        }
    };
    let mut patterns = |key: &str, texts: &[String]| {
        let read = |text: &String| {
            let pattern = Pattern::parse(text);
            if pattern.is_none() {
                let expected = "letters, digits and `_.~-/*`, at most 128";
                refuse(key, format!("has the pattern {text:?}: expected {expected}"));
            }
            pattern
        };
        texts.iter().filter_map(read).collect()
    };
    let rights = Permissions {
        publish: patterns("publish", &config.publish),
        play: patterns("play", &config.play),
        api: config.api,
    };
    if config.publish.is_empty() && config.play.is_empty() && !config.api {
        refuse("", "gives no right: set `publish`, `play` or `api`".to_owned());
    }
    match token {
        Some(token) if mistakes.is_empty() => Ok(FixedToken::new(&token, rights)),
        _ => Err(mistakes),
    }
}

/// A token that stands alone in a file.
fn in_file(file: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    match text.trim() {
        "" => Err(format!(
            "names a file that is empty: expected a token in {}",
            file.display()
        )),
        token => Secret::new(token).ok_or_else(|| format!("names {NO_TOKEN} in {}", file.display())),
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> String {
    format!("cannot be read: {}: {error}", file.display())
}

const NO_TOKEN: &str = "something that is no token: expected 1 to 512 letters, digits and `-._~+/=`";

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn problems(auth: &Auth) -> Vec<String> {
        let mistakes = Credentials::read(auth).err().unwrap_or_default();
        mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_file_and_variable_that_is_named_is_looked_at() {
        let token = |token: Option<&str>, file: Option<&str>, publish: &[&str]| TokenConfig {
            token: token.and_then(Secret::new),
            token_file: file.map(PathBuf::from),
            publish: publish.iter().map(|text| (*text).to_owned()).collect(),
            ..TokenConfig::default()
        };
        let auth = Auth {
            publish_token_file: Some("/nonexistent".into()),
            play_token_file: Some("/dev/null".into()),
            jwt_key_files: vec!["/dev/null".into()],
            tokens: vec![
                token(Some("a"), None, &["studio/*"]),
                token(Some("a"), Some("/b"), &["studio/*"]),
                token(None, Some("/nonexistent"), &["a b"]),
                token(Some("a"), None, &[]),
                TokenConfig {
                    token_env: Some("MILLSTREAM_TEST_THAT_IS_NOT_SET".to_owned()),
                    api: true,
                    ..TokenConfig::default()
                },
            ],
            ..Auth::default()
        };
        let wanted = [
            "`auth.jwt_key_files[0]` has no public key",
            "`auth.publish_token_file` cannot be read: /nonexistent: ",
            "`auth.play_token_file` names a file that is empty",
            "`auth.tokens[1]` needs one of `token`, `token_file` and `token_env`",
            "`auth.tokens[2].token_file` cannot be read: /nonexistent: ",
            "`auth.tokens[2].publish` has the pattern \"a b\": expected letters",
            "`auth.tokens[3]` gives no right",
            "`auth.tokens[4].token_env` names an environment variable that is not set",
        ];
        let found = problems(&auth);
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.starts_with(wanted), "{found}");
        }
    }

    #[test]
    fn a_token_is_told_from_others_by_its_digest() {
        let secret = Secret::new("s3cret").expect("a token");
        let token = FixedToken::new(&secret, Permissions::default());
        for (given, matches) in [("s3cret", true), ("s3cre", false), ("", false)] {
            assert_eq!(token.has_digest(&super::super::digest(given)), matches, "{given}");
        }
    }
}
