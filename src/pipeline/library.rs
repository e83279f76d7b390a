//! All pipelines by name: those shipped with the gateway, and those of the operator, which take precedence.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use super::description::{PipelineDescription, PipelineDescriptionError};
use millstream_worker_runtime::wire::PipelineJob;

/// Pipelines by name.
#[derive(Clone, Debug)]
pub struct PipelineLibrary {
    by_name: BTreeMap<String, Arc<PipelineDescription>>,
}

/// Why a folder of pipelines cannot be loaded.
#[derive(Debug, Error)]
pub enum PipelineLibraryError {
    #[error("cannot read the pipeline file or folder {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("invalid pipeline file {}: {source}", path.display())]
    InvalidDescription {
        path: PathBuf,
        source: PipelineDescriptionError,
    },
    #[error("invalid pipeline file name {}: a pipeline name may only contain letters, digits, `_` and `-`", .0.display())]
    InvalidName(PathBuf),
    #[error("the pipeline folder {} contains more than {MAX_PIPELINE_FILES} pipeline files", .0.display())]
    TooManyPipelines(PathBuf),
}

const MAX_PIPELINE_FILES: usize = 500;

/// Embeds the files of `pipelines/` in the binary, so that it runs from anywhere.
macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../pipelines/", $name, ".toml")))),*]
    };
}

const SHIPPED_PIPELINES: [(&str, &str); 17] = shipped![
    "test",
    "slate",
    "rtsp",
    "rtsp-audio",
    "srt",
    "srt-listen",
    "rtmp",
    "file",
    "v4l2",
    "aac-to-opus",
    "audio-to-opus",
    "h265-to-h264",
    "h264-to-baseline",
    "mjpeg-to-h264",
    "opus-to-aac",
    "audio-to-aac",
    "to-jpeg",
];

impl PipelineLibrary {
    /// Returns the pipelines shipped with the gateway.
    pub fn with_shipped_pipelines() -> Self {
        let parse =
            |(name, text): (&str, &str)| Some((name.to_owned(), Arc::new(PipelineDescription::from_toml(text).ok()?)));
        Self {
            by_name: SHIPPED_PIPELINES.into_iter().filter_map(parse).collect(),
        }
    }

    /// Adds all `*.toml` files of a folder. A file with the name of a shipped pipeline replaces it.
    ///
    /// # Errors
    ///
    /// A [`PipelineLibraryError`] for each file that cannot be used.
    pub fn add_folder(&mut self, folder: &Path) -> Result<(), Vec<PipelineLibraryError>> {
        let files = pipeline_files(folder).map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        for path in files {
            match read_pipeline(path) {
                Ok((name, description)) => {
                    self.by_name.insert(name, Arc::new(description));
                }
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Returns a trial job for each pipeline; see [`PipelineDescription::pipeline_check_job`].
    pub fn pipeline_check_jobs(&self) -> Vec<(String, PipelineJob)> {
        self.iter()
            .map(|(name, description)| (name.to_owned(), description.pipeline_check_job()))
            .collect()
    }

    /// Returns the pipeline with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<PipelineDescription>> {
        self.by_name.get(name)
    }

    /// Iterates over all pipelines, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<PipelineDescription>)> {
        self.by_name
            .iter()
            .map(|(name, description)| (name.as_str(), description))
    }

    /// Returns all names, comma-separated, for messages.
    pub fn comma_separated_names(&self) -> String {
        self.by_name.keys().cloned().collect::<Vec<_>>().join(", ")
    }
}

/// All `*.toml` of a folder.
fn pipeline_files(folder: &Path) -> Result<Vec<PathBuf>, PipelineLibraryError> {
    let unreadable = |source| PipelineLibraryError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
        if files.len() > MAX_PIPELINE_FILES {
            return Err(PipelineLibraryError::TooManyPipelines(folder.to_owned()));
        }
    }
    files.sort();
    Ok(files)
}

/// The pipeline of a file, with its name.
fn read_pipeline(path: PathBuf) -> Result<(String, PipelineDescription), PipelineLibraryError> {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_plain) {
        return Err(PipelineLibraryError::InvalidName(path));
    }
    let name = name.to_owned();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(PipelineLibraryError::Read { path, source }),
    };
    match PipelineDescription::from_toml(&text) {
        Ok(description) => Ok((name, description)),
        Err(source) => Err(PipelineLibraryError::InvalidDescription { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shipped_pipelines_are_valid() {
        for (name, text) in SHIPPED_PIPELINES {
            if let Err(error) = PipelineDescription::from_toml(text) {
                panic!("{name}: {error}");
            }
        }
        assert_eq!(
            PipelineLibrary::with_shipped_pipelines().iter().count(),
            SHIPPED_PIPELINES.len()
        );
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines")).expect("the folder");
        assert_eq!(folder.count(), SHIPPED_PIPELINES.len(), "each file is listed");
    }
}
