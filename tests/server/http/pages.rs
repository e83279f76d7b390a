//! Pages and files of the player: types, policies, caching, content codings, frames.

use millstream::Gateway;

use crate::http::client::{Reply, Request, from_text, gateway};

/// What a browser sends.
const BROWSER_CODINGS: &str = "gzip, deflate, br, zstd";

async fn get(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> Reply {
    let request = Request::new("GET", path);
    let request = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(name, value));
    request.send(gateway).await
}

#[tokio::test]
async fn pages_and_files_come_with_their_type_and_a_strict_policy() {
    let gateway = gateway(&[]).await;
    for (path, media_type, content) in [
        ("/", "text/html; charset=utf-8", "Millstream</title>"),
        ("/watch/hall/stage-1", "text/html; charset=utf-8", "<millstream-player"),
        ("/watch/live/", "text/html; charset=utf-8", "<millstream-player"),
        ("/publish/live", "text/html; charset=utf-8", "Go live"),
        (
            "/player.js",
            "text/javascript; charset=utf-8",
            "export class MillstreamPlayer",
        ),
        ("/session.js", "text/javascript; charset=utf-8", "export class Client"),
        ("/style.css", "text/css; charset=utf-8", ":root {"),
        ("/favicon.svg", "image/svg+xml", "<svg"),
    ] {
        let reply = get(&gateway, path, &[]).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.header("content-type"), Some(media_type), "{path}");
        assert_eq!(reply.header("content-encoding"), None, "{path}");
        assert!(reply.text().contains(content), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(reply.header("cache-control"), Some("no-cache"), "{path}");
        let policy = reply.header("content-security-policy").expect("policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self';")
                && policy.ends_with("; frame-ancestors 'self'")
                && !policy.contains("unsafe"),
            "{policy}"
        );
    }
    let reply = Request::new("POST", "/player.js").send(&gateway).await;
    assert_eq!((reply.status, reply.problem().as_str()), (405, "method_not_allowed"));
    assert_eq!(get(&gateway, "/nowhere", &[]).await.problem(), "not_found");
    gateway.stop().await;
}

/// Requests to wrong paths are answered with the right ones, as a page or as a problem document.
#[tokio::test]
async fn wrong_paths_are_answered_with_the_right_ones() {
    let gateway = gateway(&[]).await;
    for (method, path, wanted) in [
        ("POST", "/live", "publish to /whip/NAME"),
        ("POST", "/live/whip", "/whep/NAME"),
        ("POST", "/whip", "the path contains no stream name: use /whip/NAME"),
        ("POST", "/whep/", "the path contains no stream name: use /whep/NAME"),
        ("GET", "/watch/", "the path contains no stream name: use /watch/NAME"),
        ("GET", "/watch/a%20b", "letters, digits"),
    ] {
        let reply = Request::new(method, path).send(&gateway).await;
        assert_eq!(reply.status, 404, "{path}");
        assert!(reply.text().contains(wanted), "{path}: {}", reply.text());
        if method == "GET" {
            // The condition is for what would be there.
            let page = get(
                &gateway,
                path,
                &[("Accept", "text/html,*/*;q=0.8"), ("If-None-Match", "*")],
            )
            .await;
            let media_type = page.header("content-type").map(str::to_owned);
            assert_eq!(
                (page.status, media_type.as_deref(), page.header("etag")),
                (404, Some("text/html; charset=utf-8"), None)
            );
            assert!(page.text().contains("/watch/NAME"), "{}", page.text());
        }
    }
    gateway.stop().await;
}

/// Every file in `player/` is served.
#[tokio::test]
async fn no_file_of_the_player_is_forgotten() {
    let gateway = gateway(&[]).await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/player");
    for entry in std::fs::read_dir(folder).expect("player/") {
        let name = entry.expect("entry").file_name().into_string().expect("name");
        // `npm` is the package of the player, and names what the build takes from there.
        if !name.ends_with(".html") && name != "npm" {
            assert_eq!(get(&gateway, &format!("/{name}"), &[]).await.status, 200, "{name}");
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_browser_that_has_a_page_is_told_so_and_gets_no_content() {
    let gateway = gateway(&[]).await;
    for path in ["/", "/watch/live", "/player.js", "/style.css"] {
        for codings in [None, Some("gzip"), Some(BROWSER_CODINGS)] {
            let coding = codings.map(|codings| ("Accept-Encoding", codings));
            let first = get(&gateway, path, &coding.into_iter().collect::<Vec<_>>()).await;
            let tag = first.header("etag").expect("tag").to_owned();
            assert!(
                tag.starts_with('"') && tag.ends_with('"'),
                "{path}: a strong tag: {tag}"
            );
            assert!(
                first.header("vary").expect("vary").contains("Accept-Encoding"),
                "{path}"
            );
            for (known, status) in [
                (tag.clone(), 304),
                (format!("W/{tag}"), 304),
                (format!("\"other\", {tag}"), 304),
                ("*".to_owned(), 304),
                ("\"other\"".to_owned(), 200),
            ] {
                let headers: Vec<_> = coding.into_iter().chain([("If-None-Match", known.as_str())]).collect();
                let again = get(&gateway, path, &headers).await;
                assert_eq!(again.status, status, "{path} {known}");
                assert_eq!(again.header("etag"), Some(tag.as_str()), "{path} {known}");
                assert_eq!(again.header("cache-control"), Some("no-cache"), "{path}");
                assert!(
                    again.header("vary").expect("vary").contains("Accept-Encoding"),
                    "{path}"
                );
                assert_eq!(again.body.is_empty(), status == 304, "{path} {known}");
            }
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn files_come_in_the_coding_that_the_client_prefers() {
    let gateway = gateway(&[]).await;
    let plain = get(&gateway, "/player.js", &[]).await;
    let mut tags = vec![plain.header("etag").expect("tag").to_owned()];
    for (accepted, coding) in [
        (BROWSER_CODINGS, Some("br")),
        ("gzip", Some("gzip")),
        ("br;q=0.1, gzip;q=0.2", Some("gzip")),
        ("zstd", None),
        ("", None),
    ] {
        let reply = get(&gateway, "/player.js", &[("Accept-Encoding", accepted)]).await;
        assert_eq!(
            (reply.status, reply.header("content-encoding")),
            (200, coding),
            "{accepted}"
        );
        let length = reply.body.len().to_string();
        assert_eq!(reply.header("content-length"), Some(length.as_str()), "{accepted}");
        match coding {
            None => assert_eq!(reply.body, plain.body, "{accepted}"),
            Some(_) => assert!(reply.body.len() * 3 < plain.body.len(), "{accepted}: {length}"),
        }
        if coding == Some("gzip") {
            assert_eq!(reply.body.get(..2), Some(&[0x1f, 0x8b][..]));
        }
        tags.push(reply.header("etag").expect("tag").to_owned());
    }
    // Tags of different bytes differ.
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), 3, "{tags:?}");

    let refused = get(&gateway, "/player.js", &[("Accept-Encoding", "identity;q=0")]).await;
    assert_eq!(
        (refused.status, refused.problem().as_str()),
        (406, "unacceptable_coding")
    );
    let head = Request::new("HEAD", "/player.js")
        .header("Accept-Encoding", "br")
        .send(&gateway)
        .await;
    assert_eq!(
        (head.status, head.header("content-encoding"), head.body.len()),
        (200, Some("br"), 0)
    );
    gateway.stop().await;
}

/// The paths that a page refers to.
fn references(page: &str) -> Vec<String> {
    let parts = page
        .split(['"'])
        .filter(|part| part.starts_with('/') && part.contains('.'));
    parts.map(str::to_owned).collect()
}

#[tokio::test]
async fn names_with_a_version_are_kept_for_ever() {
    let gateway = gateway(&[]).await;
    let versioned = concat!("/player@", env!("CARGO_PKG_VERSION"), ".js");
    let page = get(&gateway, "/watch/live", &[]).await;
    let mut paths = references(page.text());
    assert!(
        paths
            .iter()
            .any(|path| path.starts_with("/watch@") && path.ends_with(".js")),
        "{paths:?}"
    );
    assert!(paths.iter().any(|path| path.starts_with("/style@")), "{paths:?}");
    paths.push(versioned.to_owned());
    for path in paths {
        let reply = get(&gateway, &path, &[]).await;
        assert_eq!(
            (reply.status, reply.header("cache-control")),
            (200, Some("public, max-age=31536000, immutable")),
            "{path}"
        );
        let (stem, extension) = (
            path.split('@').next().unwrap_or_default(),
            path.rsplit('.').next().unwrap_or_default(),
        );
        let unversioned = get(&gateway, &format!("{stem}.{extension}"), &[]).await;
        assert_eq!(unversioned.body, reply.body, "{path}");
        assert_eq!(unversioned.header("etag"), reply.header("etag"), "{path}");
    }
    assert_eq!(get(&gateway, "/player@0.0.0.js", &[]).await.status, 404);
    gateway.stop().await;
}

/// What the watch page loads before it plays over WHEP, as browsers get it.
#[tokio::test]
async fn the_watch_page_is_small() {
    let gateway = gateway(&[]).await;
    let coding = [("Accept-Encoding", BROWSER_CODINGS)];
    let page = get(&gateway, "/watch/live", &[]).await;
    let mut total = get(&gateway, "/watch/live", &coding).await.body.len();
    println!("/watch/live: {total} bytes");
    for path in references(page.text()) {
        let reply = get(&gateway, &path, &coding).await;
        assert_eq!(reply.status, 200, "{path}");
        // One module: what it needs has no further request.
        assert!(
            !path.ends_with(".js") || !get(&gateway, &path, &[]).await.text().contains("\nimport "),
            "{path}"
        );
        println!("{path}: {} bytes", reply.body.len());
        total += reply.body.len();
    }
    println!("all: {total} bytes");
    assert!(total <= 60_000, "{total} bytes");
    gateway.stop().await;
}

#[tokio::test]
async fn a_frame_page_is_for_the_origins_that_are_listed() {
    let off = gateway(&[]).await;
    let reply = get(&off, "/embed/live", &[]).await;
    assert_eq!((reply.status, reply.problem().as_str()), (404, "embedding_off"));
    assert!(reply.text().contains("http.embed_origins"), "{}", reply.text());
    off.stop().await;
    for (value, ancestors) in [
        (
            "[\"https://a.example\", \"https://b.example:8443\"]",
            "'self' https://a.example https://b.example:8443",
        ),
        ("\"*\"", "*"),
    ] {
        let gateway = from_text(&format!("[http]\nembed_origins = {value}\n")).await;
        let reply = get(&gateway, "/embed/hall/stage-1", &[]).await;
        assert_eq!(reply.status, 200);
        let policy = reply.header("content-security-policy").expect("policy");
        assert!(policy.ends_with(&format!("; frame-ancestors {ancestors}")), "{policy}");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        // Nobody else places a button of ours in a frame.
        for path in ["/", "/watch/live", "/publish/live"] {
            let reply = get(&gateway, path, &[]).await;
            let policy = reply.header("content-security-policy").expect("policy");
            assert!(policy.ends_with("; frame-ancestors 'self'"), "{path}: {policy}");
        }
        assert_eq!(get(&gateway, "/embed/a%20b", &[]).await.status, 404);
        gateway.stop().await;
    }
}
