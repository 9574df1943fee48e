//! The text side of a checkpoint, for subcommands that need neither weights nor a device.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bayan_generate::text::{BUILTIN_TEMPLATES, ChatTemplate, Tokenizer, TokenizerFiles, guess_builtin};
use bayan_gpu::block_on;
use bayan_weights::Source;
use serde_json::Value;

use crate::open;
use crate::options::CheckpointArgs;

/// No tokenizer or template in use comes near this.
const LARGEST_FILE_BYTES: u64 = 256 << 20;

/// Tokenizer and template.
pub struct TextSide {
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// Messages to text.
    pub template: Option<ChatTemplate>,
}

impl TextSide {
    /// Reads them from the directory that was named; the weights need not be there.
    ///
    /// # Errors
    /// A file that is missing or damaged.
    pub fn open(args: &CheckpointArgs) -> Result<TextSide> {
        let source = open::source(args.model.as_deref())?;
        let read = |name: &str| read(source.as_ref(), name);
        let (tokenizer_json, tokenizer_config) = (read("tokenizer.json")?, read("tokenizer_config.json")?);
        let tokenizer_model = if tokenizer_json.is_none() { read("tokenizer.model")? } else { None };
        let (special, generation, config) = (read("special_tokens_map.json")?, read("generation_config.json")?, read("config.json")?);
        let tokenizer = Tokenizer::from_files(&TokenizerFiles {
            tokenizer_json: tokenizer_json.as_deref(),
            tokenizer_model: tokenizer_model.as_deref(),
            tokenizer_config: tokenizer_config.as_deref(),
            special_tokens_map: special.as_deref(),
            generation_config: generation.as_deref(),
            config: config.as_deref(),
        })
        .with_context(|| format!("the tokenizer of {} cannot be read", source.describe()))?;
        let jinja = read("chat_template.jinja")?.map(String::from_utf8).transpose().context("chat_template.jinja: expected UTF-8 text")?;
        let template = match open::chat_template(args.chat_template.as_deref())? {
            Some(name) if BUILTIN_TEMPLATES.contains(&name.as_str()) => Some(ChatTemplate::builtin(&name, Some(&tokenizer))?),
            Some(text) => Some(ChatTemplate::new(&text, Some(&tokenizer))?),
            None => {
                let config: Option<Value> = tokenizer_config.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
                match ChatTemplate::from_checkpoint(jinja.as_deref(), config.as_ref(), None, false, Some(&tokenizer))? {
                    Some(template) => Some(template),
                    None => guess_builtin(&tokenizer).map(|name| ChatTemplate::builtin(name, Some(&tokenizer))).transpose()?,
                }
            }
        };
        Ok(TextSide { tokenizer, template })
    }

    /// The template, or how to choose one.
    ///
    /// # Errors
    /// There is none.
    pub fn template(&self) -> Result<&ChatTemplate> {
        match &self.template {
            Some(template) => Ok(template),
            None => {
                bail!("this checkpoint has no chat template and none could be guessed; choose one with `--chat-template` ({})", BUILTIN_TEMPLATES.join(", "))
            }
        }
    }
}

fn read(source: &dyn Source, name: &str) -> Result<Option<Vec<u8>>> {
    let Some(size) = block_on(source.size(name))? else { return Ok(None) };
    if size > LARGEST_FILE_BYTES {
        bail!("{name}: expected at most {LARGEST_FILE_BYTES} bytes, got {size}; this is not what its name says");
    }
    Ok(Some(block_on(source.read(name, 0, size as usize))?))
}

/// A text from an argument, a file, or stdin, whichever was given first in this order; `-` is stdin.
///
/// # Errors
/// A file that cannot be read or is not UTF-8; no text at all on a terminal.
pub fn input(argument: Option<&str>, file: Option<&Path>, what: &str) -> Result<String> {
    if let Some(text) = argument.filter(|text| *text != "-") {
        return Ok(text.to_string());
    }
    if let Some(path) = file.filter(|path| *path != Path::new("-")) {
        return std::fs::read_to_string(path).with_context(|| format!("cannot read {what} from {}", path.display()));
    }
    let stdin = std::io::stdin();
    if argument.is_none() && file.is_none() && std::io::IsTerminal::is_terminal(&stdin) {
        bail!("no {what} was given: expected it as an argument, with --file, or on stdin");
    }
    let mut text = String::new();
    stdin.lock().read_to_string(&mut text).with_context(|| format!("cannot read {what} from stdin"))?;
    Ok(text)
}
