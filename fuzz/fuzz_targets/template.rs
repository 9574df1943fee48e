//! A chat template, and messages as JSON after 0xff 0xff: rendering must end within its limits.
#![no_main]

use bayan_generate::text::{ChatInput, ChatTemplate, RenderLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let cut = bytes.windows(2).position(|pair| pair == [0xff, 0xff]);
    let (template, messages) = cut.map_or((bytes, &b"[{\"role\": \"user\", \"content\": \"a\"}]"[..]), |cut| (&bytes[..cut], &bytes[cut + 2..]));
    let Ok(template) = std::str::from_utf8(template) else { return };
    let Ok(mut template) = ChatTemplate::new(template, None) else { return };
    let limits = RenderLimits { fuel: 50_000, recursion: 50, output_bytes: 1 << 16, working_bytes: 1 << 20 };
    template.set_limits(limits);
    let messages = serde_json::from_slice(messages).unwrap_or_default();
    if let Ok(text) = template.render(&ChatInput::new(messages)) {
        assert!(text.len() <= limits.output_bytes);
    }
});
