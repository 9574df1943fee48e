//! `bayan tokenize`: text to token ids and back.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bayan_generate::text::Tokenizer;
use clap::Args;
use serde_json::json;

use crate::support::options::CheckpointArgs;
use crate::support::output;
use crate::support::text::{self, input};

/// Flags of `bayan tokenize`.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// The text, or with --decode the ids; read from stdin without it and --file
    text: Option<String>,
    /// Read the text from a file; `-` is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Convert ids (numbers separated by spaces or commas) to text
    #[arg(long)]
    decode: bool,
    /// Add the special tokens that the tokenizer puts around a text, usually one at its beginning; with --decode, show
    /// such tokens
    #[arg(long)]
    special: bool,
    /// Show each token's text beside its id; a byte that is part of a character is shown as <0xD8>
    #[arg(long, conflicts_with = "decode")]
    tokens: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
}

/// Encodes or decodes.
///
/// # Errors
/// Files, texts or ids cannot be read.
pub fn run(args: &TokenizeArgs) -> Result<ExitCode> {
    let tokenizer = text::pipeline(&args.checkpoint)?.tokenizer;
    let text = input(args.text.as_deref(), args.file.as_deref(), "text")?;
    if args.decode {
        let words =
            text.split(|c: char| c == ',' || c.is_whitespace() || c == '[' || c == ']').filter(|word| !word.is_empty());
        let ids = words
            .map(|word| word.parse::<u32>().with_context(|| format!("expected token ids, got {word:?}")))
            .collect::<Result<Vec<_>>>()?;
        let decoded = tokenizer.decode(&ids, !args.special)?;
        if args.json {
            output::json(&json!({"ids": ids, "text": decoded}))?
        } else {
            output::line(&decoded)?
        }
        return Ok(ExitCode::SUCCESS);
    }
    let ids = tokenizer.encode(&text, args.special)?;
    let tokens: Vec<String> = ids.iter().map(|&id| shown(&tokenizer, id)).collect();
    if args.json {
        output::json(&json!({"text": text, "count": ids.len(), "ids": ids, "tokens": tokens}))?;
    } else if args.tokens {
        for (id, token) in ids.iter().zip(&tokens) {
            output::line(&format!("{id:>7}  {token}"))?;
        }
    } else {
        output::line(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The text of a token, with line ends and other control characters escaped. Bytes that are part of a character are
/// shown as `<0xD8>`.
fn shown(tokenizer: &Tokenizer, id: u32) -> String {
    let Some(bytes) = tokenizer.token_bytes(id) else { return tokenizer.token(id).unwrap_or_default() };
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c.is_control() {
                true => text.extend(c.escape_default()),
                false => text.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| text += &format!("<0x{byte:02X}>"));
    }
    text
}
