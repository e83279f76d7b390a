//! The RTSP URLs of a device, by its ONVIF services (ONVIF Core Specification, Media Service Specification).

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::RngCore as _;
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use super::device::{DiscoveredDevice, sanitize_device_text};
use super::probe::url_with_host_replaced;
use super::xml::{self, Element, escape};

/// User and password of a device.
#[derive(Clone)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

/// A stream of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamUrl {
    pub url: String,
    /// Name of its profile.
    pub profile: String,
    pub codec: Option<String>,
    pub width: Option<u32>,
    pub height: Option<u32>,
}

/// Why the URLs of a device are not known.
#[derive(Debug, Error)]
pub enum DeviceError {
    #[error("the camera cannot be reached by HTTP: {0}")]
    Unreachable(String),
    #[error(
        "the camera requires credentials, or rejected the given ones: give the user name and password of an ONVIF user"
    )]
    Unauthorized,
    #[error("the camera answered with HTTP status {0}")]
    Status(u16),
    #[error("the response of the camera is too large, or is not text")]
    BadAnswer,
    #[error("the camera has no ONVIF media service")]
    NoMediaService,
    #[error("cannot create the HTTP client: {0}")]
    Client(String),
}

/// Maximum time of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of an answer, in bytes: profiles of a camera with many have some 100 KiB.
const MAX_SOAP_RESPONSE_BYTES: usize = 1024 * 1024;

/// Maximum number of profiles whose URL is asked for.
const MAX_ONVIF_PROFILES: usize = 16;

const DEVICE_NAMESPACE: &str = "http://www.onvif.org/ver10/device/wsdl";
const MEDIA_NAMESPACE: &str = "http://www.onvif.org/ver10/media/wsdl";

/// Asks a device for the URLs of its streams. The credentials are used once it has asked for some. Whoever gets their digest
/// can use it for some minutes and guess passwords at leisure, so the device has to be one that the user has named.
///
/// # Errors
///
/// A [`DeviceError`].
pub async fn fetch_stream_urls(
    device: &DiscoveredDevice,
    credentials: Option<&Credentials>,
) -> Result<Vec<StreamUrl>, DeviceError> {
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(REQUEST_TIMEOUT)
        .no_proxy()
        // Cameras make their own certificates. The password is not sent, only its digest.
        .tls_danger_accept_invalid_certs(true)
        .build()
        .map_err(|error| DeviceError::Client(error.to_string()))?;
    let mut client = SoapClient {
        http,
        credentials,
        has_asked_for_credentials: false,
    };
    let body = format!("<GetCapabilities xmlns=\"{DEVICE_NAMESPACE}\"><Category>Media</Category></GetCapabilities>");
    let capabilities = client.call(&device.service_url, &body).await?;
    let media = xml::element_subtrees(&capabilities, "Media")
        .into_iter()
        .next()
        .unwrap_or_default();
    let media_url =
        xml::text_of_first_element_named(media, "XAddr").and_then(|url| url_with_host_replaced(&url, device.address));
    let media_url = media_url.ok_or(DeviceError::NoMediaService)?;
    let profiles = client
        .call(&media_url, &format!("<GetProfiles xmlns=\"{MEDIA_NAMESPACE}\"/>"))
        .await?;
    let mut streams = Vec::new();
    for profile in xml::element_subtrees(&profiles, "Profiles")
        .into_iter()
        .take(MAX_ONVIF_PROFILES)
    {
        let Some(token) = profile.first().and_then(|profile| profile.attribute("token")) else {
            continue;
        };
        let answer = client.call(&media_url, &stream_uri_request(&token)).await?;
        if let Some(url) = xml::text_of_first_element_named(&answer, "Uri") {
            streams.push(stream_url_from_profile(&sanitize_device_text(&url), profile));
        }
    }
    Ok(streams)
}

fn stream_uri_request(profile_token: &str) -> String {
    format!(
        "<GetStreamUri xmlns=\"{MEDIA_NAMESPACE}\"><StreamSetup>\
         <Stream xmlns=\"http://www.onvif.org/ver10/schema\">RTP-Unicast</Stream>\
         <Transport xmlns=\"http://www.onvif.org/ver10/schema\"><Protocol>RTSP</Protocol></Transport>\
         </StreamSetup><ProfileToken>{}</ProfileToken></GetStreamUri>",
        escape(profile_token)
    )
}

fn stream_url_from_profile(url: &str, profile: &[Element]) -> StreamUrl {
    let video = xml::element_subtrees(profile, "VideoEncoderConfiguration");
    let video = video.into_iter().next().unwrap_or_default();
    let number = |name| xml::text_of_first_element_named(video, name).and_then(|text| text.parse().ok());
    StreamUrl {
        url: url.to_owned(),
        profile: xml::text_of_first_element_named(profile, "Name")
            .map_or_else(String::new, |name| sanitize_device_text(&name)),
        codec: xml::text_of_first_element_named(video, "Encoding").map(|codec| sanitize_device_text(&codec)),
        width: number("Width"),
        height: number("Height"),
    }
}

struct SoapClient<'a> {
    http: reqwest::Client,
    credentials: Option<&'a Credentials>,
    has_asked_for_credentials: bool,
}

impl SoapClient<'_> {
    async fn call(&mut self, url: &Url, body: &str) -> Result<Vec<Element>, DeviceError> {
        if !self.has_asked_for_credentials {
            match self.post(url, body, None).await {
                Err(DeviceError::Unauthorized) if self.credentials.is_some() => self.has_asked_for_credentials = true,
                answer => return answer,
            }
        }
        self.post(url, body, self.credentials).await
    }

    async fn post(
        &self,
        url: &Url,
        body: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Vec<Element>, DeviceError> {
        let security = credentials.map_or_else(String::new, ws_security_header);
        let message = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
             <s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\">{security}<s:Body>{body}</s:Body></s:Envelope>"
        );
        let request = self
            .http
            .post(url.clone())
            .header("Content-Type", "application/soap+xml; charset=utf-8");
        let unreachable = |error: reqwest::Error| DeviceError::Unreachable(error.without_url().to_string());
        let mut response = request.body(message).send().await.map_err(unreachable)?;
        let status = response.status();
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if answer.len() + chunk.len() > MAX_SOAP_RESPONSE_BYTES {
                return Err(DeviceError::BadAnswer);
            }
            answer.extend_from_slice(&chunk);
        }
        let answer = String::from_utf8(answer).map_err(|_| DeviceError::BadAnswer)?;
        // A fault is sent with status 400 or 500 (ONVIF Core §5.11.2).
        let is_unauthorized = matches!(status.as_u16(), 401 | 403) || answer.contains("NotAuthorized");
        match status.is_success() {
            true if !is_unauthorized => Ok(xml::parse_elements(&answer)),
            _ if is_unauthorized => Err(DeviceError::Unauthorized),
            _ => Err(DeviceError::Status(status.as_u16())),
        }
    }
}

/// Returns the header with a digest of the password (WS-Security UsernameToken Profile 1.0 §3.1).
fn ws_security_header(credentials: &Credentials) -> String {
    let mut nonce = [0; 16];
    rand::rng().fill_bytes(&mut nonce);
    let created = OffsetDateTime::from(wall_clock_now());
    let created = created
        .replace_nanosecond(0)
        .unwrap_or(created)
        .format(&Rfc3339)
        .unwrap_or_default();
    build_username_token(credentials, &nonce, &created)
}

fn build_username_token(credentials: &Credentials, nonce: &[u8], created: &str) -> String {
    const WSS_NAMESPACE_PREFIX: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss";
    let password = password_digest(nonce, created, &credentials.password);
    format!(
        "<s:Header><Security s:mustUnderstand=\"1\" xmlns=\"{WSS_NAMESPACE_PREFIX}-wssecurity-secext-1.0.xsd\"><UsernameToken>\
         <Username>{}</Username>\
         <Password Type=\"{WSS_NAMESPACE_PREFIX}-username-token-profile-1.0#PasswordDigest\">{password}</Password>\
         <Nonce EncodingType=\"{WSS_NAMESPACE_PREFIX}-soap-message-security-1.0#Base64Binary\">{}</Nonce>\
         <Created xmlns=\"{WSS_NAMESPACE_PREFIX}-wssecurity-utility-1.0.xsd\">{created}</Created>\
         </UsernameToken></Security></s:Header>",
        escape(&credentials.username),
        STANDARD.encode(nonce),
    )
}

/// SHA-1 is what the profile has.
fn password_digest(nonce: &[u8], created: &str, password: &str) -> String {
    let input = [nonce, created.as_bytes(), password.as_bytes()].concat();
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &input))
}

#[expect(
    clippy::disallowed_methods,
    reason = "cameras compare the time with their wall clock"
)]
fn wall_clock_now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the ONVIF Application Programmer's Guide (§6.1.1.3).
    #[test]
    fn the_password_is_sent_as_its_digest() {
        let nonce = STANDARD.decode("LKqI6G/AikKCQrN0zqZFlg==").expect("base64");
        let digest = password_digest(&nonce, "2010-09-16T07:50:45Z", "userpassword");
        assert_eq!(digest, "tuOSpGlFlIXsozq4HFNeeGeFLEI=");
        let credentials = Credentials {
            username: "a<b".to_owned(),
            password: "userpassword".to_owned(),
        };
        let header = build_username_token(&credentials, &nonce, "2010-09-16T07:50:45Z");
        assert!(header.contains("<Username>a&lt;b</Username>") && !header.contains("userpassword"));
    }

    #[test]
    fn a_profile_says_codec_and_size() {
        let text = "<Profiles token=\"1\"><Name>main\u{7}</Name><VideoEncoderConfiguration><Encoding>H264</Encoding>\
                    <Resolution><Width>1920</Width><Height>1080</Height></Resolution></VideoEncoderConfiguration></Profiles>";
        let elements = xml::parse_elements(text);
        let stream = stream_url_from_profile("rtsp://a/", &elements);
        assert_eq!(
            (
                stream.profile.as_str(),
                stream.codec.as_deref(),
                stream.width,
                stream.height
            ),
            ("main", Some("H264"), Some(1920), Some(1080))
        );
    }
}
