//! Splits access units into NAL units: byte streams with start codes (ITU-T H.264 and H.265, Annex B), and
//! length-prefixed NAL units (ISO/IEC 14496-15 §4.3.3). The output shares the memory of the input.

use bytes::Bytes;

use super::{MAX_ACCESS_UNIT_BYTES, MAX_NAL_BYTES, MAX_NALS_PER_ACCESS_UNIT, PacketizerError};

/// Splits a byte stream with start codes.
///
/// # Errors
///
/// A [`PacketizerError`] if it does not start with a start code, or is too long.
pub fn split_annex_b(unit: &Bytes) -> Result<Vec<Bytes>, PacketizerError> {
    if unit.len() > MAX_ACCESS_UNIT_BYTES {
        return Err(PacketizerError::AccessUnitTooLong(unit.len()));
    }
    let mut nals = Vec::new();
    let Some(mut begin) = find_start_code(unit, 0) else {
        return if unit.is_empty() {
            Ok(nals)
        } else {
            Err(PacketizerError::NoStartCode(unit.len()))
        };
    };
    if unit.iter().take(begin).any(|byte| *byte != 0) {
        return Err(PacketizerError::NoStartCode(unit.len()));
    }
    loop {
        begin += ANNEX_B_START_CODE.len();
        let next = find_start_code(unit, begin);
        let end = next.unwrap_or(unit.len());
        // Zeros between NAL units belong to neither; a NAL unit never ends with one (H.264 §7.4.1.1).
        let nal = unit.slice(begin..end);
        let zeros = nal.iter().rev().take_while(|byte| **byte == 0).count();
        push_nal_within_limits(&mut nals, nal.slice(..nal.len() - zeros))?;
        match next {
            Some(next) => begin = next,
            None => return Ok(nals),
        }
    }
}

/// Splits NAL units with length prefixes of four bytes.
///
/// # Errors
///
/// A [`PacketizerError`] if a NAL unit is truncated or the access unit is too long.
pub(crate) fn split_length_prefixed_nals(unit: &Bytes) -> Result<Vec<Bytes>, PacketizerError> {
    if unit.len() > MAX_ACCESS_UNIT_BYTES {
        return Err(PacketizerError::AccessUnitTooLong(unit.len()));
    }
    let mut nals = Vec::new();
    let mut rest = unit.clone();
    while !rest.is_empty() {
        let Some((length, body)) = rest.split_first_chunk::<4>() else {
            return Err(PacketizerError::TruncatedNal {
                length: 4,
                left: rest.len(),
            });
        };
        let (length, left) = (u32::from_be_bytes(*length) as usize, body.len());
        if length > left {
            return Err(PacketizerError::TruncatedNal { length, left });
        }
        push_nal_within_limits(&mut nals, rest.slice(4..4 + length))?;
        rest = rest.slice(4 + length..);
    }
    Ok(nals)
}

const ANNEX_B_START_CODE: [u8; 3] = [0, 0, 1];

/// Returns where the next start code of three bytes begins.
pub(in crate::media) fn find_start_code(unit: &[u8], from: usize) -> Option<usize> {
    let rest = unit.get(from..)?;
    rest.windows(ANNEX_B_START_CODE.len())
        .position(|window| window == ANNEX_B_START_CODE)
        .map(|at| from + at)
}

fn push_nal_within_limits(nals: &mut Vec<Bytes>, nal: Bytes) -> Result<(), PacketizerError> {
    if nal.len() > MAX_NAL_BYTES {
        return Err(PacketizerError::NalTooLong(nal.len()));
    }
    if nals.len() >= MAX_NALS_PER_ACCESS_UNIT {
        return Err(PacketizerError::TooManyNals);
    }
    if !nal.is_empty() {
        nals.push(nal);
    }
    Ok(())
}
