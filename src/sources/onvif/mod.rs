//! Finds the cameras of the local network: WS-Discovery 1.1 asks for ONVIF devices by multicast, and the ONVIF media
//! service of each says what its RTSP URLs are. Runs only when an operator asks for it, and ends after some seconds.
//!
//! * [`device`]: a device that answered.
//! * [`probe`]: the question to all devices, and their answers.
//! * [`media`]: the URLs of one device, by SOAP.
//! * `xml`: reads the answers.
//!
//! Whoever is in the network can answer. A device is asked only at the address that its answer came from, whatever
//! addresses the answer has, and everything that is read is bounded.

pub mod device;
pub mod media;
pub mod probe;
mod xml;
