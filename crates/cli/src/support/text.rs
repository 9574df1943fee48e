//! The tokenizer and chat template of a checkpoint, for subcommands that need neither weights nor a device, and the
//! input texts of such subcommands.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bayan_generate::TextPipeline;
use bayan_gpu::block_on;

use crate::support::open;
use crate::support::options::CheckpointArgs;
use crate::support::output;

/// Said once where a conversation has system text and the template no role for it.
pub const SYSTEM_IN_USER: &str =
    "note: this model's chat template has no system role; the system text goes before the first user turn";

/// Tokenizer and template of the selected model; its weights may be missing.
///
/// # Errors
/// A file is missing or damaged.
pub fn pipeline(args: &CheckpointArgs) -> Result<TextPipeline> {
    let source = block_on(bayan_weights::gguf::files_of(open::source(args.model.as_deref())?))?;
    source.notes().iter().for_each(|note| output::note(note));
    let chat_template = open::chat_template(args.chat_template.as_deref())?;
    block_on(TextPipeline::open(source.as_ref(), chat_template.as_deref()))
        .with_context(|| format!("the tokenizer of {} cannot be read", source.describe()))
}

/// A text from the argument, the file, or stdin, whichever is given first in this order; `-` is stdin.
///
/// # Errors
/// The file cannot be read or is not UTF-8, or there is no text and stdin is a terminal.
pub fn input(argument: Option<&str>, file: Option<&Path>, what: &str) -> Result<String> {
    if let Some(text) = argument.filter(|text| *text != "-") {
        return Ok(text.to_string());
    }
    if let Some(path) = file.filter(|path| *path != Path::new("-")) {
        let text = std::fs::read_to_string(path);
        return text.map(without_mark).with_context(|| format!("cannot read {what} from {}", path.display()));
    }
    let stdin = std::io::stdin();
    if argument.is_none() && file.is_none() && std::io::IsTerminal::is_terminal(&stdin) {
        bail!("no {what} was given: expected it as an argument, with --file, or on stdin");
    }
    let mut text = String::new();
    stdin.lock().read_to_string(&mut text).with_context(|| format!("cannot read {what} from stdin"))?;
    Ok(without_mark(text))
}

/// The text without the byte order mark that some editors put at the start of a file.
fn without_mark(text: String) -> String {
    text.strip_prefix('\u{FEFF}').map(str::to_owned).unwrap_or(text)
}
