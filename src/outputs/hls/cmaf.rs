//! Fragmented MP4 (ISO/IEC 14496-12, 23000-19): initialization sections and fragments.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use shiguredo_mp4::boxes::{
    AudioSampleEntryFields, Av01Box, Av1cBox, Avc1Box, AvccBox, DopsBox, EsdsBox, Hvc1Box, HvccBox, HvccNalUintArray,
    MfhdBox, MoofBox, Mp4aBox, OpusBox, SampleEntry, TfdtBox, TfhdBox, TrafBox, TrunBox, TrunSample,
    VisualSampleEntryFields, Vp09Box, VpccBox,
};
use shiguredo_mp4::descriptors::{DecoderConfigDescriptor, DecoderSpecificInfo, EsDescriptor, SlConfigDescriptor};
use shiguredo_mp4::mux::{Fmp4SegmentMuxer, Sample};
use shiguredo_mp4::{Encode as _, FixedPointNumber, SampleFlags, TrackKind, Uint};

use millstream_core::media::aac::AacConfig;
use millstream_core::media::codec::av1::Av1Config;
use millstream_core::media::codec::bit_reader::remove_emulation_prevention;
use millstream_core::media::packetizer::split_annex_b;
use millstream_core::media::{Codec, CodecFormat, MediaKind};

/// Codec parameters of a track: sample entry, and codec string for playlists (RFC 6381).
#[derive(Clone, Debug, PartialEq)]
pub struct CodecConfig {
    pub codec_string: String,
    sample_entry: SampleEntry,
    clock_rate: u32,
    kind: MediaKind,
}

/// One frame of a fragment.
#[derive(Clone, Debug)]
pub struct CmafSample {
    /// Duration in ticks of the track's clock rate.
    pub duration_ticks: u32,
    pub is_key_frame: bool,
    pub bytes: Bytes,
}

impl CodecConfig {
    /// Creates the header of a video track from its first key frame, as returned by the depacketizer.
    ///
    /// `None` if parameter sets are missing, or if players do not support the format.
    pub fn from_video_key_frame(format: CodecFormat, resolution: (u16, u16), frame: &Bytes) -> Option<Self> {
        let visual = visual_sample_entry_fields(resolution);
        let (codecs, entry) = match format {
            CodecFormat::H264 { .. } => h264_sample_entry(visual, &split_annex_b(frame).ok()?)?,
            CodecFormat::H265 { .. } => h265_sample_entry(visual, &split_annex_b(frame).ok()?)?,
            CodecFormat::Vp9 { profile } => vp9_sample_entry(visual, profile),
            CodecFormat::Av1 { .. } => av1_sample_entry(visual, &Av1Config::find_in_temporal_unit(frame)?),
            _ => return None,
        };
        Some(Self {
            codec_string: codecs,
            sample_entry: entry,
            clock_rate: format.codec().clock_rate(),
            kind: MediaKind::Video,
        })
    }

    /// Creates the header of an audio track; `None` if players do not support the format.
    pub fn for_audio(format: CodecFormat) -> Option<Self> {
        let (codecs, entry) = match format {
            CodecFormat::Opus { .. } => opus_sample_entry(),
            CodecFormat::Aac(config) => aac_sample_entry(config),
            _ => return None,
        };
        Some(Self {
            codec_string: codecs,
            sample_entry: entry,
            clock_rate: format.codec().clock_rate(),
            kind: MediaKind::Audio,
        })
    }

    /// Writes the initialization section.
    pub fn write_init_section(&self) -> Option<Bytes> {
        let mut muxer = Fmp4SegmentMuxer::new().ok()?;
        let sample = Sample {
            track_kind: match self.kind {
                MediaKind::Video => TrackKind::Video,
                MediaKind::Audio => TrackKind::Audio,
            },
            sample_entry: Some(self.sample_entry.clone()),
            keyframe: true,
            timescale: NonZeroU32::new(self.clock_rate)?,
            duration: 1,
            composition_time_offset: None,
            data_offset: 0,
            data_size: 1,
        };
        muxer.create_media_segment_metadata(&[sample]).ok()?;
        muxer.init_segment_bytes().ok().map(Bytes::from)
    }
}

/// Writes a fragment that starts at `decode_time`, in ticks of the track's clock rate.
pub fn write_fragment(sequence: u32, decode_time: u64, samples: &[CmafSample]) -> Option<Bytes> {
    let runs = samples.iter().map(|sample| TrunSample {
        duration: Some(sample.duration_ticks),
        size: u32::try_from(sample.bytes.len()).ok(),
        flags: Some(sample_flags(sample.is_key_frame)),
        composition_time_offset: None,
    });
    let mut moof = MoofBox {
        mfhd_box: MfhdBox {
            sequence_number: sequence,
        },
        traf_boxes: vec![TrafBox {
            tfhd_box: TfhdBox {
                track_id: 1,
                base_data_offset: None,
                sample_description_index: None,
                default_sample_duration: None,
                default_sample_size: None,
                default_sample_flags: None,
                duration_is_empty: false,
                default_base_is_moof: true,
            },
            tfdt_box: Some(TfdtBox {
                version: 1,
                base_media_decode_time: decode_time,
            }),
            trun_boxes: vec![TrunBox {
                data_offset: Some(0),
                first_sample_flags: None,
                samples: runs.collect(),
            }],
            unknown_boxes: Vec::new(),
        }],
        unknown_boxes: Vec::new(),
    };
    let length = moof.encode_to_vec().ok()?.len();
    if let Some(run) = moof.traf_boxes.first_mut().and_then(|traf| traf.trun_boxes.first_mut()) {
        run.data_offset = i32::try_from(length + MDAT_HEADER_BYTES).ok();
    }
    let mut out = moof.encode_to_vec().ok()?;
    let payload: usize = samples.iter().map(|sample| sample.bytes.len()).sum();
    out.reserve(MDAT_HEADER_BYTES + payload);
    out.extend(u32::try_from(MDAT_HEADER_BYTES + payload).ok()?.to_be_bytes());
    out.extend(b"mdat");
    for sample in samples {
        out.extend_from_slice(&sample.bytes);
    }
    Some(out.into())
}

const MDAT_HEADER_BYTES: usize = 8;

/// ISO/IEC 14496-12 §8.8.3.1: whether the sample depends on others, and whether it is a sync sample.
fn sample_flags(key_frame: bool) -> SampleFlags {
    SampleFlags::new(if key_frame { 0x0200_0000 } else { 0x0101_0000 })
}

/// Converts a frame to its form in MP4: NAL units with length prefixes.
pub fn frame_to_mp4_sample(codec: Codec, frame: &Bytes) -> Option<Bytes> {
    if !matches!(codec, Codec::H264 | Codec::H265) {
        return Some(frame.clone());
    }
    let nals = split_annex_b(frame).ok()?;
    let mut out = Vec::with_capacity(frame.len() + 4);
    for nal in &nals {
        out.extend(u32::try_from(nal.len()).ok()?.to_be_bytes());
        out.extend_from_slice(nal);
    }
    Some(out.into())
}

fn visual_sample_entry_fields((width, height): (u16, u16)) -> VisualSampleEntryFields {
    VisualSampleEntryFields {
        data_reference_index: VisualSampleEntryFields::DEFAULT_DATA_REFERENCE_INDEX,
        width,
        height,
        horizresolution: VisualSampleEntryFields::DEFAULT_HORIZRESOLUTION,
        vertresolution: VisualSampleEntryFields::DEFAULT_VERTRESOLUTION,
        frame_count: VisualSampleEntryFields::DEFAULT_FRAME_COUNT,
        compressorname: VisualSampleEntryFields::NULL_COMPRESSORNAME,
        depth: VisualSampleEntryFields::DEFAULT_DEPTH,
    }
}

fn nals_of_type(nals: &[Bytes], is: impl Fn(u8) -> bool) -> Vec<Vec<u8>> {
    let matching = nals.iter().filter(|nal| nal.first().is_some_and(|first| is(*first)));
    matching.map(|nal| nal.to_vec()).collect()
}

/// ISO/IEC 14496-15 §5.3.3.
fn h264_sample_entry(visual: VisualSampleEntryFields, nals: &[Bytes]) -> Option<(String, SampleEntry)> {
    let sets = nals_of_type(nals, |first| first & 0x1f == 7);
    let pps_list = nals_of_type(nals, |first| first & 0x1f == 8);
    let &[_, profile, compatibility, level, ..] = sets.first()?.as_slice() else {
        return None;
    };
    // High profiles have additional fields; browsers read them from the SPS itself.
    let is_loss_high = matches!(profile, 100 | 110 | 122 | 144);
    let entry = Avc1Box {
        visual,
        avcc_box: AvccBox {
            avc_profile_indication: profile,
            profile_compatibility: compatibility,
            avc_level_indication: level,
            length_size_minus_one: Uint::new(3),
            sps_list: sets,
            pps_list: (!pps_list.is_empty()).then_some(pps_list)?,
            chroma_format: is_loss_high.then_some(Uint::new(1)),
            bit_depth_luma_minus8: is_loss_high.then_some(Uint::new(0)),
            bit_depth_chroma_minus8: is_loss_high.then_some(Uint::new(0)),
            sps_ext_list: Vec::new(),
        },
        unknown_boxes: Vec::new(),
    };
    let codecs = format!("avc1.{profile:02x}{compatibility:02x}{level:02x}");
    Some((codecs, SampleEntry::Avc1(entry)))
}

/// ISO/IEC 14496-15 §8.3.3 and annex E.3.
fn h265_sample_entry(visual: VisualSampleEntryFields, nals: &[Bytes]) -> Option<(String, SampleEntry)> {
    let sets = |kind: u8| nals_of_type(nals, |first| first >> 1 & 0x3f == kind);
    let (vps, sps, pps) = (sets(32), sets(33), sets(34));
    // NAL header (2), IDs and layers (1), then profile, tier and level (12), without emulation prevention bytes.
    let plain = remove_emulation_prevention(sps.first()?);
    let layers = plain.get(2)? >> 1 & 7;
    let nested = plain.get(2)? & 1;
    let &[profile, c0, c1, c2, c3, k0, k1, k2, k3, k4, k5, level] = plain.get(3..)?.first_chunk::<12>()?;
    let compatibility = u32::from_be_bytes([c0, c1, c2, c3]);
    let array = |kind: u8, nalus: Vec<Vec<u8>>| HvccNalUintArray {
        array_completeness: Uint::new(0),
        nal_unit_type: Uint::new(kind),
        nalus,
    };
    let entry = Hvc1Box {
        visual,
        hvcc_box: HvccBox {
            general_profile_space: Uint::new(profile >> 6),
            general_tier_flag: Uint::new(profile >> 5 & 1),
            general_profile_idc: Uint::new(profile & 0x1f),
            general_profile_compatibility_flags: compatibility,
            general_constraint_indicator_flags: Uint::new(u64::from_be_bytes([0, 0, k0, k1, k2, k3, k4, k5])),
            general_level_idc: level,
            min_spatial_segmentation_idc: Uint::new(0),
            parallelism_type: Uint::new(0),
            chroma_format_idc: Uint::new(1),
            bit_depth_luma_minus8: Uint::new(0),
            bit_depth_chroma_minus8: Uint::new(0),
            avg_frame_rate: 0,
            constant_frame_rate: Uint::new(0),
            num_temporal_layers: Uint::new(layers + 1),
            temporal_id_nested: Uint::new(nested),
            length_size_minus_one: Uint::new(3),
            nalu_arrays: vec![array(32, vps), array(33, sps), array(34, pps)],
        },
        unknown_boxes: Vec::new(),
    };
    let space = ["", "A", "B", "C"].get(usize::from(profile >> 6))?;
    let tier = if profile >> 5 & 1 == 1 { 'H' } else { 'L' };
    let mut constraints = vec![k0, k1, k2, k3, k4, k5];
    while constraints.last() == Some(&0) {
        constraints.pop();
    }
    let constraints: String = constraints.iter().map(|byte| format!(".{byte:X}")).collect();
    let codecs = format!(
        "hvc1.{space}{}.{:X}.{tier}{level}{constraints}",
        profile & 0x1f,
        compatibility.reverse_bits()
    );
    Some((codecs, SampleEntry::Hvc1(entry)))
}

/// AV1-ISOBMFF §2.3, §5: eight bits, 4:2:0, as in WebRTC.
fn av1_sample_entry(visual: VisualSampleEntryFields, config: &Av1Config) -> (String, SampleEntry) {
    let entry = Av01Box {
        visual,
        av1c_box: Av1cBox {
            seq_profile: Uint::new(config.profile),
            seq_level_idx_0: Uint::new(config.level),
            seq_tier_0: Uint::new(config.tier),
            high_bitdepth: Uint::new(0),
            twelve_bit: Uint::new(0),
            monochrome: Uint::new(0),
            chroma_subsampling_x: Uint::new(1),
            chroma_subsampling_y: Uint::new(1),
            chroma_sample_position: Uint::new(0),
            initial_presentation_delay_minus_one: None,
            config_obus: config.sequence_header.clone(),
        },
        unknown_boxes: Vec::new(),
    };
    let tier = if config.tier == 0 { 'M' } else { 'H' };
    (
        format!("av01.{}.{:02}{tier}.08", config.profile, config.level),
        SampleEntry::Av01(entry),
    )
}

fn vp9_sample_entry(visual: VisualSampleEntryFields, profile: u8) -> (String, SampleEntry) {
    let (level, depth) = (51, if profile < 2 { 8 } else { 10 });
    let entry = Vp09Box {
        visual,
        vpcc_box: VpccBox {
            profile,
            level,
            bit_depth: Uint::new(depth),
            chroma_subsampling: Uint::new(1),
            video_full_range_flag: Uint::new(0),
            colour_primaries: 1,
            transfer_characteristics: 1,
            matrix_coefficients: 1,
            codec_initialization_data: Vec::new(),
        },
        unknown_boxes: Vec::new(),
    };
    (
        format!("vp09.{profile:02}.{level}.{depth:02}"),
        SampleEntry::Vp09(entry),
    )
}

fn audio_fields(channels: u16, rate: u16) -> AudioSampleEntryFields {
    AudioSampleEntryFields {
        data_reference_index: NonZeroU16::MIN,
        channelcount: channels,
        samplesize: AudioSampleEntryFields::DEFAULT_SAMPLESIZE,
        samplerate: FixedPointNumber::new(rate, 0),
    }
}

/// "Encapsulation of Opus in ISO Base Media File Format" §4.3. Live streams have no pre-skip.
fn opus_sample_entry() -> (String, SampleEntry) {
    let entry = OpusBox {
        audio: audio_fields(2, 48_000),
        dops_box: DopsBox {
            output_channel_count: 2,
            pre_skip: 0,
            input_sample_rate: 48_000,
            output_gain: 0,
        },
        unknown_boxes: Vec::new(),
    };
    ("opus".to_owned(), SampleEntry::Opus(entry))
}

/// ISO/IEC 14496-14 §5.6. The sampling rate is that of the decoder, not the clock rate of the track.
fn aac_sample_entry(config: AacConfig) -> (String, SampleEntry) {
    let object_type = config.bytes().first().map_or(2, |first| first >> 3);
    let entry = Mp4aBox {
        audio: audio_fields(
            u16::from(config.channel_configuration.max(1)),
            u16::try_from(config.sample_rate).unwrap_or(48_000),
        ),
        esds_box: EsdsBox {
            es: EsDescriptor {
                es_id: EsDescriptor::MIN_ES_ID,
                stream_priority: Uint::new(0),
                depends_on_es_id: None,
                url_string: None,
                ocr_es_id: None,
                dec_config_descr: DecoderConfigDescriptor {
                    object_type_indication: DecoderConfigDescriptor::OBJECT_TYPE_INDICATION_AUDIO_ISO_IEC_14496_3,
                    stream_type: DecoderConfigDescriptor::STREAM_TYPE_AUDIO,
                    up_stream: DecoderConfigDescriptor::UP_STREAM_FALSE,
                    buffer_size_db: Uint::new(0),
                    max_bitrate: 0,
                    avg_bitrate: 0,
                    dec_specific_info: Some(DecoderSpecificInfo {
                        payload: config.bytes().to_vec(),
                    }),
                },
                sl_config_descr: SlConfigDescriptor,
            },
        },
        unknown_boxes: Vec::new(),
    };
    (format!("mp4a.40.{object_type}"), SampleEntry::Mp4a(entry))
}
