//! Parses a line: a message, or a command that begins with a slash.

use std::path::PathBuf;

use crate::support::options::AdapterArg;

/// A line that is not empty.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A message for the model.
    Message(String),
    /// Sets the system message, or shows it.
    System(Option<String>),
    /// Writes the conversation to a file.
    Save(PathBuf),
    /// Reads a conversation from a file.
    Load(PathBuf),
    /// Clears the conversation.
    Reset,
    /// Answers the last message again.
    Retry,
    /// Replaces the last message by this text and answers it.
    Edit(String),
    /// Sets a sampling setting, or shows all.
    Set(Option<(String, String)>),
    /// Drops the oldest turns.
    Drop,
    /// Attaches an adapter, detaches adapters, or lists them.
    Adapter(AdapterCommand),
    /// Shows speeds and memory.
    Stats,
    /// Lists the commands.
    Help,
    /// Ends the program.
    Exit,
}

/// An adapter command.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterCommand {
    /// List the attached adapters.
    List,
    /// Attach one.
    On(AdapterArg),
    /// Detach one, or all.
    Off(Option<String>),
}

/// The text of `/help`.
pub const HELP: &str = "\
/system TEXT   set the system message; without TEXT show it
/save FILE     write the conversation to a file (JSON)
/load FILE     continue a conversation from a file
/reset         delete the conversation, keep the system message
/retry         answer the last message again, with the next seed
/edit TEXT     replace your last message by TEXT and answer it
/set NAME VALUE   change a setting: temperature, top_k, top_p, min_p, seed, max_tokens; /set alone shows them
/drop          drop the oldest turns, to make room in the context
/adapter DIR[:SCALE]   attach a LoRA adapter; without DIR list the adapters; /adapter off [DIR] detaches one or all
/stats         show speeds, tokens and memory
/exit          leave (or Ctrl-D)
Ctrl-C stops an answer. A line that ends with \\ continues on the next. //TEXT sends a message that begins with a slash.";

/// Parses a line; `None` for an empty one.
///
/// # Errors
/// The command does not exist or lacks its argument.
pub fn parse(line: &str) -> Result<Option<Command>, String> {
    let text = line.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let Some(rest) = text.strip_prefix('/') else { return Ok(Some(Command::Message(text.to_string()))) };
    if rest.starts_with('/') {
        return Ok(Some(Command::Message(rest.to_string())));
    }
    let (name, argument) =
        rest.split_once(char::is_whitespace).map_or((rest, ""), |(name, argument)| (name, argument.trim()));
    let file = || {
        if argument.is_empty() {
            Err(format!("/{name}: expected a file name after it"))
        } else {
            Ok(PathBuf::from(argument))
        }
    };
    let alone = |command| {
        if argument.is_empty() {
            Ok(command)
        } else {
            Err(format!("/{name}: expected nothing after it, got `{argument}`"))
        }
    };
    let command = match name {
        "system" => Command::System((!argument.is_empty()).then(|| argument.to_string())),
        "save" => Command::Save(file()?),
        "load" => Command::Load(file()?),
        "reset" | "clear" => alone(Command::Reset)?,
        "retry" | "regenerate" => alone(Command::Retry)?,
        "edit" if argument.is_empty() => return Err("/edit: expected the new text after it".to_string()),
        "edit" => Command::Edit(argument.to_string()),
        "set" if argument.is_empty() => Command::Set(None),
        "set" => match argument.split_once(char::is_whitespace).or_else(|| argument.split_once('=')) {
            Some((name, value)) => Command::Set(Some((name.trim().to_string(), value.trim().to_string()))),
            None => {
                return Err(format!("/set {argument}: expected a value after the name, as in /set temperature 0.7"));
            }
        },
        "drop" => alone(Command::Drop)?,
        "adapter" | "adapters" => Command::Adapter(adapter(argument)?),
        "stats" => alone(Command::Stats)?,
        "help" | "?" => alone(Command::Help)?,
        "exit" | "quit" | "bye" => alone(Command::Exit)?,
        _ => return Err(format!("there is no command /{name}; /help lists them, and //{rest} sends it as a message")),
    };
    Ok(Some(command))
}

fn adapter(argument: &str) -> Result<AdapterCommand, String> {
    match argument.split_once(char::is_whitespace).unwrap_or((argument, "")) {
        ("", _) => Ok(AdapterCommand::List),
        ("off", "") => Ok(AdapterCommand::Off(None)),
        ("off", name) => Ok(AdapterCommand::Off(Some(name.trim().to_string()))),
        _ => AdapterArg::parse(argument).map(AdapterCommand::On).map_err(|problem| format!("/adapter: {problem}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let ok = |line: &str| parse(line).unwrap();
        assert_eq!(ok("  "), None);
        assert_eq!(ok(" مرحبا "), Some(Command::Message("مرحبا".into())));
        assert_eq!(ok("//help"), Some(Command::Message("/help".into())));
        assert_eq!(ok("/system أنت موجز"), Some(Command::System(Some("أنت موجز".into()))));
        assert_eq!(ok("/system"), Some(Command::System(None)));
        assert_eq!(ok("/save a b.json"), Some(Command::Save("a b.json".into())));
        assert_eq!(ok("/exit"), Some(Command::Exit));
        assert_eq!(ok("/adapter"), Some(Command::Adapter(AdapterCommand::List)));
        assert_eq!(
            ok("/adapter a b:0.5"),
            Some(Command::Adapter(AdapterCommand::On(AdapterArg { path: "a b".into(), scale: 0.5 })))
        );
        assert_eq!(ok("/adapter off"), Some(Command::Adapter(AdapterCommand::Off(None))));
        assert_eq!(ok("/adapter off a"), Some(Command::Adapter(AdapterCommand::Off(Some("a".into())))));
        assert_eq!(ok("/retry"), Some(Command::Retry));
        assert_eq!(ok("/edit من أنت؟"), Some(Command::Edit("من أنت؟".into())));
        assert_eq!(ok("/set"), Some(Command::Set(None)));
        assert_eq!(ok("/set temperature 0.5"), Some(Command::Set(Some(("temperature".into(), "0.5".into())))));
        assert_eq!(ok("/set top_p=0.9"), Some(Command::Set(Some(("top_p".into(), "0.9".into())))));
        for wrong in ["/edit", "/retry now", "/set temperature", "/save", "/nothing", "/reset now", "/"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
