//! Parameters of a pipeline: their types, and validation of the values that a stream sets.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use url::{Host, Url};

/// A parameter of a pipeline.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
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
    /// A device below `/dev`.
    Device,
}

/// Why a value is invalid. The value itself is not included: it may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    #[error("must be {0}")]
    Type(&'static str),
    #[error("must be one of {}", .0.join(", "))]
    NotListed(Vec<String>),
    #[error("must be between {min} and {max}")]
    Range { min: String, max: String },
    #[error("is longer than {MAX_TEXT} bytes")]
    TooLong,
    #[error("must not contain control characters")]
    Control,
    #[error("must be a URL that starts with {}://", .0.join(":// or "))]
    Scheme(Vec<String>),
    #[error("must be a URL with a host")]
    NoHost,
    #[error(transparent)]
    Unescaped(#[from] Unescaped),
    #[error("must be the absolute path of an existing file, such as /srv/video/loop.mp4")]
    NoFile,
    #[error("must be the absolute path of an existing device, such as /dev/video0")]
    NoDevice,
    #[error("is required")]
    Missing,
}

/// A validated value.
#[derive(Clone, PartialEq, Eq)]
pub struct Value {
    /// Text from which GStreamer parses the property value.
    pub text: String,
    /// Host of a URL.
    pub host: Option<TargetHost>,
    /// File or device that the worker may open.
    pub file: Option<PathBuf>,
}

impl std::fmt::Debug for Value {
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

/// Characters in the user or password of an address that end it there, so that its host is another one or none
/// (RFC 3986 §3.2).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("has a user or password that has to be escaped: percent-encode {}", escapes(.0))]
pub struct Unescaped(Vec<char>);

impl Unescaped {
    /// Finds them in an address that was read as `parsed`; `None` where it could not be.
    pub fn find(text: &str, parsed: Option<&Url>) -> Option<Self> {
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
fn escapes(characters: &[char]) -> String {
    let escape = |c: &char| format!("`{c}` as %{:02X}", u32::from(*c));
    characters.iter().map(escape).collect::<Vec<_>>().join(", ")
}

/// Longest text of a value, in bytes.
const MAX_TEXT: usize = 4_096;

impl Parameter {
    /// Validates a value.
    ///
    /// # Errors
    ///
    /// A [`ValueError`] that says what is allowed.
    pub fn check(&self, value: &toml::Value) -> Result<Value, ValueError> {
        match self.kind {
            ParameterType::String | ParameterType::Secret => Ok(plain(text(value)?)),
            ParameterType::Integer => {
                let number = value.as_integer().ok_or(ValueError::Type("a whole number"))?;
                self.check_range(number as f64)?;
                Ok(plain(&number.to_string()))
            }
            ParameterType::Float => {
                let number = value.as_float().or(value.as_integer().map(|number| number as f64));
                let number = number.filter(|n| n.is_finite()).ok_or(ValueError::Type("a number"))?;
                self.check_range(number)?;
                Ok(plain(&number.to_string()))
            }
            ParameterType::Boolean => {
                let yes = value.as_bool().ok_or(ValueError::Type("true or false"))?;
                Ok(plain(&yes.to_string()))
            }
            ParameterType::Enum => {
                let text = value.as_str().filter(|text| self.values.iter().any(|v| v == text));
                Ok(plain(text.ok_or_else(|| ValueError::NotListed(self.values.clone()))?))
            }
            ParameterType::Url => self.check_url(text(value)?),
            ParameterType::File => {
                let path = absolute_path(text(value)?).filter(|path| path.is_file());
                Ok(readable(path.ok_or(ValueError::NoFile)?))
            }
            ParameterType::Device => {
                let path = absolute_path(text(value)?).filter(|path| path.starts_with("/dev") && is_device(path));
                Ok(readable(path.ok_or(ValueError::NoDevice)?))
            }
        }
    }

    fn check_range(&self, number: f64) -> Result<(), ValueError> {
        if self.min.is_some_and(|min| number < min) || self.max.is_some_and(|max| number > max) {
            let shown = |bound: Option<f64>, none: &str| bound.map_or(none.to_owned(), |bound| bound.to_string());
            return Err(ValueError::Range {
                min: shown(self.min, "any number"),
                max: shown(self.max, "any number"),
            });
        }
        Ok(())
    }

    fn check_url(&self, text: &str) -> Result<Value, ValueError> {
        let wrong_scheme = || ValueError::Scheme(self.schemes.clone());
        let parsed = Url::parse(text).ok();
        if let Some(unescaped) = Unescaped::find(text, parsed.as_ref()) {
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
            _ => return Err(ValueError::NoHost),
        };
        Ok(Value {
            host: Some(host),
            ..plain(url.as_str())
        })
    }
}

fn text(value: &toml::Value) -> Result<&str, ValueError> {
    let text = value.as_str().ok_or(ValueError::Type("a string"))?;
    if text.len() > MAX_TEXT {
        return Err(ValueError::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(ValueError::Control);
    }
    Ok(text)
}

fn plain(text: &str) -> Value {
    Value {
        text: text.to_owned(),
        host: None,
        file: None,
    }
}

fn readable(path: PathBuf) -> Value {
    Value {
        text: path.display().to_string(),
        host: None,
        file: Some(path),
    }
}

/// Returns `text` as a path if it is absolute and has no `.` or `..` components.
fn absolute_path(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let plain = path
        .components()
        .all(|part| matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_)));
    (path.is_absolute() && plain).then(|| path.to_path_buf())
}

fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_char_device())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let found = Unescaped::find(text, parsed.as_ref()).map(|unescaped| escapes(&unescaped.0));
            assert_eq!(found.as_deref(), wanted, "{text}");
        }
    }
}
