//! Fragmented MP4 (ISO/IEC 14496-12 §8.8), using the demultiplexer of `shiguredo_mp4`.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use shiguredo_mp4::Decode as _;
use shiguredo_mp4::boxes::{MoovBox, SampleEntry, TrakBox};
use shiguredo_mp4::demux::{Fmp4SegmentDemuxer, Sample as Found};

use super::sample::{ContainerError, Content, Sample, time};
use crate::media::aac::AacConfig;
use crate::media::packetizer::length_prefixed;

/// The fragments of one rendition.
pub(super) struct Fragments {
    demuxer: Fmp4SegmentDemuxer,
    /// Codec information by track ID.
    tracks: Vec<(u32, Entry)>,
    /// Media time at which the presentation of each track starts, from its edit list.
    edit_offsets: Vec<(u32, Duration)>,
}

/// Codec of a track, from its sample entry.
#[derive(Clone, Debug)]
enum Entry {
    Video {
        content: Content,
        /// Parameter sets with start codes; prepended to key frames that have none.
        parameter_sets: Bytes,
    },
    Audio(Content),
    Other(String),
    Encrypted,
}

impl Fragments {
    /// Creates a demuxer from an initialization section, or a segment that starts with one.
    pub(super) fn new(init: &Bytes) -> Result<Self, ContainerError> {
        let (begin, _) = find(init, b"moov").ok_or(ContainerError::NoInit)?;
        let (moov, _) = MoovBox::decode(init.get(begin..).unwrap_or_default())
            .map_err(|error| ContainerError::Broken(error.to_string()))?;
        let edit_offsets = moov
            .trak_boxes
            .iter()
            .map(|track| (track.tkhd_box.track_id, edit_offset(track)));
        let mut demuxer = Fmp4SegmentDemuxer::new();
        demuxer
            .handle_init_segment(init)
            .map_err(|error| ContainerError::Broken(error.to_string()))?;
        Ok(Self {
            demuxer,
            tracks: Vec::new(),
            edit_offsets: edit_offsets.collect(),
        })
    }

    pub(super) fn segment(&mut self, segment: &Bytes) -> Result<Vec<Sample>, ContainerError> {
        let mut samples = Vec::new();
        let mut rest = segment.clone();
        while let Some((begin, _)) = find(&rest, b"moof") {
            let fragment = rest.slice(begin..);
            let length = fragment_length(&fragment)
                .ok_or_else(|| ContainerError::Broken("a fragment exceeds the segment".to_owned()))?;
            self.fragment(&fragment.slice(..length), &mut samples)?;
            rest = fragment.slice(length..);
        }
        if samples.is_empty() {
            return Err(self.error_without_samples());
        }
        // Fragments of several tracks follow each other; sort by decoding time.
        samples.sort_by_key(|sample| sample.decode);
        Ok(samples)
    }

    fn fragment(&mut self, fragment: &Bytes, out: &mut Vec<Sample>) -> Result<(), ContainerError> {
        if samples_of(fragment) > MAX_SAMPLES {
            let problem = format!("a fragment has more than {MAX_SAMPLES} samples");
            return Err(ContainerError::Broken(problem));
        }
        let found = self
            .demuxer
            .handle_media_segment(fragment)
            .map_err(|error| ContainerError::Broken(error.to_string()))?;
        let mut bytes = 0usize;
        for sample in found {
            bytes = bytes.saturating_add(sample.data_size);
            if bytes > fragment.len() {
                let problem = "the samples of a fragment are longer than the fragment".to_owned();
                return Err(ContainerError::Broken(problem));
            }
            let id = sample.track.track_id;
            if let Some(entry) = sample.sample_entry {
                self.tracks.retain(|(track, _)| *track != id);
                self.tracks.push((id, Entry::of(entry)));
            }
            let Some((_, entry)) = self.tracks.iter().find(|(track, _)| *track == id) else {
                continue;
            };
            let edit_offset = self
                .edit_offsets
                .iter()
                .find(|(track, _)| *track == id)
                .map(|(_, offset)| *offset);
            out.extend(read(fragment, &sample, entry, edit_offset.unwrap_or_default())?);
        }
        Ok(())
    }

    /// Returns the reason why a segment has no playable samples.
    fn error_without_samples(&self) -> ContainerError {
        if self.tracks.iter().any(|(_, entry)| matches!(entry, Entry::Encrypted)) {
            return ContainerError::Encrypted;
        }
        let others: Vec<&str> = self
            .tracks
            .iter()
            .filter_map(|(_, entry)| match entry {
                Entry::Other(name) => Some(name.as_str()),
                Entry::Video { .. } | Entry::Audio(_) | Entry::Encrypted => None,
            })
            .collect();
        if others.is_empty() {
            ContainerError::Empty
        } else {
            ContainerError::Unsupported(others.join(", "))
        }
    }
}

/// Reads a sample; `None` for an unsupported track.
fn read(
    fragment: &Bytes,
    sample: &Found<'_>,
    entry: &Entry,
    edit_offset: Duration,
) -> Result<Option<Sample>, ContainerError> {
    let broken = |problem: &str| ContainerError::Broken(problem.to_owned());
    let first = usize::try_from(sample.data_offset).map_err(|_| broken("the offset of a sample is invalid"))?;
    let end = first.checked_add(sample.data_size).filter(|end| *end <= fragment.len());
    let end = end.ok_or_else(|| broken("a sample exceeds its fragment"))?;
    let bytes = fragment.slice(first..end);
    let (content, bytes) = match entry {
        Entry::Video {
            content,
            parameter_sets,
        } => (*content, with_start_codes(*content, &bytes, parameter_sets)?),
        Entry::Audio(content) => (*content, bytes),
        Entry::Other(_) | Entry::Encrypted => return Ok(None),
    };
    let rate = sample.track.timescale.get();
    let decode = (ORIGIN + time(sample.timestamp, rate)).saturating_sub(edit_offset);
    let offset = sample.composition_time_offset.unwrap_or_default();
    let ahead = time(offset.unsigned_abs(), rate);
    Ok(Some(Sample {
        content,
        decode,
        present: if offset < 0 {
            decode.saturating_sub(ahead)
        } else {
            decode + ahead
        },
        bytes,
    }))
}

/// Added to all timestamps: an edit list may shift the start of a track before zero.
const ORIGIN: Duration = Duration::from_secs(10);

/// Media time at which the presentation of a track starts (ISO/IEC 14496-12 §8.6.6). With B-frames it is the
/// composition offset of the first frame.
fn edit_offset(track: &TrakBox) -> Duration {
    let edits = track.edts_box.as_ref().and_then(|edits| edits.elst_box.as_ref());
    let first = edits.and_then(|edits| edits.entries.iter().find(|edit| edit.media_time >= 0));
    let rate = track.mdia_box.mdhd_box.timescale.get();
    first
        .map_or(Duration::ZERO, |edit| time(edit.media_time.unsigned_abs(), rate))
        .min(ORIGIN)
}

const START_CODE: [u8; 4] = [0, 0, 0, 1];

fn with_start_codes(content: Content, unit: &Bytes, parameter_sets: &Bytes) -> Result<Bytes, ContainerError> {
    let nals = length_prefixed(unit).map_err(|error| ContainerError::Broken(error.to_string()))?;
    let kind = |nal: &Bytes| nal.first().copied().unwrap_or_default();
    let (is_set, is_key) = match content {
        Content::H265 => (
            nals.iter().any(|nal| kind(nal) >> 1 & 0x3f == 33),
            nals.iter().any(|nal| (16..=21).contains(&(kind(nal) >> 1 & 0x3f))),
        ),
        _ => (
            nals.iter().any(|nal| kind(nal) & 0x1f == 7),
            nals.iter().any(|nal| kind(nal) & 0x1f == 5),
        ),
    };
    let mut out = BytesMut::with_capacity(unit.len() + parameter_sets.len());
    if is_key && !is_set {
        out.put_slice(parameter_sets);
    }
    for nal in nals {
        out.put_slice(&START_CODE);
        out.put_slice(&nal);
    }
    Ok(out.freeze())
}

impl Entry {
    fn of(entry: &SampleEntry) -> Self {
        let sets = |sets: Vec<&Vec<u8>>| {
            let mut out = BytesMut::new();
            for set in sets {
                out.put_slice(&START_CODE);
                out.put_slice(set);
            }
            out.freeze()
        };
        let hevc = |arrays: &[shiguredo_mp4::boxes::HvccNalUintArray]| Self::Video {
            content: Content::H265,
            parameter_sets: sets(arrays.iter().flat_map(|array| &array.nalus).collect()),
        };
        match entry {
            SampleEntry::Avc1(avc1) => Self::Video {
                content: Content::H264,
                parameter_sets: sets(avc1.avcc_box.sps_list.iter().chain(&avc1.avcc_box.pps_list).collect()),
            },
            SampleEntry::Hev1(hev1) => hevc(&hev1.hvcc_box.nalu_arrays),
            SampleEntry::Hvc1(hvc1) => hevc(&hvc1.hvcc_box.nalu_arrays),
            SampleEntry::Opus(_) => Self::Audio(Content::Opus),
            SampleEntry::Mp4a(mp4a) => {
                let specific = mp4a.esds_box.es.dec_config_descr.dec_specific_info.as_ref();
                let config = specific.and_then(|specific| AacConfig::parse(&specific.payload));
                config.map_or_else(
                    || Self::Other("mp4a without AAC".to_owned()),
                    |config| Self::Audio(Content::Aac(config)),
                )
            }
            SampleEntry::Vp08(_) => Self::Other("VP8".to_owned()),
            SampleEntry::Vp09(_) => Self::Other("VP9".to_owned()),
            SampleEntry::Av01(_) => Self::Other("AV1".to_owned()),
            SampleEntry::Flac(_) => Self::Other("FLAC".to_owned()),
            SampleEntry::Unknown(unknown) => {
                let name = unknown.box_type.as_bytes();
                match name {
                    b"encv" | b"enca" => Self::Encrypted,
                    name => Self::Other(String::from_utf8_lossy(name).into_owned()),
                }
            }
        }
    }
}

/// Start and end of the first top-level box with this name.
fn find(bytes: &[u8], name: &[u8; 4]) -> Option<(usize, usize)> {
    let mut begin = 0;
    loop {
        let (found, length) = header(bytes.get(begin..)?)?;
        let end = begin.checked_add(length)?;
        if found == *name {
            return Some((begin, end));
        }
        begin = end;
    }
}

/// Maximum number of samples of a fragment. A minute of 120 frames and 50 audio frames per second has 10,200.
const MAX_SAMPLES: u64 = 1 << 16;

/// Number of samples that the `trun` boxes of a fragment state (ISO/IEC 14496-12 §8.8.8). A box may state any number of
/// samples without a byte for each, and `shiguredo_mp4` makes up to 16 million of them.
fn samples_of(fragment: &[u8]) -> u64 {
    boxes_of(fragment, *b"moof")
        .flat_map(|moof| boxes_of(moof, *b"traf"))
        .flat_map(|traf| boxes_of(traf, *b"trun"))
        // Version and flags come first.
        .filter_map(|trun| trun.get(4..)?.first_chunk::<4>())
        .map(|count| u64::from(u32::from_be_bytes(*count)))
        .sum()
}

/// Bodies of the boxes with this name that stand next to each other in `bytes`; one that exceeds them is cut off.
fn boxes_of(bytes: &[u8], name: [u8; 4]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    let boxes = std::iter::from_fn(move || {
        let (found, length) = header(rest)?;
        let (whole, next) = rest.split_at(length.min(rest.len()));
        rest = next;
        let begin = if whole.starts_with(&1u32.to_be_bytes()) { 16 } else { 8 };
        Some((found, whole.get(begin..).unwrap_or_default()))
    });
    boxes.filter(move |(found, _)| *found == name).map(|(_, body)| body)
}

/// Name and length of a box in bytes.
fn header(bytes: &[u8]) -> Option<([u8; 4], usize)> {
    let (size, rest) = bytes.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_first_chunk::<4>()?;
    let length = match u32::from_be_bytes(*size) {
        0 => bytes.len(),
        1 => usize::try_from(u64::from_be_bytes(*rest.first_chunk::<8>()?)).ok()?,
        size => usize::try_from(size).ok()?,
    };
    (length >= 8).then_some((*name, length))
}

/// Length of a `moof` box and the `mdat` box that follows it; `None` if another box is between them.
fn fragment_length(bytes: &[u8]) -> Option<usize> {
    let (_, moof) = header(bytes)?;
    let (name, mdat) = header(bytes.get(moof..)?)?;
    let end = moof.checked_add(mdat)?;
    (name == *b"mdat" && end <= bytes.len()).then_some(end)
}
