//! Templates for checkpoints without one, by family. Their text equals the output of each family's own demonstration
//! code; a template in the checkpoint takes precedence, and none is chosen unless the family is certain.

use crate::text::tokenizer::Tokenizer;

/// The names that [`builtin_template`] knows.
pub const BUILTIN_TEMPLATES: [&str; 7] = ["llama2", "acegpt", "llama3", "chatml", "gemma", "jais", "jais-family"];

/// The Jinja source of a built-in template.
pub fn builtin_template(name: &str) -> Option<&'static str> {
    Some(match name {
        "llama2" => include_str!("builtin/llama2.jinja"),
        "acegpt" => include_str!("builtin/acegpt.jinja"),
        "llama3" => include_str!("builtin/llama3.jinja"),
        "chatml" => include_str!("builtin/chatml.jinja"),
        "gemma" => include_str!("builtin/gemma.jinja"),
        "jais" => include_str!("builtin/jais.jinja"),
        "jais-family" => include_str!("builtin/jais-family.jinja"),
        _ => return None,
    })
}

/// The built-in template that a vocabulary's turn tokens identify. `None` when they identify none or several: LLaMA-2's
/// vocabulary, for one, is shared by Llama-2-chat, AceGPT and ALLaM.
pub fn guess_builtin(tokenizer: &Tokenizer) -> Option<&'static str> {
    let families = [
        ("chatml", ["<|im_start|>", "<|im_end|>"]),
        ("llama3", ["<|start_header_id|>", "<|eot_id|>"]),
        ("gemma", ["<start_of_turn>", "<end_of_turn>"]),
    ];
    let mut fitting =
        families.iter().filter(|(_, tokens)| tokens.iter().all(|t| tokenizer.id(t).is_some())).map(|(name, _)| *name);
    let first = fitting.next();
    if fitting.next().is_some() { None } else { first }
}
