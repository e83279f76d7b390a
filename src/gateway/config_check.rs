//! Finds what `serve` would refuse without starting anything, for `millstream check`.

use std::io;

use thiserror::Error;

use super::health;
use super::sources_and_credentials::{self, SourcesAndCredentials, load_builtin_and_folder_pipelines};
use crate::config::{Config, ConfigError, ConfigMistake, MistakeKind, StreamConfig};
use crate::doctor;
use crate::doctor::ports::{self, BindFailure, TransportProtocol};
use crate::http::{server, tls};
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use crate::pipeline::{pipeline_check, worker_error};

/// Why `millstream check` fails.
#[derive(Debug, Error)]
pub enum ConfigCheckError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Pipelines that configured streams use and this machine cannot run.
    #[error("configured streams need pipelines that this host cannot run: {}", .0.join(", "))]
    Pipelines(Vec<String>),
}

/// Checks a configuration that has `find_source_credential_certificate_mistakes` already, and prints warnings and which pipelines this machine can run.
///
/// # Errors
///
/// Everything that `serve` would refuse, or the pipelines that configured streams lack.
pub async fn check_loaded_config(
    config: &Config,
    mut mistakes: Vec<ConfigMistake>,
    print: impl Fn(&str),
) -> Result<(), ConfigCheckError> {
    for warning in &config.warnings {
        print(&format!("warning: {warning}\n"));
    }
    let unbuildable = sources_and_credentials::find_unbuildable_api_streams(
        config,
        &WorkerExecutablesAndProcessSlots::find_installed(),
    );
    for mistake in unbuildable.unwrap_or_default() {
        print(&format!(
            "warning: a stream created through the API cannot run: {mistake}\n"
        ));
    }
    mistakes.extend(self::find_source_credential_certificate_mistakes(config, &mistakes));
    for failure in find_bind_failures(config, &mistakes) {
        // A changed configuration is checked while the gateway runs with the old one.
        let is_gateway = match &failure.owner {
            Some(owner) => owner.is_other_gateway(),
            None => failure.is_in_use && health::probe_health(config).await.is_ok(),
        };
        match is_gateway {
            true => print(&format!(
                "`{}`: {} {}: in use by a gateway that is already running\n",
                failure.config_key, failure.protocol, failure.address
            )),
            false => mistakes.push(mistake_from_bind_failure(&failure, config)),
        }
    }
    ConfigError::result_from_mistakes(mistakes)?;
    print("the configuration is valid\n");
    if let Some(warning) = doctor::landlock_warning() {
        print(&format!("warning: {warning}\n"));
    }
    let missing = report_pipeline_availability(config, print).await;
    match missing.is_empty() {
        true => Ok(()),
        false => Err(ConfigCheckError::Pipelines(missing)),
    }
}

/// Prints for each pipeline whether this machine can run it. Returns those that it cannot run and that streams use.
async fn report_pipeline_availability(config: &Config, print: impl Fn(&str)) -> Vec<String> {
    let used = || config.streams.iter().filter_map(StreamConfig::pipeline_name);
    let library = load_builtin_and_folder_pipelines(config, &mut Vec::new());
    let findings = match pipeline_check::check_pipelines(
        &WorkerExecutablesAndProcessSlots::find_installed(),
        library.pipeline_check_jobs(),
    )
    .await
    {
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
        print(&format!(
            "pipeline {}: {}\n",
            finding.name,
            worker_error::describe_failure_with_advice(&failure)
        ));
        if used().any(|name| name == finding.name) {
            missing.push(finding.name);
        }
    }
    missing
}

/// Returns the mistakes in what a configuration refers to: tokens, keys, certificates, pipelines, sources, the state
/// file. Those that follow from a `known` one are left out.
pub fn find_source_credential_certificate_mistakes(config: &Config, known: &[ConfigMistake]) -> Vec<ConfigMistake> {
    let mut mistakes = find_source_build_and_state_file_mistakes(config);
    mistakes.extend(config.add_locations_to_mistakes(find_certificate_mistakes(config)));
    drop_mistakes_caused_by_known_mistakes(mistakes, known)
}

fn drop_mistakes_caused_by_known_mistakes(
    mut mistakes: Vec<ConfigMistake>,
    known: &[ConfigMistake],
) -> Vec<ConfigMistake> {
    mistakes.retain(|mistake| !known.iter().any(|known| known.may_cause_mistake(mistake)));
    mistakes
}

/// Like [`find_source_credential_certificate_mistakes`], without certificates, which a running gateway reloads by itself, and without
/// the state file, which it has read.
pub fn find_source_and_credential_mistakes(config: &Config) -> Vec<ConfigMistake> {
    let built = SourcesAndCredentials::build(config, &WorkerExecutablesAndProcessSlots::find_installed());
    built.err().map_or_else(Vec::new, |error| error.mistakes)
}

fn find_source_build_and_state_file_mistakes(config: &Config) -> Vec<ConfigMistake> {
    let programs = WorkerExecutablesAndProcessSlots::find_installed();
    let read = sources_and_credentials::find_unbuildable_api_streams(config, &programs);
    read.err().map_or_else(Vec::new, |error| error.mistakes)
}

fn find_certificate_mistakes(config: &Config) -> Vec<ConfigMistake> {
    match (&config.http.tls_certificate, &config.http.tls_key) {
        (None, None) => Vec::new(),
        (Some(certificate), Some(key)) => {
            let problems = tls::certificate_and_key_file_errors(certificate, key);
            problems.iter().map(tls::TlsError::to_config_mistake).collect()
        }
        (certificate, _) => {
            let (given, missing) = match certificate {
                Some(_) => ("http.tls_certificate", "http.tls_key"),
                None => ("http.tls_key", "http.tls_certificate"),
            };
            let problem = format!("is not set: `{given}` needs it");
            vec![ConfigMistake {
                location: config.location_of_key(given),
                ..ConfigMistake::new(missing, problem)
            }]
        }
    }
}

/// Tries to bind all listen addresses at the same time, so that two keys with the same port are found.
fn find_bind_failures(config: &Config, known: &[ConfigMistake]) -> Vec<BindFailure> {
    // After a syntax error the addresses may not be the intended ones.
    let is_doubtful = |mistake: &ConfigMistake| matches!(mistake.kind, MistakeKind::Syntax(_));
    let is_known = |key: &str| {
        known
            .iter()
            .any(|mistake| is_doubtful(mistake) || mistake.concerns_key(key))
    };
    let (http, media) = (config.http.listen, config.webrtc.listen);
    let mut failures = Vec::new();
    let mut record = |key, protocol, address, error: io::Error| {
        failures.push(BindFailure::new(key, protocol, address, &error));
    };
    let mut listener = None;
    if !is_known("http.listen") {
        match server::bind_std_listener(http) {
            Ok(bound) => listener = Some(bound),
            Err(error) => record("http.listen", TransportProtocol::Tcp, http, error),
        }
    }
    if !is_known("webrtc.listen") {
        if config.webrtc.tcp
            && !is_known("webrtc.tcp")
            && let Err(error) = server::bind_std_listener(media)
        {
            record("webrtc.listen", TransportProtocol::Tcp, media, error);
        }
        if let Err(error) = ports::bind_udp_with_ipv4_fallback(media) {
            record("webrtc.listen", TransportProtocol::Udp, media, error);
        }
    }
    drop(listener);
    failures
}

/// Returns a failure as a mistake of the configuration, with the place of its key.
fn mistake_from_bind_failure(failure: &BindFailure, config: &Config) -> ConfigMistake {
    let problem = format!("{}; {}", failure.problem(), failure.remedy);
    ConfigMistake {
        location: config.location_of_key(failure.config_key),
        ..ConfigMistake::new(failure.config_key, problem)
    }
}
