//! `millstream discover`: lists the cameras of the network and their URLs.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use url::Url;

use crate::sources::onvif::device::{DiscoveredDevice, WsDiscoveryTarget};
use crate::sources::onvif::media::{Credentials, DeviceError, StreamUrl, fetch_stream_urls};
use crate::sources::onvif::probe::{ProbeError, WS_DISCOVERY_PORT, find_devices};

/// What to search for.
#[derive(Clone, Debug)]
pub struct CameraDiscoveryOptions {
    /// Ask these devices only.
    pub at: Vec<String>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// How long answers are waited for.
    pub time: Duration,
}

/// Why cameras cannot be searched for.
#[derive(Debug, Error)]
pub enum CameraDiscoveryError {
    #[error(
        "{0:?} is not the address of a camera: expected an IP address, or an IP address and a port, such as 192.0.2.10:3702"
    )]
    BadAddress(String),
    #[error("`--username` and `--password-file` must be given together")]
    IncompleteCredentials,
    #[error(
        "`--username` needs `--at`: without it, every device of the network that answers would get a digest of the password; \
         name each camera, such as `--at 192.0.2.10`"
    )]
    CredentialsWithoutDevice,
    #[error("the password file {0} cannot be read: {1}")]
    PasswordFile(String, std::io::Error),
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// Searches for cameras and prints them with the URLs of their streams.
///
/// # Errors
///
/// A [`CameraDiscoveryError`] if nothing could be searched for.
pub async fn discover(options: &CameraDiscoveryOptions, print: impl Fn(&str)) -> Result<(), CameraDiscoveryError> {
    let credentials = read_credentials(options)?;
    let addresses: Vec<SocketAddr> = options
        .at
        .iter()
        .map(|at| parse_address(at))
        .collect::<Result<_, _>>()?;
    let devices = match addresses.is_empty() {
        true if credentials.is_some() => return Err(CameraDiscoveryError::CredentialsWithoutDevice),
        true => find_devices(WsDiscoveryTarget::AllNetworks, options.time).await?,
        false => {
            let mut devices = Vec::new();
            for address in addresses {
                devices.extend(find_devices(WsDiscoveryTarget::Device(address), options.time).await?);
            }
            devices
        }
    };
    if devices.is_empty() {
        print(
            "no camera answered. Cameras answer only if ONVIF is enabled in their settings, and a search (without `--at`) \
             reaches only cameras in the subnets of this host\n",
        );
    }
    for device in &devices {
        let streams = fetch_stream_urls(device, credentials.as_ref()).await;
        print(&discovered_device_text(device, &streams));
    }
    Ok(())
}

fn read_credentials(options: &CameraDiscoveryOptions) -> Result<Option<Credentials>, CameraDiscoveryError> {
    match (&options.username, &options.password_file) {
        (None, None) => Ok(None),
        (Some(username), Some(file)) => Ok(Some(Credentials {
            username: username.clone(),
            password: read_password(file)?,
        })),
        _ => Err(CameraDiscoveryError::IncompleteCredentials),
    }
}

fn read_password(file: &Path) -> Result<String, CameraDiscoveryError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| CameraDiscoveryError::PasswordFile(file.display().to_string(), error))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn parse_address(text: &str) -> Result<SocketAddr, CameraDiscoveryError> {
    let with_port = || text.parse::<SocketAddr>().ok();
    let address = text.parse::<IpAddr>().ok();
    address
        .map(|address| SocketAddr::new(address, WS_DISCOVERY_PORT))
        .or_else(with_port)
        .ok_or_else(|| CameraDiscoveryError::BadAddress(text.to_owned()))
}

/// Returns the lines about a device.
fn discovered_device_text(device: &DiscoveredDevice, streams: &Result<Vec<StreamUrl>, DeviceError>) -> String {
    let mut text = device.address.to_string();
    let names: Vec<&str> = [&device.name, &device.hardware]
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    if !names.is_empty() {
        let _ = write!(text, " ({})", names.join(", "));
    }
    text.push('\n');
    match streams {
        Ok(streams) if streams.is_empty() => text.push_str("  the camera lists no streams\n"),
        Ok(streams) => {
            for stream in streams {
                let note = match url_names_other_host(&stream.url, device.address) {
                    true => {
                        "  (!) this URL names another host than the camera's address: check that it is the camera \
                         before you configure the URL, because the password is sent there"
                    }
                    false => "",
                };
                let _ = writeln!(text, "  {}{}{note}", stream.url, format_stream_details(stream));
            }
        }
        Err(DeviceError::Unauthorized) => {
            let address = device.address;
            let _ = writeln!(
                text,
                "  URLs unknown: the camera requires credentials, or rejected the given ones: run this again with \
                 `--at {address}`, and the right `--username` and `--password-file` of an ONVIF user"
            );
        }
        Err(error) => {
            let _ = writeln!(text, "  URLs unknown: {error}");
        }
    }
    text
}

/// Whether a URL that the device at an address names leads elsewhere. Whoever configures it sends a password there.
fn url_names_other_host(url: &str, device: IpAddr) -> bool {
    let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    let host = host.as_deref().map(|host| host.trim_matches(['[', ']']));
    host.and_then(|host| host.parse::<IpAddr>().ok()) != Some(device)
}

fn format_stream_details(stream: &StreamUrl) -> String {
    let size = stream
        .width
        .zip(stream.height)
        .map(|(width, height)| format!("{width}x{height}"));
    let profile = Some(stream.profile.clone()).filter(|profile| !profile.is_empty());
    let details: Vec<String> = [profile, stream.codec.clone(), size].into_iter().flatten().collect();
    match details.is_empty() {
        true => String::new(),
        false => format!("  ({})", details.join(", ")),
    }
}
