//! An opened checkpoint with a text interface.

use std::ops::ControlFlow;

use bayan_gpu::Gpu;
use bayan_models::OnProgress;
use bayan_tensor::Cpu;
use bayan_tensor::ops::SampleSettings;
use bayan_weights::{Checkpoint, Source, json};
use serde_json::{Map, Value};

use crate::GenerateError;
use crate::engine::{Engine, EngineOptions, FinishReason, Request, TokenScore, Usage};
use crate::grammar::Grammar;
use crate::text::{
    BUILTIN_TEMPLATES, ChatTemplate, GenerationDefaults, StopMatcher, TextError, TokenStream, Tokenizer,
    TokenizerFiles, stop_ids,
};

/// Options for opening a model.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// The engine's options.
    pub engine: EngineOptions,
    /// The name or the text of a chat template that replaces the checkpoint's own.
    pub chat_template: Option<String>,
}

/// What to generate and when to stop.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// Sampling settings.
    pub settings: SampleSettings,
    /// Biases added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
    /// Most new tokens; `None`: as many as fit the context.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Continue after stop tokens.
    pub ignore_eos: bool,
    /// What the text of an answer must match, compiled by [`Tokenizer::grammars`].
    pub grammar: Option<Grammar>,
    /// Compute the log-probability of each new token and of this many most likely ones, before penalties and biases.
    pub scores: Option<usize>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The text, without stop texts.
    pub text: String,
    /// Its tokens, without the stop token but with those of a stop text.
    pub ids: Vec<u32>,
    /// Statistics.
    pub usage: Usage,
}

/// A model with its tokenizer and chat template.
pub struct Model {
    /// Runs the decoder.
    pub engine: Engine,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template; `None` when the checkpoint has none and none could be guessed.
    pub template: Option<ChatTemplate>,
    /// Ids that end an answer.
    pub stop: Vec<u32>,
    /// The checkpoint's own sampling settings.
    pub defaults: GenerationDefaults,
}

/// The tokenizer, chat template and defaults of a checkpoint, which need no device.
pub struct TextPipeline {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub template: Option<ChatTemplate>,
    /// Ids that end an answer.
    pub stop: Vec<u32>,
    /// The checkpoint's own sampling settings.
    pub defaults: GenerationDefaults,
}

impl TextPipeline {
    /// Reads tokenizer, chat template and defaults; the weights may be missing.
    ///
    /// # Errors
    /// A file is missing, damaged, or far larger than its name suggests.
    pub async fn open(source: &dyn Source, chat_template: Option<&str>) -> Result<TextPipeline, GenerateError> {
        let tokenizer_json = read(source, "tokenizer.json").await?;
        let tokenizer_model = if tokenizer_json.is_none() { read(source, "tokenizer.model").await? } else { None };
        let (tokenizer_config, special) =
            (read(source, "tokenizer_config.json").await?, read(source, "special_tokens_map.json").await?);
        let (generation, config) = (read(source, "generation_config.json").await?, read(source, "config.json").await?);
        let tokenizer = Tokenizer::from_files(&TokenizerFiles {
            tokenizer_json: tokenizer_json.as_deref(),
            tokenizer_model: tokenizer_model.as_deref(),
            tokenizer_config: tokenizer_config.as_deref(),
            special_tokens_map: special.as_deref(),
            generation_config: generation.as_deref(),
            config: config.as_deref(),
        })?;
        let parse = |file: &str, bytes: &Option<Vec<u8>>| -> Result<Option<Value>, GenerateError> {
            Ok(bytes.as_deref().map(|bytes| json::parse(file, bytes)).transpose()?)
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(json::without_mark(&bytes)).into_owned();
        let jinja = read(source, "chat_template.jinja").await?.map(text);
        let template = match chat_template {
            Some(name) if BUILTIN_TEMPLATES.contains(&name) => Some(ChatTemplate::builtin(name, Some(&tokenizer))?),
            Some(text) if text.contains('{') => Some(ChatTemplate::new(text, Some(&tokenizer))?),
            Some(name) => {
                return Err(TextError::NoSuchTemplate {
                    name: name.to_string(),
                    available: BUILTIN_TEMPLATES.join(", "),
                }
                .into());
            }
            None => match ChatTemplate::from_checkpoint(
                jinja.as_deref(),
                parse("tokenizer_config.json", &tokenizer_config)?.as_ref(),
                None,
                false,
                Some(&tokenizer),
            )? {
                Some(template) => Some(template),
                None => ChatTemplate::guess(&tokenizer)?,
            },
        };
        let generation = parse("generation_config.json", &generation)?;
        let stop =
            stop_ids(parse("config.json", &config)?.as_ref(), generation.as_ref(), &tokenizer, template.as_ref());
        let defaults = generation.as_ref().map(GenerationDefaults::from_json).unwrap_or_default();
        Ok(TextPipeline { tokenizer, template, stop, defaults })
    }

    /// The chat template; the error explains how to choose one.
    ///
    /// # Errors
    /// There is no template.
    pub fn template(&self) -> Result<&ChatTemplate, GenerateError> {
        required(&self.template)
    }
}

fn required(template: &Option<ChatTemplate>) -> Result<&ChatTemplate, GenerateError> {
    template.as_ref().ok_or_else(|| GenerateError::NoTemplate(BUILTIN_TEMPLATES.join(", ")))
}

/// Larger than any tokenizer or template in use.
const LARGEST_TEXT_BYTES: u64 = 256 << 20;

async fn read(source: &dyn Source, file: &str) -> Result<Option<Vec<u8>>, GenerateError> {
    let Some(size) = source.size(file).await? else { return Ok(None) };
    if size > LARGEST_TEXT_BYTES {
        return Err(GenerateError::TextSize {
            file: file.to_string(),
            size_bytes: size,
            largest_bytes: LARGEST_TEXT_BYTES,
        });
    }
    Ok(Some(source.read(file, 0, size as usize).await?))
}

impl Model {
    /// Opens a checkpoint on a device.
    ///
    /// # Errors
    /// A file is missing or damaged, or the model does not fit the device.
    pub async fn open(
        checkpoint: &Checkpoint,
        gpu: &Gpu,
        options: &ModelOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Model, GenerateError> {
        Model::open_on_devices(checkpoint, std::slice::from_ref(gpu), &[1.0], options, on_progress).await
    }

    /// Opens a checkpoint on several devices, as [`Engine::open_on_devices`] does.
    ///
    /// # Errors
    /// As [`Model::open`] and [`Engine::open_on_devices`].
    pub async fn open_on_devices(
        checkpoint: &Checkpoint,
        gpus: &[Gpu],
        shares: &[f64],
        options: &ModelOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Model, GenerateError> {
        let text = TextPipeline::open(checkpoint.source().as_ref(), options.chat_template.as_deref()).await?;
        let engine = Engine::open_on_devices(checkpoint, gpus, shares, &options.engine, on_progress).await?;
        Ok(Model::of(engine, text))
    }

    /// Opens a checkpoint on the CPU, as [`Engine::open_on_cpu`] does.
    ///
    /// # Errors
    /// As [`Model::open`] and [`Engine::open_on_cpu`].
    pub async fn open_on_cpu(
        checkpoint: &Checkpoint,
        cpu: &Cpu,
        options: &ModelOptions,
        on_progress: OnProgress<'_>,
    ) -> Result<Model, GenerateError> {
        let text = TextPipeline::open(checkpoint.source().as_ref(), options.chat_template.as_deref()).await?;
        let engine = Engine::open_on_cpu(checkpoint, cpu, &options.engine, on_progress).await?;
        Ok(Model::of(engine, text))
    }

    fn of(engine: Engine, text: TextPipeline) -> Model {
        Model { engine, tokenizer: text.tokenizer, template: text.template, stop: text.stop, defaults: text.defaults }
    }

    /// From now on, another model proposes this many tokens of an answer in each step.
    ///
    /// # Errors
    /// The other model has another vocabulary, or as [`Engine::propose_by_draft`].
    pub fn propose_by_draft(&mut self, draft: Model, proposals: usize) -> Result<(), GenerateError> {
        let shown = |token: Option<String>| token.map_or_else(|| "no token".to_string(), |text| format!("{text:?}"));
        let last = self.tokenizer.largest_id().max(draft.tokenizer.largest_id()).unwrap_or(0);
        for id in 0..=last {
            let (own, other) = (self.tokenizer.token(id), draft.tokenizer.token(id));
            if own != other {
                return Err(GenerateError::DraftTokenizer { id, model: shown(own), draft: shown(other) });
            }
        }
        self.engine.propose_by_draft(draft.engine, proposals)
    }

    /// Renders and tokenizes a conversation; special tokens that a user typed stay text, and what the template cannot
    /// render is adapted ([`ChatTemplate::adapt`]).
    ///
    /// # Errors
    /// There is no template, it refuses the conversation, or a content part is not text.
    pub fn chat_prompt(&self, messages: &[Value]) -> Result<Vec<u32>, GenerateError> {
        Ok(self.chat_template()?.prompt(messages, Map::new(), &self.tokenizer)?)
    }

    /// Whether the template has no system role, so that the conversation's system text goes before its first user turn.
    ///
    /// # Errors
    /// There is no template, or a content part is not text.
    pub fn system_in_user(&self, messages: &[Value]) -> Result<bool, GenerateError> {
        Ok(self.chat_template()?.adapt(messages)?.system_in_user)
    }

    /// The chat template; the error explains how to choose one.
    ///
    /// # Errors
    /// There is no template.
    pub fn chat_template(&self) -> Result<&ChatTemplate, GenerateError> {
        required(&self.template)
    }

    /// Answers a conversation; `on_text` is called with each piece of complete UTF-8 text and may stop the generation.
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
        self.generate_scored(prompt, generation, &mut |piece, _| {
            if piece.is_empty() { ControlFlow::Continue(()) } else { on_text(piece) }
        })
        .await
    }

    /// As [`Model::generate`], and each call has the score of the new token, if the generation asks for scores: then
    /// there is a call for every token, whose text may still be held back, and one without a score for the text that
    /// was held back to the end.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub async fn generate_scored(
        &mut self,
        prompt: &[u32],
        generation: &Generation,
        on_piece: &mut dyn FnMut(&str, Option<&TokenScore>) -> ControlFlow<()>,
    ) -> Result<Answer, GenerateError> {
        let mut on_piece = |_: usize, piece: &str, score: Option<&TokenScore>| on_piece(piece, score);
        let answers = self.generate_pieces(&[prompt.to_vec()], generation, &mut on_piece).await?;
        answers.into_iter().next().ok_or(GenerateError::EmptyPrompt)
    }

    /// Continues several prompts, as many at a time as the engine has sequences. `on_text` is called with the number of
    /// the prompt and each piece of complete UTF-8 text, and may end that answer. The answers are in the order of the
    /// prompts.
    ///
    /// # Errors
    /// As [`Engine::generate_many`].
    pub async fn generate_many(
        &mut self,
        prompts: &[Vec<u32>],
        generation: &Generation,
        on_text: &mut dyn FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Answer>, GenerateError> {
        self.generate_pieces(prompts, generation, &mut |index, piece, _| {
            if piece.is_empty() { ControlFlow::Continue(()) } else { on_text(index, piece) }
        })
        .await
    }

    async fn generate_pieces(
        &mut self,
        prompts: &[Vec<u32>],
        generation: &Generation,
        on_piece: OnPiece<'_>,
    ) -> Result<Vec<Answer>, GenerateError> {
        let mut texts: Vec<GrowingAnswer> =
            prompts.iter().map(|_| GrowingAnswer::new(&self.tokenizer, generation)).collect();
        let stop: &[u32] = if generation.ignore_eos { &[] } else { &self.stop };
        let max_tokens = generation.max_tokens.unwrap_or(usize::MAX);
        let grammar = generation.grammar.as_ref();
        let request = |prompt| Request {
            prompt,
            settings: generation.settings,
            bias: &generation.bias,
            stop,
            max_tokens,
            grammar,
            scores: generation.scores,
        };
        let requests: Vec<Request<'_>> = prompts.iter().map(|prompt| request(prompt.as_slice())).collect();
        let mut failure = None;
        let mut on_token = |index: usize, id: u32, score: Option<&TokenScore>| {
            texts[index].push(id, score, &mut |piece, score| on_piece(index, piece, score)).unwrap_or_else(|error| {
                failure = Some(error);
                ControlFlow::Break(())
            })
        };
        let usages = self.engine.generate_many(&requests, &mut on_token).await?;
        if let Some(error) = failure {
            return Err(error.into());
        }
        let ended = texts.into_iter().zip(usages).enumerate();
        Ok(ended
            .map(|(index, (text, usage))| text.end(usage, &mut |piece, score| on_piece(index, piece, score)))
            .collect())
    }
}

/// Called with the number of the prompt, text that is certain now, and the score of the new token; without a score the
/// text is not empty.
type OnPiece<'a> = &'a mut dyn FnMut(usize, &str, Option<&TokenScore>) -> ControlFlow<()>;

/// The text of an unfinished answer: whole characters only, without stop texts.
#[derive(Debug)]
pub struct AnswerText {
    stream: TokenStream,
    matcher: StopMatcher,
}

impl AnswerText {
    /// The text of a new answer, which ends at any of the texts in `stop`. The text of a `constrained` answer is exactly
    /// what its grammar read: a space that the tokenizer would strip from the start of a text stays, and so do control
    /// tokens that the grammar names.
    pub fn new(tokenizer: &Tokenizer, stop: &[String], constrained: bool) -> AnswerText {
        let stream = TokenStream::new(tokenizer, !constrained);
        let stream = if constrained { stream.within_text() } else { stream };
        AnswerText { stream, matcher: StopMatcher::new(stop.iter().cloned()) }
    }

    /// Takes the next token and returns the text that is certain now, which may be empty.
    ///
    /// # Errors
    /// As [`TokenStream::push`].
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        Ok(self.stream.push(id)?.map(|piece| self.matcher.push(&piece).text).unwrap_or_default())
    }

    /// Whether a stop text has been found.
    pub fn stopped(&self) -> bool {
        self.matcher.stopped().is_some()
    }

    /// The stop text that was found.
    pub fn stop_text(&self) -> Option<&str> {
        self.matcher.stop_text()
    }

    /// Ends the answer and returns the text that was held back.
    pub fn end(&mut self) -> String {
        if self.stopped() {
            return String::new();
        }
        let mut rest = self.stream.flush().map(|piece| self.matcher.push(&piece).text).unwrap_or_default();
        rest.push_str(&self.matcher.flush().unwrap_or_default());
        rest
    }
}

/// An unfinished answer.
struct GrowingAnswer {
    text: AnswerText,
    shown: String,
    ids: Vec<u32>,
}

impl GrowingAnswer {
    fn new(tokenizer: &Tokenizer, generation: &Generation) -> GrowingAnswer {
        let text = AnswerText::new(tokenizer, &generation.stop, generation.grammar.is_some());
        GrowingAnswer { text, shown: String::new(), ids: Vec::new() }
    }

    fn push(
        &mut self,
        id: u32,
        score: Option<&TokenScore>,
        on_piece: &mut dyn FnMut(&str, Option<&TokenScore>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, TextError> {
        self.ids.push(id);
        let piece = self.text.push(id)?;
        let shown = self.show(&piece, score, on_piece);
        Ok(if shown.is_break() || self.text.stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn show(
        &mut self,
        piece: &str,
        score: Option<&TokenScore>,
        on_piece: &mut dyn FnMut(&str, Option<&TokenScore>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if piece.is_empty() && score.is_none() {
            return ControlFlow::Continue(());
        }
        self.shown.push_str(piece);
        on_piece(piece, score)
    }

    fn end(
        mut self,
        mut usage: Usage,
        on_piece: &mut dyn FnMut(&str, Option<&TokenScore>) -> ControlFlow<()>,
    ) -> Answer {
        let rest = self.text.end();
        let _ = self.show(&rest, None, on_piece);
        // The rest of the last characters may end in a stop text too.
        if self.text.stopped() {
            usage.finish = FinishReason::Stop;
        }
        Answer { text: self.shown, ids: self.ids, usage }
    }
}
