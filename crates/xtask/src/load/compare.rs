//! What a server's figures are compared with: a prompt alone, the engine without a server, llama.cpp's server.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::client::Target;
use super::{LoadArguments, Measured, measure, quantile};
use crate::process;

/// Time in which a peer must have loaded its model.
const READY: Duration = Duration::from_secs(300);

/// Prints the times to the first token as multiples of that of one client, who has the device alone.
pub fn print_first_tokens(measured: &[Measured]) {
    let Some(alone) = measured.iter().find(|one| one.clients == 1) else { return };
    let alone = quantile(&alone.first_seconds, 0.5);
    for many in measured.iter().filter(|many| many.clients > 1) {
        let times = quantile(&many.first_seconds, 0.95) / alone;
        println!(
            "first token at {} clients: p95 is {times:.2} times that of a prompt alone (mark at 8: 2)",
            many.clients
        );
    }
}

/// Measures a batch of the engine, without a server, and prints what the server adds.
pub fn with_engine(bayan: &Path, arguments: &LoadArguments, measured: &[Measured]) -> Result<()> {
    let numbers = [arguments.parallel, arguments.tokens].map(|number| number.to_string());
    let mut bench = Command::new(bayan);
    // The prompts of the clients have about 30 tokens; their answers are sampled.
    bench.args(["bench", "--json", "--sampled", "--autotune", "off", "--prompt", "0", "--repetitions", "3", "--model"]);
    bench.args([&arguments.model, "--parallel", &numbers[0], "--generate", &numbers[1]]);
    bench.args(["--context", &arguments.context.to_string()]);
    let printed = process::capture(&mut bench)?;
    let json: Value = serde_json::from_str(&printed).context("`bayan bench --json` printed something else")?;
    let speed = json["generate"].as_array().and_then(|list| list.first()).unwrap_or(&json["generate"])["mean"].as_f64();
    let speed = speed.with_context(|| format!("`bayan bench --json` printed no speed: {json}"))?;
    println!("the engine alone, a batch of {}: {speed:.1} tokens/s", arguments.parallel);
    for many in measured.iter().filter(|many| many.clients == arguments.parallel) {
        let part = many.tokens_per_second / speed;
        println!("{} clients: {part:.2} of that, prompts included (mark at 32: 0.9)", many.clients);
        let (step, token) = (arguments.parallel as f64 / speed, quantile(&many.token_seconds, 0.5));
        println!(
            "a step takes {:.2} ms in the engine, a token of an answer {:.2} ms: HTTP and JSON {:.1} % (mark: 2)",
            step * 1e3,
            token * 1e3,
            (1.0 - step / token) * 100.0
        );
    }
    Ok(())
}

/// A peer that ends with its value.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts llama.cpp's server on the same file, measures it with the same requests, and prints the ratios.
pub fn with_peer(program: &Path, arguments: &LoadArguments, measured: &[Measured]) -> Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let slots = arguments.parallel.to_string();
    let context = (arguments.parallel * arguments.context).to_string();
    let mut command = Command::new(program);
    command.args(["--model", &arguments.model, "--parallel", &slots, "--ctx-size", &context, "--gpu-layers", "999"]);
    command.args(["--host", "127.0.0.1", "--port", &port, "--cont-batching", "--no-webui"]);
    command.args(&arguments.peer_arguments);
    // Without this variable its backend ignores software devices and computes on the CPU.
    if std::env::var_os("GGML_VK_VISIBLE_DEVICES").is_none() {
        command.env("GGML_VK_VISIBLE_DEVICES", "0");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("{} could not be started", program.display()))?;
    let mut peer = Peer(child);
    let target = Target::new(&format!("http://127.0.0.1:{port}"))?;
    let start = Instant::now();
    while target.ask(0, 1, None).is_err() {
        if let Some(status) = peer.0.try_wait()? {
            bail!("{} ended ({status}); run it by hand with --model {}", program.display(), arguments.model);
        }
        if start.elapsed() > READY {
            bail!("{} was not ready after {} s", program.display(), READY.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("the peer {}:", program.display());
    let of_peer = measure(&target, arguments)?;
    for (own, other) in measured.iter().zip(&of_peer) {
        let times = own.tokens_per_second / other.tokens_per_second;
        println!("{} clients: {times:.2} times the peer's tokens/s (mark: 5)", own.clients);
    }
    Ok(())
}
