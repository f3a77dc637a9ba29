//! Quantized files: element types, and that they compute nearly the same.

use super::*;
use candle_core::quantized::GgmlDType;

#[test]
fn tensors_get_the_types_of_llama_cpps_mixtures() {
    let (made, config) = Made::llama(256, 512, 8, 512);
    let dir = tokenizer("sentencepiece");
    let kinds = |quant| {
        let content = Converted::new(parts(&made, &config, &dir, ""), quant).content();
        move |name: &str| content.tensor_infos[&format!("{name}.weight")].ggml_dtype
    };
    let q4_k_m = kinds(LlmQuant::Q4KM);
    for (name, expected) in [
        ("token_embd", GgmlDType::Q4K),
        ("output", GgmlDType::Q6K),
        ("output_norm", GgmlDType::F32),
        ("blk.0.attn_norm", GgmlDType::F32),
        ("blk.0.attn_q", GgmlDType::Q4K),
        ("blk.0.attn_v", GgmlDType::Q6K),
        ("blk.1.attn_v", GgmlDType::Q4K),
        ("blk.3.attn_v", GgmlDType::Q6K),
        ("blk.0.ffn_down", GgmlDType::Q6K),
        ("blk.1.ffn_down", GgmlDType::Q4K),
        ("blk.7.ffn_down", GgmlDType::Q6K),
        ("blk.7.ffn_up", GgmlDType::Q4K),
    ] {
        assert_eq!(q4_k_m(name), expected, "{name}");
    }
    let q8_0 = kinds(LlmQuant::Q8_0);
    for name in ["token_embd", "output", "blk.0.attn_v", "blk.7.ffn_down"] {
        assert_eq!(q8_0(name), GgmlDType::Q8_0, "{name}");
    }
}

#[test]
fn every_precision_loads_and_stays_close() {
    let (made, config) = Made::llama(256, 512, 2, 512);
    let dir = tokenizer("sentencepiece");
    let prompt: Vec<i32> = (0..40).map(|i| i * 37 % 480 + 5).collect();
    let convert = |quant| Converted::new(parts(&made, &config, &dir, ""), quant).load();
    let exact = logits(&convert(LlmQuant::F32), &prompt);
    let spread = (exact.iter().map(|x| x * x).sum::<f32>() / exact.len() as f32).sqrt();
    for (quant, tolerance) in [
        (LlmQuant::F16, 0.01),
        (LlmQuant::Bf16, 0.05),
        (LlmQuant::Q8_0, 0.05),
        (LlmQuant::Q6K, 0.15),
        (LlmQuant::Q5KM, 0.3),
        (LlmQuant::Q5KS, 0.3),
        (LlmQuant::Q4KM, 0.6),
        (LlmQuant::Q4KS, 0.6),
        (LlmQuant::Iq4Nl, 0.8),
        (LlmQuant::Q4_0, 0.9),
    ] {
        let model = convert(quant);
        assert_eq!(model.info().file_type_name(), quant.name());
        let worst = largest_difference(&logits(&model, &prompt), &exact) / spread;
        println!("{quant}: {worst}");
        assert!(worst > 0.0 && worst < tolerance, "{quant}: {worst}");
    }
}
