//! The WGSL of each weight format: one file in `shaders/quant/` and one line here.

use bayan_weights::Format;

use crate::matrix::Matrix;

/// The text that unpacks a format: `codes32` and `scales32`, planes in group 1.
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
    ("q5_k", include_str!("../../../shaders/quant/q5_k.wgsl")),
    ("q4_k", include_str!("../../../shaders/quant/q4_k.wgsl")),
    ("q4_0", include_str!("../../../shaders/quant/q4_0.wgsl")),
];

/// What every kernel on weights links beside the format's text: `BLOCKS`, the number of 32-blocks in a row, `slot`, where a part of a
/// block of a row stands in a plane, and `weights32`.
pub(crate) fn constants(matrix: &Matrix) -> String {
    format!("const BLOCKS = {}u;\n{SLOT}{WEIGHTS}", matrix.blocks())
}

/// The same with `BLOCKS` as a variable that the kernel sets, so that one kernel serves matrices of all sizes.
/// `spread`: codes of a byte are left where they stand in their word (`spread.wgsl`), and there is no `weights32`.
pub(crate) fn variables(spread: bool) -> String {
    format!("var<private> BLOCKS: u32;\n{SLOT}{}", if spread { SPREAD } else { WEIGHTS })
}

/// Whether codes of a format are unsigned bytes below 128, scaled with an offset: these can be spread.
pub(crate) fn has_offset(format: &dyn Format) -> bool {
    shader(format).contains("bytes4(")
}

/// Whether byte j of a block holds codes j and j + 16 of 4 bits, and nothing more.
pub(crate) fn has_nibbles(format: &dyn Format) -> bool {
    matches!(format.name(), "q4_0" | "q4_k")
}

const SLOT: &str = include_str!("../../../shaders/lib/slot.wgsl");
const WEIGHTS: &str = include_str!("../../../shaders/lib/weights.wgsl");
pub(crate) const SPREAD: &str = include_str!("../../../shaders/lib/spread.wgsl");

#[cfg(test)]
mod tests {
    #[test]
    fn every_format_has_a_shader() {
        for format in bayan_weights::FORMATS {
            assert!(super::shader(*format).contains("fn codes32("), "{}", format.name());
        }
    }
}
