//! A file of `pipelines/`: one kind of source or conversion, and what a stream may set of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use super::value::{Parameter, ParameterType, TargetHost, ValueError};
use super::wire::{Input, Job};

/// A pipeline, as its file describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// What it is for, in a sentence.
    pub description: String,
    /// In the syntax of `gst-launch`. Its sinks are `appsink name=video` and `appsink name=audio`; a conversion has
    /// `appsrc name=video_in` or `appsrc name=audio_in` too.
    pub launch: String,
    #[serde(default)]
    pub params: BTreeMap<String, Parameter>,
    /// It begins again when it has come to its end.
    #[serde(default, rename = "loop")]
    pub repeats: bool,
    /// The worker may use the network.
    #[serde(default)]
    pub network: bool,
    #[serde(default)]
    pub limits: Limits,
}

/// Bounds of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Resident memory in MiB; beyond it the worker is ended. 32 to 16384.
    pub memory: u32,
    /// Processors that it may use; 0 sets no bound.
    pub processors: u32,
    /// Seconds until its first frame. 1 to 300.
    pub start_timeout: f64,
    /// Seconds without a frame after which it is started anew. 0.5 to 300.
    pub stall_timeout: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 512,
            processors: 0,
            start_timeout: 10.0,
            stall_timeout: 5.0,
        }
    }
}

impl Limits {
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

/// Why a file describes no pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DescriptionError {
    #[error("line {line} is not what a pipeline file may say: {message}")]
    Syntax { line: usize, message: String },
    #[error("`{key}` {problem}")]
    Key { key: String, problem: String },
}

/// Longest launch line, in bytes.
const MAX_LAUNCH: usize = 16_384;

impl Description {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// A [`DescriptionError`] that names line or key.
    pub fn parse(text: &str) -> Result<Self, DescriptionError> {
        let description: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            DescriptionError::Syntax {
                line: before.matches('\n').count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        description.check()?;
        Ok(description)
    }

    fn check(&self) -> Result<(), DescriptionError> {
        let refused = |key: &str, problem: &str| {
            Err(DescriptionError::Key {
                key: key.to_owned(),
                problem: problem.to_owned(),
            })
        };
        if self.launch.trim().is_empty() || self.launch.len() > MAX_LAUNCH {
            return refused("launch", "has to be a launch line of at most 16384 bytes");
        }
        let limits = &self.limits;
        if !(32..=16_384).contains(&limits.memory) {
            return refused("limits.memory", "has to be 32 to 16384 (MiB)");
        }
        if !(1.0..=300.0).contains(&limits.start_timeout) {
            return refused("limits.start_timeout", "has to be 1 to 300 (seconds)");
        }
        if !(0.5..=300.0).contains(&limits.stall_timeout) {
            return refused("limits.stall_timeout", "has to be 0.5 to 300 (seconds)");
        }
        for (name, parameter) in &self.params {
            let key = format!("params.{name}");
            let is_target = |target: &String| {
                let parts = target.split_once('.');
                parts.is_some_and(|(element, property)| !element.is_empty() && !property.is_empty())
            };
            if parameter.set.is_empty() || !parameter.set.iter().all(is_target) {
                return refused(&format!("{key}.set"), "has to list `element.property`");
            }
            if parameter.kind == ParameterType::Url && parameter.schemes.is_empty() {
                return refused(&format!("{key}.schemes"), "is missing: an address needs a list of them");
            }
            if parameter.required && parameter.default.is_some() {
                return refused(&key, "has a default, so it cannot be required");
            }
            // Whether a file or device is there is a question of the machine.
            let is_place = matches!(parameter.kind, ParameterType::File | ParameterType::Device);
            if let Some(default) = parameter.default.as_ref().filter(|_| !is_place)
                && let Err(error) = parameter.check(default)
            {
                return refused(&format!("{key}.default"), &error.to_string());
            }
        }
        Ok(())
    }

    /// Whether it makes something of what it is given, and is no source.
    pub fn is_conversion(&self) -> bool {
        self.launch.contains("name=video_in") || self.launch.contains("name=audio_in")
    }

    /// A job that is only to be checked: what streams have to give is left out.
    pub fn trial(&self) -> Job {
        let defaults = self.params.values().filter_map(|parameter| {
            let value = parameter.check(parameter.default.as_ref()?).ok()?;
            Some((parameter, value.text))
        });
        Job {
            launch: self.launch.clone(),
            properties: defaults
                .flat_map(|(parameter, text)| parameter.set.iter().map(move |target| (target.clone(), text.clone())))
                .collect(),
            inputs: Vec::new(),
            repeats: self.repeats,
            network: self.network,
            files: Vec::new(),
            memory: self.limits.memory_bytes(),
            processors: self.limits.processors,
        }
    }

    /// The job of a worker, with these values for the parameters.
    ///
    /// # Errors
    ///
    /// The names of all parameters whose value is none, and why.
    pub fn job(&self, values: &toml::Table, inputs: Vec<Input>) -> Result<(Job, Vec<TargetHost>), ParameterErrors> {
        let known = || self.params.keys().cloned().collect();
        let unknown = values.keys().filter(|name| !self.params.contains_key(*name));
        let mut wrong: ParameterErrors = unknown
            .map(|name| (name.clone(), ParameterError::Unknown { known: known() }))
            .collect();
        let (mut properties, mut hosts, mut files): (Vec<_>, Vec<_>, Vec<PathBuf>) = Default::default();
        for (name, parameter) in &self.params {
            let value = match values.get(name).or(parameter.default.as_ref()) {
                Some(value) => parameter.check(value),
                None if parameter.required => Err(ValueError::Missing),
                None => continue,
            };
            match value {
                Ok(value) => {
                    properties.extend(parameter.set.iter().map(|target| (target.clone(), value.text.clone())));
                    hosts.extend(value.host);
                    files.extend(value.file);
                }
                Err(error) => wrong.push((name.clone(), ParameterError::Value(error))),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let job = Job {
            launch: self.launch.clone(),
            properties,
            inputs,
            repeats: self.repeats,
            network: self.network,
            files,
            memory: self.limits.memory_bytes(),
            processors: self.limits.processors,
        };
        Ok((job, hosts))
    }
}

/// Parameters by name, and why their values cannot be used.
pub type ParameterErrors = Vec<(String, ParameterError)>;

/// Why a pipeline cannot be run with the values that a stream gives.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParameterError {
    #[error("is unknown; known are: {}", if known.is_empty() { "none".to_owned() } else { known.join(", ") })]
    Unknown { known: Vec<String> },
    #[error(transparent)]
    Value(#[from] ValueError),
}
