//! The HTTP interface. Every test starts a gateway in this process, on free ports.

mod access;
mod api_streams;
mod client;
mod connections;
mod event_webhooks;
mod extensions;
mod floods;
mod hls;
mod http2;
mod leftovers;
mod media_by_tcp;
mod offers;
mod operations;
mod pages;
mod preflights;
mod proxies;
mod publishing;
mod revocation;
mod sessions;
mod source_tests;
mod sources;
mod stalls;
mod stream_tokens;
mod tls;
mod watching;
mod webhook;
