//! The outgoing direction of one session: packets are sealed with its keys, addressed to its peer and put into the outbox.

use super::Session;
use super::outbox::{Destination, Outbox, RtpHeader};
use super::srtp::{RtpCipher, SrtpError};

/// The outgoing direction of one session.
pub struct Egress<'a> {
    session: &'a mut Session,
    destination: Option<Destination>,
    outbox: &'a mut Outbox,
}

/// The same for RTP, once the handshake is complete.
pub struct RtpEgress<'a> {
    cipher: &'a mut RtpCipher,
    destination: Destination,
    outbox: &'a mut Outbox,
}

impl<'a> Egress<'a> {
    /// `destination` is `None` until ICE has found one; nothing is sent before.
    pub fn new(session: &'a mut Session, destination: Option<Destination>, outbox: &'a mut Outbox) -> Self {
        Self {
            session,
            destination,
            outbox,
        }
    }

    /// Returns what sends RTP; `None` before the handshake is complete and after the end of the session.
    pub(crate) fn rtp_egress(&mut self) -> Option<RtpEgress<'_>> {
        let destination = self.destination?;
        Some(RtpEgress::new(
            self.session.outgoing_rtp_cipher()?,
            destination,
            self.outbox,
        ))
    }

    /// Sends a compound RTCP packet, if the session can.
    pub fn send_rtcp(&mut self, compound: &[u8]) {
        let Some(destination) = self.destination else { return };
        if let Some(sealed) = self.session.encrypt_rtcp(compound) {
            self.outbox.push_datagram(destination, &sealed);
        }
    }
}

impl<'a> RtpEgress<'a> {
    pub fn new(cipher: &'a mut RtpCipher, destination: Destination, outbox: &'a mut Outbox) -> Self {
        Self {
            cipher,
            destination,
            outbox,
        }
    }

    /// Returns the batch of the outbox that the last packet belongs to.
    pub(crate) fn current_batch_number(&self) -> u32 {
        self.outbox.current_batch_number()
    }

    /// Sends a packet with this header.
    ///
    /// # Errors
    ///
    /// [`SrtpError`] from the crypto library; nothing is sent.
    pub fn send(&mut self, header: RtpHeader, payload: &[u8]) -> Result<(), SrtpError> {
        self.outbox
            .encrypt_and_push_rtp(self.destination, self.cipher, header, payload)
    }

    /// Sends a packet once more on the RTX stream (RFC 4588 §4); `original` is its sequence number on the media stream.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub(crate) fn send_rtx(&mut self, header: RtpHeader, original: u16, payload: &[u8]) -> Result<(), SrtpError> {
        self.outbox
            .encrypt_and_push_rtx(self.destination, self.cipher, header, original, payload)
    }
}
