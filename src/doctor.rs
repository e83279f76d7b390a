//! Diagnoses this host and a configuration, and suggests fixes: for `millstream doctor`, and in the log at start.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::SystemTime;

use crate::config::{Config, StreamConfig};
use crate::gateway::parts::library;
use crate::http::server;
use crate::http::tls;
use crate::pipeline::process;
use crate::pipeline::programs::WorkerPrograms;
use crate::shard::socket::{RECEIVE_BUFFER, SEND_BUFFER};

pub mod ports;

use self::ports::{BindFailure, Protocol};

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Ok,
    /// It works with restrictions.
    Warning,
    /// It does not work.
    Failure,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    pub what: String,
    /// The command or configuration key that fixes it.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            what: what.into(),
            remedy: None,
        }
    }

    fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn failure(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Failure,
            ..Self::warning(what, remedy)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = match self.level {
            Level::Ok => "ok  ",
            Level::Warning => "WARN",
            Level::Failure => "FAIL",
        };
        write!(f, "{label}  {}", self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n      -> {remedy}"),
            None => Ok(()),
        }
    }
}

/// Open files that a gateway with default limits needs: twice its HTTP connections, and a reserve.
const MIN_OPEN_FILES: u64 = 16_384;

/// Earliest plausible time: the start of 2026, in seconds since 1970.
const EARLIEST_PLAUSIBLE_TIME: u64 = 1_767_225_600;

/// Runs all checks, including those of ports and pipelines.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        tcp("http.listen", config.http.listen),
        udp("webrtc.listen", config.webrtc.listen),
    ];
    if config.webrtc.tcp {
        findings.push(tcp("webrtc.listen", config.webrtc.listen));
    }
    findings.extend(at_start(config));
    findings.extend(pipelines(config).await);
    findings
}

/// Runs the checks that are possible while the gateway runs.
pub fn at_start(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        addresses(config),
        buffer("receive", "net.core.rmem_max", RECEIVE_BUFFER),
        buffer("send", "net.core.wmem_max", SEND_BUFFER),
        segmentation(),
        open_file_limit(),
        clock(),
    ];
    findings.extend(https(config));
    findings.extend(access(config));
    findings
}

fn tcp(key: &'static str, address: SocketAddr) -> Finding {
    match server::bind_std(address) {
        Ok(_) => Finding::ok(format!("{key}: TCP {address} is free")),
        Err(error) => unavailable(&BindFailure::new(key, Protocol::Tcp, address, &error)),
    }
}

fn udp(key: &'static str, address: SocketAddr) -> Finding {
    match ports::bind_udp(address) {
        Ok(_) => Finding::ok(format!("{key}: UDP {address} is free")),
        Err(error) => unavailable(&BindFailure::new(key, Protocol::Udp, address, &error)),
    }
}

fn unavailable(failure: &BindFailure) -> Finding {
    Finding::failure(format!("{}: {}", failure.key, failure.problem()), failure.remedy)
}

/// Checks whether the announced addresses can be reached from other networks.
fn addresses(config: &Config) -> Finding {
    let announced: Vec<IpAddr> = match (config.webrtc.announce.as_slice(), config.webrtc.listen.ip()) {
        ([], ip) if !ip.is_unspecified() => vec![ip],
        ([], _) => crate::shard::host_addresses(config.webrtc.listen.is_ipv6()),
        (announced, _) => announced.to_vec(),
    };
    let shown: Vec<String> = announced.iter().map(ToString::to_string).collect();
    let shown = shown.join(", ");
    if config.webrtc.announce_by_stun.is_some() {
        return Finding::ok(format!("addresses: {shown}, and the one that STUN finds"));
    }
    let is_public = |ip: &IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => !ip.is_private() && !ip.is_loopback() && !ip.is_link_local() && !is_shared(ip),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unique_local() && !ip.is_unicast_link_local(),
    };
    let is_container = Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists();
    let remedy = "set webrtc.announce to the address that viewers see, or webrtc.announce_by_stun; forward the media port \
                  (UDP and TCP)";
    if announced.iter().any(is_public) {
        Finding::ok(format!("addresses: {shown}"))
    } else if is_container && config.webrtc.announce.is_empty() {
        Finding::failure(
            format!("addresses: {shown}: those of the container, which only its host can reach"),
            remedy,
        )
    } else {
        Finding::warning(
            format!("addresses: {shown}: private, only this network can reach them"),
            remedy,
        )
    }
}

/// Returns whether an address is in the shared address space of carrier-grade NAT (RFC 6598).
fn is_shared(ip: std::net::Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 100 && (64..128).contains(&b)
}

fn buffer(which: &str, key: &str, wanted: usize) -> Finding {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    let most: usize = std::fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    if most >= wanted {
        Finding::ok(format!("UDP {which} buffer: {most} bytes"))
    } else {
        Finding::warning(
            format!("UDP {which} buffer: at most {most} bytes; bursts may be lost with less than {wanted}"),
            format!("run `sysctl -w {key}={wanted}`, and add it to /etc/sysctl.d"),
        )
    }
}

/// Checks for UDP_SEGMENT (Linux 4.18). Without it a viewer costs several times as much.
fn segmentation() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    match version {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (4, 18) => {
            Finding::ok(format!("kernel {}: supports UDP_SEGMENT", release.trim()))
        }
        _ => Finding::warning(
            format!("kernel {}: does not support UDP_SEGMENT", release.trim()),
            "update to Linux 4.18 or newer, which serves several times as many viewers",
        ),
    }
}

fn open_file_limit() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= MIN_OPEN_FILES {
        Finding::ok(format!("open files: {current}"))
    } else {
        Finding::warning(
            format!("open files: at most {current}; many HLS viewers need {MIN_OPEN_FILES}"),
            "run `ulimit -n 65536`, or set LimitNOFILE=65536 in the systemd unit",
        )
    }
}

fn clock() -> Finding {
    #[expect(clippy::disallowed_methods, reason = "this checks the clock")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    match now {
        Ok(now) if now.as_secs() >= EARLIEST_PLAUSIBLE_TIME => Finding::ok("clock: set"),
        _ => Finding::failure(
            "clock: years behind; the expiry of tokens and certificates is wrong",
            "set it, and enable NTP: `timedatectl set-ntp true`",
        ),
    }
}

fn https(config: &Config) -> Vec<Finding> {
    let (Some(certificate), Some(key)) = (&config.http.tls_certificate, &config.http.tls_key) else {
        let is_off = config.http.tls_certificate.is_none() && config.http.tls_key.is_none();
        return vec![if is_off {
            Finding::warning(
                "HTTPS: off; browsers allow cameras on localhost only, and tokens are sent in clear text",
                "set http.tls_certificate and http.tls_key, or use a reverse proxy with TLS",
            )
        } else {
            Finding::failure(
                "HTTPS: http.tls_certificate and http.tls_key must be set together",
                "set both",
            )
        }];
    };
    let problems = tls::problems(certificate, key);
    if problems.is_empty() {
        return vec![Finding::ok("HTTPS: the key belongs to the certificate")];
    }
    let remedy = "set both to PEM files of the same certificate";
    let failures = problems
        .into_iter()
        .map(|error| Finding::failure(error.to_string(), remedy));
    failures.collect()
}

fn access(config: &Config) -> Option<Finding> {
    (!config.auth.has_publish_token()).then(|| {
        Finding::warning(
            "access: a new publish token is generated at each start",
            "set auth.publish_token",
        )
    })
}

async fn pipelines(config: &Config) -> Vec<Finding> {
    let used: Vec<&str> = config.streams.iter().filter_map(StreamConfig::pipeline).collect();
    let mut mistakes = Vec::new();
    let trials = library(config, &mut mistakes).trials();
    let findings = match process::check(&WorkerPrograms::installed(), trials).await {
        Ok(findings) => findings,
        Err(error) => {
            let what = format!("pipelines: none can run: {error}");
            return vec![match used.is_empty() {
                true => Finding::warning(what, "install it if you need pipelines or transcoding"),
                false => Finding::failure(what, "a configured stream needs it"),
            }];
        }
    };
    let found = findings.into_iter().map(|finding| match finding.failure {
        None => Finding::ok(format!("pipeline {}: ready", finding.name)),
        Some(failure) => {
            let what = format!("pipeline {}: {}", finding.name, process::explain(&failure));
            match used.contains(&finding.name.as_str()) {
                true => Finding::failure(what, "a configured stream needs it"),
                false => Finding::warning(what, "install it if you need this pipeline"),
            }
        }
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn private_addresses_are_a_warning() {
        let level = |announce: &[&str]| {
            let mut config = Config::default();
            config.webrtc.announce = announce.iter().map(|ip| ip.parse().expect("an address")).collect();
            addresses(&config).level
        };
        assert_eq!(level(&["203.0.113.7"]), Level::Ok);
        assert_eq!(level(&["192.168.1.2", "2001:db8::1"]), Level::Ok);
        for inner in [
            "192.168.1.2",
            "172.17.0.2",
            "10.0.0.1",
            "127.0.0.1",
            "100.64.0.1",
            "fd00::1",
        ] {
            assert_eq!(level(&[inner]), Level::Warning, "{inner}");
        }
    }

    #[test]
    fn a_port_in_use_is_a_failure_with_a_remedy() {
        let bound = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let finding = tcp("http.listen", bound.local_addr().expect("bound"));
        assert_eq!(finding.level, Level::Failure);
        assert!(
            finding.to_string().contains("\n      -> stop that process"),
            "{finding}"
        );
    }
}
