//! Writes the GGUF file that peers read: version 3, little endian, with the three encodings of the comparison.

use anyhow::{Result, ensure};
use std::io::Write;

/// Alignment of tensors.
const ALIGNMENT: u64 = 32;

/// Weights of one block of the quantized encodings.
const BLOCK: usize = 32;

/// The encoding of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Unquantized.
    F32,
    /// 32 weights: an f16 scale and 4-bit codes.
    Q4_0,
    /// 32 weights: an f16 scale and 8-bit codes.
    Q8_0,
}

impl Encoding {
    fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
        }
    }

    fn bytes(self, values: usize) -> usize {
        match self {
            Self::F32 => values * 4,
            Self::Q4_0 => values / BLOCK * 18,
            Self::Q8_0 => values / BLOCK * 34,
        }
    }
}

/// The order of calls: the metadata, `declare` for every tensor, `write_header`, then the tensors in the declared
/// order.
pub struct GgufWriter<W: Write> {
    sink: W,
    metadata: Vec<u8>,
    metadata_count: u64,
    tensors: Vec<u8>,
    /// Bytes of each declared tensor.
    sizes: Vec<usize>,
    offset: u64,
    written: usize,
}

impl<W: Write> GgufWriter<W> {
    /// Starts a file that is written to `sink`.
    pub fn new(sink: W) -> Self {
        Self {
            sink,
            metadata: Vec::new(),
            metadata_count: 0,
            tensors: Vec::new(),
            sizes: Vec::new(),
            offset: 0,
            written: 0,
        }
    }

    fn entry(&mut self, key: &str, kind: u32, value: &[u8]) {
        push_text(&mut self.metadata, key);
        self.metadata.extend_from_slice(&kind.to_le_bytes());
        self.metadata.extend_from_slice(value);
        self.metadata_count += 1;
    }

    /// Adds a string.
    pub fn text(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        push_text(&mut bytes, value);
        self.entry(key, 8, &bytes);
    }

    /// Adds an unsigned 32-bit integer.
    pub fn number(&mut self, key: &str, value: u32) {
        self.entry(key, 4, &value.to_le_bytes());
    }

    /// Adds a 32-bit float.
    pub fn float(&mut self, key: &str, value: f32) {
        self.entry(key, 6, &value.to_le_bytes());
    }

    /// Adds a boolean.
    pub fn flag(&mut self, key: &str, value: bool) {
        self.entry(key, 7, &[u8::from(value)]);
    }

    /// Adds a list of strings.
    pub fn texts(&mut self, key: &str, values: &[String]) {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&8u32.to_le_bytes());
        bytes.extend_from_slice(&(values.len() as u64).to_le_bytes());
        for value in values {
            push_text(&mut bytes, value);
        }
        self.entry(key, 9, &bytes);
    }

    /// Declares a tensor; `shape` is outermost first.
    pub fn declare(&mut self, name: &str, shape: &[usize], encoding: Encoding) {
        push_text(&mut self.tensors, name);
        self.tensors.extend_from_slice(&(shape.len() as u32).to_le_bytes());
        for size in shape.iter().rev() {
            self.tensors.extend_from_slice(&(*size as u64).to_le_bytes());
        }
        self.tensors.extend_from_slice(&encoding.id().to_le_bytes());
        self.tensors.extend_from_slice(&self.offset.to_le_bytes());
        let bytes = encoding.bytes(shape.iter().product());
        self.sizes.push(bytes);
        self.offset += (bytes as u64).next_multiple_of(ALIGNMENT);
    }

    /// Writes everything before the first tensor.
    pub fn write_header(&mut self) -> Result<()> {
        let mut header = b"GGUF".to_vec();
        header.extend_from_slice(&3u32.to_le_bytes());
        header.extend_from_slice(&(self.sizes.len() as u64).to_le_bytes());
        header.extend_from_slice(&self.metadata_count.to_le_bytes());
        header.append(&mut self.metadata);
        header.append(&mut self.tensors);
        pad(&mut header);
        Ok(self.sink.write_all(&header)?)
    }

    /// Writes the next declared tensor.
    pub fn write_tensor(&mut self, values: &[f32], encoding: Encoding) -> Result<()> {
        let mut bytes = encode(values, encoding);
        ensure!(
            self.sizes.get(self.written) == Some(&bytes.len()),
            "tensor {} does not have the size it was declared with",
            self.written
        );
        self.written += 1;
        pad(&mut bytes);
        Ok(self.sink.write_all(&bytes)?)
    }

    /// Completes the file.
    pub fn finish(mut self) -> Result<()> {
        ensure!(self.written == self.sizes.len(), "{} of {} tensors were written", self.written, self.sizes.len());
        Ok(self.sink.flush()?)
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
}

fn encode(values: &[f32], encoding: Encoding) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(encoding.bytes(values.len()));
    match encoding {
        Encoding::F32 => values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes())),
        Encoding::Q4_0 => values.chunks_exact(BLOCK).for_each(|block| encode_q4_0(block, &mut bytes)),
        Encoding::Q8_0 => values.chunks_exact(BLOCK).for_each(|block| encode_q8_0(block, &mut bytes)),
    }
    bytes
}

/// The value of largest magnitude becomes code 0, that is -8 times the scale; byte j holds weights j and j + 16.
fn encode_q4_0(block: &[f32], bytes: &mut Vec<u8>) {
    let extreme = block.iter().copied().fold(0.0f32, |best, value| if value.abs() > best.abs() { value } else { best });
    let scale = extreme / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let code = |value: f32| (value * inverse + 8.5).clamp(0.0, 15.0) as u8;
    bytes.extend_from_slice(&half_bits(scale).to_le_bytes());
    for j in 0..BLOCK / 2 {
        bytes.push(code(block[j]) | (code(block[j + BLOCK / 2]) << 4));
    }
}

fn encode_q8_0(block: &[f32], bytes: &mut Vec<u8>) {
    let scale = block.iter().fold(0.0f32, |best, value| best.max(value.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    bytes.extend_from_slice(&half_bits(scale).to_le_bytes());
    bytes.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
}

/// The f16 nearest to a value, ties to even; values that are too large become infinite.
fn half_bits(value: f32) -> u16 {
    let sign = ((value.to_bits() >> 16) & 0x8000) as u16;
    let magnitude = value.abs();
    if magnitude >= 65520.0 {
        return sign | 0x7c00;
    }
    // Units in the last place: 2^-24 below the smallest normal number, and 2^(exponent - 10) above it.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-14);
    let units = (f64::from(magnitude) * 2f64.powi(10 - exponent)).round_ties_even() as u32;
    // The leading 1 of a normal number adds the one that is missing in the biased exponent here.
    sign | (((exponent + 14) as u32 * 1024) + units) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves() {
        for (value, bits) in [
            (0.0, 0),
            (1.0, 0x3c00),
            (-2.0, 0xc000),
            (65504.0, 0x7bff),
            (1e9, 0x7c00),
            (6.103_515_6e-5, 0x0400),
            (5.960_464_5e-8, 1),
            (0.333_251_95, 0x3555),
            (2047.9999, 0x6800),
        ] {
            assert_eq!(half_bits(value), bits, "{value}");
        }
    }

    #[test]
    fn blocks_decode_to_what_was_encoded() {
        let block: Vec<f32> = (0..32).map(|i| (i - 16) as f32 / 2.0).collect();
        let q4 = encode(&block, Encoding::Q4_0);
        // Scale (-8.0) / -8 = 1.0; weight 0 is code 0 and weight 16 is code 8.
        assert_eq!((q4.len(), &q4[..3]), (18, &[0x00, 0x3c, 0x80][..]));
        let q8 = encode(&block, Encoding::Q8_0);
        assert_eq!((q8.len(), q8[2] as i8, q8[18] as i8), (34, -127, 0));
    }

    #[test]
    fn tensors_begin_at_aligned_offsets() {
        let mut bytes = Vec::new();
        let mut writer = GgufWriter::new(&mut bytes);
        writer.text("general.architecture", "llama");
        writer.declare("a", &[3], Encoding::F32);
        writer.declare("b", &[1, 32], Encoding::Q8_0);
        writer.write_header().expect("a header");
        writer.write_tensor(&[1.0, 2.0, 3.0], Encoding::F32).expect("a");
        assert!(writer.write_tensor(&[1.0], Encoding::F32).is_err(), "a wrong size is refused");
        writer.write_tensor(&[1.0; 32], Encoding::Q8_0).expect("b");
        writer.finish().expect("an end");
        assert_eq!((&bytes[..4], bytes.len() % 32), (&b"GGUF"[..], 0));
        assert_eq!(&bytes[bytes.len() - 96..][..4], &1.0f32.to_le_bytes());
    }
}
