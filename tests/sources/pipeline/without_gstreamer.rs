//! A host without GStreamer: the gateway runs, and reports what is missing when a pipeline is requested.

use std::path::{Path, PathBuf};
use std::process::Command;

use millstream::Gateway;
use millstream::pipeline::library::PipelineLibrary;
use millstream::pipeline::pipeline_check;
use millstream::pipeline::worker_executables::{PIPELINE_WORKER_EXECUTABLE_NAME, WorkerExecutablesAndProcessSlots};

use crate::pipeline::{Folder, config, programs, trouble};

/// The shared libraries that a program needs, directly and indirectly.
fn libraries_of(program: &Path) -> String {
    let output = Command::new("ldd").arg(program).output().expect("ldd is part of libc");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn only_the_worker_links_gstreamer() {
    let programs = programs();
    let gateway = libraries_of(&programs.demuxer);
    assert!(gateway.contains("libc.so"), "{gateway}");
    for foreign in ["libgst", "libglib", "libgobject"] {
        assert!(!gateway.contains(foreign), "{gateway}");
    }
    assert!(libraries_of(&programs.pipeline_worker).contains("libgstreamer-1.0"));
}

async fn check_error(pipeline: PathBuf) -> String {
    let programs = WorkerExecutablesAndProcessSlots {
        pipeline_worker: pipeline,
        ..programs()
    };
    let error = pipeline_check::check_pipelines(
        &programs,
        PipelineLibrary::with_shipped_pipelines().pipeline_check_jobs(),
    )
    .await
    .err();
    error.map(|error| error.to_string()).unwrap_or_default()
}

#[tokio::test]
async fn a_worker_that_is_not_installed_is_named() {
    let error = check_error(PathBuf::from("/nonexistent/millstream-worker")).await;
    assert!(
        error.contains("millstream-worker") && error.contains("not installed"),
        "{error}"
    );
}

/// The worker, linked with a library that no host has: the dynamic linker refuses to load it.
fn unloadable_worker(folder: &Folder) -> PathBuf {
    let (needed, absent) = (b"libgstreamer-1.0.so.0", b"libgstreamer-9.9.so.9");
    let mut bytes = std::fs::read(programs().pipeline_worker).expect("readable");
    let at: Vec<usize> = (0..bytes.len() - needed.len())
        .filter(|at| bytes[*at..].starts_with(needed))
        .collect();
    assert!(!at.is_empty());
    for at in at {
        bytes[at..at + absent.len()].copy_from_slice(absent);
    }
    let path = folder.0.join(PIPELINE_WORKER_EXECUTABLE_NAME);
    std::fs::write(&path, bytes).expect("written");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, executable).expect("executable");
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_library_is_named_with_the_package_that_has_it() {
    let folder = Folder::new("unloadable");
    let pipeline = unloadable_worker(&folder);
    let wanted = "GStreamer is not installed (libgstreamer-9.9.so.9 is missing); install the missing Debian packages with: apt-get install libgst";
    let error = check_error(pipeline.clone()).await;
    assert!(error.starts_with(wanted), "{error}");

    let programs = WorkerExecutablesAndProcessSlots {
        pipeline_worker: pipeline,
        ..programs()
    };
    let config = config("[streams.\"x\"]\npipeline = \"test\"\n").expect("valid");
    let gateway = Gateway::start_with_worker_programs(config, programs)
        .await
        .expect("it starts");
    let reported = async {
        while !trouble(&gateway, "x").contains(wanted) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let reported = tokio::time::timeout(crate::pipeline::PATIENCE, reported).await;
    assert!(reported.is_ok(), "{}", trouble(&gateway, "x"));
    gateway.stop().await;
}

/// The gateway's program alone in a folder, as after a broken installation: `check` passes and reports what cannot run.
#[test]
fn check_without_a_worker_passes_unless_a_stream_needs_a_pipeline() {
    let folder = Folder::new("alone");
    let program = folder.0.join("millstream");
    std::fs::copy(programs().demuxer, &program).expect("copied");
    let check = |text: &str| {
        let file = folder.write("millstream.toml", text);
        let mut command = Command::new(&program);
        let command = command.arg("check").arg("--config").arg(file);
        let output = command.env_clear().output().expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let ports = "[http]\nlisten = \"127.0.0.1:0\"\n[webrtc]\nlisten = \"127.0.0.1:0\"\n";
    let (passed, said) = check(ports);
    assert!(
        passed && said.contains("pipelines: none can run: the program millstream-worker"),
        "{said}"
    );
    let (passed, said) = check(&format!("{ports}[streams.\"x\"]\npipeline = \"test\"\n"));
    assert!(
        !passed && said.contains("configured streams need pipelines that this host cannot run: test"),
        "{said}"
    );
}
