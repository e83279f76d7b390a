//! Opens a TCP connection to a camera, at an address that `sources.allow` permits.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::camera::{Camera, CameraError, RtspStep};

/// Timeout of the TCP connection. It is short because the connection is retried soon.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Resolves the host of the camera and tests the TCP connection, because retina's errors do not distinguish a wrong address
/// from a camera that is off. Returns the camera at the address that accepted it: everything else of the session goes there,
/// because another resolution may have another result.
pub(super) async fn resolve_and_probe_tcp_connection(camera: &Camera) -> Result<Camera, CameraError> {
    let connection = open_connection(camera).await?;
    let peer = connection
        .peer_addr()
        .map_err(|error| CameraError::Unreachable(error.to_string()))?;
    Ok(camera.with_resolved_address(peer.ip()))
}

/// Opens a TCP connection to the first address of the camera that accepts one.
pub(super) async fn open_connection(camera: &Camera) -> Result<TcpStream, CameraError> {
    let port = camera.port();
    let addresses = match camera.address {
        Some(address) => vec![address],
        None => {
            camera
                .allowed_networks
                .resolve_permitted_addresses(&camera.host())
                .await?
        }
    };
    let addresses: Vec<SocketAddr> = addresses.into_iter().map(|address| (address, port).into()).collect();
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(&*addresses)).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(CameraError::ConnectionRefused(port)),
        Ok(Err(error)) => Err(CameraError::Unreachable(error.to_string())),
        Err(_) => Err(CameraError::Timeout(RtspStep::Connect)),
    }
}
