//! A conversation with a loaded model: answers, commands, and the handling of a full context.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::Result;
use bayan_generate::{Answer, FinishReason, GenerateError, Generation, Model, Usage};
use bayan_gpu::block_on;

use super::commands::{AdapterCommand, Command, HELP};
use super::conversation::Conversation;
use super::settings;
use crate::support::interrupt::Answering;
use crate::support::open::{self, Loaded};
use crate::support::output;
use crate::support::text::SYSTEM_IN_USER;

/// Positions that /drop frees for an answer; at most a quarter of the context.
const ANSWER_TOKENS: usize = 512;

/// Whether the conversation continues.
pub enum Next {
    /// Read the next line.
    Continue,
    /// End.
    Exit,
}

/// Statistics of the last answer, and sums.
#[derive(Default)]
struct Stats {
    last: Option<Usage>,
    answers: usize,
    tokens: usize,
}

/// The state of `bayan chat`.
pub struct Session {
    model: Model,
    load: Duration,
    conversation: Conversation,
    generation: Generation,
    interactive: bool,
    /// Whether answers go to a terminal, which interprets control characters.
    terminal: bool,
    /// A message that did not fit the context.
    pending: Option<String>,
    system_noted: bool,
    stats: Stats,
}

impl Session {
    /// A session; `interactive` when a person types the lines.
    pub fn new(loaded: Loaded, conversation: Conversation, generation: Generation, interactive: bool) -> Session {
        let terminal = std::io::stdout().is_terminal();
        let (model, load) = (loaded.model, loaded.load);
        Session {
            model,
            load,
            conversation,
            generation,
            interactive,
            terminal,
            pending: None,
            system_noted: false,
            stats: Stats::default(),
        }
    }

    /// Checks before the first message that this model has a chat template.
    ///
    /// # Errors
    /// It has none.
    pub fn check_template(&self) -> Result<()> {
        match &self.model.template {
            Some(_) => Ok(()),
            None => Err(GenerateError::NoTemplate(bayan_generate::text::BUILTIN_TEMPLATES.join(", ")).into()),
        }
    }

    /// Prints the greeting.
    pub fn greet(&self) -> Result<()> {
        let engine = &self.model.engine;
        let c = engine.capabilities();
        output::line(&format!("بيان · {} · {} · /help", c.name, c.path()))?;
        if c.software {
            output::line("This is a software device: answers are correct but slow.")?;
        }
        if !self.conversation.turns.is_empty() {
            output::line(&format!("messages loaded: {}", self.conversation.messages().len()))?;
        }
        Ok(())
    }

    /// Runs a command.
    ///
    /// # Errors
    /// The command failed; the conversation is then unchanged.
    pub fn run(&mut self, command: Command) -> Result<Next> {
        match command {
            Command::Message(text) => self.answer(text)?,
            Command::System(None) => {
                self.say(self.conversation.system.as_deref().unwrap_or("no system message is set"))?
            }
            Command::System(text) => {
                self.conversation.system = text;
                self.say("system message set; it holds from the next message on")?;
                self.note_system()?;
            }
            Command::Save(file) => {
                self.conversation.save(&file)?;
                self.say(&format!("saved to {}", file.display()))?;
            }
            Command::Load(file) => {
                self.conversation = Conversation::load(&file)?;
                self.pending = None;
                self.say(&format!("messages loaded: {}", self.conversation.messages().len()))?;
            }
            Command::Reset => {
                let forgotten = self.conversation.turns.len();
                self.conversation.turns.clear();
                self.pending = None;
                self.model.engine.reset();
                let kept = if self.conversation.system.is_some() { "; the system message is kept" } else { "" };
                self.say(&format!("messages deleted: {forgotten}{kept}"))?;
            }
            Command::Retry => {
                let turns = self.conversation.turns.clone();
                let Some(text) = self.conversation.take_last_message() else {
                    anyhow::bail!("/retry: expected a message before it, and there is none");
                };
                let settings = &mut self.generation.settings;
                settings.seed = settings.seed.wrapping_add(1) & 0xffff_ffff;
                if settings.temperature == 0.0 {
                    self.say("temperature is 0: the same message gives the same answer; see /set")?;
                }
                self.replace(turns, text)?;
            }
            Command::Edit(text) => {
                let turns = self.conversation.turns.clone();
                if self.conversation.take_last_message().is_none() {
                    anyhow::bail!("/edit: expected a message before it, and there is none");
                }
                self.replace(turns, text)?;
            }
            Command::Set(None) => self.say(&settings::shown(&self.generation))?,
            Command::Set(Some((name, value))) => {
                settings::set(&mut self.generation, &name, &value).map_err(|problem| anyhow::anyhow!(problem))?;
                self.say(&settings::shown(&self.generation))?;
            }
            Command::Drop => self.drop_oldest()?,
            Command::Adapter(command) => self.adapter(command)?,
            Command::Stats => self.show_stats()?,
            Command::Help => self.say(HELP)?,
            Command::Exit => return Ok(Next::Exit),
        }
        Ok(Next::Continue)
    }

    /// Runs an adapter command. The conversation continues and is computed again with the attached adapters.
    fn adapter(&mut self, command: AdapterCommand) -> Result<()> {
        let engine = &mut self.model.engine;
        match command {
            AdapterCommand::List => {}
            AdapterCommand::On(adapter) => {
                // The same adapter again, with another scale.
                engine.detach(&adapter.path.display().to_string());
                open::attach(engine, &adapter)?;
            }
            AdapterCommand::Off(None) => {
                for name in engine.adapters().to_vec() {
                    engine.detach(&name);
                }
            }
            AdapterCommand::Off(Some(name)) => {
                if !engine.detach(&name) {
                    anyhow::bail!(
                        "/adapter off {name}: expected the name of an attached adapter: {}",
                        engine.adapters().join(", ")
                    );
                }
            }
        }
        let names = self.model.engine.adapters().join(", ");
        self.say(&if names.is_empty() { "no adapter is attached".to_string() } else { format!("adapters: {names}") })
    }

    /// Prints text about the conversation, which is not part of the answers on stdout.
    fn say(&self, text: &str) -> Result<()> {
        if self.interactive {
            return output::line(text);
        }
        output::note(text);
        Ok(())
    }

    /// Answers `text` in place of the last message; if that fails, the turns are as before.
    fn replace(&mut self, turns: Vec<serde_json::Value>, text: String) -> Result<()> {
        let result = self.answer(text);
        if result.is_err() || self.conversation.turns.len() < turns.len() {
            self.conversation.turns = turns;
        }
        result
    }

    /// Says once that the template has no system role, if there is a system message.
    pub fn note_system(&mut self) -> Result<()> {
        let messages =
            [self.conversation.messages(), vec![serde_json::json!({"role": "user", "content": "x"})]].concat();
        if self.conversation.system.is_some() && !self.system_noted && self.model.system_in_user(&messages)? {
            self.system_noted = true;
            output::note(SYSTEM_IN_USER);
        }
        Ok(())
    }

    fn answer(&mut self, text: String) -> Result<()> {
        self.pending = None;
        self.conversation.push("user", &text);
        match self.generate() {
            Ok(answer) => {
                // Stopped before the first text: the message is removed again.
                if answer.text.is_empty() && answer.usage.finish == FinishReason::Stopped {
                    self.conversation.turns.pop();
                } else {
                    self.conversation.push("assistant", &answer.text);
                }
                self.explain(answer.usage.finish)
            }
            Err(error) => {
                self.conversation.turns.pop();
                if let (Some(GenerateError::PromptTooLong { prompt, context }), true) =
                    (error.downcast_ref(), self.interactive)
                {
                    let message = format!(
                        "with this message the conversation has {prompt} tokens, and the context holds {context}. /drop drops the oldest \
                         turns and then answers the message; start with `--context {}` for a longer context",
                        (2 * context).max(prompt.next_power_of_two())
                    );
                    self.pending = Some(text);
                    return output::line(&message);
                }
                Err(error)
            }
        }
    }

    /// Streams the answer to the current conversation.
    fn generate(&mut self) -> Result<Answer> {
        let messages = self.conversation.messages();
        let terminal = self.terminal;
        let answering = Answering::begin(self.model.engine.control());
        let (mut begun, mut failure) = (false, None);
        let mut on_text = |piece: &str| {
            begun = true;
            if let Err(error) = show(piece, terminal) {
                failure = Some(error);
                return ControlFlow::Break(());
            }
            if answering.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let result = block_on(self.model.chat(&messages, &self.generation, &mut on_text));
        if let Some(error) = failure {
            return Err(error);
        }
        if result.is_ok() || begun {
            output::line("")?;
        }
        let answer = result?;
        self.stats.answers += 1;
        self.stats.tokens += answer.usage.generated_tokens;
        self.stats.last = Some(answer.usage.clone());
        Ok(answer)
    }

    fn explain(&self, finish: FinishReason) -> Result<()> {
        let context = self.model.engine.context();
        match finish {
            FinishReason::ContextFull => self.say(&format!(
                "[the answer was cut because the context of {context} positions is full: /drop drops the oldest turns; start with `--context {}` for a longer context]",
                2 * context
            )),
            FinishReason::Stopped if self.interactive => self.say("[stopped]"),
            FinishReason::Length if self.interactive => self.say("[the answer was cut at --max-tokens]"),
            _ => Ok(()),
        }
    }

    /// Drops turns, at least one, until an answer fits; then answers the message that did not fit.
    fn drop_oldest(&mut self) -> Result<()> {
        let waiting = self.pending.take();
        if let Some(text) = &waiting {
            self.conversation.push("user", text);
        }
        let context = self.model.engine.context();
        let limit = context - ANSWER_TOKENS.min(context / 4);
        let mut dropped = 0;
        while dropped == 0 || self.model.chat_prompt(&self.conversation.messages())?.len() > limit {
            if !self.conversation.drop_oldest() {
                break;
            }
            dropped += 1;
        }
        if waiting.is_some() {
            self.conversation.turns.pop();
        }
        self.say(&format!("turns dropped: {dropped}; messages left: {}", self.conversation.turns.len()))?;
        match waiting {
            Some(text) if dropped > 0 => self.answer(text),
            _ => Ok(()),
        }
    }

    fn show_stats(&self) -> Result<()> {
        let engine = &self.model.engine;
        let c = engine.capabilities();
        let mut lines = vec![format!("device: {}, {}", c.name, c.path())];
        lines.push(format!(
            "model loaded in {:.2} s; device memory {}",
            self.load.as_secs_f64(),
            output::size(engine.allocated_bytes())
        ));
        let (used, context) = (engine.cached_tokens(), engine.context());
        lines.push(format!("context: {used} of {context} positions; cache {}", output::size(engine.cache_bytes())));
        lines.push(format!("seed: {}", self.generation.settings.seed));
        if let Some(usage) = &self.stats.last {
            let cached = usage.cached_tokens;
            lines.push(format!(
                "last answer: prompt of {} tokens, {cached} of them cached; {} new tokens",
                usage.prompt_tokens, usage.generated_tokens
            ));
            let proposed = usage.accepted_tokens + usage.rejected_tokens;
            if proposed > 0 {
                lines.push(format!("proposed tokens: {proposed}, {} of them accepted", usage.accepted_tokens));
            }
            let rest = usage.generated_tokens.saturating_sub(1) as f64;
            let rate = if usage.decode_seconds > 0.0 { rest / usage.decode_seconds } else { 0.0 };
            lines.push(format!("first token after {:.0} ms, then {rate:.1} tokens/s", usage.prefill_seconds * 1e3));
        }
        lines.push(format!("answers so far: {}, with {} tokens", self.stats.answers, self.stats.tokens));
        self.say(&lines.join("\n"))
    }
}

/// Prints a piece of an answer immediately. Control characters are removed for a terminal: an answer must not move the
/// cursor or change the title.
fn show(piece: &str, terminal: bool) -> Result<()> {
    if terminal && piece.chars().any(is_control) {
        return output::piece(&piece.chars().filter(|&c| !is_control(c)).collect::<String>());
    }
    output::piece(piece)
}

fn is_control(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
}
