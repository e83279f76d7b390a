//! The gateway from outside: its HTTP interface, what it packages for HLS, and the program with its command line.

mod command_line;
mod hls;
mod http;
