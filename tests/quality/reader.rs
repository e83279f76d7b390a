//! The reader of feedback against another one, and the controller against hostile feedback.

use std::time::{Duration, Instant};

use millstream_core::congestion::feedback::TransportFeedback;
use millstream_core::congestion::ladder::{FrameSelection, QualityLadder, QualityRung};
use millstream_core::congestion::{CongestionController, ControllerAction, PacketPurpose, sent::FlushTimes};
use rtc_rtcp::transport_feedbacks::transport_layer_cc::{PacketStatusChunk, SymbolTypeTcc, TransportLayerCc};
use rtc_shared::marshal::Unmarshal as _;

use crate::rng::Rng;
use crate::{feedback, heap};

/// What a feedback says of each packet: received, and its arrival in ticks since the reference time.
type Statuses = Vec<(u16, bool, Option<i64>)>;

/// Reads with our reader. `None` if it refuses.
fn ours(body: &[u8]) -> Option<Statuses> {
    let feedback = TransportFeedback::parse(body)?;
    let statuses: Statuses = feedback
        .packet_statuses()
        .map(|status| (status.transport_sequence_number, status.received, status.arrival_ticks))
        .collect();
    assert_eq!(
        statuses.len(),
        usize::from(feedback.packet_status_count),
        "a feedback that was taken is complete"
    );
    Some(statuses)
}

/// Reads with the other one. `None` if it refuses, or has read one byte of a delta of two at the end.
fn theirs(body: &[u8]) -> Option<Statuses> {
    let words = body.len().div_ceil(4) as u16;
    let mut packet = vec![0x8f, 205];
    packet.extend_from_slice(&words.to_be_bytes());
    packet.extend_from_slice(body);
    let read = TransportLayerCc::unmarshal(&mut &packet[..]).ok()?;
    let mut symbols = Vec::new();
    for chunk in &read.packet_chunks {
        match chunk {
            PacketStatusChunk::RunLengthChunk(run) => {
                symbols.extend(std::iter::repeat_n(
                    run.packet_status_symbol,
                    usize::from(run.run_length),
                ));
            }
            PacketStatusChunk::StatusVectorChunk(vector) => symbols.extend_from_slice(&vector.symbol_list),
        }
    }
    symbols.truncate(usize::from(read.packet_status_count));
    let (mut ticks, mut deltas, mut number) = (0, read.recv_deltas.iter(), read.base_sequence_number);
    let mut statuses = Vec::new();
    for symbol in symbols {
        let has_delta = matches!(
            symbol,
            SymbolTypeTcc::PacketReceivedSmallDelta | SymbolTypeTcc::PacketReceivedLargeDelta
        );
        let mut at = None;
        if has_delta {
            let delta = deltas.next().filter(|delta| delta.type_tcc_packet == symbol)?;
            ticks += delta.delta / 250;
            at = Some(ticks);
        }
        statuses.push((number, symbol != SymbolTypeTcc::PacketNotReceived, at));
        number = number.wrapping_add(1);
    }
    Some(statuses)
}

/// A valid feedback from `base` on.
fn valid(rng: &mut Rng, base: u16, body: &mut Vec<u8>) {
    let mut at = 1_000_000 + rng.below(1_000) as i64;
    let loss = [0, 500, 5_000][rng.below(3) as usize];
    let statuses: Vec<Option<i64>> = (0..1 + rng.below(60))
        .map(|_| {
            at += rng.below(40) as i64 - 2 + if rng.chance(300) { 500 } else { 0 };
            (!rng.chance(loss)).then_some(at)
        })
        .collect();
    feedback::write(base, &statuses, 0, body);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Changes some bytes, or the length.
fn mutate(rng: &mut Rng, body: &mut Vec<u8>) {
    for _ in 0..rng.below(4) {
        let index = rng.below(body.len() as u64) as usize;
        match rng.below(5) {
            0 => body[index] = rng.next() as u8,
            1 => body[index] ^= 1 << rng.below(8),
            2 => body.truncate((index / 4 * 4).max(4)),
            3 => body.extend_from_slice(&rng.next().to_be_bytes()[..4]),
            _ if body.len() > 20 => body[16..20].copy_from_slice(&rng.next().to_be_bytes()[..4]),
            _ => {}
        }
    }
}

/// How many feedbacks are mutated: all are in the long form.
#[expect(clippy::disallowed_methods, reason = "the environment asks for the long form")]
fn rounds() -> u64 {
    std::env::var("FEEDBACKS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(100_000)
}

#[test]
fn mutated_feedback_is_read_like_another_reader_does() {
    let (mut rng, mut body, mut agreed, mut lenient) = (Rng::new(1), Vec::new(), 0, 0);
    for _ in 0..rounds() {
        let base = rng.next() as u16;
        valid(&mut rng, base, &mut body);
        mutate(&mut rng, &mut body);
        let (ours, theirs) = (ours(&body), theirs(&body));
        match (&ours, &theirs) {
            (Some(_), None) => lenient += 1,
            _ => {
                assert_eq!(ours, theirs, "{body:02x?}");
                agreed += u64::from(ours.is_some());
            }
        }
    }
    // The other one wants a byte after the last chunk, and deltas of packets beyond the count.
    println!("{agreed} read alike, {lenient} by ours alone");
    assert!(agreed > rounds() / 4, "{agreed}");
    assert!(lenient < rounds() / 10, "{lenient}");
}

fn ladder() -> QualityLadder {
    let mut ladder = QualityLadder::new(90_000);
    for (layer, rate) in [(0, 300_000), (1, 1_000_000), (2, 2_500_000)] {
        ladder.push(QualityRung {
            layer,
            frames: FrameSelection::All,
            payload_bitrate: rate,
            usable: true,
        });
    }
    ladder
}

/// A controller to which packets are sent, and its time.
struct Target {
    controller: CongestionController,
    flushes: FlushTimes,
    now: Instant,
    ladder: QualityLadder,
    batch: u32,
}

impl Target {
    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn new() -> Self {
        let now = Instant::now();
        Self {
            controller: CongestionController::new(now, now, None, 0xffff_1234),
            flushes: FlushTimes::new(now),
            now,
            ladder: ladder(),
            batch: 0,
        }
    }

    /// Sends packets, and does what the controller wants.
    fn send(&mut self, packets: u64) {
        self.now += Duration::from_millis(10);
        self.batch += 1;
        self.flushes.record_batch_flush_time(self.batch, self.now);
        let now = self.controller.send_time(self.now);
        for _ in 0..packets {
            self.controller
                .on_packet_sent(now, self.batch, 1_200, PacketPurpose::Media);
        }
        while let Some(action) = self.controller.poll(self.now, &self.ladder) {
            match action {
                ControllerAction::Switch(switch) => {
                    self.controller
                        .on_layer_switch_begun(self.now, switch.layer, switch.frames)
                }
                ControllerAction::SendProbe { .. } => {
                    self.controller
                        .on_packet_sent(now, self.batch, 1_200, PacketPurpose::Probe)
                }
                ControllerAction::ReportQuality(_) => {}
            }
        }
        assert!(self.controller.poll_timeout(self.now).is_none_or(|at| at > self.now));
    }
}

#[test]
fn hostile_feedback_causes_neither_a_panic_nor_an_allocation() {
    let (mut rng, mut target, mut body) = (Rng::new(2), Target::new(), Vec::with_capacity(4_096));
    target.send(3);
    valid(&mut rng, 0, &mut body);
    assert!(target.controller.on_twcc_feedback(target.now, &body, &target.flushes));
    let (mut read, mut allocated) = (0, 0);
    for _ in 0..rounds() {
        // Most of it near to what was sent, so that it is not refused at once.
        let base = match rng.below(4) {
            0 => rng.next() as u16,
            _ => target
                .controller
                .peek_next_transport_sequence_number()
                .wrapping_sub(rng.below(80) as u16),
        };
        valid(&mut rng, base, &mut body);
        mutate(&mut rng, &mut body);
        let before = heap::allocations();
        target.send(rng.below(12));
        read += u64::from(target.controller.on_twcc_feedback(target.now, &body, &target.flushes));
        let now = target.controller.send_time(target.now);
        let _ = target.controller.may_send_video_now(now);
        allocated += heap::allocations() - before;
    }
    assert_eq!(allocated, 0, "allocations");
    assert!(read > rounds() / 4, "{read}");
}

#[test]
fn a_feedback_that_claims_every_number_is_walked_as_far_as_packets_were_sent() {
    let mut target = Target::new();
    // 65,535 packets received without delta in nine chunks, from just before what was sent.
    let claims = |target: &Target| {
        let mut body = vec![0; 16];
        body[8..10].copy_from_slice(
            &target
                .controller
                .peek_next_transport_sequence_number()
                .wrapping_sub(40)
                .to_be_bytes(),
        );
        body[10..12].copy_from_slice(&[0xff, 0xff]);
        body.extend_from_slice(&[0x7f, 0xff].repeat(9));
        body
    };
    target.send(40);
    assert!(
        target
            .controller
            .on_twcc_feedback(target.now, &claims(&target), &target.flushes)
    );
    target.send(40);
    assert!(
        target
            .controller
            .on_twcc_feedback(target.now, &claims(&target), &target.flushes)
    );
    // What is sent after it was not acknowledged by it: its loss counts.
    target.send(40);
    let mut body = Vec::new();
    let lost: Vec<Option<i64>> = (0..40).map(|index| (index == 39).then_some(1)).collect();
    feedback::write(
        target.controller.peek_next_transport_sequence_number().wrapping_sub(40),
        &lost,
        0,
        &mut body,
    );
    assert!(target.controller.on_twcc_feedback(target.now, &body, &target.flushes));
    assert!(
        target.controller.loss_per_256() > Some(100),
        "{:?}",
        target.controller.loss_per_256()
    );
}

/// Prints what a viewer costs. Bytes are judged, times are not: other work on the machine changes them.
#[test]
#[expect(clippy::disallowed_methods, reason = "what is measured is the time of the machine")]
fn the_cost_of_a_viewer_is_printed() {
    let (mut target, mut body) = (Target::new(), Vec::new());
    target.send(15);
    valid(&mut Rng::new(3), 0, &mut body);
    assert!(target.controller.on_twcc_feedback(target.now, &body, &target.flushes));
    let (mut sending, mut feeding, mut polling) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for round in 0..20_i64 {
        let began = Instant::now();
        for _ in 0..10_000 {
            let now = target.controller.send_time(target.now);
            target
                .controller
                .on_packet_sent(now, target.batch, 1_200, PacketPurpose::Media);
        }
        sending = sending.min(began.elapsed() / 10_000);
        let (mut fed, mut polled) = (Duration::ZERO, Duration::ZERO);
        for index in 0..100 {
            let base = target.controller.peek_next_transport_sequence_number();
            target.send(5);
            target.send(5);
            target.send(5);
            let count = target
                .controller
                .peek_next_transport_sequence_number()
                .wrapping_sub(base);
            let arrival = |packet: u16| Some((round * 100 + index) * 200 + i64::from(packet) * 2);
            let arrivals: Vec<Option<i64>> = (0..count).map(arrival).collect();
            feedback::write(base, &arrivals, 0, &mut body);
            let began = Instant::now();
            assert!(target.controller.on_twcc_feedback(target.now, &body, &target.flushes));
            fed += began.elapsed();
            let began = Instant::now();
            let _ = target.controller.poll(target.now, &target.ladder);
            polled += began.elapsed();
        }
        (feeding, polling) = (feeding.min(fed / 100), polling.min(polled / 100));
    }
    let bytes = target.controller.memory_bytes();
    println!(
        "{sending:?} per sent packet, {feeding:?} per feedback of 15 packets, {polling:?} per poll, {bytes} bytes"
    );
    assert!(bytes <= 2_048, "{bytes} bytes");
}
