//! From examples to token ids, with a mark for every trained token.
//!
//! The model's own chat template renders the whole conversation, and the assistant turns are located by rendering
//! prefixes of it, so that any template works. Rejected: `{% generation %}` marks, because few templates have them, and
//! searching for the roles' headers, because every model family spells them differently.

mod spans;
#[cfg(test)]
mod tests;
mod tools;
mod view;

use std::ops::Range;

use bayan_generate::text::{ChatInput, ChatTemplate, TextError, Tokenizer};
use serde_json::{Map, Value};

use crate::data::{DropReason, Example, role};
use crate::recipe::{Recipe, TurnEnd};
pub use view::dry_run;

/// The label of a token that is not trained, as in transformers.
pub const IGNORED: i32 = -100;

/// Token ids, and which of them are trained.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Token ids \[T\].
    pub ids: Vec<u32>,
    /// Whether each token is trained \[T\]; the first never is, because no logits predict it.
    pub trained: Vec<bool>,
}

impl Tokens {
    /// Labels \[T\]: `labels[t]` is the token at t where it is trained, [`IGNORED`] elsewhere; the logits at t − 1
    /// predict it.
    pub fn labels(&self) -> Vec<i32> {
        self.ids.iter().zip(&self.trained).map(|(id, trained)| if *trained { *id as i32 } else { IGNORED }).collect()
    }

    /// Number of trained tokens.
    pub fn trained_count(&self) -> usize {
        self.trained.iter().filter(|t| **t).count()
    }

    fn push(&mut self, ids: &[u32], trained: bool) {
        self.ids.extend_from_slice(ids);
        self.trained.resize(self.ids.len(), trained);
    }

    fn truncate(&mut self, length: usize) {
        self.ids.truncate(length);
        self.trained.truncate(length);
    }
}

/// The tokens of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rendered {
    /// One sequence.
    Sequence(Tokens),
    /// A preference pair, each side with the prompt.
    Pair {
        /// Prompt and chosen answer.
        chosen: Tokens,
        /// Prompt and rejected answer.
        rejected: Tokens,
    },
}

impl Rendered {
    /// Its sequences.
    pub fn sequences(&self) -> impl Iterator<Item = &Tokens> {
        let (first, second) = match self {
            Self::Sequence(tokens) => (tokens, None),
            Self::Pair { chosen, rejected } => (chosen, Some(rejected)),
        };
        std::iter::once(first).chain(second)
    }
}

/// A rendered example with the counts for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedExample {
    /// The tokens, or the reason why the example is dropped.
    pub rendered: Result<Rendered, DropReason>,
    /// Lengths of the sequences before truncation.
    pub lengths: Vec<usize>,
    /// Whether any sequence was truncated.
    pub truncated: bool,
    /// Assistant turns that could not be located and are not trained.
    pub untrained_turns: u64,
    /// Whether the system text was put before the first user turn, because the template has no system role.
    pub system_in_user: bool,
    /// Whether the example has tools that the template leaves out.
    pub tools_left_out: bool,
}

/// What a rendering changed or left out.
#[derive(Default)]
struct Notes {
    untrained_turns: u64,
    system_in_user: bool,
    tools_left_out: bool,
}

/// Settings of the renderer.
#[derive(Debug, Clone, PartialEq)]
pub struct RenderOptions {
    /// Most tokens of a sequence.
    pub max_seq_length: usize,
    /// Train on the assistant's turns only.
    pub mask_prompt: bool,
    /// Where the trained part of a turn ends.
    pub turn_end: TurnEnd,
    /// Further variables of the template, such as `enable_thinking`.
    pub template_kwargs: Map<String, Value>,
}

impl RenderOptions {
    /// The settings of a recipe.
    pub fn of(recipe: &Recipe) -> Self {
        Self {
            max_seq_length: recipe.max_seq_length,
            mask_prompt: recipe.mask_prompt,
            turn_end: recipe.turn_end,
            template_kwargs: Map::new(),
        }
    }
}

/// Renders examples for one model.
#[derive(Debug, Clone)]
pub struct Renderer {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    options: RenderOptions,
}

impl Renderer {
    /// Makes a renderer. Without a template only plain texts can be rendered.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>, options: RenderOptions) -> Self {
        Self { tokenizer, template, options }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Renders and tokenizes an example; sequences are truncated at the end to `max_seq_length`.
    ///
    /// # Errors
    /// The template refuses the conversation or fails, or a conversation has no template.
    pub fn render(&self, example: &Example) -> Result<RenderedExample, TextError> {
        let mut notes = Notes::default();
        let mut conversation = |messages: &[Value], tools: &Option<Vec<Value>>, trained: &[bool]| {
            self.conversation(messages, tools, trained, &mut notes)
        };
        let sequences = match example {
            Example::Text(text) => vec![self.running_text(text)?],
            Example::Chat { messages, tools, trained } => vec![conversation(messages, tools, trained)?],
            Example::Preference { prompt, chosen, rejected, tools } => {
                let mut side = |answer: &[Value]| {
                    let messages = [prompt.as_slice(), answer].concat();
                    let trained: Vec<bool> = (0..messages.len())
                        .map(|at| at >= prompt.len() && role(&messages[at]) == "assistant")
                        .collect();
                    conversation(&messages, tools, &trained)
                };
                vec![side(chosen)?, side(rejected)?]
            }
        };
        Ok(self.cut(sequences, notes))
    }

    fn cut(&self, mut sequences: Vec<Tokens>, notes: Notes) -> RenderedExample {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
        let truncated = lengths.iter().any(|length| *length > self.options.max_seq_length);
        for tokens in &mut sequences {
            tokens.truncate(self.options.max_seq_length);
            if let Some(first) = tokens.trained.first_mut() {
                *first = false; // no logits predict the first token
            }
        }
        let rendered = if sequences.iter().any(|s| s.trained_count() == 0) {
            Err(DropReason::NothingTrained)
        } else {
            let mut sequences = sequences.into_iter();
            match (sequences.next(), sequences.next()) {
                (Some(chosen), Some(rejected)) => Ok(Rendered::Pair { chosen, rejected }),
                (Some(tokens), None) => Ok(Rendered::Sequence(tokens)),
                _ => Err(DropReason::NothingTrained),
            }
        };
        let Notes { untrained_turns, system_in_user, tools_left_out } = notes;
        RenderedExample { rendered, lengths, truncated, untrained_turns, system_in_user, tools_left_out }
    }

    /// Tokenizes a plain text with the tokenizer's own bos and its end-of-text token, all trained.
    fn running_text(&self, text: &str) -> Result<Tokens, TextError> {
        let mut tokens = Tokens::default();
        tokens.push(&self.tokenizer.encode(text, true)?, true);
        let eos = self.tokenizer.eos_token().and_then(|token| self.tokenizer.id(token)).or(self
            .tokenizer
            .eos()
            .first()
            .copied());
        if let Some(eos) = eos.filter(|eos| tokens.ids.last() != Some(eos)) {
            tokens.push(&[eos], true);
        }
        Ok(tokens)
    }

    fn conversation(
        &self,
        messages: &[Value],
        tools: &Option<Vec<Value>>,
        trained: &[bool],
        notes: &mut Notes,
    ) -> Result<Tokens, TextError> {
        let Some(template) = &self.template else {
            let remedy = "the checkpoint ships no chat template; name a built-in one (chatml, llama3, gemma, …), or train on plain text".to_owned();
            return Err(TextError::TemplateFailed(remedy));
        };
        let adapted = template.adapt(messages)?;
        notes.system_in_user |= adapted.system_in_user;
        let (messages, trained) = (adapted.messages.as_slice(), &trained[adapted.removed..]);
        let input = |messages: &[Value], tools: &Option<Vec<Value>>, add_generation_prompt| ChatInput {
            messages: messages.to_vec(),
            tools: tools.clone(),
            add_generation_prompt,
            kwargs: self.options.template_kwargs.clone(),
            ..Default::default()
        };
        let render = |messages: &[Value], generation| template.render(&input(messages, tools, generation));
        let text = render(messages, false)?;
        tools::check_messages(messages, &render)?;
        let with_tools = |tools: &Option<Vec<Value>>| template.render(&input(messages, tools, false));
        notes.tools_left_out |= tools.as_ref().is_some_and(|_| with_tools(&None).is_ok_and(|without| without == text));
        if self.options.mask_prompt {
            let found = spans::assistant_spans(&text, messages, trained, &render);
            notes.untrained_turns += found.missing;
            let mut tokens = self.encode(&text, &found.spans)?;
            if self.options.turn_end == TurnEnd::Token {
                self.end_at_control_token(&mut tokens);
            }
            return Ok(tokens);
        }
        // Everything is trained, except the answers that the data excludes.
        let excluded: Vec<bool> =
            messages.iter().zip(trained).map(|(message, trained)| role(message) == "assistant" && !trained).collect();
        let found = spans::assistant_spans(&text, messages, &excluded, &render);
        if found.missing > 0 {
            let problem = "an answer that the data excludes from training cannot be located in the rendered text";
            return Err(TextError::TemplateFailed(problem.to_owned()));
        }
        let mut tokens = self.encode(&text, &found.spans)?;
        tokens.trained.iter_mut().for_each(|trained| *trained = !*trained);
        Ok(tokens)
    }

    /// Tokenizes the text; tokens inside the spans (ascending, disjoint) are trained.
    ///
    /// Tokenizing the spans one by one can give other ids than tokenizing the whole text (a token crosses a boundary,
    /// or the tokenizer puts a space before every text). Then the ids of the whole text are used, as long as token
    /// boundaries fall on the span boundaries, because these are the ids that the model sees when it generates.
    fn encode(&self, text: &str, spans: &[Range<usize>]) -> Result<Tokens, TextError> {
        let whole = self.tokenizer.encode_chat(text)?;
        let mut pieces = Tokens::default();
        let mut position = 0;
        for span in spans {
            pieces.push(&self.tokenizer.encode_chat(&text[position..span.start])?, false);
            pieces.push(&self.tokenizer.encode_chat(&text[span.clone()])?, true);
            position = span.end;
        }
        pieces.push(&self.tokenizer.encode_chat(&text[position..])?, false);
        if pieces.ids == whole {
            return Ok(pieces);
        }
        let mut trained = vec![false; whole.len()];
        let mut exact = true;
        for span in spans {
            let mut bound = [0; 2];
            for (bound, at) in bound.iter_mut().zip([span.start, span.end]) {
                let before = self.tokenizer.encode_chat(&text[..at])?;
                *bound = before.iter().zip(&whole).take_while(|(a, b)| a == b).count();
                exact &= *bound == before.len();
            }
            trained[bound[0]..bound[1].max(bound[0])].fill(true);
        }
        if exact || self.tokenizer.decode(&pieces.ids, false)? != self.tokenizer.decode(&whole, false)? {
            return Ok(Tokens { ids: whole, trained });
        }
        Ok(pieces)
    }

    /// Removes the training marks after the last control token of each trained range.
    fn end_at_control_token(&self, tokens: &mut Tokens) {
        let ends_turn = |id: u32| self.tokenizer.is_special(id) || self.tokenizer.eos().contains(&id);
        let mut end = tokens.ids.len();
        while end > 0 {
            let Some(last) = tokens.trained[..end].iter().rposition(|t| *t) else { return };
            let start = tokens.trained[..last].iter().rposition(|t| !*t).map_or(0, |at| at + 1);
            if let Some(control) = (start..=last).rev().find(|at| ends_turn(tokens.ids[*at])) {
                tokens.trained[control + 1..=last].fill(false);
            }
            end = start;
        }
    }
}
