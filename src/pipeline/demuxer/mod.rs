//! Demuxes HLS segments and sends their frames when they are due. Only this file uses the clock; all else is in
//! [`playout`].

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use self::playout::{Playout, PlayoutError};
use millstream_core::media::MediaKind;
use millstream_core::media::container::SampleCodec;
use millstream_worker_runtime::channel::{
    GatewayMessageReceiver, GatewayMessageSender, connect_to_gateway_and_lower_priority,
};
use millstream_worker_runtime::wire::{
    DemuxJob, LeftOutTracksAndSegments, MessageFromWorker, MessageToWorker, PipelineJob, SegmentChunk, TrackFormat,
    WireFrame, WorkerFailure,
};
use millstream_worker_runtime::{enter_sandbox_or_report_failure, not_started_by_gateway_error};

mod playout;

/// Sandbox limits of a demuxing worker: memory and one processor; no files and no network.
fn demuxer_sandbox_limits(job: DemuxJob) -> PipelineJob {
    PipelineJob {
        launch: String::new(),
        properties: Vec::new(),
        inputs: Vec::new(),
        repeats: false,
        network: false,
        allowed_networks: Vec::new(),
        files: Vec::new(),
        memory: job.memory,
        processors: 1,
    }
}

/// Time between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum number of chunks queued between the threads: a segment is only requested when there is room for it.
const SEGMENT_CHUNK_QUEUE_LENGTH: usize = 4;

/// Runs the worker: reads its job from the gateway, restricts itself, then demuxes until the job is done.
///
/// # Errors
///
/// An error if standard input is not the socket of a gateway.
pub fn run_demuxer_worker() -> io::Result<()> {
    let (gateway, mut commands) = connect_to_gateway_and_lower_priority(c"millstream-hls")?;
    let Some(MessageToWorker::Demux(job)) = commands.receive() else {
        return Err(not_started_by_gateway_error());
    };
    if enter_sandbox_or_report_failure(&demuxer_sandbox_limits(job), &gateway) {
        demux_hls_segments(job, &gateway, commands);
    }
    Ok(())
}

/// Runs until the gateway tells it to stop, the stream ends, or nothing can be played.
fn demux_hls_segments(job: DemuxJob, gateway: &GatewayMessageSender, commands: GatewayMessageReceiver) {
    let (sender, receiver) = sync_channel(SEGMENT_CHUNK_QUEUE_LENGTH);
    std::thread::spawn(move || forward_segment_chunks(commands, &sender));
    match send_frames_when_due(job, gateway, &receiver) {
        Ok(()) => gateway.send(&MessageFromWorker::Ended),
        Err(error) => gateway.send(&MessageFromWorker::Failed(WorkerFailure::Stream(error.to_string()))),
    };
}

/// Ends when the gateway is gone or says stop; the other thread sees it by the channel. Messages for workers of other
/// kinds are ignored: they are not the end of the input.
fn forward_segment_chunks(mut commands: GatewayMessageReceiver, chunk_sender: &SyncSender<SegmentChunk>) {
    while let Some(command) = commands.receive() {
        match command {
            MessageToWorker::SegmentChunk(piece) => {
                if chunk_sender.send(piece).is_err() {
                    return;
                }
            }
            MessageToWorker::Stop => return,
            MessageToWorker::Demux(_)
            | MessageToWorker::RunPipeline(_)
            | MessageToWorker::CheckPipelines(_)
            | MessageToWorker::Frame(_)
            | MessageToWorker::KeyFrameRequest => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock of the worker")]
fn send_frames_when_due(
    job: DemuxJob,
    gateway: &GatewayMessageSender,
    chunks: &Receiver<SegmentChunk>,
) -> Result<(), PlayoutError> {
    let mut playout = Playout::new(job);
    let mut announced = AnnouncedTracks::default();
    let mut next_heartbeat = Instant::now();
    let mut left_out = LeftOutTracksAndSegments::default();
    loop {
        let now = Instant::now();
        for rendition in playout.take_due_segment_requests(now) {
            gateway.send(&MessageFromWorker::SegmentRequest(rendition));
        }
        if !announced.is_ready_announced && playout.next_frame_due_at().is_some_and(|due| due <= now) {
            announced.is_ready_announced = true;
            gateway.send(&MessageFromWorker::Ready(playout.track_kinds()));
        }
        while let Some(due) = playout.poll(now) {
            announced.announce_format_if_changed(gateway, due.codec);
            let frame = WireFrame {
                kind: due.codec.kind(),
                pts_ns: u64::try_from(due.presentation_time.as_nanos()).unwrap_or(u64::MAX),
                after_gap: false,
                bytes: due.bytes,
            };
            gateway.send(&MessageFromWorker::Frame(frame));
        }
        if playout.has_playout_finished() {
            return Ok(());
        }
        if now >= next_heartbeat {
            next_heartbeat = now + HEARTBEAT_INTERVAL;
            let current = playout.left_out_tracks_and_segments();
            if current != left_out {
                left_out = current;
                gateway.send(&MessageFromWorker::LeftOut(left_out.clone()));
            }
            if !gateway.send(&MessageFromWorker::Heartbeat) {
                return Ok(());
            }
        }
        let until = playout
            .next_frame_due_at()
            .map_or(next_heartbeat, |due| due.min(next_heartbeat));
        match chunks.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(chunk) => playout.push_chunk(Instant::now(), chunk)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Tracks and formats that were announced to the gateway.
#[derive(Default)]
struct AnnouncedTracks {
    is_ready_announced: bool,
    video: Option<SampleCodec>,
    audio: Option<SampleCodec>,
}

impl AnnouncedTracks {
    fn announce_format_if_changed(&mut self, gateway: &GatewayMessageSender, content: SampleCodec) {
        let announced = match content.kind() {
            MediaKind::Video => &mut self.video,
            MediaKind::Audio => &mut self.audio,
        };
        if announced.replace(content) != Some(content) {
            gateway.send(&MessageFromWorker::TrackFormat(match content {
                SampleCodec::H264 => TrackFormat::H264,
                SampleCodec::H265 => TrackFormat::H265,
                SampleCodec::Opus => TrackFormat::Opus,
                SampleCodec::Aac(config) => TrackFormat::Aac(config.bytes().to_vec()),
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{Bytes, BytesMut};
    use millstream_worker_runtime::wire::ChunkRole;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    fn frame() -> WireFrame {
        WireFrame {
            kind: MediaKind::Video,
            pts_ns: 0,
            after_gap: false,
            bytes: Bytes::from_static(b"frame"),
        }
    }

    #[test]
    fn messages_for_other_workers_do_not_end_the_input() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        let piece = SegmentChunk {
            rendition_index: 0,
            role: ChunkRole::LastSegmentData,
            timeline_id: 7,
            bytes: Bytes::from_static(b"segment"),
        };
        let job = DemuxJob {
            renditions: 1,
            is_live: true,
            memory: 0,
        };
        let mut bytes = BytesMut::new();
        for message in [
            MessageToWorker::KeyFrameRequest,
            MessageToWorker::Frame(frame()),
            MessageToWorker::RunPipeline(demuxer_sandbox_limits(job)),
            MessageToWorker::CheckPipelines(Vec::new()),
            MessageToWorker::Demux(job),
            MessageToWorker::SegmentChunk(piece.clone()),
            MessageToWorker::Stop,
            MessageToWorker::SegmentChunk(piece.clone()),
        ] {
            message.write(&mut bytes);
        }
        ours.write_all(&bytes).expect("room");
        let commands = GatewayMessageReceiver::new(theirs);
        let (give, take) = sync_channel(SEGMENT_CHUNK_QUEUE_LENGTH);
        // Returns at the stop: the socket is still open.
        forward_segment_chunks(commands, &give);
        drop(give);
        assert_eq!(take.iter().collect::<Vec<_>>(), [piece]);
    }
}
