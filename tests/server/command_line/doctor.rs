//! `doctor`, and what is missing on the host.

use super::*;

#[test]
fn the_doctor_says_what_is_well_and_what_is_not() {
    let mut command = program(&["doctor"]);
    command.env("MILLSTREAM_WEBRTC__ANNOUNCE", "203.0.113.7");
    let output = run(&mut command);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    for wanted in [
        "ok    http.listen",
        "ok    webrtc.listen",
        "ok    announced addresses: 203.0.113.7",
        "pipeline test: ready",
    ] {
        assert!(said.contains(wanted), "{wanted} in {said}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let mut command = program(&["doctor"]);
    command
        .env("MILLSTREAM_HTTP__LISTEN", &address)
        .env("MILLSTREAM_HTTP__TLS_KEY", "/nonexistent");
    let output = run(&mut command);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("FAIL  http.listen: cannot be bound: TCP {address}: ")),
        "{said}"
    );
    assert!(
        said.contains("-> stop that process, or choose another port") && said.contains("must be set together"),
        "{said}"
    );
}

/// All plugins of this machine but one, in a folder that is gone in the end.
struct Plugins(std::path::PathBuf);

impl Plugins {
    fn without(missing: &str) -> Self {
        let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("plugins-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let found = Command::new("pkg-config")
            .args(["--variable=pluginsdir", "gstreamer-1.0"])
            .output()
            .expect("pkg-config starts");
        let mut left_out = 0;
        for plugin in std::fs::read_dir(text(&found.stdout).trim()).expect("plugins") {
            let plugin = plugin.expect("an entry").path();
            let name = plugin.file_name().expect("a name").to_string_lossy().into_owned();
            if name.contains(missing) {
                left_out += 1;
            } else if name.ends_with(".so") {
                std::os::unix::fs::symlink(&plugin, folder.join(name)).expect("a link");
            }
        }
        assert_eq!(left_out, 1, "{missing}");
        Self(folder)
    }
}

impl Drop for Plugins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_missing_plugin_is_named_with_the_command_that_brings_it() {
    let plugins = Plugins::without("x264");
    let remedy = "GStreamer elements not installed: x264enc; install the missing Debian packages with: apt-get install gstreamer1.0-plugins-ugly";
    for suffix in ["", "_1_0"] {
        let mut command = program(&["check"]);
        command.env(format!("GST_PLUGIN_SYSTEM_PATH{suffix}"), &plugins.0).env(
            format!("GST_REGISTRY{suffix}"),
            plugins.0.join(format!("registry{suffix}")),
        );
        let output = run(&mut command);
        let said = text(&output.stdout);
        assert!(said.contains(&format!("pipeline test: {remedy}")), "{said}");
        assert!(said.contains("pipeline rtsp: ready"), "{said}");
    }
}
