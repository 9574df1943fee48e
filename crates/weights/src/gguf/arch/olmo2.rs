//! OLMo 2: norms behind both halves, under the names that Gemma 2 has.

use super::super::names::FOUR_NORMS;
use super::{Arch, PLAIN};

pub(super) const OLMO2: Arch = Arch { gguf: "olmo2", model_types: &["olmo2"], layers: FOUR_NORMS, ..PLAIN };
