//! Looks whether this machine and this configuration can serve, and says what to do where not: for `millstream doctor`,
//! and in the log at start.

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

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Fine,
    /// It works, but not for everybody or not as well as it could.
    Doubtful,
    /// It does not work.
    Broken,
}

/// What was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    pub what: String,
    /// The command or the key that mends it.
    pub remedy: Option<String>,
}

impl Finding {
    fn fine(what: impl Into<String>) -> Self {
        Self {
            level: Level::Fine,
            what: what.into(),
            remedy: None,
        }
    }

    fn doubtful(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Doubtful,
            what: what.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn broken(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Broken,
            ..Self::doubtful(what, remedy)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.level {
            Level::Fine => "ok  ",
            Level::Doubtful => "WARN",
            Level::Broken => "FAIL",
        };
        write!(f, "{sign}  {}", self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n      -> {remedy}"),
            None => Ok(()),
        }
    }
}

/// Open files that a gateway of the default size needs: its HTTP connections, twice, and room.
const FILES: u64 = 16_384;

/// Before this the clock is wrong: seconds since 1970, in 2026.
const EARLIEST: u64 = 1_767_225_600;

/// Everything, the ports and the pipelines too.
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

/// What can be looked at beside a gateway that runs.
pub fn at_start(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        addresses(config),
        buffer("receive", "net.core.rmem_max", RECEIVE_BUFFER),
        buffer("send", "net.core.wmem_max", SEND_BUFFER),
        segmentation(),
        files(),
        clock(),
    ];
    findings.extend(https(config));
    findings.extend(access(config));
    findings
}

fn tcp(key: &'static str, address: SocketAddr) -> Finding {
    match server::bind_std(address) {
        Ok(_) => Finding::fine(format!("{key}: TCP {address} is free")),
        Err(error) => unavailable(&BindFailure::new(key, Protocol::Tcp, address, &error)),
    }
}

fn udp(key: &'static str, address: SocketAddr) -> Finding {
    match ports::bind_udp(address) {
        Ok(_) => Finding::fine(format!("{key}: UDP {address} is free")),
        Err(error) => unavailable(&BindFailure::new(key, Protocol::Udp, address, &error)),
    }
}

fn unavailable(failure: &BindFailure) -> Finding {
    Finding::broken(format!("{}: {}", failure.key, failure.problem()), failure.remedy)
}

/// Whether what is announced can be reached from outside.
fn addresses(config: &Config) -> Finding {
    let announced: Vec<IpAddr> = match (config.webrtc.announce.as_slice(), config.webrtc.listen.ip()) {
        ([], ip) if !ip.is_unspecified() => vec![ip],
        ([], _) => crate::shard::host_addresses(config.webrtc.listen.is_ipv6()),
        (announced, _) => announced.to_vec(),
    };
    let shown: Vec<String> = announced.iter().map(ToString::to_string).collect();
    let shown = shown.join(", ");
    if config.webrtc.announce_by_stun.is_some() {
        return Finding::fine(format!("addresses: {shown}, and what STUN finds"));
    }
    let is_public = |ip: &IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => !ip.is_private() && !ip.is_loopback() && !ip.is_link_local() && !is_shared(ip),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unique_local() && !ip.is_unicast_link_local(),
    };
    let is_container = Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists();
    let remedy = "set webrtc.announce to the address that viewers see, or webrtc.announce_by_stun; forward the media port \
                  (UDP and TCP)";
    if announced.iter().any(is_public) {
        Finding::fine(format!("addresses: {shown}"))
    } else if is_container && config.webrtc.announce.is_empty() {
        Finding::broken(
            format!("addresses: {shown}: the container's own, which nobody outside of its host reaches"),
            remedy,
        )
    } else {
        Finding::doubtful(
            format!("addresses: {shown}: good for this network, and for nobody outside of it"),
            remedy,
        )
    }
}

/// RFC 6598: between a provider and its customers.
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
        Finding::fine(format!("UDP {which} buffer: {most} bytes"))
    } else {
        Finding::doubtful(
            format!("UDP {which} buffer: at most {most} bytes, {wanted} are wanted: bursts may be lost"),
            format!("sysctl -w {key}={wanted}, and in /etc/sysctl.d to keep it"),
        )
    }
}

/// UDP_SEGMENT came with Linux 4.18: without it a viewer costs several times as much.
fn segmentation() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    match version {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (4, 18) => {
            Finding::fine(format!("kernel {}: sends many datagrams in one call", release.trim()))
        }
        _ => Finding::doubtful(
            format!("kernel {}: too old to send many datagrams in one call", release.trim()),
            "Linux 4.18 or newer serves several times as many viewers",
        ),
    }
}

fn files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= FILES {
        Finding::fine(format!("open files: {current}"))
    } else {
        Finding::doubtful(
            format!("open files: {current}; {FILES} are wanted for many viewers of HLS"),
            "`ulimit -n 65536`, or LimitNOFILE=65536 in the systemd unit",
        )
    }
}

fn clock() -> Finding {
    #[expect(clippy::disallowed_methods, reason = "it is the clock that is looked at")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    match now {
        Ok(now) if now.as_secs() >= EARLIEST => Finding::fine("clock: set"),
        _ => Finding::broken(
            "clock: it is years behind, so that tokens and certificates are judged wrongly",
            "set it, and keep it by NTP: `timedatectl set-ntp true`",
        ),
    }
}

fn https(config: &Config) -> Vec<Finding> {
    let (Some(certificate), Some(key)) = (&config.http.tls_certificate, &config.http.tls_key) else {
        let is_off = config.http.tls_certificate.is_none() && config.http.tls_key.is_none();
        return vec![if is_off {
            Finding::doubtful(
                "HTTPS: off; browsers hand out cameras to pages of localhost only, and tokens travel in the clear",
                "set http.tls_certificate and http.tls_key, or put a proxy with TLS in front",
            )
        } else {
            Finding::broken(
                "HTTPS: http.tls_certificate and http.tls_key have to be set together",
                "set the other one too",
            )
        }];
    };
    let problems = tls::problems(certificate, key);
    if problems.is_empty() {
        return vec![Finding::fine("HTTPS: certificate and key belong together")];
    }
    let remedy = "give the paths of a certificate and its key in PEM";
    let broken = problems
        .into_iter()
        .map(|error| Finding::broken(error.to_string(), remedy));
    broken.collect()
}

fn access(config: &Config) -> Option<Finding> {
    (!config.auth.has_publish_token()).then(|| {
        Finding::doubtful(
            "access: the publish token is made anew at each start",
            "set auth.publish_token to keep one",
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
                true => Finding::doubtful(what, "install it if you need pipelines or transcoding"),
                false => Finding::broken(what, "a configured stream needs it"),
            }];
        }
    };
    let found = findings.into_iter().map(|finding| match finding.failure {
        None => Finding::fine(format!("pipeline {}: ready", finding.name)),
        Some(failure) => {
            let what = format!("pipeline {}: {}", finding.name, process::explain(&failure));
            match used.contains(&finding.name.as_str()) {
                true => Finding::broken(what, "a configured stream needs it"),
                false => Finding::doubtful(what, "install it if you need this pipeline"),
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
    fn addresses_that_nobody_outside_reaches_are_doubtful() {
        let level = |announce: &[&str]| {
            let mut config = Config::default();
            config.webrtc.announce = announce.iter().map(|ip| ip.parse().expect("an address")).collect();
            addresses(&config).level
        };
        assert_eq!(level(&["203.0.113.7"]), Level::Fine);
        assert_eq!(level(&["192.168.1.2", "2001:db8::1"]), Level::Fine);
        for inner in [
            "192.168.1.2",
            "172.17.0.2",
            "10.0.0.1",
            "127.0.0.1",
            "100.64.0.1",
            "fd00::1",
        ] {
            assert_eq!(level(&[inner]), Level::Doubtful, "{inner}");
        }
    }

    #[test]
    fn a_port_in_use_is_a_failure_with_a_remedy() {
        let bound = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let finding = tcp("http.listen", bound.local_addr().expect("bound"));
        assert_eq!(finding.level, Level::Broken);
        assert!(
            finding.to_string().contains("\n      -> stop that process"),
            "{finding}"
        );
    }
}
