//! Elements in host memory.

use half::f16;

/// Size of every element in bytes: f32, u32, or two packed f16.
pub const ELEMENT_BYTES: u64 = 4;

/// Element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floating point.
    F32,
    /// 32-bit unsigned: indices, or packed values (two f16, four int8).
    U32,
}

/// A flat list of elements.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Floating point.
    F32(Vec<f32>),
    /// Unsigned.
    U32(Vec<u32>),
}

impl Values {
    /// Zeros.
    pub fn zeros(len: usize, dtype: Dtype) -> Values {
        match dtype {
            Dtype::F32 => Values::F32(vec![0.0; len]),
            Dtype::U32 => Values::U32(vec![0; len]),
        }
    }

    /// From little-endian bytes; up to three left-over bytes at the end are ignored.
    pub fn from_bytes(bytes: &[u8], dtype: Dtype) -> Values {
        let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        match dtype {
            Dtype::F32 => Values::F32(words.map(f32::from_bits).collect()),
            Dtype::U32 => Values::U32(words.collect()),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Values::F32(_) => Dtype::F32,
            Values::U32(_) => Dtype::U32,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Values::F32(v) => v.len(),
            Values::U32(v) => v.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as f32.
    ///
    /// # Panics
    /// If they are not f32, which is a programming error in an op.
    pub fn f32(&self) -> &[f32] {
        match self {
            Values::F32(v) => v,
            Values::U32(_) => panic!("expected f32 elements"),
        }
    }

    /// The elements as f32, mutable.
    ///
    /// # Panics
    /// If they are not f32, which is a programming error in an op.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        match self {
            Values::F32(v) => v,
            Values::U32(_) => panic!("expected f32 elements"),
        }
    }

    /// The elements as u32.
    ///
    /// # Panics
    /// If they are f32, which is a programming error in an op.
    pub fn u32(&self) -> &[u32] {
        match self {
            Values::U32(v) => v,
            Values::F32(_) => panic!("expected u32 elements"),
        }
    }

    /// The elements as u32, mutable.
    ///
    /// # Panics
    /// If they are f32, which is a programming error in an op.
    pub fn u32_mut(&mut self) -> &mut [u32] {
        match self {
            Values::U32(v) => v,
            Values::F32(_) => panic!("expected u32 elements"),
        }
    }

    /// The elements as bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Values::F32(v) => bytemuck::cast_slice(v),
            Values::U32(v) => bytemuck::cast_slice(v),
        }
    }

    /// The elements as bytes, mutable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Values::F32(v) => bytemuck::cast_slice_mut(v),
            Values::U32(v) => bytemuck::cast_slice_mut(v),
        }
    }
}

/// Packs two f16 into one u32, the first in the low half, as WGSL's `pack2x16float` does.
pub(crate) fn pack_f16(low: f32, high: f32) -> u32 {
    u32::from(f16::from_f32(low).to_bits()) | u32::from(f16::from_f32(high).to_bits()) << 16
}

/// Unpacks the two f16 of a u32.
pub(crate) fn unpack_f16(word: u32) -> [f32; 2] {
    [f16::from_bits(word as u16).to_f32(), f16::from_bits((word >> 16) as u16).to_f32()]
}
