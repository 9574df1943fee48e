//! A quantized GGUF block unpacked: integer codes, scales and minima.
//!
//! Every type except the dense ones is `weight = scale · code − min` with one pair for 16 or 32 weights, so that one
//! loop computes values and another one planes. Rejected: a decoder per type, as in llama.cpp, because the planes would
//! need a second set.

use super::block_type::BlockType::{self, *};
use crate::formats::iq4_nl::LEVELS as IQ4_LEVELS;
use crate::formats::{SharedScales, StepScales, half_at, round_half};

/// e2m1 values times two.
const MXFP4_LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// One unpacked block.
pub(super) struct Parts {
    kind: BlockType,
    codes: [i8; 256],
    /// Scale and minimum of every `sub` weights.
    scales: [(f32, f32); 16],
    /// 16 or 32.
    sub: usize,
    /// The scales of Q4_K and Q5_K, as they are stored.
    shared: Option<SharedScales>,
    /// The scales of Q3_K and Q6_K, as they are stored.
    stepped: Option<StepScales>,
}

impl Parts {
    /// Unpacks a block of a quantized type.
    pub(super) fn of(kind: BlockType, bytes: &[u8]) -> Self {
        let mut parts = Self { kind, codes: [0; 256], scales: [(0.0, 0.0); 16], sub: 32, shared: None, stepped: None };
        match kind {
            Q4_0 | Q4_1 | IQ4_NL | MXFP4 => parts.small_4(bytes),
            Q5_0 | Q5_1 => parts.small_5(bytes),
            Q8_0 => {
                parts.scales[0].0 = half_at(bytes, 0);
                parts.codes.iter_mut().zip(&bytes[2..34]).for_each(|(code, &byte)| *code = byte as i8);
            }
            Q2_K => parts.q2_k(bytes),
            Q3_K => parts.q3_k(bytes),
            Q4_K => parts.q45_k(bytes, &[0; 32], &bytes[16..]),
            Q5_K => parts.q45_k(bytes, &bytes[16..48], &bytes[48..]),
            Q6_K => parts.q6_k(bytes),
            IQ4_XS => parts.iq4_xs(bytes),
            F32 | F16 | BF16 => {}
        }
        parts
    }

    /// Computes the weights of the block.
    pub(super) fn values(&self, out: &mut [f32]) {
        for ((out, codes), (scale, min)) in
            out.chunks_exact_mut(self.sub).zip(self.codes.chunks_exact(self.sub)).zip(self.scales)
        {
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = scale * f32::from(code) - min;
            }
        }
    }

    /// Appends the weights as blocks of the format that reads the type; fails with the index of a weight and a scale
    /// that the format cannot represent.
    pub(super) fn push(&self, planes: &mut [Vec<u8>]) -> Result<(), (usize, f32)> {
        if let Some(shared) = &self.shared {
            return self.kind.native().push_super_block(&self.codes, shared, planes).map_err(|value| (0, value));
        }
        if let Some(stepped) = &self.stepped {
            return self.kind.native().push_stepped(&self.codes, stepped, planes).map_err(|value| (0, value));
        }
        let mut groups = 0..self.kind.block() / 32;
        groups.try_for_each(|group| self.push_group(group, planes).map_err(|value| (group * 32, value)))
    }

    fn push_group(&self, group: usize, planes: &mut [Vec<u8>]) -> Result<(), f32> {
        let codes = &self.codes.as_chunks::<32>().0[group];
        let [first, second] = [0, 16].map(|half| self.scales[(group * 32 + half) / self.sub]);
        // MXFP4's scales are powers of two and exceed the range of the f16 scales of other types.
        let exact = round_half(first.0) == Some(first.0) || codes.iter().all(|&code| code == 0);
        if self.kind == MXFP4 && !exact {
            return Err(first.0);
        }
        self.kind.native().push_block(codes, [first, second], planes)
    }

    fn small_4(&mut self, bytes: &[u8]) {
        let codes = &bytes[bytes.len() - 16..];
        let level = |nibble: u8| match self.kind {
            Q4_0 => nibble as i8 - 8,
            Q4_1 => nibble as i8,
            IQ4_NL => IQ4_LEVELS[usize::from(nibble)],
            _ => MXFP4_LEVELS[usize::from(nibble)],
        };
        for (j, &byte) in codes.iter().enumerate() {
            (self.codes[j], self.codes[j + 16]) = (level(byte & 15), level(byte >> 4));
        }
        self.scales[0] = match self.kind {
            Q4_1 => (half_at(bytes, 0), -half_at(bytes, 1)),
            MXFP4 => (2f32.powi(i32::from(bytes[0]) - 128), 0.0),
            _ => (half_at(bytes, 0), 0.0),
        };
    }

    fn small_5(&mut self, bytes: &[u8]) {
        let start = bytes.len() - 20;
        let highs = u32::from_le_bytes([bytes[start], bytes[start + 1], bytes[start + 2], bytes[start + 3]]);
        for (j, &byte) in bytes[start + 4..].iter().enumerate() {
            let high = |j: usize| ((highs >> j & 1) << 4) as i8;
            self.codes[j] = (byte & 15) as i8 | high(j);
            self.codes[j + 16] = (byte >> 4) as i8 | high(j + 16);
        }
        let scale = half_at(bytes, 0);
        self.scales[0] = (scale, if self.kind == Q5_1 { -half_at(bytes, 1) } else { 16.0 * scale });
    }

    /// 16 scales and minima of 4 bits; two bits a code, in two halves of four interleaved groups of 32.
    fn q2_k(&mut self, bytes: &[u8]) {
        let (scale, min) = (half_at(&bytes[80..], 0), half_at(&bytes[80..], 1));
        self.sub = 16;
        for (to, &byte) in self.scales.iter_mut().zip(&bytes[..16]) {
            *to = (scale * f32::from(byte & 15), min * f32::from(byte >> 4));
        }
        for (index, code) in self.codes.iter_mut().enumerate() {
            let (half, group, lane) = (index / 128, index / 32 % 4, index % 32);
            *code = (bytes[16 + 32 * half + lane] >> (2 * group) & 3) as i8;
        }
    }

    /// As Q2_K's codes, with a third bit that means "do not subtract 4"; 16 scales of 6 bits.
    fn q3_k(&mut self, bytes: &[u8]) {
        let packed = &bytes[96..108];
        let step = |index: usize| {
            let low = packed[index % 8] >> (4 * (index / 8)) & 15;
            let high = packed[8 + index % 4] >> (2 * (index / 4)) & 3;
            (low | high << 4) as i8 - 32
        };
        self.stepped(StepScales { unit: half_at(&bytes[108..], 0), steps: std::array::from_fn(step) });
        for (index, code) in self.codes.iter_mut().enumerate() {
            let (half, group, lane) = (index / 128, index / 32 % 4, index % 32);
            let low = bytes[32 + 32 * half + lane] >> (2 * group) & 3;
            let high = bytes[lane] >> (4 * half + group) & 1;
            *code = low as i8 - if high == 0 { 4 } else { 0 };
        }
    }

    /// Eight groups with scales and minima of 6 bits; a fifth bit of each code in `highs` for Q5_K.
    fn q45_k(&mut self, bytes: &[u8], highs: &[u8], nibbles: &[u8]) {
        let shared = SharedScales::from_gguf(bytes);
        for group in 0..8 {
            self.scales[group] = shared.pair(group);
            for lane in 0..32 {
                let nibble = nibbles[32 * (group / 2) + lane] >> (4 * (group % 2)) & 15;
                self.codes[32 * group + lane] = (nibble | (highs[lane] >> group & 1) << 4) as i8;
            }
        }
        self.shared = Some(shared);
    }

    fn q6_k(&mut self, bytes: &[u8]) {
        let steps = std::array::from_fn(|group| bytes[192 + group] as i8);
        self.stepped(StepScales { unit: half_at(&bytes[208..], 0), steps });
        for (index, code) in self.codes.iter_mut().enumerate() {
            let (half, group, lane) = (index / 128, index / 32 % 4, index % 32);
            let low = bytes[64 * half + 32 * (group % 2) + lane] >> (4 * (group / 2)) & 15;
            let high = bytes[128 + 32 * half + lane] >> (2 * group) & 3;
            *code = (low | high << 4) as i8 - 32;
        }
    }

    fn stepped(&mut self, stepped: StepScales) {
        self.sub = 16;
        self.scales = std::array::from_fn(|group| (stepped.scale(group), 0.0));
        self.stepped = Some(stepped);
    }

    fn iq4_xs(&mut self, bytes: &[u8]) {
        let (scale, highs) = (half_at(bytes, 0), u16::from_le_bytes([bytes[2], bytes[3]]));
        for group in 0..8 {
            let low = bytes[4 + group / 2] >> (4 * (group % 2)) & 15;
            let high = (highs >> (2 * group) & 3) as u8;
            self.scales[group].0 = scale * (f32::from(low | high << 4) - 32.0);
            for (j, &byte) in bytes[8 + 16 * group..][..16].iter().enumerate() {
                self.codes[32 * group + j] = IQ4_LEVELS[usize::from(byte & 15)];
                self.codes[32 * group + 16 + j] = IQ4_LEVELS[usize::from(byte >> 4)];
            }
        }
    }
}
