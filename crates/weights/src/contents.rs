//! Recognizes from its first bytes a file that is not what its name says, so that the error says what it is and what to
//! do. Rejected: the parser's own message ("a header of 7308895159146328636 bytes"), which helps nobody.

use crate::error::WeightsError;

/// Bytes that are enough to recognize a file.
pub(crate) const FIRST_BYTES: u64 = 512;

/// What a file should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Weights in safetensors.
    Safetensors,
    /// Weights in GGUF.
    Gguf,
    /// An archive of PyTorch.
    Torch,
    /// JSON.
    Json,
    /// A model, as one file of any kind. A browser has no paths to files.
    #[cfg_attr(target_arch = "wasm32", expect(dead_code))]
    Model,
}

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Whether a file with these first bytes is GGUF.
pub(crate) fn is_gguf(first: &[u8]) -> bool {
    first.starts_with(b"GGUF")
}

/// Fails if a file of `size` bytes that begins with `first` is clearly something other than `expected`.
pub(crate) fn refuse_other(file: &str, first: &[u8], size: u64, expected: Expected) -> Result<(), WeightsError> {
    match recognize(first, size) {
        Some((found, remedy, kind)) if kind != Some(expected) => {
            Err(WeightsError::Contents { file: file.to_owned(), found, remedy: remedy.to_owned() })
        }
        _ => Ok(()),
    }
}

/// What the file is, what to do, and for which expectation it is right.
fn recognize(first: &[u8], size: u64) -> Option<(String, &'static str, Option<Expected>)> {
    const NO_PICKLE: &str = "such files can run code when loaded: convert it with transformers \
                             (model.save_pretrained(directory, safe_serialization=True)), and give that directory";
    let text = first.trim_ascii_start();
    let begins = |with: &str| text.len() >= with.len() && text[..with.len()].eq_ignore_ascii_case(with.as_bytes());
    let found = |what: &str, remedy, kind| Some((what.to_owned(), remedy, kind));
    if first.starts_with(POINTER) {
        return found(
            "a Git LFS pointer, a few lines in place of the file",
            "run `git lfs install` and `git lfs pull` in its repository, or download the file itself",
            None,
        );
    }
    if begins("<!doctype html") || begins("<html") || begins("<head") || begins("<?xml") {
        return found(
            "a web page (HTML)",
            "the download gave a page in place of the file, often one that asks for a login: download it again from \
             its own address (…/resolve/main/…), with an access token if the model is gated",
            None,
        );
    }
    if is_gguf(first) {
        return found("a GGUF file", "open it by its path, without other weights beside it", Some(Expected::Gguf));
    }
    if first.starts_with(b"PK\x03\x04") {
        return found("an archive, as torch.save writes it", NO_PICKLE, Some(Expected::Torch));
    }
    if first.starts_with(&[0x80, 0x02]) {
        return found("a PyTorch pickle", NO_PICKLE, Some(Expected::Torch));
    }
    if first.starts_with(b"\xff\xfe") || first.starts_with(b"\xfe\xff") {
        return found("text in UTF-16", "save it as UTF-8", None);
    }
    let header = first.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    if first.get(8) == Some(&b'{') && header.is_some_and(|length| length < size) {
        return found(
            "a safetensors file",
            "name it model.safetensors, beside its config.json and tokenizer, and give their directory",
            Some(Expected::Safetensors),
        );
    }
    if begins("{") {
        return found("JSON", "give the directory of the checkpoint, or a GGUF file", Some(Expected::Json));
    }
    let printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    if size < FIRST_BYTES && size > 7 && first.len() as u64 == size && first.iter().all(printable) {
        return Some((
            format!("a short text ({:?})", String::from_utf8_lossy(first).chars().take(60).collect::<String>()),
            "the download gave a message in place of the file: download it again",
            None,
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognized_by_their_first_bytes() {
        let error = |bytes: &[u8], expected| {
            refuse_other("model.safetensors", bytes, bytes.len() as u64, expected).map_err(|error| error.to_string())
        };
        for (bytes, what) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548118077\n"[..], "git lfs pull"),
            (b"<!doctype HTML>\n<html class=\"\">", "a web page"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
            (b"PK\x03\x04\0\0", "torch.save"),
            (b"\x80\x02\x8a\n", "a PyTorch pickle"),
            (b"Access to model meta-llama/x is restricted.", "Access to model"),
        ] {
            let error = error(bytes, Expected::Safetensors).expect_err("something else");
            assert!(error.contains(what) && error.contains("model.safetensors"), "{error}");
        }
        assert!(error(b"GGUF\x03\0\0\0", Expected::Gguf).is_ok());
        assert!(error(b"\x02\0\0\0\0\0\0\0{}", Expected::Safetensors).is_ok());
        assert!(error(b"\x02\0\0\0\0\0\0\0{}", Expected::Gguf).is_err());
        assert!(error(b"", Expected::Safetensors).is_ok(), "an empty file is the parser's to refuse");
    }
}
