//! The WGSL of each weight format: one file in `shaders/quant/` and one line here.

use bayan_weights::Format;

use crate::graph::Matrix;

/// The text that unpacks a format: `codes32` and `scales32`, planes in group 1.
///
/// # Panics
/// If a format has no line in the table: a mistake of ours, found by the test below.
pub fn shader(format: &dyn Format) -> &'static str {
    let text = TABLE.iter().find(|(name, _)| *name == format.name()).map(|(_, text)| *text);
    text.unwrap_or_else(|| panic!("format {} has no shader", format.name()))
}

static TABLE: &[(&str, &str)] = &[
    ("f32", wgsl!("quant/f32.wgsl")),
    ("f16", wgsl!("quant/f16.wgsl")),
    ("q8_0", wgsl!("quant/q8_0.wgsl")),
    ("q6_k", wgsl!("quant/q6_k.wgsl")),
    ("q5_k", wgsl!("quant/q5_k.wgsl")),
    ("q4_k", wgsl!("quant/q4_k.wgsl")),
    ("q4_0", wgsl!("quant/q4_0.wgsl")),
];

/// What every kernel on weights links beside the format's text: `BLOCKS`, the number of 32-blocks in a row, `slot`,
/// where a part of a block of a row stands in a plane, and `weights32`.
pub(crate) fn constants(matrix: &Matrix) -> String {
    format!("const BLOCKS = {}u;\n{SLOT}{WEIGHTS}{WEIGHTS_32}", matrix.blocks())
}

/// How a kernel unpacks codes of a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unpacking {
    /// By the device's own functions.
    Plain,
    /// Left where they stand in their word (`spread.wgsl`); there is no `weights32`, and no signed code.
    Spread,
    /// Without shifts to the right (`masked.wgsl`).
    Masked,
}

/// As [`constants`], with `BLOCKS` as a variable that the kernel sets, so that one kernel serves matrices of all sizes.
pub(crate) fn variables(unpacking: Unpacking) -> String {
    let text = match unpacking {
        Unpacking::Plain => [SLOT, WEIGHTS, WEIGHTS_32].concat(),
        Unpacking::Spread => [SLOT, SPREAD].concat(),
        Unpacking::Masked => [SLOT, MASKED, WEIGHTS_32].concat(),
    };
    format!("var<private> BLOCKS: u32;\n{text}")
}

/// Whether codes of a format are unsigned bytes below 128, scaled with an offset: these can be spread.
pub(crate) fn has_offset(format: &dyn Format) -> bool {
    shader(format).contains("bytes4(")
}

/// Codes of 4 bits: byte j of a block holds codes j and j + 16, and nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nibbles {
    /// Zero is code 8 in every block.
    Centred,
    /// Every block has its own offset.
    Offset,
}

/// How a format has codes of 4 bits, where it does.
pub(crate) fn nibbles(format: &dyn Format) -> Option<Nibbles> {
    match format.name() {
        "q4_0" => Some(Nibbles::Centred),
        "q4_k" => Some(Nibbles::Offset),
        _ => None,
    }
}

const SLOT: &str = wgsl!("lib/slot.wgsl");
const WEIGHTS: &str = wgsl!("lib/weights.wgsl");
const WEIGHTS_32: &str = wgsl!("lib/weights32.wgsl");
const SPREAD: &str = wgsl!("lib/spread.wgsl");
const MASKED: &str = wgsl!("lib/masked.wgsl");

#[cfg(test)]
mod tests {
    #[test]
    fn every_format_has_a_shader() {
        for format in bayan_weights::FORMATS {
            assert!(super::shader(*format).contains("fn codes32("), "{}", format.name());
        }
    }
}
