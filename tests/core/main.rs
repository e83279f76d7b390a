//! What neither reads a clock nor opens a socket, in virtual time: offers and answers, one session, and the fan-out.

mod fanout;
mod sdp;
mod session;
