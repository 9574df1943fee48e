//! Qwen 2 and 3.

use super::{Arch, PLAIN};

pub(super) const QWEN2: Arch = Arch { gguf: "qwen2", model_types: &["qwen2"], ..PLAIN };

pub(super) const QWEN3: Arch = Arch { gguf: "qwen3", model_types: &["qwen3"], ..PLAIN };
