//! Checkpoints of transformers in f32: logits, greedy ids, and for T5 the tensors.

use super::*;
use qformer::checkpoint::Checkpoint;

struct Golden {
    checkpoint: Checkpoint,
    config: Json,
    golden: Json,
    reference: Vec<u8>,
}

impl Golden {
    fn read(name: &str) -> Golden {
        let dir = golden("convert_llm/models").join(name);
        let config = json(&dir.join("config.json"));
        let text_config = config.get("text_config").unwrap_or(&config).clone();
        Golden {
            checkpoint: Checkpoint::open(&dir).unwrap(),
            config: text_config,
            golden: json(&dir.join("golden.json")),
            reference: std::fs::read(dir.join("reference.safetensors")).unwrap(),
        }
    }

    fn convert(&self, quant: LlmQuant) -> Converted {
        let tokenizer = tokenizer(self.golden["tokenizer"].as_str().unwrap());
        let prefix = self.golden["prefix"].as_str().unwrap();
        Converted::new(
            parts(&self.checkpoint, &self.config, &tokenizer, prefix),
            quant,
        )
    }

    fn prompts(&self) -> Vec<Vec<i32>> {
        self.golden["prompts"]
            .as_array()
            .unwrap()
            .iter()
            .map(ids)
            .collect()
    }
}

const DECODERS: [&str; 4] = ["llama_gqa", "llama_tied", "opt_padded", "opt_stored_head"];

#[test]
fn first_logits_equal_transformers() {
    for name in DECODERS {
        let golden = Golden::read(name);
        let model = golden.convert(LlmQuant::F32).load();
        let reference = SafeTensors::deserialize(&golden.reference).unwrap();
        let expected = floats(&reference, "logits");
        let rows = expected.chunks(model.n_vocab());
        assert_eq!(rows.len(), golden.prompts().len());
        for (prompt, expected) in golden.prompts().iter().zip(rows) {
            let worst = largest_difference(&logits(&model, prompt), expected);
            println!("{name}, {} tokens: {worst:e}", prompt.len());
            assert!(worst < 1e-3, "{name}, {} tokens: {worst}", prompt.len());
        }
    }
}

#[test]
fn greedy_ids_equal_transformers() {
    for name in DECODERS {
        let golden = Golden::read(name);
        let model = golden.convert(LlmQuant::F32).load();
        let answers = golden.golden["answers"].as_array().unwrap();
        for (prompt, answer) in golden.prompts().iter().zip(answers) {
            let mut sequence = prompt.clone();
            for _ in 0..answer.as_array().unwrap().len() {
                let logits = logits(&model, &sequence);
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                sequence.push(best.unwrap() as i32);
            }
            assert_eq!(sequence[prompt.len()..], ids(answer), "{name} {prompt:?}");
        }
    }
}

/// Rows of embeddings get OPT's positions as tokens do.
#[test]
fn soft_prompts_equal_transformers_on_the_graph_of_opt() {
    let golden = Golden::read("opt_padded");
    let model = golden.convert(LlmQuant::F32).load();
    let stored = golden
        .checkpoint
        .raw("language_model.model.decoder.embed_tokens.weight")
        .unwrap();
    let embeddings: Vec<f32> = stored
        .read()
        .unwrap()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let reference = SafeTensors::deserialize(&golden.reference).unwrap();
    let expected = floats(&reference, "logits");
    for (prompt, expected) in golden
        .prompts()
        .iter()
        .zip(expected.chunks(model.n_vocab()))
    {
        let mut context = context(&model);
        let mut last = None;
        for (position, &id) in prompt.iter().enumerate() {
            let row = &embeddings[id as usize * 32..][..32];
            let ends = position + 1 == prompt.len();
            last = Some(context.add_embedding(0, position, row, ends).unwrap());
        }
        context.process().unwrap();
        let worst = largest_difference(context.logits(last.unwrap()).unwrap(), expected);
        assert!(worst < 1e-3, "{} rows: {worst}", prompt.len());
    }
}

#[test]
fn t5_logits_equal_transformers() {
    let golden = Golden::read("t5");
    let model = golden.convert(LlmQuant::F32).load();
    assert_eq!(model.decoder_start(), Some(0));
    let reference = SafeTensors::deserialize(&golden.reference).unwrap();
    let decoder_ids = ids(&golden.golden["decoder_ids"]);
    let per_prompt = decoder_ids.len() * model.n_vocab();
    let (mut worst, mut worst_erf) = (0f32, 0f32);
    for (i, prompt) in golden.prompts().iter().enumerate() {
        let mut context = context(&model);
        for (position, &id) in prompt.iter().enumerate() {
            context.add_token(0, position, id, true).unwrap();
        }
        context.encode().unwrap();
        for (position, &id) in decoder_ids.iter().enumerate() {
            context.clear();
            let row = context.add_token(0, position, id, true).unwrap();
            context.process().unwrap();
            let logits = context.logits(row).unwrap();
            let from = i * per_prompt + position * model.n_vocab();
            let of = |name| {
                largest_difference(logits, &floats(&reference, name)[from..][..logits.len()])
            };
            worst = worst.max(of("logits"));
            worst_erf = worst_erf.max(of("logits_erf"));
        }
    }
    println!("t5: {worst:e}; with the exact GELU {worst_erf:e}");
    assert!(worst < 1e-3, "off by {worst}");
}

#[test]
fn a_head_is_written_once_where_it_is_tied() {
    for (name, stored) in [
        ("llama_gqa", true),
        ("llama_tied", false),
        ("opt_padded", false),
        ("opt_stored_head", false),
        ("t5", true),
    ] {
        let content = Golden::read(name).convert(LlmQuant::F32).content();
        let found = content.tensor_infos.contains_key("output.weight");
        assert_eq!(found, stored, "{name}");
    }
}

#[test]
fn gains_of_opt_are_powers_of_two_that_its_graph_divides_by() {
    let golden = Golden::read("opt_padded");
    let converted = golden.convert(LlmQuant::F32);
    let mut file = std::fs::File::open(&converted.path).unwrap();
    let content = converted.content();
    let mut read = |name: &str| {
        let tensor = content
            .tensor(&mut file, name, &candle_core::Device::Cpu)
            .unwrap();
        let tensor = tensor.dequantize(&candle_core::Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let gains = read("blk.1.ffn.act.scales");
    let up = read("blk.1.ffn_up.weight");
    assert_eq!(gains.len(), 128);
    assert!(
        gains
            .iter()
            .all(|gain| gain.log2().fract() == 0.0 && *gain >= 16.0)
    );
    let name = "language_model.model.decoder.layers.1.fc1.weight";
    let stored = golden.checkpoint.raw(name).unwrap().read().unwrap();
    for (i, bytes) in stored.chunks_exact(4).enumerate() {
        let weight = f32::from_le_bytes(bytes.try_into().unwrap());
        assert_eq!(up[i], weight * gains[i / 32], "element {i}");
    }
}

/// llama.cpp's own names and shapes of a T5, and that it loads the file.
#[test]
fn t5_is_what_llama_cpp_loads() {
    let golden = Golden::read("t5");
    let converted = golden.convert(LlmQuant::F32);
    let content = converted.content();
    let value = |key: &str| content.metadata[key].to_u32().unwrap();
    assert_eq!(value("t5.decoder_start_token_id"), 0);
    assert_eq!(value("t5.attention.key_length"), 12);
    assert_eq!(value("t5.attention.relative_buckets_count"), 32);
    assert_eq!(value("tokenizer.ggml.eos_token_id"), 1);
    // 24 to a pair of blocks, two tables, two last norms, embeddings and head.
    assert_eq!(content.tensor_infos.len(), 2 * 24 + 6 - 2);
    let mut file = std::fs::File::open(&converted.path).unwrap();
    for (ours, theirs) in [
        ("token_embd", "shared"),
        ("output", "lm_head"),
        (
            "enc.blk.0.attn_rel_b",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        ),
        (
            "dec.blk.1.cross_attn_o",
            "decoder.block.1.layer.1.EncDecAttention.o",
        ),
        (
            "dec.blk.1.ffn_gate",
            "decoder.block.1.layer.2.DenseReluDense.wi_0",
        ),
        (
            "enc.blk.1.ffn_up",
            "encoder.block.1.layer.1.DenseReluDense.wi_1",
        ),
        ("dec.output_norm", "decoder.final_layer_norm"),
    ] {
        let name = format!("{ours}.weight");
        let tensor = content
            .tensor(&mut file, &name, &candle_core::Device::Cpu)
            .unwrap();
        let stored = golden
            .checkpoint
            .raw(&format!("language_model.{theirs}.weight"))
            .unwrap();
        assert_eq!(tensor.shape().dims(), stored.shape, "{name}");
        assert_eq!(tensor.data().unwrap(), stored.read().unwrap(), "{name}");
    }
}
