//! One session against an independent peer, in virtual time: how it connects, what ends it, what does not, and what it
//! costs.

mod data;
mod data_attacks;
mod handshake;
mod heap;
mod hostile;
mod life;
mod path;
mod world;
