//! The section `api`: what may be set by the control API, and the file that keeps it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::section::section;
use super::value_parsers;

section! {
    /// What may be set through the control API.
    pub struct ApiConfig("api") {
        /// File in which the gateway keeps streams and tokens that were set through the API. It is rewritten at each
        /// change. See Streams set through the API.
        #[key("state_file", Restart, "`millstream.state.toml` beside `millstream.toml`; with systemd, `state.toml` in \
              its `STATE_DIRECTORY` folder", "value_parsers::parse_path")]
        pub state_file: Option<PathBuf> = None,

        /// Files, devices and folders of them that streams of the API may use, such as `["/srv/video", "/dev/video0"]`.
        /// Others are refused with 422. See Streams set through the API.
        #[key("files", Live, "none", "value_parsers::parse_absolute_paths")]
        pub files: Vec<PathBuf> = Vec::new(),

        /// Streams of the API may listen on ports of this host, by the pipeline `srt-listen` for example.
        #[key("listeners", Live, "`false`", "value_parsers::parse_bool")]
        pub listeners: bool = false,

        /// Maximum number of streams that are set through the API, 0 to 10000. Further ones get 409.
        #[key("max_streams", Live, "`1000`", "value_parsers::parse_whole_number_within::<0, 10_000, _, _>")]
        pub max_streams: usize = 1_000,

        /// Maximum number of tokens that are issued through the API and have not expired, 0 to 100000. Further ones get
        /// 409.
        #[key("max_tokens", Live, "`1000`", "value_parsers::parse_whole_number_within::<0, 100_000, _, _>")]
        pub max_tokens: usize = 1_000,

        /// Maximum time in seconds for which `POST /api/v1/sources/test` reads a source, 1 to 60.
        #[key("source_test_timeout", Live, "`10`", "value_parsers::parse_whole_seconds::<1, 60, _, _>")]
        pub source_test_timeout: Duration = Duration::from_secs(10),
    }
}

/// Name of the state file in the folder that systemd makes for the state of a service (`StateDirectory=`).
const STATE_FILE_IN_STATE_DIRECTORY: &str = "state.toml";

/// Returns the state file of a gateway whose configuration does not name one. `state_directory` is the variable that
/// systemd sets; it may list several folders.
pub(super) fn default_state_file(config_file: &Path, state_directory: Option<&str>) -> PathBuf {
    let folder = state_directory.and_then(|folders| folders.split(':').find(|folder| !folder.is_empty()));
    match folder {
        Some(folder) => Path::new(folder).join(STATE_FILE_IN_STATE_DIRECTORY),
        None => config_file.with_extension("state.toml"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_file_is_beside_the_configuration_or_in_the_state_directory() {
        for (file, folders, expected) in [
            ("millstream.toml", None, "millstream.state.toml"),
            ("/etc/millstream/a.toml", None, "/etc/millstream/a.state.toml"),
            ("/etc/millstream/a.toml", Some(""), "/etc/millstream/a.state.toml"),
            ("a.toml", Some("/var/lib/millstream"), "/var/lib/millstream/state.toml"),
            ("a.toml", Some("/var/lib/a:/var/lib/b"), "/var/lib/a/state.toml"),
        ] {
            assert_eq!(
                default_state_file(Path::new(file), folders),
                Path::new(expected),
                "{file} {folders:?}"
            );
        }
    }
}
