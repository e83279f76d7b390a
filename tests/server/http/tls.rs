//! HTTPS and HTTP/2, as curl speaks them.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use millstream::{Config, Gateway, GatewayStartError};
use millstream_test_support::tls::make_certificate;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http::client::{OBS, PUBLISH, from_text, hurry};

/// A folder with a certificate, which is removed when this is dropped.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("millstream-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("text").to_owned()
    }

    /// A certificate of this name and its key.
    pub(super) fn certificate(&self, common_name: &str) {
        let (key, certificate) = (self.0.join("key.pem"), self.0.join("cert.pem"));
        make_certificate(common_name, &key, &certificate).expect("openssl");
    }

    pub(super) fn config(&self) -> String {
        format!(
            "[http]\ntls_certificate = \"{}\"\ntls_key = \"{}\"\n",
            self.path("cert.pem"),
            self.path("key.pem")
        )
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn gateway(folder: &Folder) -> Gateway {
    from_text(&folder.config()).await
}

async fn curl(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || {
        Command::new("curl")
            .arg("-sS")
            .args(arguments)
            .output()
            .expect("curl starts")
    };
    tokio::task::spawn_blocking(run).await.expect("runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// H-30, H-33.
#[tokio::test(flavor = "multi_thread")]
async fn https_and_http2_carry_a_session() {
    let folder = Folder::new("session");
    folder.certificate("one");
    std::fs::write(folder.path("offer"), OBS).expect("written");
    let gateway = gateway(&folder).await;
    let url = |path: &str| format!("https://{}{path}", gateway.http_address());
    let bearer = format!("Authorization: Bearer {PUBLISH}");
    let (offer, authority) = (format!("@{}", folder.path("offer")), folder.path("cert.pem"));
    for version in ["--http1.1", "--http2"] {
        let output = curl(&[
            version,
            "--cacert",
            &authority,
            "-i",
            "-X",
            "POST",
            "-H",
            &bearer,
            "-H",
            "Content-Type: application/sdp",
            "-H",
            "Expect: 100-continue",
            "--data-binary",
            &offer,
            &url("/whip/live"),
        ])
        .await;
        let reply = text(&output);
        let status = if version == "--http2" {
            "HTTP/2 201"
        } else {
            "HTTP/1.1 201"
        };
        assert!(reply.contains(status), "{version}: {reply}");
        let location = reply
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase()
                    .starts_with("location: ")
                    .then(|| line[10..].trim())
            })
            .expect("Location");
        let output = curl(&[version, "--cacert", &authority, "-i", "-X", "DELETE", &url(location)]).await;
        assert!(text(&output).contains(" 200"), "{}", text(&output));
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not() {
    let folder = Folder::new("renewed");
    folder.certificate("one");
    let gateway = gateway(&folder).await;
    let url = format!("https://{}/healthz", gateway.http_address());
    let subject = async || text(&curl(&["-k", "-v", "-o", "/dev/null", &url]).await);
    assert!(subject().await.contains("subject: CN=one"), "{}", subject().await);
    std::fs::write(folder.path("cert.pem"), "half a file").expect("written");
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(subject().await.contains("subject: CN=one"), "the old one stays");
    folder.certificate("two");
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(subject().await.contains("subject: CN=two"), "{}", subject().await);
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_without_tls_gets_an_answer_or_is_closed() {
    let folder = Folder::new("plain");
    folder.certificate("one");
    let gateway = gateway(&folder).await;
    let output = curl(&["-i", &format!("http://{}/", gateway.http_address())]).await;
    assert!(text(&output).contains("begin with https://"), "{}", text(&output));
    // Half a handshake, and none.
    for bytes in [&[22, 3, 1, 0, 200, 1][..], &[]] {
        let mut stream = TcpStream::connect(gateway.http_address()).await.expect("connects");
        stream.write_all(bytes).await.expect("sends");
        let closed = async {
            let mut rest = [0; 64];
            while matches!(stream.read(&mut rest).await, Ok(1..)) {}
        };
        let waited = hurry(tokio::time::timeout(Duration::from_secs(3_600), closed)).await;
        assert!(waited.is_ok(), "{bytes:?}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let folder = Folder::new("wrong");
    folder.certificate("one");
    let (cert, key) = (folder.path("cert.pem"), folder.path("key.pem"));
    std::fs::copy(&key, folder.path("old.pem")).expect("copied");
    let old = folder.path("old.pem");
    folder.certificate("two");
    let only = |name: &str, path: &str| format!("[http]\n{name} = \"{path}\"\n");
    let both = |cert: &str, key: &str| format!("[http]\ntls_certificate = \"{cert}\"\ntls_key = \"{key}\"\n");
    for (text, wanted) in [
        (only("tls_certificate", &cert), "must be set together"),
        (only("tls_key", &key), "must be set together"),
        (both(&key, &key), "http.tls_certificate"),
        (both(&cert, &cert), "http.tls_key"),
        (both("/nonexistent", &key), "/nonexistent"),
        (both(&cert, &old), "does not match"),
    ] {
        let mut config = Config::parse(&text, "test.toml".as_ref(), []).expect("parses");
        let mistakes = millstream::gateway::config_check::find_source_credential_certificate_mistakes(&config, &[]);
        let messages: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert!(
            messages[0].starts_with("test.toml, line ") && messages[0].contains("`http.tls_"),
            "{messages:?}"
        );
        config.http.listen = ([127, 0, 0, 1], 0).into();
        config.webrtc.listen = ([127, 0, 0, 1], 0).into();
        let error = match Gateway::start(config).await {
            Err(error @ GatewayStartError::Tls(_)) => error.to_string(),
            Err(error) => panic!("{text}: {error}"),
            Ok(_) => panic!("{text}: it starts"),
        };
        assert!(error.contains(wanted), "{text}: {error}");
    }
}
