//! Element types of safetensors headers.
//!
//! More types are known than can be read as weights: a checkpoint may contain an integer buffer that nobody reads, and
//! its bytes must still be counted. Types smaller than a byte are absent, so that a file with them is refused by name.

/// The type of the elements of one stored array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    U16,
    I16,
    F16,
    Bf16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

const NAMES: &[(Dtype, &str, usize)] = &[
    (Dtype::Bool, "BOOL", 1),
    (Dtype::U8, "U8", 1),
    (Dtype::I8, "I8", 1),
    (Dtype::F8E4M3, "F8_E4M3", 1),
    (Dtype::F8E5M2, "F8_E5M2", 1),
    (Dtype::U16, "U16", 2),
    (Dtype::I16, "I16", 2),
    (Dtype::F16, "F16", 2),
    (Dtype::Bf16, "BF16", 2),
    (Dtype::U32, "U32", 4),
    (Dtype::I32, "I32", 4),
    (Dtype::F32, "F32", 4),
    (Dtype::U64, "U64", 8),
    (Dtype::I64, "I64", 8),
    (Dtype::F64, "F64", 8),
];

impl Dtype {
    /// The type with this name in safetensors, `None` for an unknown one.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, n, _)| *n == name).map(|(d, _, _)| *d)
    }

    fn line(self) -> &'static (Dtype, &'static str, usize) {
        NAMES.iter().find(|(d, _, _)| *d == self).unwrap_or(&NAMES[0])
    }

    /// The name safetensors uses.
    pub fn name(self) -> &'static str {
        self.line().1
    }

    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        self.line().2
    }

    /// Whether weights of this type can be read as `f32`: F32, F16 and BF16.
    pub fn is_weight(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    pub(crate) fn known_names() -> String {
        NAMES.iter().map(|(_, n, _)| *n).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_line_and_round_trips() {
        for (dtype, name, size) in NAMES {
            assert_eq!(Dtype::from_name(name), Some(*dtype));
            assert_eq!((dtype.name(), dtype.size_bytes()), (*name, *size));
        }
        assert_eq!(Dtype::from_name("F4"), None);
    }
}
