//! What streams of the API may use of the host: files, devices and ports.

use std::fs;
use std::path::{Path, PathBuf};

use millstream::Gateway;
use serde_json::{Value, json};

use crate::http::client::{Reply, Request, from_text};

/// A folder of one test: `media/in.mp4`, `outside.mp4`, and `media/out.mp4`, a link to the latter.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("host-access-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("media")).expect("a folder");
        let folder = Self(folder);
        for file in ["media/in.mp4", "outside.mp4"] {
            fs::write(folder.path(file), "").expect("written");
        }
        for (target, link) in [("outside.mp4", "media/out.mp4"), ("nothing.mp4", "media/dangling.mp4")] {
            std::os::unix::fs::symlink(folder.path(target), folder.path(link)).expect("a link");
        }
        folder
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Starts a gateway with these lines of the section `api`, and a stream of the configuration file that plays
    /// `outside.mp4`.
    async fn gateway(&self, lines: &str) -> Gateway {
        let (state, outside) = (self.path("state.toml"), self.path("outside.mp4"));
        from_text(&format!(
            "[auth]\napi_token = \"operator\"\n[api]\nstate_file = \"{state}\"\n{lines}\n\
             [streams.own]\npipeline = \"file\"\nparams = {{ path = \"{outside}\" }}\non_demand = true\n"
        ))
        .await
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn send(gateway: &Gateway, method: &str, path: &str, settings: &Value) -> Reply {
    let request = Request::new(method, path).bearer("operator");
    let request = request.header("Content-Type", "application/json");
    request.body(settings.to_string()).send(gateway).await
}

async fn set(gateway: &Gateway, settings: &Value) -> Reply {
    send(gateway, "PUT", "/api/v1/streams/x", settings).await
}

/// Has the settings refused by `PUT` and by a test. Returns pointer and text of each mistake of the first.
async fn refusal(gateway: &Gateway, settings: &Value) -> Vec<(String, String)> {
    let test = send(gateway, "POST", "/api/v1/sources/test", settings).await;
    let put = set(gateway, settings).await;
    let mistakes = [test, put].map(|reply| {
        assert_eq!(
            (reply.status, reply.problem().as_str()),
            (422, "bad_stream"),
            "{settings}"
        );
        let problem: Value = serde_json::from_slice(&reply.body).expect("JSON");
        let errors = problem["errors"].as_array().expect("a list").clone();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let pairs = errors
            .iter()
            .map(|error| (text(&error["pointer"]), text(&error["detail"])));
        pairs.collect::<Vec<_>>()
    });
    let [tested, put] = mistakes;
    let pointers =
        |mistakes: &[(String, String)]| mistakes.iter().map(|(pointer, _)| pointer.clone()).collect::<Vec<_>>();
    assert_eq!(pointers(&tested), pointers(&put));
    put
}

fn file(path: &str) -> Value {
    json!({ "pipeline": "file", "params": { "path": path }, "on_demand": true })
}

const NOT_PERMITTED: &str = "`streams.x.params.path`: this file or device is not permitted through the API: add it, or \
                             a folder that it is in, to `api.files` in the configuration file, or configure the \
                             stream there";
const NOT_FOUND: &str = "`streams.x.params.path`: there is no such file or device, or its path leads through a \
                         symbolic link to a place outside of the folders in `api.files`";

#[tokio::test]
async fn without_permission_the_api_says_the_same_of_files_that_exist_and_that_do_not() {
    let folder = Folder::new("none");
    let gateway = folder.gateway("").await;
    let refused = vec![("/params/path".to_owned(), NOT_PERMITTED.to_owned())];
    for path in [
        folder.path("media/in.mp4"),
        folder.path("nothing.mp4"),
        "/proc/self/comm".to_owned(),
    ] {
        assert_eq!(refusal(&gateway, &file(&path)).await, refused);
        // A second mistake makes no difference between them either.
        let mut settings = file(&path);
        settings["params"]["x"] = json!(1);
        assert_eq!(refusal(&gateway, &settings).await, refused);
    }
    let default_camera = refusal(&gateway, &json!({ "pipeline": "v4l2", "on_demand": true })).await;
    assert_eq!(default_camera[0].0, "/params/device");
    assert!(!Path::new(&folder.path("state.toml")).exists(), "nothing was set");
    assert_eq!(
        gateway.source_registry().all().len(),
        1,
        "that of the configuration file"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_permitted_folder_is_not_left_by_links_or_dots() {
    let folder = Folder::new("folder");
    let gateway = folder
        .gateway(&format!("files = [\"{}/\"]", folder.path("media")))
        .await;
    let added = set(&gateway, &file(&folder.path("media/in.mp4"))).await;
    assert_eq!(added.status, 201, "{}", added.text());
    for name in ["media/out.mp4", "media/dangling.mp4", "media/nothing.mp4"] {
        let refused = refusal(&gateway, &file(&folder.path(name))).await;
        assert_eq!(refused, [("/params/path".to_owned(), NOT_FOUND.to_owned())], "{name}");
    }
    for name in ["outside.mp4", "media/../outside.mp4", "media2/in.mp4"] {
        let refused = refusal(&gateway, &file(&folder.path(name))).await;
        assert_eq!(
            refused,
            [("/params/path".to_owned(), NOT_PERMITTED.to_owned())],
            "{name}"
        );
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_listener_of_the_api_needs_a_permission() {
    let folder = Folder::new("listener");
    let listener = json!({ "pipeline": "srt-listen", "params": { "port": 9 }, "on_demand": true });
    let by_mode = json!({ "pipeline": "srt", "params": { "uri": "srt://0.0.0.0:9?mode=listener" }, "on_demand": true });
    let gateway = folder.gateway("").await;
    for (settings, pointer) in [(&listener, "/pipeline"), (&by_mode, "/params/uri")] {
        let refused = refusal(&gateway, settings).await;
        assert_eq!(refused[0].0, pointer);
        assert!(refused[0].1.contains("`api.listeners = true`"), "{refused:?}");
    }
    gateway.stop().await;
    let gateway = folder.gateway("listeners = true").await;
    for settings in [&listener, &by_mode] {
        let added = set(&gateway, settings).await;
        assert!([200, 201].contains(&added.status), "{}", added.text());
    }
    gateway.stop().await;
}
