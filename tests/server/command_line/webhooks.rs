//! Webhooks of the program, in an environment with a proxy.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use super::{Running, program};

#[test]
fn a_webhook_is_told_directly_although_the_environment_names_a_proxy() {
    let receiver = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let proxy = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = |listener: &TcpListener| listener.local_addr().expect("bound");
    let file = format!("{}/webhook-and-proxy.toml", env!("CARGO_TARGET_TMPDIR"));
    // Nothing listens at port 1: the source fails, which is an event.
    let text = format!(
        "[[webhooks]]\nurl = \"http://{}/hook\"\nsecret = \"a-secret-of-the-test\"\n\
         [streams.door]\nrtsp = \"rtsp://127.0.0.1:1/\"\n",
        address(&receiver)
    );
    std::fs::write(&file, text).expect("written");
    let mut command = program(&["--config", &file, "serve"]);
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        command.env(variable, format!("http://{}", address(&proxy)));
    }
    let gateway = Running::start(command);
    // Whichever of the two is connected to first.
    let (sender, connected) = std::sync::mpsc::channel();
    for (name, listener) in [("receiver", receiver), ("proxy", proxy)] {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut head = [0; 16];
            let length = stream.read(&mut head).expect("reads");
            let _ = sender.send((name, String::from_utf8_lossy(&head[..length]).into_owned()));
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        });
    }
    let (name, head) = connected.recv().expect("a connection");
    assert_eq!(
        (name, head.split(' ').take(2).collect::<Vec<_>>()),
        ("receiver", vec!["POST", "/hook"])
    );
    assert_eq!(gateway.end("-TERM").0, Some(0));
    let _ = std::fs::remove_file(file);
}
