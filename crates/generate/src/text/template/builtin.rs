//! Templates for checkpoints that ship none, by family. Their text is what each family's own demonstration code
//! produced; a shipped template always wins, and nothing here is chosen without being sure.

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

/// The built-in template that a vocabulary's turn tokens point to. `None` when they point to none or to several:
/// LLaMA-2's vocabulary, for one, is that of Llama-2-chat, AceGPT and ALLaM alike.
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
