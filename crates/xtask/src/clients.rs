//! `cargo xtask clients`: asks `bayan serve` with the official clients of its interface, unmodified.
//!
//! It needs Python with the `openai` package, which the tests of the workspace do not: those ask over a socket.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{chat, process, vulkan, workspace};

/// Options of `clients`.
#[derive(clap::Args)]
pub struct ClientsArguments {
    /// The Python that has the `openai` package
    #[arg(long, env = "BAYAN_PYTHON", default_value = "python3", value_name = "PROGRAM")]
    python: String,
    /// A `bayan` that is built already; without it a release is built
    #[arg(long, value_name = "FILE")]
    bayan: Option<std::path::PathBuf>,
}

/// Ends the server with the task.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server on a free port and runs the client's checks.
pub fn run(arguments: &ClientsArguments) -> Result<()> {
    if !process::succeeds(Command::new(&arguments.python).args(["-c", "import openai"])) {
        bail!(
            "{}: expected Python with the openai package; `pip install openai`, or name one with --python",
            arguments.python
        );
    }
    let bayan = match &arguments.bayan {
        Some(bayan) => bayan.clone(),
        None => {
            vulkan::set_up()?;
            chat::build_bayan()?
        }
    };
    let mut command = Command::new(&bayan);
    command.args(["serve", "--port", "0", "--model", "embedded", "--no-warm-up"]).stdout(Stdio::piped());
    if let Some(directory) = process::runtime_dir(&workspace::target_dir()?) {
        command.env("XDG_RUNTIME_DIR", directory);
    }
    let mut server = Server(command.spawn().with_context(|| format!("{} could not be started", bayan.display()))?);
    let output = server.0.stdout.take().context("the server's output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let url = line.split_whitespace().find(|word| word.starts_with("http://"));
    let url = format!("{}/v1", url.context("expected the server to print its address")?);
    let script = workspace::root().join("tests/clients/openai_client.py");
    process::run(Command::new(&arguments.python).arg(script).arg(url))
}
