//! A checkpoint of one's own: `QBRIDGE_CHECKPOINT=DIR QBRIDGE_TOKENIZER=DIR cargo test
//! --release --test convert_llm -- --ignored full_size`.

use super::*;
use qformer::checkpoint::Checkpoint;
use std::time::Instant;

#[test]
#[ignore = "needs QBRIDGE_CHECKPOINT, a directory with a BLIP-2's config.json and weights"]
fn full_size() {
    let dir = PathBuf::from(std::env::var_os("QBRIDGE_CHECKPOINT").unwrap());
    let tokenizer =
        std::env::var_os("QBRIDGE_TOKENIZER").map_or_else(|| dir.clone(), PathBuf::from);
    let config = json(&dir.join("config.json"));
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let quant =
        std::env::var("QBRIDGE_LLM_QUANT").map_or(LlmQuant::Q4KM, |name| name.parse().unwrap());
    let start = Instant::now();
    let parts = parts(
        &checkpoint,
        &config["text_config"],
        &tokenizer,
        "language_model.",
    );
    let conversion = LlmConversion::new(parts, quant).unwrap();
    let out = dir.join("llm.gguf");
    conversion.write(&out, &|_| ()).unwrap();
    let seconds = start.elapsed().as_secs_f32();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    let bytes = std::fs::metadata(&out).unwrap().len();
    println!(
        "{} bytes to {bytes} of {quant} in {seconds} s; {}",
        conversion.source_bytes(),
        peak.unwrap_or("peak memory unknown")
    );
    LanguageModel::load(&out).unwrap();
}
