//! The floor: the least that any server must do for the same packets, without any gateway.
//!
//! One thread copies each payload once per destination behind a header, seals it with AES-128-GCM under the
//! destination's own key and sends each burst with one segmented send per destination. The destinations are received by
//! the same thread as the viewers. Paced on the stream's own schedule it is like for like: cold caches and wake-ups
//! cost the sender too. Back to back it is what the machine can do at most.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rtc_crypto::{AeadAlgorithm, AeadCipher, RTCCryptoProvider as _, providers::AwsLcRsProvider};

use crate::{
    endpoint,
    receiver::Receiver,
    sdp::{AUDIO_PT, VIDEO_PT},
    stats::{Quantiles, micros_per},
    stream::Burst,
    sys,
    timeline::{Timeline, Track},
    viewer::{Tally, Viewer},
};

/// Most segments of one segmented send (`UDP_MAX_SEGMENTS` of kernels before 6.9).
const MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST: usize = 64;

/// Most bytes of one segmented send: an IPv4 datagram without its headers.
const MAX_BYTES: usize = 65_507;

const HEADER_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// What the floor costs on this machine at this moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Floor {
    /// CPU of the sending thread per packet, in us, on the stream's own schedule.
    pub paced: f64,
    /// The same without a pause between bursts.
    pub back_to_back: f64,
    /// From the start of a burst to each destination's socket, paced.
    pub delay: Quantiles,
    /// Packets that did not reach their destination in the paced part.
    pub lost: u64,
}

impl Floor {
    /// The mean of two measurements; of the delays the worse.
    pub(crate) fn mean(a: &Self, b: &Self) -> Self {
        Self {
            paced: f64::midpoint(a.paced, b.paced),
            back_to_back: f64::midpoint(a.back_to_back, b.back_to_back),
            delay: if a.delay.p99 > b.delay.p99 { a.delay } else { b.delay },
            lost: a.lost + b.lost,
        }
    }
}

/// Measures the floor for `destinations` and `length` of the stream.
///
/// # Errors
///
/// Those of the sockets.
pub(crate) fn measure(bursts: &[Burst], destinations: usize, length: Duration) -> io::Result<Floor> {
    let (paced, mut tally) = round(bursts, destinations, length, true)?;
    let (back_to_back, _) = round(bursts, destinations, length, false)?;
    Ok(Floor {
        paced,
        back_to_back,
        delay: Quantiles::of(&mut tally.delays),
        lost: tally.lost(),
    })
}

/// One round; CPU per packet in us and what arrived.
fn round(bursts: &[Burst], destinations: usize, length: Duration, paced: bool) -> io::Result<(f64, Tally)> {
    let timeline = Arc::new(Timeline::new());
    let mut receiver = Receiver::start(Arc::clone(&timeline))?;
    let mut addresses = Vec::with_capacity(destinations);
    for _ in 0..destinations {
        let socket = endpoint::socket()?;
        if let SocketAddr::V4(address) = socket.local_addr()? {
            addresses.push(address);
        }
        receiver.add(Viewer::bare(socket))?;
    }
    receiver.open()?;
    let mut sender = Sender::new(&addresses)?;
    let packets_before = sender.sent;
    let clock = Arc::clone(&timeline);
    let bursts: Vec<Burst> = bursts.to_vec();
    // A thread of its own, so that its CPU clock counts nothing else.
    let cpu = thread::scope(|scope| {
        let run = scope.spawn(|| sender.run(&bursts, length, paced, &clock));
        run.join()
            .map_err(|_| io::Error::other("the floor's sender panicked"))?
    })?;
    thread::sleep(Duration::from_millis(100));
    let tally = receiver.close(timeline.position())?;
    receiver.stop()?;
    Ok((micros_per(cpu, sender.sent - packets_before), tally))
}

struct Sender {
    socket: UdpSocket,
    destinations: Vec<Destination>,
    payload: Vec<u8>,
    arena: Vec<u8>,
    seq: [u16; 2],
    sent: u64,
}

struct Destination {
    address: SocketAddrV4,
    cipher: Box<dyn AeadCipher>,
}

impl Sender {
    fn new(addresses: &[SocketAddrV4]) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        sys::set_send_buffer(&socket, 4 << 20)?;
        let provider = AwsLcRsProvider::new();
        let mut destinations = Vec::with_capacity(addresses.len());
        for (number, &address) in addresses.iter().enumerate() {
            let mut key = [0x5c; 16];
            key[..8].copy_from_slice(&number.to_be_bytes());
            let cipher = provider
                .crypto()
                .new_aead(AeadAlgorithm::Aes128Gcm, &key)
                .map_err(io::Error::other)?;
            destinations.push(Destination { address, cipher });
        }
        Ok(Self {
            socket,
            destinations,
            payload: (0..MAX_BYTES).map(|i| (i * 31) as u8).collect(),
            arena: vec![0; MAX_BYTES],
            seq: [0; 2],
            sent: 0,
        })
    }

    /// Sends `length` of the stream and returns the CPU time that it took.
    fn run(&mut self, bursts: &[Burst], length: Duration, paced: bool, timeline: &Timeline) -> io::Result<Duration> {
        sys::sharpen_timers();
        let started = Instant::now();
        let before = sys::thread_cpu();
        for burst in bursts.iter().take_while(|burst| burst.at < length) {
            if paced {
                thread::sleep((started + burst.at).saturating_duration_since(Instant::now()));
            }
            let now_ns = sys::realtime_ns();
            burst
                .lengths
                .iter()
                .for_each(|_| timeline.record(burst.track, 0, now_ns));
            let first = self.seq[burst.track.index()];
            for index in 0..self.destinations.len() {
                self.send(index, burst, first)?;
            }
            self.seq[burst.track.index()] = first.wrapping_add(burst.lengths.len() as u16);
        }
        Ok(sys::thread_cpu() - before)
    }

    /// Seals a burst for one destination and sends it, in as few calls as the system allows.
    fn send(&mut self, index: usize, burst: &Burst, first: u16) -> io::Result<()> {
        let Self {
            socket,
            destinations,
            payload,
            arena,
            sent,
            ..
        } = self;
        let destination = &mut destinations[index];
        let (mut filled, mut segment, mut last, mut segments) = (0, 0, 0, 0);
        let (mut source, mut seq) = (0, first);
        for &length in &burst.lengths {
            let sealed = HEADER_LEN + length + TAG_LEN;
            // Only the last segment may be shorter, and none may be longer than the first.
            let fits = last == segment
                && sealed <= segment
                && segments < MAX_SEGMENTS_OR_VARIANTS_PER_PLAYLIST
                && filled + sealed <= MAX_BYTES;
            if !fits && filled > 0 {
                sys::send_segmented(socket, destination.address, &arena[..filled], segment as u16)?;
                filled = 0;
            }
            if filled == 0 {
                (segment, segments) = (sealed, 0);
            }
            let packet = &mut arena[filled..filled + sealed];
            seal(
                destination.cipher.as_mut(),
                packet,
                &payload[source..source + length],
                burst.track,
                seq,
            )?;
            (filled, last, segments) = (filled + sealed, sealed, segments + 1);
            source = (source + length) % (MAX_BYTES / 2);
            seq = seq.wrapping_add(1);
            *sent += 1;
        }
        sys::send_segmented(socket, destination.address, &arena[..filled], segment as u16)?;
        Ok(())
    }
}

fn seal(cipher: &mut dyn AeadCipher, packet: &mut [u8], payload: &[u8], track: Track, seq: u16) -> io::Result<()> {
    let (header, rest) = packet.split_at_mut(HEADER_LEN);
    let (body, tag) = rest.split_at_mut(payload.len());
    let pt = match track {
        Track::Video => VIDEO_PT,
        Track::Audio => AUDIO_PT,
    };
    header[0] = 0x80;
    header[1] = pt;
    header[2..4].copy_from_slice(&seq.to_be_bytes());
    let mut nonce = [0; 12];
    nonce[2] = pt;
    nonce[10..].copy_from_slice(&seq.to_be_bytes());
    body.copy_from_slice(payload);
    cipher
        .seal_in_place(&nonce, header, body, tag)
        .map_err(io::Error::other)
}
