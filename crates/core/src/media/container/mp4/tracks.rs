//! Tracks of an initialization section.

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use shiguredo_mp4::Decode as _;
use shiguredo_mp4::boxes::EsdsBox;

use super::super::sample::{ContainerError, SampleCodec, ticks_to_duration};
use super::boxes::{FieldReader, box_bodies, box_body_at_path, iter_boxes};
use crate::media::MediaKind;
use crate::media::aac::AacConfig;

/// A track.
#[derive(Clone, Debug)]
pub(super) struct Mp4Track {
    pub(super) id: u32,
    pub(super) timescale: u32,
    /// `None` for subtitles and other data.
    pub(super) kind: Option<MediaKind>,
    /// The track is part of the presentation (§8.3.2.3); other languages may not be.
    is_enabled: bool,
    /// The one of its kind that is played.
    pub(super) is_played: bool,
    /// Sample entries, by their index.
    pub(super) sample_entries: Vec<SampleEntry>,
    /// Media time at which the presentation starts, from the edit list.
    pub(super) edit_offset: Duration,
    /// Sample entry, duration and size of samples that state none (`trex`).
    pub(super) sample_defaults: SampleDefaults,
    /// Decoding time of the next sample, for fragments that state none.
    pub(super) next_decode_time: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SampleDefaults {
    pub(super) sample_description_index: u32,
    pub(super) duration: u32,
    pub(super) size: u32,
}

/// Codec of a track, from its sample entry.
#[derive(Clone, Debug)]
pub(super) enum SampleEntry {
    Video {
        codec: SampleCodec,
        /// Length of the field before each NAL unit.
        length_size: usize,
        /// Parameter sets with start codes; prepended to key frames that have none.
        parameter_sets: Bytes,
    },
    Audio(SampleCodec),
    Unsupported(String),
    Encrypted,
}

/// Maximum number of tracks and of sample entries.
const MAX_TRACKS_OR_SAMPLE_ENTRIES: usize = 32;

/// Returns the tracks of an initialization section, or of a segment that contains one.
pub(super) fn parse_tracks(init: &[u8]) -> Result<Vec<Mp4Track>, ContainerError> {
    let mut found = iter_boxes(init).filter(|found| found.name == *b"moov");
    let moov = found.next().ok_or(ContainerError::MissingInitSection)?;
    if moov.is_truncated {
        return Err(ContainerError::Malformed(
            "the MP4 initialization section is truncated".to_owned(),
        ));
    }
    let defaults: Vec<(u32, SampleDefaults)> = box_bodies(moov.body, b"mvex")
        .flat_map(|mvex| box_bodies(mvex, b"trex"))
        .filter_map(parse_trex)
        .take(MAX_TRACKS_OR_SAMPLE_ENTRIES)
        .collect();
    let mut tracks: Vec<Mp4Track> = box_bodies(moov.body, b"trak")
        .filter_map(|trak| parse_trak(trak, &defaults))
        .take(MAX_TRACKS_OR_SAMPLE_ENTRIES)
        .collect();
    if tracks.is_empty() {
        return Err(ContainerError::Malformed(
            "the MP4 initialization section has no track".to_owned(),
        ));
    }
    select_tracks_to_play(&mut tracks);
    Ok(tracks)
}

/// Marks one video and one audio track: the first that is enabled, or else the first.
fn select_tracks_to_play(tracks: &mut [Mp4Track]) {
    for kind in [MediaKind::Video, MediaKind::Audio] {
        let is_kind = |track: &Mp4Track| track.sample_entries.iter().any(|entry| entry.kind() == Some(kind));
        let enabled = tracks.iter().position(|track| is_kind(track) && track.is_enabled);
        let played = enabled.or_else(|| tracks.iter().position(is_kind));
        if let Some(track) = played.and_then(|index| tracks.get_mut(index)) {
            track.is_played = true;
        }
    }
}

fn parse_trex(trex: &[u8]) -> Option<(u32, SampleDefaults)> {
    let mut fields = FieldReader(trex.get(4..)?);
    let id = fields.read_u32()?;
    let (entry, duration, size) = (fields.read_u32()?, fields.read_u32()?, fields.read_u32()?);
    Some((
        id,
        SampleDefaults {
            sample_description_index: entry,
            duration,
            size,
        },
    ))
}

fn parse_trak(trak: &[u8], defaults: &[(u32, SampleDefaults)]) -> Option<Mp4Track> {
    let mut tkhd = FieldReader(box_body_at_path(trak, &[b"tkhd"])?);
    let version = tkhd.read_u8()?;
    let is_enabled = tkhd.take_bytes(3)?.last().is_some_and(|flags| flags & 1 == 1);
    tkhd.read_u32_or_u64(version)?;
    tkhd.read_u32_or_u64(version)?;
    let id = tkhd.read_u32()?;
    let mut mdhd = FieldReader(box_body_at_path(trak, &[b"mdia", b"mdhd"])?);
    let version = mdhd.read_u8()?;
    mdhd.take_bytes(3)?;
    mdhd.read_u32_or_u64(version)?;
    mdhd.read_u32_or_u64(version)?;
    let rate = mdhd.read_u32()?;
    // §8.4.3: version, flags, a reserved field, and the handler.
    let kind = match box_body_at_path(trak, &[b"mdia", b"hdlr"]).and_then(|hdlr| hdlr.get(8..12)) {
        Some(b"vide") => Some(MediaKind::Video),
        Some(b"soun") => Some(MediaKind::Audio),
        _ => None,
    };
    let stsd = box_body_at_path(trak, &[b"mdia", b"minf", b"stbl", b"stsd"])?;
    let entries = iter_boxes(stsd.get(8..)?).take(MAX_TRACKS_OR_SAMPLE_ENTRIES);
    let defaults = defaults.iter().find(|(known, _)| *known == id);
    Some(Mp4Track {
        id,
        timescale: rate,
        kind,
        is_enabled,
        is_played: false,
        sample_entries: entries
            .map(|entry| SampleEntry::from_entry_box(entry.name, entry.body))
            .collect(),
        edit_offset: parse_edit_list_offset(trak, rate).unwrap_or_default(),
        sample_defaults: defaults.map(|(_, defaults)| *defaults).unwrap_or_default(),
        next_decode_time: 0,
    })
}

/// Added to all timestamps: an edit list may shift the start of a track before zero.
pub(super) const MP4_TIMESTAMP_OFFSET: Duration = Duration::from_secs(10);

/// Media time at which the presentation of a track starts (ISO/IEC 14496-12 §8.6.6). With B-frames it is the
/// composition offset of the first frame.
fn parse_edit_list_offset(trak: &[u8], rate: u32) -> Option<Duration> {
    let mut elst = FieldReader(box_body_at_path(trak, &[b"edts", b"elst"])?);
    let version = elst.read_u8()?;
    elst.take_bytes(3)?;
    let count = elst.read_u32()?;
    for _ in 0..count.min(1_024) {
        elst.read_u32_or_u64(version)?;
        let media_time = elst.read_u32_or_u64(version)?;
        elst.read_u32()?;
        // -1 marks an empty edit.
        let is_empty = media_time == if version == 1 { u64::MAX } else { u64::from(u32::MAX) };
        if !is_empty {
            return Some(ticks_to_duration(media_time, rate).min(MP4_TIMESTAMP_OFFSET));
        }
    }
    None
}

pub(super) const ANNEX_B_START_CODE: [u8; 4] = [0, 0, 0, 1];

/// Length of the fixed fields of a sample entry (ISO/IEC 14496-12 §12.1.3, §12.2.3).
const VISUAL_SAMPLE_ENTRY_LENGTH: usize = 78;
const AUDIO_SAMPLE_ENTRY_LENGTH: usize = 28;

impl SampleEntry {
    /// Kind of the frames; `None` if they cannot be played.
    fn kind(&self) -> Option<MediaKind> {
        match self {
            Self::Video { .. } => Some(MediaKind::Video),
            Self::Audio(_) => Some(MediaKind::Audio),
            Self::Unsupported(_) | Self::Encrypted => None,
        }
    }

    fn from_entry_box(name: [u8; 4], body: &[u8]) -> Self {
        let other = || Self::Unsupported(String::from_utf8_lossy(&name).into_owned());
        match &name {
            // `avc3` and `hev1` have their parameter sets in the samples.
            b"avc1" | b"avc3" => parse_avc_entry(body).unwrap_or_else(other),
            b"hvc1" | b"hev1" => parse_hevc_entry(body).unwrap_or_else(other),
            b"Opus" => Self::Audio(SampleCodec::Opus),
            b"mp4a" => aac_config_of_mp4a_entry(body).map_or_else(
                || Self::Unsupported("mp4a without a supported AAC configuration".to_owned()),
                |config| Self::Audio(SampleCodec::Aac(config)),
            ),
            b"encv" | b"enca" => Self::Encrypted,
            b"vp08" => Self::Unsupported("VP8".to_owned()),
            b"vp09" => Self::Unsupported("VP9".to_owned()),
            b"av01" => Self::Unsupported("AV1".to_owned()),
            b"fLaC" => Self::Unsupported("FLAC".to_owned()),
            b"ac-3" => Self::Unsupported("AC-3".to_owned()),
            b"ec-3" => Self::Unsupported("E-AC-3".to_owned()),
            b"dvh1" | b"dvhe" => Self::Unsupported("Dolby Vision".to_owned()),
            _ => other(),
        }
    }
}

/// ISO/IEC 14496-15 §5.3.3.1.
fn parse_avc_entry(body: &[u8]) -> Option<SampleEntry> {
    let mut fields = FieldReader(box_body_at_path(body.get(VISUAL_SAMPLE_ENTRY_LENGTH..)?, &[b"avcC"])?);
    fields.take_bytes(4)?;
    let length_size = usize::from(fields.read_u8()? & 3) + 1;
    let mut sets = BytesMut::new();
    let count = fields.read_u8()? & 0x1f;
    read_parameter_sets(&mut fields, u16::from(count), &mut sets)?;
    let count = fields.read_u8()?;
    read_parameter_sets(&mut fields, u16::from(count), &mut sets)?;
    Some(SampleEntry::Video {
        codec: SampleCodec::H264,
        length_size,
        parameter_sets: sets.freeze(),
    })
}

/// ISO/IEC 14496-15 §8.3.3.1.
fn parse_hevc_entry(body: &[u8]) -> Option<SampleEntry> {
    let mut fields = FieldReader(box_body_at_path(body.get(VISUAL_SAMPLE_ENTRY_LENGTH..)?, &[b"hvcC"])?);
    fields.take_bytes(21)?;
    let length_size = usize::from(fields.read_u8()? & 3) + 1;
    let mut sets = BytesMut::new();
    for _ in 0..fields.read_u8()? {
        fields.read_u8()?;
        let count = fields.read_u16()?;
        read_parameter_sets(&mut fields, count, &mut sets)?;
    }
    Some(SampleEntry::Video {
        codec: SampleCodec::H265,
        length_size,
        parameter_sets: sets.freeze(),
    })
}

fn read_parameter_sets(fields: &mut FieldReader<'_>, count: u16, out: &mut BytesMut) -> Option<()> {
    for _ in 0..count {
        let length = usize::from(fields.read_u16()?);
        let nal = fields.take_bytes(length)?;
        if !nal.is_empty() {
            out.put_slice(&ANNEX_B_START_CODE);
            out.put_slice(nal);
        }
    }
    Some(())
}

/// ISO/IEC 14496-14 §5.6. QuickTime has more fields before the boxes, and may put them into a `wave` box.
fn aac_config_of_mp4a_entry(body: &[u8]) -> Option<AacConfig> {
    let more = match body.get(8..10)? {
        [0, 1] => 16,
        [0, 2] => 36,
        _ => 0,
    };
    let boxes = body.get(AUDIO_SAMPLE_ENTRY_LENGTH + more..)?;
    let esds = box_body_at_path(boxes, &[b"esds"]).or_else(|| box_body_at_path(boxes, &[b"wave", b"esds"]))?;
    let mut whole = Vec::with_capacity(esds.len() + 8);
    whole.put_u32(u32::try_from(esds.len() + 8).ok()?);
    whole.put_slice(b"esds");
    whole.put_slice(esds);
    let (esds, _) = EsdsBox::decode(&whole).ok()?;
    AacConfig::parse(&esds.es.dec_config_descr.dec_specific_info?.payload)
}
