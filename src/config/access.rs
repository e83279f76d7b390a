//! Tokens for some streams: the tables of `auth.tokens`.

use toml::Value;

use super::Secret;
pub(super) use crate::access::jwt::Key;
use crate::access::pattern::Pattern;
use crate::access::{FixedToken, Rights};

/// Reads one; `None` if anything in it is not what it has to be.
pub(super) fn token(value: &Value) -> Option<FixedToken> {
    let table = value.as_table()?;
    let known = ["token", "token_file", "token_env", "publish", "play", "api"];
    if table.keys().any(|key| !known.contains(&key.as_str())) {
        return None;
    }
    let text = |key: &str| table.get(key).map(|value| value.as_str().unwrap_or_default());
    let token = match (text("token"), text("token_file"), text("token_env")) {
        (Some(token), None, None) => token.to_owned(),
        (None, Some(file), None) => std::fs::read_to_string(file).ok()?,
        (None, None, Some(variable)) => environment(variable)?,
        _ => return None,
    };
    let patterns = |key: &str| match table.get(key) {
        None => Some(Vec::new()),
        Some(Value::String(one)) => Some(vec![Pattern::parse(one)?]),
        Some(Value::Array(many)) => many.iter().map(|one| Pattern::parse(one.as_str()?)).collect(),
        Some(_) => None,
    };
    let api = table.get("api").map_or(Some(false), Value::as_bool)?;
    let rights = Rights {
        publish: patterns("publish")?,
        play: patterns("play")?,
        api,
    };
    let token = Secret::new(token.trim())?;
    (rights != Rights::default()).then_some(FixedToken { token, rights })
}

#[expect(clippy::disallowed_methods, reason = "this is config")]
fn environment(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}
