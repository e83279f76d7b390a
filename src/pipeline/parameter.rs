//! Parameters of a pipeline: their types, and validation of the values that a stream sets.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use millstream_worker_runtime::sandbox;
use serde::Deserialize;
use thiserror::Error;
use url::{Host, Url};

/// A parameter of a pipeline.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineParameter {
    #[serde(rename = "type")]
    pub kind: ParameterType,
    /// What it is for, in a sentence.
    #[serde(default)]
    pub description: String,
    /// Properties that are set to the value, as `element.property`.
    pub set: Vec<String>,
    pub default: Option<toml::Value>,
    /// Streams must set it.
    #[serde(default)]
    pub required: bool,
    /// Bounds of numbers, inclusive.
    pub min: Option<f64>,
    pub max: Option<f64>,
    /// Allowed schemes of URLs.
    #[serde(default)]
    pub schemes: Vec<String>,
    /// Allowed values of an enumeration.
    #[serde(default)]
    pub values: Vec<String>,
}

/// Type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParameterType {
    /// Text without control characters.
    String,
    /// Like a string, but never shown.
    Secret,
    Integer,
    Float,
    Boolean,
    Enum,
    /// A URL with one of the listed schemes; its host can be checked before it is used.
    Url,
    /// An existing file, by its absolute path. The worker gets read access to it.
    File,
    /// A device below `/dev`, or a folder of devices such as `/dev/snd`.
    Device,
}

/// Why a value is invalid. The value itself is not included: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParameterValueError {
    #[error("the value must be {0}")]
    WrongType(&'static str),
    #[error("the value must be one of {}", .0.join(", "))]
    NotListed(Vec<String>),
    #[error("the value must be between {min} and {max}")]
    OutOfRange { min: String, max: String },
    #[error("the value of the pipeline parameter is longer than {MAX_PARAMETER_VALUE_BYTES} bytes")]
    TooLong,
    #[error("the value must not contain control characters")]
    ControlCharacters,
    #[error("the value must be a URL that starts with {}://", .0.join(":// or "))]
    WrongScheme(Vec<String>),
    #[error("the value must be a URL with a host")]
    MissingHost,
    #[error(transparent)]
    UnescapedCredentials(#[from] UnescapedCredentialsError),
    #[error("the value must be the absolute path of an existing file, such as /srv/video/loop.mp4")]
    FileNotFound,
    #[error("the value must be the absolute path of an existing device, such as /dev/video0")]
    DeviceNotFound,
    #[error("the pipeline requires this parameter: set it in `params` of the stream")]
    MissingValue,
}

/// A validated value.
#[derive(Clone, PartialEq, Eq)]
pub struct ParameterValue {
    /// Text from which GStreamer parses the property value.
    pub text: String,
    /// A URL, if that is what it is.
    pub target: Option<TargetUrl>,
    /// File or device that the worker may open.
    pub file: Option<PathBuf>,
}

impl std::fmt::Debug for ParameterValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Value(not shown)")
    }
}

/// Host of a URL, to be resolved and checked before anything connects to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetHost {
    Address(IpAddr),
    Name(String),
}

impl std::fmt::Display for TargetHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A URL that a pipeline connects to.
#[derive(Clone, PartialEq, Eq)]
pub struct TargetUrl {
    url: Url,
    pub host: TargetHost,
}

/// Schemes of which the server need not know the name that it is called by.
const SCHEMES_WITHOUT_HOST_NAME: [&str; 5] = ["rtsp", "rtspt", "rtspu", "rtsph", "srt"];

/// Schemes of which few servers need it: those with several virtual hosts.
const SCHEMES_WITH_OPTIONAL_HOST_NAME: [&str; 1] = ["rtmp"];

impl TargetUrl {
    /// Returns whether the host may be replaced by its address. With TLS the name is needed for the certificate, with
    /// HTTP for the virtual host; with RTMP too, which is done without if `has_network_restriction`.
    pub fn allows_address_instead_of_hostname(&self, has_network_restriction: bool) -> bool {
        let scheme = self.url.scheme();
        SCHEMES_WITHOUT_HOST_NAME.contains(&scheme)
            || (has_network_restriction && SCHEMES_WITH_OPTIONAL_HOST_NAME.contains(&scheme))
    }

    /// Returns the TCP port; `None` if it is not known, or the URL is one of UDP.
    pub fn tcp_port(&self) -> Option<u16> {
        let default = match self.url.scheme() {
            "rtsp" | "rtspt" | "rtspu" => 554,
            "rtmp" => 1_935,
            _ => return None,
        };
        Some(self.url.port().unwrap_or(default))
    }

    /// Returns the text of the URL, which may hold a password.
    pub fn text(&self) -> &str {
        self.url.as_str()
    }

    /// Returns the text of the URL with an address in place of its host.
    pub fn url_text_with_address(&self, address: IpAddr) -> String {
        url_with_address(&self.url, address).into()
    }
}

impl std::fmt::Debug for TargetUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TargetUrl(at {})", self.host)
    }
}

/// Returns a URL with an address in place of its host.
pub fn url_with_address(url: &Url, address: IpAddr) -> Url {
    let mut url = url.clone();
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    // An address is a valid host of every URL that has one.
    let _ = url.set_host(Some(&host));
    url
}

/// Characters in the user or password of an address that end it there, so that its host is another one or none
/// (RFC 3986 §3.2).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the URL has a user name or password with reserved characters: percent-encode {}", percent_encoding_advice(.0))]
pub struct UnescapedCredentialsError(Vec<char>);

impl UnescapedCredentialsError {
    /// Finds them in an address that was read as `parsed`; `None` where it could not be.
    pub fn detect_in_url(text: &str, parsed: Option<&Url>) -> Option<Self> {
        let (_, rest) = text.split_once("://")?;
        let (credentials, _) = rest.rsplit_once('@')?;
        let ends = |c: char| "/?#\\".contains(c);
        let is_wrong = match parsed {
            // No fragment holds the host of a server. Paths and queries may hold anything.
            Some(url) => url.fragment().is_some_and(|fragment| fragment.contains('@')),
            None => {
                let authority = credentials.split(ends).next().unwrap_or_default();
                let (_, port) = authority.split_once(':')?;
                port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit())
            }
        };
        let mut found: Vec<char> = credentials.chars().filter(|c| ends(*c)).collect();
        found.sort_unstable();
        found.dedup();
        (is_wrong && !found.is_empty()).then_some(Self(found))
    }
}

/// `#` as %23, `/` as %2F.
fn percent_encoding_advice(characters: &[char]) -> String {
    let escape = |c: &char| format!("`{c}` as %{:02X}", u32::from(*c));
    characters.iter().map(escape).collect::<Vec<_>>().join(", ")
}

/// Longest text of a value, in bytes.
const MAX_PARAMETER_VALUE_BYTES: usize = 4_096;

impl PipelineParameter {
    /// Validates a value.
    ///
    /// # Errors
    ///
    /// A [`ParameterValueError`] that says what is allowed.
    pub fn validated_value(&self, value: &toml::Value) -> Result<ParameterValue, ParameterValueError> {
        match self.kind {
            ParameterType::String | ParameterType::Secret => Ok(plain_parameter_value(validated_text(value)?)),
            ParameterType::Integer => {
                let number = value
                    .as_integer()
                    .ok_or(ParameterValueError::WrongType("a whole number"))?;
                self.require_value_within_range(number as f64)?;
                Ok(plain_parameter_value(&number.to_string()))
            }
            ParameterType::Float => {
                let number = value.as_float().or(value.as_integer().map(|number| number as f64));
                let number = number
                    .filter(|n| n.is_finite())
                    .ok_or(ParameterValueError::WrongType("a number"))?;
                self.require_value_within_range(number)?;
                Ok(plain_parameter_value(&number.to_string()))
            }
            ParameterType::Boolean => {
                let yes = value.as_bool().ok_or(ParameterValueError::WrongType("true or false"))?;
                Ok(plain_parameter_value(&yes.to_string()))
            }
            ParameterType::Enum => {
                let text = value.as_str().filter(|text| self.values.iter().any(|v| v == text));
                Ok(plain_parameter_value(
                    text.ok_or_else(|| ParameterValueError::NotListed(self.values.clone()))?,
                ))
            }
            ParameterType::Url => self.validated_url_value(validated_text(value)?),
            ParameterType::File => {
                let path = parse_absolute_path(validated_text(value)?).filter(|path| path.is_file());
                Ok(file_parameter_value(path.ok_or(ParameterValueError::FileNotFound)?))
            }
            ParameterType::Device => {
                let path = parse_absolute_path(validated_text(value)?)
                    .filter(|path| path.starts_with("/dev") && sandbox::is_device_or_device_folder(path));
                Ok(file_parameter_value(path.ok_or(ParameterValueError::DeviceNotFound)?))
            }
        }
    }

    fn require_value_within_range(&self, number: f64) -> Result<(), ParameterValueError> {
        if self.min.is_some_and(|min| number < min) || self.max.is_some_and(|max| number > max) {
            let shown = |bound: Option<f64>, none: &str| bound.map_or(none.to_owned(), |bound| bound.to_string());
            return Err(ParameterValueError::OutOfRange {
                min: shown(self.min, "any number"),
                max: shown(self.max, "any number"),
            });
        }
        Ok(())
    }

    fn validated_url_value(&self, text: &str) -> Result<ParameterValue, ParameterValueError> {
        let wrong_scheme = || ParameterValueError::WrongScheme(self.schemes.clone());
        let parsed = Url::parse(text).ok();
        if let Some(unescaped) = UnescapedCredentialsError::detect_in_url(text, parsed.as_ref()) {
            return Err(unescaped.into());
        }
        let url = parsed.ok_or_else(wrong_scheme)?;
        if !self.schemes.iter().any(|scheme| scheme == url.scheme()) {
            return Err(wrong_scheme());
        }
        let host = match url.host() {
            Some(Host::Ipv4(address)) => TargetHost::Address(address.into()),
            Some(Host::Ipv6(address)) => TargetHost::Address(address.into()),
            // The url crate does not parse the host of a scheme that it does not know as an IP address.
            Some(Host::Domain(name)) if !name.is_empty() => match name.parse() {
                Ok(address) => TargetHost::Address(address),
                Err(_) => TargetHost::Name(name.to_owned()),
            },
            _ => return Err(ParameterValueError::MissingHost),
        };
        let text = url.as_str().to_owned();
        Ok(ParameterValue {
            target: Some(TargetUrl { url, host }),
            ..plain_parameter_value(&text)
        })
    }
}

fn validated_text(value: &toml::Value) -> Result<&str, ParameterValueError> {
    let text = value.as_str().ok_or(ParameterValueError::WrongType("a string"))?;
    if text.len() > MAX_PARAMETER_VALUE_BYTES {
        return Err(ParameterValueError::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(ParameterValueError::ControlCharacters);
    }
    Ok(text)
}

fn plain_parameter_value(text: &str) -> ParameterValue {
    ParameterValue {
        text: text.to_owned(),
        target: None,
        file: None,
    }
}

fn file_parameter_value(path: PathBuf) -> ParameterValue {
    ParameterValue {
        text: path.display().to_string(),
        target: None,
        file: Some(path),
    }
}

/// Returns `validated_text` as a path if it is absolute and has no `.` or `..` components.
pub(super) fn parse_absolute_path(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let plain = path
        .components()
        .all(|part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_)));
    (path.is_absolute() && plain).then(|| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> TargetUrl {
        let url = Url::parse(text).expect("a URL");
        let host = TargetHost::Name("camera.example".to_owned());
        TargetUrl { url, host }
    }

    #[test]
    fn the_host_is_replaced_and_nothing_else() {
        for (text, address, expected) in [
            (
                "rtsp://a:b@camera.example/c?d=camera.example",
                "192.0.2.1",
                "rtsp://a:b@192.0.2.1/c?d=camera.example",
            ),
            (
                "srt://camera.example:9000?latency=9",
                "2001:db8::1",
                "srt://[2001:db8::1]:9000?latency=9",
            ),
            ("rtmp://camera.example/a/b", "192.0.2.1", "rtmp://192.0.2.1/a/b"),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(target(text).url_text_with_address(address), expected);
        }
        for (text, unrestricted, restricted) in [
            ("rtsp://camera.example/", true, true),
            ("srt://camera.example:9000", true, true),
            ("rtmp://camera.example/a", false, true),
            ("rtmps://camera.example/a", false, false),
            ("rtsps://camera.example/a", false, false),
            ("https://camera.example/a", false, false),
        ] {
            let target = target(text);
            assert_eq!(
                (
                    target.allows_address_instead_of_hostname(false),
                    target.allows_address_instead_of_hostname(true)
                ),
                (unrestricted, restricted),
                "{text}"
            );
        }
        assert_eq!(
            format!("{:?}", target("rtsp://a:s3cret@camera.example/")),
            "TargetUrl(at camera.example)"
        );
    }

    #[test]
    fn an_unescaped_character_in_a_password_is_found_and_one_elsewhere_is_not() {
        for (text, wanted) in [
            ("rtsp://admin:p#ss@10.0.0.7/x", Some("`#` as %23")),
            ("rtsp://admin:12#4@10.0.0.7/x", Some("`#` as %23")),
            ("rtsp://admin:p/s?@10.0.0.7/x", Some("`/` as %2F, `?` as %3F")),
            ("https://a:p#s@h/x", Some("`#` as %23")),
            ("rtsp://admin:p@ss@10.0.0.7/x", None),
            ("rtsp://admin:p%23ss@10.0.0.7/x", None),
            ("rtsp://10.0.0.7:554/user=a@b/c#d", None),
            ("rtsp://10.0.0.7:99999/a@b", None),
            ("10.0.0.7/a@b", None),
        ] {
            let parsed = Url::parse(text).ok();
            let found = UnescapedCredentialsError::detect_in_url(text, parsed.as_ref())
                .map(|unescaped| percent_encoding_advice(&unescaped.0));
            assert_eq!(found.as_deref(), wanted, "{text}");
        }
    }
}
