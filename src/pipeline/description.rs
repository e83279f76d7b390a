//! A pipeline file of `pipelines/`: the description of one kind of source or conversion, with its parameters.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::parameter::{ParameterType, ParameterValueError, PipelineParameter, TargetUrl};
use millstream_worker_runtime::wire::{InputTrack, PipelineJob};

/// A pipeline, as described by its file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineDescription {
    /// What it is for, in a sentence.
    pub description: String,
    /// Launch line in the syntax of `gst-launch`. Its sinks are `appsink name=video` and `appsink name=audio`; a
    /// conversion also has `appsrc name=video_in` or `appsrc name=audio_in`.
    pub launch: String,
    #[serde(default)]
    pub params: BTreeMap<String, PipelineParameter>,
    /// Restart from the beginning at the end of the stream.
    #[serde(default, rename = "loop")]
    pub repeats: bool,
    /// The worker may use the network.
    #[serde(default)]
    pub network: bool,
    /// It opens a port that senders connect to. Streams of the API need `api.listeners` for it.
    #[serde(default)]
    pub listens: bool,
    #[serde(default)]
    pub limits: WorkerLimits,
}

/// Resource and time limits of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerLimits {
    /// Resident memory in MiB; a worker that exceeds it is killed. 32 to 16384.
    pub memory: u32,
    /// Number of processors that it may use; 0 means no limit.
    pub processors: u32,
    /// Seconds until the first frame, else the worker is restarted. 1 to 300.
    pub start_timeout: f64,
    /// Seconds without a frame after which the worker is restarted. 0.5 to 300.
    pub stall_timeout: f64,
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self {
            memory: 512,
            processors: 0,
            start_timeout: 10.0,
            stall_timeout: 5.0,
        }
    }
}

impl WorkerLimits {
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory) << 20
    }

    pub fn start_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.start_timeout)
    }

    pub fn stall_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.stall_timeout)
    }
}

/// Why a pipeline file is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PipelineDescriptionError {
    #[error("error on line {line} of the pipeline file: {message}")]
    Syntax { line: usize, message: String },
    #[error("key `{key}` of the pipeline file: {problem}")]
    InvalidKey { key: String, problem: String },
}

/// Maximum length of the launch line, in bytes.
const MAX_LAUNCH_LINE_BYTES: usize = 16_384;

impl PipelineDescription {
    /// Parses and validates a pipeline file.
    ///
    /// # Errors
    ///
    /// A [`PipelineDescriptionError`] that names the line or the key.
    pub fn from_toml(text: &str) -> Result<Self, PipelineDescriptionError> {
        let description: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            PipelineDescriptionError::Syntax {
                line: before.matches('\n').count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        description.validate()?;
        Ok(description)
    }

    fn validate(&self) -> Result<(), PipelineDescriptionError> {
        let invalid = |key: &str, problem: &str| {
            Err(PipelineDescriptionError::InvalidKey {
                key: key.to_owned(),
                problem: problem.to_owned(),
            })
        };
        if self.launch.trim().is_empty() || self.launch.len() > MAX_LAUNCH_LINE_BYTES {
            return invalid("launch", "the launch line must have between 1 and 16384 bytes");
        }
        let limits = &self.limits;
        if !(32..=16_384).contains(&limits.memory) {
            return invalid(
                "limits.memory",
                "the memory limit of the worker must be between 32 and 16384 (MiB)",
            );
        }
        if !(1.0..=300.0).contains(&limits.start_timeout) {
            return invalid(
                "limits.start_timeout",
                "the start timeout must be between 1 and 300 (seconds)",
            );
        }
        if !(0.5..=300.0).contains(&limits.stall_timeout) {
            return invalid(
                "limits.stall_timeout",
                "the stall timeout must be between 0.5 and 300 (seconds)",
            );
        }
        for (name, parameter) in &self.params {
            let key = format!("params.{name}");
            let is_target = |target: &String| {
                let parts = target.split_once('.');
                parts.is_some_and(|(element, property)| !element.is_empty() && !property.is_empty())
            };
            if parameter.set.is_empty() || !parameter.set.iter().all(is_target) {
                return invalid(
                    &format!("{key}.set"),
                    "the list must contain targets as `element.property`",
                );
            }
            if parameter.kind == ParameterType::Url && parameter.schemes.is_empty() {
                return invalid(
                    &format!("{key}.schemes"),
                    "the key is missing: a parameter of type `url` needs this list of its allowed URL schemes",
                );
            }
            if parameter.required && parameter.default.is_some() {
                return invalid(&key, "the parameter cannot be required, because it has a default");
            }
            // Whether a file or device exists depends on the host.
            let is_path = matches!(parameter.kind, ParameterType::File | ParameterType::Device);
            if let Some(default) = parameter.default.as_ref().filter(|_| !is_path)
                && let Err(error) = parameter.validated_value(default)
            {
                return invalid(&format!("{key}.default"), &error.to_string());
            }
        }
        Ok(())
    }

    /// Returns whether the pipeline converts a track instead of being a source.
    pub fn is_conversion(&self) -> bool {
        self.launch.contains("name=video_in") || self.launch.contains("name=audio_in")
    }

    /// Returns a job for [`super::pipeline_check::check_pipelines`]: parameters without a default are omitted.
    pub fn pipeline_check_job(&self) -> PipelineJob {
        let defaults = self.params.values().filter_map(|parameter| {
            let value = parameter.validated_value(parameter.default.as_ref()?).ok()?;
            Some((parameter, value.text))
        });
        PipelineJob {
            launch: self.launch.clone(),
            properties: defaults
                .flat_map(|(parameter, text)| parameter.set.iter().map(move |target| (target.clone(), text.clone())))
                .collect(),
            inputs: Vec::new(),
            repeats: self.repeats,
            network: self.network,
            allowed_networks: Vec::new(),
            files: Vec::new(),
            memory: self.limits.memory_bytes(),
            processors: self.limits.processors,
        }
    }

    /// Builds the job of a worker from the values of the parameters; also returns the URLs that it connects to.
    ///
    /// # Errors
    ///
    /// The names of all parameters whose value is none, and why.
    pub fn build_job_and_target_urls(
        &self,
        values: &toml::Table,
        inputs: Vec<InputTrack>,
    ) -> Result<(PipelineJob, Vec<TargetUrl>), ParameterErrors> {
        let known = || self.params.keys().cloned().collect();
        let unknown = values.keys().filter(|name| !self.params.contains_key(*name));
        let mut wrong: ParameterErrors = unknown
            .map(|name| (name.clone(), ParameterError::UnknownParameter { known: known() }))
            .collect();
        let (mut properties, mut targets, mut files): (Vec<_>, Vec<_>, Vec<PathBuf>) = Default::default();
        for (name, parameter) in &self.params {
            let value = match values.get(name).or(parameter.default.as_ref()) {
                Some(value) => parameter.validated_value(value),
                None if parameter.required => Err(ParameterValueError::MissingValue),
                None => continue,
            };
            match value {
                Ok(value) => {
                    properties.extend(parameter.set.iter().map(|target| (target.clone(), value.text.clone())));
                    targets.extend(value.target);
                    files.extend(value.file);
                }
                Err(error) => wrong.push((name.clone(), ParameterError::InvalidValue(error))),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let job = PipelineJob {
            launch: self.launch.clone(),
            properties,
            inputs,
            repeats: self.repeats,
            network: self.network,
            allowed_networks: Vec::new(),
            files,
            memory: self.limits.memory_bytes(),
            processors: self.limits.processors,
        };
        Ok((job, targets))
    }
}

/// Parameters by name, and why their values cannot be used.
pub type ParameterErrors = Vec<(String, ParameterError)>;

/// Why a pipeline cannot be run with the values that a stream gives.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParameterError {
    #[error("the parameter is unknown; known parameters: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    UnknownParameter { known: Vec<String> },
    #[error(transparent)]
    InvalidValue(#[from] ParameterValueError),
}
