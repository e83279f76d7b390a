//! What `millstream check` prints for typical mistakes in a configuration.
//!
//! `tests/data/mistakes/NAME.toml` is a configuration with a mistake, `NAME.txt` is the whole output. Comments such as
//! `# MILLSTREAM_LOG__LEVEL=debug` set environment variables. `GOLDEN=write cargo test --test command_line mistakes`
//! writes the outputs; read each as an operator would before it is committed.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use millstream_test_support::tls::make_certificate;

use super::{program, run, text};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mistakes");

/// A configuration file that does not exist.
const MISSING: &str = "missing_file";

/// A working directory with the files that the configurations refer to, and a port that is in use.
struct Fixture {
    folder: PathBuf,
    /// TCP and UDP sockets on the same port.
    in_use: (TcpListener, UdpSocket),
    free: u16,
}

impl Fixture {
    fn new() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mistakes-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("folder")).expect("a folder");
        std::fs::create_dir_all(folder.join("pipelines")).expect("a folder");
        for (name, content) in [
            ("empty.txt", ""),
            ("token.txt", "token"),
            ("pipelines/cam.toml", "description = \"a camera\"\nlaunch = 1\n"),
        ] {
            std::fs::write(folder.join(name), content).expect("written");
        }
        for (key, certificate) in [
            ("key.pem", "certificate.pem"),
            ("other-key.pem", "other-certificate.pem"),
        ] {
            make_certificate("localhost", &folder.join(key), &folder.join(certificate)).expect("openssl");
        }
        let both = || {
            let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
            let udp = UdpSocket::bind(tcp.local_addr().ok()?).ok()?;
            Some((tcp, udp))
        };
        let in_use = (0..16).find_map(|_| both()).expect("a port");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        Self {
            folder,
            in_use,
            free: free.expect("a port").port(),
        }
    }

    /// Returns the output for a configuration, without what differs from run to run.
    fn check(&self, name: &str) -> String {
        let file = format!("{name}.toml");
        let in_use = self.in_use.0.local_addr().expect("bound").port().to_string();
        let free = self.free.to_string();
        let mut command = program(&["check", "--config", &file]);
        command.current_dir(&self.folder);
        if name != MISSING {
            let config = std::fs::read_to_string(Path::new(FOLDER).join(&file)).expect("readable");
            if config.contains("listen =") {
                command.env_remove("MILLSTREAM_HTTP__LISTEN");
                command.env_remove("MILLSTREAM_WEBRTC__LISTEN");
            }
            command.env_remove("MILLSTREAM_WEBRTC__SHARDS");
            let variables = config
                .lines()
                .filter_map(|line| line.strip_prefix("# ")?.split_once('='));
            command.envs(variables);
            let config = config.replace("IN_USE", &in_use).replace("FREE", &free);
            std::fs::write(self.folder.join(&file), config).expect("written");
        }
        let output = run(&mut command);
        let process = std::fs::read_to_string("/proc/self/comm").expect("Linux");
        let output = text(&output.stdout) + &text(&output.stderr);
        let output = output
            .replace(&format!(":{in_use}"), ":IN_USE")
            .replace(&format!(":{free}"), ":FREE")
            .replace(process.trim_end(), "PROGRAM")
            .replace(&format!("process {}", std::process::id()), "process ID");
        // A mistake that is only a warning lets the pipelines be tried: what is installed differs.
        let lines = output.lines().filter(|line| !line.starts_with("pipeline"));
        lines.map(|line| format!("{line}\n")).collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn names(extension: &str) -> Vec<String> {
    let entries = std::fs::read_dir(FOLDER).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let files = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    let mut names: Vec<String> = files
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn each_typical_mistake_has_a_text_that_an_operator_understands() {
    let fixture = Fixture::new();
    let is_write = std::env::var_os("GOLDEN").is_some_and(|value| value == "write");
    let mut cases = names("toml");
    cases.push(MISSING.to_owned());
    cases.sort();
    assert!(cases.len() > 30);
    let mut differences = Vec::new();
    for name in &cases {
        let output = fixture.check(name);
        assert!(!output.contains("s3cret"), "{output}");
        let golden = Path::new(FOLDER).join(format!("{name}.txt"));
        if is_write {
            std::fs::write(&golden, &output).expect("written");
        }
        let wanted = std::fs::read_to_string(&golden).unwrap_or_default();
        if output != wanted {
            differences.push(format!("{name}.txt:\n{wanted}is now:\n{output}"));
        }
    }
    assert!(
        differences.is_empty(),
        "GOLDEN=write cargo test --test command_line mistakes\n\n{}",
        differences.join("\n")
    );
    assert_eq!(names("txt"), cases, "outputs and configurations");
}
