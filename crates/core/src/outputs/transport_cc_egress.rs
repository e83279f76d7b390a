//! Sends the RTP packets of one viewer, and numbers them for its congestion control.

use std::time::Instant;

use crate::congestion::{CongestionController, PacketPurpose, SendTime};
use crate::session::egress::RtpEgress;
use crate::session::outbox::{
    MAX_EXTENSION_LEN, RTP_HEADER_LEN, RtpHeader, TRANSPORT_SEQUENCE_NUMBER_EXTENSION_LEN, TransportSequenceNumber,
};
use crate::session::srtp::{MAX_AUTH_TAG_LEN, SrtpError};

/// The RTP of one viewer, on its way out.
pub struct TransportCcEgress<'a> {
    rtp: RtpEgress<'a>,
    /// What counts the packets of tracks that carry transport-wide numbers, and its time.
    controller: Option<(&'a mut CongestionController, SendTime)>,
    /// The pacer was asked once: its credit is that of this time.
    has_asked_pacer: bool,
    now: Instant,
}

/// A packet besides its header, before it is numbered.
#[derive(Clone, Copy, Debug)]
pub struct OutgoingPayload<'a> {
    pub bytes: &'a [u8],
    /// Sequence number on the media stream, for a packet on the RTX stream.
    pub rtx_original_seq: Option<u16>,
    /// Id of the header extension for transport-wide numbers, if this packet gets one.
    pub transport_cc_id: Option<u8>,
}

/// Headers of IPv4 and UDP, in bytes.
const IPV4_AND_UDP_HEADERS_LEN: usize = 28;

/// Longest datagram that leaves an Ethernet link unfragmented over IPv6, in bytes.
const MAX_DATAGRAM_LEN: usize = 1_452;

/// Original sequence number of a retransmission (RFC 4588 §4), in bytes.
const RTX_ORIGINAL_SEQ_LEN: usize = 2;

/// Whether a packet with so many bytes of payload and padding carries a transport-wide number: not if it fits into a
/// datagram only without. Depends on nothing else, so that a retransmission has the header of its original.
pub fn has_room_for_transport_sequence_number(payload_and_padding: usize) -> bool {
    has_room_for_extension(TRANSPORT_SEQUENCE_NUMBER_EXTENSION_LEN, payload_and_padding)
}

fn has_room_for_extension(extension_len: usize, payload_and_padding: usize) -> bool {
    RTP_HEADER_LEN + extension_len + RTX_ORIGINAL_SEQ_LEN + payload_and_padding + MAX_AUTH_TAG_LEN <= MAX_DATAGRAM_LEN
}

impl<'a> TransportCcEgress<'a> {
    pub fn new(rtp: RtpEgress<'a>, controller: Option<&'a mut CongestionController>, now: Instant) -> Self {
        Self {
            rtp,
            controller: controller.map(|controller| {
                let time = controller.send_time(now);
                (controller, time)
            }),
            has_asked_pacer: false,
            now,
        }
    }

    /// Returns the time of the tick.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Whether the pacer lets a packet of video leave now.
    #[inline]
    pub fn may_send_video(&mut self) -> bool {
        let Some((controller, time)) = &mut self.controller else {
            return true;
        };
        if std::mem::replace(&mut self.has_asked_pacer, true) {
            controller.may_send_more_video()
        } else {
            controller.may_send_video_now(*time)
        }
    }

    /// Sends a packet, with the playout delay of its header if that fits. Returns its transport-wide number, if it has one.
    ///
    /// # Errors
    ///
    /// [`SrtpError`] from the crypto library; nothing is sent.
    pub fn send(
        &mut self,
        mut header: RtpHeader,
        payload: OutgoingPayload<'_>,
        purpose: PacketPurpose,
    ) -> Result<Option<u16>, SrtpError> {
        let length = payload.bytes.len() + usize::from(header.padding_len);
        let id = payload
            .transport_cc_id
            .filter(|_| has_room_for_transport_sequence_number(length));
        header.playout_delay = header
            .playout_delay
            .filter(|_| has_room_for_extension(MAX_EXTENSION_LEN, length));
        let delay_len = match header.playout_delay {
            Some(_) => MAX_EXTENSION_LEN - TRANSPORT_SEQUENCE_NUMBER_EXTENSION_LEN,
            None => 0,
        };
        let numbered = id.zip(self.controller.as_mut());
        header.transport_sequence_number = numbered.as_ref().map(|(id, (controller, _))| TransportSequenceNumber {
            extension_id: *id,
            number: controller.peek_next_transport_sequence_number(),
        });
        match payload.rtx_original_seq {
            Some(original) => self.rtp.send_rtx(header, original, payload.bytes)?,
            None => self.rtp.send(header, payload.bytes)?,
        }
        let Some((_, (controller, time))) = numbered else {
            return Ok(None);
        };
        let number = controller.peek_next_transport_sequence_number();
        controller.on_packet_sent(
            *time,
            self.rtp.current_batch_number(),
            wire_len(length + delay_len),
            purpose,
        );
        Ok(Some(number))
    }

    /// Sends a packet once more, byte for byte as before: with the number that it had.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn resend_unchanged(&mut self, header: RtpHeader, payload: &[u8]) -> Result<(), SrtpError> {
        self.rtp.send(header, payload)
    }
}

/// Bytes of a packet on the wire.
pub fn wire_len(payload_and_padding: usize) -> u32 {
    let length = payload_and_padding
        + RTP_HEADER_LEN
        + TRANSPORT_SEQUENCE_NUMBER_EXTENSION_LEN
        + MAX_AUTH_TAG_LEN
        + IPV4_AND_UDP_HEADERS_LEN;
    u32::try_from(length).unwrap_or(u32::MAX)
}
