//! A GStreamer pipeline from a job: frames in at `video_appsrc` and `audio_appsrc`, frames out at `video` and `audio`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app::{AppLeakyType, AppSink, AppSinkCallbacks, AppSrc};

use crate::{address_restriction, rtspsrc_setup};
use millstream_core::media::MediaKind;
use millstream_worker_runtime::channel::{GatewayMessageReceiver, GatewayMessageSender};
use millstream_worker_runtime::wire::{
    MessageFromWorker, MessageToWorker, OutputTrackKinds, PipelineJob, TrackFormat, WireFrame, WorkerFailure,
};

/// A parsed and configured pipeline that does not run yet.
pub(crate) struct PreparedPipeline {
    pipeline: gst::Pipeline,
    appsinks: Vec<(MediaKind, AppSink)>,
    video_appsrc: Option<AppSrc>,
    audio_appsrc: Option<AppSrc>,
}

/// Formats allowed in sinks. The gateway packetizes them itself.
const APPSINK_VIDEO_CAPS: &str = "video/x-h264,stream-format=byte-stream,alignment=au; \
                          video/x-h265,stream-format=byte-stream,alignment=au; image/jpeg";
const APPSINK_AUDIO_CAPS: &str = "audio/x-opus; audio/mpeg,mpegversion=4,stream-format=raw; \
                          audio/x-alaw,rate=8000,channels=1; audio/x-mulaw,rate=8000,channels=1";

/// Maximum number of buffers queued in a sink before it blocks its pipeline.
const MAX_BUFFERS_PER_APPSINK: u32 = 64;

/// Maximum bytes queued in a source; beyond that the oldest buffers are dropped.
const MAX_APPSRC_QUEUE_BYTES: u64 = 8 << 20;

/// Sinks allowed in a launch line. All others write somewhere.
const ALLOWED_SINKS: [&str; 2] = ["appsink", "fakesink"];

/// Time between two heartbeats.
const HEARTBEAT_INTERVAL: gst::ClockTime = gst::ClockTime::from_mseconds(200);

/// Parses the launch line, sets the properties and finds the sources and sinks.
///
/// # Errors
///
/// A [`WorkerFailure`] that names what is missing or wrong.
pub(crate) fn build_pipeline(job: &PipelineJob) -> Result<PreparedPipeline, WorkerFailure> {
    let mut context = gst::ParseContext::new();
    let parsed = gst::parse::launch_full(&job.launch, Some(&mut context), gst::ParseFlags::FATAL_ERRORS);
    let element = parsed.map_err(|error| match error.kind::<gst::ParseError>() {
        Some(gst::ParseError::NoSuchElement) => WorkerFailure::Missing(missing_elements(&job.launch, &context)),
        _ => WorkerFailure::Launch(error.message().to_owned()),
    })?;
    let pipeline = element
        .downcast::<gst::Pipeline>()
        .map_err(|_| WorkerFailure::Launch("the pipeline must have more than one element".to_owned()))?;
    for element in pipeline.iterate_recurse().into_iter().flatten() {
        let Some(factory) = element.factory() else { continue };
        let is_sink = factory.klass().split('/').any(|class| class == "Sink");
        if is_sink && !ALLOWED_SINKS.contains(&factory.name().as_str()) {
            return Err(WorkerFailure::Launch(format!(
                "the sink `{}` is not allowed: use `appsink` or `fakesink`",
                factory.name()
            )));
        }
    }
    rtspsrc_setup::install_rtspsrc_track_and_ssrc_handlers(&pipeline);
    for (target, value) in &job.properties {
        set_property(&pipeline, target, value)?;
    }
    let built = PreparedPipeline {
        appsinks: find_appsinks(&pipeline)?,
        video_appsrc: find_appsrc(&pipeline, "video_in")?,
        audio_appsrc: find_appsrc(&pipeline, "audio_in")?,
        pipeline,
    };
    if built.appsinks.is_empty() {
        return Err(WorkerFailure::Launch(
            "the pipeline needs an `appsink name=video`, an `appsink name=audio`, or both".to_owned(),
        ));
    }
    Ok(built)
}

/// Returns all unknown elements of a launch line: GStreamer names only the first.
fn missing_elements(launch: &str, context: &gst::ParseContext) -> Vec<String> {
    let mut missing: Vec<String> = context.missing_elements().iter().map(ToString::to_string).collect();
    let names = launch
        .split(['!', '\n'])
        .filter_map(|part| part.split_whitespace().next());
    for name in names {
        let is_element = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if is_element && gst::ElementFactory::find(name).is_none() {
            missing.push(name.to_owned());
        }
    }
    missing.sort();
    missing.dedup();
    missing
}

/// Sets a property, parsing the value according to the property's type. A value can never become launch syntax.
fn set_property(pipeline: &gst::Pipeline, target: &str, value: &str) -> Result<(), WorkerFailure> {
    let refused = |problem: String| WorkerFailure::Property {
        target: target.to_owned(),
        problem,
    };
    let (name, property) = target
        .split_once('.')
        .ok_or_else(|| refused("the property name must have the form element.property".to_owned()))?;
    let element = pipeline
        .by_name(name)
        .ok_or_else(|| refused(format!("the pipeline has no element named `{name}`")))?;
    let spec = element
        .find_property(property)
        .ok_or_else(|| refused(format!("the element `{name}` has no property `{property}`")))?;
    let value = if spec.value_type() == gst::glib::Type::STRING {
        // Deserialization would interpret quotes and escapes in it.
        value.to_value()
    } else {
        gst::glib::Value::deserialize_with_pspec(value, &spec)
            .map_err(|_| refused(format!("the value is not of the type {}", spec.value_type().name())))?
    };
    if !spec.flags().contains(gst::glib::ParamFlags::WRITABLE) {
        return Err(refused("the property is read-only".to_owned()));
    }
    element.set_property_from_value(property, &value);
    Ok(())
}

fn find_appsrc<T: IsA<gst::Element>>(pipeline: &gst::Pipeline, name: &str) -> Result<Option<T>, WorkerFailure> {
    let Some(element) = pipeline.by_name(name) else {
        return Ok(None);
    };
    let end = element
        .downcast()
        .map_err(|_| WorkerFailure::Launch(format!("the element named `{name}` must be an appsrc")))?;
    Ok(Some(end))
}

/// Returns the sinks named `video` and `audio`, and those with these prefixes, such as `video_h265`: a stream uses one
/// of each kind.
fn find_appsinks(pipeline: &gst::Pipeline) -> Result<Vec<(MediaKind, AppSink)>, WorkerFailure> {
    let mut sinks = Vec::new();
    for element in pipeline.iterate_recurse().into_iter().flatten() {
        let name = element.name();
        let kind = match name.split('_').next() {
            _ if name.ends_with("_in") => continue,
            Some("video") => MediaKind::Video,
            Some("audio") => MediaKind::Audio,
            _ => continue,
        };
        let sink = element
            .downcast()
            .map_err(|_| WorkerFailure::Launch(format!("the element named `{name}` must be an appsink")))?;
        sinks.push((kind, sink));
    }
    Ok(sinks)
}

/// Runs until the gateway says stop, the stream ends, or something fails.
pub(crate) fn run_pipeline_job(job: &PipelineJob, gateway: &GatewayMessageSender, commands: GatewayMessageReceiver) {
    let result = gst::init()
        .map_err(|error| WorkerFailure::Stream(error.to_string()))
        .and_then(|()| build_pipeline(job))
        .and_then(|built| play_until_end(job, built, gateway, commands));
    match result {
        Ok(()) => gateway.send(&MessageFromWorker::Ended),
        Err(failure) => gateway.send(&MessageFromWorker::Failed(failure)),
    };
}

/// Maps running times to times that all tracks share and that stay continuous when the stream restarts.
#[derive(Default)]
struct LoopedStreamTimeline {
    /// Offset added to running times.
    running_time_offset: AtomicU64,
    /// End of the latest frame so far.
    latest_frame_end: AtomicU64,
    /// Bit masks of the sinks that received a frame, and of those that reached the end of the stream.
    sinks_with_frames_mask: AtomicU64,
    sinks_at_eos_mask: AtomicU64,
}

impl LoopedStreamTimeline {
    fn has_sink_received_frames(&self, sink: usize) -> bool {
        self.sinks_with_frames_mask.load(Ordering::Acquire) & appsink_mask_bit(sink) != 0
    }

    /// Returns whether all used sinks have ended. The pipeline posts no EOS while one of its sinks is not used at all.
    fn all_used_sinks_reached_eos(&self) -> bool {
        let used = self.sinks_with_frames_mask.load(Ordering::Acquire);
        used != 0 && self.sinks_at_eos_mask.load(Ordering::Acquire) & used == used
    }
}

/// Returns the bit of a sink.
fn appsink_mask_bit(sink: usize) -> u64 {
    1 << sink.min(63)
}

fn play_until_end(
    job: &PipelineJob,
    built: PreparedPipeline,
    gateway: &GatewayMessageSender,
    commands: GatewayMessageReceiver,
) -> Result<(), WorkerFailure> {
    let pipeline = built.pipeline.clone();
    address_restriction::restrict_pipeline_to_allowed_networks(&pipeline, job, gateway);
    let timeline = Arc::new(LoopedStreamTimeline::default());
    for (index, (kind, sink)) in built.appsinks.iter().enumerate() {
        configure_appsink(index, *kind, sink, gateway, &timeline)?;
    }
    disable_async_state_changes_of_sinks(&pipeline);
    for input in &job.inputs {
        let source = match input.media.kind() {
            MediaKind::Video => &built.video_appsrc,
            MediaKind::Audio => &built.audio_appsrc,
        };
        let source = source.as_ref().ok_or_else(|| {
            WorkerFailure::Launch(format!("the pipeline has no `appsrc name={}_in`", input.media.kind()))
        })?;
        configure_appsrc(source, &input.media)?;
    }
    gateway.send(&MessageFromWorker::Ready(OutputTrackKinds {
        video: built.appsinks.iter().any(|(kind, _)| *kind == MediaKind::Video),
        audio: built.appsinks.iter().any(|(kind, _)| *kind == MediaKind::Audio),
    }));
    let failed = |error: gst::StateChangeError| {
        pop_bus_error(&pipeline).unwrap_or_else(|| WorkerFailure::Stream(error.to_string()))
    };
    let live = pipeline.set_state(gst::State::Paused).map_err(failed)? == gst::StateChangeSuccess::NoPreroll;
    // A source that is not live is read as fast as possible: its sinks pace the frames in real time.
    let paced = !live && job.inputs.is_empty();
    for (_, sink) in &built.appsinks {
        sink.set_sync(paced);
    }
    pipeline.set_state(gst::State::Playing).map_err(failed)?;

    let stop = Arc::new(AtomicBool::new(false));
    let control = GatewayCommandHandler {
        appsinks: built.appsinks.clone(),
        video_appsrc: built.video_appsrc.clone(),
        audio_appsrc: built.audio_appsrc.clone(),
        gateway: gateway.clone(),
        timeline: timeline.clone(),
    };
    let stopping = stop.clone();
    std::thread::spawn(move || {
        control.handle_gateway_commands(commands);
        stopping.store(true, Ordering::Release);
    });
    let result = run_bus_loop_with_repeat_and_heartbeats(job, &pipeline, &built.appsinks, gateway, &timeline, &stop);
    let _ = pipeline.set_state(gst::State::Null);
    result
}

/// Reads the bus and sends heartbeats.
fn run_bus_loop_with_repeat_and_heartbeats(
    job: &PipelineJob,
    pipeline: &gst::Pipeline,
    sinks: &[(MediaKind, AppSink)],
    gateway: &GatewayMessageSender,
    timeline: &LoopedStreamTimeline,
    stop: &AtomicBool,
) -> Result<(), WorkerFailure> {
    let bus = pipeline
        .bus()
        .ok_or_else(|| WorkerFailure::Stream("internal error: the GStreamer pipeline has no bus".to_owned()))?;
    let mut played = false;
    loop {
        let message = bus.timed_pop(HEARTBEAT_INTERVAL);
        if stop.load(Ordering::Acquire) || !gateway.send(&MessageFromWorker::Heartbeat) {
            return Ok(());
        }
        let view = message.as_ref().map(|message| message.view());
        let over = matches!(view, Some(gst::MessageView::Eos(_))) || timeline.all_used_sinks_reached_eos();
        match view {
            Some(gst::MessageView::Error(error)) => return Err(failure_from_gst_error(error)),
            _ if over && job.repeats => {
                let end = timeline.latest_frame_end.load(Ordering::Acquire);
                played |= end > timeline.running_time_offset.load(Ordering::Acquire);
                if !played {
                    return Err(WorkerFailure::Stream(
                        "the stream ended without a single video or audio frame".to_owned(),
                    ));
                }
                played = false;
                timeline.running_time_offset.store(end, Ordering::Release);
                timeline.sinks_at_eos_mask.store(0, Ordering::Release);
                // Running times begin at zero again and the clock goes on: without this every frame would be late, and be
                // passed on as fast as it is read.
                let offset = i64::try_from(end).unwrap_or(i64::MAX);
                for (_, sink) in sinks {
                    sink.set_property("ts-offset", offset);
                }
                // A sink that is not used cannot forward the seek; from one that is used it reaches the whole source.
                let sink = sinks
                    .iter()
                    .enumerate()
                    .find(|(index, _)| timeline.has_sink_received_frames(*index));
                let sought = sink.is_some_and(|(_, (_, sink))| {
                    sink.seek_simple(gst::SeekFlags::FLUSH | gst::SeekFlags::KEY_UNIT, gst::ClockTime::ZERO)
                        .is_ok()
                });
                sought.then_some(()).ok_or_else(|| {
                    WorkerFailure::Stream(
                        "the stream cannot be restarted at its end (`repeat`): seeking to its beginning failed"
                            .to_owned(),
                    )
                })?;
            }
            _ if over => return Ok(()),
            Some(gst::MessageView::Latency(_)) => {
                let _ = pipeline.recalculate_latency();
            }
            _ => {}
        }
    }
}

/// A sink that waits for a first frame would hold up the others; and after a seek it would give the pipeline a new base
/// time, which the offset of a repetition does not expect.
fn disable_async_state_changes_of_sinks(pipeline: &gst::Pipeline) {
    for sink in pipeline.iterate_sinks().into_iter().flatten() {
        if sink.has_property("async") {
            sink.set_property("async", false);
        }
    }
}

fn pop_bus_error(pipeline: &gst::Pipeline) -> Option<WorkerFailure> {
    let message = pipeline.bus()?.pop_filtered(&[gst::MessageType::Error])?;
    match message.view() {
        gst::MessageView::Error(error) => Some(failure_from_gst_error(error)),
        _ => None,
    }
}

/// Returns the message of a GStreamer error with its element. The gateway removes URLs.
fn failure_from_gst_error(error: &gst::message::Error) -> WorkerFailure {
    let element = error.src().map(|source| source.name().to_string()).unwrap_or_default();
    let text = error.error().message().trim_end_matches('.').to_owned();
    // The last line of the debug info is more specific.
    let detail = error
        .debug()
        .and_then(|debug| Some(debug.lines().map(str::trim).rfind(|line| !line.is_empty())?.to_owned()));
    WorkerFailure::Stream(match detail {
        Some(detail) => format!("{text} ({element}: {detail})"),
        None => format!("{text} ({element})"),
    })
}

/// What the gateway's messages act on.
struct GatewayCommandHandler {
    appsinks: Vec<(MediaKind, AppSink)>,
    video_appsrc: Option<AppSrc>,
    audio_appsrc: Option<AppSrc>,
    gateway: GatewayMessageSender,
    timeline: Arc<LoopedStreamTimeline>,
}

impl GatewayCommandHandler {
    /// Ends when the gateway is gone or says stop. Messages for workers of other kinds are ignored.
    fn handle_gateway_commands(&self, mut commands: GatewayMessageReceiver) {
        while let Some(command) = commands.receive() {
            match command {
                MessageToWorker::Frame(frame) => self.push_frame_to_appsrc(frame),
                MessageToWorker::KeyFrameRequest => self.request_key_frame(),
                MessageToWorker::Stop => return,
                MessageToWorker::RunPipeline(_)
                | MessageToWorker::CheckPipelines(_)
                | MessageToWorker::Demux(_)
                | MessageToWorker::SegmentChunk(_) => {}
            }
        }
    }

    fn push_frame_to_appsrc(&self, frame: WireFrame) {
        let source = match frame.kind {
            MediaKind::Video => &self.video_appsrc,
            MediaKind::Audio => &self.audio_appsrc,
        };
        if let Some(source) = source {
            let _ = source.push_buffer(frame_to_buffer(frame));
        }
    }

    /// Sends GstForceKeyUnit upstream. An encoder takes it, and so does an RTP session whose peer takes PLI; a file, a
    /// demuxer or a socket does not, and this is reported to the gateway.
    fn request_key_frame(&self) {
        let (mut sent, mut taken) = (false, false);
        for (index, (kind, sink)) in self.appsinks.iter().enumerate() {
            // A sink that is not used has nothing upstream.
            if *kind == MediaKind::Video && self.timeline.has_sink_received_frames(index) {
                let request = gst::Structure::builder("GstForceKeyUnit")
                    .field("all-headers", true)
                    .build();
                sent = true;
                taken |= sink.send_event(gst::event::CustomUpstream::new(request));
            }
        }
        if sent && !taken {
            self.gateway.send(&MessageFromWorker::KeyFrameRefused);
        }
    }
}

fn frame_to_buffer(frame: WireFrame) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_slice(frame.bytes);
    if let Some(buffer) = buffer.get_mut() {
        buffer.set_pts(gst::ClockTime::from_nseconds(frame.pts_ns));
        if frame.after_gap {
            buffer.set_flags(gst::BufferFlags::DISCONT);
        }
    }
    buffer
}

fn configure_appsrc(source: &AppSrc, media: &TrackFormat) -> Result<(), WorkerFailure> {
    let caps = match media {
        TrackFormat::H264 => "video/x-h264,stream-format=byte-stream,alignment=au".to_owned(),
        TrackFormat::H265 => "video/x-h265,stream-format=byte-stream,alignment=au".to_owned(),
        TrackFormat::Vp8 => "video/x-vp8".to_owned(),
        TrackFormat::Vp9 => "video/x-vp9".to_owned(),
        TrackFormat::Av1 => "video/x-av1,stream-format=obu-stream,alignment=tu".to_owned(),
        TrackFormat::Jpeg => "image/jpeg".to_owned(),
        TrackFormat::Opus => "audio/x-opus,channel-mapping-family=0,channels=2,rate=48000".to_owned(),
        TrackFormat::Pcmu => "audio/x-mulaw,rate=8000,channels=1".to_owned(),
        TrackFormat::Pcma => "audio/x-alaw,rate=8000,channels=1".to_owned(),
        TrackFormat::Aac(config) => {
            let hex: String = config.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("audio/mpeg,mpegversion=4,stream-format=raw,codec_data=(buffer){hex}")
        }
    };
    let mut caps: gst::Caps = caps.parse().map_err(|_| {
        WorkerFailure::Launch(format!(
            "internal error: GStreamer cannot parse the caps that the gateway sets on the appsrc `{}`: {caps}",
            source.name()
        ))
    })?;
    if let TrackFormat::Aac(config) = media
        && let Some(config) = millstream_core::media::aac::AacConfig::parse(config)
    {
        let caps = caps.make_mut();
        caps.set("rate", config.sample_rate as i32);
        caps.set("channels", i32::from(config.channel_configuration.max(1)));
    }
    source.set_caps(Some(&caps));
    source.set_format(gst::Format::Time);
    source.set_is_live(true);
    source.set_do_timestamp(false);
    source.set_max_bytes(MAX_APPSRC_QUEUE_BYTES);
    source.set_block(false);
    source.set_leaky_type(AppLeakyType::Downstream);
    Ok(())
}

fn configure_appsink(
    index: usize,
    kind: MediaKind,
    sink: &AppSink,
    gateway: &GatewayMessageSender,
    timeline: &Arc<LoopedStreamTimeline>,
) -> Result<(), WorkerFailure> {
    let caps = match kind {
        MediaKind::Video => APPSINK_VIDEO_CAPS,
        MediaKind::Audio => APPSINK_AUDIO_CAPS,
    };
    let caps: gst::Caps = caps.parse().map_err(|_| {
        WorkerFailure::Launch(format!(
            "internal error: GStreamer cannot parse the caps that the gateway sets on the appsink `{}`: {caps}",
            sink.name()
        ))
    })?;
    sink.set_caps(Some(&caps));
    sink.set_max_buffers(MAX_BUFFERS_PER_APPSINK);
    sink.set_drop(false);
    sink.set_wait_on_eos(false);
    let (gateway, timeline) = (gateway.clone(), timeline.clone());
    let announced: Mutex<Option<TrackFormat>> = Mutex::new(None);
    let (ended_timeline, bit) = (timeline.clone(), appsink_mask_bit(index));
    let callbacks = AppSinkCallbacks::builder()
        .eos(move |_| {
            ended_timeline.sinks_at_eos_mask.fetch_or(bit, Ordering::AcqRel);
        })
        .new_sample(move |sink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            timeline.sinks_with_frames_mask.fetch_or(bit, Ordering::AcqRel);
            let Some(media) = sample.caps().and_then(track_format_from_caps) else {
                return Err(gst::FlowError::NotNegotiated);
            };
            let mut announced = announced.lock().unwrap_or_else(PoisonError::into_inner);
            if announced.as_ref() != Some(&media) {
                gateway.send(&MessageFromWorker::TrackFormat(media.clone()));
                *announced = Some(media);
            }
            let Some(frame) = sample_to_frame_and_extend_timeline(kind, &sample, &timeline) else {
                return Ok(gst::FlowSuccess::Ok);
            };
            match gateway.send(&MessageFromWorker::Frame(frame)) {
                true => Ok(gst::FlowSuccess::Ok),
                false => Err(gst::FlowError::Eos),
            }
        })
        .build();
    sink.set_callbacks(callbacks);
    Ok(())
}

/// Returns the frame of a sample; `None` if its buffer is empty or has no timestamp.
fn sample_to_frame_and_extend_timeline(
    kind: MediaKind,
    sample: &gst::Sample,
    timeline: &LoopedStreamTimeline,
) -> Option<WireFrame> {
    let buffer = sample.buffer()?;
    let segment = sample.segment()?.downcast_ref::<gst::ClockTime>()?;
    let pts = buffer.pts().or(buffer.dts())?;
    let running = segment
        .to_running_time(pts)
        .or_else(|| segment.to_running_time(buffer.dts()?))?;
    let time = running.nseconds() + timeline.running_time_offset.load(Ordering::Acquire);
    let duration = buffer.duration().unwrap_or(gst::ClockTime::from_mseconds(20));
    timeline
        .latest_frame_end
        .fetch_max(time + duration.nseconds(), Ordering::AcqRel);
    let map = buffer.map_readable().ok()?;
    (!map.is_empty()).then(|| WireFrame {
        kind,
        pts_ns: time,
        after_gap: buffer.flags().contains(gst::BufferFlags::DISCONT),
        bytes: Bytes::copy_from_slice(&map),
    })
}

fn track_format_from_caps(caps: &gst::CapsRef) -> Option<TrackFormat> {
    let structure = caps.structure(0)?;
    Some(match structure.name().as_str() {
        "video/x-h264" => TrackFormat::H264,
        "video/x-h265" => TrackFormat::H265,
        "image/jpeg" => TrackFormat::Jpeg,
        "audio/x-opus" => TrackFormat::Opus,
        "audio/x-alaw" => TrackFormat::Pcma,
        "audio/x-mulaw" => TrackFormat::Pcmu,
        "audio/mpeg" => {
            let config = structure.get::<gst::Buffer>("codec_data").ok()?;
            let map = config.map_readable().ok()?;
            TrackFormat::Aac(map.to_vec())
        }
        _ => return None,
    })
}
