//! Every weight format is in the help texts and in README's table, with its own description.

mod common;

use bayan_weights::FORMATS;
use common::{run, succeed};

#[test]
fn help_texts_list_every_format() {
    for command in ["chat", "generate", "perplexity", "inspect", "bench", "quantize", "merge", "finetune"] {
        let help = succeed(&run(&[command, "--help"]));
        // Help texts break long lines between words.
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for format in FORMATS {
            assert!(words.contains(format.name()), "bayan {command} --help: {} is missing in\n{help}", format.name());
            let line = format!("{}: {}", format.name(), format.help());
            assert!(command == "finetune" || words.contains(&line), "bayan {command} --help: `{line}` is missing");
        }
    }
    let help = succeed(&run(&["quantize", "--help"])).split_whitespace().collect::<Vec<_>>().join(" ");
    for (finer, format) in FORMATS.iter().filter_map(|format| Some((format.finer()?, format))) {
        let (_, rest) = help.split_once(&format!("{} beside", finer.name())).expect("the default of --embedding");
        let beside = rest.split(';').next().unwrap_or("");
        assert!(beside.contains(format.name()), "{} is missing beside {}: {beside}", format.name(), finer.name());
    }
}

#[test]
fn readme_s_table_lists_every_format() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(path).expect("README.md");
    let table = readme.lines().skip_while(|line| !line.starts_with("| format |")).skip(2);
    let rows: Vec<&str> = table.take_while(|line| line.starts_with('|')).collect();
    let row = |format: &&'static dyn bayan_weights::Format| {
        format!("| `{}` | {} | {} |", format.name(), format.bits_per_weight(), format.help())
    };
    assert_eq!(rows, FORMATS.iter().map(row).collect::<Vec<_>>(), "README.md, the table of formats");
}
