use super::*;
use crate::sources::rtsp::message::{MAX_BODY_BYTES, MAX_HEADER_BYTES};

fn relay() -> RtspMessageRelay {
    RtspMessageRelay::new(RtspRelayEndpoints {
        relay_authority: "rtsp://127.0.0.1:9".to_owned(),
        camera_authority: "rtsp://cam:554".to_owned(),
        credentials: Some(("u".to_owned(), "p".to_owned())),
        user_agent: "secret".to_owned(),
    })
}

fn text(bytes: &mut Vec<u8>) -> String {
    String::from_utf8_lossy(&std::mem::take(bytes)).into_owned()
}

fn setup(relay: &mut RtspMessageRelay, cseq: u32, channel: u8) -> String {
    let next = channel + 1;
    let request = format!(
        "SETUP rtsp://127.0.0.1:9/a/t0 RTSP/1.0\r\nCSeq: {cseq}\r\nUser-Agent: secret\r\n\
         Transport: RTP/AVP/TCP;unicast;interleaved={channel}-{next}\r\n\r\n"
    );
    assert!(relay.forward_client_messages_and_frames(&mut request.as_bytes().into()));
    text(&mut relay.to_camera)
}

fn answer(relay: &mut RtspMessageRelay, answer: &str) -> String {
    assert!(
        relay.forward_camera_messages_and_frames(tokio::time::Instant::now().into_std(), &mut answer.as_bytes().into())
    );
    text(&mut relay.to_client)
}

#[test]
fn every_answer_to_setup_gets_the_channels_that_were_asked_for() {
    for transport in [
        "",
        "Transport: RTP/AVP/TCP;unicast\r\n",
        "Transport: RTP/AVP/TCP;unicast; interleaved = 2 - 3\r\n",
        "Transport: RTP/AVP/TCP;unicast;interleaved=2-7;ssrc=0x12\r\n",
        "transport: RTP/AVP/TCP;unicast;source=camera.local;INTERLEAVED=2\r\n",
        "Transport: RTP/AVP/TCP;interleaved=x-y\r\n",
    ] {
        let mut relay = relay();
        assert!(setup(&mut relay, 7, 2).starts_with("SETUP rtsp://cam:554/a/t0 RTSP/1.0\r\nCSeq: 1\r\n"));
        let answered = answer(
            &mut relay,
            &format!("RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 5 ; timeout=0;x\r\n{transport}\r\n"),
        );
        assert!(
            answered.contains("interleaved=2-3\r\n") && answered.contains("CSeq: 7\r\n"),
            "{transport}: {answered}"
        );
        assert!(
            answered.contains("Session: 5\r\n") && !answered.contains("ssrc"),
            "{answered}"
        );
        assert_eq!(answer(&mut relay, "$\u{2}\0\u{1}x"), "$\u{2}\0\u{1}x", "{transport}");
    }
}

#[test]
fn channels_of_the_camera_become_those_that_were_asked_for() {
    let mut relay = relay();
    setup(&mut relay, 1, 0);
    answer(
        &mut relay,
        "RTSP/1.0 200 OK\nCSeq: 1\nSession: 5\nTransport: RTP/AVP/TCP;interleaved=8-9\n\n",
    );
    assert_eq!(
        answer(&mut relay, "\r\n$\u{8}\0\u{1}x$\u{9}\0\u{1}y"),
        "$\0\0\u{1}x$\u{1}\0\u{1}y"
    );
    assert!(relay.forward_client_messages_and_frames(&mut b"$\x01\0\x01r"[..].into()));
    assert_eq!(text(&mut relay.to_camera), "$\u{9}\0\u{1}r");
}

#[test]
fn garbage_between_frames_is_skipped_and_counted() {
    let mut relay = relay();
    setup(&mut relay, 1, 0);
    let accepted = "RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 5\r\nTransport: RTP/AVP/TCP;interleaved=4-5\r\n\r\n";
    answer(&mut relay, accepted);
    let mut buffer = BytesMut::new();
    for part in [
        &b"$\x04\0\x08\x80rtprtp!"[..],
        b"\xfejunk $ junk",
        b"$\x05\0\x08\x80rtcprt!\xffjunk$$$\x06\0\x08\x80",
        b"$\x04\0\x08\x80rtprtp!",
    ] {
        buffer.extend_from_slice(part);
        assert!(relay.forward_camera_messages_and_frames(tokio::time::Instant::now().into_std(), &mut buffer));
    }
    let wanted = b"$\0\0\x08\x80rtprtp!$\x01\0\x08\x80rtcprt!$\0\0\x08\x80rtprtp!";
    assert_eq!(relay.to_client, wanted);
    assert!(buffer.is_empty() && relay.skipped_byte_count() > 0);
}

#[test]
fn challenges_that_are_written_oddly_are_answered() {
    for challenge in [
        "Digest  realm=\"r\",   nonce=\"a\"",
        "Digest realm=\"r\", nonce=\"a\", qop=\"\"",
        "digest realm = \"r\",nonce=\"a\",,algorithm=\"\",qop=auth",
    ] {
        let mut relay = relay();
        setup(&mut relay, 3, 0);
        let refusal = format!("RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\nWWW-Authenticate: {challenge}\r\n\r\n");
        assert_eq!(answer(&mut relay, &refusal), "", "{challenge}");
        let again = text(&mut relay.to_camera);
        assert!(again.contains("nonce=\"a\""), "{challenge}: {again}");
    }
}

#[test]
fn a_refused_nonce_is_replaced_and_a_refused_password_is_passed_on() {
    let mut relay = relay();
    let refusal = |cseq: u32, nonce: &str, stale: bool| {
        format!(
            "RTSP/1.0 401 Unauthorized\r\nCSeq: {cseq}\r\nWWW-Authenticate: Digest realm=\"r\", nonce=\"{nonce}\", \
             qop=\"auth,auth-int\", stale={stale}\r\n\r\n"
        )
    };
    assert!(!setup(&mut relay, 3, 0).contains("Authorization"));
    assert_eq!(answer(&mut relay, &refusal(1, "a", false)), "");
    let again = text(&mut relay.to_camera);
    assert!(
        again.contains("CSeq: 2\r\n") && again.contains("nonce=\"a\"") && again.contains("qop=auth,"),
        "{again}"
    );
    answer(&mut relay, "RTSP/1.0 200 OK\r\nCSeq: 2\r\nSession: 5\r\n\r\n");
    // The nonce has expired when the next request is sent.
    assert!(setup(&mut relay, 4, 2).contains("nonce=\"a\""));
    assert_eq!(answer(&mut relay, &refusal(3, "b", true)), "");
    assert!(text(&mut relay.to_camera).contains("nonce=\"b\""));
    // The password is wrong.
    let answered = answer(&mut relay, &refusal(4, "c", false));
    assert!(
        answered.starts_with("RTSP/1.0 401 ") && answered.contains("CSeq: 4\r\n"),
        "{answered}"
    );
    assert!(relay.to_camera.is_empty());
}

fn request(relay: &mut RtspMessageRelay, method: &str, cseq: u32) -> String {
    let request = format!("{method} rtsp://127.0.0.1:9/a RTSP/1.0\r\nCSeq: {cseq}\r\nUser-Agent: secret\r\n\r\n");
    assert!(relay.forward_client_messages_and_frames(&mut request.as_bytes().into()));
    text(&mut relay.to_camera)
}

#[test]
fn descriptions_are_written_as_a_strict_client_reads_them() {
    let mut relay = relay();
    request(&mut relay, "DESCRIBE", 4);
    let body = "v=0\no=- -1 IN\nm=video -1 RTP/AVP 96\nc=IN \na=rtpmap:96 H264/90000\n";
    let head = "RTSP/1.0 100 Continue\r\n\r\nRTSP/1.0 200\r\nContent-Type: application/sdp; x=y\r\nContent-Base: /a/\r\n\
                Date:\r\nServer\r\n";
    let answered = answer(
        &mut relay,
        &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()),
    );
    let (head, body) = answered.split_once("\r\n\r\n").expect("a body");
    assert_eq!(
        head,
        format!(
            "RTSP/1.0 200 OK\r\nCSeq: 4\r\nContent-Type: application/sdp\r\nContent-Base: rtsp://127.0.0.1:9/a/\r\n\
             Content-Length: {}",
            body.len()
        )
    );
    assert!(
        body.ends_with("m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"),
        "{body}"
    );
}

#[test]
fn the_client_gets_no_address_but_that_of_the_relay_as_its_base() {
    for (base, wanted) in [
        ("rtsp://u:p@10.0.0.5/live/", "rtsp://10.0.0.5/live/t0"),
        ("rtsp://10.0.0.5:8554/live/", "rtsp://10.0.0.5:8554/live/t0"),
        ("", "rtsp://cam:554/live/t0"),
    ] {
        let mut relay = relay();
        request(&mut relay, "DESCRIBE", 4);
        let answered = answer(&mut relay, &format!("RTSP/1.0 200 OK\r\nContent-Base: {base}\r\n\r\n"));
        assert!(
            !answered.contains("10.0.0.5") && !answered.contains("u:p"),
            "{answered}"
        );
        assert_eq!(
            answered.contains("Content-Base: rtsp://127.0.0.1:9/live/\r\n"),
            !base.is_empty()
        );
        let request = "SETUP rtsp://127.0.0.1:9/live/t0 RTSP/1.0\r\nCSeq: 5\r\n\r\n";
        assert!(relay.forward_client_messages_and_frames(&mut request.as_bytes().into()));
        let asked = text(&mut relay.to_camera);
        assert!(asked.starts_with(&format!("SETUP {wanted} RTSP/1.0\r\n")), "{asked}");
    }
}

#[test]
fn a_status_line_without_a_status_reaches_the_client() {
    let mut relay = relay();
    request(&mut relay, "DESCRIBE", 4);
    assert_eq!(
        answer(&mut relay, "RTSP/1.0 20x OK\r\nCSeq: 1\r\n\r\n"),
        "RTSP/1.0 20x OK\r\n\r\n"
    );
    assert!(relay.to_camera.is_empty());
}

#[test]
fn keepalives_are_answered_at_once_and_sent_as_the_camera_supports_them() {
    let mut relay = relay();
    request(&mut relay, "PLAY", 5);
    let answered = answer(&mut relay, "RTSP/1.0 200 OK\r\nRTP-Info: a\r\n\r\n");
    assert_eq!(answered, "RTSP/1.0 200 OK\r\nCSeq: 5\r\n\r\n");
    for (sent, answer_of_camera) in [
        ("OPTIONS", ""),
        (
            "OPTIONS",
            "RTSP/1.0 200 OK\r\nCSeq: 1\r\nPublic: OPTIONS, GET_PARAMETER\r\n\r\n",
        ),
        ("GET_PARAMETER", "RTSP/1.0 200 OK\r\n\r\n"),
        ("GET_PARAMETER", ""),
        ("GET_PARAMETER", "RTSP/1.0 501 Not Implemented\r\n\r\n"),
        ("OPTIONS", "RTSP/1.0 200 OK\r\nPublic: GET_PARAMETER\r\n\r\n"),
        (
            "OPTIONS",
            "RTSP/1.0 200 OK\r\nPublic: GET_PARAMETER, SET_PARAMETER\r\n\r\n",
        ),
        ("SET_PARAMETER", "RTSP/1.0 451 Invalid Parameter\r\n\r\n"),
        ("OPTIONS", ""),
    ] {
        let asked = request(&mut relay, "OPTIONS", 6);
        assert!(asked.starts_with(&format!("{sent} rtsp://cam:554/a")), "{asked}");
        assert_eq!(text(&mut relay.to_client), "RTSP/1.0 200 OK\r\nCSeq: 6\r\n\r\n");
        assert_eq!(answer(&mut relay, answer_of_camera), "", "{answer_of_camera}");
    }
    for _ in 0..100 {
        request(&mut relay, "SET_PARAMETER", 7);
    }
}

#[test]
fn the_camera_is_answered_and_its_requests_are_not_passed_on() {
    let mut relay = relay();
    setup(&mut relay, 1, 0);
    let asked = "OPTIONS * RTSP/1.0\r\nCSeq: 8\r\nSession: 5\r\n\r\nREDIRECT rtsp://a RTSP/1.0\r\nCSeq: 9\r\n\r\n";
    assert_eq!(answer(&mut relay, asked), "");
    let answered = text(&mut relay.to_camera);
    let wanted = "RTSP/1.0 200 OK\r\nCSeq: 8\r\nSession: 5\r\n\r\nRTSP/1.0 501 Not Implemented\r\nCSeq: 9\r\n\r\n";
    assert_eq!(answered, wanted);
    assert!(answer(&mut relay, "RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 5\r\n\r\n").contains("CSeq: 1\r\n"));
}

#[test]
fn only_the_gateway_is_relayed_and_only_rtsp() {
    let stranger = "OPTIONS rtsp://127.0.0.1:9/ RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: x\r\n\r\n";
    assert!(!relay().forward_client_messages_and_frames(&mut stranger.as_bytes().into()));
    assert!(!relay().forward_client_messages_and_frames(&mut b"\xff\xfe"[..].into()));
    let endless = [&b"RTSP/1.0 200 OK\r\nA: "[..], &vec![b'A'; MAX_HEADER_BYTES + 1]].concat();
    assert!(
        !relay().forward_camera_messages_and_frames(tokio::time::Instant::now().into_std(), &mut endless[..].into())
    );
    assert!(!relay().forward_camera_messages_and_frames(
        tokio::time::Instant::now().into_std(),
        &mut vec![b'A'; 1 << 17][..].into()
    ));
    let huge = format!("RTSP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", MAX_BODY_BYTES + 1);
    assert!(
        !relay()
            .forward_camera_messages_and_frames(tokio::time::Instant::now().into_std(), &mut huge.as_bytes().into())
    );
    let request = "OPTIONS * RTSP/1.0\r\nUser-Agent: secret\r\n\r\n".repeat(MAX_PENDING_REQUESTS + 1);
    assert!(!relay().forward_client_messages_and_frames(&mut request.as_bytes().into()));
}
