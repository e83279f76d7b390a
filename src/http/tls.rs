//! HTTPS: certificate and key files, which are reloaded when they change (RFC 9110 §4.2.2, RFC 9325).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::time::Instant;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tracing::{info, warn};

use crate::config::ConfigMistake;

/// Why HTTPS cannot be served.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("http.tls_certificate and http.tls_key must be set together")]
    IncompletePair,
    #[error("{key}: {} cannot be read: {source}", path.display())]
    UnreadableFile {
        key: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("http.tls_certificate: {} contains no certificate in PEM: {problem}", path.display())]
    InvalidCertificate { path: PathBuf, problem: String },
    #[error("http.tls_key: {} contains no private key in PEM: {problem}", path.display())]
    InvalidKey { path: PathBuf, problem: String },
    #[error("http.tls_key does not match http.tls_certificate")]
    KeyMismatch,
    #[error("the TLS library does not accept http.tls_key as the private key of http.tls_certificate: {0}")]
    UnusableKey(String),
}

impl TlsError {
    /// Converts the error to a configuration error.
    pub fn to_config_mistake(&self) -> ConfigMistake {
        match self {
            Self::IncompletePair => ConfigMistake::new(
                CERTIFICATE_CONFIG_KEY,
                format!("and `{PRIVATE_KEY_CONFIG_KEY}` must be set together"),
            ),
            Self::UnreadableFile { key, path, source } => {
                ConfigMistake::new(*key, format!("cannot be read: {}: {source}", path.display()))
            }
            Self::InvalidCertificate { path, problem } => ConfigMistake::new(
                CERTIFICATE_CONFIG_KEY,
                format!(
                    "refers to a file without a certificate in PEM: {}: {problem}",
                    path.display()
                ),
            ),
            Self::InvalidKey { path, problem } => ConfigMistake::new(
                PRIVATE_KEY_CONFIG_KEY,
                format!(
                    "refers to a file without a private key in PEM: {}: {problem}",
                    path.display()
                ),
            ),
            Self::KeyMismatch => ConfigMistake::new(
                PRIVATE_KEY_CONFIG_KEY,
                format!(
                    "does not match `{CERTIFICATE_CONFIG_KEY}`: expected the private key that the certificate was \
                     issued for"
                ),
            ),
            Self::UnusableKey(problem) => ConfigMistake::new(
                PRIVATE_KEY_CONFIG_KEY,
                format!(
                    "cannot be used with `{CERTIFICATE_CONFIG_KEY}`: {problem}; expected a key of RSA, ECDSA or Ed25519"
                ),
            ),
        }
    }
}

/// Configuration keys.
const CERTIFICATE_CONFIG_KEY: &str = "http.tls_certificate";
const PRIVATE_KEY_CONFIG_KEY: &str = "http.tls_key";

/// The current certificate.
pub struct ReloadingCertificate {
    certificate_path: PathBuf,
    key_path: PathBuf,
    loaded_certificate: Mutex<LoadedCertificate>,
}

struct LoadedCertificate {
    server_config: Arc<ServerConfig>,
    /// Stamps of the loaded files.
    file_stamps: [Option<(SystemTime, u64)>; 2],
    last_checked: Instant,
}

/// Minimum interval between two checks of the files.
const CERTIFICATE_FILE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl ReloadingCertificate {
    /// Reads both files.
    ///
    /// # Errors
    ///
    /// A [`TlsError`] that names the configuration key.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let stamps = [
            read_modification_time_and_size(certificate),
            read_modification_time_and_size(key),
        ];
        let config = Arc::new(load_server_config(certificate, key)?);
        Ok(Self {
            certificate_path: certificate.to_owned(),
            key_path: key.to_owned(),
            loaded_certificate: Mutex::new(LoadedCertificate {
                server_config: config,
                file_stamps: stamps,
                last_checked: Instant::now(),
            }),
        })
    }

    /// Returns the TLS configuration for the next handshake. Reloads the files if they have changed. While the new
    /// files are not usable, for example because only one was replaced yet, the old certificate stays in use.
    pub fn refresh_and_get_server_config(&self) -> Arc<ServerConfig> {
        let mut state = self.loaded_certificate.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last_checked.elapsed() < CERTIFICATE_FILE_CHECK_INTERVAL {
            return state.server_config.clone();
        }
        state.last_checked = Instant::now();
        let stamps = [
            read_modification_time_and_size(&self.certificate_path),
            read_modification_time_and_size(&self.key_path),
        ];
        if stamps != state.file_stamps {
            match load_server_config(&self.certificate_path, &self.key_path) {
                Ok(config) => {
                    info!("TLS certificate reloaded");
                    state.server_config = Arc::new(config);
                }
                Err(error) => {
                    warn!(%error, "the changed TLS certificate or key file cannot be used; the previous certificate stays in use")
                }
            }
            state.file_stamps = stamps;
        }
        state.server_config.clone()
    }
}

/// Returns modification time and size of a file, to detect changes.
fn read_modification_time_and_size(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Returns all problems of a certificate file and its key file.
pub fn certificate_and_key_file_errors(certificate: &Path, key: &Path) -> Vec<TlsError> {
    match (read_certificate_chain(certificate), read_private_key(key)) {
        (Ok(chain), Ok(private)) => build_server_config(chain, private).err().into_iter().collect(),
        (chain, private) => chain.err().into_iter().chain(private.err()).collect(),
    }
}

fn load_server_config(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    build_server_config(read_certificate_chain(certificate)?, read_private_key(key)?)
}

fn read_certificate_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |problem: String| TlsError::InvalidCertificate {
        path: path.to_owned(),
        problem,
    };
    let pem = read_file(CERTIFICATE_CONFIG_KEY, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| bad(error.to_string()))?;
    if chain.is_empty() {
        return Err(bad("expected `-----BEGIN CERTIFICATE-----`".to_owned()));
    }
    Ok(chain)
}

fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read_file(PRIVATE_KEY_CONFIG_KEY, path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsError::InvalidKey {
        path: path.to_owned(),
        problem: match error {
            pem::Error::NoItemsFound => "expected `-----BEGIN PRIVATE KEY-----`".to_owned(),
            error => error.to_string(),
        },
    })
}

fn read_file(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::UnreadableFile {
        key,
        path: path.to_owned(),
        source,
    })
}

fn build_server_config(
    chain: Vec<CertificateDer<'static>>,
    private: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch) => TlsError::KeyMismatch,
            error => TlsError::UnusableKey(error.to_string()),
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Response to plain HTTP on the HTTPS port.
pub const PLAIN_HTTP_ON_HTTPS_PORT_RESPONSE: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 46\r\nConnection: close\r\n\r\nThis port speaks HTTPS: begin with https://.\n\n";

/// Returns whether the client starts with a TLS handshake (RFC 8446 §5.1: content type 22).
pub async fn begins_with_tls_handshake(stream: &tokio::net::TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(stream.peek(&mut first).await? == 1 && first == [22])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_response_to_plain_http_has_the_right_length() {
        let text = std::str::from_utf8(PLAIN_HTTP_ON_HTTPS_PORT_RESPONSE).expect("text");
        let (_, body) = text.split_once("\r\n\r\n").expect("a body");
        assert!(
            text.contains(&format!("Content-Length: {}\r\n", body.len())),
            "{}",
            body.len()
        );
    }
}
