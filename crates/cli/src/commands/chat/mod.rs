//! `bayan chat`: a conversation in the terminal, or through a pipe with one message per line.

mod commands;
mod conversation;
mod session;
mod settings;

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bayan_generate::EngineOptions;
use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::support::options::ModelArgs;
use crate::support::sampling::SamplingArgs;
use crate::support::speculation::SpeculationArgs;
use crate::support::{interrupt, output};
use conversation::Conversation;
use session::{Next, Session};

/// Flags of `bayan chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// System message before the conversation
    #[arg(long, env = "BAYAN_SYSTEM", value_name = "TEXT")]
    system: Option<String>,
    /// Continue a conversation from a file that /save wrote
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Do not save the typed lines in the history file
    #[arg(long)]
    no_history: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the conversation until the input ends.
///
/// # Errors
/// The model does not fit the device; through a pipe, also a message that cannot be answered.
pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    let mut conversation = match &args.load {
        Some(file) => Conversation::load(file)?,
        None => Conversation::default(),
    };
    if args.system.is_some() {
        conversation.system = args.system.clone();
    }
    // The line editor installs its Ctrl-C handler on creation, so it is created first; while it reads, Ctrl-C is a key
    // press.
    let editor = if std::io::stdin().is_terminal() {
        Some(DefaultEditor::new().context("the terminal cannot be used for line editing")?)
    } else {
        None
    };
    interrupt::set_up();
    let loaded = args.speculation.open(&args.model, EngineOptions::default())?;
    let generation =
        args.sampling.generation(&loaded.model.defaults, loaded.model.engine.decoder().sizes().vocab_size)?;
    let mut session = Session::new(loaded, conversation, generation, editor.is_some());
    session.check_template()?;
    session.note_system()?;
    match editor {
        Some(editor) => talk(&mut session, editor, !args.no_history)?,
        None => read_lines(&mut session)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads one message per line, without decoration; the first failure ends the loop.
fn read_lines(session: &mut Session) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read the next message from stdin: expected UTF-8 text")?;
        match commands::parse(&line) {
            Ok(None) => {}
            Ok(Some(command)) => {
                if matches!(session.run(command)?, Next::Exit) {
                    break;
                }
            }
            Err(problem) => anyhow::bail!("{problem}"),
        }
    }
    Ok(())
}

/// The prompt of the line editor.
const PROMPT: &str = "› ";
/// The prompt for continuation lines of a message.
const MORE: &str = "… ";

/// The line editor's loop; failures are printed and the conversation continues.
fn talk(session: &mut Session, mut editor: DefaultEditor, keep_history: bool) -> Result<()> {
    let history = history_file().filter(|file| {
        keep_history && file.parent().is_some_and(|directory| std::fs::create_dir_all(directory).is_ok())
    });
    if let Some(file) = &history {
        // The file does not exist the first time.
        let _ = editor.load_history(file);
    }
    session.greet()?;
    loop {
        let line = match read_message(&mut editor) {
            Ok(line) => line,
            // At the prompt Ctrl-C only discards the line.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("cannot read from the terminal"),
        };
        if !line.trim().is_empty() {
            let _ = editor.add_history_entry(line.as_str());
        }
        if let Some(file) = &history {
            let _ = editor.save_history(file);
        }
        let next = match commands::parse(&line) {
            Ok(None) => continue,
            Ok(Some(command)) => session.run(command),
            Err(problem) => Err(anyhow::anyhow!(problem)),
        };
        match next {
            Ok(Next::Continue) => {}
            Ok(Next::Exit) => break,
            Err(error) if output::is_broken_pipe(&error) => return Err(error),
            Err(error) => output::print_error(&error),
        }
    }
    Ok(())
}

/// Reads one message; a line that ends with a backslash continues on the next.
fn read_message(editor: &mut DefaultEditor) -> rustyline::Result<String> {
    let mut message = editor.readline(PROMPT)?;
    while let Some(shorter) = message.strip_suffix('\\') {
        message = format!("{shorter}\n{}", editor.readline(MORE)?);
    }
    Ok(message)
}

/// The history file of typed lines, in the user's state directory.
pub fn history_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = if cfg!(windows) {
        set("LOCALAPPDATA")?
    } else {
        set("XDG_STATE_HOME").filter(|p| p.is_absolute()).or_else(|| Some(set("HOME")?.join(".local").join("state")))?
    };
    Some(state.join("bayan").join("chat_history"))
}
