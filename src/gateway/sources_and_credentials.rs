//! Builds parts of the gateway from their sections before anything is started. If a part cannot be built, the gateway
//! does not start, and a running one keeps its configuration.

use std::sync::Arc;

use crate::access::credentials::AuthCredentials;
use crate::config::{Config, ConfigError, ConfigMistake};
use crate::control::api_streams::{ApiStreamContext, ApiStreams};
use crate::http::webhooks::target::WebhookTarget;
use crate::pipeline::host_access::{ApiHostAccess, HostAccess};
use crate::pipeline::library::PipelineLibrary;
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use crate::sources::fetch::SourceConfig;
use crate::sources::fetch::address::AllowedNetworks;
use crate::sources::fetch::build::SourceBuildContext;
use crate::sources::fetch::supervisor::ConfiguredSource;

/// Parts that are built from a configuration.
pub struct SourcesAndCredentials {
    pub credentials: AuthCredentials,
    pub pipeline_library: PipelineLibrary,
    pub configured_sources: Vec<ConfiguredSource>,
    pub webhook_targets: Vec<WebhookTarget>,
}

impl SourcesAndCredentials {
    /// Builds the parts, and reads the files that the configuration refers to. `programs` are those of the workers.
    ///
    /// # Errors
    ///
    /// All mistakes, each with its place and key.
    pub fn build(config: &Config, programs: &WorkerExecutablesAndProcessSlots) -> Result<Self, ConfigError> {
        let mut mistakes = Vec::new();
        let credentials = AuthCredentials::read(&config.auth, &config.limits).map_err(|wrong| mistakes.extend(wrong));
        let library = load_builtin_and_folder_pipelines(config, &mut mistakes);
        let allowed = AllowedNetworks::new(config.sources.allow.clone());
        let context = SourceBuildContext {
            pipeline_library: &library,
            worker_programs: programs,
            allowed_networks: &allowed,
            host_access: HostAccess::Everything,
        };
        let mut streams = Vec::new();
        for stream in &config.streams {
            match SourceConfig::from_stream_config(stream, context) {
                Ok(source) => streams.push(ConfiguredSource::from_built_source(source, stream.clone())),
                Err(wrong) => mistakes.extend(wrong),
            }
        }
        let webhooks = WebhookTarget::build_webhook_targets(&config.webhooks).map_err(|wrong| mistakes.extend(wrong));
        match credentials {
            Ok(credentials) if mistakes.is_empty() => Ok(Self {
                credentials,
                pipeline_library: library,
                configured_sources: streams,
                webhook_targets: webhooks.unwrap_or_default(),
            }),
            _ => Err(ConfigError::new(config.add_locations_to_mistakes(mistakes))),
        }
    }
}

/// Returns what streams that are set by the API need of a configuration.
pub fn api_stream_context(
    config: &Config,
    library: &PipelineLibrary,
    programs: &WorkerExecutablesAndProcessSlots,
) -> Arc<ApiStreamContext> {
    Arc::new(ApiStreamContext {
        pipeline_library: library.clone(),
        worker_programs: programs.clone(),
        allowed_networks: AllowedNetworks::new(config.sources.allow.clone()),
        host_access: ApiHostAccess {
            files: config.api.files.clone(),
            listeners: config.api.listeners,
        },
        configured_streams: config.stream_names().cloned().collect(),
        max_streams: config.api.max_streams,
        max_tokens: config.api.max_tokens,
        source_test_timeout: config.api.source_test_timeout,
    })
}

/// Returns the mistakes because of which streams that were set by the API would be marked as failed, each with its place
/// in the state file.
///
/// # Errors
///
/// All mistakes because of which the gateway would not start.
pub fn find_unbuildable_api_streams(
    config: &Config,
    programs: &WorkerExecutablesAndProcessSlots,
) -> Result<Vec<ConfigMistake>, ConfigError> {
    let parts = SourcesAndCredentials::build(config, programs)?;
    let (api_streams, state_file) = ApiStreams::read(config)?;
    let context = api_stream_context(config, &parts.pipeline_library, programs);
    Ok(state_file.add_locations_to_mistakes(api_streams.find_unbuildable_stream_mistakes(&context)))
}

/// Returns the built-in pipelines and those of the operator's folder.
pub fn load_builtin_and_folder_pipelines(config: &Config, mistakes: &mut Vec<ConfigMistake>) -> PipelineLibrary {
    let mut library = PipelineLibrary::with_shipped_pipelines();
    if let Some(folder) = &config.pipelines.folder
        && let Err(errors) = library.add_folder(folder)
    {
        let mistake = |error| ConfigMistake::new("pipelines.folder", format!("is invalid: {error}"));
        mistakes.extend(errors.into_iter().map(mistake));
    }
    library
}
