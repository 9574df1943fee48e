//! A checkpoint opened for people: text in, text out.

use std::ops::ControlFlow;

use bayan_gpu::Gpu;
use bayan_models::OnProgress;
use bayan_tensor::ops::SampleSettings;
use bayan_weights::Checkpoint;
use serde_json::Value;

use crate::GenerateError;
use crate::engine::{Engine, EngineOptions, Finish, Usage};
use crate::text::{
    BUILTIN_TEMPLATES, ChatInput, ChatTemplate, GenerationDefaults, StopMatcher, TextError, TokenStream, Tokenizer, TokenizerFiles, guess_builtin, stop_ids,
};

/// How to open a model.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// The engine's options.
    pub engine: EngineOptions,
    /// Name of a built-in template, or the text of one, instead of the checkpoint's own.
    pub chat_template: Option<String>,
}

/// What to generate and when to end.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// How tokens are chosen.
    pub settings: SampleSettings,
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
    /// New tokens at most; `None`: as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Go on after stop tokens.
    pub ignore_eos: bool,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text, without stop texts.
    pub text: String,
    /// Its tokens, without the stop token; with those of a stop text.
    pub ids: Vec<u32>,
    /// What it took.
    pub usage: Usage,
}

/// A model with its text side.
pub struct Model {
    /// Runs the decoder.
    pub engine: Engine,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// Messages to text; `None` when the checkpoint has none and none could be guessed.
    pub template: Option<ChatTemplate>,
    /// Ids that end an answer.
    pub stop: Vec<u32>,
    /// The checkpoint's own sampling settings.
    pub defaults: GenerationDefaults,
}

/// The text side of a checkpoint, which needs no device.
pub struct TextSide {
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// Messages to text.
    pub template: Option<ChatTemplate>,
    /// Ids that end an answer.
    pub stop: Vec<u32>,
    /// The checkpoint's own sampling settings.
    pub defaults: GenerationDefaults,
}

impl TextSide {
    /// Reads tokenizer, template and defaults.
    ///
    /// # Errors
    /// A file that is missing or damaged.
    pub async fn open(checkpoint: &Checkpoint, chat_template: Option<&str>) -> Result<TextSide, GenerateError> {
        let mut files = Vec::new();
        for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"] {
            files.push(checkpoint.text(name).await?);
        }
        let model_file = if files[0].is_none() { read_whole(checkpoint, "tokenizer.model").await? } else { None };
        let config = checkpoint.config().to_string();
        let bytes = |index: usize| files[index].as_ref().map(String::as_bytes);
        let tokenizer = Tokenizer::from_files(&TokenizerFiles {
            tokenizer_json: bytes(0),
            tokenizer_model: model_file.as_deref(),
            tokenizer_config: bytes(1),
            special_tokens_map: bytes(2),
            generation_config: bytes(3),
            config: Some(config.as_bytes()),
        })?;
        let parse = |index: usize| files[index].as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
        let jinja = checkpoint.text("chat_template.jinja").await?;
        let template = match chat_template {
            Some(name) if BUILTIN_TEMPLATES.contains(&name) => Some(ChatTemplate::builtin(name, Some(&tokenizer))?),
            Some(text) if text.contains('{') => Some(ChatTemplate::new(text, Some(&tokenizer))?),
            Some(name) => return Err(TextError::NoSuchTemplate { name: name.to_string(), available: BUILTIN_TEMPLATES.join(", ") }.into()),
            None => match ChatTemplate::from_checkpoint(jinja.as_deref(), parse(1).as_ref(), None, false, Some(&tokenizer))? {
                Some(template) => Some(template),
                None => guess_builtin(&tokenizer).map(|name| ChatTemplate::builtin(name, Some(&tokenizer))).transpose()?,
            },
        };
        let generation = parse(3);
        let stop = stop_ids(Some(checkpoint.config()), generation.as_ref(), &tokenizer, template.as_ref());
        let defaults = generation.as_ref().map(GenerationDefaults::from_json).unwrap_or_default();
        Ok(TextSide { tokenizer, template, stop, defaults })
    }
}

async fn read_whole(checkpoint: &Checkpoint, file: &str) -> Result<Option<Vec<u8>>, GenerateError> {
    match checkpoint.source().size(file).await? {
        Some(size) => Ok(Some(checkpoint.source().read(file, 0, usize::try_from(size).unwrap_or(usize::MAX)).await?)),
        None => Ok(None),
    }
}

impl Model {
    /// Opens a checkpoint on a device.
    ///
    /// # Errors
    /// A file that is missing or damaged, or a device that does not fit.
    pub async fn open(checkpoint: &Checkpoint, gpu: &Gpu, options: &ModelOptions, on_progress: OnProgress<'_>) -> Result<Model, GenerateError> {
        let text = TextSide::open(checkpoint, options.chat_template.as_deref()).await?;
        let engine = Engine::open(checkpoint, gpu, &options.engine, on_progress).await?;
        Ok(Model { engine, tokenizer: text.tokenizer, template: text.template, stop: text.stop, defaults: text.defaults })
    }

    /// The prompt of a conversation as ids; special tokens that a user typed stay text.
    ///
    /// # Errors
    /// No template, or one that refuses the conversation.
    pub fn chat_prompt(&self, messages: &[Value]) -> Result<Vec<u32>, GenerateError> {
        let template = self.template.as_ref().ok_or_else(|| GenerateError::NoTemplate(BUILTIN_TEMPLATES.join(", ")))?;
        let guarded = template.render_guarded(&ChatInput::new(messages.to_vec()), &self.tokenizer)?;
        Ok(self.tokenizer.encode_guarded(&guarded)?)
    }

    /// Answers a conversation; `on_text` gets the text as it becomes whole and may stop.
    ///
    /// # Errors
    /// As [`Model::chat_prompt`] and [`Engine::generate`].
    pub async fn chat(
        &mut self,
        messages: &[Value],
        generation: &Generation,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, GenerateError> {
        let prompt = self.chat_prompt(messages)?;
        self.generate(&prompt, generation, on_text).await
    }

    /// Continues a prompt given as ids.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub async fn generate(
        &mut self,
        prompt: &[u32],
        generation: &Generation,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, GenerateError> {
        let mut stream = TokenStream::new(&self.tokenizer, true);
        let mut matcher = StopMatcher::new(generation.stop.iter().cloned());
        let (mut text, mut ids) = (String::new(), Vec::new());
        let mut failure = None;
        let stop: &[u32] = if generation.ignore_eos { &[] } else { &self.stop };
        let max_tokens = generation.max_tokens.unwrap_or(usize::MAX);
        let mut usage = {
            let mut on_token = |id: u32| {
                ids.push(id);
                match stream.push(id) {
                    Ok(piece) => emit(piece, &mut matcher, &mut text, on_text),
                    Err(error) => {
                        failure = Some(error);
                        ControlFlow::Break(())
                    }
                }
            };
            self.engine.generate(prompt, &generation.settings, &generation.bias, stop, max_tokens, &mut on_token).await?
        };
        if let Some(error) = failure {
            return Err(error.into());
        }
        if matcher.stopped().is_some() {
            usage.finish = Finish::Stop;
        } else {
            let _ = emit(stream.flush(), &mut matcher, &mut text, on_text);
            if let Some(rest) = matcher.flush() {
                text.push_str(&rest);
                let _ = on_text(&rest);
            }
        }
        Ok(Answer { text, ids, usage })
    }
}

fn emit(piece: Option<String>, matcher: &mut StopMatcher, text: &mut String, on_text: &mut dyn FnMut(&str) -> ControlFlow<()>) -> ControlFlow<()> {
    let Some(piece) = piece else { return ControlFlow::Continue(()) };
    let step = matcher.push(&piece);
    if !step.text.is_empty() {
        text.push_str(&step.text);
        if on_text(&step.text).is_break() {
            return ControlFlow::Break(());
        }
    }
    if step.stopped.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
