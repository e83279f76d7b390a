//! Fragmented MP4 (ISO/IEC 14496-12 §8.8).
//!
//! Packagers count the positions of samples from the fragment, from the file, or not at all. A segment may be a part of a
//! file, so positions that count from its begin are put right by where the media data is.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

use self::boxes::{FieldReader, Mp4Box, box_bodies, iter_boxes};
use self::tracks::{ANNEX_B_START_CODE, MP4_TIMESTAMP_OFFSET, Mp4Track, SampleEntry, parse_tracks};
use super::sample::{ContainerError, DemuxedSample, SampleCodec, ticks_to_duration};
use crate::media::codec::bit_reader::BitReader;

mod boxes;
mod tracks;

#[cfg(test)]
mod tests;

/// The fragments of one rendition.
pub(super) struct Mp4Demuxer {
    tracks: Vec<Mp4Track>,
}

/// Maximum number of samples of a fragment. A minute of 120 frames and 50 audio frames per second has 10,200. A box may
/// state any number of samples without a byte for each.
const MAX_FRAGMENT_SAMPLES: usize = 1 << 16;

/// Bytes of parameter sets that are put before the key frames of a segment, in addition to as many as the segment has. Later
/// key frames go without them: a small segment must not become gigabytes by long parameter sets.
const EXTRA_PARAMETER_SET_BYTES: usize = 64 << 10;

/// Maximum offset between decoding and presentation.
const MAX_COMPOSITION_OFFSET: Duration = Duration::from_secs(10);

impl Mp4Demuxer {
    /// Creates a demuxer from an initialization section, or a segment that contains one.
    pub(super) fn new(init: &Bytes) -> Result<Self, ContainerError> {
        Ok(Self {
            tracks: parse_tracks(init)?,
        })
    }

    /// Returns the frames of a segment. Those of whole fragments are returned even if a later one is malformed.
    pub(super) fn demux_segment(&mut self, segment: &Bytes) -> Result<Vec<DemuxedSample>, ContainerError> {
        let mut samples = Vec::new();
        let mut error = None;
        let mut credit = segment.len().saturating_add(EXTRA_PARAMETER_SET_BYTES);
        let found: Vec<Mp4Box<'_>> = iter_boxes(segment).collect();
        for (index, moof) in found.iter().enumerate().filter(|(_, found)| found.name == *b"moof") {
            let behind = found.get(index + 1..).unwrap_or_default();
            let data = behind
                .iter()
                .take_while(|found| found.name != *b"moof")
                .find(|found| found.name == *b"mdat");
            let Some(data) = data else {
                error = Some(ContainerError::Malformed(
                    "an MP4 fragment (moof) has no media data (mdat)".to_owned(),
                ));
                continue;
            };
            let fragment = Mp4Fragment {
                segment,
                moof_offset: moof.offset,
                data_begin: data.offset + data.header_length,
                data_end: data.offset + data.header_length + data.body.len(),
            };
            if let Err(problem) = self.demux_fragment(&fragment, moof.body, &mut credit, &mut samples) {
                error = Some(problem);
            }
        }
        if samples.is_empty() {
            return Err(error.unwrap_or_else(|| self.error_without_samples()));
        }
        // Fragments of several tracks follow each other; sort by decoding time.
        samples.sort_by_key(|sample| sample.decode_time);
        Ok(samples)
    }

    fn demux_fragment(
        &mut self,
        fragment: &Mp4Fragment<'_>,
        moof: &[u8],
        credit: &mut usize,
        out: &mut Vec<DemuxedSample>,
    ) -> Result<(), ContainerError> {
        let broken = |problem: &str| ContainerError::Malformed(problem.to_owned());
        let mut trafs: Vec<TrackFragment<'_>> = box_bodies(moof, b"traf").filter_map(TrackFragment::parse).collect();
        if let Some(first) = trafs.first_mut() {
            first.default_base_is_moof = true;
        }
        let count = trafs
            .iter()
            .flat_map(|traf| &traf.runs)
            .map(|run| run.sample_count as usize);
        if count.fold(0, usize::saturating_add) > MAX_FRAGMENT_SAMPLES {
            return Err(broken(&format!(
                "an MP4 fragment has more than {MAX_FRAGMENT_SAMPLES} samples"
            )));
        }
        let shift = fragment.data_offset_reduction(&trafs);
        let (mut end, mut total, before) = (fragment.data_begin, 0_usize, out.len());
        for traf in &trafs {
            // Some packagers give the only track another number in its fragments.
            let is_only = self.tracks.len() == 1;
            let Some(track) = self
                .tracks
                .iter_mut()
                .find(|track| is_only || track.id == traf.track_id)
            else {
                continue;
            };
            let entry = traf
                .sample_description_index
                .unwrap_or(track.sample_defaults.sample_description_index)
                .saturating_sub(1);
            let entry = usize::try_from(entry)
                .ok()
                .and_then(|at| track.sample_entries.get(at))
                .or(track.sample_entries.first());
            let Some(entry) = entry.cloned() else { continue };
            let mut decode = traf.base_decode_time.unwrap_or(track.next_decode_time);
            for run in &traf.runs {
                let mut at = run.data_offset.map_or(Some(end), |offset| {
                    i64::try_from(fragment.run_base_offset(traf, end))
                        .ok()?
                        .checked_add(offset)?
                        .checked_sub(shift)?
                        .try_into()
                        .ok()
                });
                for sample in run.samples(traf, track) {
                    let from =
                        at.ok_or_else(|| broken("the data offset of an MP4 sample points outside its segment"))?;
                    let to = from
                        .checked_add(sample.size as usize)
                        .filter(|to| *to <= fragment.segment.len());
                    let to = to.ok_or_else(|| broken("an MP4 sample extends beyond the end of its segment"))?;
                    total = total.saturating_add(to - from);
                    // Samples that share bytes could make gigabytes of a segment.
                    if total > fragment.data_end - fragment.data_begin {
                        out.truncate(before);
                        return Err(broken(
                            "the samples of an MP4 fragment are longer than its media data (mdat)",
                        ));
                    }
                    let bytes = fragment.segment.slice(from..to);
                    out.extend(make_demuxed_sample(
                        bytes,
                        track,
                        &entry,
                        (decode, sample.composition_offset),
                        credit,
                    ));
                    decode = decode.saturating_add(u64::from(sample.duration));
                    at = Some(to);
                    end = to;
                }
            }
            track.next_decode_time = decode;
        }
        Ok(())
    }

    /// Returns the reason why a segment has no playable samples.
    fn error_without_samples(&self) -> ContainerError {
        let entries = || self.tracks.iter().flat_map(|track| &track.sample_entries);
        if entries().any(|entry| matches!(entry, SampleEntry::Encrypted)) {
            return ContainerError::Encrypted;
        }
        let others = self.unsupported_tracks();
        let is_supported = entries().any(|entry| matches!(entry, SampleEntry::Video { .. } | SampleEntry::Audio(_)));
        if others.is_empty() || is_supported {
            ContainerError::NoFrames
        } else {
            ContainerError::UnsupportedCodec(others.join(", "))
        }
    }

    /// Returns the tracks whose codec is not supported.
    pub(super) fn unsupported_tracks(&self) -> Vec<String> {
        let mut left_out = Vec::new();
        for track in &self.tracks {
            left_out.extend(track.sample_entries.iter().find_map(|entry| match (entry, track.kind) {
                (SampleEntry::Unsupported(name), Some(kind)) => Some(format!("{kind} {name}")),
                (SampleEntry::Encrypted, Some(kind)) => Some(format!("{kind} with DRM")),
                _ => None,
            }));
        }
        left_out
    }
}

/// A fragment in its segment.
struct Mp4Fragment<'a> {
    segment: &'a Bytes,
    /// Begin of the `moof_offset` box.
    moof_offset: usize,
    /// Begin and end of the media data.
    data_begin: usize,
    data_end: usize,
}

impl Mp4Fragment<'_> {
    /// Position that the runs of a track count from (§8.8.7.1); `data_end` is the end of the samples before.
    fn run_base_offset(&self, traf: &TrackFragment<'_>, end: usize) -> u64 {
        match traf.base_data_offset {
            Some(base) => base,
            None if traf.default_base_is_moof => self.moof_offset as u64,
            None => end as u64,
        }
    }

    /// How much positions must be lowered so that the first sample is in the media data: the segment may be a part of the
    /// file that they count from.
    fn data_offset_reduction(&self, trafs: &[TrackFragment<'_>]) -> i64 {
        let positions = trafs.iter().flat_map(|traf| {
            let base = self.run_base_offset(traf, self.data_begin);
            let offsets = traf.runs.iter().filter_map(|run| run.data_offset);
            offsets.filter_map(move |offset| i64::try_from(base).ok()?.checked_add(offset))
        });
        let (Some(first), Ok(begin)) = (positions.min(), i64::try_from(self.data_begin)) else {
            return 0;
        };
        // Positions in a file may happen to be positions in the media data, too.
        let mut bases = trafs.iter().filter_map(|traf| traf.base_data_offset);
        let counts_from_segment = bases.all(|base| base == self.moof_offset as u64);
        let is_inside = usize::try_from(first).is_ok_and(|first| (self.data_begin..=self.data_end).contains(&first));
        if is_inside && counts_from_segment {
            0
        } else {
            first.saturating_sub(begin)
        }
    }
}

/// The samples of one track in a fragment (`traf`).
struct TrackFragment<'a> {
    track_id: u32,
    base_data_offset: Option<u64>,
    /// Also of the first track, which has no samples before it.
    default_base_is_moof: bool,
    sample_description_index: Option<u32>,
    default_sample_duration: Option<u32>,
    default_sample_size: Option<u32>,
    base_decode_time: Option<u64>,
    runs: Vec<TrackRun<'a>>,
}

impl<'a> TrackFragment<'a> {
    fn parse(traf: &'a [u8]) -> Option<Self> {
        let mut tfhd = FieldReader(box_bodies(traf, b"tfhd").next()?);
        let flags = tfhd.read_u32()?;
        let id = tfhd.read_u32()?;
        let base = if flags & 1 != 0 { Some(tfhd.read_u64()?) } else { None };
        let mut field = |flag| {
            if flags & flag != 0 {
                tfhd.read_u32().map(Some)
            } else {
                Some(None)
            }
        };
        let (entry, duration, size) = (field(2)?, field(8)?, field(0x10)?);
        let decode = box_bodies(traf, b"tfdt").next().and_then(|tfdt| {
            let mut fields = FieldReader(tfdt);
            let version = fields.read_u8()?;
            fields.take_bytes(3)?;
            fields.read_u32_or_u64(version)
        });
        Some(Self {
            track_id: id,
            base_data_offset: base,
            default_base_is_moof: flags & 0x2_0000 != 0,
            sample_description_index: entry,
            default_sample_duration: duration,
            default_sample_size: size,
            base_decode_time: decode,
            runs: box_bodies(traf, b"trun").filter_map(TrackRun::parse).collect(),
        })
    }
}

/// Consecutive samples (`trun`).
struct TrackRun<'a> {
    flags: u32,
    sample_count: u32,
    data_offset: Option<i64>,
    sample_fields: &'a [u8],
}

#[derive(Clone, Copy)]
struct RunSample {
    duration: u32,
    size: u32,
    /// Presentation time minus decoding time, in ticks.
    composition_offset: i32,
}

impl<'a> TrackRun<'a> {
    fn parse(trun: &'a [u8]) -> Option<Self> {
        let mut fields = FieldReader(trun);
        let flags = fields.read_u32()?;
        let count = fields.read_u32()?;
        let data_offset = if flags & 1 != 0 {
            Some(i64::from(fields.read_u32()?.cast_signed()))
        } else {
            None
        };
        if flags & 4 != 0 {
            fields.read_u32()?;
        }
        Some(Self {
            flags,
            sample_count: count,
            data_offset,
            sample_fields: fields.0,
        })
    }

    fn samples(&self, traf: &TrackFragment<'_>, track: &Mp4Track) -> Vec<RunSample> {
        let (flags, mut fields) = (self.flags, FieldReader(self.sample_fields));
        let duration = traf.default_sample_duration.unwrap_or(track.sample_defaults.duration);
        let size = traf.default_sample_size.unwrap_or(track.sample_defaults.size);
        let mut next = move || {
            let mut field = |flag, default| {
                if flags & flag != 0 {
                    fields.read_u32()
                } else {
                    Some(default)
                }
            };
            let (duration, size) = (field(0x100, duration)?, field(0x200, size)?);
            field(0x400, 0)?;
            let ahead = field(0x800, 0)?.cast_signed();
            Some(RunSample {
                duration,
                size,
                composition_offset: ahead,
            })
        };
        (0..self.sample_count).map_while(|_| next()).collect()
    }
}

/// Makes a frame of a sample; `None` for a track that is not played, or a malformed sample.
fn make_demuxed_sample(
    bytes: Bytes,
    track: &Mp4Track,
    entry: &SampleEntry,
    (decode, composition_offset): (u64, i32),
    credit: &mut usize,
) -> Option<DemuxedSample> {
    if !track.is_played {
        return None;
    }
    let (content, bytes) = match entry {
        SampleEntry::Video {
            codec: content,
            length_size,
            parameter_sets,
        } => (
            *content,
            to_annex_b_with_parameter_sets(*content, &bytes, *length_size, parameter_sets, credit)?,
        ),
        SampleEntry::Audio(content) => (*content, bytes),
        SampleEntry::Unsupported(_) | SampleEntry::Encrypted => return None,
    };
    if bytes.is_empty() {
        return None;
    }
    let decode = (MP4_TIMESTAMP_OFFSET + ticks_to_duration(decode, track.timescale)).saturating_sub(track.edit_offset);
    let distance =
        ticks_to_duration(u64::from(composition_offset.unsigned_abs()), track.timescale).min(MAX_COMPOSITION_OFFSET);
    Some(DemuxedSample {
        codec: content,
        decode_time: decode,
        presentation_time: if composition_offset < 0 {
            decode.saturating_sub(distance)
        } else {
            decode + distance
        },
        bytes,
    })
}

/// Whether a slice of H.264 is one of an I frame (ITU-T H.264 §7.3.3): with open GOPs, decoders start with it.
fn is_i_slice(nal: &[u8]) -> bool {
    let mut header = BitReader::new(nal.get(1..).unwrap_or_default());
    header.read_ue().is_some() && header.read_ue().is_some_and(|slice_type| slice_type % 5 == 2)
}

/// Replaces the lengths of NAL units by start codes, and puts the parameter sets before a key frame without them, as long as
/// `credit` is left. What follows a malformed length is left out.
fn to_annex_b_with_parameter_sets(
    content: SampleCodec,
    unit: &[u8],
    length_size: usize,
    parameter_sets: &Bytes,
    credit: &mut usize,
) -> Option<Bytes> {
    let (mut is_set, mut is_key) = (false, false);
    let mut out = BytesMut::with_capacity(unit.len() + ANNEX_B_START_CODE.len());
    let mut rest = FieldReader(unit);
    while let Some(length) = rest.take_bytes(length_size) {
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let Some(nal) = rest.take_bytes(length) else { break };
        let Some(first) = nal.first() else { continue };
        match content {
            SampleCodec::H265 => {
                is_set |= first >> 1 & 0x3f == 33;
                is_key |= (16..=21).contains(&(first >> 1 & 0x3f));
            }
            _ => {
                is_set |= first & 0x1f == 7;
                is_key |= first & 0x1f == 5 || first & 0x1f == 1 && is_i_slice(nal);
            }
        }
        out.put_slice(&ANNEX_B_START_CODE);
        out.put_slice(nal);
    }
    let left = credit.checked_sub(parameter_sets.len());
    let Some(left) = left.filter(|_| is_key && !is_set && !out.is_empty()) else {
        return (!out.is_empty()).then(|| out.freeze());
    };
    *credit = left;
    let mut whole = BytesMut::with_capacity(parameter_sets.len() + out.len());
    whole.put_slice(parameter_sets);
    whole.put_slice(&out);
    Some(whole.freeze())
}
