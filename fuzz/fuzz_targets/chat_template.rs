#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| qbridge_fuzz::inputs::chat_template(input));
