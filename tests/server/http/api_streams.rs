//! Streams that are set through the API, and the state file that keeps them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream::config::Secret;
use millstream::{Config, Gateway};
use serde_json::{Value, json};

use crate::http::client::{PUBLISH, Reply, Request, VIEWER, hurry};

/// A folder of one test, with its state file.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("api-streams-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    fn state_file(&self) -> PathBuf {
        self.0.join("state.toml")
    }

    fn config(&self, text: &str) -> Config {
        let state_file = self.state_file();
        let settings = [
            ("MILLSTREAM_HTTP__LISTEN", "127.0.0.1:0"),
            ("MILLSTREAM_WEBRTC__LISTEN", "127.0.0.1:0"),
            ("MILLSTREAM_WEBRTC__SHARDS", "1"),
            ("MILLSTREAM_AUTH__PUBLISH_TOKEN", PUBLISH),
            ("MILLSTREAM_AUTH__API_TOKEN", "operator"),
            ("MILLSTREAM_PIPELINES__TRANSCODE", "false"),
            ("MILLSTREAM_LIMITS__REQUESTS_PER_SECOND", "0"),
            ("MILLSTREAM_API__STATE_FILE", state_file.to_str().expect("UTF-8")),
        ];
        let environment = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::parse(text, Path::new("test.toml"), environment).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(super) async fn gateway(&self, text: &str) -> Gateway {
        Gateway::start(self.config(text)).await.expect("starts")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn request(method: &str, stream: &str) -> Request {
    Request::new(method, &format!("/api/v1/streams/{stream}")).bearer("operator")
}

pub(super) fn with_settings(method: &str, stream: &str, settings: &Value) -> Request {
    request(method, stream)
        .header("Content-Type", "application/json")
        .body(settings.to_string())
}

pub(super) async fn set(gateway: &Gateway, stream: &str, settings: &Value) -> Reply {
    with_settings("PUT", stream, settings).send(gateway).await
}

pub(super) fn json_of(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).expect("JSON")
}

/// A camera that nobody needs: its source does not run.
fn idle_camera() -> Value {
    json!({ "rtsp": "rtsp://admin:s3cret@192.0.2.7:554/s3cret", "on_demand": true })
}

fn configured_names(gateway: &Gateway) -> Vec<String> {
    let sources = gateway.source_registry().all();
    sources.iter().map(|source| source.stream.to_string()).collect()
}

#[tokio::test]
async fn a_stream_is_set_shown_changed_and_removed() {
    let folder = Folder::new("life");
    let gateway = folder.gateway("").await;
    let added = set(&gateway, "hall/door", &idle_camera()).await;
    assert_eq!(added.status, 201, "{}", added.text());
    assert_eq!(added.header("location"), Some("/api/v1/streams/hall/door"));
    let tag = added.header("etag").expect("a tag").to_owned();
    let shown = json_of(&request("GET", "hall/door").send(&gateway).await);
    assert_eq!(shown["source"]["kind"], "rtsp");
    assert_eq!(
        shown["settings"],
        json!({ "rtsp": "rtsp://192.0.2.7:554/..", "on_demand": true })
    );
    // The same once more changes nothing.
    let same = set(&gateway, "hall/door", &idle_camera()).await;
    assert_eq!((same.status, same.header("etag")), (200, Some(tag.as_str())));
    // Some settings, without naming the URL again.
    let patched = request("PATCH", "hall/door")
        .header("Content-Type", "application/merge-patch+json")
        .header("If-Match", &tag)
        .body(json!({ "stop_after": 7 }).to_string())
        .send(&gateway)
        .await;
    assert_eq!(patched.status, 200, "{}", patched.text());
    assert_eq!(json_of(&patched)["settings"]["stop_after"], 7);
    assert_ne!(patched.header("etag"), Some(tag.as_str()));
    // Somebody else still has the old settings.
    for stale in [
        with_settings("PUT", "hall/door", &idle_camera()),
        with_settings("PATCH", "hall/door", &json!({})),
        request("DELETE", "hall/door"),
    ] {
        let reply = stale.header("If-Match", &tag).send(&gateway).await;
        assert_eq!((reply.status, reply.problem().as_str()), (412, "precondition_failed"));
    }
    let add_only = with_settings("PUT", "hall/door", &idle_camera()).header("If-None-Match", "*");
    assert_eq!(add_only.send(&gateway).await.status, 412);
    let added_again = with_settings("POST", "hall/door", &idle_camera()).send(&gateway).await;
    assert_eq!(
        (added_again.status, added_again.problem().as_str()),
        (409, "stream_exists")
    );
    assert_eq!(request("DELETE", "hall/door").send(&gateway).await.status, 204);
    assert!(configured_names(&gateway).is_empty());
    for gone in [
        request("GET", "hall/door"),
        request("DELETE", "hall/door"),
        with_settings("PATCH", "hall/door", &json!({})),
    ] {
        let reply = gone.send(&gateway).await;
        assert_eq!((reply.status, reply.problem().as_str()), (404, "unknown_stream"));
    }
    assert_eq!(
        with_settings("POST", "hall/door", &idle_camera())
            .send(&gateway)
            .await
            .status,
        201
    );
    gateway.stop().await;
}

#[tokio::test]
async fn settings_with_mistakes_are_refused_with_their_places_and_without_secrets() {
    let folder = Folder::new("mistakes");
    let gateway = folder.gateway("").await;
    for (settings, pointer, text) in [
        (
            json!({ "rtsp": "http://a:s3cret@b/" }),
            "/rtsp",
            "the URL does not start with rtsp://",
        ),
        (json!({ "rtsp": 7 }), "/rtsp", "has an invalid value: expected a string"),
        (
            json!({ "rtsp": ["rtsp://b/1", "rtsp://b/2"] }),
            "/rtsp",
            "can be a list only in the configuration file",
        ),
        (json!({ "rtps": "rtsp://b/" }), "/rtps", "(did you mean `rtsp`?)"),
        (
            json!({ "on_demand": true }),
            "",
            "has no source: set `rtsp`, `hls` or `pipeline`",
        ),
        (
            json!({ "rtsp": "rtsp://b/", "transport": "tpc" }),
            "/transport",
            "is \"tpc\": expected \"tcp\" or \"udp\" (did you mean \"tcp\"?)",
        ),
        (
            json!({ "rtsp": "rtsp://b/", "quirks": { "teardwn": "auto" } }),
            "/quirks/teardwn",
            "did you mean",
        ),
        (json!({ "pipeline": "stt" }), "/pipeline", "(did you mean \"srt\"?)"),
        (
            json!({ "pipeline": "srt", "params": { "uri": "srt://b:1", "latncy": 3 } }),
            "/params/latncy",
            "unknown key",
        ),
        (
            json!({ "hls": "https://b/", "headers": { "a/b c": "s3cret" } }),
            "/headers/a~1b c",
            "is not an HTTP header",
        ),
        (
            json!({ "rtsp": "rtsp://b/", "username": "a", "password_file": "/etc/shadow" }),
            "/password_file",
            "cannot be set through the API",
        ),
        (json!({ "rtsp": null }), "/rtsp", "is null"),
    ] {
        let reply = set(&gateway, "door", &settings).await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (422, "bad_stream"),
            "{settings}"
        );
        let problem = json_of(&reply);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
        for shown in [&problem["detail"], &problem["errors"][0]["detail"]] {
            assert!(
                shown.as_str().is_some_and(|shown| shown.contains(text)),
                "{text} in {problem}"
            );
        }
        assert!(!reply.text().contains("s3cret"), "{problem}");
    }
    assert!(configured_names(&gateway).is_empty());
    assert!(!folder.state_file().exists(), "nothing was set");
    gateway.stop().await;
}

/// What can be added can be read, replaced and removed at the same path.
#[tokio::test]
async fn a_name_that_the_api_reads_as_another_resource_is_refused() {
    let folder = Folder::new("names");
    let gateway = folder.gateway("").await;
    for (method, name) in [
        ("POST", "door/source"),
        ("POST", "door/snapshot.jpg"),
        ("PUT", "a/b/snapshot.png"),
        ("PUT", "door/data"),
        ("DELETE", "door/data"),
    ] {
        let reply = with_settings(method, name, &idle_camera()).send(&gateway).await;
        let refused = (reply.status, reply.problem());
        assert_eq!(refused, (405, "method_not_allowed".to_owned()), "{method} {name}");
    }
    for name in ["source", "door-source", "door/sources", "snapshot.jpg"] {
        assert_eq!(set(&gateway, name, &idle_camera()).await.status, 201, "{name}");
        assert_eq!(json_of(&request("GET", name).send(&gateway).await)["name"], name);
        assert_eq!(set(&gateway, name, &idle_camera()).await.status, 200, "{name}");
        assert_eq!(request("DELETE", name).send(&gateway).await.status, 204, "{name}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn requests_that_are_no_settings_are_refused() {
    let folder = Folder::new("requests");
    let gateway = folder.gateway("").await;
    let body = |text: &str| {
        request("PUT", "door")
            .header("Content-Type", "application/json")
            .body(text)
    };
    for (refused, status, code) in [
        (body("[]"), 400, "bad_json"),
        (body("{"), 400, "bad_json"),
        (
            body(&format!("{{\"rtsp\": \"{}\"}}", "a".repeat(70_000))),
            413,
            "body_too_large",
        ),
        (request("PUT", "door").body("{}"), 415, "unsupported_media_type"),
        (with_settings("PUT", "a//b", &idle_camera()), 404, "bad_stream_name"),
    ] {
        let reply = refused.send(&gateway).await;
        assert_eq!((reply.status, reply.problem().as_str()), (status, code));
    }
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let reply = Request::new(method, "/api/v1/streams/door")
            .bearer(PUBLISH)
            .send(&gateway)
            .await;
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (403, "insufficient_scope"),
            "{method}"
        );
    }
    assert!(configured_names(&gateway).is_empty());
    assert!(!folder.state_file().exists(), "nothing was set");
    gateway.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_streams_and_a_reload_does_not_touch_them() {
    let folder = Folder::new("restart");
    let text = "[streams.\"own\"]\nrtsp = \"rtsp://192.0.2.8/\"\non_demand = true\n";
    let mut gateway = folder.gateway(text).await;
    assert_eq!(set(&gateway, "door", &idle_camera()).await.status, 201);
    assert_eq!(
        set(&gateway, "gate", &json!({ "pipeline": "test", "on_demand": true }))
            .await
            .status,
        201
    );
    let own = set(&gateway, "own", &idle_camera()).await;
    assert_eq!((own.status, own.problem().as_str()), (409, "in_configuration_file"));
    let own = request("DELETE", "own").send(&gateway).await;
    assert_eq!((own.status, own.problem().as_str()), (409, "in_configuration_file"));
    let mode = fs::metadata(folder.state_file()).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds a password");
    gateway.stop().await;

    gateway = folder.gateway(text).await;
    assert_eq!(configured_names(&gateway), ["door", "gate", "own"]);
    // The file of the operator gets a stream of the same name, which takes precedence until it is removed again.
    let both = format!("{text}[streams.\"door\"]\npipeline = \"test\"\non_demand = true\n");
    let reloaded = gateway.replace_config(folder.config(&both)).await.expect("valid");
    assert_eq!(
        (reloaded.restarted, reloaded.stopped.len()),
        (vec!["door".to_owned()], 0)
    );
    let kind = |gateway: &Gateway| {
        let sources = gateway.source_registry().all();
        sources
            .iter()
            .find(|source| source.stream.name.as_str() == "door")
            .map(|source| source.source_kind)
    };
    assert_eq!(kind(&gateway), Some("pipeline"));
    assert_eq!(set(&gateway, "door", &idle_camera()).await.status, 409);
    gateway.replace_config(folder.config(text)).await.expect("valid");
    assert_eq!(kind(&gateway), Some("rtsp"));
    let unchanged = gateway.replace_config(folder.config(text)).await.expect("valid");
    assert_eq!(unchanged, millstream::control::reload::Reloaded::default());
    gateway.stop().await;
}

#[tokio::test]
async fn a_state_file_with_mistakes_is_named_at_the_start_and_left_as_it_is() {
    let folder = Folder::new("broken");
    for (text, expected) in [
        ("[streams.\"door\"]\nrtsp = \"rts", ", line 2, column "),
        (
            "[streams.\"door\"]\nrtsp = 1\n",
            ", line 2, column 8: `streams.door.rtsp` has an invalid value",
        ),
    ] {
        fs::write(folder.state_file(), text).expect("written");
        let error = Gateway::start(folder.config(""))
            .await
            .err()
            .expect("a mistake")
            .to_string();
        let expected = format!("{}{expected}", folder.state_file().display());
        assert!(error.starts_with(&expected), "{error}");
        assert_eq!(fs::read_to_string(folder.state_file()).expect("there"), text);
        let found =
            millstream::gateway::config_check::find_source_credential_certificate_mistakes(&folder.config(""), &[]);
        assert_eq!(found.len(), 1, "`millstream check` names it too");
    }
}

/// The file may have a stream as a list of publishers, or of sources that run for another list.
#[tokio::test]
async fn a_list_of_sources_in_the_file_takes_precedence_too() {
    let folder = Folder::new("lists");
    let slate = "{ pipeline = \"slate\", standby = \"cold\" }";
    let text = format!(
        "[streams.\"first\"]\nsources = [{{ whip = \"main\" }}, {slate}]\n\
         [streams.\"show\"]\nsources = [{{ whip = \"main\" }}, {{ whip = \"backup\" }}]\n\
         [streams.\"zebra\"]\nsources = [{{ whip = \"main\" }}, {slate}]\n"
    );
    let mut gateway = folder.gateway(&text).await;
    for name in ["first", "show", "zebra"] {
        for change in [
            with_settings("PUT", name, &idle_camera()),
            with_settings("POST", name, &idle_camera()),
            with_settings("PATCH", name, &json!({})),
            request("DELETE", name),
        ] {
            let reply = change.send(&gateway).await;
            let refused = (reply.status, reply.problem());
            assert_eq!(refused, (409, "in_configuration_file".to_owned()), "{name} {change:?}");
        }
        let shown = json_of(&request("GET", name).send(&gateway).await);
        assert_eq!(shown["settings"], Value::Null);
    }
    // One that was set before the file had the list does not run beside it.
    gateway.replace_config(folder.config("")).await.expect("valid");
    assert_eq!(set(&gateway, "show", &idle_camera()).await.status, 201);
    gateway.replace_config(folder.config(&text)).await.expect("valid");
    assert!(
        !configured_names(&gateway).contains(&"show".to_owned()),
        "{:?}",
        configured_names(&gateway)
    );
    gateway.stop().await;
}

async fn source_of(gateway: &Gateway, stream: &str, token: &str) -> Value {
    let shown = Request::new("GET", &format!("/api/v1/streams/{stream}")).bearer(token);
    json_of(&shown.send(gateway).await)["source"].clone()
}

async fn until_source_state(gateway: &Gateway, stream: &str, wanted: &str) {
    let reached = async {
        while source_of(gateway, stream, "operator").await["state"] != wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let reached = hurry(tokio::time::timeout(Duration::from_secs(600), reached)).await;
    assert!(reached.is_ok(), "{}", source_of(gateway, stream, "operator").await);
}

/// A file that was deleted, or a pipeline that is gone: whoever may set streams must not be able to keep a token valid.
#[tokio::test]
async fn a_stream_that_cannot_be_built_holds_up_neither_revocation_nor_start() {
    let folder = Folder::new("unbuildable");
    let (clip, pipelines) = (folder.0.join("clip.mp4"), folder.0.join("pipelines"));
    fs::write(&clip, "no video").expect("written");
    fs::create_dir(&pipelines).expect("a folder");
    let own = "description = \"Own\"\nlaunch = \"videotestsrc ! appsink name=video\"\n";
    fs::write(pipelines.join("own.toml"), own).expect("written");
    let files = format!("[api]\nfiles = [\"{}\"]\n", folder.0.display());
    let with_pipelines = format!("{files}[pipelines]\nfolder = \"{}\"\n", pipelines.display());
    let mut gateway = folder.gateway(&with_pipelines).await;
    let from_file = json!({ "pipeline": "file", "params": { "path": clip }, "on_demand": true });
    assert_eq!(set(&gateway, "clip", &from_file).await.status, 201);
    let of_operator = json!({ "pipeline": "own", "on_demand": true });
    assert_eq!(set(&gateway, "own", &of_operator).await.status, 201);
    assert_eq!(set(&gateway, "door", &idle_camera()).await.status, 201);
    fs::remove_file(&clip).expect("removed");

    let mut rotated = folder.config(&files);
    rotated.auth.api_token = Secret::new("rotated");
    let reloaded = gateway
        .replace_config(rotated)
        .await
        .expect("no mistake of the configuration");
    assert_eq!(reloaded.failed, ["clip", "own"]);
    assert_eq!(request("GET", "clip").send(&gateway).await.status, 401, "revoked");
    for (stream, cause) in [
        ("clip", "`streams.clip.params.path`: there is no such file or device"),
        ("own", "`streams.own.pipeline` names the unknown pipeline \"own\""),
    ] {
        let source = source_of(&gateway, stream, "rotated").await;
        let last_error = source["last_error"].as_str().unwrap_or_default();
        assert_eq!(source["state"], "failed", "{source}");
        assert!(last_error.starts_with(cause), "{source}");
    }
    assert_eq!(
        source_of(&gateway, "door", "rotated").await["state"],
        "idle",
        "the others run"
    );
    gateway.stop().await;

    // `millstream check` does not refuse it either.
    let found =
        millstream::gateway::config_check::find_source_credential_certificate_mistakes(&folder.config(&files), &[]);
    assert!(found.is_empty(), "{found:?}");
    let gateway = folder.gateway(&files).await;
    assert_eq!(configured_names(&gateway), ["clip", "door", "own"]);
    let viewer = Request::offer("/whep/clip", VIEWER).send(&gateway).await;
    assert_eq!((viewer.status, viewer.problem().as_str()), (409, "source_away"));
    // It is tried again by itself.
    fs::write(&clip, "no video").expect("written");
    until_source_state(&gateway, "clip", "idle").await;
    assert_eq!(source_of(&gateway, "own", "operator").await["state"], "failed");
    assert_eq!(request("DELETE", "own").send(&gateway).await.status, 204);
    assert_eq!(configured_names(&gateway), ["clip", "door"]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_state_file_that_cannot_be_written_refuses_the_change() {
    let folder = Folder::new("unwritable");
    let gateway = folder.gateway("").await;
    fs::create_dir(folder.state_file()).expect("a folder in its place");
    let reply = set(&gateway, "door", &idle_camera()).await;
    assert_eq!(
        (reply.status, reply.problem().as_str()),
        (503, "state_file_not_written")
    );
    assert!(configured_names(&gateway).is_empty());
    fs::remove_dir(folder.state_file()).expect("removed");
    assert_eq!(set(&gateway, "door", &idle_camera()).await.status, 201);
    fs::remove_file(folder.state_file()).expect("removed");
    fs::create_dir(folder.state_file()).expect("a folder in its place");
    let reply = request("DELETE", "door").send(&gateway).await;
    assert_eq!(
        (reply.status, reply.problem().as_str()),
        (503, "state_file_not_written")
    );
    assert_eq!(configured_names(&gateway), ["door"]);
    gateway.stop().await;
}

/// Everything that is kept of a stream is gone with it.
#[tokio::test]
async fn a_thousand_streams_come_and_go() {
    let folder = Folder::new("thousand");
    let gateway = folder.gateway("").await;
    assert_eq!(set(&gateway, "first", &idle_camera()).await.status, 201);
    let page = async |gateway: &Gateway| {
        let reply = Request::new("GET", "/metrics").bearer("operator").send(gateway).await;
        reply
            .text()
            .lines()
            .filter(|line| line.starts_with("millstream_source"))
            .count()
    };
    let before = (page(&gateway).await, fs::read(folder.state_file()).expect("written"));
    for n in 0..999 {
        assert_eq!(
            set(&gateway, &format!("many/{n}"), &idle_camera()).await.status,
            201,
            "{n}"
        );
    }
    let full = set(&gateway, "one-more", &idle_camera()).await;
    assert_eq!((full.status, full.problem().as_str()), (409, "too_many_streams"));
    assert_eq!(configured_names(&gateway).len(), 1_000);
    assert!(page(&gateway).await > before.0 + 999);
    for n in 0..999 {
        assert_eq!(
            request("DELETE", &format!("many/{n}")).send(&gateway).await.status,
            204,
            "{n}"
        );
    }
    assert_eq!(configured_names(&gateway), ["first"]);
    assert!(gateway.media_plane().hub().streams().is_empty());
    let after = (page(&gateway).await, fs::read(folder.state_file()).expect("written"));
    assert_eq!(before, after);
    gateway.stop().await;
}

/// Two clients that change the same stream at the same time: one of them has to read it again.
#[tokio::test]
async fn of_concurrent_changes_with_the_same_condition_one_is_made() {
    let folder = Folder::new("concurrent");
    let gateway = folder.gateway("").await;
    let tag = set(&gateway, "door", &idle_camera())
        .await
        .header("etag")
        .expect("a tag")
        .to_owned();
    let change = |n: u64| {
        let mut settings = idle_camera();
        settings["stop_after"] = n.into();
        with_settings("PUT", "door", &settings).header("If-Match", &tag)
    };
    let requests: Vec<Request> = (1..9).map(change).collect();
    let replies = futures_util::future::join_all(requests.iter().map(|request| request.send(&gateway))).await;
    let made = replies.iter().filter(|reply| reply.status == 200).count();
    let refused = replies.iter().filter(|reply| reply.status == 412).count();
    assert_eq!((made, refused), (1, 7));
    gateway.stop().await;
}
