//! Networks that an origin may lead to.

use super::*;

/// A server that nothing may connect to.
struct Forbidden {
    address: SocketAddr,
    listener: std::net::TcpListener,
}

impl Forbidden {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.2:0").expect("a free port");
        listener.set_nonblocking(true).expect("an option");
        Self {
            address: listener.local_addr().expect("it is bound"),
            listener,
        }
    }

    fn was_connected_to(&self) -> bool {
        self.listener.accept().is_ok()
    }
}

/// Addresses that an origin may not lead to.
fn forbidden_addresses(port: u16) -> Vec<String> {
    let hosts = [
        format!("127.0.0.2:{port}"),
        format!("2130706434:{port}"),
        format!("0x7f000002:{port}"),
        format!("0177.0.0.2:{port}"),
        format!("127.2:{port}"),
        format!("[::ffff:127.0.0.2]:{port}"),
        format!("[::ffff:7f00:2]:{port}"),
        format!("localhost:{port}"),
        format!("169.254.169.254:{port}"),
        format!("0.0.0.0:{port}"),
        format!("[::]:{port}"),
        format!("[::1]:{port}"),
        format!("10.0.0.1:{port}"),
        format!("[fe80::1]:{port}"),
    ];
    let mut vectors: Vec<String> = hosts.iter().map(|host| format!("http://{host}/film0.ts")).collect();
    vectors.extend(
        [
            "file:///etc/passwd",
            "data:text/plain,x",
            "ftp://127.0.0.2/x",
            "gopher://127.0.0.2/x",
        ]
        .map(str::to_owned),
    );
    vectors.push(format!("https://127.0.0.2:{port}/film0.ts"));
    vectors
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_does_not_lead_into_other_networks() {
    let server = Server::start("networks").await;
    film(&server.folder.0, 2, &["-hls_playlist_type", "vod"], "film.m3u8");
    let secret = Forbidden::start();
    let port = secret.address.port();
    let vectors = forbidden_addresses(port);
    // As a segment, as its key, as an initialization section, as a version, and as where another file was moved to.
    let mut streams = "[pipelines]\ntranscode = false\n".to_owned();
    let mut names = Vec::new();
    for (index, vector) in vectors.iter().enumerate() {
        let list = |line: &str, segment: &str| {
            format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n{line}#EXTINF:1,\n{segment}\n#EXT-X-ENDLIST\n")
        };
        for (way, text) in [
            ("segment", list("", vector)),
            (
                "key",
                list(&format!("#EXT-X-KEY:METHOD=AES-128,URI=\"{vector}\"\n"), "film0.ts"),
            ),
            ("init", list(&format!("#EXT-X-MAP:URI=\"{vector}\"\n"), "film0.ts")),
            ("version", format!("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{vector}\n")),
        ] {
            let name = format!("{way}-{index}");
            server.folder.write(&format!("{name}.m3u8"), &text);
            streams += &format!(
                "[streams.\"{name}\"]\nhls = \"{}\"\n",
                server.uri(&format!("{name}.m3u8"))
            );
            names.push(name);
        }
        let name = format!("moved-{index}");
        streams += &format!(
            "[streams.\"{name}\"]\nhls = \"{}\"\n",
            server.uri(&format!("lead?{vector}"))
        );
        names.push(name);
    }
    assert!(names.len() >= 60, "{}", names.len());
    let gateway = gateway(&streams).await;
    let reported = async {
        // What a media playlist leads to is a gap, and none of these has anything else.
        while names.iter().any(|name| trouble(&gateway, name).is_empty()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, reported).await;
    let silent: Vec<&String> = names.iter().filter(|name| trouble(&gateway, name).is_empty()).collect();
    assert!(waited.is_ok(), "{silent:?}");
    for name in &names {
        let said = trouble(&gateway, name);
        let is_refusal = [
            "not a public address",
            "neither http",
            "is not accepted as that of a source: it is link-local, multicast, broadcast or unspecified",
            "cannot be used",
        ];
        assert!(is_refusal.iter().any(|words| said.contains(words)), "{name}: {said}");
    }
    gateway.stop().await;
    assert!(!secret.was_connected_to());
    // Where the network is listed, it may.
    let allowed = format!(
        "[sources]\nallow = [\"127.0.0.0/8\"]\n[streams.\"moved\"]\nhls = \"{}\"\n",
        server.uri(&format!("lead?http://127.0.0.2:{port}/film0.ts"))
    );
    let gateway = crate::pipeline::gateway(&allowed).await;
    let connected = async {
        while !secret.was_connected_to() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, connected)
        .await
        .expect("it is connected to");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_followed_a_few_times() {
    let server = Server::start("redirects").await;
    film(&server.folder.0, 3, &["-hls_playlist_type", "vod"], "film.m3u8");
    let gateway = source(&server.uri(&format!("{}film.m3u8", "away/".repeat(10))), "").await;
    plays(&gateway, "far").await;
    gateway.stop().await;
    assert!(server.asked().contains(&"film0.ts".to_owned()));
    let gateway = source(&server.uri(&format!("{}film.m3u8", "away/".repeat(11))), "").await;
    refused(&gateway, "redirected more than 10 times").await;
    gateway.stop().await;
}
