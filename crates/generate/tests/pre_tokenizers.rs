//! The names of `tokenizer.ggml.pre`: each cuts texts as the `tokenizers` library does with the rules that the
//! published `tokenizer.json` states, which are in `tests/fixtures/gguf/pre_tokenizers.json`.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use bayan_gpu::block_on;
use bayan_weights::DirectorySource;
use bayan_weights::gguf::block_type::BlockType;
use bayan_weights::gguf::writer::{Declared, Entry, GgufWriter};
use serde_json::{Value, json};
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Tokenizer,
};

/// Names whose rules are here, besides those with published rules in the fixture.
const OTHERS: &[&str] = &[
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "lfm2",
    "midm-2.0",
    "jina-v5-nano",
    "dbrx",
    "smaug-bpe",
    "chatglm-bpe",
    "deepseek-r1-qwen",
    "megrez",
    "kormo",
    "f2llmv2",
    "solar-open",
    "grok-2",
    "stablelm2",
    "laguna",
    "kanana2",
    "talkie",
    "minimax-m2",
    "cohere2moe",
    "kimi-k2",
    "youtu",
    "deepseek-llm",
    "joyai-llm",
    "hy_v4",
    "spark2_5",
    "bailingmoe2",
    "llada-moe",
    "ufakzeka",
    "starcoder",
    "codeshell",
    "minerva-7b",
    "mellum2",
    "gpt3-finnish",
    "poro-chat",
    "viking",
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
];

/// Names that llama.cpp knows and this program refuses; the table in the sources says why.
const REFUSED: &[&str] = &[
    "roberta-bpe",
    "jina-v1-en",
    "jina-v2-code",
    "whitespace",
    "granite-embed-multi-97m",
    "granite-embed-multi-311m",
    "gemma4",
    "sarvam-moe",
    "afmoe",
    "chameleon",
    "superbpe",
];

/// Arabic with and without marks, digits of three kinds, mixed scripts, code, spaces and line ends.
const TEXTS: &[&str] = &[
    "السلام عليكم ورحمة الله وبركاته",
    "اَلسَّلَامُ عَلَيْكُمْ وَرَحْمَةُ اللهِ",
    "إنَّ مَعَ العُسْرِ يُسْرًا ۝ ﴿فَإِنَّ﴾",
    "في عام ٢٠٢٤ كان السعر ١٬٢٣٤٫٥٦ ريالا",
    "سنة 2024 و12345678 و3.14159 و1,000,000",
    "۱۲۳۴ فارسی می‌خواهم",
    "مرحبا  بك   في    بيان",
    "سطر أول\nسطر ثان\r\n\r\nسطر ثالث\n\n\n",
    "قال: «نعم»، ثم سكت... أليس كذلك؟ بلى!",
    "I don't think he'll say it's Ali's; WE'RE DONE, I'M, THEY'LL",
    "camelCase PascalCase HTTPServer snake_case مثال",
    "النص English مختلط with العربية 123abc456",
    "def f(x):\n    return x ** 2  # تعليق\n\tprint('a')\n",
    "https://example.com/ar/صفحة?q=1&lang=ar#top",
    "中文和日本語のテキスト 한국어 텍스트",
    "العربية中文العربية",
    "🙂👨‍👩‍👧 السعادة ❤️",
    "اللّٰه ـــ تطويل كـــبير",
    "e\u{301}tude آ ا\u{653} أ ا\u{654}",
    "a+b=c <html> [x] {y} $5 50% ^_^ |~|",
    "   مسافات في البداية",
    "مسافات في النهاية   ",
    "ẞtraße ǅ ʰ Ⅷ ½ ²",
    "٪ ؛ ، ؟ ۔ । ……",
    "",
];

fn fixture() -> serde_json::Map<String, Value> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/gguf/pre_tokenizers.json");
    let text = std::fs::read(path).expect("the fixture");
    serde_json::from_slice::<Value>(&text).expect("JSON").as_object().expect("an object").clone()
}

/// The `tokenizer.json` that a GGUF file with this name gets.
fn from_gguf(name: &str) -> Result<Value, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.gguf");
    let number = |key: &str| (format!("llama.{key}"), Entry::Number(32));
    let text = |key: &str, value: &str| (key.to_string(), Entry::Text(value.into()));
    let metadata = [
        text("general.architecture", "llama"),
        number("block_count"),
        number("embedding_length"),
        number("feed_forward_length"),
        number("attention.head_count"),
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", name),
        ("tokenizer.ggml.tokens".to_string(), Entry::Texts(vec!["a".into(), "b".into(), "ab".into()])),
        ("tokenizer.ggml.merges".to_string(), Entry::Texts(vec!["a b".into()])),
    ];
    let declared = vec![Declared { name: "token_embd.weight".into(), shape: vec![3, 32], kind: BlockType::F32 }];
    let mut writer = GgufWriter::create(&path, &metadata, declared).expect("a file");
    writer.write(&[0; 3 * 32 * 4]).expect("fits");
    writer.finish().expect("complete");
    let source = Rc::new(DirectorySource::new(&path).expect("a file"));
    let files = block_on(bayan_weights::gguf::files_of(source)).map_err(|error| error.to_string())?;
    assert!(files.notes().is_empty(), "{:?}", files.notes());
    let size = block_on(files.size("tokenizer.json")).expect("reads").expect("made") as usize;
    let bytes = block_on(files.read("tokenizer.json", 0, size)).expect("reads");
    Ok(serde_json::from_slice(&bytes).expect("JSON"))
}

fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string()).unwrap_or_else(|error| panic!("{error}: {json}"))
}

/// The words of a text, after normalization.
fn words(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized).expect("normalizes");
    }
    let mut cut = PreTokenizedString::from(normalized);
    tokenizer.get_pre_tokenizer().expect("rules").pre_tokenize(&mut cut).expect("cuts");
    let splits = cut.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    splits.into_iter().map(|(word, ..)| word.to_string()).collect()
}

#[test]
fn names_cut_as_the_published_rules_do() {
    let published = fixture();
    assert!(published.len() > 25, "{}", published.len());
    for (name, stated) in &published {
        let ours = from_gguf(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut wanted = ours.clone();
        wanted["pre_tokenizer"] = stated["pre_tokenizer"].clone();
        wanted["normalizer"] = stated["normalizer"].clone();
        let (ours, wanted) = (tokenizer(&ours), tokenizer(&wanted));
        for text in TEXTS {
            assert_eq!(words(&ours, text), words(&wanted, text), "{name}: {text:?} ({})", stated["source"]);
        }
    }
}

#[test]
fn every_known_name_opens_and_keeps_all_bytes() {
    let published = fixture();
    for name in published.keys().map(String::as_str).chain(OTHERS.iter().copied()) {
        let tokenizer = tokenizer(&from_gguf(name).unwrap_or_else(|error| panic!("{name}: {error}")));
        for text in TEXTS {
            let nfc = tokenizer.get_normalizer().is_some();
            let whole = words(&tokenizer, text).concat();
            // Byte-level characters: one for each byte.
            assert!(nfc || whole.chars().count() == text.len(), "{name}: {text:?} became {whole:?}");
        }
    }
    for name in REFUSED.iter().chain(&["unheard-of"]) {
        let error = from_gguf(name).expect_err(name);
        assert!(error.contains(name) && error.contains("safetensors"), "{error}");
    }
}

/// Rules that look alike differ on these texts, so that a wrong entry would be seen.
#[test]
fn the_texts_tell_rules_apart() {
    let distinct =
        ["llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35", "deepseek-v3", "smollm", "gpt-2", "jais-2", "bloom"];
    let all: Vec<Vec<Vec<String>>> = distinct
        .iter()
        .map(|name| {
            let rules = tokenizer(&from_gguf(name).expect("known"));
            TEXTS.iter().map(|text| words(&rules, text)).collect()
        })
        .collect();
    for (i, one) in all.iter().enumerate() {
        for (j, other) in all.iter().enumerate().skip(i + 1) {
            assert_ne!(one, other, "{} and {}", distinct[i], distinct[j]);
        }
    }
    assert_eq!(json!(words(&tokenizer(&from_gguf("smollm").expect("known")), "12")), json!(["1", "2"]));
}
