//! Opens a TCP connection to a camera.

use std::io;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::camera::{Camera, CameraError, RtspStep};
use crate::pipeline::parameter::TargetHost;

/// Timeout of the TCP connection. It is short because the connection is retried soon.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Tests the TCP connection, because retina's errors do not distinguish a wrong address from a camera that is off.
pub(super) async fn probe_tcp_connection(camera: &Camera) -> Result<(), CameraError> {
    connect_tcp_without_address_check(camera).await.map(drop)
}

/// Opens a TCP connection to the camera.
pub(super) async fn connect_tcp_without_address_check(camera: &Camera) -> Result<TcpStream, CameraError> {
    let port = camera.port();
    let connecting = async {
        let connected = match camera.host() {
            TargetHost::Address(address) => TcpStream::connect((address, port)).await,
            TargetHost::Name(name) => {
                let Ok(addresses) = lookup_host((name.as_str(), port)).await else {
                    return Err(CameraError::NameNotResolved(name));
                };
                TcpStream::connect(&*addresses.collect::<Vec<_>>()).await
            }
        };
        connected.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => CameraError::ConnectionRefused(port),
            _ => CameraError::Unreachable(error.to_string()),
        })
    };
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(CameraError::Timeout(RtspStep::Connect)),
    }
}
