//! The list `webhooks`: URLs that are told of events. The folder `http` builds their clients.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::mistake::ConfigMistake;
use super::reader::ConfigReader;
use super::secret::{Redacted, Secret};
use super::section::{WEBHOOKS_LIST, section};
use super::value_parsers;
use super::value_types::WebhookEventType;

/// Maximum number of webhooks: each has a queue and a connection.
const MAX_WEBHOOKS: usize = 16;

section! {
    /// A URL that is told of events.
    pub struct WebhookConfig("webhooks[]") {
        /// URL that events are sent to, `http://` or `https://`.
        #[key("url", Live, "required", "value_parsers::parse_redacted_http_url", secret)]
        pub url: Redacted<String> = Redacted::default(),

        /// Events that are sent: a list of `stream.live`, `stream.ended`, `source.live`, `source.failed`,
        /// `session.started` and `session.ended`.
        #[key("events", Live, "all", "value_parsers::parse_webhook_events")]
        pub events: Vec<WebhookEventType> = WebhookEventType::ALL_EVENT_TYPES.to_vec(),

        /// Secret that events are signed with, at least 16 characters, or `whsec_` and base64.
        #[key("secret", Live, "one of `secret` and `secret_file`", "value_parsers::parse_jwt_secret", secret)]
        pub secret: Option<Secret> = None,

        /// File that contains only the secret.
        #[key("secret_file", Live, "one of `secret` and `secret_file`", "value_parsers::parse_path")]
        pub secret_file: Option<PathBuf> = None,
    }
}

/// Reads the list.
pub(super) fn read_webhooks(reader: &mut ConfigReader<'_>) -> Vec<WebhookConfig> {
    let Some(list) = reader.take_top_level_value(WEBHOOKS_LIST) else {
        return Vec::new();
    };
    let at = list.span().start;
    if number_of_items(&list) > MAX_WEBHOOKS {
        let problem = format!("has more than {MAX_WEBHOOKS} webhooks");
        reader.add_mistake_unless_caused_by_syntax_error(at, ConfigMistake::new(WEBHOOKS_LIST, problem));
        return Vec::new();
    }
    let problem = "has to be a table with the header [[webhooks]]";
    reader.read_list_of_tables(WEBHOOKS_LIST, list, problem)
}

fn number_of_items(list: &Spanned<DeValue<'_>>) -> usize {
    match list.get_ref() {
        DeValue::Array(items) => items.len(),
        _ => 0,
    }
}
