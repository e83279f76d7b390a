//! Streams that are set through the API. They have the settings of `[streams."NAME"]`, run like those of the
//! configuration file, and are kept in the state file, so that a restart starts them again. The configuration file
//! takes precedence: a stream that it also configures is kept and does not run.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use rand::RngCore as _;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tracing::warn;

use super::state_file::replace_state_file;
use crate::access::issued_tokens::{IssuedToken, IssuedTokens};
use crate::config::state_file::{ApiStream, StateFile, TokenRecord, state_file_text};
use crate::config::{Config, ConfigError, ConfigMistake};
use crate::pipeline::host_access::{ApiHostAccess, HostAccess};
use crate::pipeline::library::PipelineLibrary;
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use crate::sources::fetch::SourceConfig;
use crate::sources::fetch::address::AllowedNetworks;
use crate::sources::fetch::build::SourceBuildContext;
use crate::sources::fetch::supervisor::{ConfiguredSource, SourceBuildResult};
use crate::sources::fetch::unbuildable_source::UnbuildableSource;
use millstream_core::hub::name::StreamName;

/// What is needed of the configuration to run a stream that the API sets.
#[derive(Clone)]
pub struct ApiStreamContext {
    pub pipeline_library: PipelineLibrary,
    pub worker_programs: WorkerExecutablesAndProcessSlots,
    pub allowed_networks: AllowedNetworks,
    pub host_access: ApiHostAccess,
    /// Streams of the configuration file.
    pub configured_streams: BTreeSet<StreamName>,
    pub max_streams: usize,
    pub max_tokens: usize,
    pub source_test_timeout: Duration,
}

/// Why a change of a stream is refused. Nothing has changed then.
#[derive(Debug, Error)]
pub enum ApiStreamError {
    #[error(
        "the stream is in the configuration file, which takes precedence over the API: change it there, or use another name"
    )]
    InConfigurationFile,
    #[error("the stream was already set through the API: PUT replaces its settings, PATCH changes them")]
    Exists,
    #[error("no stream of this name was set through the API")]
    NotFound,
    #[error(
        "a condition of the request is not met (with `If-None-Match: *`: the stream already exists; with `If-Match`: \
         its settings have changed, or it does not exist): GET the stream for its current settings and `ETag`"
    )]
    PreconditionFailed,
    #[error("there are already {0} streams that were set through the API: remove one, or raise `api.max_streams`")]
    TooMany(usize),
    #[error("there are already {0} valid tokens: revoke one, or raise `api.max_tokens`")]
    TooManyTokens(usize),
    #[error("the settings of the stream have mistakes")]
    Mistakes(Vec<ConfigMistake>),
    #[error(
        "the state file {path} cannot be written: {error}; set `api.state_file` to a file in a folder that the gateway \
         can write to"
    )]
    NotWritten { path: String, error: io::Error },
    #[error("the gateway is starting or stopping: retry later")]
    Stopping,
}

/// The streams that were set through the API.
#[derive(Default)]
pub struct ApiStreams {
    state_file: PathBuf,
    streams: RwLock<BTreeMap<StreamName, Arc<ApiStream>>>,
    issued_tokens: Arc<IssuedTokens>,
    /// Held while a change is made, by the API or a reload. `None` until the gateway has started.
    context: Arc<Mutex<Option<Arc<ApiStreamContext>>>>,
}

/// Allows a reload to build the streams with other settings while the API changes none.
pub type ApiStreamsLock = OwnedMutexGuard<Option<Arc<ApiStreamContext>>>;

/// What a change of a stream did.
#[derive(Clone, Debug)]
pub struct ApiStreamChange {
    pub stream: Arc<ApiStream>,
    pub is_new: bool,
}

/// The condition of a change, given the entity tag of the stream, which is `None` if there is none.
pub type EntityTagPrecondition = Box<dyn Fn(Option<&str>) -> bool + Send>;

impl ApiStreams {
    /// Reads the state file of a configuration.
    ///
    /// # Errors
    ///
    /// All mistakes in the file.
    pub fn read(config: &Config) -> Result<(Self, StateFile), ConfigError> {
        let path = config.state_file_path();
        let state = StateFile::read(path)?;
        let tokens = parse_issued_token_records(&state.tokens)
            .map_err(|mistakes| ConfigError::new(state.add_locations_to_mistakes(mistakes)))?;
        let streams = state.streams.iter();
        let streams = streams.map(|(name, stream)| (name.clone(), Arc::new(stream.clone())));
        Ok((
            Self {
                state_file: path.to_owned(),
                streams: RwLock::new(streams.collect()),
                issued_tokens: Arc::new(IssuedTokens::new(tokens)),
                context: Arc::default(),
            },
            state,
        ))
    }

    /// Returns a stream that was set through the API.
    pub fn get(&self, name: &StreamName) -> Option<Arc<ApiStream>> {
        self.read_streams().get(name).cloned()
    }

    /// Returns the tokens that were issued through the API.
    pub fn issued_tokens(&self) -> &Arc<IssuedTokens> {
        &self.issued_tokens
    }

    /// Returns what sources are built with; `None` while the gateway is starting or stopping.
    pub async fn context(&self) -> Option<Arc<ApiStreamContext>> {
        self.context.lock().await.clone()
    }

    /// Waits until no change is being made. None is made while the lock is held.
    pub async fn lock(&self) -> ApiStreamsLock {
        self.context.clone().lock_owned().await
    }

    /// Builds the sources of all streams but those that the configuration file has too. One that cannot be built is no
    /// mistake of the configuration, which may not even have changed: its stream is marked as failed.
    pub fn build_sources(&self, context: &Arc<ApiStreamContext>) -> Vec<ConfiguredSource> {
        let mut sources = Vec::new();
        for (name, stream) in &*self.read_streams() {
            if context.configured_streams.contains(name) {
                warn!(
                    stream = %name,
                    "stream set through the API does not run: the configuration file has a stream of the same name"
                );
                continue;
            }
            let (stream, context) = (stream.clone(), context.clone());
            let stream_config = stream.config.clone();
            let build = move || build_source(&stream, &context).map_err(|mistakes| mistakes_text(&mistakes));
            let source = match build() {
                Ok(source) => SourceBuildResult::Ready(source),
                Err(problem) => {
                    let path = self.state_file.display();
                    warn!(
                        stream = %name,
                        problem,
                        state_file = %path,
                        "stream set through the API failed: its source cannot be started; the gateway retries it"
                    );
                    let build = Arc::new(build);
                    SourceBuildResult::Unbuildable(UnbuildableSource { problem, build })
                }
            };
            sources.push(ConfiguredSource { stream_config, source });
        }
        sources
    }

    /// Returns the mistakes because of which streams would be marked as failed.
    pub fn find_unbuildable_stream_mistakes(&self, context: &ApiStreamContext) -> Vec<ConfigMistake> {
        let streams = self.read_streams();
        let running = streams
            .iter()
            .filter(|(name, _)| !context.configured_streams.contains(*name));
        let mistakes = running.filter_map(|(_, stream)| build_source(stream, context).err());
        mistakes.flatten().collect()
    }

    pub(super) fn read_streams(&self) -> RwLockReadGuard<'_, BTreeMap<StreamName, Arc<ApiStream>>> {
        self.streams.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the state file with another set of streams, and then replaces the set.
    pub(super) async fn replace_streams(
        &self,
        streams: BTreeMap<StreamName, Arc<ApiStream>>,
    ) -> Result<(), ApiStreamError> {
        let tokens: Vec<TokenRecord> = self
            .issued_tokens
            .list_all()
            .iter()
            .map(|token| token.to_token_record())
            .collect();
        self.write_state_file(&streams, &tokens).await?;
        *self.streams.write().unwrap_or_else(PoisonError::into_inner) = streams;
        Ok(())
    }

    /// Writes the state file with another set of tokens, and then replaces the set.
    pub(super) async fn replace_tokens(&self, tokens: Vec<IssuedToken>) -> Result<(), ApiStreamError> {
        let records: Vec<TokenRecord> = tokens.iter().map(IssuedToken::to_token_record).collect();
        let streams = self.read_streams().clone();
        self.write_state_file(&streams, &records).await?;
        self.issued_tokens.replace_all(tokens);
        Ok(())
    }

    async fn write_state_file(
        &self,
        streams: &BTreeMap<StreamName, Arc<ApiStream>>,
        tokens: &[TokenRecord],
    ) -> Result<(), ApiStreamError> {
        let text = state_file_text(streams.iter().map(|(name, stream)| (name, &stream.settings)), tokens);
        let path = self.state_file.clone();
        let written = tokio::task::spawn_blocking(move || replace_state_file(&path, &text)).await;
        written
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|error| {
                let path = self.state_file.display().to_string();
                warn!(path, %error, "change through the API rejected: the state file (see `path`) cannot be written");
                ApiStreamError::NotWritten { path, error }
            })
    }
}

/// Makes entity tags unpredictable.
static ENTITY_TAG_KEY: LazyLock<[u8; 32]> = LazyLock::new(|| {
    let mut key = [0; 32];
    rand::rng().fill_bytes(&mut key);
    key
});

impl ApiStream {
    /// Returns the opaque part of the entity tag of its settings, until the process ends. Nobody can compute it from guesses
    /// of a password in them.
    pub fn opaque_tag(&self) -> String {
        let digest: [u8; 32] = Sha256::new()
            .chain_update(*ENTITY_TAG_KEY)
            .chain_update(self.settings.to_string())
            .finalize()
            .into();
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Reads the tokens of the state file.
fn parse_issued_token_records(records: &[TokenRecord]) -> Result<Vec<IssuedToken>, Vec<ConfigMistake>> {
    let (mut tokens, mut mistakes) = (Vec::new(), Vec::new());
    for (index, record) in records.iter().enumerate() {
        match IssuedToken::from_record(record) {
            Some(token) => tokens.push(token),
            None => mistakes.push(ConfigMistake::new(
                format!("tokens[{index}]"),
                "is not a token that the API has issued: remove this table",
            )),
        }
    }
    if mistakes.is_empty() { Ok(tokens) } else { Err(mistakes) }
}

/// Builds the source of a stream.
///
/// # Errors
///
/// All mistakes, each with its key.
pub fn build_source(stream: &ApiStream, context: &ApiStreamContext) -> Result<SourceConfig, Vec<ConfigMistake>> {
    let build_context = SourceBuildContext {
        pipeline_library: &context.pipeline_library,
        worker_programs: &context.worker_programs,
        allowed_networks: &context.allowed_networks,
        host_access: HostAccess::Permitted(&context.host_access),
    };
    SourceConfig::from_stream_config(&stream.config, build_context)
}

fn mistakes_text(mistakes: &[ConfigMistake]) -> String {
    let texts: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_tag_tells_settings_apart_and_tells_nothing_of_a_password() {
        let stream = |password: &str| {
            let settings = format!("rtsp = \"rtsp://a/\"\nusername = \"u\"\npassword = \"{password}\"");
            let name = StreamName::parse("door").expect("a name");
            ApiStream::from_settings(&name, toml::from_str(&settings).expect("TOML")).expect("valid")
        };
        assert_eq!(stream("one").opaque_tag(), stream("one").opaque_tag());
        assert_ne!(stream("one").opaque_tag(), stream("two").opaque_tag());
        // What somebody who knows the other settings can compute for each password that they guess.
        let guessed: [u8; 32] = Sha256::digest(stream("one").settings.to_string()).into();
        let guessed: String = guessed.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_ne!(stream("one").opaque_tag(), guessed);
    }
}
