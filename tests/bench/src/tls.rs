//! TLS to the gateway under test: any certificate is accepted, since the gateway makes its own.

use std::{
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use millstream_test_support::tls::{client_config, make_certificate};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// What [`crate::http`] uses, once the gateway under test serves HTTPS.
static HTTP_CLIENT: OnceLock<Arc<ClientConfig>> = OnceLock::new();

/// Makes all further requests of [`crate::http`] use HTTPS.
///
/// # Errors
///
/// Those of [`client_config`].
pub(crate) fn use_https() -> io::Result<()> {
    let _ = HTTP_CLIENT.set(client_config(&[])?);
    Ok(())
}

/// How [`crate::http`] connects; `None` without TLS.
pub(crate) fn https_client() -> Option<&'static Arc<ClientConfig>> {
    HTTP_CLIENT.get()
}

/// A client's side of a connection that has not begun.
///
/// # Errors
///
/// When the library cannot be set up.
pub(crate) fn begin(config: &Arc<ClientConfig>) -> io::Result<ClientConnection> {
    let name = ServerName::IpAddress(std::net::IpAddr::from(Ipv4Addr::LOCALHOST).into());
    ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)
}

/// Shakes hands.
///
/// # Errors
///
/// Those of the connection and of TLS.
pub(crate) fn connect(config: &Arc<ClientConfig>, mut stream: TcpStream) -> io::Result<TlsStream> {
    let mut connection = begin(config)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let mut stream = StreamOwned::new(connection, stream);
    stream.flush()?;
    Ok(stream)
}

/// A configuration file with a certificate and key of its own, in a folder that is removed when this is dropped.
pub(crate) struct TlsFolder(PathBuf);

impl TlsFolder {
    /// # Errors
    ///
    /// When the folder cannot be written, or when `openssl` is missing or fails.
    pub(crate) fn new() -> io::Result<Self> {
        let folder = Self(std::env::temp_dir().join(format!("millstream-bench-tls-{}", std::process::id())));
        fs::create_dir_all(&folder.0)?;
        let (key, certificate) = (folder.0.join("key.pem"), folder.0.join("cert.pem"));
        make_certificate("localhost", &key, &certificate)?;
        let (certificate, key) = (certificate.display(), key.display());
        let config = format!("[http]\ntls_certificate = \"{certificate}\"\ntls_key = \"{key}\"\n");
        fs::write(folder.config(), config)?;
        Ok(folder)
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("millstream.toml")
    }
}

impl Drop for TlsFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
