//! Arithmetic encoder of CABAC (ITU-T H.264 §9.3.4, ITU-T H.265 §9.3.5, which are alike).

use super::bit_writer::BitWriter;

/// Encodes the bins of one slice.
pub(super) struct CabacEncoder<'a> {
    bits: &'a mut BitWriter,
    low: u32,
    range: u32,
    is_first_bit: bool,
    outstanding_bits: u32,
}

/// Probability state of a context variable, and its most probable value.
#[derive(Clone, Copy, Debug)]
pub(super) struct CabacContext {
    state: usize,
    most_probable: bool,
}

/// Range of the least probable value, by state and range (table 9-44).
#[rustfmt::skip]
const RANGE_TAB_LPS: [[u8; 4]; 64] = [
    [128, 176, 208, 240], [128, 167, 197, 227], [128, 158, 187, 216], [123, 150, 178, 205],
    [116, 142, 169, 195], [111, 135, 160, 185], [105, 128, 152, 175], [100, 122, 144, 166],
    [95, 116, 137, 158], [90, 110, 130, 150], [85, 104, 123, 142], [81, 99, 117, 135],
    [77, 94, 111, 128], [73, 89, 105, 122], [69, 85, 100, 116], [66, 80, 95, 110],
    [62, 76, 90, 104], [59, 72, 86, 99], [56, 69, 81, 94], [53, 65, 77, 89],
    [51, 62, 73, 85], [48, 59, 69, 80], [46, 56, 66, 76], [43, 53, 63, 72],
    [41, 50, 59, 69], [39, 48, 56, 65], [37, 45, 54, 62], [35, 43, 51, 59],
    [33, 41, 48, 56], [32, 39, 46, 53], [30, 37, 43, 50], [29, 35, 41, 48],
    [27, 33, 39, 45], [26, 31, 37, 43], [24, 30, 35, 41], [23, 28, 33, 39],
    [22, 27, 32, 37], [21, 26, 30, 35], [20, 24, 29, 33], [19, 23, 27, 31],
    [18, 22, 26, 30], [17, 21, 25, 28], [16, 20, 23, 27], [15, 19, 22, 25],
    [14, 18, 21, 24], [14, 17, 20, 23], [13, 16, 19, 22], [12, 15, 18, 21],
    [12, 14, 17, 20], [11, 14, 16, 19], [11, 13, 15, 18], [10, 12, 15, 17],
    [10, 12, 14, 16], [9, 11, 13, 15], [9, 11, 12, 14], [8, 10, 12, 14],
    [8, 9, 11, 13], [7, 9, 11, 12], [7, 9, 10, 12], [7, 8, 10, 11],
    [6, 8, 9, 11], [6, 7, 9, 10], [6, 7, 8, 9], [2, 2, 2, 2],
];

/// State after the least probable value (table 9-45).
#[rustfmt::skip]
const TRANS_IDX_LPS: [u8; 64] = [
    0, 0, 1, 2, 2, 4, 4, 5, 6, 7, 8, 9, 9, 11, 11, 12, 13, 13, 15, 15, 16, 16, 18, 18, 19, 19, 21, 21, 22, 22, 23, 24,
    24, 25, 26, 26, 27, 27, 28, 29, 29, 30, 30, 30, 31, 32, 32, 33, 33, 33, 34, 34, 35, 35, 35, 36, 36, 36, 37, 37, 37,
    38, 38, 63,
];

/// The last state but one of the most probable value.
const MAX_PROBABILITY_STATE_INDEX: usize = 62;

impl CabacContext {
    /// Initializes a context by its slope and offset. `qp` is that of the slice.
    pub(super) fn new(slope: i64, offset: i64, qp: i64) -> Self {
        let initial = (((slope * qp.clamp(0, 51)) >> 4) + offset).clamp(1, 126);
        let most_probable = initial > 63;
        let state = if most_probable { initial - 64 } else { 63 - initial };
        Self {
            state: usize::try_from(state).unwrap_or_default(),
            most_probable,
        }
    }
}

impl<'a> CabacEncoder<'a> {
    /// Starts behind a slice header that ends with a byte.
    pub(super) fn new(bits: &'a mut BitWriter) -> Self {
        Self {
            bits,
            low: 0,
            range: 510,
            is_first_bit: true,
            outstanding_bits: 0,
        }
    }

    /// Encodes a bin with a context (H.264 §9.3.4.2).
    pub(super) fn encode(&mut self, context: &mut CabacContext, bin: bool) {
        let column = (self.range >> 6 & 3) as usize;
        let row = RANGE_TAB_LPS.get(context.state).copied().unwrap_or_default();
        let least_probable = u32::from(row.get(column).copied().unwrap_or_default());
        self.range -= least_probable;
        if bin == context.most_probable {
            context.state = (context.state + 1).min(MAX_PROBABILITY_STATE_INDEX);
        } else {
            self.low += self.range;
            self.range = least_probable;
            context.most_probable ^= context.state == 0;
            context.state = usize::from(TRANS_IDX_LPS.get(context.state).copied().unwrap_or_default());
        }
        self.renormalize();
    }

    /// Encodes whether the slice ends here (H.264 §9.3.4.5). The last bit that is written at the end is
    /// `rbsp_stop_one_bit`.
    pub(super) fn encode_end_of_slice(&mut self, is_end: bool) {
        self.range -= 2;
        if !is_end {
            return self.renormalize();
        }
        self.low += self.range;
        self.range = 2;
        self.renormalize();
        self.put_bit(self.low >> 9 & 1);
        self.bits.write_bits(self.low >> 7 & 3 | 1, 2);
    }

    fn renormalize(&mut self) {
        while self.range < 256 {
            match self.low {
                0..256 => self.put_bit(0),
                512.. => {
                    self.low -= 512;
                    self.put_bit(1);
                }
                _ => {
                    self.low -= 256;
                    self.outstanding_bits += 1;
                }
            }
            self.range <<= 1;
            self.low <<= 1;
        }
    }

    fn put_bit(&mut self, bit: u32) {
        if !std::mem::take(&mut self.is_first_bit) {
            self.bits.write_bits(bit, 1);
        }
        for _ in 0..std::mem::take(&mut self.outstanding_bits) {
            self.bits.write_bits(1 - bit, 1);
        }
    }
}
