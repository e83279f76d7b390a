//! What a section of the configuration is: a struct whose fields are keys, and what is known of each key.

use serde::de::DeserializeOwned;

/// A key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// `section.key`, as in messages and in the documentation.
    pub path: &'static str,
    /// The last part of the path.
    pub name: &'static str,
    /// When another value takes effect.
    pub reload: Reload,
    /// The default, in Markdown.
    pub default: &'static str,
    /// The lines of its doc comment, each with a leading space.
    doc: &'static str,
    /// The value is never shown.
    pub is_secret: bool,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// When the configuration is read again.
    Live,
    /// When the gateway is restarted.
    Restart,
}

impl Key {
    pub(super) const fn new(path: &'static str, name: &'static str, reload: Reload, doc: &'static str) -> Self {
        Self {
            path,
            name,
            reload,
            default: "",
            doc,
            is_secret: false,
        }
    }

    pub(super) const fn with(self, default: &'static str, is_secret: bool) -> Self {
        Self {
            default,
            is_secret,
            ..self
        }
    }

    /// What the key sets, in one line without a full stop.
    pub fn meaning(&self) -> &'static str {
        self.doc.trim().trim_end_matches('.')
    }

    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        let path = self.path.replace('.', "__").to_ascii_uppercase();
        format!("{PREFIX}{path}")
    }
}

/// What the names of variables that stand for keys begin with.
pub(super) const PREFIX: &str = "MILLSTREAM_";

/// A table of the configuration, as the macro [`section!`] makes it.
pub trait Section: Default + DeserializeOwned {
    /// As in the file; `*` stands for any name.
    const NAME: &'static str;
    /// All keys, in the order of the fields.
    const KEYS: &'static [Key];

    /// Keys whose values differ.
    fn differences(&self, other: &Self) -> Vec<&'static Key>;
}

/// Declares a section. Each field is a key, and everything that is known of it stands beside it:
///
/// ```text
/// /// What it sets, for the documentation.
/// #[key("name in the file", Live or Restart, "default in Markdown", "function in `values`")]
/// pub field: Type = default,
/// ```
///
/// A fifth word `secret` keeps the value out of messages.
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

        impl $crate::config::section::Section for $name {
            const NAME: &'static str = $section;
            const KEYS: &'static [$crate::config::Key] = &[$(
                $crate::config::Key::new(
                    concat!($section, ".", $key),
                    $key,
                    $crate::config::Reload::$reload,
                    concat!($($doc),+),
                )
                .with($shown, section!(@is $($secret)?))
            ),+];

            fn differences(&self, other: &Self) -> Vec<&'static $crate::config::Key> {
                let differs = [$(self.$field != other.$field),+];
                let keys = Self::KEYS.iter().zip(differs);
                keys.filter_map(|(key, differs)| differs.then_some(key)).collect()
            }
        }
    };
    (@is secret) => { true };
    (@is) => { false };
}
pub(super) use section;
