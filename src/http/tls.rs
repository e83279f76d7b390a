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

use crate::config::Mistake;

/// Why HTTPS cannot be served.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("http.tls_certificate and http.tls_key must be set together")]
    Half,
    #[error("{key}: {} cannot be read: {source}", path.display())]
    Read {
        key: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("http.tls_certificate: {} contains no certificate in PEM: {problem}", path.display())]
    Certificate { path: PathBuf, problem: String },
    #[error("http.tls_key: {} contains no private key in PEM: {problem}", path.display())]
    Key { path: PathBuf, problem: String },
    #[error("http.tls_key does not belong to http.tls_certificate")]
    Mismatch,
    #[error("http.tls_key does not fit http.tls_certificate: {0}")]
    Pair(String),
}

impl TlsError {
    /// Converts the error to a configuration error.
    pub fn mistake(&self) -> Mistake {
        match self {
            Self::Half => Mistake::new(CERTIFICATE, format!("and `{KEY}` must be set together")),
            Self::Read { key, path, source } => {
                Mistake::new(*key, format!("cannot be read: {}: {source}", path.display()))
            }
            Self::Certificate { path, problem } => Mistake::new(
                CERTIFICATE,
                format!(
                    "refers to a file without a certificate in PEM: {}: {problem}",
                    path.display()
                ),
            ),
            Self::Key { path, problem } => Mistake::new(
                KEY,
                format!(
                    "refers to a file without a private key in PEM: {}: {problem}",
                    path.display()
                ),
            ),
            Self::Mismatch => Mistake::new(
                KEY,
                format!(
                    "does not belong to `{CERTIFICATE}`: expected the private key that the certificate was issued for"
                ),
            ),
            Self::Pair(problem) => Mistake::new(
                KEY,
                format!("cannot be used with `{CERTIFICATE}`: {problem}; expected a key of RSA, ECDSA or Ed25519"),
            ),
        }
    }
}

/// Configuration keys.
const CERTIFICATE: &str = "http.tls_certificate";
const KEY: &str = "http.tls_key";

/// The current certificate.
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    state: Mutex<State>,
}

struct State {
    config: Arc<ServerConfig>,
    /// Stamps of the loaded files.
    stamps: [Option<(SystemTime, u64)>; 2],
    checked: Instant,
}

/// Minimum interval between two checks of the files.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

impl Certificate {
    /// Reads both files.
    ///
    /// # Errors
    ///
    /// A [`TlsError`] that names the configuration key.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let stamps = [stamp(certificate), stamp(key)];
        let config = Arc::new(load(certificate, key)?);
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            state: Mutex::new(State {
                config,
                stamps,
                checked: Instant::now(),
            }),
        })
    }

    /// Returns the TLS configuration for the next handshake. Reloads the files if they have changed. While the new
    /// files are not usable, for example because only one was replaced yet, the old certificate stays in use.
    pub fn current(&self) -> Arc<ServerConfig> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checked.elapsed() < POLL_INTERVAL {
            return state.config.clone();
        }
        state.checked = Instant::now();
        let stamps = [stamp(&self.certificate), stamp(&self.key)];
        if stamps != state.stamps {
            match load(&self.certificate, &self.key) {
                Ok(config) => {
                    info!("certificate reloaded");
                    state.config = Arc::new(config);
                }
                Err(error) => warn!(%error, "the changed certificate cannot be used; keeping the old one"),
            }
            state.stamps = stamps;
        }
        state.config.clone()
    }
}

/// Returns modification time and size of a file, to detect changes.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Returns all problems of a certificate file and its key file.
pub fn problems(certificate: &Path, key: &Path) -> Vec<TlsError> {
    match (chain(certificate), private(key)) {
        (Ok(chain), Ok(private)) => config(chain, private).err().into_iter().collect(),
        (chain, private) => chain.err().into_iter().chain(private.err()).collect(),
    }
}

fn load(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    config(chain(certificate)?, private(key)?)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |problem: String| TlsError::Certificate {
        path: path.to_owned(),
        problem,
    };
    let pem = read(CERTIFICATE, path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| bad(error.to_string()))?;
    if chain.is_empty() {
        return Err(bad("expected `-----BEGIN CERTIFICATE-----`".to_owned()));
    }
    Ok(chain)
}

fn private(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read(KEY, path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsError::Key {
        path: path.to_owned(),
        problem: match error {
            pem::Error::NoItemsFound => "expected `-----BEGIN PRIVATE KEY-----`".to_owned(),
            error => error.to_string(),
        },
    })
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        key,
        path: path.to_owned(),
        source,
    })
}

fn config(chain: Vec<CertificateDer<'static>>, private: PrivateKeyDer<'static>) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch) => TlsError::Mismatch,
            error => TlsError::Pair(error.to_string()),
        })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Response to plain HTTP on the HTTPS port.
pub const PLAIN_HTTP_RESPONSE: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 46\r\nConnection: close\r\n\r\nThis port speaks HTTPS: begin with https://.\n\n";

/// Returns whether the client starts with a TLS handshake (RFC 8446 §5.1: content type 22).
pub async fn begins_with_handshake(stream: &tokio::net::TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(stream.peek(&mut first).await? == 1 && first == [22])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_response_to_plain_http_has_the_right_length() {
        let text = std::str::from_utf8(PLAIN_HTTP_RESPONSE).expect("text");
        let (_, body) = text.split_once("\r\n\r\n").expect("a body");
        assert!(
            text.contains(&format!("Content-Length: {}\r\n", body.len())),
            "{}",
            body.len()
        );
    }
}
