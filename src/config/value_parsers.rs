//! Parsers of values. Each accepts one kind of value; its error says what is expected.
//!
//! Numbers, booleans and lists are also accepted as strings, because environment variables are strings.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Component, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{Deserialize as _, Deserializer, Error as _};
use toml::Value;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Directive;

use super::document::may_be_url_with_secret;
use super::mistake::nearest_name;
use super::secret::{Redacted, Secret};
use super::value_types::{AllowedOrigins, ApiScope, TurnUser, WebhookEventType};
use millstream_core::hub::name::SourceName;

const TOKEN_FORMAT_TEXT: &str = "1 to 512 letters, digits and `-._~+/=`, without spaces";
const JWT_SECRET_FORMAT_TEXT: &str = "16 to 512 letters, digits and `-._~+/=`, without spaces";
const TURN_USER_FORMAT_TEXT: &str = "`name:password`, each of letters, digits and `-._~+/=`";
const HTTP_URL_FORMAT_TEXT: &str = "an http:// or https:// URL, such as \"https://example.org/path\"";
const ORIGINS_FORMAT_TEXT: &str =
    "\"*\", or a list of origins without a path or a final `/`, such as [\"https://example.org\"]";
const LOG_LEVEL_FORMAT_TEXT: &str = "a level (\"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\") or directives, such as \
                     \"info,millstream_core::session=debug\"";

/// An enum whose variants are named by strings.
pub(super) trait ConfigEnum: Copy + 'static {
    /// Each name in the configuration and its value.
    const VALUES_BY_NAME: &'static [(&'static str, Self)];
}

/// Parses a value with a function that returns `None` for an invalid one.
fn parse_value_with<'de, D: Deserializer<'de>, T>(
    value: D,
    expected: &str,
    read: impl FnOnce(&Value) -> Option<T>,
) -> Result<T, D::Error> {
    let refused = || D::Error::custom(format!("expected {expected}"));
    let value = Value::deserialize(value).map_err(|_| refused())?;
    read(&value).ok_or_else(refused)
}

/// Parses a list of at most `most` items, or a string with commas between them.
fn parse_list<'de, D: Deserializer<'de>, T>(
    value: D,
    expected: &str,
    most: usize,
    item: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, D::Error> {
    let texts = parse_value_with(value, expected, |value| {
        parse_string_list(value).filter(|texts| texts.len() <= most)
    })?;
    let has_others = texts.len() > 1;
    let is_shown = |text: &str| has_others && !may_be_url_with_secret(text);
    let read = |text: String| {
        item(&text).ok_or_else(|| {
            let invalid = match is_shown(&text) {
                true => format!("{text:?} is invalid; "),
                false => String::new(),
            };
            D::Error::custom(format!("{invalid}expected {expected}"))
        })
    };
    texts.into_iter().map(read).collect()
}

fn parse_string_list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(|item| item.trim().to_owned()))
            .collect(),
        value => {
            let items = value.as_str()?.split(',').map(str::trim);
            Some(items.filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
    }
}

fn parse_from_string<T: FromStr>(value: &Value) -> Option<T> {
    value.as_str()?.trim().parse().ok()
}

/// Parses `true` or `false`.
pub(super) fn parse_bool<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    parse_value_with(value, "true or false", |value| {
        value.as_bool().or_else(|| parse_from_string(value))
    })
}

/// Parses `true`, `false` or the name of a scope of the API.
pub(super) fn parse_api_scope<'de, D: Deserializer<'de>>(value: D) -> Result<ApiScope, D::Error> {
    parse_value_with(value, "true, false or \"read\"", |value| match value.as_str() {
        Some(ApiScope::READ_SCOPE_NAME) => Some(ApiScope::Read),
        _ => {
            let is_all = value.as_bool().or_else(|| parse_from_string(value));
            is_all.map(ApiScope::full_or_none)
        }
    })
}

/// Parses a whole number within bounds.
pub(super) fn parse_whole_number_within<'de, const MIN: u64, const MAX: u64, D, T>(value: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    let expected = format!("a whole number from {MIN} to {MAX}");
    parse_value_with(value, &expected, |value| {
        T::try_from(integer_within(value, MIN, MAX)?).ok()
    })
}

/// Like [`parse_whole_number_within`], for a key without a default.
pub(super) fn parse_optional_whole_number<'de, const MIN: u64, const MAX: u64, D, T>(
    value: D,
) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    parse_whole_number_within::<MIN, MAX, D, T>(value).map(Some)
}

/// Parses a whole number of seconds within bounds.
pub(super) fn parse_whole_seconds<'de, const MIN: u64, const MAX: u64, D, T>(value: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: From<Duration>,
{
    let expected = format!("a whole number of seconds from {MIN} to {MAX}");
    parse_value_with(value, &expected, |value| {
        integer_within(value, MIN, MAX).map(|seconds| Duration::from_secs(seconds).into())
    })
}

/// Parses a whole number of milliseconds within bounds.
pub(super) fn parse_milliseconds_within<'de, const MIN: u64, const MAX: u64, D, T>(value: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: From<Duration>,
{
    let expected = format!("a whole number of milliseconds from {MIN} to {MAX}");
    parse_value_with(value, &expected, |value| {
        integer_within(value, MIN, MAX).map(|count| Duration::from_millis(count).into())
    })
}

/// Parses the name of a source.
pub(super) fn parse_source_name<'de, D: Deserializer<'de>>(value: D) -> Result<Option<SourceName>, D::Error> {
    let expected = "the name of the source, 1 to 32 of `a-z`, `0-9`, `_` and `-`, such as \"backup\"";
    parse_value_with(value, expected, |value| {
        SourceName::parse(value.as_str()?).ok().map(Some)
    })
}

fn integer_within(value: &Value, least: u64, most: u64) -> Option<u64> {
    let number = match value {
        Value::Integer(number) => u64::try_from(*number).ok()?,
        value => parse_from_string(value)?,
    };
    (least..=most).contains(&number).then_some(number)
}

/// Parses the name of a value of an enum.
pub(super) fn parse_config_enum<'de, D: Deserializer<'de>, T: ConfigEnum>(value: D) -> Result<T, D::Error> {
    let names: Vec<&str> = T::VALUES_BY_NAME.iter().map(|(name, _)| *name).collect();
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let expected = match quoted.split_last() {
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    };
    let value = Value::deserialize(value).ok();
    let text = value.as_ref().and_then(Value::as_str).unwrap_or_default();
    let chosen = T::VALUES_BY_NAME.iter().find(|(name, _)| *name == text);
    chosen.map(|(_, choice)| *choice).ok_or_else(|| {
        let meant = nearest_name(text, names.iter().copied());
        let meant = meant.map_or_else(String::new, |meant| format!(" (did you mean {meant:?}?)"));
        D::Error::custom(format!("expected {expected}{meant}"))
    })
}

/// Parses a string of 1 to 512 bytes.
pub(super) fn parse_short_string<'de, D: Deserializer<'de>, T: From<String>>(value: D) -> Result<T, D::Error> {
    parse_value_with(value, "a string of 1 to 512 bytes", |value| {
        short_string(value).map(Into::into)
    })
}

/// Like [`parse_short_string`], for a key without a default.
pub(super) fn parse_optional_short_string<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    parse_short_string(value).map(Some)
}

fn short_string(value: &Value) -> Option<String> {
    let text = value.as_str()?.trim();
    (1..=512).contains(&text.len()).then(|| text.to_owned())
}

/// Parses a string of any length that may contain a secret.
pub(super) fn parse_redacted_string<'de, D: Deserializer<'de>, T: From<Redacted<String>>>(
    value: D,
) -> Result<T, D::Error> {
    parse_value_with(value, "a string", |value| {
        value.as_str().map(|text| Redacted(text.to_owned()).into())
    })
}

/// Parses the path of a file or folder.
pub(super) fn parse_path<'de, D: Deserializer<'de>>(value: D) -> Result<Option<PathBuf>, D::Error> {
    parse_value_with(value, "a path", |value| {
        short_string(value).map(|path| Some(path.into()))
    })
}

/// Parses a list of paths.
pub(super) fn parse_paths<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<PathBuf>, D::Error> {
    parse_list(value, "a list of files", usize::MAX, |text| Some(text.into()))
}

/// Parses a list of absolute paths without `.` and `..`.
pub(super) fn parse_absolute_paths<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<PathBuf>, D::Error> {
    let expected = "a list of absolute paths of files, devices or folders without `..`, such as [\"/srv/video\"]";
    parse_list(value, expected, usize::MAX, |text| {
        let path = PathBuf::from(text);
        let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        (path.is_absolute() && path.components().all(is_plain)).then_some(path)
    })
}

/// Parses a table.
pub(super) fn parse_redacted_table<'de, D: Deserializer<'de>>(value: D) -> Result<Redacted<toml::Table>, D::Error> {
    parse_value_with(value, "a table", |value| value.as_table().cloned().map(Redacted))
}

/// Parses a pattern, or a list of them.
pub(super) fn parse_stream_name_patterns<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    let expected = "a pattern of stream names such as \"studio/*\", or a list of them";
    parse_value_with(value, expected, |value| match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|one| Some(one.as_str()?.to_owned())).collect(),
        _ => None,
    })
}

/// Parses a list of strings.
pub(super) fn parse_strings<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    parse_value_with(value, "a list of strings", parse_string_list)
}

/// Rejects every value: the reader has taken those in the file already.
pub(super) fn reject_value_outside_file<'de, D: Deserializer<'de>, T>(value: D) -> Result<T, D::Error> {
    parse_value_with(
        value,
        "one or more tables in the configuration file: an environment variable cannot set them",
        |_| None,
    )
}

/// Parses an address to listen on.
pub(super) fn parse_socket_address<'de, D: Deserializer<'de>>(value: D) -> Result<SocketAddr, D::Error> {
    let expected = "an IP address and a port, such as \"[::]:8080\" or \"127.0.0.1:8080\"";
    parse_value_with(value, expected, parse_from_string)
}

/// Parses a list of addresses for ICE candidates.
pub(super) fn parse_announced_ip_addresses<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<IpAddr>, D::Error> {
    let expected = "a list of at most 16 IP addresses that peers can reach, such as [\"203.0.113.7\"]; not host names or \
                    \"0.0.0.0\"";
    let usable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast();
    parse_list(value, expected, 16, |text| text.parse().ok().filter(usable))
}

/// Parses the host and port of a server.
pub(super) fn parse_host_and_port<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    let expected = "the host and port of a STUN server without a scheme, such as \"stun.example.org:3478\"";
    parse_value_with(value, expected, |value| {
        let server = short_string(value)?;
        let (host, port) = server.rsplit_once(':')?;
        let is_ipv6 = |host: &str| {
            let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
        };
        let is_name = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let is_server = (is_name || is_ipv6(host)) && port.parse::<u16>().is_ok_and(|port| port > 0);
        is_server.then_some(Some(server))
    })
}

/// Parses a list of URLs such as `stun:host` or `turn:host:port?transport=tcp` (RFC 7064 §3.1, RFC 7065 §3.1).
pub(super) fn parse_ice_server_urls<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    let expected = "a list of at most 8 URLs without `//`, such as [\"stun:stun.example.org:3478\", \
                    \"turn:turn.example.org:3478\"]";
    parse_list(value, expected, 8, |url| {
        let scheme = ["stun:", "stuns:", "turn:", "turns:"];
        let rest = scheme.iter().find_map(|scheme| url.strip_prefix(scheme))?;
        // No character that could end the URL or the `Link` header.
        let is_part = |b: u8| b.is_ascii_alphanumeric() || b".-:[]?=".contains(&b);
        let is_url = !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(is_part);
        is_url.then(|| url.to_owned())
    })
}

/// Parses a list of networks. An address is a network of one host.
pub(super) fn parse_networks<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<IpNet>, D::Error> {
    let expected = "a list of networks in CIDR notation, such as [\"192.168.0.0/16\"]";
    parse_list(value, expected, usize::MAX, |text| {
        let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse().ok().or_else(address)
    })
}

/// Parses a list of origins, in the form that browsers send.
pub(super) fn parse_origins<'de, D: Deserializer<'de>>(value: D) -> Result<AllowedOrigins, D::Error> {
    let origins = parse_list(value, ORIGINS_FORMAT_TEXT, usize::MAX, |origin| {
        let host = origin
            .strip_prefix("https://")
            .or_else(|| origin.strip_prefix("http://"));
        let is_host =
            |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@,;'\"".contains(&b));
        (origin == "*" || host.is_some_and(is_host)).then(|| origin.to_owned())
    })?;
    match origins.iter().any(|origin| origin == "*") {
        true if origins.len() == 1 => Ok(AllowedOrigins::Any),
        true => Err(D::Error::custom(
            "\"*\" allows all origins: expected no other origin in the list",
        )),
        false => Ok(AllowedOrigins::Listed(origins)),
    }
}

/// Parses a token.
pub(super) fn parse_secret<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Secret>, D::Error> {
    parse_value_with(value, TOKEN_FORMAT_TEXT, |value| Secret::new(value.as_str()?).map(Some))
}

/// Parses a token, without the white space around it.
pub(super) fn parse_trimmed_secret<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Secret>, D::Error> {
    parse_value_with(value, TOKEN_FORMAT_TEXT, |value| {
        Secret::new(value.as_str()?.trim()).map(Some)
    })
}

/// Parses a secret that tokens are signed with.
pub(super) fn parse_jwt_secret<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Secret>, D::Error> {
    parse_value_with(value, JWT_SECRET_FORMAT_TEXT, |value| {
        let secret = Secret::new(value.as_str()?)?;
        (secret.reveal().len() >= 16).then_some(Some(secret))
    })
}

/// Parses `name:password`.
pub(super) fn parse_turn_user<'de, D: Deserializer<'de>>(value: D) -> Result<Option<TurnUser>, D::Error> {
    parse_value_with(value, TURN_USER_FORMAT_TEXT, |value| {
        let (username, password) = value.as_str()?.split_once(':')?;
        let (username, password) = (Secret::new(username)?.reveal().to_owned(), Secret::new(password)?);
        Some(Some(TurnUser { username, password }))
    })
}

/// Parses an HTTP URL.
pub(super) fn parse_http_url<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    parse_value_with(value, HTTP_URL_FORMAT_TEXT, http_url_from_value)
}

/// Like [`parse_http_url`], for a URL that may contain a secret.
pub(super) fn parse_redacted_http_url<'de, D: Deserializer<'de>>(value: D) -> Result<Redacted<String>, D::Error> {
    parse_value_with(value, HTTP_URL_FORMAT_TEXT, |value| {
        http_url_from_value(value)?.map(Redacted)
    })
}

/// Parses a list of events.
pub(super) fn parse_webhook_events<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<WebhookEventType>, D::Error> {
    let names = WebhookEventType::ALL_EVENT_TYPES.map(WebhookEventType::name);
    let value = Value::deserialize(value).ok();
    let texts = value
        .as_ref()
        .and_then(parse_string_list)
        .filter(|texts| !texts.is_empty())
        .unwrap_or_default();
    let unknown = texts.iter().find(|text| WebhookEventType::parse(text).is_none());
    if texts.is_empty() || unknown.is_some() {
        let meant = unknown.and_then(|text| nearest_name(text, names));
        let meant = meant.map_or_else(String::new, |meant| format!(" (did you mean {meant:?}?)"));
        let quoted = names.map(|name| format!("{name:?}")).join(", ");
        return Err(D::Error::custom(format!(
            "expected a list of events, each one of {quoted}{meant}"
        )));
    }
    Ok(texts.iter().filter_map(|text| WebhookEventType::parse(text)).collect())
}

fn http_url_from_value(value: &Value) -> Option<Option<String>> {
    let url: url::Url = value.as_str()?.parse().ok()?;
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    is_web.then(|| Some(url.into()))
}

/// Parses the URL of an OpenTelemetry collector.
pub(super) fn parse_otlp_collector_url<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    let expected = match cfg!(feature = "otlp") {
        true => "the URL of an OpenTelemetry collector that accepts OTLP over HTTP, such as \"http://localhost:4318\"",
        false => "no value: this program was built without the feature `otlp`",
    };
    parse_value_with(value, expected, |value| {
        http_url_from_value(value).filter(|_| cfg!(feature = "otlp"))
    })
}

/// Parses directives of `tracing_subscriber::EnvFilter`.
pub(super) fn parse_log_directives<'de, D: Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    parse_value_with(value, LOG_LEVEL_FORMAT_TEXT, |value| {
        let directives: Vec<&str> = value.as_str()?.split(',').map(str::trim).collect();
        // A single word would also be valid as a target: a misspelt level would then silence everything.
        let is_known = |directive: &&str| match directive.contains(['=', '[']) {
            true => directive.parse::<Directive>().is_ok(),
            false => !directive.is_empty() && directive.parse::<LevelFilter>().is_ok(),
        };
        directives.iter().all(is_known).then(|| directives.join(","))
    })
}
