//! Generates the JavaScript glue of the WebAssembly engine: `bindgen IN.wasm OUT_DIR NAME`.
//!
//! It uses the library of the `wasm-bindgen` command with the version of Cargo.lock. Rejected: the installed command,
//! because another version refuses the module, and because it is one more program to install.

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, out_dir, name] = arguments.as_slice() else {
        bail!("expected three arguments, IN.wasm OUT_DIR NAME; got {}", arguments.len());
    };
    let mut bindgen = wasm_bindgen_cli_support::Bindgen::new();
    bindgen.input_path(input).out_name(name).typescript(false);
    bindgen.web(true).with_context(|| "the `web` output of wasm-bindgen is refused")?;
    bindgen.generate(out_dir).with_context(|| format!("wasm-bindgen failed on {input}"))
}
