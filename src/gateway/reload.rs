//! Reloads the configuration of a running gateway: when its file changes, on a signal, and on request of the API.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tracing::error;

use super::{Gateway, config_check};
use crate::config::{self, Config, ConfigError};
use crate::control::reload::ReloadReplySender;

/// Where a gateway reads its configuration.
#[derive(Clone, Debug)]
pub struct ConfigLoader {
    file: Option<PathBuf>,
    has_demo: bool,
}

impl ConfigLoader {
    /// `watched_file` is `None` for [`config::DEFAULT_CONFIG_FILE`], if there is one; `has_demo` adds the stream `demo`.
    pub fn new(file: Option<PathBuf>, has_demo: bool) -> Self {
        Self { file, has_demo }
    }

    /// Reads the file and the environment.
    ///
    /// # Errors
    ///
    /// All mistakes that a reload would find.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let (mut config, mistakes) = Config::load_with_mistakes(self.file.as_deref(), std::env::vars_os());
        ConfigError::result_from_mistakes(
            [mistakes, config_check::find_source_and_credential_mistakes(&config)].concat(),
        )?;
        if self.has_demo {
            config.add_demo_stream_if_absent();
        }
        Ok(config)
    }

    fn config_path_or_default(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(config::DEFAULT_CONFIG_FILE))
    }
}

/// Why the configuration is reloaded.
#[derive(Debug)]
pub enum ReloadTrigger {
    /// The file has changed.
    File,
    /// SIGHUP.
    Signal,
    /// A request of the API, which waits for the result.
    Api(ReloadReplySender),
}

/// Waits for triggers and reloads the configuration.
pub struct Reloader {
    config_source: ConfigLoader,
    watched_file: WatchedFile,
    api_requests: Option<mpsc::Receiver<ReloadReplySender>>,
}

impl Reloader {
    /// Takes over the requests of the API.
    pub fn new(gateway: &mut Gateway, source: ConfigLoader) -> Self {
        Self {
            watched_file: WatchedFile::new(source.config_path_or_default()),
            api_requests: gateway.take_reload_request_receiver(),
            config_source: source,
        }
    }

    /// Waits for a changed file or a request of the API. Nothing is lost if the future is dropped.
    pub async fn next_file_change_or_api_request(&mut self) -> ReloadTrigger {
        let request = async {
            match &mut self.api_requests {
                Some(requests) => requests.recv().await,
                None => None,
            }
        };
        tokio::select! {
            () = self.watched_file.wait_for_change() => ReloadTrigger::File,
            Some(reply) = request => ReloadTrigger::Api(reply),
        }
    }

    /// Reads the configuration and applies it to the gateway. If it has mistakes, they are logged and nothing changes.
    pub async fn reload(&self, gateway: &mut Gateway, trigger: ReloadTrigger) {
        let reloaded = match self.config_source.load() {
            Ok(config) => gateway.replace_config(config).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &reloaded {
            for mistake in &error.mistakes {
                error!(%mistake, "configuration not reloaded because of a mistake (see `mistake`); the previous configuration remains in effect");
            }
        }
        if let ReloadTrigger::Api(reply) = trigger {
            let _ = reply.send(reloaded.map_err(|error| error.to_string()));
        }
    }
}

/// How often the configuration file is checked for a change.
const CONFIG_FILE_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Modification time and length of a file.
type FileStamp = (SystemTime, u64);

/// A file that is polled for changes.
struct WatchedFile {
    path: PathBuf,
    /// `None` if the file did not exist.
    last_reported_stamp: Option<FileStamp>,
}

impl WatchedFile {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            last_reported_stamp: read_modification_time_and_size(path),
        }
    }

    /// Waits until the file has changed and has then stayed the same for an interval: an editor may still be writing.
    async fn wait_for_change(&mut self) {
        let mut previous = read_modification_time_and_size(&self.path);
        loop {
            tokio::time::sleep(CONFIG_FILE_POLL_INTERVAL).await;
            let current = read_modification_time_and_size(&self.path);
            if current.is_some() && current != self.last_reported_stamp && current == previous {
                self.last_reported_stamp = current;
                return;
            }
            previous = current;
        }
    }
}

fn read_modification_time_and_size(path: &Path) -> Option<FileStamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of a test, which is removed when this is dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("millstream-{name}-{}.toml", std::process::id()));
            std::fs::write(&path, text).expect("written");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_the_file_is_reported_once() {
        let file = Scratch::new("watched", "");
        let mut watched = WatchedFile::new(&file.0);
        let hour = Duration::from_secs(3_600);
        assert!(tokio::time::timeout(hour, watched.wait_for_change()).await.is_err());
        std::fs::write(&file.0, "[log]").expect("written");
        assert!(tokio::time::timeout(hour, watched.wait_for_change()).await.is_ok());
        assert!(tokio::time::timeout(hour, watched.wait_for_change()).await.is_err());
        // A missing file is no change: an editor may be replacing it.
        std::fs::remove_file(&file.0).expect("removed");
        assert!(tokio::time::timeout(hour, watched.wait_for_change()).await.is_err());
        std::fs::write(&file.0, "[http]\n").expect("written");
        assert!(tokio::time::timeout(hour, watched.wait_for_change()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_still_being_written_is_not_reported() {
        let file = Scratch::new("growing", "");
        let mut watched = WatchedFile::new(&file.0);
        let mut changed = std::pin::pin!(watched.wait_for_change());
        // From here on the file is written between two polls.
        assert!(
            tokio::time::timeout(CONFIG_FILE_POLL_INTERVAL / 2, &mut changed)
                .await
                .is_err()
        );
        for length in 1..20 {
            std::fs::write(&file.0, "#".repeat(length)).expect("written");
            assert!(
                tokio::time::timeout(CONFIG_FILE_POLL_INTERVAL, &mut changed)
                    .await
                    .is_err(),
                "{length}"
            );
        }
        let hour = Duration::from_secs(3_600);
        assert!(tokio::time::timeout(hour, &mut changed).await.is_ok());
    }

    #[test]
    fn a_configuration_is_loaded_with_the_demo_stream_or_with_all_its_mistakes() {
        let file = Scratch::new("source", "[log]\nlevel = \"debug\"\n");
        let config = ConfigLoader::new(Some(file.0.clone()), true).load().expect("valid");
        let streams: Vec<&str> = config.streams.iter().map(|stream| stream.name.as_str()).collect();
        assert_eq!((config.log.level.as_str(), &streams[..]), ("debug", &["demo"][..]));
        let text = "[log]\nlevel = 1\n[auth]\npublish_token_file = \"/nonexistent\"\n";
        std::fs::write(&file.0, text).expect("written");
        let error = ConfigLoader::new(Some(file.0.clone()), false)
            .load()
            .expect_err("mistakes");
        let keys: Vec<&str> = error.mistakes.iter().map(|mistake| mistake.key.as_str()).collect();
        assert_eq!(keys, ["log.level", "auth.publish_token_file"]);
    }
}
