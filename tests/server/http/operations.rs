//! Probes and metrics.

use std::time::Duration;

use millstream_core::hub::name::StreamName;

use crate::http::client::{OBS, PUBLISH, Request, VIEWER, gateway, make_live};

#[tokio::test]
async fn probes_and_metrics_show_what_happens() {
    let gateway = gateway(&[]).await;
    make_live(&gateway, "hall/stage-1");
    Request::publish("/whip/live", OBS).send(&gateway).await.location();
    Request::offer("/whep/hall/stage-1", VIEWER)
        .send(&gateway)
        .await
        .location();
    Request::offer("/whip/live", OBS).send(&gateway).await;
    // The shard opens the viewer after the answer.
    let name = StreamName::parse("hall/stage-1").expect("name");
    let stream = gateway.media_plane().hub().find_stream(&name).expect("live");
    for _ in 0..1_000 {
        if stream.with_state(|state| state.viewer_count()) == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for probe in ["/healthz", "/readyz"] {
        assert_eq!(Request::new("GET", probe).send(&gateway).await.status, 200);
    }
    let reply = Request::new("GET", "/metrics").send(&gateway).await;
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    for line in [
        "millstream_http_responses_total{class=\"2xx\"} 4",
        "millstream_http_responses_total{class=\"4xx\"} 1",
        "millstream_http_responses_total{class=\"5xx\"} 0",
        "millstream_sessions 2",
        "millstream_streams_live 1",
        "millstream_stream_viewers{stream=\"hall/stage-1\",transport=\"webrtc\"} 1",
        "millstream_viewers{transport=\"hls\"} 0",
        "millstream_dropped_total{reason=\"unknown_sender\"} 0",
        "millstream_dropped_total{reason=\"send_buffer_full\"} 0",
        "millstream_sessions_closed_total{reason=\"deleted\"} 0",
        "# TYPE millstream_received_datagrams_total counter",
        "millstream_http_request_duration_seconds_count{endpoint=\"whip\"} 2",
        "millstream_http_request_duration_seconds_bucket{endpoint=\"whep\",le=\"+Inf\"} 1",
        "# TYPE process_cpu_seconds_total counter",
        "# TYPE process_start_time_seconds gauge",
        "# TYPE process_max_fds gauge",
        // Former names stay for one version.
        "millstream_stream_round_trips_total{stream=\"hall/stage-1\"} 0",
        "millstream_stream_round_trip_seconds_count{stream=\"hall/stage-1\"} 0",
    ] {
        assert!(reply.text().lines().any(|l| l == line), "{line} in\n{}", reply.text());
    }
    let build = concat!("millstream_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\",");
    assert!(reply.text().contains(build), "{build} in\n{}", reply.text());
    let names: Vec<&str> = reply.text().lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    let unique: std::collections::HashSet<&&str> = names.iter().collect();
    assert_eq!(names.len(), unique.len(), "each family stands once");
    gateway.stop().await;
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "a time in the past of the gateway's own clock")]
async fn a_silent_publisher_is_stalled_in_api_and_metrics() {
    let gateway = gateway(&[("MILLSTREAM_AUTH__API_TOKEN", "secret")]).await;
    make_live(&gateway, "live");
    let name = StreamName::parse("live").expect("name");
    let get = async |path: &str| {
        let request = Request::new("GET", path).header("authorization", "Bearer secret");
        request.send(&gateway).await.text().to_owned()
    };
    for (silent_seconds, is_stalled) in [(2, false), (6, true)] {
        let since = std::time::Instant::now() - Duration::from_secs(silent_seconds);
        let stream = gateway.media_plane().hub().find_stream(&name).expect("live");
        stream.with_state(move |state| state.expect_media_since(since));
        let shown = get("/api/v1/streams/live").await;
        assert!(
            shown.contains(&format!("\"live\":true,\"stalled\":{is_stalled}")),
            "{shown}"
        );
        let metrics = get("/metrics").await;
        let expected = format!(
            "millstream_stream_stalled{{stream=\"live\"}} {}\n",
            u8::from(is_stalled)
        );
        assert!(metrics.contains(&expected), "{metrics}");
        assert!(metrics.contains(&format!("millstream_streams_stalled {}\n", u8::from(is_stalled))));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn metrics_are_closed_when_there_is_an_api_token() {
    let gateway = gateway(&[("MILLSTREAM_AUTH__API_TOKEN", "operator")]).await;
    let metrics = Request::new("GET", "/metrics");
    assert_eq!(metrics.send(&gateway).await.status, 401);
    assert_eq!(
        metrics
            .clone()
            .bearer(crate::http::client::PUBLISH)
            .send(&gateway)
            .await
            .status,
        403
    );
    assert_eq!(metrics.clone().bearer("operator").send(&gateway).await.status, 200);
    gateway.stop().await;
}

/// The metrics name the streams, which nobody else may see then.
#[tokio::test]
async fn metrics_are_closed_when_watching_needs_a_token() {
    let tokens = "[auth]\ntokens = [{ token = \"studio\", publish = \"studio/*\" }]\n";
    for (text, status) in [
        ("[auth]\nplay_token = \"play\"\n", 403),
        (tokens, 403),
        ("[auth]\njwt_secret = \"a-secret-of-more-than-sixteen\"\n", 401),
        ("", 200),
    ] {
        let gateway = crate::http::client::from_text(text).await;
        make_live(&gateway, "secret-name");
        let reply = Request::new("GET", "/metrics").send(&gateway).await;
        assert_eq!(reply.status, status, "{text}");
        assert_eq!(reply.text().contains("secret-name"), status == 200);
        if status == 403 {
            assert_eq!(reply.problem(), "metrics_closed");
            assert!(reply.text().contains("auth.api_token"), "{}", reply.text());
            let with_token = Request::new("GET", "/metrics").bearer(PUBLISH).send(&gateway).await;
            assert_eq!(with_token.status, 403);
        }
        gateway.stop().await;
    }
}

#[tokio::test]
async fn the_api_is_closed_without_its_token_and_shows_streams_with_it() {
    let closed = gateway(&[]).await;
    let reply = Request::new("GET", "/api/v1/streams").send(&closed).await;
    assert_eq!(reply.status, 401);
    closed.stop().await;

    let gateway = gateway(&[("MILLSTREAM_AUTH__API_TOKEN", "api")]).await;
    for (token, status) in [("wrong", 401), ("api", 200)] {
        let request = Request::new("GET", "/api/v1/streams").header("authorization", &format!("Bearer {token}"));
        assert_eq!(request.send(&gateway).await.status, status, "{token}");
    }
    let get = async |path: &str| {
        Request::new("GET", path)
            .header("authorization", "Bearer api")
            .send(&gateway)
            .await
    };
    assert_eq!(get("/api/v1/streams").await.text(), "[]");
    let missing = get("/api/v1/streams/hall/stage-1").await;
    assert_eq!((missing.status, missing.problem().as_str()), (404, "unknown_stream"));
    make_live(&gateway, "hall/stage-1");
    let reply = get("/api/v1/streams/hall/stage-1").await;
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let stream: serde_json::Value = serde_json::from_str(reply.text()).expect("JSON");
    assert_eq!(stream["live"], true);
    assert_eq!(stream["publisher"], "whip");
    assert_eq!(stream["video"]["codec"], "VP8");
    gateway.stop().await;
}

const OPERATOR: (&str, &str) = ("MILLSTREAM_AUTH__API_TOKEN", "operator");

fn api(method: &str, path: &str) -> Request {
    Request::new(method, &format!("/api/v1/{path}")).bearer("operator")
}

fn json(reply: &crate::http::client::Reply) -> serde_json::Value {
    serde_json::from_slice(&reply.body).expect("JSON")
}

#[tokio::test]
async fn the_api_shows_sessions_and_ends_them() {
    let gateway = gateway(&[OPERATOR]).await;
    make_live(&gateway, "live");
    let agent = "Mozilla/5.0 (OBS-Studio/32.2.2)";
    let publisher = Request::publish("/whip/other", OBS).header("User-Agent", agent);
    let url = publisher.send(&gateway).await.location();
    for _ in 0..4 {
        Request::offer("/whep/live", VIEWER).send(&gateway).await.location();
    }
    let all = json(&api("GET", "sessions").send(&gateway).await);
    let sessions = all["sessions"].as_array().expect("a list");
    assert_eq!((sessions.len(), &all["next"]), (5, &serde_json::Value::Null));
    // The name in a session's URL is a capability, which the API does not hand out.
    assert!(!all.to_string().contains(url.rsplit('/').next().expect("an id")));
    let one = sessions
        .iter()
        .find(|session| session["role"] == "publisher")
        .expect("it");
    assert_eq!(
        (&one["stream"], &one["state"], &one["client"], &one["address"]),
        (
            &"other".into(),
            &"connecting".into(),
            &agent.into(),
            &"127.0.0.1".into()
        )
    );
    // In parts.
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let part = json(
            &api("GET", &format!("sessions?limit=2&stream=live{after}"))
                .send(&gateway)
                .await,
        );
        let ids = part["sessions"].as_array().expect("a list").iter();
        seen.extend(ids.map(|session| session["id"].as_str().expect("an id").to_owned()));
        match part["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 4);
    let path = format!("sessions/{}", one["id"].as_str().expect("an id"));
    assert_eq!(api("DELETE", &path).send(&gateway).await.status, 204);
    let cause = async {
        loop {
            let shown = json(&api("GET", &path).send(&gateway).await);
            if shown["state"] == "ended" {
                return shown["cause"].clone();
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert_eq!(cause.await, "kicked");
    assert_eq!(api("GET", "sessions/0123456789abcdef").send(&gateway).await.status, 404);
    assert_eq!(
        api("DELETE", "sessions/0123456789abcdef").send(&gateway).await.status,
        404
    );
    for path in ["sources/start/none", "sources/stop/none"] {
        let reply = api("POST", path).send(&gateway).await;
        assert_eq!((reply.status, reply.problem().as_str()), (404, "unknown_source"));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn the_api_refuses_queries_paths_and_methods_with_a_problem() {
    let gateway = gateway(&[OPERATOR]).await;
    for (method, path, refused) in [
        ("GET", "sessions?limit=x", (400, "bad_query")),
        ("GET", "sessions?limit=0", (400, "bad_query")),
        ("GET", "sessions?limit=1001", (400, "bad_query")),
        ("POST", "sources/start/live?source=a&source=b", (400, "bad_query")),
        ("GET", "sessions/%ff", (400, "bad_path")),
        ("DELETE", "streams/live/snapshot.jpg", (405, "method_not_allowed")),
        ("PUT", "streams/live/snapshot.png", (405, "method_not_allowed")),
        ("PATCH", "streams/live/source", (405, "method_not_allowed")),
        ("TRACE", "streams/live/snapshot.png", (405, "method_not_allowed")),
        ("PATCH", "sessions", (405, "method_not_allowed")),
        ("DELETE", "openapi.json", (405, "method_not_allowed")),
    ] {
        let reply = api(method, path).send(&gateway).await;
        assert_eq!((reply.status, reply.problem().as_str()), refused, "{method} {path}");
        let methods = if path.ends_with("/source") { "PUT" } else { "GET,HEAD" };
        let shown = reply.header("allow").map(|methods| methods.replace(' ', ""));
        assert_eq!(
            shown.as_deref(),
            (reply.status == 405).then_some(methods),
            "{method} {path}"
        );
    }
    gateway.stop().await;
}

#[tokio::test]
async fn the_api_describes_itself_and_everything_else_needs_the_token() {
    let gateway = gateway(&[OPERATOR]).await;
    let described = Request::new("GET", "/api/v1/openapi.json").send(&gateway).await;
    assert_eq!(described.status, 200);
    let described = json(&described);
    let paths = described["paths"].as_object().expect("paths");
    assert!(paths.len() >= 9, "{:?}", paths.keys());
    for (path, methods) in paths {
        for method in methods.as_object().expect("methods").keys() {
            let path = path.replace("{stream}", "live").replace("{id}", "0123456789abcdef");
            let reply = Request::new(&method.to_uppercase(), &path).send(&gateway).await;
            let expected = if path.ends_with("openapi.json") { 200 } else { 401 };
            assert_eq!(reply.status, expected, "{method} {path}");
        }
    }
    assert!(described["components"]["schemas"]["Session"]["properties"]["cause"].is_object());
    let pages = &described["paths"]["/api/v1/sessions"]["get"];
    assert_eq!(pages["security"], serde_json::json!([{ "token": [] }]));
    assert_eq!(pages["responses"]["default"]["$ref"], "#/components/responses/Problem");
    assert_eq!(pages["parameters"][0]["in"], "query");
    let change = &described["paths"]["/api/v1/streams/{stream}"]["put"];
    let refused = &change["responses"]["422"]["content"]["application/problem+json"]["schema"]["$ref"];
    assert_eq!(refused, "#/components/schemas/ProblemDocument");
    assert!(change["parameters"][0]["schema"]["pattern"].is_string(), "{change}");
    gateway.stop().await;
}

#[tokio::test]
async fn the_api_asks_for_a_reload_and_says_what_became_of_it() {
    let mut gateway = gateway(&[OPERATOR, ("MILLSTREAM_AUTH__PLAY_TOKEN", "old")]).await;
    make_live(&gateway, "live");
    let watching = Request::offer("/whep/live", VIEWER).bearer("old").send(&gateway).await;
    watching.location();
    let mut requests = gateway.take_reload_request_receiver().expect("given once");
    let address = gateway.http_address();
    let asked = tokio::spawn(async move {
        let request = b"POST /api/v1/reload HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer operator\r\n\
                        Content-Length: 0\r\nConnection: close\r\n\r\n";
        crate::http::client::Reply::parse(&crate::http::client::raw(address, request).await).expect("a reply")
    });
    let answer = requests.recv().await.expect("asked");
    let environment = [
        ("MILLSTREAM_AUTH__PUBLISH_TOKEN", PUBLISH),
        ("MILLSTREAM_AUTH__API_TOKEN", "operator"),
        ("MILLSTREAM_AUTH__PLAY_TOKEN", "new"),
        ("MILLSTREAM_WEBRTC__SHARDS", "7"),
    ];
    let environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let config = millstream::Config::parse("", "test.toml".as_ref(), environment).expect("valid");
    let reloaded = gateway.replace_config(config).await.expect("valid");
    assert_eq!(reloaded.sessions_ended, 1, "the viewer's token is no longer in force");
    answer.send(Ok(reloaded)).expect("awaited");
    let report = json(&asked.await.expect("runs"));
    assert!(
        report["changed"]
            .as_array()
            .expect("a list")
            .contains(&"auth.play_token".into()),
        "{report}"
    );
    assert!(
        report["needs_restart"]
            .as_array()
            .expect("a list")
            .contains(&"webrtc.shards".into()),
        "{report}"
    );
    let again = |token| Request::offer("/whep/live", VIEWER).bearer(token);
    assert_eq!(again("old").send(&gateway).await.status, 401);
    assert_eq!(again("new").send(&gateway).await.status, 201);
    gateway.stop().await;
}

/// Metrics that the dashboard asks for are metrics that there are.
#[tokio::test]
async fn the_dashboard_of_grafana_shows_metrics_that_exist() {
    let gateway = gateway(&[]).await;
    let page = Request::new("GET", "/metrics").send(&gateway).await;
    let known: Vec<&str> = page
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../deploy/grafana-dashboard.json")).expect("JSON");
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for name in words.filter(|word| word.starts_with("millstream_") || word.starts_with("process_")) {
                let suffixes = ["_bucket", "_sum", "_count"];
                let family = suffixes
                    .iter()
                    .find_map(|suffix| name.strip_suffix(suffix))
                    .unwrap_or(name);
                assert!(known.contains(&family), "{family} in {known:?}");
                asked += 1;
            }
        }
    }
    assert!(asked > 20, "{asked}");
    gateway.stop().await;
}

/// Former names are in the page too.
#[tokio::test]
async fn the_page_about_monitoring_lists_every_metric() {
    let gateway = gateway(&[]).await;
    let metrics = Request::new("GET", "/metrics").send(&gateway).await;
    gateway.stop().await;
    let page = include_str!("../../../docs/monitoring.md");
    let mut checked = 0;
    for family in metrics.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = family.split(' ').next().expect("a name");
        // In a row of several, the part that they have in common stands once.
        let is_listed = page.lines().any(|row| {
            let mut named = row.split('`').skip(1).step_by(2);
            let first = named.next().unwrap_or_default();
            first == name || named.any(|other| other == name || continues(first, other, name))
        });
        assert!(is_listed, "{name} is not in docs/monitoring.md");
        checked += 1;
    }
    assert!(checked > 60, "{checked}");
}

/// Whether `suffix` stands for `name` behind a name that begins like it.
fn continues(first: &str, suffix: &str, name: &str) -> bool {
    let common = suffix.starts_with('_').then(|| name.strip_suffix(suffix)).flatten();
    common.is_some_and(|common| !common.is_empty() && first.starts_with(common))
}

#[test]
fn examples_of_configurations_are_valid() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");
    let mut checked = 0;
    for entry in std::fs::read_dir(root).expect("docs/") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("text");
        for example in text
            .split("```toml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
        {
            let parsed = millstream::Config::parse(example, "millstream.toml".as_ref(), []);
            assert!(
                parsed.is_ok(),
                "{}: {}\n{example}",
                path.display(),
                parsed.expect_err("a mistake")
            );
            checked += 1;
        }
    }
    assert!(checked > 5, "{checked}");
}

#[test]
fn what_is_deployed_is_a_valid_configuration() {
    let text = include_str!("../../../deploy/millstream.toml");
    millstream::Config::parse(text, "millstream.toml".as_ref(), []).expect("valid");
    // With everything in it that is commented out.
    let all: Vec<&str> = text
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|line| line.contains(" = ") || line.starts_with('['))
                .unwrap_or(line)
        })
        .collect();
    let all = all.join("\n").replace("token = \"\"", "token = \"a\"");
    millstream::Config::parse(&all, "millstream.toml".as_ref(), []).expect("valid");
}

#[test]
fn the_page_about_the_api_lists_every_cause() {
    let page = include_str!("../../../docs/api.md");
    for reason in millstream_core::session::CloseReason::ALL {
        assert!(
            page.contains(&format!("| `{}` |", reason.label())),
            "{}",
            reason.label()
        );
    }
}
