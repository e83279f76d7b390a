//! Addresses that are permitted, headers that are sent, and ranges that are read.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn url(text: &str) -> Url {
    Url::parse(text).expect("a URL")
}

#[test]
fn secret_headers_go_to_the_configured_server_only() {
    for (configured, other, expected) in [
        ("http://a.example/x", "http://a.example/y", true),
        ("http://a.example:80/x", "http://a.example/y", true),
        ("http://a.example/x", "https://a.example/y", true),
        ("https://a.example/x", "http://a.example/y", false),
        ("http://a.example/x", "http://a.example:8080/y", false),
        ("http://a.example:8080/x", "https://a.example/y", false),
        ("http://a.example/x", "https://a.example:8443/y", false),
        ("http://a.example/x", "http://b.example/y", false),
    ] {
        let sent = is_same_server_or_https_upgrade(&url(configured), &url(other));
        assert_eq!(sent, expected, "{configured} -> {other}");
    }
}

#[test]
fn a_public_name_does_not_become_a_private_one() {
    let first_resolution = DnsRebindingGuard::default();
    // The state outlives a restart of the source.
    let permitted = |addresses: &[&str]| {
        let guard = AddressRestriction {
            allowed_networks: AllowedNetworks::default(),
            configured_host: "a.example".to_owned(),
            first_resolution: first_resolution.clone(),
        };
        let addresses: Vec<SocketAddr> = addresses
            .iter()
            .map(|address| SocketAddr::new(address.parse().expect("an address"), 0))
            .collect();
        guard
            .filter_permitted_resolved_addresses("a.example", &addresses)
            .map(|addresses| addresses.len())
    };
    assert_eq!(permitted(&["93.184.216.34"]), Ok(1));
    assert_eq!(permitted(&["93.184.216.35", "10.0.0.1"]), Ok(1));
    let private = "10.0.0.1".parse().expect("an address");
    assert_eq!(permitted(&["10.0.0.1"]), Err(AddressError::NotPublic(private)));
}

fn socket_addresses(addresses: &[&str]) -> Vec<SocketAddr> {
    let address = |text: &&str| SocketAddr::new(text.parse().expect("an address"), 0);
    addresses.iter().map(address).collect()
}

#[test]
fn a_name_that_was_not_resolved_is_neither_public_nor_private() {
    let allowed = AllowedNetworks::default();
    let is_public = |found: &SocketAddr| {
        allowed
            .require_permitted_address(found.ip(), AddressOrigin::OriginServer)
            .is_ok()
    };
    let resolution = DnsRebindingGuard::default();
    assert!(!resolution.record_resolution_and_require_public(Instant::now(), &[], is_public));
    // What follows is the first resolution.
    assert!(!resolution.record_resolution_and_require_public(
        Instant::now(),
        &socket_addresses(&["10.0.0.1"]),
        is_public
    ));
    let resolution = DnsRebindingGuard::default();
    assert!(resolution.record_resolution_and_require_public(
        Instant::now(),
        &socket_addresses(&["93.184.216.34"]),
        is_public
    ));
    assert!(resolution.record_resolution_and_require_public(Instant::now(), &[], is_public));
}

#[test]
fn a_public_name_has_moved_after_a_day_without_a_public_address() {
    let allowed = AllowedNetworks::default();
    let is_public = |found: &SocketAddr| {
        allowed
            .require_permitted_address(found.ip(), AddressOrigin::OriginServer)
            .is_ok()
    };
    let (resolution, begin) = (DnsRebindingGuard::default(), Instant::now());
    let (public, private) = (socket_addresses(&["93.184.216.34"]), socket_addresses(&["10.0.0.1"]));
    let hours = |hours: u64| begin + Duration::from_secs(hours * 3_600);
    for (at, found, expected) in [
        (0, &public, true),
        (1, &private, true),
        (24, &private, true),
        // One public address begins the day anew.
        (24, &public, true),
        (25, &private, true),
        (48, &private, true),
        (49, &private, false),
        // From here on it is what the operator configured.
        (50, &public, false),
    ] {
        assert_eq!(
            resolution.record_resolution_and_require_public(hours(at), found, is_public),
            expected,
            "{at} h: {found:?}"
        );
    }
}

#[test]
fn a_private_name_stays_what_the_operator_configured() {
    let guard = AddressRestriction {
        allowed_networks: AllowedNetworks::default(),
        configured_host: "camera.local".to_owned(),
        first_resolution: DnsRebindingGuard::default(),
    };
    for address in ["10.0.0.1:0", "10.0.0.2:0", "93.184.216.34:0"] {
        let addresses = [address.parse().expect("an address")];
        assert!(
            guard
                .filter_permitted_resolved_addresses("camera.local", &addresses)
                .is_ok(),
            "{address}"
        );
    }
}

/// A server that answers each request with these bytes behind this status line.
async fn serve(status: &'static str, file: Vec<u8>) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4_096]).await;
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", file.len());
            let _ = stream.write_all(head.as_bytes()).await;
            // The client may leave before the end.
            let _ = stream.write_all(&file).await;
        }
    });
    url(&format!("http://127.0.0.1:{port}/file.mp4"))
}

#[tokio::test]
async fn a_range_is_cut_out_of_the_file_if_the_server_sends_all_of_it() {
    let file: Vec<u8> = (0..3 << 20).map(|at: u32| (at >> 3) as u8).collect();
    let limits = FetchLimits {
        max_bytes: 1 << 20,
        timeout: Duration::from_secs(30),
    };
    let whole = serve("200 OK", file.clone()).await;
    let part = serve("206 Partial Content", file.clone()).await;
    for (url, begin, length, expected) in [
        (&whole, 0, 800, Ok(0)),
        (&whole, 2_000_003, 1 << 20, Ok(2_000_003)),
        (&whole, 7, (1 << 20) + 1, Err(HttpError::BodyTooLarge(1 << 20))),
        (&whole, (3 << 20) - 9, 10, Err(HttpError::RangeUnavailable)),
        (&whole, u64::MAX - 9, 5, Err(HttpError::RangeUnavailable)),
        (&part, 2_000_000, 800, Ok(0)),
    ] {
        let client = OriginClient::new(
            url,
            AllowedNetworks::default(),
            HeaderMap::new(),
            DnsRebindingGuard::default(),
        );
        let range = ByteRange { begin, length };
        let found = client.expect("a client").get(url, Some(range), limits).await;
        let length = length as usize;
        let expected = expected.map(|at: usize| &file[at..at + length]);
        assert!(
            found.as_ref().map(|(_, bytes)| bytes.as_ref()) == expected.as_ref().copied(),
            "{begin} {length}: {:?}",
            found.map(|(_, bytes)| bytes.len())
        );
    }
}
