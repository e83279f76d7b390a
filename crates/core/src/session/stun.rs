//! STUN binding request for our public address (RFC 8489 §3): message encoding and decoding without IO.

use std::net::IpAddr;

use rtc_stun::message::{BINDING_REQUEST, BINDING_SUCCESS, Getter as _, Message, TransactionId};
use rtc_stun::xoraddr::XorMappedAddress;

use super::ice::random_transaction_id;

/// A binding request that was sent and awaits its response.
pub struct PendingBindingRequest {
    transaction_id: TransactionId,
    /// Encoded message.
    pub encoded_message: Vec<u8>,
}

impl PendingBindingRequest {
    pub fn new(random: &mut dyn FnMut() -> u32) -> Self {
        let transaction = random_transaction_id(random);
        let mut message = Message::new();
        message.set_type(BINDING_REQUEST);
        message.transaction_id = transaction;
        message.write_header();
        Self {
            transaction_id: transaction,
            encoded_message: message.raw,
        }
    }

    /// Returns our public address if `datagram` is the success response to this request.
    pub fn parse_mapped_address(&self, datagram: &[u8]) -> Option<IpAddr> {
        let mut message = Message::new();
        message.raw = datagram.to_vec();
        message.decode().ok()?;
        if message.typ != BINDING_SUCCESS || message.transaction_id != self.transaction_id {
            return None;
        }
        let mut mapped = XorMappedAddress::default();
        mapped.get_from(&message).ok()?;
        let ip = mapped.ip.to_canonical();
        (!ip.is_unspecified() && !ip.is_multicast()).then_some(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtc_stun::message::Setter as _;

    #[test]
    fn only_the_response_to_the_request_counts() {
        let binding = PendingBindingRequest::new(&mut || 7);
        let answer = |transaction, ip: &str| {
            let mut message = Message::new();
            message.set_type(BINDING_SUCCESS);
            message.transaction_id = transaction;
            message.write_header();
            let ip = ip.parse().expect("an address");
            XorMappedAddress { ip, port: 9 }.add_to(&mut message).expect("fits");
            message.raw
        };
        let good = answer(binding.transaction_id, "203.0.113.7");
        assert_eq!(
            binding.parse_mapped_address(&good),
            Some(IpAddr::from([203, 0, 113, 7]))
        );
        assert_eq!(
            binding.parse_mapped_address(&answer(TransactionId([1; 12]), "203.0.113.7")),
            None
        );
        assert_eq!(
            binding.parse_mapped_address(&answer(binding.transaction_id, "0.0.0.0")),
            None
        );
        assert_eq!(binding.parse_mapped_address(&binding.encoded_message), None);
        for length in 0..good.len() {
            assert_eq!(binding.parse_mapped_address(&good[..length]), None);
        }
    }
}
