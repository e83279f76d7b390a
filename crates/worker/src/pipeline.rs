//! A GStreamer pipeline from a job: frames in at `video_in` and `audio_in`, frames out at `video` and `audio`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app::{AppLeakyType, AppSink, AppSinkCallbacks, AppSrc};

use crate::cameras;
use millstream_core::media::Kind;
use millstream_worker_runtime::channel::{Commands, Gateway};
use millstream_worker_runtime::wire::{Failure, FromWorker, Job, Media, ToWorker, Tracks, WireFrame};

/// A parsed and configured pipeline that does not run yet.
pub(crate) struct PreparedPipeline {
    pipeline: gst::Pipeline,
    sinks: Vec<(Kind, AppSink)>,
    video_in: Option<AppSrc>,
    audio_in: Option<AppSrc>,
}

/// Formats allowed in sinks. The gateway packetizes them itself.
const VIDEO_CAPS: &str = "video/x-h264,stream-format=byte-stream,alignment=au; \
                          video/x-h265,stream-format=byte-stream,alignment=au; image/jpeg";
const AUDIO_CAPS: &str = "audio/x-opus; audio/mpeg,mpegversion=4,stream-format=raw; \
                          audio/x-alaw,rate=8000,channels=1; audio/x-mulaw,rate=8000,channels=1";

/// Maximum number of buffers queued in a sink before it blocks its pipeline.
const SINK_BUFFERS: u32 = 64;

/// Maximum bytes queued in a source; beyond that the oldest buffers are dropped.
const SOURCE_BYTES: u64 = 8 << 20;

/// Sinks allowed in a launch line. All others write somewhere.
const HARMLESS_SINKS: [&str; 2] = ["appsink", "fakesink"];

/// Time between two heartbeats.
const ALIVE: gst::ClockTime = gst::ClockTime::from_mseconds(200);

/// Parses the launch line, sets the properties and finds the sources and sinks.
///
/// # Errors
///
/// A [`Failure`] that names what is missing or wrong.
pub(crate) fn build(job: &Job) -> Result<PreparedPipeline, Failure> {
    let mut context = gst::ParseContext::new();
    let parsed = gst::parse::launch_full(&job.launch, Some(&mut context), gst::ParseFlags::FATAL_ERRORS);
    let element = parsed.map_err(|error| match error.kind::<gst::ParseError>() {
        Some(gst::ParseError::NoSuchElement) => Failure::Missing(missing(&job.launch, &context)),
        _ => Failure::Launch(error.message().to_owned()),
    })?;
    let pipeline = element
        .downcast::<gst::Pipeline>()
        .map_err(|_| Failure::Launch("it must have more than one element".to_owned()))?;
    for element in pipeline.iterate_recurse().into_iter().flatten() {
        let Some(factory) = element.factory() else { continue };
        let is_sink = factory.klass().split('/').any(|class| class == "Sink");
        if is_sink && !HARMLESS_SINKS.contains(&factory.name().as_str()) {
            return Err(Failure::Launch(format!(
                "`{}` is not allowed: use `appsink` or `fakesink`",
                factory.name()
            )));
        }
    }
    cameras::prepare(&pipeline);
    for (target, value) in &job.properties {
        set(&pipeline, target, value)?;
    }
    let built = PreparedPipeline {
        sinks: sinks(&pipeline)?,
        video_in: named(&pipeline, "video_in")?,
        audio_in: named(&pipeline, "audio_in")?,
        pipeline,
    };
    if built.sinks.is_empty() {
        return Err(Failure::Launch(
            "has no `appsink name=video` and no `appsink name=audio`".to_owned(),
        ));
    }
    Ok(built)
}

/// Returns all unknown elements of a launch line: GStreamer names only the first.
fn missing(launch: &str, context: &gst::ParseContext) -> Vec<String> {
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
fn set(pipeline: &gst::Pipeline, target: &str, value: &str) -> Result<(), Failure> {
    let refused = |problem: &str| Failure::Property {
        target: target.to_owned(),
        problem: problem.to_owned(),
    };
    let (name, property) = target
        .split_once('.')
        .ok_or_else(|| refused("it must have the form element.property"))?;
    let element = pipeline.by_name(name).ok_or_else(|| refused("no such element"))?;
    let spec = element
        .find_property(property)
        .ok_or_else(|| refused("the element has no such property"))?;
    let value = if spec.value_type() == gst::glib::Type::STRING {
        // Deserialization would interpret quotes and escapes in it.
        value.to_value()
    } else {
        gst::glib::Value::deserialize_with_pspec(value, &spec).map_err(|_| refused("the value has the wrong type"))?
    };
    if !spec.flags().contains(gst::glib::ParamFlags::WRITABLE) {
        return Err(refused("the property is not writable"));
    }
    element.set_property_from_value(property, &value);
    Ok(())
}

fn named<T: IsA<gst::Element>>(pipeline: &gst::Pipeline, name: &str) -> Result<Option<T>, Failure> {
    let Some(element) = pipeline.by_name(name) else {
        return Ok(None);
    };
    let end = element
        .downcast()
        .map_err(|_| Failure::Launch(format!("the element named `{name}` must be an appsrc")))?;
    Ok(Some(end))
}

/// Returns the sinks named `video` and `audio`, and those with these prefixes, such as `video_h265`: a stream uses one
/// of each kind.
fn sinks(pipeline: &gst::Pipeline) -> Result<Vec<(Kind, AppSink)>, Failure> {
    let mut sinks = Vec::new();
    for element in pipeline.iterate_recurse().into_iter().flatten() {
        let name = element.name();
        let kind = match name.split('_').next() {
            _ if name.ends_with("_in") => continue,
            Some("video") => Kind::Video,
            Some("audio") => Kind::Audio,
            _ => continue,
        };
        let sink = element
            .downcast()
            .map_err(|_| Failure::Launch(format!("the element named `{name}` must be an appsink")))?;
        sinks.push((kind, sink));
    }
    Ok(sinks)
}

/// Runs until the gateway says stop, the stream ends, or something fails.
pub(crate) fn run(job: &Job, gateway: &Gateway, commands: Commands) {
    let result = gst::init()
        .map_err(|error| Failure::Stream(error.to_string()))
        .and_then(|()| build(job))
        .and_then(|built| play(job, built, gateway, commands));
    match result {
        Ok(()) => gateway.notify(&FromWorker::Ended),
        Err(failure) => gateway.notify(&FromWorker::Failed(failure)),
    };
}

/// Maps running times to times that all tracks share and that stay continuous when the stream restarts.
#[derive(Default)]
struct Timeline {
    /// Offset added to running times.
    shift: AtomicU64,
    /// End of the latest frame so far.
    end: AtomicU64,
    /// Bit masks of the sinks that received a frame, and of those that reached the end of the stream.
    used: AtomicU64,
    ended: AtomicU64,
}

impl Timeline {
    fn is_used(&self, sink: usize) -> bool {
        self.used.load(Ordering::Acquire) & bit(sink) != 0
    }

    /// Returns whether all used sinks have ended. The pipeline posts no EOS while one of its sinks is not used at all.
    fn is_over(&self) -> bool {
        let used = self.used.load(Ordering::Acquire);
        used != 0 && self.ended.load(Ordering::Acquire) & used == used
    }
}

/// Returns the bit of a sink.
fn bit(sink: usize) -> u64 {
    1 << sink.min(63)
}

fn play(job: &Job, built: PreparedPipeline, gateway: &Gateway, commands: Commands) -> Result<(), Failure> {
    let pipeline = built.pipeline.clone();
    let timeline = Arc::new(Timeline::default());
    for (index, (kind, sink)) in built.sinks.iter().enumerate() {
        prepare_sink(index, *kind, sink, gateway, &timeline)?;
    }
    for input in &job.inputs {
        let source = match input.media.kind() {
            Kind::Video => &built.video_in,
            Kind::Audio => &built.audio_in,
        };
        let source = source
            .as_ref()
            .ok_or_else(|| Failure::Launch(format!("has no `appsrc name={}_in`", input.media.kind())))?;
        prepare_source(source, &input.media)?;
    }
    gateway.notify(&FromWorker::Ready(Tracks {
        video: built.sinks.iter().any(|(kind, _)| *kind == Kind::Video),
        audio: built.sinks.iter().any(|(kind, _)| *kind == Kind::Audio),
    }));
    let failed =
        |error: gst::StateChangeError| first_error(&pipeline).unwrap_or_else(|| Failure::Stream(error.to_string()));
    let live = pipeline.set_state(gst::State::Paused).map_err(failed)? == gst::StateChangeSuccess::NoPreroll;
    // A source that is not live is read as fast as possible: its sinks pace the frames in real time.
    let paced = !live && job.inputs.is_empty();
    for (_, sink) in &built.sinks {
        sink.set_sync(paced);
    }
    pipeline.set_state(gst::State::Playing).map_err(failed)?;

    let stop = Arc::new(AtomicBool::new(false));
    let control = Control {
        sinks: built.sinks.clone(),
        video_in: built.video_in.clone(),
        audio_in: built.audio_in.clone(),
        gateway: gateway.clone(),
        timeline: timeline.clone(),
    };
    let stopping = stop.clone();
    std::thread::spawn(move || {
        control.run_commands(commands);
        stopping.store(true, Ordering::Release);
    });
    let result = watch(job, &pipeline, &built.sinks, gateway, &timeline, &stop);
    let _ = pipeline.set_state(gst::State::Null);
    result
}

/// Reads the bus and sends heartbeats.
fn watch(
    job: &Job,
    pipeline: &gst::Pipeline,
    sinks: &[(Kind, AppSink)],
    gateway: &Gateway,
    timeline: &Timeline,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let bus = pipeline
        .bus()
        .ok_or_else(|| Failure::Stream("the pipeline has no bus".to_owned()))?;
    let mut played = false;
    loop {
        let message = bus.timed_pop(ALIVE);
        if stop.load(Ordering::Acquire) || !gateway.notify(&FromWorker::Alive) {
            return Ok(());
        }
        let view = message.as_ref().map(|message| message.view());
        let over = matches!(view, Some(gst::MessageView::Eos(_))) || timeline.is_over();
        match view {
            Some(gst::MessageView::Error(error)) => return Err(failure_of(error)),
            _ if over && job.repeats => {
                let end = timeline.end.load(Ordering::Acquire);
                played |= end > timeline.shift.load(Ordering::Acquire);
                if !played {
                    return Err(Failure::Stream(
                        "the stream contains nothing that can be played".to_owned(),
                    ));
                }
                played = false;
                timeline.shift.store(end, Ordering::Release);
                timeline.ended.store(0, Ordering::Release);
                // A sink that is not used cannot forward the seek; from one that is used it reaches the whole source.
                let sink = sinks.iter().enumerate().find(|(index, _)| timeline.is_used(*index));
                let sought = sink.is_some_and(|(_, (_, sink))| {
                    sink.seek_simple(gst::SeekFlags::FLUSH | gst::SeekFlags::KEY_UNIT, gst::ClockTime::ZERO)
                        .is_ok()
                });
                sought
                    .then_some(())
                    .ok_or_else(|| Failure::Stream("the stream cannot seek to its beginning".to_owned()))?;
            }
            _ if over => return Ok(()),
            Some(gst::MessageView::Latency(_)) => {
                let _ = pipeline.recalculate_latency();
            }
            _ => {}
        }
    }
}

fn first_error(pipeline: &gst::Pipeline) -> Option<Failure> {
    let message = pipeline.bus()?.pop_filtered(&[gst::MessageType::Error])?;
    match message.view() {
        gst::MessageView::Error(error) => Some(failure_of(error)),
        _ => None,
    }
}

/// Returns the message of a GStreamer error with its element. The gateway removes URLs.
fn failure_of(error: &gst::message::Error) -> Failure {
    let element = error.src().map(|source| source.name().to_string()).unwrap_or_default();
    let text = error.error().message().trim_end_matches('.').to_owned();
    // The last line of the debug info is more specific.
    let detail = error
        .debug()
        .and_then(|debug| Some(debug.lines().map(str::trim).rfind(|line| !line.is_empty())?.to_owned()));
    Failure::Stream(match detail {
        Some(detail) => format!("{text} ({element}: {detail})"),
        None => format!("{text} ({element})"),
    })
}

/// What the gateway's messages act on.
struct Control {
    sinks: Vec<(Kind, AppSink)>,
    video_in: Option<AppSrc>,
    audio_in: Option<AppSrc>,
    gateway: Gateway,
    timeline: Arc<Timeline>,
}

impl Control {
    /// Ends when the gateway is gone or says stop. Messages for workers of other kinds are ignored.
    fn run_commands(&self, mut commands: Commands) {
        while let Some(command) = commands.receive() {
            match command {
                ToWorker::Frame(frame) => self.push(frame),
                ToWorker::KeyFrame => self.request_key_frame(),
                ToWorker::Stop => return,
                ToWorker::Run(_) | ToWorker::Check(_) | ToWorker::Demux(_) | ToWorker::SegmentChunk(_) => {}
            }
        }
    }

    fn push(&self, frame: WireFrame) {
        let source = match frame.kind {
            Kind::Video => &self.video_in,
            Kind::Audio => &self.audio_in,
        };
        if let Some(source) = source {
            let _ = source.push_buffer(buffer_of(frame));
        }
    }

    /// Sends GstForceKeyUnit upstream. An encoder takes it, and so does an RTP session whose peer takes PLI; a file, a
    /// demuxer or a socket does not, and the gateway is told so.
    fn request_key_frame(&self) {
        let (mut sent, mut taken) = (false, false);
        for (index, (kind, sink)) in self.sinks.iter().enumerate() {
            // A sink that is not used has nothing upstream.
            if *kind == Kind::Video && self.timeline.is_used(index) {
                let request = gst::Structure::builder("GstForceKeyUnit")
                    .field("all-headers", true)
                    .build();
                sent = true;
                taken |= sink.send_event(gst::event::CustomUpstream::new(request));
            }
        }
        if sent && !taken {
            self.gateway.notify(&FromWorker::KeyFrameRefused);
        }
    }
}

fn buffer_of(frame: WireFrame) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_slice(frame.bytes);
    if let Some(buffer) = buffer.get_mut() {
        buffer.set_pts(gst::ClockTime::from_nseconds(frame.time));
        if frame.after_gap {
            buffer.set_flags(gst::BufferFlags::DISCONT);
        }
    }
    buffer
}

fn prepare_source(source: &AppSrc, media: &Media) -> Result<(), Failure> {
    let caps = match media {
        Media::H264 => "video/x-h264,stream-format=byte-stream,alignment=au".to_owned(),
        Media::H265 => "video/x-h265,stream-format=byte-stream,alignment=au".to_owned(),
        Media::Vp8 => "video/x-vp8".to_owned(),
        Media::Vp9 => "video/x-vp9".to_owned(),
        Media::Av1 => "video/x-av1,stream-format=obu-stream,alignment=tu".to_owned(),
        Media::Jpeg => "image/jpeg".to_owned(),
        Media::Opus => "audio/x-opus,channel-mapping-family=0,channels=2,rate=48000".to_owned(),
        Media::Pcmu => "audio/x-mulaw,rate=8000,channels=1".to_owned(),
        Media::Pcma => "audio/x-alaw,rate=8000,channels=1".to_owned(),
        Media::Aac(config) => {
            let hex: String = config.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("audio/mpeg,mpegversion=4,stream-format=raw,codec_data=(buffer){hex}")
        }
    };
    let mut caps: gst::Caps = caps
        .parse()
        .map_err(|_| Failure::Launch("the caps of an input are invalid".to_owned()))?;
    if let Media::Aac(config) = media
        && let Some(config) = millstream_core::media::aac::AacConfig::parse(config)
    {
        let caps = caps.make_mut();
        caps.set("rate", config.rate as i32);
        caps.set("channels", i32::from(config.channels.max(1)));
    }
    source.set_caps(Some(&caps));
    source.set_format(gst::Format::Time);
    source.set_is_live(true);
    source.set_do_timestamp(false);
    source.set_max_bytes(SOURCE_BYTES);
    source.set_block(false);
    source.set_leaky_type(AppLeakyType::Downstream);
    Ok(())
}

fn prepare_sink(
    index: usize,
    kind: Kind,
    sink: &AppSink,
    gateway: &Gateway,
    timeline: &Arc<Timeline>,
) -> Result<(), Failure> {
    let caps = match kind {
        Kind::Video => VIDEO_CAPS,
        Kind::Audio => AUDIO_CAPS,
    };
    let caps: gst::Caps = caps
        .parse()
        .map_err(|_| Failure::Launch("the caps of a sink are invalid".to_owned()))?;
    sink.set_caps(Some(&caps));
    sink.set_max_buffers(SINK_BUFFERS);
    sink.set_drop(false);
    sink.set_wait_on_eos(false);
    // A track that the stream turns out not to have must not block the others.
    sink.set_property("async", false);
    let (gateway, timeline) = (gateway.clone(), timeline.clone());
    let announced: Mutex<Option<Media>> = Mutex::new(None);
    let (ended_timeline, bit) = (timeline.clone(), bit(index));
    let callbacks = AppSinkCallbacks::builder()
        .eos(move |_| {
            ended_timeline.ended.fetch_or(bit, Ordering::AcqRel);
        })
        .new_sample(move |sink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            timeline.used.fetch_or(bit, Ordering::AcqRel);
            let Some(media) = sample.caps().and_then(media_of) else {
                return Err(gst::FlowError::NotNegotiated);
            };
            let mut announced = announced.lock().unwrap_or_else(PoisonError::into_inner);
            if announced.as_ref() != Some(&media) {
                gateway.notify(&FromWorker::Media(media.clone()));
                *announced = Some(media);
            }
            let Some(frame) = frame_of(kind, &sample, &timeline) else {
                return Ok(gst::FlowSuccess::Ok);
            };
            match gateway.notify(&FromWorker::Frame(frame)) {
                true => Ok(gst::FlowSuccess::Ok),
                false => Err(gst::FlowError::Eos),
            }
        })
        .build();
    sink.set_callbacks(callbacks);
    Ok(())
}

/// Returns the frame of a sample; `None` if its buffer is empty or has no timestamp.
fn frame_of(kind: Kind, sample: &gst::Sample, timeline: &Timeline) -> Option<WireFrame> {
    let buffer = sample.buffer()?;
    let segment = sample.segment()?.downcast_ref::<gst::ClockTime>()?;
    let pts = buffer.pts().or(buffer.dts())?;
    let running = segment
        .to_running_time(pts)
        .or_else(|| segment.to_running_time(buffer.dts()?))?;
    let time = running.nseconds() + timeline.shift.load(Ordering::Acquire);
    let duration = buffer.duration().unwrap_or(gst::ClockTime::from_mseconds(20));
    timeline.end.fetch_max(time + duration.nseconds(), Ordering::AcqRel);
    let map = buffer.map_readable().ok()?;
    (!map.is_empty()).then(|| WireFrame {
        kind,
        time,
        after_gap: buffer.flags().contains(gst::BufferFlags::DISCONT),
        bytes: Bytes::copy_from_slice(&map),
    })
}

fn media_of(caps: &gst::CapsRef) -> Option<Media> {
    let structure = caps.structure(0)?;
    Some(match structure.name().as_str() {
        "video/x-h264" => Media::H264,
        "video/x-h265" => Media::H265,
        "image/jpeg" => Media::Jpeg,
        "audio/x-opus" => Media::Opus,
        "audio/x-alaw" => Media::Pcma,
        "audio/x-mulaw" => Media::Pcmu,
        "audio/mpeg" => {
            let config = structure.get::<gst::Buffer>("codec_data").ok()?;
            let map = config.map_readable().ok()?;
            Media::Aac(map.to_vec())
        }
        _ => return None,
    })
}
