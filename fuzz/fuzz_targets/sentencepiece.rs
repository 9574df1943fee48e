//! A SentencePiece tokenizer.model.
#![no_main]

use bayan_generate::text::{Tokenizer, TokenizerFiles};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let files = TokenizerFiles { tokenizer_model: Some(bytes), ..Default::default() };
    match Tokenizer::from_files(&files) {
        Ok(tokenizer) => {
            let ids = tokenizer.encode("مرحبا <s> 12", true).unwrap_or_default();
            let _ = tokenizer.decode(&ids, false);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
