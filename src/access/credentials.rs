//! Reads the credentials of the section `auth`: tokens from files and environment variables, keys from files.

use std::path::Path;

use super::jwt::{JwtKey, JwtVerifier};
use super::pattern::StreamNamePattern;
use super::request::{Permissions, StaticToken};
use super::webhook::WebhookClient;
use crate::config::{
    ApiScope, AuthConfig, ConfigMistake, LimitsConfig, Secret, TokenConfig, read_environment_variable,
};

/// The credentials that [`super::AccessControl`] is built from.
pub struct AuthCredentials {
    /// `None` if not configured; the caller then generates one.
    pub publish_token: Option<Secret>,
    pub(super) play_token: Option<Secret>,
    pub(super) talk_token: Option<Secret>,
    pub(super) api_token: Option<Secret>,
    /// Tokens of `auth.tokens`.
    pub(super) static_tokens: Vec<StaticToken>,
    pub(super) jwt_verifier: Option<JwtVerifier>,
    pub(super) webhook: Option<WebhookClient>,
    pub(super) accepts_query_token: bool,
}

impl AuthCredentials {
    /// Reads the files and variables of the section; `limits` are those of requests to the webhook.
    ///
    /// # Errors
    ///
    /// All mistakes, by key.
    pub fn read(auth: &AuthConfig, limits: &LimitsConfig) -> Result<Self, Vec<ConfigMistake>> {
        let mut mistakes = Vec::new();
        let keys = read_jwt_keys(auth, &mut mistakes);
        let mut token = |key: &str, given: &Option<Secret>, file: Option<&Path>| match file {
            Some(file) => read_token_file(file)
                .map_err(|problem| mistakes.push(ConfigMistake::new(key, problem)))
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
        let talk = token(
            "auth.talk_token_file",
            &auth.talk_token,
            auth.talk_token_file.as_deref(),
        );
        let api = token("auth.api_token_file", &auth.api_token, auth.api_token_file.as_deref());
        let mut tokens = Vec::new();
        for (index, token) in auth.tokens.iter().enumerate() {
            let path = format!("auth.tokens[{index}]");
            match read_static_token(token, &path) {
                Ok(token) => tokens.push(token),
                Err(wrong) => {
                    mistakes.extend(wrong.into_iter().map(|mistake| mistake.with_path_prefix(&path)));
                }
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            publish_token: publish,
            play_token: play,
            talk_token: talk,
            api_token: api,
            static_tokens: tokens,
            jwt_verifier: JwtVerifier::new(auth, keys),
            webhook: WebhookClient::new(auth, limits),
            accepts_query_token: auth.token_in_query,
        })
    }
}

fn read_jwt_keys(auth: &AuthConfig, mistakes: &mut Vec<ConfigMistake>) -> Vec<JwtKey> {
    let secret = auth.jwt_secret.as_ref();
    let mut keys: Vec<JwtKey> = secret
        .map(|secret| JwtKey::from_secret(secret.reveal()))
        .into_iter()
        .collect();
    for (index, file) in auth.jwt_key_files.iter().enumerate() {
        let problem = match std::fs::read_to_string(file) {
            Ok(text) => match JwtKey::parse_public_keys(&text) {
                Some(read) => {
                    keys.extend(read);
                    continue;
                }
                None => format!(
                    "refers to a file without a public key: expected a PEM key (RSA, or EC on P-256) or a JWK set in {}",
                    file.display()
                ),
            },
            Err(error) => unreadable_file_text(file, &error),
        };
        mistakes.push(ConfigMistake::new(format!("auth.jwt_key_files[{index}]"), problem));
    }
    keys
}

/// Reads an entry of `auth.tokens`, at `path`.
fn read_static_token(config: &TokenConfig, path: &str) -> Result<StaticToken, Vec<ConfigMistake>> {
    let mut mistakes = Vec::new();
    let mut refuse = |key: &str, problem: String| mistakes.push(ConfigMistake::new(key, problem));
    let token = match (&config.token, &config.token_file, &config.token_env) {
        (Some(token), None, None) => Some(token.clone()),
        (None, Some(file), None) => read_token_file(file)
            .map_err(|problem| refuse("token_file", problem))
            .ok(),
        (None, None, Some(variable)) => {
            let token = read_environment_variable(variable).and_then(|text| {
                Secret::new(text.trim()).ok_or_else(|| format!("refers to a variable that {INVALID_TOKEN_TEXT}"))
            });
            token.map_err(|problem| refuse("token_env", problem)).ok()
        }
        _ => {
            refuse(
                "",
                "needs exactly one of `token`, `token_file` and `token_env`".to_owned(),
            );
            None
        }
    };
    let mut patterns = |key: &str, texts: &[String]| {
        let read = |text: &String| {
            let pattern = StreamNamePattern::parse(text);
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
        talk: patterns("talk", &config.talk),
        api: config.api,
    };
    let is_for_no_stream = config.publish.is_empty() && config.play.is_empty() && config.talk.is_empty();
    if is_for_no_stream && config.api == ApiScope::None {
        refuse(
            "",
            "has no permission: set `publish`, `play`, `talk` or `api`".to_owned(),
        );
    }
    match token {
        Some(token) if mistakes.is_empty() => Ok(StaticToken::new(path, &token, rights)),
        _ => Err(mistakes),
    }
}

/// Reads a file that contains only a token.
fn read_token_file(file: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(file).map_err(|error| unreadable_file_text(file, &error))?;
    match text.trim() {
        "" => Err(format!(
            "refers to an empty file: expected a token in {}",
            file.display()
        )),
        token => Secret::new(token)
            .ok_or_else(|| format!("refers to a file that {INVALID_TOKEN_TEXT} in {}", file.display())),
    }
}

fn unreadable_file_text(file: &Path, error: &std::io::Error) -> String {
    format!("names the file {}, which cannot be read: {error}", file.display())
}

const INVALID_TOKEN_TEXT: &str = "has no valid token: expected 1 to 512 letters, digits and `-._~+/=`";

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn problems(auth: &AuthConfig) -> Vec<String> {
        let mistakes = AuthCredentials::read(auth, &LimitsConfig::default())
            .err()
            .unwrap_or_default();
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
        let auth = AuthConfig {
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
                    api: ApiScope::Read,
                    ..TokenConfig::default()
                },
            ],
            ..AuthConfig::default()
        };
        let wanted = [
            "`auth.jwt_key_files[0]` refers to a file without a public key",
            "`auth.publish_token_file` names the file /nonexistent, which cannot be read: ",
            "`auth.play_token_file` refers to an empty file",
            "`auth.tokens[1]` needs exactly one of `token`, `token_file` and `token_env`",
            "`auth.tokens[2].token_file` names the file /nonexistent, which cannot be read: ",
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
        let token = StaticToken::new("auth.api_token", &secret, Permissions::default());
        for (given, matches) in [("s3cret", true), ("s3cre", false), ("", false)] {
            assert_eq!(
                token.has_digest(&super::super::request::token_digest(given)),
                matches,
                "{given}"
            );
        }
    }
}
