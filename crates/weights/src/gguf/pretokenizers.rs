//! How a byte-level BPE cuts a text into words before it merges bytes: one table of the names that GGUF files have
//! under `tokenizer.ggml.pre`, with the rules that the published `tokenizer.json` of these models states.
//!
//! GGUF has only the name. Where llama.cpp's own expression differs from the published one (it has none for
//! `\p{M}`, so that Arabic marks are cut off their letters in `tekken` and `gpt-4o`), the published one is here,
//! because the model was trained with it. An unknown name is refused: a similar expression gives ids that are almost
//! right.
//! Absent are names of embedding models (`roberta-bpe`, `jina-v1-en`, `jina-v2-code`, `whitespace`,
//! `granite-embed-multi-97m`, `granite-embed-multi-311m`), of vocabularies that are not byte-level (`gemma4`,
//! `sarvam-moe`), and those whose rules are code or depend on special tokens (`afmoe`, `chameleon`, `superbpe`).

use super::arch::Arch;
use super::header::Header;
use serde_json::{Value, json};

/// One step of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Each match of an expression becomes a word, and so does what lies between matches.
    Split(&'static str),
    /// Each digit is a word.
    Digits,
    /// Each run of digits is a word.
    DigitRuns,
    /// Each run of punctuation is a word.
    Punctuation,
    /// GPT-2's expression.
    Gpt2,
}

/// The rules of some names.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// Names in GGUF; the first is written on export.
    pub names: &'static [&'static str],
    pub steps: &'static [Step],
    /// Texts are normalized to NFC.
    pub nfc: bool,
    /// A word that is a token is never merged from parts.
    pub ignore_merges: bool,
    /// Texts begin with the bos token, unless the file says otherwise.
    pub bos: bool,
}

use Step::{DigitRuns, Digits, Gpt2, Punctuation, Split};

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Splits runs of spaces into powers of two.
const JAIS2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)",
    r"|\s{1,2}(?!\S)|\s{1}"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const YOUTU: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Kimi K2 cuts runs of Han characters apart from other letters.
const KIMI_K2: &str = concat!(
    r"[\p{Han}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Letters of Chinese, Japanese and, for the older models, Korean.
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-퟿]+";
const DEEPSEEK3_CJK: &str = "[一-龥぀-ゟ゠-ヿ]+";
const DEEPSEEK3: &str = concat!(
    r#"[!"#,
    "\"",
    r##"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"##,
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const SPARK: &str = concat!(
    r#"[!"#,
    "\"",
    r##"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]"##,
    r"|\s+(?!\S)|\s+"
);
/// Letters of Latin, Greek, Cyrillic and other scripts with two cases. Characters that normalization would replace are
/// written by their numbers.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ",
    r"\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}",
    r"\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}ℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ",
    r"\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ",
    r"𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
);
const EXAONE_MOE: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
);
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|[.,!?…。，、।۔،])]+";

/// The embedded model's expression. It cuts every text as `QWEN35` does: only the character that may stand before a run
/// of letters and marks is described without marks, and a mark there belongs to the same run in either expression.
const EMBEDDED: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Expressions of published files that cut every text as one of the table does.
pub(super) const EQUAL: &[(&str, &str)] = &[(EMBEDDED, QWEN35)];
/// The key that says whether texts are normalized to NFC, where that differs from the rules of the name.
pub(super) const NFC_KEY: &str = "tokenizer.bayan.nfc";

const PLAIN: PreTokenizer = PreTokenizer { names: &[], steps: &[Gpt2], nfc: false, ignore_merges: false, bos: false };

/// Every known name.
pub(super) static TABLE: &[PreTokenizer] = &[
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "lfm2",
            "pixtral",
            "midm-2.0",
            "jina-v5-nano",
        ],
        steps: &[Split(LLAMA3)],
        ignore_merges: true,
        bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], steps: &[Split(LLAMA3)], ..PLAIN },
    PreTokenizer { names: &["jais-2"], steps: &[Split(JAIS2)], ..PLAIN },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"],
        steps: &[Split(QWEN2)],
        nfc: true,
        ..PLAIN
    },
    PreTokenizer { names: &["hunyuan", "solar-open", "grok-2", "stablelm2"], steps: &[Split(QWEN2)], ..PLAIN },
    PreTokenizer { names: &["qwen35"], steps: &[Split(QWEN35)], nfc: true, ..PLAIN },
    PreTokenizer { names: &["laguna"], steps: &[Split(r"[^\n]+|[\n]+"), Split(QWEN2)], ..PLAIN },
    PreTokenizer { names: &["tekken"], steps: &[Split(TEKKEN)], ignore_merges: true, bos: true, ..PLAIN },
    PreTokenizer { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], steps: &[Split(GPT4O)], ..PLAIN },
    PreTokenizer {
        names: &["tiny_aya", "cohere2moe"],
        steps: &[Split(r"\d{1,3}(?=(?:\d{3})*\b)"), Split(GPT4O)],
        ..PLAIN
    },
    PreTokenizer { names: &["kimi-k2"], steps: &[Split(KIMI_K2)], ..PLAIN },
    PreTokenizer {
        names: &["youtu"],
        steps: &[Split("[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"), Split(YOUTU)],
        ignore_merges: true,
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-llm"],
        steps: &[
            Split("[\r\n]"),
            Split(DEEPSEEK_LETTERS),
            Split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            Split(r"\s+$"),
            Split(DEEPSEEK_CJK),
            DigitRuns,
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        steps: &[Split("[\r\n]"), Split(r"\s?\p{L}+"), Split(r"\s?\p{P}+"), Split(DEEPSEEK_CJK), Digits],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        steps: &[Split(r"\p{N}{1,3}"), Split(DEEPSEEK3_CJK), Split(DEEPSEEK3)],
        ..PLAIN
    },
    PreTokenizer {
        names: &["spark2_5"],
        steps: &[Split(r"\p{N}{1,3}"), Split(DEEPSEEK3_CJK), Split(SPARK), Split(r"\p{N}")],
        ..PLAIN
    },
    PreTokenizer {
        names: &["minicpm5"],
        steps: &[Split(r"\p{N}{1,3}"), Split(MINICPM5)],
        ignore_merges: true,
        ..PLAIN
    },
    PreTokenizer { names: &["exaone-moe"], steps: &[Split(EXAONE_MOE)], ..PLAIN },
    PreTokenizer { names: &["bailingmoe", "bailingmoe2", "llada-moe"], steps: &[Split(BAILING)], ..PLAIN },
    PreTokenizer { names: &["seed-coder"], steps: &[Split(SEED_CODER)], ..PLAIN },
    PreTokenizer { names: &["ufakzeka"], steps: &[Split(UFAKZEKA)], ..PLAIN },
    PreTokenizer { names: &["command-r"], steps: &[Digits, Gpt2], nfc: true, ..PLAIN },
    PreTokenizer {
        names: &["refact", "starcoder", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"],
        steps: &[Digits, Gpt2],
        ..PLAIN
    },
    PreTokenizer { names: &["falcon"], steps: &[Punctuation, Gpt2, DigitRuns, Split("[0-9][0-9][0-9]")], ..PLAIN },
    PreTokenizer { names: &["bloom", "gpt3-finnish", "poro-chat"], steps: &[Split(BLOOM)], ..PLAIN },
    PreTokenizer { names: &["viking"], steps: &[Split(BLOOM), Digits], ..PLAIN },
    PreTokenizer {
        names: &[
            "gpt-2",
            "jais",
            "phi-2",
            "olmo",
            "mpt",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
        ],
        ..PLAIN
    },
];

/// The name that an architecture's files have if they have any of their own.
const BY_ARCHITECTURE: &[(&str, &str)] = &[
    ("qwen2", "qwen2"),
    ("qwen3", "qwen2"),
    ("jais", "jais"),
    ("jais2", "jais-2"),
    ("command-r", "command-r"),
    ("cohere2", "command-r"),
    ("granite", "refact"),
    ("falcon-h1", "falcon-h1"),
    ("lfm2", "lfm2"),
];

/// Vocabularies that a token at an id identifies: the id, the token, the name.
const BY_VOCABULARY: &[(usize, &str, &str)] = &[
    (151_644, "<|im_start|>", "qwen2"),
    (128_000, "<|begin_of_text|>", "llama-bpe"),
    (199_999, "<|endoftext|>", "gpt-4o"),
    (255_001, "<|END_OF_TURN_TOKEN|>", "command-r"),
    (50_256, "<|endoftext|>", "gpt-2"),
];

/// The rules with this name.
pub(super) fn by_name(name: &str) -> Option<&'static PreTokenizer> {
    TABLE.iter().find(|rules| rules.names.contains(&name))
}

/// The name of a file's rules; where the file has none, a note says which are taken.
pub(super) fn name_in<'a>(
    file: &str,
    header: &'a Header,
    arch: &Arch,
    tokens: &[String],
    notes: &mut Vec<String>,
) -> &'a str {
    let stated = header.text("tokenizer.ggml.pre").filter(|name| !name.is_empty());
    if let Some(name) = stated.filter(|name| *name != "default") {
        return name;
    }
    let says = if stated.is_some() { "says \"default\" for" } else { "does not say" };
    let by_token = BY_VOCABULARY.iter().find(|(id, token, _)| tokens.get(*id).is_some_and(|at| at == token));
    let by_arch = BY_ARCHITECTURE.iter().find(|(gguf, _)| *gguf == arch.gguf);
    let (name, why) = match (by_token, by_arch) {
        (Some((id, token, name)), _) => (*name, format!("its token {id} is {token}, as in the vocabulary of {name:?}")),
        (None, Some((gguf, name))) => (*name, format!("models of the architecture {gguf:?} are cut so")),
        (None, None) => {
            notes.push(format!(
                "{file} {says} how texts are cut into words (tokenizer.ggml.pre): they are cut as GPT-2 cuts them. If \
                 the model was trained otherwise, numbers, punctuation, spaces and line ends get other ids than in its \
                 training, and answers are worse: convert it again with a current llama.cpp, or take its safetensors \
                 checkpoint"
            ));
            return "gpt-2";
        }
    };
    notes.push(format!(
        "{file} {says} how texts are cut into words (tokenizer.ggml.pre): they are cut as for {name:?}, because {why}"
    ));
    name
}

impl PreTokenizer {
    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub fn json(&self) -> Value {
        let level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        if self.steps == [Gpt2] {
            return level(true);
        }
        let mut steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| match step {
                Split(regex) => {
                    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
                }
                Digits => json!({"type": "Digits", "individual_digits": true}),
                DigitRuns => json!({"type": "Digits", "individual_digits": false}),
                Punctuation => json!({"type": "Punctuation", "behavior": "Contiguous"}),
                Gpt2 => level(true),
            })
            .collect();
        if !self.steps.contains(&Gpt2) {
            steps.push(level(false));
        }
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_name_has_one_set_of_rules() {
        let names: Vec<&str> = TABLE.iter().flat_map(|rules| rules.names).copied().collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for (_, name) in BY_ARCHITECTURE {
            assert!(by_name(name).is_some(), "{name}");
        }
        for (_, _, name) in BY_VOCABULARY {
            assert!(by_name(name).is_some(), "{name}");
        }
        for (gguf, _) in BY_ARCHITECTURE {
            assert!(Arch::by_gguf(gguf).is_some(), "{gguf}");
        }
    }
}
