//! SCTP of a peer that has finished DTLS and opened an association: the guard and the stack behind it.
//!
//! The input is a list of packets without their header, which is right. Nothing panics, and what the gateway sends for a
//! packet is bounded.
#![no_main]

use std::time::Duration;

use bytes::Bytes;
use millstream_core::sdp::negotiation_result::{DataPeerRole, DtlsRole, NegotiatedDataChannels};
use millstream_core::session::data::DataTransport;
use millstream_fuzz::{origin, packets};

const FIRST_TSN: u32 = 1_000;

/// Packets that the gateway may send for one of a peer.
const MAX_ANSWERS: usize = 64;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let negotiated = NegotiatedDataChannels {
        peer_role: DataPeerRole::Viewer,
        max_sent_message_size: 64 << 10,
    };
    let mut transport = DataTransport::new(negotiated, DtlsRole::Server);
    let mut now = origin();
    let Some(tag) = open_association(&mut transport) else {
        panic!("an INIT was not answered");
    };
    for chunks in packets(data) {
        now += Duration::from_millis(6);
        transport.handle_packet(now, packet(tag, chunks));
        if transport.poll_timeout().is_some_and(|at| at <= now) {
            transport.handle_timeout(now);
        }
        let answers = std::iter::from_fn(|| transport.poll_packet()).count();
        assert!(answers <= MAX_ANSWERS, "{answers} packets for one");
        while transport.poll_event().is_some() {}
    }
});

/// Opens an association. Returns the verification tag of the gateway.
fn open_association(transport: &mut DataTransport) -> Option<u32> {
    let mut init = vec![1, 0, 0, 32, 0, 0, 0, 1, 0, 1, 0, 0, 0, 16, 0, 16];
    init.extend(FIRST_TSN.to_be_bytes());
    init.extend([0xc0, 0, 0, 4, 0x80, 8, 0, 6, 192, 130, 0, 0]);
    transport.handle_packet(origin(), packet(0, &init));
    let answer = transport.poll_packet()?;
    let tag = u32::from_be_bytes(*answer.get(16..)?.first_chunk()?);
    let mut parameters = answer.get(32..)?;
    loop {
        let [kind, length] = [0, 2].map(|at| parameters.get(at..).and_then(|field| field.first_chunk()));
        let length = usize::from(u16::from_be_bytes(*length?));
        if kind == Some(&[0, 7]) {
            let cookie = parameters.get(4..length)?;
            let mut echo = vec![10, 0];
            echo.extend((length as u16).to_be_bytes());
            echo.extend(cookie);
            transport.handle_packet(origin(), packet(tag, &echo));
            return transport.poll_packet().map(|_| tag);
        }
        parameters = parameters.get(length.next_multiple_of(4)..)?;
    }
}

fn packet(tag: u32, chunks: &[u8]) -> Bytes {
    let mut packet = vec![0x13, 0x88, 0x13, 0x88];
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunks);
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet.into()
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}
