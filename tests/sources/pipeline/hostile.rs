//! Values of parameters and addresses that are meant to do harm: refused with the name of their key, or inert.

use std::collections::BTreeSet;

use millstream::pipeline::description::PipelineDescription;
use millstream::pipeline::pipeline_check;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::pipeline::{Folder, config, programs};

/// What an attacker would try to get into a launch line, a shell, a file name or an address.
const PAYLOADS: [&str; 24] = [
    "x ! filesink location=OUT",
    "x\" ! filesink location=\"OUT",
    "x' ! filesink location='OUT' '",
    "`touch OUT`",
    "$(touch OUT)",
    "; touch OUT",
    "| touch OUT",
    "&& touch OUT",
    "\n! filesink location=OUT",
    "\r\nfilesink location=OUT",
    "\0filesink",
    "${HOME}",
    "%s%s%s%n",
    "../../../../etc/passwd",
    "/etc/passwd\0.mp4",
    "file:///etc/passwd",
    "data:text/plain,hello",
    "javascript:alert(1)",
    "http://169.254.169.254/latest/meta-data",
    "gopher://127.0.0.1:6379/_SET",
    "(string)x, location=(string)OUT",
    "audio/x-raw ! fdsink fd=1",
    "t. ! tcpclientsink host=127.0.0.1 port=9",
    "\u{202e}gnp.exe",
];

/// A payload, or a mixture of two.
fn payload(rng: &mut StdRng, out: &str) -> String {
    let mut pick = || PAYLOADS[rng.random_range(0..PAYLOADS.len())];
    let (first, second) = (pick(), pick());
    let text = match rng.random_range(0..4) {
        0 => format!("{first}{second}"),
        1 => format!("srt://{first}"),
        2 => format!("rtmp://host/{first}?{second}"),
        _ => first.to_owned(),
    };
    text.replace("OUT", out)
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Streams of every shipped source with each of its parameters set to something hostile.
#[test]
fn hostile_values_are_refused_by_name_or_stay_values() {
    let folder = Folder::new("hostile");
    let out = folder.0.join("out").display().to_string();
    let mut rng = StdRng::seed_from_u64(7);
    let (mut refused, mut inert) = (0, 0);
    for round in 0..500 {
        let value = payload(&mut rng, &out);
        let (pipeline, required, parameter) = [
            ("test", "", "pattern"),
            ("test", "", "bitrate"),
            ("slate", "", "text"),
            ("slate", "", "color"),
            ("srt", "uri = \"srt://192.0.2.1:7000\", ", "streamid"),
            ("srt", "uri = \"srt://192.0.2.1:7000\", ", "passphrase"),
            ("srt", "", "uri"),
            ("rtmp", "", "uri"),
            ("rtsp", "", "uri"),
            ("rtsp", "uri = \"rtsps://192.0.2.1/cam\", ", "username"),
            ("file", "", "path"),
            ("v4l2", "", "device"),
            ("", "", "rtsp"),
        ][round % 13];
        let (text, key) = if pipeline.is_empty() {
            (
                format!("[streams.\"s\"]\nrtsp = {}\n", quoted(&value)),
                "streams.s.rtsp".to_owned(),
            )
        } else {
            let params = format!("{required}{parameter} = {}", quoted(&value));
            let text = format!("[streams.\"s\"]\npipeline = \"{pipeline}\"\nparams = {{ {params} }}\n");
            (text, format!("params.{parameter}"))
        };
        match config(&text) {
            Err(error) => {
                refused += 1;
                assert!(error.contains(&key), "{error}");
                assert!(!error.contains(&value), "values are not repeated: {error}");
            }
            // A text is a text, whatever stands in it; an address is one of the schemes that the pipeline takes.
            Ok(_) => inert += 1,
        }
    }
    println!("{refused} refused, {inert} taken as values");
    assert!(refused > 250 && inert > 50, "{refused} {inert}");
    assert!(!folder.0.join("out").exists());
}

/// An accepted value is set as a property, without any other effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_never_become_elements() {
    let folder = Folder::new("inert");
    let out = folder.0.join("out").display().to_string();
    let slate = PipelineDescription::from_toml(include_str!("../../../pipelines/slate.toml")).expect("it is shipped");
    let jobs: Vec<_> = PAYLOADS
        .iter()
        .filter(|payload| !payload.chars().any(char::is_control))
        .map(|payload| {
            let text = payload.replace("OUT", &out);
            let values = toml::Table::from_iter([("text".to_owned(), toml::Value::from(text))]);
            let (job, hosts) = slate.build_job_and_target_urls(&values, Vec::new()).expect("a text");
            assert!(hosts.is_empty());
            ((*payload).to_owned(), job)
        })
        .collect();
    let findings = pipeline_check::check_pipelines(&programs(), jobs)
        .await
        .expect("it tells");
    assert!(findings.iter().all(|finding| finding.failure.is_none()), "{findings:?}");
    assert!(!folder.0.join("out").exists());
}

/// Files of pipelines that would write, start programs, or are nonsense.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn launch_lines_that_write_are_refused() {
    let folder = Folder::new("writers");
    let out = folder.0.join("out").display().to_string();
    for (launch, wanted) in [
        (
            format!("videotestsrc ! filesink location={out} appsink name=video"),
            "`filesink` is not allowed",
        ),
        (
            "videotestsrc ! udpsink host=127.0.0.1 port=9 appsink name=video".to_owned(),
            "`udpsink` is not allowed",
        ),
        (
            "videotestsrc ! fakesink".to_owned(),
            "needs an `appsink name=video`, an `appsink name=audio`, or both",
        ),
        (
            "videotestsrc ! nosuchelement ! appsink name=video".to_owned(),
            "GStreamer elements not installed: nosuchelement",
        ),
        ("videotestsrc nosuch=1 ! appsink name=video".to_owned(), "no property"),
        ("videotestsrc ! fakesink name=video".to_owned(), "must be an appsink"),
        ("! ! !".to_owned(), "invalid GStreamer launch line"),
    ] {
        let text = format!("description = \"x\"\nlaunch = {}\n", quoted(&launch));
        let job = PipelineDescription::from_toml(&text)
            .expect("a description")
            .pipeline_check_job();
        let findings = pipeline_check::check_pipelines(&programs(), vec![("x".to_owned(), job)])
            .await
            .expect("it tells");
        let failure = findings[0].failure.clone().expect("refused");
        assert!(failure.to_string().contains(wanted), "{failure}");
    }
    assert!(!folder.0.join("out").exists());
}

/// Addresses outside the networks that are allowed are not connected to, by whatever name they go.
#[test]
fn addresses_outside_the_allowed_networks_are_not_connected_to() {
    crate::pipeline::alone(&["pipeline::hostile::no_address_outside_is_connected_to"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "counts the workers of its process"]
async fn no_address_outside_is_connected_to() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let hosts = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f000001"];
    let mut text = "[sources]\nallow = [\"10.0.0.0/8\"]\n".to_owned();
    for (index, host) in hosts.iter().enumerate() {
        text.push_str(&format!(
            "[streams.\"cam{index}\"]\nrtsp = \"rtsp://{host}:{port}/cam\"\n"
        ));
        text.push_str(&format!(
            "[streams.\"live{index}\"]\npipeline = \"rtmp\"\nparams = {{ uri = \"rtmp://{host}:{port}/a/b\" }}\n"
        ));
    }
    let before: BTreeSet<u32> = crate::pipeline::workers();
    let gateway = crate::pipeline::gateway(&text).await;
    for index in 0..hosts.len() {
        for stream in [format!("cam{index}"), format!("live{index}")] {
            let refused = async {
                loop {
                    let said = crate::pipeline::trouble(&gateway, &stream);
                    if said.contains("sources.allow") || said.contains("cannot resolve") {
                        return;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            };
            let reported = tokio::time::timeout(crate::pipeline::PATIENCE, refused).await;
            assert!(
                reported.is_ok(),
                "{stream}: {}",
                crate::pipeline::trouble(&gateway, &stream)
            );
        }
    }
    let connected = tokio::time::timeout(std::time::Duration::from_millis(500), listener.accept()).await;
    assert!(connected.is_err(), "something connected");
    assert!(
        crate::pipeline::workers().is_subset(&before) || !text.contains("pipeline"),
        "no worker for them"
    );
    gateway.stop().await;
}
