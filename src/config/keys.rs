//! Every key: its name, how its value is read, and what is allowed.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use toml::Value;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Directive;

use super::{Config, ConfigError, CorsOrigins, CounterOffer, HookConfig, LogFormat, Secret, TurnAuth, access};
use crate::sources::fetch::address::Allowed;

/// One key of the configuration.
pub struct Key {
    /// `section.key`.
    pub name: &'static str,
    /// What is allowed, to follow "has to be".
    pub allowed: &'static str,
    /// Never shown in an error.
    is_secret: bool,
    /// Sets the value; `None` when it is not allowed.
    set: fn(&mut Config, &Value) -> Option<()>,
}

const ADDRESS: &str = "an address with a port, such as \"[::]:8080\" or \"127.0.0.1:0\"";
const TOKEN: &str = "1 to 512 characters of letters, digits and `-._~+/=`";

const TOKEN_FILE: &str = "the path of a file that holds a token, of 1 to 512 letters, digits and `-._~+/=`";
const WEB_ADDRESS: &str = "an address such as \"https://example.org/keys\"";

/// All keys.
pub const KEYS: &[Key] = &[
    Key {
        name: "http.listen",
        allowed: ADDRESS,
        is_secret: false,
        set: |config, value| parsed::<SocketAddr>(value).map(|address| config.http.listen = address),
    },
    Key {
        name: "http.cors_origins",
        allowed: "\"*\" or a list of origins, such as [\"https://example.org\"] without path and trailing slash",
        is_secret: false,
        set: |config, value| origins(value).map(|origins| config.http.cors_origins = origins),
    },
    Key {
        name: "http.tls_certificate",
        allowed: "the path of a file with a certificate and its chain, in PEM",
        is_secret: false,
        set: |config, value| text(value).map(|path| config.http.tls_certificate = Some(path.into())),
    },
    Key {
        name: "http.tls_key",
        allowed: "the path of a file with a private key, in PEM",
        is_secret: false,
        set: |config, value| text(value).map(|path| config.http.tls_key = Some(path.into())),
    },
    Key {
        name: "http.strict_preconditions",
        allowed: "true or false",
        is_secret: false,
        set: |config, value| flag(value).map(|is_on| config.http.strict_preconditions = is_on),
    },
    Key {
        name: "http.counter_offer",
        allowed: "\"never\", \"when_needed\" or \"always\"",
        is_secret: false,
        set: |config, value| {
            config.http.counter_offer = match value.as_str()? {
                "never" => CounterOffer::Never,
                "when_needed" => CounterOffer::WhenNeeded,
                "always" => CounterOffer::Always,
                _ => return None,
            };
            Some(())
        },
    },
    Key {
        name: "http.legacy_server_offer",
        allowed: "true or false",
        is_secret: false,
        set: |config, value| flag(value).map(|is_on| config.http.legacy_server_offer = is_on),
    },
    Key {
        name: "http.wait_for_publisher",
        allowed: "a number of seconds from 0 to 60",
        is_secret: false,
        set: |config, value| {
            within(value, 0, 60).map(|s| config.http.wait_for_publisher = Duration::from_secs(s as u64))
        },
    },
    Key {
        name: "webrtc.listen",
        allowed: ADDRESS,
        is_secret: false,
        set: |config, value| parsed::<SocketAddr>(value).map(|address| config.webrtc.listen = address),
    },
    Key {
        name: "webrtc.announce",
        allowed: "a list of at most 16 IP addresses, such as [\"203.0.113.7\"]",
        is_secret: false,
        set: |config, value| announced(value).map(|addresses| config.webrtc.announce = addresses),
    },
    Key {
        name: "webrtc.announce_by_stun",
        allowed: "the host and port of a STUN server, such as \"stun.example.org:3478\"",
        is_secret: false,
        set: |config, value| {
            let server = text(value)?;
            let (host, port) = server.rsplit_once(':')?;
            let is_server = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0);
            is_server.then(|| config.webrtc.announce_by_stun = Some(server.clone()))
        },
    },
    Key {
        name: "webrtc.tcp",
        allowed: "true or false",
        is_secret: false,
        set: |config, value| flag(value).map(|is_on| config.webrtc.tcp = is_on),
    },
    Key {
        name: "webrtc.shards",
        allowed: "a number of threads from 0 (one for each processor) to 64",
        is_secret: false,
        set: |config, value| within(value, 0, 64).map(|count| config.webrtc.shards = count),
    },
    Key {
        name: "webrtc.max_sessions",
        allowed: "a number from 0 to 1000000",
        is_secret: false,
        set: |config, value| within(value, 0, 1_000_000).map(|count| config.webrtc.max_sessions = count),
    },
    Key {
        name: "ice.servers",
        allowed: "a list of at most 8 URLs, such as [\"stun:stun.example.org:3478\", \"turn:turn.example.org:3478\"]",
        is_secret: false,
        set: |config, value| ice_servers(value).map(|urls| config.ice.urls = urls),
    },
    Key {
        name: "ice.turn_secret",
        allowed: TOKEN,
        is_secret: true,
        set: |config, value| secret(value).map(|secret| config.ice.auth = TurnAuth::Secret(secret)),
    },
    Key {
        name: "ice.turn_user",
        allowed: "a username and a password with a colon between them, of letters, digits and `-._~+/=`",
        is_secret: true,
        set: |config, value| {
            let (username, password) = value.as_str()?.split_once(':')?;
            let (username, password) = (Secret::new(username)?.reveal().to_owned(), Secret::new(password)?);
            config.ice.auth = TurnAuth::Fixed { username, password };
            Some(())
        },
    },
    Key {
        name: "ice.turn_lifetime",
        allowed: "a number of seconds from 60 to 604800",
        is_secret: false,
        set: |config, value| within(value, 60, 604_800).map(|s| config.ice.lifetime = Duration::from_secs(s as u64)),
    },
    Key {
        name: "auth.publish_token",
        allowed: TOKEN,
        is_secret: true,
        set: |config, value| secret(value).map(|token| config.auth.publish_token = Some(token)),
    },
    Key {
        name: "auth.play_token",
        allowed: TOKEN,
        is_secret: true,
        set: |config, value| secret(value).map(|token| config.auth.play_token = Some(token)),
    },
    Key {
        name: "auth.api_token",
        allowed: TOKEN,
        is_secret: true,
        set: |config, value| secret(value).map(|token| config.auth.api_token = Some(token)),
    },
    Key {
        name: "auth.publish_token_file",
        allowed: TOKEN_FILE,
        is_secret: false,
        set: |config, value| secret_file(value).map(|token| config.auth.publish_token = Some(token)),
    },
    Key {
        name: "auth.play_token_file",
        allowed: TOKEN_FILE,
        is_secret: false,
        set: |config, value| secret_file(value).map(|token| config.auth.play_token = Some(token)),
    },
    Key {
        name: "auth.api_token_file",
        allowed: TOKEN_FILE,
        is_secret: false,
        set: |config, value| secret_file(value).map(|token| config.auth.api_token = Some(token)),
    },
    Key {
        name: "auth.tokens",
        allowed: "a list of tables with one of `token`, `token_file` and `token_env`, and with any of `publish` and \
                  `play` (patterns of streams such as \"studio/*\", one or a list) and `api` (true or false)",
        is_secret: true,
        set: |config, value| {
            let tokens = value.as_array()?.iter().map(access::token);
            config.auth.tokens = tokens.collect::<Option<_>>()?;
            Some(())
        },
    },
    Key {
        name: "auth.jwt_secret",
        allowed: "16 to 512 characters of letters, digits and `-._~+/=`, with which tokens are signed by HS256",
        is_secret: true,
        set: |config, value| {
            let secret = secret(value).filter(|secret| secret.reveal().len() >= 16)?;
            config
                .auth
                .jwt
                .keys
                .push(access::Key::secret(secret.reveal().as_bytes()));
            Some(())
        },
    },
    Key {
        name: "auth.jwt_key_files",
        allowed: "a list of files, each with a public key in PEM (RSA, or EC on P-256), or with a set of them in JSON",
        is_secret: false,
        set: |config, value| {
            for file in list(value)? {
                let text = std::fs::read_to_string(file).ok()?;
                config.auth.jwt.keys.extend(access::Key::read(&text)?);
            }
            Some(())
        },
    },
    Key {
        name: "auth.jwks_url",
        allowed: WEB_ADDRESS,
        is_secret: false,
        set: |config, value| web_address(value).map(|url| config.auth.jwt.jwks_url = Some(url)),
    },
    Key {
        name: "auth.jwt_issuer",
        allowed: "what `iss` of a signed token has to be",
        is_secret: false,
        set: |config, value| text(value).map(|issuer| config.auth.jwt.issuer = Some(issuer)),
    },
    Key {
        name: "auth.jwt_audience",
        allowed: "what `aud` of a signed token has to be, or to hold",
        is_secret: false,
        set: |config, value| text(value).map(|audience| config.auth.jwt.audience = Some(audience)),
    },
    Key {
        name: "auth.hook_url",
        allowed: WEB_ADDRESS,
        is_secret: false,
        set: |config, value| {
            let (url, timeout) = (web_address(value)?, Duration::ZERO);
            config.auth.hook = Some(HookConfig { url, timeout });
            Some(())
        },
    },
    Key {
        name: "auth.hook_timeout",
        allowed: "a number of seconds from 1 to 30",
        is_secret: false,
        set: |config, value| {
            config.auth.hook_timeout = Some(Duration::from_secs(within(value, 1, 30)? as u64));
            Some(())
        },
    },
    Key {
        name: "auth.token_in_query",
        allowed: "true or false",
        is_secret: false,
        set: |config, value| flag(value).map(|is_on| config.auth.token_in_query = is_on),
    },
    Key {
        name: "limits.requests_per_second",
        allowed: "a number from 0 (no bound) to 1000000",
        is_secret: false,
        set: |config, value| within(value, 0, 1_000_000).map(|n| config.limits.requests_per_second = n as u32),
    },
    Key {
        name: "limits.request_burst",
        allowed: "a number from 1 to 1000000",
        is_secret: false,
        set: |config, value| within(value, 1, 1_000_000).map(|n| config.limits.request_burst = n as u32),
    },
    Key {
        name: "limits.connections",
        allowed: "a number from 1 to 1000000",
        is_secret: false,
        set: |config, value| within(value, 1, 1_000_000).map(|n| config.limits.connections = n),
    },
    Key {
        name: "limits.connections_per_address",
        allowed: "a number from 1 to 1000000",
        is_secret: false,
        set: |config, value| within(value, 1, 1_000_000).map(|n| config.limits.connections_per_address = n),
    },
    Key {
        name: "limits.drain_seconds",
        allowed: "a number of seconds from 0 to 30",
        is_secret: false,
        set: |config, value| within(value, 0, 30).map(|s| config.limits.drain = Duration::from_secs(s as u64)),
    },
    Key {
        name: "pipelines.folder",
        allowed: "the path of a folder of pipeline files",
        is_secret: false,
        set: |config, value| {
            let path = value.as_str().filter(|path| !path.is_empty())?;
            config.pipelines.folder = Some(path.into());
            Some(())
        },
    },
    Key {
        name: "pipelines.repair",
        allowed: "true or false",
        is_secret: false,
        set: |config, value| flag(value).map(|is_on| config.pipelines.repair = is_on),
    },
    Key {
        name: "sources.allow",
        allowed: "a list of networks that sources may be in, such as [\"192.168.0.0/16\"]; an empty one allows all",
        is_secret: false,
        set: |config, value| networks(value).map(|networks| config.sources.allow = Allowed::new(networks)),
    },
    Key {
        name: "log.format",
        allowed: "\"text\" or \"json\"",
        is_secret: false,
        set: |config, value| log_format(value).map(|format| config.log.format = format),
    },
    Key {
        name: "log.level",
        allowed: "a level (\"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\") or directives, such as \
                  \"info,millstream::session=debug\"",
        is_secret: false,
        set: |config, value| log_level(value).map(|level| config.log.level = level),
    },
    Key {
        name: "log.otlp",
        allowed: "the address of a collector of OpenTelemetry that takes OTLP over HTTP, such as \"http://localhost:4318\", \
                  in a build with the feature `otlp`",
        is_secret: false,
        set: |config, value| {
            let url = web_address(value).filter(|_| cfg!(feature = "otlp"))?;
            config.log.otlp = Some(url);
            Some(())
        },
    },
];

/// Sets the key called `name`; `variable` is where its value came from when that is the environment.
pub(super) fn set(config: &mut Config, name: &str, value: &Value, variable: Option<String>) -> Result<(), ConfigError> {
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        return Err(ConfigError::UnknownKey {
            key: name.to_owned(),
            variable,
        });
    };
    config.set.keys.insert(name.to_owned(), value.clone());
    (key.set)(config, value).ok_or_else(|| ConfigError::BadValue {
        key: key.name,
        variable,
        value: if key.is_secret {
            "not usable".to_owned()
        } else {
            value.to_string()
        },
        allowed: key.allowed,
    })
}

/// Names of all keys, for an error.
pub(super) fn names() -> String {
    KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
}

fn parsed<T: FromStr>(value: &Value) -> Option<T> {
    value.as_str()?.trim().parse().ok()
}

/// A number, also as text: so it comes from the environment.
fn within(value: &Value, least: usize, most: usize) -> Option<usize> {
    let number = match value {
        Value::Integer(number) => usize::try_from(*number).ok()?,
        value => parsed(value)?,
    };
    (least..=most).contains(&number).then_some(number)
}

/// True or false, also as text: so it comes from the environment.
fn flag(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| parsed(value))
}

/// A list of texts, also as one text with commas: so it comes from the environment.
fn list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(|s| s.trim().to_owned()))
            .collect(),
        value => {
            let items = value.as_str()?.split(',').map(str::trim);
            Some(items.filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
    }
}

fn announced(value: &Value) -> Option<Vec<IpAddr>> {
    let addresses: Vec<IpAddr> = list(value)?
        .iter()
        .map(|item| item.parse().ok())
        .collect::<Option<_>>()?;
    let usable = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast();
    (addresses.len() <= 16 && addresses.iter().all(usable)).then_some(addresses)
}

/// `stun:host`, `turn:host:port?transport=tcp` (RFC 7064 §3.1, RFC 7065 §3.1).
fn ice_servers(value: &Value) -> Option<Vec<String>> {
    let urls = list(value)?;
    let is_url = |url: &String| {
        let scheme = ["stun:", "stuns:", "turn:", "turns:"];
        let rest = scheme.iter().find_map(|scheme| url.strip_prefix(scheme));
        // Nothing that a client could take for the end of the URL or of the header.
        let is_part = |b: u8| b.is_ascii_alphanumeric() || b".-:[]?=".contains(&b);
        rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(is_part))
    };
    (urls.len() <= 8 && urls.iter().all(is_url)).then_some(urls)
}

/// Networks, or addresses, which are the smallest of them.
fn networks(value: &Value) -> Option<Vec<IpNet>> {
    let network = |item: &String| {
        item.parse()
            .ok()
            .or_else(|| item.parse::<IpAddr>().ok().map(IpNet::from))
    };
    list(value)?.iter().map(network).collect()
}

fn origins(value: &Value) -> Option<CorsOrigins> {
    let origins = list(value)?;
    if origins.iter().any(|origin| origin == "*") {
        return (origins.len() == 1).then_some(CorsOrigins::Any);
    }
    let is_origin = |origin: &String| {
        let host = origin
            .strip_prefix("https://")
            .or_else(|| origin.strip_prefix("http://"));
        host.is_some_and(|host| !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#@".contains(&b)))
    };
    origins.iter().all(is_origin).then_some(CorsOrigins::Listed(origins))
}

fn secret(value: &Value) -> Option<Secret> {
    Secret::new(value.as_str()?)
}

/// A secret that stands alone in a file.
fn secret_file(value: &Value) -> Option<Secret> {
    let text = std::fs::read_to_string(value.as_str()?).ok()?;
    Secret::new(text.trim())
}

fn text(value: &Value) -> Option<String> {
    let text = value.as_str()?.trim();
    (1..=512).contains(&text.len()).then(|| text.to_owned())
}

fn web_address(value: &Value) -> Option<String> {
    let url: url::Url = value.as_str()?.parse().ok()?;
    let is_web = matches!(url.scheme(), "http" | "https") && url.has_host();
    is_web.then(|| url.into())
}

fn log_format(value: &Value) -> Option<LogFormat> {
    match value.as_str()? {
        "text" => Some(LogFormat::Text),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

fn log_level(value: &Value) -> Option<String> {
    let directives: Vec<&str> = value.as_str()?.split(',').map(str::trim).collect();
    // A word alone is also the name of a target: a misspelt level would silence everything.
    let is_known = |directive: &&str| match directive.contains(['=', '[']) {
        true => directive.parse::<Directive>().is_ok(),
        false => !directive.is_empty() && directive.parse::<LevelFilter>().is_ok(),
    };
    directives.iter().all(is_known).then(|| directives.join(","))
}
