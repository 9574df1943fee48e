//! `cargo xtask clients`: asks `bayan serve` with the official clients of its interface, unmodified.
//!
//! It needs Python with the packages `openai` and `anthropic`, and for those for JavaScript Node and a folder that has
//! them. The tests of the workspace need neither: they ask over a socket.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{chat, process, tools, vulkan, workspace};

/// Options of `clients`.
#[derive(clap::Args)]
pub struct ClientsArguments {
    /// The Python that has the packages `openai` and `anthropic`
    #[arg(long, env = "BAYAN_PYTHON", default_value = "python3", value_name = "PROGRAM")]
    python: String,
    /// A folder where `npm install openai @anthropic-ai/sdk` was run; without it only the clients for Python ask
    #[arg(long, env = "BAYAN_CLIENT_MODULES", value_name = "DIR")]
    modules: Option<PathBuf>,
    /// A `bayan` that is built already; without it a release is built
    #[arg(long, value_name = "FILE")]
    bayan: Option<PathBuf>,
}

/// A server that ends with its value.
pub struct Server(Child);

impl Server {
    /// The number of its process.
    pub fn process(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server on a free port and runs the client's checks.
pub fn run(arguments: &ClientsArguments) -> Result<()> {
    if !process::succeeds(Command::new(&arguments.python).args(["-c", "import openai, anthropic"])) {
        bail!(
            "{}: expected Python with two packages; `pip install openai anthropic`, or name one with --python",
            arguments.python
        );
    }
    let packages = ["openai", "@anthropic-ai/sdk"];
    let missing = |folder: &PathBuf| packages.iter().find(|name| !folder.join("node_modules").join(name).is_dir());
    if let Some((folder, name)) = arguments.modules.as_ref().and_then(|folder| Some((folder, missing(folder)?))) {
        bail!(
            "--modules {}: expected the package {name}; run `npm install {}` there",
            folder.display(),
            packages.join(" ")
        );
    }
    let bayan = bayan(arguments.bayan.as_deref())?;
    let (_server, url) = start(&bayan, &["--model", "embedded", "--no-warm-up"])?;
    let addresses = [("openai_client", format!("{url}/v1")), ("anthropic_client", url)];
    let scripts = workspace::root().join("tests/clients");
    for (script, address) in &addresses {
        process::run(Command::new(&arguments.python).arg(scripts.join(format!("{script}.py"))).arg(address))?;
    }
    let Some(modules) = &arguments.modules else {
        println!("the clients for JavaScript did not ask: name a folder that has them with --modules");
        return Ok(());
    };
    let modules = modules.canonicalize().with_context(|| modules.display().to_string())?;
    let node = tools::node()?.map_or_else(|| PathBuf::from("node"), |bin| bin.join("node"));
    for (script, address) in &addresses {
        process::run(Command::new(&node).arg(scripts.join(format!("{script}.mjs"))).arg(address).arg(&modules))?;
    }
    Ok(())
}

/// The program that is built already, or a release that is built now.
pub fn bayan(built: Option<&Path>) -> Result<PathBuf> {
    match built {
        Some(bayan) => Ok(bayan.to_path_buf()),
        None => {
            vulkan::set_up()?;
            chat::build_bayan()
        }
    }
}

/// Starts `bayan serve` on a free port; returns it with its address once it is ready.
pub fn start(bayan: &Path, flags: &[&str]) -> Result<(Server, String)> {
    let mut command = Command::new(bayan);
    command.args(["serve", "--port", "0"]).args(flags).stdout(Stdio::piped());
    if let Some(directory) = process::runtime_dir(&workspace::target_dir()?) {
        command.env("XDG_RUNTIME_DIR", directory);
    }
    let child = command.spawn().with_context(|| format!("{} could not be started", bayan.display()))?;
    let mut server = Server(child);
    let output = server.0.stdout.take().context("the server's output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_string);
    Ok((server, url.context("expected the server to print its address")?))
}
