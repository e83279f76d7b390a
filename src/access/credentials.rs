//! Reads the credentials of the section `auth`: tokens from files and environment variables, keys from files.

use std::path::Path;

use super::hook::Hook;
use super::jwt::{Key, Verifier};
use super::pattern::Pattern;
use super::request::{FixedToken, Permissions};
use crate::config::{Auth, Limits, Mistake, Secret, TokenConfig, named};

/// The credentials that [`super::Access`] is built from.
pub struct Credentials {
    /// `None` if not configured; the caller then generates one.
    pub publish: Option<Secret>,
    pub(super) play: Option<Secret>,
    pub(super) api: Option<Secret>,
    /// Tokens of `auth.tokens`.
    pub(super) tokens: Vec<FixedToken>,
    pub(super) verifier: Option<Verifier>,
    pub(super) hook: Option<Hook>,
    pub(super) in_query: bool,
}

impl Credentials {
    /// Reads the files and variables of the section; `limits` are those of requests to the webhook.
    ///
    /// # Errors
    ///
    /// All mistakes, by key.
    pub fn read(auth: &Auth, limits: &Limits) -> Result<Self, Vec<Mistake>> {
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
            hook: Hook::new(auth, limits),
            in_query: auth.token_in_query,
        })
    }
}

fn keys(auth: &Auth, mistakes: &mut Vec<Mistake>) -> Vec<Key> {
    let secret = auth.jwt_secret.as_ref();
    let mut keys: Vec<Key> = secret.map(|secret| Key::secret(secret.reveal())).into_iter().collect();
    for (index, file) in auth.jwt_key_files.iter().enumerate() {
        let problem = match std::fs::read_to_string(file) {
            Ok(text) => match Key::read(&text) {
                Some(read) => {
                    keys.extend(read);
                    continue;
                }
                None => format!(
                    "refers to a file without a public key: expected a PEM key (RSA, or EC on P-256) or a JWK set in {}",
                    file.display()
                ),
            },
            Err(error) => unreadable(file, &error),
        };
        mistakes.push(Mistake::new(format!("auth.jwt_key_files[{index}]"), problem));
    }
    keys
}

/// Reads an entry of `auth.tokens`.
fn fixed(config: &TokenConfig) -> Result<FixedToken, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut refuse = |key: &str, problem: String| mistakes.push(Mistake::new(key, problem));
    let token = match (&config.token, &config.token_file, &config.token_env) {
        (Some(token), None, None) => Some(token.clone()),
        (None, Some(file), None) => in_file(file).map_err(|problem| refuse("token_file", problem)).ok(),
        (None, None, Some(variable)) => {
            let token = named(variable).and_then(|text| {
                Secret::new(text.trim()).ok_or_else(|| format!("refers to a variable that {INVALID_TOKEN}"))
            });
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
        refuse("", "has no permission: set `publish`, `play` or `api`".to_owned());
    }
    match token {
        Some(token) if mistakes.is_empty() => Ok(FixedToken::new(&token, rights)),
        _ => Err(mistakes),
    }
}

/// Reads a file that contains only a token.
fn in_file(file: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    match text.trim() {
        "" => Err(format!(
            "refers to an empty file: expected a token in {}",
            file.display()
        )),
        token => {
            Secret::new(token).ok_or_else(|| format!("refers to a file that {INVALID_TOKEN} in {}", file.display()))
        }
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> String {
    format!("cannot be read: {}: {error}", file.display())
}

const INVALID_TOKEN: &str = "has no valid token: expected 1 to 512 letters, digits and `-._~+/=`";

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn problems(auth: &Auth) -> Vec<String> {
        let mistakes = Credentials::read(auth, &Limits::default()).err().unwrap_or_default();
        mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn mistakes_of_all_files_and_variables_are_reported() {
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
            "`auth.jwt_key_files[0]` refers to a file without a public key",
            "`auth.publish_token_file` cannot be read: /nonexistent: ",
            "`auth.play_token_file` refers to an empty file",
            "`auth.tokens[1]` needs one of `token`, `token_file` and `token_env`",
            "`auth.tokens[2].token_file` cannot be read: /nonexistent: ",
            "`auth.tokens[2].publish` has the pattern \"a b\": expected letters",
            "`auth.tokens[3]` has no permission",
            "`auth.tokens[4].token_env` names the environment variable `MILLSTREAM_TEST_THAT_IS_NOT_SET`, which is not set",
        ];
        let found = problems(&auth);
        assert_eq!(found.len(), wanted.len(), "{found:#?}");
        for (found, wanted) in found.iter().zip(wanted) {
            assert!(found.starts_with(wanted), "{found}");
        }
    }

    #[test]
    fn a_token_is_compared_by_its_digest() {
        let secret = Secret::new("s3cret").expect("a token");
        let token = FixedToken::new(&secret, Permissions::default());
        for (given, matches) in [("s3cret", true), ("s3cre", false), ("", false)] {
            assert_eq!(
                token.has_digest(&super::super::request::digest(given)),
                matches,
                "{given}"
            );
        }
    }
}
