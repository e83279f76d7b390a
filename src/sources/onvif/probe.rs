//! The probe of WS-Discovery 1.1 (§5.2): one datagram to all devices; each that matches answers to its sender.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::RngCore as _;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use url::Url;

use super::device::{DiscoveredDevice, WsDiscoveryTarget, sanitize_device_text};
use super::xml::{self, Element};

/// UDP port of WS-Discovery.
pub const WS_DISCOVERY_PORT: u16 = 3702;

/// Multicast address of WS-Discovery (§2.4).
const WS_DISCOVERY_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);

/// The probe is sent this often: UDP may lose it (SOAP-over-UDP 1.1, appendix I).
const WS_DISCOVERY_PROBE_REPEATS: u32 = 2;
const WS_DISCOVERY_PROBE_REPEAT_DELAY: Duration = Duration::from_millis(150);

/// Maximum size of an answer, in bytes.
const MAX_SOAP_RESPONSE_BYTES: usize = 16 * 1024;

/// Maximum number of devices: more than any network of cameras that multicast reaches has.
const MAX_DEVICES: usize = 1_000;

/// Why devices cannot be searched for.
#[derive(Debug, Error)]
pub enum ProbeError {
    #[error(
        "a search for cameras needs a network interface with an IPv4 address, and this host has none but loopback: give \
         the address of a camera with `--at`"
    )]
    NoInterface,
    #[error("cannot list the network interfaces: {0}")]
    Interfaces(io::Error),
    #[error("cannot send the WS-Discovery probe from {address}: {error}")]
    Send { address: IpAddr, error: io::Error },
}

/// Asks for devices and returns those that answer within `time`, sorted by address.
///
/// # Errors
///
/// A [`ProbeError`] if no probe could be sent.
pub async fn find_devices(target: WsDiscoveryTarget, time: Duration) -> Result<Vec<DiscoveredDevice>, ProbeError> {
    let (sources, destination) = match target {
        WsDiscoveryTarget::AllNetworks => (
            multicast_interfaces()?,
            SocketAddr::from((WS_DISCOVERY_GROUP, WS_DISCOVERY_PORT)),
        ),
        WsDiscoveryTarget::Device(device @ SocketAddr::V4(_)) => (vec![IpAddr::from(Ipv4Addr::UNSPECIFIED)], device),
        WsDiscoveryTarget::Device(device) => (vec![IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED)], device),
    };
    let until = Instant::now() + time;
    let mut probes = JoinSet::new();
    for source in sources {
        probes.spawn(send_probe_and_collect_answers(source, destination, until));
    }
    let (mut devices, mut failure, mut has_asked) = (BTreeMap::new(), None, false);
    while let Some(probed) = probes.join_next().await {
        match probed {
            Ok(Ok(found)) => {
                has_asked = true;
                devices.extend(found);
            }
            Ok(Err(error)) => failure = Some(error),
            Err(_) => {}
        }
    }
    match failure {
        // One interface of several may have no route.
        Some(error) if !has_asked => Err(error),
        _ => Ok(devices.into_values().take(MAX_DEVICES).collect()),
    }
}

/// Returns an address of each interface that multicast goes out by.
fn multicast_interfaces() -> Result<Vec<IpAddr>, ProbeError> {
    let interfaces = if_addrs::get_if_addrs().map_err(ProbeError::Interfaces)?;
    let addresses = interfaces.into_iter().filter(|interface| !interface.is_loopback());
    let addresses: Vec<IpAddr> = addresses
        .map(|interface| interface.ip())
        .filter(IpAddr::is_ipv4)
        .collect();
    if addresses.is_empty() {
        return Err(ProbeError::NoInterface);
    }
    Ok(addresses)
}

/// Sends the probe from one address, and collects the answers by address and URL.
async fn send_probe_and_collect_answers(
    source: IpAddr,
    destination: SocketAddr,
    until: Instant,
) -> Result<BTreeMap<(IpAddr, Url), DiscoveredDevice>, ProbeError> {
    let failed = |error| ProbeError::Send { address: source, error };
    let socket = bind_socket(source, destination).map_err(failed)?;
    let probe = ws_discovery_probe_message(&random_uuid());
    let mut found = BTreeMap::new();
    let mut answer = vec![0; MAX_SOAP_RESPONSE_BYTES];
    for _ in 0..WS_DISCOVERY_PROBE_REPEATS {
        socket.send_to(probe.as_bytes(), destination).await.map_err(failed)?;
        sleep(WS_DISCOVERY_PROBE_REPEAT_DELAY).await;
    }
    while let Ok(received) = timeout_at(until, socket.recv_from(&mut answer)).await {
        // An ICMP error of an earlier datagram says nothing about others.
        let Ok((length, sender)) = received else { continue };
        if !destination.ip().is_multicast() && sender.ip() != destination.ip() {
            // One device was asked.
            continue;
        }
        let text = String::from_utf8_lossy(answer.get(..length).unwrap_or_default());
        for device in parse_probe_matches(&text, sender.ip()) {
            found.insert((device.address, device.service_url.clone()), device);
        }
        if found.len() >= MAX_DEVICES {
            break;
        }
    }
    Ok(found)
}

fn bind_socket(source: IpAddr, destination: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(destination), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if let (IpAddr::V4(source), true) = (source, destination.ip().is_multicast()) {
        socket.set_multicast_if_v4(&source)?;
    }
    socket.bind(&SocketAddr::new(source, 0).into())?;
    UdpSocket::from_std(socket.into())
}

/// Returns the question for devices with video.
fn ws_discovery_probe_message(uuid: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
         <e:Envelope xmlns:e=\"http://www.w3.org/2003/05/soap-envelope\" \
         xmlns:w=\"http://schemas.xmlsoap.org/ws/2004/08/addressing\" \
         xmlns:d=\"http://schemas.xmlsoap.org/ws/2005/04/discovery\" \
         xmlns:dn=\"http://www.onvif.org/ver10/network/wsdl\">\
         <e:Header><w:MessageID>uuid:{uuid}</w:MessageID>\
         <w:To>urn:schemas-xmlsoap-org:ws:2005:04:discovery</w:To>\
         <w:Action>http://schemas.xmlsoap.org/ws/2005/04/discovery/Probe</w:Action></e:Header>\
         <e:Body><d:Probe><d:Types>dn:NetworkVideoTransmitter</d:Types></d:Probe></e:Body></e:Envelope>"
    )
}

/// Returns a random UUID (RFC 9562 §5.4).
fn random_uuid() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    let number = (u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{number:032x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_owned();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}

/// Returns the devices of an answer from an address.
fn parse_probe_matches(text: &str, sender: IpAddr) -> Vec<DiscoveredDevice> {
    let elements = xml::parse_elements(text);
    let matches = xml::element_subtrees(&elements, "ProbeMatch");
    matches
        .into_iter()
        .filter_map(|elements| device_from_probe_match(elements, sender))
        .collect()
}

fn device_from_probe_match(elements: &[Element], sender: IpAddr) -> Option<DiscoveredDevice> {
    let urls = xml::text_of_first_element_named(elements, "XAddrs")?;
    let service_url = urls
        .split_whitespace()
        .find_map(|url| url_with_host_replaced(url, sender))?;
    let scopes = xml::text_of_first_element_named(elements, "Scopes").unwrap_or_default();
    let scope = |prefix: &str| {
        let value = scopes.split_whitespace().find_map(|scope| scope.strip_prefix(prefix))?;
        let decoded = percent_decode(value);
        (!decoded.is_empty()).then(|| sanitize_device_text(&decoded))
    };
    Some(DiscoveredDevice {
        address: sender,
        name: scope("onvif://www.onvif.org/name/"),
        hardware: scope("onvif://www.onvif.org/hardware/"),
        service_url,
    })
}

/// Returns an HTTP URL with its host replaced by an address: devices behind address translation name others, and so could
/// somebody who wants requests to be sent elsewhere.
pub(super) fn url_with_host_replaced(url: &str, address: IpAddr) -> Option<Url> {
    let mut url = Url::parse(url.trim()).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    url.set_ip_host(address).ok()?;
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some(url)
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let decoded = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() {
            after.get(2..).unwrap_or_default()
        } else {
            after
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_a_device_at_the_address_that_it_came_from() {
        let answer = "<s:Envelope><s:Body><d:ProbeMatches><d:ProbeMatch><d:Scopes>onvif://www.onvif.org/type/video \
                      onvif://www.onvif.org/name/Front%20door onvif://www.onvif.org/hardware/X%1b[31m</d:Scopes>\
                      <d:XAddrs>ftp://10.0.0.1/ http://evil.example:8000/onvif/device_service</d:XAddrs></d:ProbeMatch>\
                      <d:ProbeMatch><d:XAddrs></d:XAddrs></d:ProbeMatch></d:ProbeMatches></s:Body></s:Envelope>";
        let sender = IpAddr::from([192, 0, 2, 7]);
        let expected = DiscoveredDevice {
            address: sender,
            name: Some("Front door".to_owned()),
            hardware: Some("X[31m".to_owned()),
            service_url: Url::parse("http://192.0.2.7:8000/onvif/device_service").expect("a URL"),
        };
        assert_eq!(parse_probe_matches(answer, sender), [expected]);
        assert_eq!(parse_probe_matches("<a>", sender), []);
    }

    #[test]
    fn each_question_has_an_id_of_its_own() {
        let (a, b) = (random_uuid(), random_uuid());
        assert_ne!(a, b);
        let shape: Vec<usize> = a.split('-').map(str::len).collect();
        assert_eq!((shape.as_slice(), a.get(14..15)), (&[8, 4, 4, 4, 12][..], Some("4")));
        let elements = xml::parse_elements(&ws_discovery_probe_message(&a));
        assert_eq!(
            xml::text_of_first_element_named(&elements, "MessageID"),
            Some(format!("uuid:{a}"))
        );
        assert_eq!(
            xml::text_of_first_element_named(&elements, "Types").as_deref(),
            Some("dn:NetworkVideoTransmitter")
        );
    }
}
