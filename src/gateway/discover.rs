//! `millstream discover`: lists the cameras of the network and their URLs.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::sources::onvif::device::{DiscoveredDevice, ProbeTarget};
use crate::sources::onvif::media::{Credentials, DeviceError, StreamUrl, fetch_stream_urls};
use crate::sources::onvif::probe::{ProbeError, WS_DISCOVERY_PORT, find_devices};

/// What to search for.
#[derive(Clone, Debug)]
pub struct DiscoverOptions {
    /// Ask this device only.
    pub at: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// How long answers are waited for.
    pub time: Duration,
}

/// Why cameras cannot be searched for.
#[derive(Debug, Error)]
pub enum DiscoverError {
    #[error("{0:?} is not the address of a camera: expected an IP address, or one with a port such as 192.0.2.10:3702")]
    BadAddress(String),
    #[error("`--username` and `--password-file` need each other")]
    IncompleteCredentials,
    #[error("the password file {0} cannot be read: {1}")]
    PasswordFile(String, std::io::Error),
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// Searches for cameras and prints them with the URLs of their streams.
///
/// # Errors
///
/// A [`DiscoverError`] if nothing could be searched for.
pub async fn discover(options: &DiscoverOptions, print: impl Fn(&str)) -> Result<(), DiscoverError> {
    let credentials = read_credentials(options)?;
    let target = match &options.at {
        Some(address) => ProbeTarget::Device(parse_address(address)?),
        None => ProbeTarget::AllNetworks,
    };
    let devices = find_devices(target, options.time).await?;
    if devices.is_empty() {
        print("no camera answered. Cameras answer only in their own network, if ONVIF is enabled in their settings\n");
    }
    for device in &devices {
        let streams = fetch_stream_urls(device, credentials.as_ref()).await;
        print(&device_text(device, &streams));
    }
    Ok(())
}

fn read_credentials(options: &DiscoverOptions) -> Result<Option<Credentials>, DiscoverError> {
    match (&options.username, &options.password_file) {
        (None, None) => Ok(None),
        (Some(username), Some(file)) => Ok(Some(Credentials {
            username: username.clone(),
            password: read_password(file)?,
        })),
        _ => Err(DiscoverError::IncompleteCredentials),
    }
}

fn read_password(file: &Path) -> Result<String, DiscoverError> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| DiscoverError::PasswordFile(file.display().to_string(), error))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn parse_address(text: &str) -> Result<SocketAddr, DiscoverError> {
    let with_port = || text.parse::<SocketAddr>().ok();
    let address = text.parse::<IpAddr>().ok();
    address
        .map(|address| SocketAddr::new(address, WS_DISCOVERY_PORT))
        .or_else(with_port)
        .ok_or_else(|| DiscoverError::BadAddress(text.to_owned()))
}

/// Returns the lines about a device.
fn device_text(device: &DiscoveredDevice, streams: &Result<Vec<StreamUrl>, DeviceError>) -> String {
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
        Ok(streams) if streams.is_empty() => text.push_str("  no streams\n"),
        Ok(streams) => {
            for stream in streams {
                let _ = writeln!(text, "  {}{}", stream.url, stream_details(stream));
            }
        }
        Err(DeviceError::Unauthorized) => {
            text.push_str("  URLs unknown: the camera requires credentials. Add `--username` and `--password-file`\n");
        }
        Err(error) => {
            let _ = writeln!(text, "  URLs unknown: {error}");
        }
    }
    text
}

fn stream_details(stream: &StreamUrl) -> String {
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
