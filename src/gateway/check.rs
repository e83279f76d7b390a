//! Finds what `serve` would refuse without starting anything, for `millstream check`.

use std::io::Error;

use super::parts::Parts;
use crate::config::{Config, Mistake, Problem};
use crate::doctor::ports::{self, BindFailure, Protocol};
use crate::http::{server, tls};
use crate::pipeline::programs::WorkerPrograms;

/// Returns the mistakes in what a configuration refers to: tokens, keys, certificates, pipelines, sources. Those that follow
/// from a `known` one are left out.
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
pub fn ports(config: &Config, known: &[Mistake]) -> Vec<BindFailure> {
    // After a syntax error the addresses may not be the intended ones.
    let is_doubtful = |mistake: &Mistake| matches!(mistake.problem, Problem::Syntax(_));
    let is_known = |key: &str| {
        known
            .iter()
            .any(|mistake| is_doubtful(mistake) || mistake.concerns(key))
    };
    let (http, media) = (config.http.listen, config.webrtc.listen);
    let mut failures = Vec::new();
    let mut record = |key, protocol, address, error: Error| {
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
pub fn mistake(failure: &BindFailure, config: &Config) -> Mistake {
    let problem = format!("{}; {}", failure.problem(), failure.remedy);
    Mistake {
        place: config.place(failure.key),
        ..Mistake::new(failure.key, problem)
    }
}
