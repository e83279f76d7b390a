//! Opens a TCP connection to a camera.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::camera::{Camera, CameraError, RtspStep};
use crate::pipeline::parameter::TargetHost;

/// Timeout of the TCP connection. It is short because the connection is retried soon.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Tests the TCP connection, because retina's errors do not distinguish a wrong address from a camera that is off.
pub(super) async fn probe_tcp_connection(camera: &Camera) -> Result<(), CameraError> {
    open_unchecked_connection(camera).await.map(drop)
}

/// Opens a TCP connection to the camera.
pub(super) async fn open_unchecked_connection(camera: &Camera) -> Result<TcpStream, CameraError> {
    let port = camera.port();
    let connecting = async {
        match camera.host() {
            TargetHost::Address(address) => TcpStream::connect((address, port)).await,
            TargetHost::Name(name) => TcpStream::connect((name.as_str(), port)).await,
        }
    };
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(CameraError::Unreachable(format!(
            "the TCP connection to port {port} was refused"
        ))),
        Ok(Err(error)) => Err(CameraError::Unreachable(error.to_string())),
        Err(_) => Err(CameraError::Timeout(RtspStep::Connect)),
    }
}
