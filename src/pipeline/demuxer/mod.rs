//! Demuxes HLS segments and sends their frames when they are due. Only this file uses the clock; all else is in
//! [`playout`].

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use self::playout::{Playout, PlayoutError};
use millstream_core::media::Kind;
use millstream_core::media::container::Content;
use millstream_worker_runtime::channel::{Commands, Gateway, connect};
use millstream_worker_runtime::wire::{DemuxJob, Failure, FromWorker, Job, Media, SegmentChunk, ToWorker, WireFrame};
use millstream_worker_runtime::{not_started_by_gateway, restrict};

mod playout;

/// Sandbox limits of a demuxing worker: memory and one processor; no files and no network.
fn limits(job: DemuxJob) -> Job {
    Job {
        launch: String::new(),
        properties: Vec::new(),
        inputs: Vec::new(),
        repeats: false,
        network: false,
        files: Vec::new(),
        memory: job.memory,
        processors: 1,
    }
}

/// Time between two heartbeats.
const ALIVE: Duration = Duration::from_millis(200);

/// Maximum number of chunks queued between the threads: a segment is only requested when there is room for it.
const QUEUE: usize = 4;

/// Runs the worker: reads its job from the gateway, restricts itself, then demuxes until the job is done.
///
/// # Errors
///
/// An error if standard input is not the socket of a gateway.
pub fn run() -> io::Result<()> {
    let (gateway, mut commands) = connect(c"millstream-hls")?;
    let Some(ToWorker::Demux(job)) = commands.receive() else {
        return Err(not_started_by_gateway());
    };
    if restrict(&limits(job), &gateway) {
        demux(job, &gateway, commands);
    }
    Ok(())
}

/// Runs until the gateway tells it to stop, the stream ends, or nothing can be played.
fn demux(job: DemuxJob, gateway: &Gateway, commands: Commands) {
    let (sender, receiver) = sync_channel(QUEUE);
    std::thread::spawn(move || read(commands, &sender));
    match play(job, gateway, &receiver) {
        Ok(()) => gateway.notify(&FromWorker::Ended),
        Err(error) => gateway.notify(&FromWorker::Failed(Failure::Stream(error.to_string()))),
    };
}

/// Ends when the gateway is gone or says stop; the other thread sees it by the channel. Messages for workers of other
/// kinds are ignored: they are not the end of the input.
fn read(mut commands: Commands, give: &SyncSender<SegmentChunk>) {
    while let Some(command) = commands.receive() {
        match command {
            ToWorker::SegmentChunk(piece) => {
                if give.send(piece).is_err() {
                    return;
                }
            }
            ToWorker::Stop => return,
            ToWorker::Demux(_) | ToWorker::Run(_) | ToWorker::Check(_) | ToWorker::Frame(_) | ToWorker::KeyFrame => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the clock of the worker")]
fn play(job: DemuxJob, gateway: &Gateway, chunks: &Receiver<SegmentChunk>) -> Result<(), PlayoutError> {
    let mut playout = Playout::new(job);
    let mut announced = AnnouncedTracks::default();
    let mut alive = Instant::now();
    loop {
        let now = Instant::now();
        for rendition in playout.due_requests(now) {
            gateway.notify(&FromWorker::Want(rendition));
        }
        if !announced.ready && playout.next_due().is_some_and(|due| due <= now) {
            announced.ready = true;
            gateway.notify(&FromWorker::Ready(playout.tracks()));
        }
        while let Some(due) = playout.poll(now) {
            announced.notify(gateway, due.content);
            let frame = WireFrame {
                kind: due.content.kind(),
                time: u64::try_from(due.present.as_nanos()).unwrap_or(u64::MAX),
                after_gap: false,
                bytes: due.bytes,
            };
            gateway.notify(&FromWorker::Frame(frame));
        }
        if playout.is_over() {
            return Ok(());
        }
        if now >= alive {
            alive = now + ALIVE;
            if !gateway.notify(&FromWorker::Alive) {
                return Ok(());
            }
        }
        let until = playout.next_due().map_or(alive, |due| due.min(alive));
        match chunks.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(chunk) => playout.take(Instant::now(), chunk)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Tracks and formats that were announced to the gateway.
#[derive(Default)]
struct AnnouncedTracks {
    ready: bool,
    video: Option<Content>,
    audio: Option<Content>,
}

impl AnnouncedTracks {
    fn notify(&mut self, gateway: &Gateway, content: Content) {
        let announced = match content.kind() {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
        };
        if announced.replace(content) != Some(content) {
            gateway.notify(&FromWorker::Media(match content {
                Content::H264 => Media::H264,
                Content::H265 => Media::H265,
                Content::Opus => Media::Opus,
                Content::Aac(config) => Media::Aac(config.bytes().to_vec()),
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
            kind: Kind::Video,
            time: 0,
            after_gap: false,
            bytes: Bytes::from_static(b"frame"),
        }
    }

    #[test]
    fn messages_for_other_workers_do_not_end_the_input() {
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        let piece = SegmentChunk {
            rendition: 0,
            role: ChunkRole::Last,
            timeline: 7,
            bytes: Bytes::from_static(b"segment"),
        };
        let job = DemuxJob {
            renditions: 1,
            is_live: true,
            memory: 0,
        };
        let mut bytes = BytesMut::new();
        for message in [
            ToWorker::KeyFrame,
            ToWorker::Frame(frame()),
            ToWorker::Run(limits(job)),
            ToWorker::Check(Vec::new()),
            ToWorker::Demux(job),
            ToWorker::SegmentChunk(piece.clone()),
            ToWorker::Stop,
            ToWorker::SegmentChunk(piece.clone()),
        ] {
            message.write(&mut bytes);
        }
        ours.write_all(&bytes).expect("room");
        let commands = Commands::new(theirs);
        let (give, take) = sync_channel(QUEUE);
        // Returns at the stop: the socket is still open.
        read(commands, &give);
        drop(give);
        assert_eq!(take.iter().collect::<Vec<_>>(), [piece]);
    }
}
