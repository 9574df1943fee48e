//! Repository rules that a compiler does not check: allowed dependencies between crates, ownership of libraries, sizes
//! of files, one file for each format and architecture, forbidden words.
//!
//! The rules are checked on manifests and sources, not on a build, so that they hold on every platform. Rejected: a
//! lint configuration, because it sees neither shaders nor the page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The longest file, in lines.
const MAX_LINES: usize = 600;

/// For each crate, the crates of the workspace that it may use. `gpu` and `weights` are independent of each other; the
/// programs at the top may use every crate.
const ARROWS: &[(&str, &[&str])] = &[
    ("bayan-gpu", &[]),
    ("bayan-weights", &[]),
    ("bayan-tensor", &["bayan-gpu", "bayan-weights"]),
    ("bayan-models", &["bayan-gpu", "bayan-weights", "bayan-tensor"]),
    ("bayan-generate", &["bayan-gpu", "bayan-weights", "bayan-tensor", "bayan-models"]),
    ("bayan-embedded", &[]),
    ("bayan-train", &["bayan-gpu", "bayan-weights", "bayan-tensor", "bayan-models", "bayan-generate"]),
    ("bayan-server", &["bayan-gpu", "bayan-weights", "bayan-generate"]),
    ("bayan-evaluate", &["bayan-gpu", "bayan-weights", "bayan-models", "bayan-generate", "bayan-train"]),
    (
        "bayan-cli",
        &[
            "bayan-gpu",
            "bayan-weights",
            "bayan-tensor",
            "bayan-models",
            "bayan-generate",
            "bayan-embedded",
            "bayan-train",
            "bayan-server",
            "bayan-evaluate",
        ],
    ),
    ("bayan-wasm", &["bayan-gpu", "bayan-weights", "bayan-tensor", "bayan-models", "bayan-generate", "bayan-train"]),
    ("xtask", &[]),
];

/// Libraries that only one crate may name, so that all others use that crate's interface.
const OWNED: &[(&str, &str)] = &[
    ("wgpu", "bayan-gpu"),
    ("wasm-bindgen", "bayan-wasm"),
    ("js-sys", "bayan-wasm"),
    ("web-sys", "bayan-wasm"),
    ("axum", "bayan-server"),
    ("tokio", "bayan-server"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository's root")
}

/// The manifests of the workspace: from name to (dependency name, whether it is a dev-dependency).
fn dependencies() -> BTreeMap<String, Vec<(String, bool)>> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let of = |package: &serde_json::Value| {
        let list = package["dependencies"].as_array().expect("dependencies");
        list.iter()
            .map(|d| (d["name"].as_str().expect("a name").to_owned(), d["kind"].as_str() == Some("dev")))
            .collect()
    };
    packages.iter().map(|package| (package["name"].as_str().expect("a name").to_owned(), of(package))).collect()
}

/// Files in `directory` with one of these endings, sorted, without build outputs and installed modules.
fn files(directory: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            if path.is_dir() {
                if !name.starts_with("target")
                    && !name.starts_with(".git")
                    && !["node_modules", "dist", "__pycache__"].contains(&name)
                {
                    open.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A path relative to the repository.
fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Fails with a list of all violations, not only the first.
fn none(offences: Vec<String>, rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn crates_use_only_the_crates_below_them() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let all = dependencies();
    let mut offences = Vec::new();
    for (name, list) in &all {
        let Some(below) = allowed.get(name.as_str()) else {
            offences.push(format!("{name} is not in the table ARROWS of this test: add it with the crates it may use"));
            continue;
        };
        for (dependency, dev) in list.iter().filter(|(dependency, _)| all.contains_key(dependency)) {
            // The embedded model is data: tests anywhere may use it.
            let test_data = *dev && dependency == "bayan-embedded";
            if !below.contains(&dependency.as_str()) && !test_data {
                offences.push(format!("{name} uses {dependency}"));
            }
        }
    }
    none(offences, "gpu, weights <- tensor <- models <- generate <- train <- evaluate, server <- cli; wasm beside cli");
}

#[test]
fn one_crate_names_each_platform_library() {
    let mut offences = Vec::new();
    for (name, list) in &dependencies() {
        for (library, owner) in OWNED {
            let is_it = |dependency: &str| {
                dependency == *library || (*library == "wasm-bindgen" && dependency == "wasm-bindgen-futures")
            };
            if name != owner && list.iter().any(|(dependency, _)| is_it(dependency)) {
                offences.push(format!("{name} depends on {library}, which only {owner} may name"));
            }
        }
    }
    for path in files(&root().join("crates"), &[".rs"]) {
        let place = short(&path);
        let text = read(&path);
        for (library, owner) in OWNED {
            let home = format!("crates/{}/", owner.trim_start_matches("bayan-"));
            let module = library.replace('-', "_");
            let named = text
                .lines()
                .map(|line| line.split("//").next().unwrap_or(""))
                .any(|code| code.contains(&format!("{module}::")));
            if named && !place.starts_with(&home) {
                offences.push(format!("{place} names {module}, which only {owner} may"));
            }
        }
    }
    none(offences, "one crate owns each platform library");
}

/// The modules that a `mod.rs` or `lib.rs` declares.
fn modules(text: &str) -> BTreeSet<String> {
    let declared = text
        .lines()
        .filter_map(|line| ["pub mod ", "pub(crate) mod ", "mod "].iter().find_map(|start| line.strip_prefix(start)));
    declared.filter_map(|rest| rest.strip_suffix(';')).map(str::to_owned).collect()
}

#[test]
fn a_format_is_one_rust_file_one_shader_and_one_line() {
    let formats = root().join("crates/weights/src/formats");
    let text = read(&formats.join("mod.rs"));
    let names: BTreeSet<String> = modules(&text)
        .into_iter()
        .filter(|name| read(&formats.join(format!("{name}.rs"))).contains("impl Format for"))
        .collect();
    let shaders: BTreeSet<String> = files(&root().join("shaders/quant"), &[".wgsl"])
        .iter()
        .map(|path| path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned())
        .collect();
    assert!(!names.is_empty(), "no format was found in {}", short(&formats));
    assert_eq!(names, shaders, "crates/weights/src/formats/*.rs and shaders/quant/*.wgsl name the same formats");
    let table = text.lines().find(|line| line.starts_with("pub static FORMATS")).expect("the table FORMATS");
    let entries = table.split_once('=').map_or(0, |(_, list)| list.matches('&').count() - 1);
    assert_eq!(entries, names.len(), "FORMATS has one entry for each file: {table}");
}

#[test]
fn an_architecture_is_one_file_and_one_line() {
    let sources = root().join("crates/models/src/arch");
    let text = read(&sources.join("mod.rs"));
    let table = text
        .split_once("static ARCHITECTURES")
        .and_then(|(_, rest)| rest.split_once("];"))
        .expect("the table ARCHITECTURES")
        .0;
    let listed: Vec<&str> =
        table.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next()).collect();
    assert!(!listed.is_empty(), "the table ARCHITECTURES lists nothing");
    let declared = modules(&text);
    let offences = listed
        .iter()
        .filter(|name| !declared.contains(**name))
        .map(|name| format!("{name} has no file of its name"))
        .collect();
    none(offences, "an architecture's file is named after its model_type");
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let root = root();
    let mut checked = files(&root.join("crates"), &[".rs", ".mjs"]);
    checked.extend(files(&root.join("shaders"), &[".wgsl"]));
    checked.extend(files(&root.join("tests"), &[".rs", ".mjs"]));
    for part in ["web/src", "web/test", "web/package/src", "web/package/test"] {
        checked.extend(files(&root.join(part), &[".ts", ".tsx", ".js", ".css"]));
    }
    assert!(checked.len() > 50, "only {} files were found", checked.len());
    let long = checked.iter().filter_map(|path| {
        let lines = read(path).lines().count();
        (lines > MAX_LINES).then(|| format!("{}: {lines} lines", short(path)))
    });
    none(long.collect(), "files have at most 600 lines; split by what the parts are for");
}

#[test]
fn nothing_is_left_to_do_or_tied_to_one_machine() {
    // Split into pieces, so that this file passes its own test.
    let pieces: &[&[&str]] = &[
        &["TO", "DO"],
        &["FIX", "ME"],
        &["to", "do!("],
        &["unimpl", "emented!("],
        &["/wo", "rk/"],
        &["/ro", "ot/"],
        &["/tm", "p/bash"],
        &["registry.", "npmjs"],
        &["python", "hosted"],
        &["static.", "crates.io"],
        &["index.", "crates.io"],
        &["deb.", "debian.org"],
        &["AI ", "agent"],
        &["co-authored", "-by"],
    ];
    let words: Vec<String> = pieces.iter().map(|piece| piece.concat()).collect();
    let mut checked =
        files(&root(), &[".rs", ".wgsl", ".ts", ".tsx", ".js", ".mjs", ".css", ".html", ".md", ".py", ".toml", ".sh"]);
    checked.push(root().join(".ci/run"));
    let mut offences = Vec::new();
    for path in checked {
        for (number, line) in read(&path).lines().enumerate() {
            offences.extend(
                words
                    .iter()
                    .filter(|word| line.contains(word.as_str()))
                    .map(|word| format!("{}:{}: {word}", short(&path), number + 1)),
            );
        }
    }
    none(offences, "words that do not belong in the repository");
}

#[test]
fn every_crate_says_what_it_is_for() {
    let mut offences = Vec::new();
    for path in files(&root().join("crates"), &[".rs"]) {
        let is_top = path.parent().is_some_and(|directory| directory.ends_with("src"))
            && (path.ends_with("lib.rs") || path.ends_with("main.rs"));
        if is_top && !read(&path).starts_with("//!") {
            offences.push(short(&path));
        }
    }
    none(offences, "the first line of a crate documents it");
}

/// The sources that people write: without fixtures and generated files.
fn written(endings: &[&str]) -> Vec<PathBuf> {
    let made = ["tests/fixtures/", "fuzz/corpus/"];
    let mut found = files(&root(), endings);
    found.retain(|path| !made.iter().any(|folder| short(path).starts_with(folder)));
    found
}

/// The name of a test that a line of TypeScript declares, without what is inserted into it.
fn declared_test(line: &str) -> Option<String> {
    let line = line.trim_start();
    let rest = ["it", "test", "describe"].iter().find_map(|word| line.strip_prefix(word)?.strip_prefix('('))?;
    let quote = rest.chars().next().filter(|quote| "'\"`".contains(*quote))?;
    let mut name = String::new();
    let mut depth = 0;
    let mut characters = rest.chars().skip(1).peekable();
    while let Some(c) = characters.next() {
        match c {
            '$' if characters.peek() == Some(&'{') => depth += 1,
            '}' if depth > 0 => depth -= 1,
            c if c == quote && depth == 0 => return Some(name),
            c if depth == 0 => name.push(c),
            _ => {}
        }
    }
    None
}

#[test]
fn test_names_have_at_most_sixty_characters() {
    const MOST: usize = 60;
    let mut names: Vec<(String, String)> = Vec::new();
    for path in written(&[".rs"]) {
        let text = read(&path);
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            is_test |= line == "#[test]";
            if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test && !line.starts_with("//")) {
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                names.push((short(&path), name));
                is_test = false;
            }
        }
    }
    let rust = names.len();
    for path in written(&[".test.ts", ".test.mjs"]) {
        names.extend(read(&path).lines().filter_map(declared_test).map(|name| (short(&path), name)));
    }
    assert!(rust > 300 && names.len() > rust + 50, "only {rust} and {} test names were found", names.len() - rust);
    let long = names.iter().filter(|(_, name)| name.chars().count() > MOST);
    none(long.map(|(place, name)| format!("{place}: {name}")).collect(), "a test's name has at most 60 characters");
}

/// Exempt are lines that cannot or should not be broken: in Rust and TypeScript those with a string (a message is
/// easier to find whole; rustfmt breaks all others), in Markdown tables, addresses, and blocks of code and transcripts.
/// Generated files are not read.
#[test]
fn lines_end_at_column_120() {
    const MOST: usize = 120;
    let mut offences = Vec::new();
    for path in written(&[".rs", ".wgsl", ".ts", ".tsx", ".md"]) {
        let place = short(&path);
        let markdown = place.ends_with(".md");
        let mut in_block = false;
        for (number, line) in read(&path).lines().enumerate() {
            in_block ^= markdown && line.trim_start().starts_with("```");
            let exempt = match place.rsplit('.').next() {
                Some("md") => in_block || line.trim_start().starts_with('|') || line.contains("://"),
                Some("wgsl") => false,
                _ => line.contains(['"', '\'', '`']),
            };
            if !exempt && line.chars().count() > MOST {
                offences.push(format!("{place}:{}: {} columns", number + 1, line.chars().count()));
            }
        }
    }
    none(offences, "lines have at most 120 columns");
}
