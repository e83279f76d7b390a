//! Diagnoses this host and a configuration, and suggests fixes: for `millstream doctor`, and in the log at start.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::SystemTime;

use millstream_worker_runtime::sandbox;

use crate::config::{Config, StreamConfig};
use crate::gateway::sources_and_credentials::load_builtin_and_folder_pipelines;
use crate::http::server;
use crate::http::tls;
use crate::pipeline::worker_executables::WorkerExecutablesAndProcessSlots;
use crate::pipeline::{pipeline_check, worker_error};
use crate::shard::system_calls::socket::{UDP_RECEIVE_BUFFER_BYTES, UDP_SEND_BUFFER_BYTES};

pub mod ports;

use self::ports::{BindFailure, TransportProtocol};

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingLevel {
    Ok,
    /// It works with restrictions.
    Warning,
    /// It does not work.
    Failure,
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckFinding {
    pub level: FindingLevel,
    pub description: String,
    /// The command or configuration key that fixes it.
    pub remedy: Option<String>,
}

impl CheckFinding {
    fn ok(what: impl Into<String>) -> Self {
        Self {
            level: FindingLevel::Ok,
            description: what.into(),
            remedy: None,
        }
    }

    fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: FindingLevel::Warning,
            description: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn failure(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: FindingLevel::Failure,
            ..Self::warning(what, remedy)
        }
    }
}

impl fmt::Display for CheckFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = match self.level {
            FindingLevel::Ok => "ok  ",
            FindingLevel::Warning => "WARN",
            FindingLevel::Failure => "FAIL",
        };
        write!(f, "{label}  {}", self.description)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n      -> {remedy}"),
            None => Ok(()),
        }
    }
}

/// Open files that a gateway with default limits needs: twice its HTTP connections, and a reserve.
const RECOMMENDED_OPEN_FILE_LIMIT: u64 = 16_384;

/// Earliest plausible time: the start of 2026, in seconds since 1970.
const EARLIEST_PLAUSIBLE_UNIX_SECONDS: u64 = 1_767_225_600;

/// Runs all checks, including those of ports and pipelines.
pub async fn run_all_doctor_checks(config: &Config) -> Vec<CheckFinding> {
    let mut findings = vec![
        check_tcp_address_is_free("http.listen", config.http.listen),
        check_udp_address_is_free("webrtc.listen", config.webrtc.listen),
    ];
    if config.webrtc.tcp {
        findings.push(check_tcp_address_is_free("webrtc.listen", config.webrtc.listen));
    }
    findings.extend(run_startup_checks(config));
    findings.extend(check_pipelines(config).await);
    findings
}

/// Runs the checks that are possible while the gateway runs.
pub fn run_startup_checks(config: &Config) -> Vec<CheckFinding> {
    let mut findings = vec![
        check_announced_addresses(config),
        check_udp_buffer("receive", "net.core.rmem_max", UDP_RECEIVE_BUFFER_BYTES),
        check_udp_buffer("send", "net.core.wmem_max", UDP_SEND_BUFFER_BYTES),
        check_kernel_version_for_udp_gso(),
        check_open_file_limit(),
        check_system_clock(),
        check_landlock(sandbox::is_landlock_supported()),
    ];
    findings.extend(check_https(config));
    findings.extend(check_publish_token_is_configured(config));
    findings
}

fn check_tcp_address_is_free(key: &'static str, address: SocketAddr) -> CheckFinding {
    match server::bind_std_listener(address) {
        Ok(_) => CheckFinding::ok(format!("{key}: TCP {address} is free")),
        Err(error) => port_unavailable_finding(&BindFailure::new(key, TransportProtocol::Tcp, address, &error)),
    }
}

fn check_udp_address_is_free(key: &'static str, address: SocketAddr) -> CheckFinding {
    match ports::bind_udp_with_ipv4_fallback(address) {
        Ok(_) => CheckFinding::ok(format!("{key}: UDP {address} is free")),
        Err(error) => port_unavailable_finding(&BindFailure::new(key, TransportProtocol::Udp, address, &error)),
    }
}

fn port_unavailable_finding(failure: &BindFailure) -> CheckFinding {
    CheckFinding::failure(format!("{}: {}", failure.config_key, failure.problem()), failure.remedy)
}

/// Checks whether the announced addresses can be reached from other networks.
fn check_announced_addresses(config: &Config) -> CheckFinding {
    let announced: Vec<IpAddr> = match (config.webrtc.announce.as_slice(), config.webrtc.listen.ip()) {
        ([], ip) if !ip.is_unspecified() => vec![ip],
        ([], _) => crate::shard::host_addresses_with_loopback_last(config.webrtc.listen.is_ipv6()),
        (announced, _) => announced.to_vec(),
    };
    let shown: Vec<String> = announced.iter().map(ToString::to_string).collect();
    let shown = shown.join(", ");
    if config.webrtc.announce_by_stun.is_some() {
        return CheckFinding::ok(format!(
            "announced addresses: {shown}, and the public address that STUN reports"
        ));
    }
    let is_public = |ip: &IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => !ip.is_private() && !ip.is_loopback() && !ip.is_link_local() && !is_carrier_grade_nat(ip),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unique_local() && !ip.is_unicast_link_local(),
    };
    let is_container = Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists();
    let remedy = "set webrtc.announce to the address that viewers connect to, or set webrtc.announce_by_stun to a STUN \
                  server; behind NAT or in a container, also forward the media port (UDP and TCP)";
    if announced.iter().any(is_public) {
        CheckFinding::ok(format!("announced addresses: {shown}"))
    } else if is_container && config.webrtc.announce.is_empty() {
        CheckFinding::failure(
            format!("announced addresses: {shown}: addresses of the container, which only its host can reach"),
            remedy,
        )
    } else {
        CheckFinding::warning(
            format!("announced addresses: {shown}: private addresses, which only this network can reach"),
            remedy,
        )
    }
}

/// Returns whether an address is in the shared address space of carrier-grade NAT (RFC 6598).
fn is_carrier_grade_nat(ip: std::net::Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 100 && (64..128).contains(&b)
}

fn check_udp_buffer(which: &str, key: &str, wanted: usize) -> CheckFinding {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    let most: usize = std::fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    if most >= wanted {
        CheckFinding::ok(format!("UDP {which} buffer: {most} bytes"))
    } else {
        CheckFinding::warning(
            format!(
                "UDP {which} buffer: at most {most} bytes; packet bursts may be lost with less than {wanted} bytes"
            ),
            format!(
                "run `sysctl -w {key}={wanted}`, and add the line `{key}={wanted}` to a file in /etc/sysctl.d to keep \
                 it after a reboot; then restart the gateway"
            ),
        )
    }
}

/// Checks for UDP_SEGMENT (Linux 4.18). Without it a viewer costs several times as much.
fn check_kernel_version_for_udp_gso() -> CheckFinding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    match version {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (4, 18) => {
            CheckFinding::ok(format!("kernel {}: supports UDP_SEGMENT", release.trim()))
        }
        _ => CheckFinding::warning(
            format!("kernel {}: does not support UDP_SEGMENT", release.trim()),
            "update to Linux 4.18 or newer: with UDP_SEGMENT the gateway serves several times as many viewers",
        ),
    }
}

fn check_open_file_limit() -> CheckFinding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= RECOMMENDED_OPEN_FILE_LIMIT {
        CheckFinding::ok(format!("limit of open files: {current}"))
    } else {
        CheckFinding::warning(
            format!(
                "limit of open files: {current}; at least {RECOMMENDED_OPEN_FILE_LIMIT} is recommended for many HLS viewers"
            ),
            "run `ulimit -n 65536` in the shell that starts the gateway, or set LimitNOFILE=65536 in its systemd unit; \
             then restart the gateway",
        )
    }
}

fn check_system_clock() -> CheckFinding {
    #[expect(clippy::disallowed_methods, reason = "this checks the clock")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    match now {
        Ok(now) if now.as_secs() >= EARLIEST_PLAUSIBLE_UNIX_SECONDS => CheckFinding::ok("system clock: plausible"),
        _ => CheckFinding::failure(
            "system clock: years behind, so the expiry of tokens and certificates is checked against a wrong time",
            "set the system clock, and enable NTP: `timedatectl set-ntp true`",
        ),
    }
}

/// Returns what is missing if workers cannot be kept from files.
pub fn landlock_warning() -> Option<String> {
    let finding = check_landlock(sandbox::is_landlock_supported());
    let remedy = finding.remedy?;
    Some(format!("{}: {remedy}", finding.description))
}

/// Checks whether workers can be kept from files (Landlock, Linux 5.13).
fn check_landlock(is_supported: bool) -> CheckFinding {
    if is_supported {
        return CheckFinding::ok("worker processes: Landlock restricts their access to files and devices");
    }
    CheckFinding::warning(
        "worker processes: this kernel has no Landlock, so a compromised worker can read every file that the user of \
         the gateway can read",
        "use Linux 5.13 or newer with `landlock` in the boot parameter `lsm=`, or run the gateway as a user without \
         read access to secrets",
    )
}

fn check_https(config: &Config) -> Vec<CheckFinding> {
    let (Some(certificate), Some(key)) = (&config.http.tls_certificate, &config.http.tls_key) else {
        let is_off = config.http.tls_certificate.is_none() && config.http.tls_key.is_none();
        return vec![if is_off {
            CheckFinding::warning(
                "HTTPS: disabled; browsers allow pages to use camera and microphone only on localhost, and tokens are \
                 sent in clear text",
                "set http.tls_certificate and http.tls_key, or use a reverse proxy with TLS",
            )
        } else {
            CheckFinding::failure(
                "HTTPS: http.tls_certificate and http.tls_key must be set together",
                "set both keys, or neither for plain HTTP",
            )
        }];
    };
    let problems = tls::certificate_and_key_file_errors(certificate, key);
    if problems.is_empty() {
        return vec![CheckFinding::ok("HTTPS: the key matches the certificate")];
    }
    let remedy = "set http.tls_certificate and http.tls_key to the PEM files of a certificate and of its private key";
    let failures = problems
        .into_iter()
        .map(|error| CheckFinding::failure(error.to_string(), remedy));
    failures.collect()
}

fn check_publish_token_is_configured(config: &Config) -> Option<CheckFinding> {
    (!config.auth.is_publish_token_or_file_set()).then(|| {
        CheckFinding::warning(
            "authorization: a new publish token is generated at each start",
            "set auth.publish_token",
        )
    })
}

async fn check_pipelines(config: &Config) -> Vec<CheckFinding> {
    let used: Vec<&str> = config.streams.iter().filter_map(StreamConfig::pipeline_name).collect();
    let mut mistakes = Vec::new();
    let trials = load_builtin_and_folder_pipelines(config, &mut mistakes).pipeline_check_jobs();
    let findings = match pipeline_check::check_pipelines(&WorkerExecutablesAndProcessSlots::find_installed(), trials)
        .await
    {
        Ok(findings) => findings,
        Err(error) => {
            let what = format!("pipelines: none can run: {error}");
            return vec![match used.is_empty() {
                true => CheckFinding::warning(
                    what,
                    "if you need pipelines or transcoding, fix this error: check first that the worker program is \
                     installed",
                ),
                false => CheckFinding::failure(
                    what,
                    "install what the error says is missing, or correct the setting that it names: a configured stream \
                     needs a pipeline",
                ),
            }];
        }
    };
    let found = findings.into_iter().map(|finding| match finding.failure {
        None => CheckFinding::ok(format!("pipeline {}: ready", finding.name)),
        Some(failure) => {
            let what = format!(
                "pipeline {}: {}",
                finding.name,
                worker_error::describe_failure_with_advice(&failure)
            );
            match used.contains(&finding.name.as_str()) {
                true => CheckFinding::failure(
                    what,
                    "install what the error says is missing, or correct the setting that it names: a configured stream \
                     needs this pipeline",
                ),
                false => CheckFinding::warning(
                    what,
                    "if you need this pipeline, install what the error says is missing, or correct the setting that it \
                     names",
                ),
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
    fn workers_that_are_not_kept_from_files_are_a_warning() {
        assert_eq!(check_landlock(true).level, FindingLevel::Ok);
        let missing = check_landlock(false);
        assert_eq!(missing.level, FindingLevel::Warning);
        assert!(missing.to_string().contains("Landlock") && missing.to_string().contains("lsm="));
        let findings = run_startup_checks(&Config::default());
        let named = findings
            .iter()
            .filter(|finding| finding.description.contains("Landlock"));
        assert_eq!(named.count(), 1, "{findings:?}");
    }

    #[test]
    fn private_addresses_are_a_warning() {
        let level = |announce: &[&str]| {
            let mut config = Config::default();
            config.webrtc.announce = announce.iter().map(|ip| ip.parse().expect("an address")).collect();
            check_announced_addresses(&config).level
        };
        assert_eq!(level(&["203.0.113.7"]), FindingLevel::Ok);
        assert_eq!(level(&["192.168.1.2", "2001:db8::1"]), FindingLevel::Ok);
        for inner in [
            "192.168.1.2",
            "172.17.0.2",
            "10.0.0.1",
            "127.0.0.1",
            "100.64.0.1",
            "fd00::1",
        ] {
            assert_eq!(level(&[inner]), FindingLevel::Warning, "{inner}");
        }
    }

    #[test]
    fn a_port_in_use_is_a_failure_with_a_remedy() {
        let bound = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let finding = check_tcp_address_is_free("http.listen", bound.local_addr().expect("bound"));
        assert_eq!(finding.level, FindingLevel::Failure);
        assert!(
            finding.to_string().contains("\n      -> stop that process"),
            "{finding}"
        );
    }
}
