//! Builds parts of the gateway from their sections before anything is started. If a part cannot be built, the gateway
//! does not start, and a running one keeps its configuration.

use crate::access::credentials::Credentials;
use crate::config::{Config, ConfigError, Mistake};
use crate::pipeline::library::Library;
use crate::pipeline::programs::WorkerPrograms;
use crate::sources::fetch::SourceConfig;
use crate::sources::fetch::address::Allowed;
use crate::sources::fetch::build::BuildContext;
use crate::sources::fetch::supervisor::ConfiguredSource;

/// Parts that are built from a configuration.
pub struct Parts {
    pub credentials: Credentials,
    pub library: Library,
    pub streams: Vec<ConfiguredSource>,
}

impl Parts {
    /// Builds the parts, and reads the files that the configuration refers to. `programs` are those of the workers.
    ///
    /// # Errors
    ///
    /// All mistakes, each with its place and key.
    pub fn build(config: &Config, programs: &WorkerPrograms) -> Result<Self, ConfigError> {
        let mut mistakes = Vec::new();
        let credentials = Credentials::read(&config.auth, &config.limits).map_err(|wrong| mistakes.extend(wrong));
        let library = library(config, &mut mistakes);
        let allowed = Allowed::new(config.sources.allow.clone());
        let context = BuildContext {
            library: &library,
            programs,
            allowed: &allowed,
        };
        let mut streams = Vec::new();
        for stream in &config.streams {
            match SourceConfig::build(stream, context) {
                Ok(fetched) => streams.push((fetched, stream.clone())),
                Err(wrong) => mistakes.extend(wrong),
            }
        }
        match credentials {
            Ok(credentials) if mistakes.is_empty() => Ok(Self {
                credentials,
                library,
                streams,
            }),
            _ => Err(ConfigError::new(config.locate(mistakes))),
        }
    }
}

/// Returns the built-in pipelines and those of the operator's folder.
pub fn library(config: &Config, mistakes: &mut Vec<Mistake>) -> Library {
    let mut library = Library::shipped();
    if let Some(folder) = &config.pipelines.folder
        && let Err(errors) = library.add_folder(folder)
    {
        let mistake = |error| Mistake::new("pipelines.folder", format!("is invalid: {error}"));
        mistakes.extend(errors.into_iter().map(mistake));
    }
    library
}
