//! OLMo 2: norms after attention and after the MLP, named as in Gemma 2.

use super::super::names::FOUR_NORMS;
use super::{Arch, PLAIN};

pub(super) const OLMO2: Arch = Arch { gguf: "olmo2", model_types: &["olmo2"], layers: FOUR_NORMS, ..PLAIN };
