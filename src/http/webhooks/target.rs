//! Where a webhook is, which events it wants, and how they are signed.

use std::path::Path;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::{ConfigMistake, Redacted, Secret, WebhookConfig, WebhookEventType};

/// A webhook, as it is configured.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookTarget {
    pub(super) url: Redacted<String>,
    events: Vec<WebhookEventType>,
    secret: Secret,
}

/// Begin of a secret in base64, as Standard Webhooks write it.
const BASE64_SECRET_PREFIX: &str = "whsec_";

impl WebhookTarget {
    /// Builds the webhooks of a configuration, and reads their secrets.
    ///
    /// # Errors
    ///
    /// All mistakes, by key.
    pub fn build_webhook_targets(configs: &[WebhookConfig]) -> Result<Vec<Self>, Vec<ConfigMistake>> {
        let (mut targets, mut mistakes) = (Vec::new(), Vec::new());
        for (index, config) in configs.iter().enumerate() {
            match Self::build(config) {
                Ok(target) => targets.push(target),
                Err(mistake) => mistakes.push(mistake.with_path_prefix(&format!("webhooks[{index}]"))),
            }
        }
        if mistakes.is_empty() {
            Ok(targets)
        } else {
            Err(mistakes)
        }
    }

    fn build(config: &WebhookConfig) -> Result<Self, ConfigMistake> {
        if config.url.0.is_empty() {
            return Err(ConfigMistake::new("", "has no `url`"));
        }
        let secret = match (&config.secret, &config.secret_file) {
            (Some(secret), None) => secret.clone(),
            (None, Some(file)) => read_secret(file).map_err(|problem| ConfigMistake::new("secret_file", problem))?,
            _ => {
                return Err(ConfigMistake::new(
                    "",
                    "needs exactly one of `secret` and `secret_file`",
                ));
            }
        };
        if decode_secret(&secret).is_none() {
            return Err(ConfigMistake::new(
                "",
                "has a secret that begins with `whsec_`, but what follows is not base64",
            ));
        }
        Ok(Self {
            url: config.url.clone(),
            events: config.events.clone(),
            secret,
        })
    }

    pub(super) fn is_subscribed_to(&self, event: WebhookEventType) -> bool {
        self.events.contains(&event)
    }

    /// Returns the host of the URL, which has no secret.
    pub(super) fn host(&self) -> String {
        let url = url::Url::parse(&self.url.0).ok();
        url.and_then(|url| url.host_str().map(str::to_owned))
            .unwrap_or_default()
    }

    /// Returns the signature of a message, as the header has it: HMAC-SHA256 over id, time and body.
    pub(super) fn signature(&self, id: &str, timestamp: u64, body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &decode_secret(&self.secret).unwrap_or_default());
        let signed = format!("{id}.{timestamp}.{body}");
        let signature = hmac::sign(&key, signed.as_bytes());
        format!("v1,{}", STANDARD.encode(signature.as_ref()))
    }
}

/// Returns the bytes of a secret; `None` if it says that it is base64 and is not.
fn decode_secret(secret: &Secret) -> Option<Vec<u8>> {
    match secret.reveal().strip_prefix(BASE64_SECRET_PREFIX) {
        Some(encoded) => STANDARD.decode(encoded).ok(),
        None => Some(secret.reveal().as_bytes().to_vec()),
    }
}

fn read_secret(file: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("names the file {}, which cannot be read: {error}", file.display()))?;
    let secret = Secret::new(text.trim()).filter(|secret| secret.reveal().len() >= MIN_SECRET_CHARS);
    secret.ok_or_else(|| {
        format!(
            "refers to a file that has no valid secret: expected 16 to 512 letters, digits and `-._~+/=` in {}",
            file.display()
        )
    })
}

/// Minimum length of a secret; that of `secret` in the configuration.
const MIN_SECRET_CHARS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn target(secret: &str) -> WebhookTarget {
        let config = WebhookConfig {
            url: Redacted("https://example.org/hook?key=s3cret".to_owned()),
            secret: Secret::new(secret),
            ..WebhookConfig::default()
        };
        WebhookTarget::build(&config).expect("valid")
    }

    /// The example of the specification of Standard Webhooks.
    #[test]
    fn messages_are_signed_as_standard_webhooks_are() {
        let target = target("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let body = r#"{"test": 2432232314}"#;
        assert_eq!(
            target.signature("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
        assert_eq!(target.host(), "example.org");
        assert!(!format!("{target:?}").contains("s3cret"), "it may be logged");
    }

    #[test]
    fn a_webhook_without_url_or_secret_is_a_mistake() {
        let build = |config: WebhookConfig| {
            let mistakes = WebhookTarget::build_webhook_targets(&[config]).expect_err("a mistake");
            mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let url = || Redacted("https://example.org/".to_owned());
        let config = |secret: Option<&str>, file: Option<&str>| WebhookConfig {
            url: url(),
            secret: secret.and_then(Secret::new),
            secret_file: file.map(Into::into),
            ..WebhookConfig::default()
        };
        assert_eq!(build(WebhookConfig::default()), "`webhooks[0]` has no `url`");
        assert_eq!(
            build(config(None, None)),
            "`webhooks[0]` needs exactly one of `secret` and `secret_file`"
        );
        assert!(
            build(config(None, Some("/dev/null")))
                .starts_with("`webhooks[0].secret_file` refers to a file that has no valid")
        );
        assert!(
            build(config(Some("whsec_!"), None)).contains("needs exactly one"),
            "no token"
        );
        assert!(build(config(Some("whsec_abc"), None)).contains("is not base64"));
    }
}
