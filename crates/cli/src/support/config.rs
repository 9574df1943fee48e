//! `--config FILE`: a TOML file whose keys are the names of a command's flags.
//!
//! Its values become the defaults of the flags, so that a flag, and then a `BAYAN_*` variable, goes before the file.
//! Rejected: a structure of its own for the file, because every new flag would have to be added there too.

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{ArgAction, Command};
use toml::{Table, Value};

/// The command with the defaults of a file.
///
/// # Errors
/// The file cannot be read, is not TOML, or has a key that is no flag of the command.
pub fn with_file(command: Command, file: &Path) -> Result<Command> {
    let text = std::fs::read_to_string(file).with_context(|| format!("--config {}", file.display()))?;
    let table: Table = text.parse().with_context(|| format!("--config {}: expected TOML", file.display()))?;
    let mut command = command;
    for (key, value) in &table {
        command = with_default(command, key, value).with_context(|| format!("--config {}", file.display()))?;
    }
    Ok(command)
}

fn with_default(command: Command, key: &str, value: &Value) -> Result<Command> {
    let name = key.replace('_', "-");
    let known = |arg: &&clap::Arg| {
        let aliases = arg.get_visible_aliases().unwrap_or_default();
        (arg.get_long() == Some(name.as_str()) || aliases.contains(&name.as_str())) && arg.get_id() != "config"
    };
    let Some(arg) = command.get_arguments().find(known) else {
        bail!("expected names of flags of `bayan {}`, got `{key}`; see its --help", command.get_name());
    };
    let (id, repeatable) = (arg.get_id().clone(), matches!(arg.get_action(), ArgAction::Append));
    let flag = matches!(arg.get_action(), ArgAction::SetTrue);
    let values = match value {
        Value::Array(list) => list.iter().map(|value| scalar(key, value)).collect::<Result<Vec<String>>>()?,
        value => vec![scalar(key, value)?],
    };
    if flag && !value.is_bool() {
        bail!("`{key}`: expected true or false, got {value}");
    }
    if !repeatable && value.is_array() {
        bail!("`{key}`: expected one value, got a list");
    }
    Ok(command.mut_arg(id, |arg| arg.default_values(values)))
}

fn scalar(key: &str, value: &Value) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        other => bail!("`{key}`: expected a text, a number, true, false, or a list of these, got {other}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Parser, error::ErrorKind};

    #[derive(Debug, Parser)]
    #[command(name = "try")]
    struct Flags {
        #[arg(long, default_value_t = 8080)]
        port: u16,
        #[arg(long)]
        max_tokens: Option<i64>,
        #[arg(long, visible_alias = "np", default_value_t = 4)]
        parallel: u32,
        #[arg(long)]
        insecure: bool,
        #[arg(long, value_delimiter = ',')]
        api_key: Vec<String>,
        #[arg(long)]
        config: Option<String>,
    }

    fn parse(text: &str, arguments: &[&str]) -> Result<Flags> {
        use clap::{CommandFactory, FromArgMatches};
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let command = with_file(Flags::command(), file.path())?;
        let matches = command.try_get_matches_from([&["try"], arguments].concat())?;
        Ok(Flags::from_arg_matches(&matches)?)
    }

    #[test]
    fn keys_are_flags_and_flags_go_first() {
        let text = "port = 9\nmax_tokens = -1\nnp = 7\ninsecure = true\napi-key = [\"a\", \"b\"]";
        let read = parse(text, &[]).unwrap();
        assert_eq!((read.port, read.max_tokens, read.parallel, read.insecure), (9, Some(-1), 7, true));
        assert_eq!(read.api_key, ["a", "b"]);
        let read = parse(text, &["--port", "5", "--api-key", "c"]).unwrap();
        assert_eq!((read.port, read.parallel), (5, 7));
        assert_eq!(read.api_key, ["c"]);
        let plain = parse("", &[]).unwrap();
        assert_eq!((plain.port, plain.max_tokens, plain.insecure), (8080, None, false));
    }

    #[test]
    fn wrong_files_say_what_is_wrong() {
        for (text, part) in [
            ("prot = 9", "`prot`"),
            ("config = \"x\"", "`config`"),
            ("port = [1, 2]", "one value"),
            ("insecure = 1", "true or false"),
            ("port = {a = 1}", "expected a text"),
            ("port = ", "TOML"),
        ] {
            let error = format!("{:#}", parse(text, &[]).unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
        let error = parse("port = 99999", &[]).unwrap_err();
        let error = error.downcast_ref::<clap::Error>().expect("an error of the flag");
        assert_eq!(error.kind(), ErrorKind::ValueValidation);
    }
}
