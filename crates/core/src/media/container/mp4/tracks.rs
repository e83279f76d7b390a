//! Tracks of an initialization section.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use shiguredo_mp4::Decode as _;
use shiguredo_mp4::boxes::EsdsBox;

use super::super::sample::{ContainerError, Content, time};
use super::boxes::{Fields, all, at, boxes};
use crate::media::aac::AacConfig;

/// A track.
#[derive(Clone, Debug)]
pub(super) struct Track {
    pub(super) id: u32,
    pub(super) rate: u32,
    /// Sample entries, by their index.
    pub(super) entries: Vec<Entry>,
    /// Media time at which the presentation starts, from the edit list.
    pub(super) edit_offset: Duration,
    /// Sample entry, duration and size of samples that state none (`trex`).
    pub(super) defaults: Defaults,
    /// Decoding time of the next sample, for fragments that state none.
    pub(super) next: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Defaults {
    pub(super) entry: u32,
    pub(super) duration: u32,
    pub(super) size: u32,
}

/// Codec of a track, from its sample entry.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Video {
        content: Content,
        /// Length of the field before each NAL unit.
        length_size: usize,
        /// Parameter sets with start codes; prepended to key frames that have none.
        parameter_sets: Bytes,
    },
    Audio(Content),
    Other(String),
    Encrypted,
}

/// Maximum number of tracks and of sample entries.
const MAX_TRACKS: usize = 32;

/// Returns the tracks of an initialization section, or of a segment that contains one.
pub(super) fn tracks(init: &[u8]) -> Result<Vec<Track>, ContainerError> {
    let mut found = boxes(init).filter(|found| found.name == *b"moov");
    let moov = found.next().ok_or(ContainerError::NoInit)?;
    if moov.is_cut {
        return Err(ContainerError::Broken(
            "the initialization section is cut off".to_owned(),
        ));
    }
    let defaults: Vec<(u32, Defaults)> = all(moov.body, b"mvex")
        .flat_map(|mvex| all(mvex, b"trex"))
        .filter_map(defaults)
        .take(MAX_TRACKS)
        .collect();
    let tracks: Vec<Track> = all(moov.body, b"trak")
        .filter_map(|trak| track(trak, &defaults))
        .take(MAX_TRACKS)
        .collect();
    if tracks.is_empty() {
        return Err(ContainerError::Broken(
            "the initialization section has no track".to_owned(),
        ));
    }
    Ok(tracks)
}

fn defaults(trex: &[u8]) -> Option<(u32, Defaults)> {
    let mut fields = Fields(trex.get(4..)?);
    let id = fields.u32()?;
    let (entry, duration, size) = (fields.u32()?, fields.u32()?, fields.u32()?);
    Some((id, Defaults { entry, duration, size }))
}

fn track(trak: &[u8], defaults: &[(u32, Defaults)]) -> Option<Track> {
    let mut tkhd = Fields(at(trak, &[b"tkhd"])?);
    let version = tkhd.u8()?;
    tkhd.take(3)?;
    tkhd.long(version)?;
    tkhd.long(version)?;
    let id = tkhd.u32()?;
    let mut mdhd = Fields(at(trak, &[b"mdia", b"mdhd"])?);
    let version = mdhd.u8()?;
    mdhd.take(3)?;
    mdhd.long(version)?;
    mdhd.long(version)?;
    let rate = mdhd.u32()?;
    let stsd = at(trak, &[b"mdia", b"minf", b"stbl", b"stsd"])?;
    let entries = boxes(stsd.get(8..)?).take(MAX_TRACKS);
    let defaults = defaults.iter().find(|(known, _)| *known == id);
    Some(Track {
        id,
        rate,
        entries: entries.map(|entry| Entry::of(entry.name, entry.body)).collect(),
        edit_offset: edit_offset(trak, rate).unwrap_or_default(),
        defaults: defaults.map(|(_, defaults)| *defaults).unwrap_or_default(),
        next: 0,
    })
}

/// Added to all timestamps: an edit list may shift the start of a track before zero.
pub(super) const ORIGIN: Duration = Duration::from_secs(10);

/// Media time at which the presentation of a track starts (ISO/IEC 14496-12 §8.6.6). With B-frames it is the
/// composition offset of the first frame.
fn edit_offset(trak: &[u8], rate: u32) -> Option<Duration> {
    let mut elst = Fields(at(trak, &[b"edts", b"elst"])?);
    let version = elst.u8()?;
    elst.take(3)?;
    let count = elst.u32()?;
    for _ in 0..count.min(1_024) {
        elst.long(version)?;
        let media_time = elst.long(version)?;
        elst.u32()?;
        // -1 marks an empty edit.
        let is_empty = media_time == if version == 1 { u64::MAX } else { u64::from(u32::MAX) };
        if !is_empty {
            return Some(time(media_time, rate).min(ORIGIN));
        }
    }
    None
}

pub(super) const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// Length of the fixed fields of a sample entry (ISO/IEC 14496-12 §12.1.3, §12.2.3).
const VISUAL: usize = 78;
const AUDIO: usize = 28;

impl Entry {
    fn of(name: [u8; 4], body: &[u8]) -> Self {
        let other = || Self::Other(String::from_utf8_lossy(&name).into_owned());
        match &name {
            // `avc3` and `hev1` have their parameter sets in the samples.
            b"avc1" | b"avc3" => avc(body).unwrap_or_else(other),
            b"hvc1" | b"hev1" => hevc(body).unwrap_or_else(other),
            b"Opus" => Self::Audio(Content::Opus),
            b"mp4a" => aac(body).map_or_else(
                || Self::Other("mp4a without AAC".to_owned()),
                |config| Self::Audio(Content::Aac(config)),
            ),
            b"encv" | b"enca" => Self::Encrypted,
            b"vp08" => Self::Other("VP8".to_owned()),
            b"vp09" => Self::Other("VP9".to_owned()),
            b"av01" => Self::Other("AV1".to_owned()),
            b"fLaC" => Self::Other("FLAC".to_owned()),
            _ => other(),
        }
    }
}

/// ISO/IEC 14496-15 §5.3.3.1.
fn avc(body: &[u8]) -> Option<Entry> {
    let mut fields = Fields(at(body.get(VISUAL..)?, &[b"avcC"])?);
    fields.take(4)?;
    let length_size = usize::from(fields.u8()? & 3) + 1;
    let mut sets = BytesMut::new();
    let count = fields.u8()? & 0x1f;
    nals(&mut fields, u16::from(count), &mut sets)?;
    let count = fields.u8()?;
    nals(&mut fields, u16::from(count), &mut sets)?;
    Some(Entry::Video {
        content: Content::H264,
        length_size,
        parameter_sets: sets.freeze(),
    })
}

/// ISO/IEC 14496-15 §8.3.3.1.
fn hevc(body: &[u8]) -> Option<Entry> {
    let mut fields = Fields(at(body.get(VISUAL..)?, &[b"hvcC"])?);
    fields.take(21)?;
    let length_size = usize::from(fields.u8()? & 3) + 1;
    let mut sets = BytesMut::new();
    for _ in 0..fields.u8()? {
        fields.u8()?;
        let count = fields.u16()?;
        nals(&mut fields, count, &mut sets)?;
    }
    Some(Entry::Video {
        content: Content::H265,
        length_size,
        parameter_sets: sets.freeze(),
    })
}

fn nals(fields: &mut Fields<'_>, count: u16, out: &mut BytesMut) -> Option<()> {
    for _ in 0..count {
        let length = usize::from(fields.u16()?);
        let nal = fields.take(length)?;
        if !nal.is_empty() {
            out.put_slice(&START_CODE);
            out.put_slice(nal);
        }
    }
    Some(())
}

/// ISO/IEC 14496-14 §5.6. QuickTime has more fields before the boxes, and may put them into a `wave` box.
fn aac(body: &[u8]) -> Option<AacConfig> {
    let more = match body.get(8..10)? {
        [0, 1] => 16,
        [0, 2] => 36,
        _ => 0,
    };
    let boxes = body.get(AUDIO + more..)?;
    let esds = at(boxes, &[b"esds"]).or_else(|| at(boxes, &[b"wave", b"esds"]))?;
    let mut whole = Vec::with_capacity(esds.len() + 8);
    whole.put_u32(u32::try_from(esds.len() + 8).ok()?);
    whole.put_slice(b"esds");
    whole.put_slice(esds);
    let (esds, _) = EsdsBox::decode(&whole).ok()?;
    AacConfig::parse(&esds.es.dec_config_descr.dec_specific_info?.payload)
}
