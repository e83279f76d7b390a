//! Finds what `serve` would refuse without starting anything, for `millstream check`.

use std::io;

use thiserror::Error;

use super::health;
use super::parts::{Parts, library};
use crate::config::{Config, ConfigError, Mistake, Problem, StreamConfig};
use crate::doctor::ports::{self, BindFailure, Protocol};
use crate::http::{server, tls};
use crate::pipeline::process;
use crate::pipeline::programs::WorkerPrograms;

/// Why `millstream check` fails.
#[derive(Debug, Error)]
pub enum CheckError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Pipelines that configured streams use and this machine cannot run.
    #[error("configured streams need {}", .0.join(", "))]
    Pipelines(Vec<String>),
}

/// Checks a configuration that has `mistakes` already, and prints warnings and which pipelines this machine can run.
///
/// # Errors
///
/// Everything that `serve` would refuse, or the pipelines that configured streams lack.
pub async fn run(config: &Config, mut mistakes: Vec<Mistake>, print: impl Fn(&str)) -> Result<(), CheckError> {
    for warning in &config.warnings {
        print(&format!("warning: {warning}\n"));
    }
    mistakes.extend(self::mistakes(config, &mistakes));
    for failure in bind_all_ports(config, &mistakes) {
        // A changed configuration is checked while the gateway runs with the old one.
        let is_gateway = match &failure.owner {
            Some(owner) => owner.is_gateway(),
            None => failure.is_in_use && health::probe(config).await.is_ok(),
        };
        match is_gateway {
            true => print(&format!(
                "`{}`: {} {}: a gateway is already running\n",
                failure.key, failure.protocol, failure.address
            )),
            false => mistakes.push(mistake(&failure, config)),
        }
    }
    ConfigError::unless_empty(mistakes)?;
    print("the configuration is valid\n");
    let missing = unavailable_pipelines(config, print).await;
    match missing.is_empty() {
        true => Ok(()),
        false => Err(CheckError::Pipelines(missing)),
    }
}

/// Prints for each pipeline whether this machine can run it. Returns those that it cannot run and that streams use.
async fn unavailable_pipelines(config: &Config, print: impl Fn(&str)) -> Vec<String> {
    let used = || config.streams.iter().filter_map(StreamConfig::pipeline);
    let library = library(config, &mut Vec::new());
    let findings = match process::check(&WorkerPrograms::installed(), library.trials()).await {
        Ok(findings) => findings,
        Err(error) => {
            print(&format!("pipelines: none can run: {error}\n"));
            return used().map(str::to_owned).collect();
        }
    };
    let mut missing = Vec::new();
    for finding in findings {
        let Some(failure) = finding.failure else {
            print(&format!("pipeline {}: ready\n", finding.name));
            continue;
        };
        print(&format!("pipeline {}: {}\n", finding.name, process::explain(&failure)));
        if used().any(|name| name == finding.name) {
            missing.push(finding.name);
        }
    }
    missing
}

/// Returns the mistakes in what a configuration refers to: tokens, keys, certificates, pipelines, sources. Those that
/// follow from a `known` one are left out.
pub fn mistakes(config: &Config, known: &[Mistake]) -> Vec<Mistake> {
    let mut mistakes = parts(config);
    mistakes.extend(config.locate(certificate(config)));
    without_consequences(mistakes, known)
}

fn without_consequences(mut mistakes: Vec<Mistake>, known: &[Mistake]) -> Vec<Mistake> {
    mistakes.retain(|mistake| !known.iter().any(|known| known.explains(mistake)));
    mistakes
}

/// Like [`mistakes`], without certificates: a running gateway reloads these by itself.
pub fn parts(config: &Config) -> Vec<Mistake> {
    let built = Parts::build(config, &WorkerPrograms::installed());
    built.err().map_or_else(Vec::new, |error| error.mistakes)
}

fn certificate(config: &Config) -> Vec<Mistake> {
    match (&config.http.tls_certificate, &config.http.tls_key) {
        (None, None) => Vec::new(),
        (Some(certificate), Some(key)) => {
            let problems = tls::problems(certificate, key);
            problems.iter().map(tls::TlsError::mistake).collect()
        }
        (certificate, _) => {
            let (given, missing) = match certificate {
                Some(_) => ("http.tls_certificate", "http.tls_key"),
                None => ("http.tls_key", "http.tls_certificate"),
            };
            let problem = format!("is not set: `{given}` needs it");
            vec![Mistake {
                place: config.place(given),
                ..Mistake::new(missing, problem)
            }]
        }
    }
}

/// Tries to bind all listen addresses at the same time, so that two keys with the same port are found.
fn bind_all_ports(config: &Config, known: &[Mistake]) -> Vec<BindFailure> {
    // After a syntax error the addresses may not be the intended ones.
    let is_doubtful = |mistake: &Mistake| matches!(mistake.problem, Problem::Syntax(_));
    let is_known = |key: &str| {
        known
            .iter()
            .any(|mistake| is_doubtful(mistake) || mistake.concerns(key))
    };
    let (http, media) = (config.http.listen, config.webrtc.listen);
    let mut failures = Vec::new();
    let mut record = |key, protocol, address, error: io::Error| {
        failures.push(BindFailure::new(key, protocol, address, &error));
    };
    let mut listener = None;
    if !is_known("http.listen") {
        match server::bind_std(http) {
            Ok(bound) => listener = Some(bound),
            Err(error) => record("http.listen", Protocol::Tcp, http, error),
        }
    }
    if !is_known("webrtc.listen") {
        if config.webrtc.tcp
            && !is_known("webrtc.tcp")
            && let Err(error) = server::bind_std(media)
        {
            record("webrtc.listen", Protocol::Tcp, media, error);
        }
        if let Err(error) = ports::bind_udp(media) {
            record("webrtc.listen", Protocol::Udp, media, error);
        }
    }
    drop(listener);
    failures
}

/// Returns a failure as a mistake of the configuration, with the place of its key.
fn mistake(failure: &BindFailure, config: &Config) -> Mistake {
    let problem = format!("{}; {}", failure.problem(), failure.remedy);
    Mistake {
        place: config.place(failure.key),
        ..Mistake::new(failure.key, problem)
    }
}
