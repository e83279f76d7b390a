//! One session against an independent peer, in virtual time: how it connects, what ends it, and what does not.

mod handshake;
mod hostile;
mod life;
mod world;
