//! What of this host a pipeline may use: files, devices, and ports that senders connect to. Streams of the configuration
//! file may use everything that the gateway may use. Streams of the API may use what the section `api` permits, so that a
//! holder of an API token can neither read the files of the host nor learn which exist.

use std::path::{Path, PathBuf};

use thiserror::Error;
use url::Url;

use super::description::PipelineDescription;
use super::parameter::{ParameterType, parse_absolute_path};

/// What of this host the pipelines of a stream may use.
#[derive(Clone, Copy, Debug)]
pub enum HostAccess<'a> {
    /// That of streams of the configuration file.
    Everything,
    /// That of streams of the API.
    Permitted(&'a ApiHostAccess),
}

/// What of this host streams of the API may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiHostAccess {
    /// Files, devices and folders of these: `api.files`.
    pub files: Vec<PathBuf>,
    /// Whether they may listen on ports: `api.listeners`.
    pub listeners: bool,
}

/// Why a stream of the API may not use something of this host. Neither text depends on what exists outside of `api.files`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HostAccessError {
    #[error(
        "this file or device is not permitted through the API: add it, or a folder that it is in, to `api.files` in \
         the configuration file, or configure the stream there"
    )]
    FileNotPermitted,
    #[error(
        "there is no such file or device, or its path leads through a symbolic link to a place outside of the folders in `api.files`"
    )]
    NotFoundInPermittedFiles,
    #[error(
        "listening on a port of this host is not permitted through the API: set `api.listeners = true` in the \
         configuration file, or configure the stream there"
    )]
    ListenerNotPermitted,
}

/// Query parameter of an SRT URL by which the element `srtsrc` listens instead of connecting.
const SRT_MODE_PARAMETER: &str = "mode";
const SRT_CALLER_MODE: &str = "caller";

impl HostAccess<'_> {
    /// Returns the values of the parameters with the paths that symbolic links lead to, after checking what the pipeline
    /// would use. Nothing outside of the permitted files is looked at.
    ///
    /// # Errors
    ///
    /// What is not permitted, with the parameter that asks for it; `None` is the pipeline itself.
    pub fn check_and_resolve_files(
        self,
        description: &PipelineDescription,
        values: &toml::Table,
    ) -> Result<toml::Table, Vec<(Option<String>, HostAccessError)>> {
        let mut resolved = values.clone();
        let Self::Permitted(permitted) = self else {
            return Ok(resolved);
        };
        let mut refused = Vec::new();
        if description.listens && !permitted.listeners {
            refused.push((None, HostAccessError::ListenerNotPermitted));
        }
        for (name, parameter) in &description.params {
            let value = values.get(name).or(parameter.default.as_ref());
            let Some(text) = value.and_then(toml::Value::as_str) else {
                continue;
            };
            let checked = match parameter.kind {
                ParameterType::File | ParameterType::Device => permitted.resolve_file(text).map(Some),
                ParameterType::Url => permitted.require_permitted_url(text).map(|()| None),
                ParameterType::String
                | ParameterType::Secret
                | ParameterType::Integer
                | ParameterType::Float
                | ParameterType::Boolean
                | ParameterType::Enum => Ok(None),
            };
            match checked {
                Ok(Some(path)) => {
                    resolved.insert(name.clone(), path.into());
                }
                Ok(None) => {}
                Err(error) => refused.push((Some(name.clone()), error)),
            }
        }
        if refused.is_empty() { Ok(resolved) } else { Err(refused) }
    }
}

impl ApiHostAccess {
    /// Returns the path of a permitted file or device without symbolic links.
    fn resolve_file(&self, text: &str) -> Result<String, HostAccessError> {
        let path = parse_absolute_path(text).ok_or(HostAccessError::FileNotPermitted)?;
        let mut permitted = self
            .files
            .iter()
            .filter(|permitted| path.starts_with(permitted))
            .peekable();
        permitted.peek().ok_or(HostAccessError::FileNotPermitted)?;
        let resolve = |path: &Path| path.canonicalize().ok();
        let resolved = resolve(&path).filter(|resolved| {
            permitted.any(|permitted| resolve(permitted).is_some_and(|permitted| resolved.starts_with(permitted)))
        });
        resolved
            .and_then(|path| path.into_os_string().into_string().ok())
            .ok_or(HostAccessError::NotFoundInPermittedFiles)
    }

    fn require_permitted_url(&self, text: &str) -> Result<(), HostAccessError> {
        match Url::parse(text) {
            Ok(url) if is_srt_listener(&url) && !self.listeners => Err(HostAccessError::ListenerNotPermitted),
            _ => Ok(()),
        }
    }
}

/// Whether `srtsrc` would open a port for this URL: as a listener, or for a rendezvous.
fn is_srt_listener(url: &Url) -> bool {
    let is_other_mode =
        |name: &str, value: &str| name.eq_ignore_ascii_case(SRT_MODE_PARAMETER) && value != SRT_CALLER_MODE;
    url.scheme() == "srt" && url.query_pairs().any(|(name, value)| is_other_mode(&name, &value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::library::PipelineLibrary;

    type Checked = Result<toml::Table, Vec<(Option<String>, HostAccessError)>>;

    fn check(permitted: &ApiHostAccess, pipeline: &str, values: &str) -> Checked {
        let library = PipelineLibrary::with_shipped_pipelines();
        let description = library.get(pipeline).expect("a shipped pipeline");
        HostAccess::Permitted(permitted).check_and_resolve_files(description, &toml::from_str(values).expect("TOML"))
    }

    #[test]
    fn a_listener_needs_a_permission_however_it_is_written() {
        let refused = |name: Option<&str>| Err(vec![(name.map(str::to_owned), HostAccessError::ListenerNotPermitted)]);
        let permitted = ApiHostAccess {
            listeners: true,
            ..ApiHostAccess::default()
        };
        for (pipeline, values, name) in [
            ("srt-listen", "port = 9000", None),
            ("srt", "uri = \"srt://0.0.0.0:9000?mode=listener\"", Some("uri")),
            (
                "srt",
                "uri = \"srt://0.0.0.0:9000?latency=9&Mode=rendezvous\"",
                Some("uri"),
            ),
            (
                "srt",
                "uri = \"srt://0.0.0.0:9000?mode=caller&m%6fde=listener\"",
                Some("uri"),
            ),
            ("srt", "uri = \"srt://0.0.0.0:9000?mode=2\"", Some("uri")),
        ] {
            assert_eq!(
                check(&ApiHostAccess::default(), pipeline, values),
                refused(name),
                "{values}"
            );
            assert!(check(&permitted, pipeline, values).is_ok(), "{values}");
        }
        for uri in ["srt://192.0.2.1:9000", "srt://192.0.2.1:9000?mode=caller&latency=200"] {
            assert!(
                check(&ApiHostAccess::default(), "srt", &format!("uri = \"{uri}\"")).is_ok(),
                "{uri}"
            );
        }
    }

    /// The shipped pipeline has a device by default.
    #[test]
    fn a_default_is_checked_like_a_value() {
        let none = ApiHostAccess::default();
        let refused = Err(vec![(Some("device".to_owned()), HostAccessError::FileNotPermitted)]);
        assert_eq!(check(&none, "v4l2", ""), refused);
        assert_eq!(check(&none, "v4l2", "device = \"/dev/null\""), refused);
    }
}
