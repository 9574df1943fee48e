//! The WGSL of each weight format: one file in `shaders/quant/` and one line here.

use bayan_weights::Format;

use crate::matrix::Matrix;

/// The text that unpacks a format: `weights32(row, block)`, planes in group 1.
///
/// # Panics
/// If a format has no line in the table: a mistake of ours, found by the test below.
pub fn shader(format: &dyn Format) -> &'static str {
    let text = TABLE.iter().find(|(name, _)| *name == format.name()).map(|(_, text)| *text);
    text.unwrap_or_else(|| panic!("format {} has no shader", format.name()))
}

static TABLE: &[(&str, &str)] = &[
    ("f32", include_str!("../../../shaders/quant/f32.wgsl")),
    ("f16", include_str!("../../../shaders/quant/f16.wgsl")),
    ("q8_0", include_str!("../../../shaders/quant/q8_0.wgsl")),
    ("q6_k", include_str!("../../../shaders/quant/q6_k.wgsl")),
    ("q4_k", include_str!("../../../shaders/quant/q4_k.wgsl")),
    ("q4_0", include_str!("../../../shaders/quant/q4_0.wgsl")),
];

/// `BLOCKS`, the number of 32-blocks in a row of this matrix, and `slot`, where a part of a block of a row stands in a plane.
pub(crate) fn constants(matrix: &Matrix) -> String {
    format!(
        "const BLOCKS = {}u;\nfn slot(row: u32, block: u32, parts: u32, part: u32) -> u32 {{ return (((row >> 5u) * BLOCKS + block) * parts + part) * 32u + (row & 31u); }}",
        matrix.blocks()
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_format_has_a_shader() {
        for format in bayan_weights::FORMATS {
            assert!(super::shader(*format).contains("fn weights32("), "{}", format.name());
        }
    }
}
