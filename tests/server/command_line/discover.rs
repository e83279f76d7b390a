//! `millstream discover` with a camera on this host, which answers what real ones answer.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::thread;

use super::{program, run, text};

/// Answers one probe, and SOAP requests until the process ends. Its answers name an address that is not its own, as those
/// of cameras behind address translation.
fn camera(with_password: bool) -> u16 {
    let services = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = services.local_addr().expect("bound").port();
    let discovery = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let discovery_port = discovery.local_addr().expect("bound").port();
    thread::spawn(move || {
        let mut probe = [0; 4096];
        while let Ok((length, sender)) = discovery.recv_from(&mut probe) {
            let probe = String::from_utf8_lossy(&probe[..length]).into_owned();
            assert!(probe.contains("NetworkVideoTransmitter"), "{probe}");
            let answer = format!(
                "<s:Envelope><s:Body><d:ProbeMatches><d:ProbeMatch><d:Scopes>onvif://www.onvif.org/name/Front%20door \
                 onvif://www.onvif.org/hardware/C1</d:Scopes><d:XAddrs>http://192.0.2.1:{port}/onvif/device_service\
                 </d:XAddrs></d:ProbeMatch></d:ProbeMatches></s:Body></s:Envelope>"
            );
            discovery.send_to(answer.as_bytes(), sender).expect("sent");
        }
    });
    thread::spawn(move || {
        for stream in services.incoming() {
            let mut stream = stream.expect("a connection");
            let (mut request, mut chunk) = (String::new(), [0; 4096]);
            while !request.contains("</s:Envelope>") {
                let length = stream.read(&mut chunk).expect("reads");
                assert!(length > 0, "{request}");
                request += &String::from_utf8_lossy(&chunk[..length]);
            }
            let (status, body) = answer(&request, port, with_password);
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).expect("sends");
        }
    });
    discovery_port
}

fn answer(request: &str, port: u16, with_password: bool) -> (&'static str, String) {
    if request.contains("GetCapabilities") {
        assert!(
            !request.contains("UsernameToken"),
            "nothing has asked for credentials: {request}"
        );
    }
    if with_password && !request.contains("PasswordDigest") && !request.contains("GetCapabilities") {
        let fault = "<s:Envelope><s:Body><s:Fault><s:Subcode><s:Value>ter:NotAuthorized</s:Value></s:Subcode></s:Fault></s:Body></s:Envelope>";
        return ("400 Bad Request", fault.to_owned());
    }
    assert!(!request.contains("s3cret"), "the password itself is not sent");
    let body = if request.contains("GetCapabilities") {
        format!(
            "<Capabilities><tt:Media><tt:XAddr>http://192.0.2.1:{port}/onvif/media</tt:XAddr></tt:Media></Capabilities>"
        )
    } else if request.contains("GetProfiles") {
        "<Profiles token=\"p1\"><tt:Name>main</tt:Name><tt:VideoEncoderConfiguration><tt:Encoding>H264</tt:Encoding>\
         <tt:Resolution><tt:Width>1920</tt:Width><tt:Height>1080</tt:Height></tt:Resolution></tt:VideoEncoderConfiguration>\
         </Profiles>"
            .to_owned()
    } else {
        assert!(request.contains("<ProfileToken>p1</ProfileToken>"), "{request}");
        "<MediaUri><tt:Uri>rtsp://192.0.2.1:554/ch1?a=1&amp;b=2</tt:Uri></MediaUri>".to_owned()
    };
    ("200 OK", format!("<s:Envelope><s:Body>{body}</s:Body></s:Envelope>"))
}

fn discover(port: u16, arguments: &[&str]) -> String {
    let at = format!("127.0.0.1:{port}");
    let output = run(&mut program(
        &[&["discover", "--at", &at, "--time", "1"], arguments].concat(),
    ));
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_camera_is_listed_with_its_urls() {
    let expected = "127.0.0.1 (Front door, C1)\n  rtsp://192.0.2.1:554/ch1?a=1&b=2  (main, H264, 1920x1080)  \
                    (!) this URL names another host than the camera's address: check that it is the camera before you \
                    configure the URL, because the password is sent there\n";
    assert_eq!(discover(camera(false), &[]), expected);
    let with_password = camera(true);
    let unknown = discover(with_password, &[]);
    assert!(
        unknown.contains("URLs unknown: the camera requires credentials"),
        "{unknown}"
    );
    let file = format!("{}/discover-password", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&file, "s3cret\n").expect("written");
    let credentials = ["--username", "admin", "--password-file", &file];
    assert_eq!(discover(with_password, &credentials), expected);
    // Two cameras.
    let other = format!("127.0.0.1:{}", camera(true));
    let both = discover(with_password, &[&credentials[..], &["--at", &other]].concat());
    assert_eq!(both, expected.repeat(2));
}

/// Anybody in the network may answer to a search.
#[test]
fn a_search_sends_no_credentials() {
    let file = format!("{}/discover-search-password", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&file, "s3cret\n").expect("written");
    let output = run(&mut program(&[
        "discover",
        "--username",
        "admin",
        "--password-file",
        &file,
        "--time",
        "1",
    ]));
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(
        error.contains("`--username` needs `--at`") && !error.contains("s3cret"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_searched_for_is_named() {
    // Nobody answers at this port.
    let port = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let answer = discover(port.local_addr().expect("bound").port(), &[]);
    assert!(answer.starts_with("no camera answered."), "{answer}");
    for (arguments, expected) in [
        (
            &["discover", "--at", "camera"][..],
            "\"camera\" is not the address of a camera",
        ),
        (
            &["discover", "--username", "a"],
            "`--username` and `--password-file` must be given together",
        ),
        (
            &["discover", "--username", "a", "--password-file", "/nonexistent"],
            "the password file /nonexistent cannot be read",
        ),
    ] {
        let output = run(&mut program(arguments));
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}
