//! A minimal HTTP/1.1 client: one request per connection, as independent viewers would have it.
//!
//! Not general: no redirects, no chunked bodies. The gateway on loopback needs none of them.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::tls;

/// Longest response that is read, in bytes; an answer has about 2 KiB, the metrics page some tens.
const RESPONSE_LIMIT: u64 = 4 << 20;

/// A request that is not answered within this time has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the server said.
#[derive(Debug)]
pub(crate) struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Response {
    /// The first header of that name, whatever its case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect();
        let response = Self {
            status,
            headers,
            body: body.to_owned(),
        };
        let expected = response.header("content-length").map(str::parse::<usize>);
        match (expected, response.header("transfer-encoding")) {
            (Some(Ok(length)), None) if length != response.body.len() => None,
            (Some(Err(_)), _) | (_, Some(_)) => None,
            _ => Some(response),
        }
    }
}

/// A request; `path` begins with a slash.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub bearer: Option<&'a str>,
    /// An SDP document, sent as `application/sdp`.
    pub sdp: Option<&'a str>,
}

impl Request<'_> {
    /// Connects, sends the request and reads the whole response.
    ///
    /// # Errors
    ///
    /// Those of the connection, and [`io::ErrorKind::InvalidData`] when the response is not one.
    pub(crate) fn send(&self, to: SocketAddr) -> io::Result<Response> {
        let bytes = self.exchange(to)?;
        Response::parse(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP/1.1 response"))
    }

    /// As [`Self::send`], for a body that is no text: returns the status alone.
    ///
    /// # Errors
    ///
    /// As for [`Self::send`].
    pub(crate) fn send_for_status(&self, to: SocketAddr) -> io::Result<u16> {
        let bytes = self.exchange(to)?;
        let status = bytes
            .get(9..12)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP/1.1 response"))
    }

    fn exchange(&self, to: SocketAddr) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        let text = self.text(to);
        let mut bytes = Vec::with_capacity(8192);
        if let Some(config) = tls::https_client() {
            let mut stream = tls::connect(config, stream)?;
            stream.write_all(text.as_bytes())?;
            stream.take(RESPONSE_LIMIT).read_to_end(&mut bytes)?;
        } else {
            stream.write_all(text.as_bytes())?;
            stream.take(RESPONSE_LIMIT).read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    fn text(&self, host: SocketAddr) -> String {
        let mut text = format!(
            "{} {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n",
            self.method, self.path
        );
        if let Some(token) = self.bearer {
            text += &format!("Authorization: Bearer {token}\r\n");
        }
        if let Some(sdp) = self.sdp {
            text += &format!(
                "Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{sdp}",
                sdp.len()
            );
        } else {
            text += "\r\n";
        }
        text
    }
}

/// A GET without credentials.
///
/// # Errors
///
/// Those of [`Request::send`].
pub(crate) fn get(to: SocketAddr, path: &str) -> io::Result<Response> {
    Request {
        method: "GET",
        path,
        bearer: None,
        sdp: None,
    }
    .send(to)
}

/// A DELETE without credentials: knowing a session's URL is the credential (RFC 9725 §4.2).
///
/// # Errors
///
/// Those of [`Request::send`].
pub(crate) fn delete(to: SocketAddr, path: &str) -> io::Result<Response> {
    Request {
        method: "DELETE",
        path,
        bearer: None,
        sdp: None,
    }
    .send(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    #[test]
    fn a_post_carries_token_and_offer_and_gives_the_answer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 1024];
            let length = stream.read(&mut bytes).unwrap();
            stream
                .write_all(b"HTTP/1.1 201 Created\r\nlocation: /session/1\r\nContent-Length: 3\r\n\r\nv=0")
                .unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        });
        let request = Request {
            method: "POST",
            path: "/whep/x",
            bearer: Some("t"),
            sdp: Some("v=0\r\n"),
        };
        let response = request.send(address).unwrap();
        assert_eq!(response.status, 201);
        assert_eq!(response.header("Location"), Some("/session/1"));
        assert_eq!(response.body, "v=0");
        let seen = server.join().unwrap();
        assert!(seen.starts_with("POST /whep/x HTTP/1.1\r\n"), "{seen}");
        assert!(
            seen.contains("Authorization: Bearer t\r\n") && seen.contains("Content-Length: 5\r\n"),
            "{seen}"
        );
    }

    #[test]
    fn a_cut_off_response_is_an_error() {
        assert!(Response::parse(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort").is_none());
        assert!(Response::parse(b"HTTP/1.1 200").is_none());
        assert!(Response::parse(b"HTTP/1.1 200 OK\r\n\r\nbody").is_some());
    }
}
