//! `bayan template`: renders a conversation as the model's prompt.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bayan_generate::text::ChatInput;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::support::options::CheckpointArgs;
use crate::support::output;
use crate::support::text::{self, input};

/// Flags of `bayan template`.
#[derive(Debug, Args)]
pub struct TemplateArgs {
    /// The messages as JSON, a list or an object with `messages`; read from stdin without it and --file
    messages: Option<String>,
    /// Read the messages from a file; `-` is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "messages")]
    file: Option<PathBuf>,
    /// Variables for the template, a JSON object such as {"enable_thinking": false}
    #[arg(long, value_name = "JSON")]
    chat_template_kwargs: Option<String>,
    /// Do not append the opening of the assistant's turn
    #[arg(long)]
    no_generation_prompt: bool,
    /// Print the token ids instead of the text
    #[arg(long)]
    ids: bool,
    /// Print JSON: text and ids
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
}

/// Renders a conversation.
///
/// # Errors
/// The messages are not JSON, or the template refuses them.
pub fn run(args: &TemplateArgs) -> Result<ExitCode> {
    let pipeline = text::pipeline(&args.checkpoint)?;
    let json = input(args.messages.as_deref(), args.file.as_deref(), "messages")?;
    let value: Value = bayan_weights::json::parse("the messages", json.as_bytes())
        .context("the messages are not JSON: expected [{\"role\": \"user\", \"content\": \"…\"}]")?;
    let (messages, tools) = parts(value)?;
    let kwargs: Map<String, Value> = match &args.chat_template_kwargs {
        Some(text) => serde_json::from_str(text).context("--chat-template-kwargs: expected a JSON object")?,
        None => Map::new(),
    };
    let template = pipeline.template()?;
    let adapted = template.adapt(&messages)?;
    if adapted.system_in_user {
        output::note(text::SYSTEM_IN_USER);
    }
    let chat = ChatInput {
        tools,
        add_generation_prompt: !args.no_generation_prompt,
        kwargs,
        ..ChatInput::new(adapted.messages)
    };
    let rendered = template.render(&chat)?;
    let ids = if args.ids || args.json {
        pipeline.tokenizer.encode_guarded(&template.render_guarded(&chat, &pipeline.tokenizer)?)?
    } else {
        Vec::new()
    };
    match (args.json, args.ids) {
        (true, _) => output::json(&json!({"text": rendered, "ids": ids}))?,
        (false, true) => output::line(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))?,
        (false, false) => output::line(&rendered)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The messages, and the tools if the JSON is an object with tools.
fn parts(value: Value) -> Result<(Vec<Value>, Option<Vec<Value>>)> {
    match value {
        Value::Array(messages) => Ok((messages, None)),
        Value::Object(mut object) => {
            let Some(Value::Array(messages)) = object.remove("messages") else {
                bail!("expected `messages` in the JSON object to be a list")
            };
            let tools = match object.remove("tools") {
                Some(Value::Array(tools)) => Some(tools),
                None | Some(Value::Null) => None,
                Some(_) => bail!("expected `tools` in the JSON object to be a list"),
            };
            if let Some(other) = object.keys().next() {
                bail!("expected `messages` and `tools` in the JSON object, got also `{other}`");
            }
            Ok((messages, tools))
        }
        _ => bail!("expected a JSON list of messages, or an object with `messages`"),
    }
}
