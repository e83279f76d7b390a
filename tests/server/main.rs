//! The external interfaces of the gateway: HTTP, HLS packaging, and the command line.

mod command_line;
mod hls;
mod http;
