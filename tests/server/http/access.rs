//! Access control: static tokens for some streams, signed tokens, and the authorization webhook.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use millstream::Gateway;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};

use crate::http::client::{OBS, PUBLISH, Reply, Request, VIEWER, from_text, gateway, make_live};

pub(super) const SECRET: &str = "a-secret-of-more-than-sixteen-characters";

pub(super) fn in_seconds(seconds: i64) -> i64 {
    #[expect(clippy::disallowed_methods, reason = "tokens end at a time of the wall clock")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("after 1970").as_secs() as i64 + seconds
}

/// A folder that goes with its test.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("millstream-access-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("text").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn openssl(arguments: &[&str]) {
    let done = Command::new("openssl")
        .args(arguments)
        .output()
        .expect("openssl starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// A token that openssl has signed, as none of ours would be.
pub(super) fn signed(folder: &Folder, header: &Value, claims: &Value, key: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let (input, output) = (folder.path("text"), folder.path("signature"));
    std::fs::write(&input, &text).expect("written");
    if header["alg"] == "HS256" {
        openssl(&["dgst", "-sha256", "-hmac", key, "-binary", "-out", &output, &input]);
    } else {
        openssl(&["dgst", "-sha256", "-sign", key, "-out", &output, &input]);
    }
    let mut signature = std::fs::read(&output).expect("signed");
    if header["alg"] == "ES256" {
        signature = raw_ecdsa(&signature);
    }
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The two numbers of an ECDSA signature in DER, 32 bytes each (RFC 7518 §3.4).
fn raw_ecdsa(der: &[u8]) -> Vec<u8> {
    let mut raw = Vec::new();
    let mut rest = &der[2..];
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let number = &rest[2..2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        raw.extend(std::iter::repeat_n(0, 32 - number.len()));
        raw.extend_from_slice(number);
        rest = &rest[2 + length..];
    }
    raw
}

fn keys(folder: &Folder) {
    let path = |name| folder.path(name);
    openssl(&["genrsa", "-out", &path("rsa.pem"), "2048"]);
    openssl(&["rsa", "-in", &path("rsa.pem"), "-pubout", "-out", &path("rsa.pub")]);
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        &path("ec.pem"),
    ]);
    openssl(&["pkey", "-in", &path("ec.pem"), "-pubout", "-out", &path("ec.pub")]);
}

pub(super) async fn publish(gateway: &Gateway, stream: &str, token: &str) -> Reply {
    let path = format!("/whip/{stream}");
    Request::offer(&path, OBS).bearer(token).send(gateway).await
}

pub(super) async fn play(gateway: &Gateway, stream: &str, token: &str) -> Reply {
    let path = format!("/whep/{stream}");
    Request::offer(&path, VIEWER).bearer(token).send(gateway).await
}

async fn ended(gateway: &Gateway, within: Duration) -> bool {
    let waiting = async {
        while gateway.media_plane().session_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(within, waiting).await.is_ok()
}

#[tokio::test]
async fn a_token_may_be_for_some_streams() {
    let folder = Folder::new("fixed");
    std::fs::write(folder.path("token"), "from-a-file\n").expect("written");
    let gateway = from_text(&format!(
        "[auth]\ntokens = [\n\
         {{ token = \"studio\", publish = \"studio/*\", play = [\"studio/*\", \"lobby\"] }},\n\
         {{ token_file = \"{}\", play = \"*\", api = true }},\n]\n",
        folder.path("token")
    ))
    .await;
    for stream in ["studio/a", "lobby", "other"] {
        make_live(&gateway, stream);
    }
    for (reply, status) in [
        (publish(&gateway, "studio/b", "studio").await, 201),
        (publish(&gateway, "lobby", "studio").await, 403),
        (publish(&gateway, "studio/b", "from-a-file").await, 403),
        (publish(&gateway, "studio/b", "unknown").await, 401),
        (publish(&gateway, "anything", PUBLISH).await, 201),
        (play(&gateway, "studio/a", "studio").await, 201),
        (play(&gateway, "lobby", "studio").await, 201),
        (play(&gateway, "other", "studio").await, 403),
        (play(&gateway, "other", "from-a-file").await, 201),
        (Request::offer("/whep/other", VIEWER).send(&gateway).await, 401),
        (
            Request::new("GET", "/api/v1/streams")
                .bearer("from-a-file")
                .send(&gateway)
                .await,
            200,
        ),
        (
            Request::new("GET", "/api/v1/streams")
                .bearer("studio")
                .send(&gateway)
                .await,
            403,
        ),
    ] {
        assert_eq!(reply.status, status, "{}", reply.text());
        let challenge = reply.header("www-authenticate").unwrap_or_default().to_owned();
        match status {
            401 => assert!(challenge.starts_with("Bearer realm="), "{challenge}"),
            403 => assert!(challenge.contains("insufficient_scope"), "{challenge}"),
            _ => assert!(challenge.is_empty()),
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn signed_tokens_say_what_they_are_good_for() {
    let folder = Folder::new("jwt");
    keys(&folder);
    let gateway = from_text(&format!(
        "[auth]\njwt_secret = \"{SECRET}\"\njwt_key_files = [\"{}\", \"{}\"]\njwt_audience = \"millstream\"\n",
        folder.path("rsa.pub"),
        folder.path("ec.pub"),
    ))
    .await;
    make_live(&gateway, "studio/a");
    let claims = |exp: i64, more: Value| {
        let mut claims = json!({"exp": exp, "aud": "millstream"});
        claims
            .as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        claims
    };
    let good = claims(in_seconds(600), json!({"publish": "studio/*", "play": ["studio/*"]}));
    let (rsa, ec) = (folder.path("rsa.pem"), folder.path("ec.pem"));
    for (algorithm, key) in [("HS256", SECRET), ("RS256", rsa.as_str()), ("ES256", ec.as_str())] {
        let token = signed(&folder, &json!({"alg": algorithm, "typ": "JWT"}), &good, key);
        for (reply, status) in [
            (publish(&gateway, "studio/b", &token).await, 201),
            (play(&gateway, "studio/a", &token).await, 201),
            (publish(&gateway, "other", &token).await, 403),
            (
                Request::new("GET", "/api/v1/streams")
                    .bearer(&token)
                    .send(&gateway)
                    .await,
                403,
            ),
            (publish(&gateway, "studio/b", &format!("{token}A")).await, 401),
        ] {
            assert_eq!(reply.status, status, "{algorithm}: {}", reply.text());
        }
        // HLS requests may have the token in the query.
        let hls = Request::new("GET", &format!("/hls/other/index.m3u8?token={token}"));
        assert_eq!(hls.send(&gateway).await.status, 403);
    }
    let header = json!({"alg": "HS256"});
    for (case, header, claims, key, code) in [
        (
            "expired",
            &header,
            claims(in_seconds(-60), json!({"play": "*"})),
            SECRET,
            "token_expired",
        ),
        (
            "not yet",
            &header,
            claims(in_seconds(600), json!({"play": "*", "nbf": in_seconds(300)})),
            SECRET,
            "token_wrong",
        ),
        (
            "without an end",
            &header,
            json!({"play": "*", "aud": "millstream"}),
            SECRET,
            "token_wrong",
        ),
        (
            "for somebody else",
            &header,
            json!({"exp": in_seconds(600), "play": "*", "aud": "other"}),
            SECRET,
            "token_wrong",
        ),
        (
            "another secret",
            &header,
            claims(in_seconds(600), json!({"play": "*"})),
            "another-secret-of-sixteen",
            "token_wrong",
        ),
        (
            "another algorithm of the key",
            &json!({"alg": "HS384"}),
            claims(in_seconds(600), json!({"play": "*"})),
            SECRET,
            "token_wrong",
        ),
        (
            "no algorithm",
            &json!({"alg": "none"}),
            claims(in_seconds(600), json!({"play": "*"})),
            &rsa,
            "token_wrong",
        ),
    ] {
        let key = if header["alg"] == "HS384" { &rsa } else { key };
        let token = signed(&folder, header, &claims, key);
        let reply = play(&gateway, "studio/a", &token).await;
        assert_eq!((reply.status, reply.problem().as_str()), (401, code), "{case}");
    }
    // The public key of RSA is no secret of HMAC (RFC 8725 §2.1).
    let public = std::fs::read_to_string(folder.path("rsa.pub")).expect("a key");
    let token = signed(&folder, &header, &good, &public);
    assert_eq!(play(&gateway, "studio/a", &token).await.status, 401);
    gateway.stop().await;
}

/// RFC 7519 §4.1.1, §4.1.3: a token that names no issuer or audience is not one for this gateway.
#[tokio::test]
async fn a_configured_issuer_and_audience_are_required() {
    let folder = Folder::new("required");
    let gateway = from_text(&format!(
        "[auth]\njwt_secret = \"{SECRET}\"\njwt_issuer = \"https://idp.example\"\njwt_audience = \"millstream\"\n"
    ))
    .await;
    let exp = in_seconds(600);
    let idp = "https://idp.example";
    for (claims, status) in [
        (json!({"exp": exp, "iss": idp, "aud": "millstream"}), 201),
        (json!({"exp": exp, "iss": idp, "aud": ["other", "millstream"]}), 201),
        (json!({"exp": exp, "iss": idp}), 401),
        (json!({"exp": exp, "aud": "millstream"}), 401),
        (json!({"exp": exp}), 401),
        (json!({"iss": idp, "aud": "millstream"}), 401),
        (json!({"exp": exp, "iss": idp, "aud": null}), 401),
        (json!({"exp": exp, "iss": idp, "aud": 5}), 401),
        (json!({"exp": exp, "iss": idp, "aud": []}), 401),
        (json!({"exp": exp, "iss": idp, "aud": ["millstream", 5]}), 401),
        (json!({"exp": exp, "iss": idp, "aud": {}}), 401),
        (json!({"exp": exp, "iss": idp, "aud": "Millstream"}), 401),
        (json!({"exp": exp, "iss": null, "aud": "millstream"}), 401),
        (json!({"exp": exp, "iss": {}, "aud": "millstream"}), 401),
        (json!({"exp": exp, "iss": [], "aud": "millstream"}), 401),
        (json!({"exp": exp, "iss": [idp], "aud": "millstream"}), 401),
        (
            json!({"exp": exp, "iss": "https://idp.example/", "aud": "millstream"}),
            401,
        ),
        (json!({"exp": exp.to_string(), "iss": idp, "aud": "millstream"}), 401),
        (json!({"exp": exp, "nbf": "x", "iss": idp, "aud": "millstream"}), 401),
    ] {
        let mut all = claims.clone();
        all["publish"] = json!("*");
        let token = signed(&folder, &json!({"alg": "HS256"}), &all, SECRET);
        assert_eq!(publish(&gateway, "live", &token).await.status, status, "{claims}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_session_ends_within_a_second_of_its_token() {
    let folder = Folder::new("expiry");
    let gateway = from_text(&format!("[auth]\njwt_secret = \"{SECRET}\"\n")).await;
    let exp = in_seconds(4);
    let claims = json!({"exp": exp, "publish": "*"});
    let token = signed(&folder, &json!({"alg": "HS256"}), &claims, SECRET);
    let session = publish(&gateway, "live", &token).await.location();
    assert_eq!(gateway.media_plane().session_count(), 1);
    assert!(ended(&gateway, Duration::from_secs(10)).await);
    let now = in_seconds(0);
    assert!((exp..=exp + 1).contains(&now), "{} s after its end", now - exp);
    assert_eq!(Request::new("GET", &session).send(&gateway).await.status, 404);
    gateway.stop().await;
}

/// A server that answers each request with what `answer` makes of its body.
pub(super) async fn serve(answer: impl Fn(Value) -> String + Send + Sync + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (asked, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (count, answer) = (count.clone(), answer.clone());
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                loop {
                    let mut chunk = [0; 4096];
                    let read = stream.read(&mut chunk).await.unwrap_or(0);
                    bytes.extend_from_slice(&chunk[..read]);
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        if read == 0 {
                            return;
                        }
                        continue;
                    };
                    let length = head
                        .lines()
                        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                        .unwrap_or(0);
                    if body.len() >= length {
                        count.fetch_add(1, Ordering::Relaxed);
                        let reply = answer(serde_json::from_str(body).unwrap_or_default());
                        let _ = stream.write_all(reply.as_bytes()).await;
                        return;
                    }
                    if read == 0 {
                        return;
                    }
                }
            });
        }
    });
    (address, asked)
}

pub(super) fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn keys_may_be_fetched_and_change() {
    let folder = Folder::new("jwks");
    keys(&folder);
    openssl(&["genrsa", "-out", &folder.path("other.pem"), "2048"]);
    let set = |id: &str, key: &str| {
        let text = Command::new("openssl")
            .args(["rsa", "-in", key, "-noout", "-modulus"])
            .output()
            .expect("openssl");
        let hex = String::from_utf8_lossy(&text.stdout)
            .trim()
            .trim_start_matches("Modulus=")
            .to_owned();
        let bytes: Vec<u8> = (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex"))
            .collect();
        json!({"kty": "RSA", "kid": id, "alg": "RS256", "use": "sig", "n": URL_SAFE_NO_PAD.encode(bytes), "e": "AQAB"})
    };
    let keys = json!({"keys": [set("one", &folder.path("rsa.pem"))]}).to_string();
    let (address, asked) = serve(move |_| http("200 OK", &keys)).await;
    let gateway = from_text(&format!("[auth]\njwks_url = \"http://{address}/keys\"\n")).await;
    make_live(&gateway, "live");
    let token = |id: &str, key: &str| {
        let claims = json!({"exp": in_seconds(600), "play": "*"});
        signed(&folder, &json!({"alg": "RS256", "kid": id}), &claims, &folder.path(key))
    };
    for _ in 0..5 {
        assert_eq!(play(&gateway, "live", &token("one", "rsa.pem")).await.status, 201);
    }
    for _ in 0..5 {
        assert_eq!(play(&gateway, "live", &token("two", "other.pem")).await.status, 401);
    }
    // Not for each token that names a key of its own.
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    gateway.stop().await;

    // Bound, so that nobody else gets the port, and without a listener.
    let nobody = TcpSocket::new_v4().expect("a socket");
    nobody
        .bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .expect("a free port");
    let away = nobody.local_addr().expect("bound");
    let gateway = from_text(&format!("[auth]\njwks_url = \"http://{away}/keys\"\n")).await;
    make_live(&gateway, "live");
    let reply = play(&gateway, "live", &token("one", "rsa.pem")).await;
    assert_eq!((reply.status, reply.problem().as_str()), (503, "access_undecided"));
    assert_eq!(
        play(&gateway, "live", PUBLISH).await.status,
        201,
        "fixed tokens need nobody"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_service_may_be_asked_and_nothing_is_open_while_it_is_silent() {
    let exp = in_seconds(600);
    let (address, asked) = serve(move |question| {
        assert_eq!(question["address"], "127.0.0.1", "{question}");
        let text = |name: &str| question[name].as_str().unwrap_or("none").to_owned();
        match (text("action").as_str(), text("stream").as_str(), text("token").as_str()) {
            ("publish", "live", "yes") => http("200 OK", &json!({ "expires": exp }).to_string()),
            ("play", "free", "none") => http("204 No Content", ""),
            ("play", "live", "over") => http("200 OK", "{\"expires\": 1}"),
            ("play", "live", "broken") => http("500 Internal Server Error", ""),
            ("play", "live", "elsewhere") => http("307 Temporary Redirect", ""),
            ("play", "live", "other") => http("403 Forbidden", ""),
            _ => http("401 Unauthorized", ""),
        }
    })
    .await;
    let gateway = from_text(&format!(
        "[auth]\nwebhook_url = \"http://{address}/\"\nwebhook_timeout = 1\n"
    ))
    .await;
    for stream in ["live", "free"] {
        make_live(&gateway, stream);
    }
    for (reply, status, code) in [
        (publish(&gateway, "live", "yes").await, 201, ""),
        (publish(&gateway, "other", "yes").await, 401, "token_wrong"),
        (Request::offer("/whep/free", VIEWER).send(&gateway).await, 201, ""),
        (
            Request::offer("/whep/live", VIEWER).send(&gateway).await,
            401,
            "token_missing",
        ),
        (play(&gateway, "live", "over").await, 401, "token_expired"),
        (play(&gateway, "live", "broken").await, 503, "access_undecided"),
        (play(&gateway, "live", "elsewhere").await, 503, "access_undecided"),
        (play(&gateway, "live", "other").await, 403, "insufficient_scope"),
        (play(&gateway, "live", PUBLISH).await, 201, ""),
    ] {
        assert_eq!(reply.status, status, "{}", reply.text());
        if !code.is_empty() {
            assert_eq!(reply.problem(), code);
        }
    }
    let before = asked.load(Ordering::Relaxed);
    for _ in 0..20 {
        let reply = Request::new("GET", "/hls/free/video-1.m4s").send(&gateway).await;
        assert_ne!(reply.status, 401);
    }
    assert_eq!(
        asked.load(Ordering::Relaxed),
        before,
        "the answer is remembered for a moment"
    );
    gateway.stop().await;

    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = silent.local_addr().expect("bound");
    let gateway = from_text(&format!(
        "[auth]\nwebhook_url = \"http://{address}/\"\nwebhook_timeout = 1\n"
    ))
    .await;
    make_live(&gateway, "live");
    let reply = play(&gateway, "live", "yes").await;
    assert_eq!((reply.status, reply.problem().as_str()), (503, "access_undecided"));
    assert!(reply.header("retry-after").is_some());
    drop(silent);
    gateway.stop().await;
}

/// A hundred thousand wrong tokens, most of which are rejected by the rate limit.
#[tokio::test]
async fn a_flood_of_wrong_tokens_gets_retry_after() {
    let gateway = gateway(&[
        ("MILLSTREAM_AUTH__PLAY_TOKEN", "right"),
        ("MILLSTREAM_AUTH__JWT_SECRET", SECRET),
        ("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0"),
    ])
    .await;
    make_live(&gateway, "live");
    let mut answers = std::collections::BTreeMap::<u16, usize>::new();
    for n in 0..200 {
        let token = format!("header{n}.claims.signature");
        *answers.entry(play(&gateway, "live", &token).await.status).or_default() += 1;
    }
    let refused = answers.get(&401).copied().unwrap_or(0);
    assert!((20..40).contains(&refused), "{answers:?}");
    assert_eq!(refused + answers.get(&429).copied().unwrap_or(0), 200, "{answers:?}");
    assert_eq!(play(&gateway, "live", "right").await.status, 201);
    gateway.stop().await;
}
