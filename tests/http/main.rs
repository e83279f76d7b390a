//! The HTTP side of a whole gateway: every test starts one in this process, on free ports.

mod client;
mod connections;
mod operations;
mod preflights;
mod publishing;
mod sessions;
mod watching;
