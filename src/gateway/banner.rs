//! What `millstream serve` prints once the gateway runs: the URLs to open, and how to publish.

use std::net::SocketAddr;

use super::Gateway;

/// Returns the text. It contains the publish token only if that was generated at start: nothing else shows it.
pub fn banner(gateway: &Gateway, has_demo: bool) -> String {
    let scheme = gateway.config.http.scheme();
    let http = gateway.http_address();
    let announced = gateway.media_plane().candidate_addresses().first().map(SocketAddr::ip);
    let ip = Some(http.ip())
        .filter(|ip| !ip.is_unspecified())
        .or(announced)
        .unwrap_or(http.ip());
    let host = SocketAddr::new(ip, http.port());
    // Browsers allow cameras on localhost, but not on another address without TLS.
    let publishing_host = match http.ip() {
        _ if scheme == "https" => host.to_string(),
        ip if ip.is_unspecified() || ip.is_loopback() => format!("localhost:{}", http.port()),
        _ => host.to_string(),
    };
    let token = gateway
        .generated_publish_token()
        .map_or("the configured publish token", |token| token.reveal());
    let watching = match gateway.config.auth.is_play_token_or_file_set() {
        true => " (needs the play token)",
        false => "",
    };
    let demo = match has_demo {
        true => format!("Test video       {scheme}://{host}/watch/demo{watching}\n  "),
        false => String::new(),
    };
    format!(
        "\n  Millstream is running.\n\n  {demo}\
         Watch            {scheme}://{host}/watch/live{watching}\n  \
         Publish          {scheme}://{publishing_host}/publish/live\n\n  \
         OBS Studio, Settings > Stream\n    \
         Service        WHIP\n    \
         Server         {scheme}://{host}/whip/live\n    \
         Bearer Token   {token}\n\n  \
         Replace `live` with any stream name.\n\n"
    )
}
