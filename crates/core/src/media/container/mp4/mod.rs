//! Fragmented MP4 (ISO/IEC 14496-12 §8.8).
//!
//! Packagers count the positions of samples from the fragment, from the file, or not at all. A segment may be a part of a
//! file, so positions that count from its begin are put right by where the media data is.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};

use self::boxes::{Fields, Found, all, boxes};
use self::tracks::{Entry, ORIGIN, START_CODE, Track, tracks};
use super::sample::{ContainerError, Content, Sample, time};

mod boxes;
mod tracks;

#[cfg(test)]
mod tests;

/// The fragments of one rendition.
pub(super) struct Fragments {
    tracks: Vec<Track>,
}

/// Maximum number of samples of a fragment. A minute of 120 frames and 50 audio frames per second has 10,200. A box may
/// state any number of samples without a byte for each.
const MAX_SAMPLES: usize = 1 << 16;

/// Maximum offset between decoding and presentation.
const MAX_AHEAD: Duration = Duration::from_secs(10);

impl Fragments {
    /// Creates a demuxer from an initialization section, or a segment that contains one.
    pub(super) fn new(init: &Bytes) -> Result<Self, ContainerError> {
        Ok(Self { tracks: tracks(init)? })
    }

    /// Returns the frames of a segment. Those of whole fragments are returned even if a later one is malformed.
    pub(super) fn segment(&mut self, segment: &Bytes) -> Result<Vec<Sample>, ContainerError> {
        let mut samples = Vec::new();
        let mut error = None;
        let found: Vec<Found<'_>> = boxes(segment).collect();
        for (index, moof) in found.iter().enumerate().filter(|(_, found)| found.name == *b"moof") {
            let behind = found.get(index + 1..).unwrap_or_default();
            let data = behind
                .iter()
                .take_while(|found| found.name != *b"moof")
                .find(|found| found.name == *b"mdat");
            let Some(data) = data else {
                error = Some(ContainerError::Broken("a fragment has no media data".to_owned()));
                continue;
            };
            let fragment = Fragment {
                segment,
                moof: moof.begin,
                begin: data.begin + data.header,
                end: data.begin + data.header + data.body.len(),
            };
            if let Err(problem) = self.fragment(&fragment, moof.body, &mut samples) {
                error = Some(problem);
            }
        }
        if samples.is_empty() {
            return Err(error.unwrap_or_else(|| self.error_without_samples()));
        }
        // Fragments of several tracks follow each other; sort by decoding time.
        samples.sort_by_key(|sample| sample.decode);
        Ok(samples)
    }

    fn fragment(&mut self, fragment: &Fragment<'_>, moof: &[u8], out: &mut Vec<Sample>) -> Result<(), ContainerError> {
        let broken = |problem: &str| ContainerError::Broken(problem.to_owned());
        let mut trafs: Vec<TrackFragment<'_>> = all(moof, b"traf").filter_map(TrackFragment::parse).collect();
        if let Some(first) = trafs.first_mut() {
            first.base_is_moof = true;
        }
        let count = trafs.iter().flat_map(|traf| &traf.runs).map(|run| run.count as usize);
        if count.fold(0, usize::saturating_add) > MAX_SAMPLES {
            return Err(broken(&format!("a fragment has more than {MAX_SAMPLES} samples")));
        }
        let shift = fragment.shift(&trafs);
        let (mut end, mut total, before) = (fragment.begin, 0_usize, out.len());
        for traf in &trafs {
            // Some packagers give the only track another number in its fragments.
            let is_only = self.tracks.len() == 1;
            let Some(track) = self.tracks.iter_mut().find(|track| is_only || track.id == traf.id) else {
                continue;
            };
            let entry = traf.entry.unwrap_or(track.defaults.entry).saturating_sub(1);
            let entry = usize::try_from(entry)
                .ok()
                .and_then(|at| track.entries.get(at))
                .or(track.entries.first());
            let Some(entry) = entry.cloned() else { continue };
            let mut decode = traf.decode.unwrap_or(track.next);
            for run in &traf.runs {
                let mut at = run.data_offset.map_or(Some(end), |offset| {
                    i64::try_from(fragment.base(traf, end))
                        .ok()?
                        .checked_add(offset)?
                        .checked_sub(shift)?
                        .try_into()
                        .ok()
                });
                for sample in run.samples(traf, track) {
                    let from = at.ok_or_else(|| broken("the position of a sample is invalid"))?;
                    let to = from
                        .checked_add(sample.size as usize)
                        .filter(|to| *to <= fragment.segment.len());
                    let to = to.ok_or_else(|| broken("a sample exceeds its segment"))?;
                    total = total.saturating_add(to - from);
                    // Samples that share bytes could make gigabytes of a segment.
                    if total > fragment.end - fragment.begin {
                        out.truncate(before);
                        return Err(broken("the samples of a fragment are longer than the fragment"));
                    }
                    out.extend(read(
                        fragment.segment.slice(from..to),
                        track,
                        &entry,
                        decode,
                        sample.ahead,
                    ));
                    decode = decode.saturating_add(u64::from(sample.duration));
                    at = Some(to);
                    end = to;
                }
            }
            track.next = decode;
        }
        Ok(())
    }

    /// Returns the reason why a segment has no playable samples.
    fn error_without_samples(&self) -> ContainerError {
        let entries = || self.tracks.iter().flat_map(|track| &track.entries);
        if entries().any(|entry| matches!(entry, Entry::Encrypted)) {
            return ContainerError::Encrypted;
        }
        let others: Vec<&str> = entries()
            .filter_map(|entry| match entry {
                Entry::Other(name) => Some(name.as_str()),
                Entry::Video { .. } | Entry::Audio(_) | Entry::Encrypted => None,
            })
            .collect();
        let is_supported = entries().any(|entry| matches!(entry, Entry::Video { .. } | Entry::Audio(_)));
        if others.is_empty() || is_supported {
            ContainerError::Empty
        } else {
            ContainerError::Unsupported(others.join(", "))
        }
    }
}

/// A fragment in its segment.
struct Fragment<'a> {
    segment: &'a Bytes,
    /// Begin of the `moof` box.
    moof: usize,
    /// Begin and end of the media data.
    begin: usize,
    end: usize,
}

impl Fragment<'_> {
    /// Position that the runs of a track count from (§8.8.7.1); `end` is the end of the samples before.
    fn base(&self, traf: &TrackFragment<'_>, end: usize) -> u64 {
        match traf.base {
            Some(base) => base,
            None if traf.base_is_moof => self.moof as u64,
            None => end as u64,
        }
    }

    /// How much positions must be lowered so that the first sample is in the media data: the segment may be a part of the
    /// file that they count from.
    fn shift(&self, trafs: &[TrackFragment<'_>]) -> i64 {
        let positions = trafs.iter().flat_map(|traf| {
            let base = self.base(traf, self.begin);
            let offsets = traf.runs.iter().filter_map(|run| run.data_offset);
            offsets.filter_map(move |offset| i64::try_from(base).ok()?.checked_add(offset))
        });
        let (Some(first), Ok(begin)) = (positions.min(), i64::try_from(self.begin)) else {
            return 0;
        };
        let is_inside = usize::try_from(first).is_ok_and(|first| (self.begin..=self.end).contains(&first));
        if is_inside { 0 } else { first.saturating_sub(begin) }
    }
}

/// The samples of one track in a fragment (`traf`).
struct TrackFragment<'a> {
    id: u32,
    base: Option<u64>,
    /// Also of the first track, which has no samples before it.
    base_is_moof: bool,
    entry: Option<u32>,
    duration: Option<u32>,
    size: Option<u32>,
    decode: Option<u64>,
    runs: Vec<Run<'a>>,
}

impl<'a> TrackFragment<'a> {
    fn parse(traf: &'a [u8]) -> Option<Self> {
        let mut tfhd = Fields(all(traf, b"tfhd").next()?);
        let flags = tfhd.u32()?;
        let id = tfhd.u32()?;
        let base = if flags & 1 != 0 { Some(tfhd.u64()?) } else { None };
        let mut field = |flag| {
            if flags & flag != 0 {
                tfhd.u32().map(Some)
            } else {
                Some(None)
            }
        };
        let (entry, duration, size) = (field(2)?, field(8)?, field(0x10)?);
        let decode = all(traf, b"tfdt").next().and_then(|tfdt| {
            let mut fields = Fields(tfdt);
            let version = fields.u8()?;
            fields.take(3)?;
            fields.long(version)
        });
        Some(Self {
            id,
            base,
            base_is_moof: flags & 0x2_0000 != 0,
            entry,
            duration,
            size,
            decode,
            runs: all(traf, b"trun").filter_map(Run::parse).collect(),
        })
    }
}

/// Consecutive samples (`trun`).
struct Run<'a> {
    flags: u32,
    count: u32,
    data_offset: Option<i64>,
    fields: &'a [u8],
}

#[derive(Clone, Copy)]
struct RunSample {
    duration: u32,
    size: u32,
    /// Presentation time minus decoding time, in ticks.
    ahead: i32,
}

impl<'a> Run<'a> {
    fn parse(trun: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(trun);
        let flags = fields.u32()?;
        let count = fields.u32()?;
        let data_offset = if flags & 1 != 0 {
            Some(i64::from(fields.u32()?.cast_signed()))
        } else {
            None
        };
        if flags & 4 != 0 {
            fields.u32()?;
        }
        Some(Self {
            flags,
            count,
            data_offset,
            fields: fields.0,
        })
    }

    fn samples(&self, traf: &TrackFragment<'_>, track: &Track) -> Vec<RunSample> {
        let (flags, mut fields) = (self.flags, Fields(self.fields));
        let duration = traf.duration.unwrap_or(track.defaults.duration);
        let size = traf.size.unwrap_or(track.defaults.size);
        let mut next = move || {
            let mut field = |flag, default| if flags & flag != 0 { fields.u32() } else { Some(default) };
            let (duration, size) = (field(0x100, duration)?, field(0x200, size)?);
            field(0x400, 0)?;
            let ahead = field(0x800, 0)?.cast_signed();
            Some(RunSample { duration, size, ahead })
        };
        (0..self.count).map_while(|_| next()).collect()
    }
}

/// Makes a frame of a sample; `None` for an unsupported track or a malformed sample.
fn read(bytes: Bytes, track: &Track, entry: &Entry, decode: u64, ahead: i32) -> Option<Sample> {
    let (content, bytes) = match entry {
        Entry::Video {
            content,
            length_size,
            parameter_sets,
        } => (
            *content,
            with_start_codes(*content, &bytes, *length_size, parameter_sets)?,
        ),
        Entry::Audio(content) => (*content, bytes),
        Entry::Other(_) | Entry::Encrypted => return None,
    };
    if bytes.is_empty() {
        return None;
    }
    let decode = (ORIGIN + time(decode, track.rate)).saturating_sub(track.edit_offset);
    let distance = time(u64::from(ahead.unsigned_abs()), track.rate).min(MAX_AHEAD);
    Some(Sample {
        content,
        decode,
        present: if ahead < 0 {
            decode.saturating_sub(distance)
        } else {
            decode + distance
        },
        bytes,
    })
}

/// Replaces the lengths of NAL units by start codes. What follows a malformed length is left out.
fn with_start_codes(content: Content, unit: &[u8], length_size: usize, parameter_sets: &Bytes) -> Option<Bytes> {
    let (mut is_set, mut is_key) = (false, false);
    let mut out = BytesMut::with_capacity(unit.len() + parameter_sets.len());
    let mut rest = Fields(unit);
    while let Some(length) = rest.take(length_size) {
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let Some(nal) = rest.take(length) else { break };
        let Some(first) = nal.first() else { continue };
        match content {
            Content::H265 => {
                is_set |= first >> 1 & 0x3f == 33;
                is_key |= (16..=21).contains(&(first >> 1 & 0x3f));
            }
            _ => {
                is_set |= first & 0x1f == 7;
                is_key |= first & 0x1f == 5;
            }
        }
        out.put_slice(&START_CODE);
        out.put_slice(nal);
    }
    if out.is_empty() || !is_key || is_set {
        return (!out.is_empty()).then(|| out.freeze());
    }
    let mut whole = BytesMut::with_capacity(parameter_sets.len() + out.len());
    whole.put_slice(parameter_sets);
    whole.put_slice(&out);
    Some(whole.freeze())
}
