//! A tokenizer.json, and its tokenizer_config.json after 0xff 0xff: a tokenizer that can be opened encodes, decodes and
//! streams without a panic.
#![no_main]

use bayan_generate::text::{TokenStream, Tokenizer, TokenizerFiles};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let cut = bytes.windows(2).position(|pair| pair == [0xff, 0xff]);
    let (file, config) = cut.map_or((bytes, None), |cut| (&bytes[..cut], Some(&bytes[cut + 2..])));
    let files = TokenizerFiles { tokenizer_json: Some(file), tokenizer_config: config, ..Default::default() };
    let Ok(tokenizer) = Tokenizer::from_files(&files) else { return };
    for text in ["مرحبا <s> 12", "a", ""] {
        let Ok(ids) = tokenizer.encode(text, true) else { continue };
        let _ = tokenizer.decode(&ids, true);
        let mut stream = TokenStream::new(&tokenizer, false);
        for id in ids {
            let _ = stream.push(id);
        }
        let _ = stream.flush();
    }
});
