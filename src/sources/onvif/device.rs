//! A device that answered, and where to ask.

use std::net::{IpAddr, SocketAddr};

use url::Url;

/// A camera that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoveredDevice {
    /// Address that the answer came from.
    pub address: IpAddr,
    /// Name and model, as far as the device says them.
    pub name: Option<String>,
    pub hardware: Option<String>,
    /// URL of its ONVIF device service, at that address.
    pub service_url: Url,
}

/// Where to ask.
#[derive(Clone, Copy, Debug)]
pub enum WsDiscoveryTarget {
    /// All devices of the networks of this host.
    AllNetworks,
    /// One device.
    Device(SocketAddr),
}

/// Maximum length of a text of a device that is shown, in characters.
const MAX_DEVICE_TEXT_CHARS: usize = 200;

/// Returns text of a device as it can be shown in a terminal.
pub(super) fn sanitize_device_text(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    printable.take(MAX_DEVICE_TEXT_CHARS).collect()
}
