//! Encodes skipped macroblocks by CABAC (ITU-T H.264 §9.3.4).

use super::bit_writer::BitWriter;
use super::cabac_encoder::{CabacContext, CabacEncoder};

/// Initialization of `mb_skip_flag` in P slices with `cabac_init_idc` 0, where both neighbours are skipped or absent (context
/// 11, table 9-13).
const MB_SKIP_FLAG_CONTEXT_INIT: (i64, i64) = (23, 33);

/// Writes `count` skipped macroblocks and the end of the slice. `qp` is that of the slice.
pub(super) fn write_skipped_macroblocks(bits: &mut BitWriter, count: u32, qp: i64) {
    let (slope, offset) = MB_SKIP_FLAG_CONTEXT_INIT;
    let mut context = CabacContext::new(slope, offset, qp);
    let mut encoder = CabacEncoder::new(bits);
    for macroblock in 1..=count {
        encoder.encode(&mut context, true);
        encoder.encode_end_of_slice(macroblock == count);
    }
}
