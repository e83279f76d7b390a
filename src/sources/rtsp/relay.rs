//! A relay on the loopback interface between retina and a camera, for what retina cannot cope with and no policy of it
//! helps. It authenticates for retina, also where nonces expire (RFC 7616 §3.3), writes the messages of the camera as retina
//! reads them ([`relay_messages`](super::relay_messages), [`relay_corrections`](super::relay_corrections)), and makes one RTP
//! stream of what the camera sends in a channel ([`relay_rtp`](super::relay_rtp)). Cameras with credentials are read through
//! it, and those that were found to need it ([`fallback`](super::fallback)).
//!
//! It takes one connection, whose first request must carry a secret of the gateway, because it authenticates what it
//! forwards. It ends with the connection of either side.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tracing::{debug, info};
use url::{Position, Url};

use super::camera::{Camera, CameraError};
use super::connect::open_connection;
use super::relay_messages::{RtspMessageRelay, RtspRelayEndpoints};

/// Timeout of retina's connection: it connects at once.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of bytes that wait for the rest of a message.
const MAX_INCOMPLETE_MESSAGE_BYTES: usize = 512 * 1024;

const READ_BUFFER_BYTES: usize = 64 * 1024;

/// A relay for one session with a camera.
pub(super) struct CameraRelayEndpoint {
    /// URL at which retina finds the camera.
    pub(super) url: Url,
    /// User agent that identifies retina to the relay; the camera does not see it.
    pub(super) user_agent: String,
}

impl CameraRelayEndpoint {
    /// Connects to the camera, and waits for retina's connection in the background.
    pub(super) async fn start(camera: &Camera) -> Result<Self, CameraError> {
        let unreachable = |error: io::Error| CameraError::Unreachable(error.to_string());
        let credentials = camera.read_credentials()?;
        let camera_connection = open_connection(camera).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(unreachable)?;
        let port = listener.local_addr().map_err(unreachable)?.port();
        let mut url = camera.url.clone();
        let is_set = url.set_host(Some("127.0.0.1")).is_ok() && url.set_port(Some(port)).is_ok();
        if !is_set {
            return Err(CameraError::Unreachable("the camera URL has no host".to_owned()));
        }
        let user_agent = format!("millstream-{:032x}", rand::rng().random::<u128>());
        let mut messages = RtspMessageRelay::new(RtspRelayEndpoints {
            relay_authority: url[..Position::BeforePath].to_owned(),
            camera_authority: camera.url[..Position::BeforePath].to_owned(),
            credentials: credentials.map(|credentials| (credentials.username, credentials.password)),
            user_agent: user_agent.clone(),
        });
        // The relay goes on after the session is dropped until retina closes its connection: it sends TEARDOWN first.
        tokio::spawn(async move {
            let accepted = timeout(ACCEPT_TIMEOUT, listener.accept()).await;
            drop(listener);
            if let Ok(Ok((retina, _))) = accepted {
                let ended = forward_until_closed(retina, camera_connection, &mut messages).await;
                let skipped_bytes = messages.skipped_byte_count();
                debug!(
                    ?ended,
                    skipped_bytes, "relay between the RTSP client and the camera ended"
                );
            }
        });
        Ok(Self { url, user_agent })
    }
}

/// Forwards until either side closes its connection or sends what is no RTSP.
async fn forward_until_closed(
    mut retina: TcpStream,
    mut camera: TcpStream,
    messages: &mut RtspMessageRelay,
) -> io::Result<()> {
    retina.set_nodelay(true)?;
    camera.set_nodelay(true)?;
    let mut from_retina = BytesMut::with_capacity(READ_BUFFER_BYTES);
    let mut is_garbage_told = false;
    let mut from_camera = BytesMut::with_capacity(READ_BUFFER_BYTES);
    loop {
        let read = tokio::select! {
            read = retina.read_buf(&mut from_retina) => read?,
            read = camera.read_buf(&mut from_camera) => read?,
        };
        let is_valid = messages.forward_client_messages_and_frames(&mut from_retina)
            && messages.forward_camera_messages_and_frames(Instant::now().into_std(), &mut from_camera);
        if !is_garbage_told && messages.skipped_byte_count() > 0 {
            is_garbage_told = true;
            let camera = camera.peer_addr().ok();
            info!(
                ?camera,
                "RTSP camera sends stray bytes between its RTSP messages; the gateway skips them"
            );
        }
        camera.write_all(&messages.to_camera).await?;
        retina.write_all(&messages.to_client).await?;
        messages.to_camera.clear();
        messages.to_client.clear();
        let is_bounded =
            from_retina.len() <= MAX_INCOMPLETE_MESSAGE_BYTES && from_camera.len() <= MAX_INCOMPLETE_MESSAGE_BYTES;
        if read == 0 || !is_valid || !is_bounded {
            return Ok(());
        }
    }
}
