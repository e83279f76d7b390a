//! The section `streams`: streams that the gateway pulls, each a table under its name. The folder `sources` builds
//! their sources.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::camera_layers::{self, CameraLayer};
use super::document::join_key_path;
use super::failover_group::{
    self, FailoverConfig, FailoverGroupKind, FailoverSourceConfig, FailoverSourceKind, FailoverTimesConfig, StandbyMode,
};
use super::mistake::{ConfigMistake, MistakeKind, nearest_name};
use super::reader::ConfigReader;
use super::secret::Redacted;
use super::section::{ConfigSection as _, STREAMS_SECTION, section};
use super::value_parsers::{self, ConfigEnum};
use millstream_core::hub::name::{SourceName, StreamKey, StreamName};

/// A configured source of a stream that the gateway pulls.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamConfig {
    pub name: StreamName,
    pub source: StreamSourceConfig,
    /// For one of several sources of the stream.
    pub failover_source: Option<PulledFailoverSource>,
}

/// What a source that is one of several has beside its own keys.
#[derive(Clone, Debug, PartialEq)]
pub struct PulledFailoverSource {
    pub name: SourceName,
    pub standby: StandbyMode,
    /// Path of its table.
    path: String,
    /// Set for one of the streams of a camera.
    pub camera_layer: Option<CameraLayer>,
}

/// The configured streams.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ConfiguredStreams {
    pub(super) pulled: Vec<StreamConfig>,
    pub(super) failover_groups: Vec<FailoverConfig>,
}

/// The source of a configured stream.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamSourceConfig {
    Rtsp(Box<RtspConfig>),
    Hls(Box<HlsSourceConfig>),
    Pipeline(Box<PipelineSourceConfig>),
}

section! {
    /// A camera.
    pub struct RtspConfig("streams.*") {
        /// URL, `rtsp://[user:password@]host[:port]/path`, or a list of up to four for the streams of one camera, the
        /// one with the highest resolution first: they become the layers of the stream.
        #[key("rtsp", Live, "required", "value_parsers::parse_redacted_string", secret)]
        pub rtsp: Redacted<String> = Redacted::default(),

        /// How RTP is sent: `tcp` within the RTSP connection, or `udp`.
        #[key("transport", Live, "`tcp`", "value_parsers::parse_config_enum")]
        pub transport: RtspTransport = RtspTransport::Tcp,

        /// User, unless the URL contains one.
        #[key("username", Live, "none", "value_parsers::parse_redacted_string", secret)]
        pub username: Option<Redacted<String>> = None,

        /// Password of the user.
        #[key("password", Live, "none", "value_parsers::parse_redacted_string", secret)]
        pub password: Option<Redacted<String>> = None,

        /// File that contains the password; read for each session.
        #[key("password_file", Live, "none", "value_parsers::parse_path")]
        pub password_file: Option<PathBuf> = None,

        /// Environment variable that contains the password.
        #[key("password_env", Live, "none", "value_parsers::parse_short_string")]
        pub password_env: Option<String> = None,

        /// Seconds without video after which the camera is considered frozen, 1 to 3600. By default three times the
        /// longest recent interval between frames, at least 5 and at most 90.
        #[key("silence_timeout", Live, "automatic", "value_parsers::parse_whole_seconds::<1, 3_600, _, _>")]
        pub silence_timeout: Option<Duration> = None,

        /// Workarounds for cameras that deviate from RTSP: see docs/cameras.md.
        #[key("quirks", Live, "none", "value_parsers::parse_redacted_table")]
        pub quirks: Redacted<toml::Table> = Redacted::default(),

        /// Run the source only while it has viewers.
        #[key("on_demand", Live, "`false`", "value_parsers::parse_bool")]
        pub on_demand: bool = false,

        /// Seconds that the source keeps running after its last viewer, 1 to 86400; with `on_demand`, and for the larger of
        /// several streams of a camera.
        #[key("stop_after", Live, "`10`", "value_parsers::parse_whole_seconds::<1, 86_400, _, _>")]
        pub stop_after: Option<Duration> = None,
    }
}

section! {
    /// An HLS playlist.
    pub struct HlsSourceConfig("streams.*") {
        /// URL of the playlist, `http://` or `https://`.
        #[key("hls", Live, "required", "value_parsers::parse_redacted_string", secret)]
        pub hls: Redacted<String> = Redacted::default(),

        /// Maximum height of the selected variant in pixels, 16 to 8640.
        #[key("max_height", Live, "any", "value_parsers::parse_optional_whole_number::<16, 8_640, _, _>")]
        pub max_height: Option<u32> = None,

        /// Maximum bandwidth of the selected variant in bit/s, 1000 to 1000000000.
        #[key("max_bandwidth", Live, "any", "value_parsers::parse_optional_whole_number::<1_000, 1_000_000_000, _, _>")]
        pub max_bandwidth: Option<u64> = None,

        /// Restart a recorded stream at its end.
        #[key("repeat", Live, "`true`", "value_parsers::parse_bool")]
        pub repeat: bool = true,

        /// HTTP headers of each request to the scheme, host and port of the URL, at most 16.
        #[key("headers", Live, "none", "value_parsers::parse_redacted_table", secret)]
        pub headers: Redacted<toml::Table> = Redacted::default(),

        /// Run the source only while it has viewers.
        #[key("on_demand", Live, "`false`", "value_parsers::parse_bool")]
        pub on_demand: bool = false,

        /// Seconds that the source keeps running after its last viewer, 1 to 86400; with `on_demand` only.
        #[key("stop_after", Live, "`10`", "value_parsers::parse_whole_seconds::<1, 86_400, _, _>")]
        pub stop_after: Option<Duration> = None,
    }
}

section! {
    /// A pipeline.
    pub struct PipelineSourceConfig("streams.*") {
        /// Name of the pipeline.
        #[key("pipeline", Live, "required", "value_parsers::parse_short_string")]
        pub pipeline: String = String::new(),

        /// Parameters of the pipeline.
        #[key("params", Live, "none", "value_parsers::parse_redacted_table", secret)]
        pub params: Redacted<toml::Table> = Redacted::default(),

        /// Run the source only while it has viewers.
        #[key("on_demand", Live, "`false`", "value_parsers::parse_bool")]
        pub on_demand: bool = false,

        /// Seconds that the source keeps running after its last viewer, 1 to 86400; with `on_demand` only.
        #[key("stop_after", Live, "`10`", "value_parsers::parse_whole_seconds::<1, 86_400, _, _>")]
        pub stop_after: Option<Duration> = None,
    }
}

/// How a camera sends RTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RtspTransport {
    /// Within the RTSP connection (RFC 2326 §10.12).
    #[default]
    Tcp,
    /// To UDP ports of the gateway. Packets that arrive out of order are dropped.
    Udp,
}

impl ConfigEnum for RtspTransport {
    const VALUES_BY_NAME: &'static [(&'static str, Self)] = &[("tcp", Self::Tcp), ("udp", Self::Udp)];
}

/// Default of `stop_after`.
const DEFAULT_ON_DEMAND_STOP_AFTER: Duration = Duration::from_secs(10);

/// Name of the stream of `--demo`.
const DEMO_STREAM_NAME: &str = "demo";

impl StreamConfig {
    /// Returns how long the source keeps running after its last viewer; `None` if it always runs.
    pub fn on_demand_stop_after(&self) -> Option<Duration> {
        let (on_demand, stop_after) = self.source.on_demand_settings();
        let runs_on_demand = match &self.failover_source {
            Some(source) => source.standby == StandbyMode::Cold,
            None => on_demand,
        };
        runs_on_demand.then(|| stop_after.unwrap_or(DEFAULT_ON_DEMAND_STOP_AFTER))
    }

    /// Returns the path of its table.
    pub fn config_table_path(&self) -> String {
        match &self.failover_source {
            Some(source) => source.path.clone(),
            None => join_key_path(STREAMS_SECTION, self.name.as_str()),
        }
    }

    /// Returns the key of the stream that the source writes to.
    pub fn stream_key(&self) -> StreamKey {
        match &self.failover_source {
            Some(source) => self.name.failover_source_key(&source.name),
            None => self.name.clone().into(),
        }
    }

    /// Returns the name of the pipeline, if the source is one.
    pub fn pipeline_name(&self) -> Option<&str> {
        match &self.source {
            StreamSourceConfig::Pipeline(pipeline) => Some(&pipeline.pipeline),
            StreamSourceConfig::Rtsp(_) | StreamSourceConfig::Hls(_) => None,
        }
    }

    /// Returns the stream `demo`: a test pattern that runs while it has viewers.
    pub(super) fn demo() -> Option<Self> {
        let pipeline = PipelineSourceConfig {
            pipeline: "test".to_owned(),
            on_demand: true,
            ..PipelineSourceConfig::default()
        };
        Some(Self {
            name: StreamName::parse(DEMO_STREAM_NAME).ok()?,
            source: StreamSourceConfig::Pipeline(Box::new(pipeline)),
            failover_source: None,
        })
    }
}

impl StreamSourceConfig {
    /// Returns the kind, which is also the key that selects it.
    pub fn kind_label(&self) -> &'static str {
        match self {
            Self::Rtsp(_) => "rtsp",
            Self::Hls(_) => "hls",
            Self::Pipeline(_) => "pipeline",
        }
    }

    fn on_demand_settings(&self) -> (bool, Option<Duration>) {
        match self {
            Self::Rtsp(camera) => (camera.on_demand, camera.stop_after),
            Self::Hls(playlist) => (playlist.on_demand, playlist.stop_after),
            Self::Pipeline(pipeline) => (pipeline.on_demand, pipeline.stop_after),
        }
    }
}

/// Maximum number of streams in the configuration file: each has a connection.
pub(super) const MAX_CONFIGURED_STREAMS: usize = 1_000;

/// The key of a stream with several sources.
pub(super) const SOURCES_KEY: &str = "sources";

/// The keys that select the source. A stream has one of them.
const SOURCE_KIND_KEYS: [&str; 3] = ["rtsp", "hls", "pipeline"];

/// Reads all tables of the section, at most `max_streams`.
pub(super) fn read_streams(reader: &mut ConfigReader<'_>, max_streams: usize) -> ConfiguredStreams {
    let section = reader.take_section_table(STREAMS_SECTION);
    if let Some((name, _)) = section.iter().nth(max_streams) {
        let at = name.span().start;
        reader.add_mistake_unless_caused_by_syntax_error(
            at,
            ConfigMistake::new(STREAMS_SECTION, format!("has more than {max_streams} streams")),
        );
        return ConfiguredStreams::default();
    }
    let mut streams = ConfiguredStreams::default();
    for (name, value) in section {
        let path = join_key_path(STREAMS_SECTION, name.get_ref());
        let parsed = StreamName::parse(name.get_ref());
        if let Err(error) = &parsed {
            reader.add_mistake_unless_caused_by_syntax_error(
                name.span().start,
                ConfigMistake::new(&path, format!("is not a valid stream name: {error}")),
            );
        }
        let problem = "has to be a table, such as { rtsp = \"rtsp://host/path\" }";
        let Some(table) = reader.require_table_or_add_mistake(&path, value, problem) else {
            continue;
        };
        if table.contains_key(SOURCES_KEY) {
            read_stream_with_failover_group(reader, (&path, parsed.ok()), table, &mut streams);
            continue;
        }
        if camera_layers::has_list_of_urls(&table) {
            read_stream_with_camera_layers(reader, (&path, parsed.ok()), name.span().start, table, &mut streams);
            continue;
        }
        let source = read_stream_source(reader, &path, name.span().start, table);
        if let (Ok(name), Some(source)) = (parsed, source) {
            streams.pulled.push(StreamConfig {
                name,
                source,
                failover_source: None,
            });
        }
    }
    merge_identical_pipelines(&mut streams);
    streams
}

/// Lets each pipeline with the same parameters run once for all lists of sources that it is in, such as a slate.
fn merge_identical_pipelines(streams: &mut ConfiguredStreams) {
    let mut kept: Vec<StreamConfig> = Vec::new();
    for stream in std::mem::take(&mut streams.pulled) {
        let is_same = |other: &&mut StreamConfig| other.failover_source.is_some() && other.source == stream.source;
        let is_pipeline = matches!(stream.source, StreamSourceConfig::Pipeline(_));
        let shareable = stream.failover_source.as_ref().filter(|_| is_pipeline);
        let Some((source, first)) = shareable.zip(kept.iter_mut().find(is_same)) else {
            kept.push(stream);
            continue;
        };
        let Some(owner) = &mut first.failover_source else {
            continue;
        };
        if source.standby == StandbyMode::Warm {
            owner.standby = StandbyMode::Warm;
        }
        let shared_with = Some((first.name.clone(), owner.name.clone()));
        let failover_groups = streams
            .failover_groups
            .iter_mut()
            .filter(|failover_group| failover_group.stream == stream.name);
        let mut entries = failover_groups.flat_map(|failover_group| &mut failover_group.sources);
        if let Some(entry) = entries.find(|entry| entry.name == source.name) {
            entry.shared_with = shared_with;
        }
    }
    streams.pulled = kept;
}

/// Reads a stream with several sources; `name` is `None` if that is a mistake.
fn read_stream_with_failover_group<'a>(
    reader: &mut ConfigReader<'a>,
    (path, name): (&str, Option<StreamName>),
    table: DeTable<'a>,
    streams: &mut ConfiguredStreams,
) {
    let single = SOURCE_KIND_KEYS.iter().find_map(|key| table.get_key_value(*key));
    if let Some((key, _)) = single {
        let problem = "cannot be combined with `sources`: add it to that list";
        let mistake = ConfigMistake::new(join_key_path(path, key.get_ref()), problem);
        return reader.add_mistake_unless_caused_by_syntax_error(key.span().start, mistake);
    }
    let Some((entries, times)) = failover_group::read_failover_group(reader, path, table) else {
        return;
    };
    let mut sources = Vec::new();
    for entry in entries {
        if let Some((path, at, table)) = entry.pulled {
            if camera_layers::has_list_of_urls(&table) {
                let problem = "has to be one URL: a list of URLs, for the streams of one camera as layers, is possible \
                               only in a stream without `sources`";
                let mistake = ConfigMistake::new(join_key_path(&path, "rtsp"), problem);
                reader.add_mistake_unless_caused_by_syntax_error(at, mistake);
                continue;
            }
            let source = read_stream_source(reader, &path, at, table);
            if let (Some(name), Some(source)) = (&name, source) {
                let standby = match entry.config.kind {
                    FailoverSourceKind::Pulled(standby) => standby,
                    FailoverSourceKind::Whip => StandbyMode::Warm,
                };
                streams.pulled.push(StreamConfig {
                    name: name.clone(),
                    source,
                    failover_source: Some(PulledFailoverSource {
                        name: entry.config.name.clone(),
                        standby,
                        path,
                        camera_layer: None,
                    }),
                });
            }
        }
        sources.push(entry.config);
    }
    streams.failover_groups.extend(name.map(|stream| FailoverConfig {
        stream,
        sources,
        times,
        kind: FailoverGroupKind::Alternatives,
    }));
}

/// Reads a stream whose key `rtsp` is a list; `name` is `None` if that is a mistake.
fn read_stream_with_camera_layers<'a>(
    reader: &mut ConfigReader<'a>,
    (path, name): (&str, Option<StreamName>),
    at: usize,
    mut table: DeTable<'a>,
    streams: &mut ConfiguredStreams,
) {
    let urls = camera_layers::take_urls(reader, path, &mut table);
    let is_single = urls.as_ref().is_some_and(|urls| urls.len() == 1);
    let source = match is_single {
        true => read_stream_source(reader, path, at, table),
        // `stop_after` needs no `on_demand`: it concerns the larger layers too.
        false => deserialize_stream_source(reader, path, at, table),
    };
    let (Some(urls), Some(source), Some(stream)) = (urls, source, name) else {
        return;
    };
    if is_single {
        return streams.pulled.push(StreamConfig {
            name: stream,
            source,
            failover_source: None,
        });
    }
    let StreamSourceConfig::Rtsp(camera) = source else {
        return;
    };
    let mut sources = Vec::new();
    for (index, (name, rtsp)) in (0..).map_while(camera_layers::layer_name).zip(urls).enumerate() {
        sources.push(FailoverSourceConfig {
            name: name.clone(),
            kind: FailoverSourceKind::Pulled(StandbyMode::Cold),
            shared_with: None,
        });
        streams.pulled.push(StreamConfig {
            name: stream.clone(),
            source: StreamSourceConfig::Rtsp(Box::new(RtspConfig {
                rtsp,
                ..(*camera).clone()
            })),
            failover_source: Some(PulledFailoverSource {
                name,
                standby: StandbyMode::Cold,
                path: path.to_owned(),
                camera_layer: Some(CameraLayer { index }),
            }),
        });
    }
    streams.failover_groups.push(FailoverConfig {
        stream,
        sources,
        times: FailoverTimesConfig {
            stall_timeout: camera_layers::STALL_TIMEOUT,
            ..FailoverTimesConfig::default()
        },
        kind: FailoverGroupKind::CameraLayers {
            on_demand: camera.on_demand,
        },
    });
}

fn read_stream_source<'a>(
    reader: &mut ConfigReader<'a>,
    path: &str,
    at: usize,
    table: DeTable<'a>,
) -> Option<StreamSourceConfig> {
    let stop_after = table.get_key_value("stop_after").map(|(key, _)| key.span().start);
    let source = deserialize_stream_source(reader, path, at, table)?;
    if let Some(at) = stop_after
        && !source.on_demand_settings().0
        && !reader.has_mistake(&join_key_path(path, "on_demand"))
    {
        let problem = MistakeKind::MissingKey(
            "has no effect without `on_demand = true`: add that, or remove this key".to_owned(),
        );
        reader.add_mistake_unless_caused_by_syntax_error(
            at,
            ConfigMistake::with_kind(join_key_path(path, "stop_after"), problem),
        );
    }
    Some(source)
}

fn deserialize_stream_source<'a>(
    reader: &mut ConfigReader<'a>,
    path: &str,
    at: usize,
    table: DeTable<'a>,
) -> Option<StreamSourceConfig> {
    let given = SOURCE_KIND_KEYS.iter().filter_map(|key| table.get_key_value(*key));
    let given: Vec<(String, usize)> = given.map(|(key, _)| (key.to_string(), key.span().start)).collect();
    let kind = match given.as_slice() {
        [] => {
            add_missing_source_mistake(reader, path, at, &table);
            return None;
        }
        [(kind, _)] => kind,
        [(first, _), (second, at), ..] => {
            let problem =
                format!("cannot be combined with `{first}`: leave out one of them, or list both in `sources`");
            reader.add_mistake_unless_caused_by_syntax_error(
                *at,
                ConfigMistake::new(join_key_path(path, second), problem),
            );
            return None;
        }
    };
    Some(match kind.as_str() {
        "rtsp" => StreamSourceConfig::Rtsp(Box::new(reader.read_file_only_table(path, table))),
        "hls" => StreamSourceConfig::Hls(Box::new(reader.read_file_only_table(path, table))),
        _ => StreamSourceConfig::Pipeline(Box::new(reader.read_file_only_table(path, table))),
    })
}

/// Adds the mistakes of a stream without a source. The likely reason is a misspelt key.
fn add_missing_source_mistake(reader: &mut ConfigReader<'_>, path: &str, at: usize, table: &DeTable<'_>) {
    let keys = [
        RtspConfig::CONFIG_KEYS,
        HlsSourceConfig::CONFIG_KEYS,
        PipelineSourceConfig::CONFIG_KEYS,
    ]
    .concat();
    let own: Vec<&str> = keys.iter().map(|key| key.name).collect();
    let mut is_misspelt = false;
    for name in table.keys().filter(|name| !own.contains(&name.get_ref().as_ref())) {
        is_misspelt |= nearest_name(name.get_ref(), SOURCE_KIND_KEYS).is_some();
        reader.add_unknown_key_mistake(path, name, &own);
    }
    if !is_misspelt {
        let problem = "has no source: set `rtsp`, `hls` or `pipeline`".to_owned();
        reader.add_mistake_unless_caused_by_syntax_error(
            at,
            ConfigMistake::with_kind(path, MistakeKind::MissingKey(problem)),
        );
    }
}
