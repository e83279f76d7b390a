//! The key `sources` of a stream: several sources, the best one first. Each source that the gateway pulls is configured
//! as that of a stream with one source.

use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::join_key_path;
use super::mistake::{ConfigMistake, MistakeKind};
use super::reader::ConfigReader;
use super::section::section;
use super::value_parsers::{self, ConfigEnum};
use millstream_core::hub::name::{SourceName, StreamKey, StreamName};

/// The sources of a stream that has several.
#[derive(Clone, Debug, PartialEq)]
pub struct FailoverConfig {
    pub stream: StreamName,
    /// The best one first.
    pub sources: Vec<FailoverSourceConfig>,
    pub times: FailoverTimesConfig,
    pub kind: FailoverGroupKind,
}

/// What the sources of a stream are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverGroupKind {
    /// The first that is live is shown.
    Alternatives,
    /// Streams of one camera, between which viewers are switched. With `on_demand`, none is connected while nobody watches.
    CameraLayers { on_demand: bool },
}

/// One source of a stream that has several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverSourceConfig {
    pub name: SourceName,
    pub kind: FailoverSourceKind,
    /// Stream and name of the source that runs for this one too: a pipeline with the same parameters runs once.
    pub shared_with: Option<(StreamName, SourceName)>,
}

/// Where a source comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverSourceKind {
    /// A publisher sends it.
    Whip,
    /// The gateway pulls it.
    Pulled(StandbyMode),
}

/// What a source that the gateway pulls does while a better one is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StandbyMode {
    /// It is connected, and its last key frame is cached: a switch to it takes half a second.
    #[default]
    Warm,
    /// It does not run.
    Cold,
}

impl ConfigEnum for StandbyMode {
    const VALUES_BY_NAME: &'static [(&'static str, Self)] = &[("warm", Self::Warm), ("cold", Self::Cold)];
}

section! {
    /// When a stream with several sources changes them.
    pub struct FailoverTimesConfig("streams.*") {
        /// Seconds that a better source which has failed must be live without interruption before it is shown again, 0 to
        /// 3600.
        #[key("hold_off", Live, "`5`", "value_parsers::parse_whole_seconds::<0, 3_600, _, _>")]
        pub hold_off: Duration = Duration::from_secs(5),

        /// Milliseconds without media after which the next source is shown, 100 to 60000. At least three frame intervals
        /// of the source.
        #[key("stall_timeout_ms", Live, "`400`", "value_parsers::parse_milliseconds_within::<100, 60_000, _, _>")]
        pub stall_timeout: Duration = Duration::from_millis(400),
    }
}

section! {
    /// A source of a stream that has several: one of `whip`, `rtsp`, `hls` and `pipeline`, and these keys.
    pub struct FailoverEntryKeys("streams.*.sources") {
        /// The source is a publisher, and this is its name: `/whip/STREAM?source=NAME`. The first such source is also that
        /// of `/whip/STREAM`.
        #[key("whip", Live, "none", "value_parsers::parse_source_name")]
        pub whip: Option<SourceName> = None,

        /// Name of a source that the gateway pulls: up to 32 of `a-z`, `0-9`, `_` and `-`.
        #[key("name", Live, "its kind", "value_parsers::parse_source_name")]
        pub name: Option<SourceName> = None,

        /// What a source that the gateway pulls does while a better one is live: `warm` keeps it connected, `cold` starts it
        /// when it is needed.
        #[key("standby", Live, "`warm`", "value_parsers::parse_config_enum")]
        pub standby: StandbyMode = StandbyMode::Warm,
    }
}

/// A source of a failover group as it is read: its entry, and the table of what the gateway pulls.
pub(super) struct FailoverSourceEntry<'a> {
    pub config: FailoverSourceConfig,
    /// Path, place in the file, and keys of the source; `None` for a publisher.
    pub pulled: Option<(String, usize, DeTable<'a>)>,
}

/// Maximum number of sources of a stream: each that stands by has a connection.
const MAX_SOURCES_PER_FAILOVER_GROUP: usize = 8;

/// Keys of a source that have no meaning in a failover group.
const ON_DEMAND_KEYS: [&str; 2] = ["on_demand", "stop_after"];

/// Reads a stream with the key `sources`. `None` if there is a mistake in it.
pub(super) fn read_failover_group<'a>(
    reader: &mut ConfigReader<'a>,
    path: &str,
    mut table: DeTable<'a>,
) -> Option<(Vec<FailoverSourceEntry<'a>>, FailoverTimesConfig)> {
    let sources = table.remove("sources")?;
    let times = reader.read_file_only_table::<FailoverTimesConfig>(path, table);
    let (path, at) = (join_key_path(path, "sources"), sources.span().start);
    let DeValue::Array(items) = sources.into_inner() else {
        let problem = "has to be a list of tables, such as [{ whip = \"main\" }, { rtsp = \"rtsp://host/path\" }]";
        reader.add_mistake_unless_caused_by_syntax_error(at, ConfigMistake::new(path, problem));
        return None;
    };
    if items.is_empty() || items.len() > MAX_SOURCES_PER_FAILOVER_GROUP {
        let problem = format!(
            "has {} sources; expected 1 to {MAX_SOURCES_PER_FAILOVER_GROUP}",
            items.len()
        );
        reader.add_mistake_unless_caused_by_syntax_error(at, ConfigMistake::new(path, problem));
        return None;
    }
    let mut entries: Vec<FailoverSourceEntry<'a>> = Vec::new();
    let mut is_complete = true;
    for (index, item) in items.into_iter().enumerate() {
        match read_failover_source(reader, format!("{path}[{index}]"), item, &entries) {
            Some(entry) => entries.push(entry),
            None => is_complete = false,
        }
    }
    is_complete.then_some((entries, times))
}

fn read_failover_source<'a>(
    reader: &mut ConfigReader<'a>,
    path: String,
    item: Spanned<DeValue<'a>>,
    before: &[FailoverSourceEntry<'a>],
) -> Option<FailoverSourceEntry<'a>> {
    let at = item.span().start;
    let problem = "has to be a table, such as { whip = \"main\" } or { rtsp = \"rtsp://host/path\" }";
    let mut pulled = reader.require_table_or_add_mistake(&path, item, problem)?;
    let mut own = DeTable::new();
    for key in FailoverEntryKeys::ENTRY_KEY_NAMES {
        if let Some((name, value)) = pulled.remove_entry(*key) {
            own.insert(name, value);
        }
    }
    for key in ON_DEMAND_KEYS {
        if let Some((name, _)) = pulled.remove_entry(key) {
            let problem = "has no effect in a list of sources: to run a source only while no source before it is \
                           live, set its `standby = \"cold\"`";
            let mistake =
                ConfigMistake::with_kind(join_key_path(&path, key), MistakeKind::MissingKey(problem.to_owned()));
            reader.add_mistake_unless_caused_by_syntax_error(name.span().start, mistake);
        }
    }
    let is_whip = own.contains_key("whip");
    let extra = if is_whip {
        // A publisher has no other keys.
        let of_pulled = ["name", "standby"].into_iter().find_map(|key| own.get_key_value(key));
        of_pulled.or_else(|| pulled.iter().next()).map(|(key, _)| key.clone())
    } else {
        None
    };
    let keys = reader.read_file_only_table::<FailoverEntryKeys>(&path, own);
    if let Some(extra) = extra {
        let problem = "cannot be combined with `whip`: an entry with `whip` has no other keys";
        let mistake = ConfigMistake::new(join_key_path(&path, extra.get_ref()), problem);
        reader.add_mistake_unless_caused_by_syntax_error(extra.span().start, mistake);
        return None;
    }
    let is_taken = |name: &SourceName| before.iter().any(|entry| entry.config.name == *name);
    let name = match keys.whip.or(keys.name) {
        Some(name) if is_taken(&name) => {
            let problem = format!("has the name {name} of another source of this stream");
            reader.add_mistake_unless_caused_by_syntax_error(at, ConfigMistake::new(path, problem));
            return None;
        }
        Some(name) => name,
        // Its value is a mistake.
        None if is_whip => return None,
        None => unused_source_name(&pulled, is_taken)?,
    };
    let kind = if is_whip {
        FailoverSourceKind::Whip
    } else {
        FailoverSourceKind::Pulled(keys.standby)
    };
    Some(FailoverSourceEntry {
        config: FailoverSourceConfig {
            name,
            kind,
            shared_with: None,
        },
        pulled: (!is_whip).then_some((path, at, pulled)),
    })
}

/// Returns the kind of a source as its name, with a number if that is taken.
fn unused_source_name(table: &DeTable<'_>, is_taken: impl Fn(&SourceName) -> bool) -> Option<SourceName> {
    let kinds = ["rtsp", "hls", "pipeline"];
    // Without a kind there is a mistake anyway.
    let kind = kinds
        .into_iter()
        .find(|kind| table.contains_key(*kind))
        .unwrap_or("source");
    let numbered = (2..).map(|number| format!("{kind}-{number}"));
    let mut names = std::iter::once(kind.to_owned()).chain(numbered);
    names.find_map(|name| SourceName::parse(&name).ok().filter(|name| !is_taken(name)))
}

impl FailoverEntryKeys {
    const ENTRY_KEY_NAMES: &'static [&'static str] = &["whip", "name", "standby"];
}

impl FailoverConfig {
    /// Returns the key of the stream that a source writes to.
    pub fn source_key(&self, source: &FailoverSourceConfig) -> StreamKey {
        match &source.shared_with {
            Some((stream, name)) => stream.failover_source_key(name),
            None => self.stream.failover_source_key(&source.name),
        }
    }

    /// Whether the sources are streams of one camera.
    pub fn has_camera_layers(&self) -> bool {
        matches!(self.kind, FailoverGroupKind::CameraLayers { .. })
    }

    /// Returns the source that a publisher feeds: the first one, or the one of this name.
    pub fn whip_source(&self, name: Option<&str>) -> Option<&SourceName> {
        let mut whip = self
            .sources
            .iter()
            .filter(|source| source.kind == FailoverSourceKind::Whip);
        whip.find(|source| name.is_none_or(|name| source.name.as_str() == name))
            .map(|source| &source.name)
    }
}
