//! Sections of the configuration: structs whose fields are keys, with the metadata of each key.

use serde::de::DeserializeOwned;

/// The metadata of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigKey {
    /// `section.key`, as in messages and in the documentation.
    pub path: &'static str,
    /// The last part of the path.
    pub name: &'static str,
    /// When a changed value takes effect.
    pub reload_mode: ReloadMode,
    /// The default value, in Markdown.
    pub default_text: &'static str,
    /// The lines of its doc comment, each with a leading space.
    doc: &'static str,
    /// Messages never contain the value.
    pub is_secret: bool,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadMode {
    /// With a reload.
    Live,
    /// With a restart.
    Restart,
}

impl ConfigKey {
    pub(super) const fn new(path: &'static str, name: &'static str, reload: ReloadMode, doc: &'static str) -> Self {
        Self {
            path,
            name,
            reload_mode: reload,
            default_text: "",
            doc,
            is_secret: false,
        }
    }

    pub(super) const fn with_default_and_secrecy(self, default: &'static str, is_secret: bool) -> Self {
        Self {
            default_text: default,
            is_secret,
            ..self
        }
    }

    /// Returns what the key sets, in one line without a final full stop.
    pub fn description(&self) -> &'static str {
        self.doc.trim().trim_end_matches('.')
    }

    /// Returns the name of the environment variable that sets it.
    pub fn environment_variable_name(&self) -> String {
        let path = self.path.replace('.', "__").to_ascii_uppercase();
        format!("{ENVIRONMENT_VARIABLE_PREFIX}{path}")
    }
}

/// Prefix of the environment variables that set keys.
pub(super) const ENVIRONMENT_VARIABLE_PREFIX: &str = "MILLSTREAM_";

/// Returns the name of the variable that sets a key.
pub(super) fn environment_variable_name(path: &str) -> String {
    format!(
        "{ENVIRONMENT_VARIABLE_PREFIX}{}",
        path.replace('.', "__").to_ascii_uppercase()
    )
}

/// Name of the section that holds the streams.
pub(super) const STREAMS_SECTION: &str = "streams";

/// Name of the list of webhooks.
pub(super) const WEBHOOKS_LIST: &str = "webhooks";

/// A table of the configuration. The macro `section!` implements it.
pub trait ConfigSection: Default + DeserializeOwned {
    /// Path of the table; `*` stands for any name.
    const TABLE_PATH: &'static str;
    /// All keys, in the order of the fields.
    const CONFIG_KEYS: &'static [ConfigKey];

    /// Returns the keys whose values differ.
    fn changed_keys(&self, other: &Self) -> Vec<&'static ConfigKey>;
}

/// Declares a section. Each field is a key with its metadata:
///
/// ```text
/// /// What it sets, for the documentation.
/// #[key("name in the file", Live or Restart, "default in Markdown", "function in `values`")]
/// pub field: Type = default,
/// ```
///
/// A fifth argument `secret` keeps the value out of messages.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $(#[derive($($derive:ident),+)])?
        pub struct $name:ident($section:literal) {
            $(
                $(#[doc = $doc:literal])+
                #[key($key:literal, $reload:ident, $shown:literal, $read:literal $(, $secret:ident)?)]
                pub $field:ident: $type:ty = $default:expr,
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Deserialize $($(, $derive)+)?)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                #[serde(rename = $key, deserialize_with = $read)]
                pub $field: $type,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),+ }
            }
        }

        impl $crate::config::section::ConfigSection for $name {
            const TABLE_PATH: &'static str = $section;
            const CONFIG_KEYS: &'static [$crate::config::section::ConfigKey] = &[$(
                $crate::config::section::ConfigKey::new(
                    concat!($section, ".", $key),
                    $key,
                    $crate::config::section::ReloadMode::$reload,
                    concat!($($doc),+),
                )
                .with_default_and_secrecy($shown, section!(@is $($secret)?))
            ),+];

            fn changed_keys(&self, other: &Self) -> Vec<&'static $crate::config::section::ConfigKey> {
                let differs = [$(self.$field != other.$field),+];
                let keys = Self::CONFIG_KEYS.iter().zip(differs);
                keys.filter_map(|(key, differs)| differs.then_some(key)).collect()
            }
        }
    };
    (@is secret) => { true };
    (@is) => { false };
}
pub(super) use section;
