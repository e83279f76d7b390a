//! Shards that run on threads of their own, as they do in the gateway, and meet in the hub.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_core::hub::name::StreamName;
use millstream_core::hub::source_rewriter::{IngestSeqAndTimestampRewriter, ReceivedPacket};
use millstream_core::hub::stream::{LayerOrigin, LayerSelection, ShardIndex, SimulcastLayer, SourceRef};
use millstream_core::media::Rid;
use millstream_core::media::packet::Packet;
use millstream_core::shard::message::ShardMessage;
use millstream_test_support::VideoConfig;

use crate::fanout::publisher::Publisher;
use crate::fanout::world::{Shard, World};
use crate::fanout::{SECOND, near};

/// Of each of the two viewers.
const CHANGES: usize = 100_000;

/// Longer than a viewer waits for a new key frame of the layer that it changes to.
const PATIENCE: Duration = Duration::from_secs(6);

/// No change of layer takes so long on any machine: the shards wait for each other.
const STANDSTILL: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(100);

/// Two viewers on two shards change between the same two layers in opposite directions, as fast as they can.
#[test]
fn shards_whose_viewers_change_layers_crosswise_never_wait_for_each_other() {
    let mut world = World::new(77, 2, 8192);
    world.publish("live", 0, near(), Publisher::deaf(VideoConfig::default()));
    world.run(SECOND);
    let viewers = [world.watch("live", 0, near()), world.watch("live", 1, near())];
    world.run(SECOND);
    add_layers(&world, ["h", "l"]);
    let sessions = viewers.map(|viewer| world.nodes[viewer].session);
    let start = world.now;
    let changes = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = world
        .into_shards()
        .into_iter()
        .zip(sessions)
        .enumerate()
        .map(|(first, (Shard { mut core, sent }, session))| {
            let changes = changes.clone();
            std::thread::spawn(move || {
                let mut now = start;
                for change in 0..CHANGES {
                    let rid = ["h", "l"][(change + first) % 2];
                    // The first message names the layer; when the second one comes, its cached key frame has to do.
                    for _ in 0..2 {
                        let selection = LayerSelection::Named(Rid(rid.into()));
                        core.handle_message(now, ShardMessage::SelectLayer { session, selection });
                        now += PATIENCE;
                    }
                    core.finish_tick(now);
                    let datagrams = std::mem::take(&mut *sent.lock().expect("not poisoned")).len();
                    assert!(datagrams > 0, "change {change} began with no key frame");
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let (mut before, mut idle) = (0, Duration::ZERO);
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        wait(STEP);
        let changes = changes.load(Ordering::Relaxed);
        idle = if changes > before { Duration::ZERO } else { idle + STEP };
        before = changes;
        assert!(idle < STANDSTILL, "the shards stand still after {changes} changes");
    }
    for thread in threads {
        thread.join().expect("a shard that changes layers");
    }
    assert_eq!(changes.load(Ordering::Relaxed), 2 * CHANGES);
}

#[expect(clippy::disallowed_methods, reason = "waits for threads that run in real time")]
fn wait(duration: Duration) {
    std::thread::sleep(duration);
}

/// Gives the stream two layers, each with the first key frame of the stream in its ring.
pub(super) fn add_layers(world: &World, rids: [&str; 2]) {
    let name = StreamName::parse("live").expect("a name");
    let home = world.shared.hub.find_stream(&name).expect("published");
    let (source, formats, key_frame) = home.with_state(|state| {
        let ring = state.video.ring();
        let start = ring.newest_key_frame_seq().expect("a key frame");
        let time = ring.get(start).expect("its first packet").packet.time;
        let packets = (start..ring.end_seq()).map_while(|seq| ring.get(seq).map(|entry| entry.packet.clone()));
        let key_frame: Vec<Packet> = packets.take_while(|packet| packet.time == time).collect();
        (
            state.source().expect("a publisher"),
            state.formats().expect("formats"),
            key_frame,
        )
    });
    for rid in rids {
        world
            .shared
            .hub
            .open_and_update_stream(name.lower_simulcast_layer_key(&Rid(rid.into())), |state| {
                let source = SourceRef {
                    shard: ShardIndex::NO_SHARD,
                    ..source
                };
                state.replace_source(source, &formats);
                let packets = key_frame.iter().map(received);
                IngestSeqAndTimestampRewriter::with_track_timestamps().rewrite_packets_into_ring(
                    &mut state.video,
                    packets,
                    &mut Vec::new(),
                );
            });
    }
    let layer = |rid: &str| SimulcastLayer {
        rid: Rid(rid.into()),
        resolution: Some((640, 360)),
        measured_bitrate: 1_000_000,
        active: true,
        is_carried_by_main_stream: false,
        is_lossy: false,
        origin: LayerOrigin::Pushed,
    };
    home.with_state(|state| state.set_layers(rids.map(layer).to_vec()));
}

/// A packet of a track as a source would send it.
fn received(packet: &Packet) -> ReceivedPacket {
    ReceivedPacket {
        numbering_epoch: 0,
        seq: packet.seq,
        timestamp: packet.time,
        marker: packet.marker,
        codec: packet.codec,
        identifies_key_frame: packet.identifies_key_frame,
        parameter_sets_to_insert: Vec::new(),
        payload: packet.payload.clone(),
        arrival: packet.arrival,
        captured_at: None,
    }
}
