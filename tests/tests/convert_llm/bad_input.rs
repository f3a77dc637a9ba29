//! What cannot be converted is refused in one sentence, and leaves nothing behind.

use super::*;

fn refusal(parts: LlmParts) -> String {
    match LlmConversion::new(parts, LlmQuant::F32) {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}

fn assert_says(message: &str, words: &[&str]) {
    assert_eq!(message.lines().count(), 1, "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

fn opt_config() -> Json {
    serde_json::json!({
        "model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    })
}

#[test]
fn architectures_that_are_not_known() {
    let (made, mut config) = Made::llama(32, 32, 1, 512);
    let dir = tokenizer("sentencepiece");
    config["model_type"] = "mamba".into();
    assert_says(
        &refusal(parts(&made, &config, &dir, "")),
        &["config.json", "\"mamba\"", "give a GGUF"],
    );
    config.as_object_mut().unwrap().remove("model_type");
    assert_says(&refusal(parts(&made, &config, &dir, "")), &["(none)"]);
}

#[test]
fn configurations_that_llama_cpp_does_not_compute() {
    let (made, llama) = Made::llama(32, 32, 1, 512);
    let t5 =
        serde_json::json!({"model_type": "t5", "num_layers": 2, "feed_forward_proj": "gated-gelu"});
    let dir = tokenizer("sentencepiece");
    for (base, field, value, words) in [
        (
            &llama,
            "hidden_size",
            Json::from(0),
            ["hidden_size is 0", ""],
        ),
        (
            &llama,
            "num_attention_heads",
            0.into(),
            ["num_attention_heads is 0", ""],
        ),
        (
            &llama,
            "num_key_value_heads",
            3.into(),
            ["no multiple", "3"],
        ),
        (
            &llama,
            "attention_bias",
            true.into(),
            ["attention_bias", "GGUF"],
        ),
        (&llama, "hidden_size", "big".into(), ["config.json", "big"]),
        (
            &llama,
            "rope_scaling",
            serde_json::json!({"rope_type": "yarn", "factor": 2.0}),
            ["yarn", "GGUF"],
        ),
        (
            &opt_config(),
            "do_layer_norm_before",
            false.into(),
            ["opt-350m", "false"],
        ),
        (
            &opt_config(),
            "word_embed_proj_dim",
            16.into(),
            ["opt-350m", "16"],
        ),
        (
            &opt_config(),
            "activation_function",
            "gelu".into(),
            ["gelu", "relu"],
        ),
        (&t5, "num_decoder_layers", 3.into(), ["3", "2"]),
        (
            &t5,
            "feed_forward_proj",
            "gated-silu".into(),
            ["gated-silu", "gated-gelu"],
        ),
    ] {
        let mut config = base.clone();
        config[field] = value;
        assert_says(&refusal(parts(&made, &config, &dir, "")), &words);
    }
}

#[test]
fn tensors_that_do_not_fit() {
    let dir = tokenizer("sentencepiece");
    let (made, config) = Made::llama(32, 32, 1, 512);
    let mut missing = made.clone();
    missing
        .tensors
        .remove("model.layers.0.self_attn.k_proj.weight");
    assert_says(
        &refusal(parts(&missing, &config, &dir, "")),
        &["made.safetensors", "model.layers.0.self_attn.k_proj.weight"],
    );
    let mut no_head = made.clone();
    no_head.tensors.remove("lm_head.weight");
    assert_says(
        &refusal(parts(&no_head, &config, &dir, "")),
        &["lm_head.weight"],
    );
    let mut wrong = made.clone();
    wrong.add("model.layers.0.mlp.up_proj.weight", &[48, 32]);
    assert_says(
        &refusal(parts(&wrong, &config, &dir, "")),
        &["mlp.up_proj", "[48, 32]", "[32, 32]", "different models"],
    );
    assert_says(
        &refusal(parts(&made, &config, &dir, "language_model.")),
        &["language_model.model.embed_tokens.weight"],
    );
}

#[test]
fn tokenizers_that_do_not_fit() {
    let (made, config) = Made::llama(32, 32, 1, 64);
    let dir = tokenizer("sentencepiece");
    assert_says(
        &refusal(parts(&made, &config, &dir, "")),
        &[
            "tokenizer.model",
            "500 tokens",
            "64 rows",
            "another model's",
        ],
    );
    let (made, config) = Made::llama(32, 32, 1, 5000);
    assert_says(
        &refusal(parts(&made, &config, &dir, "")),
        &["5000 rows", "another model's"],
    );
    let empty = tempfile::tempdir().unwrap();
    assert_says(
        &refusal(parts(&made, &config, empty.path(), "")),
        &["no tokenizer here", "fetch"],
    );
}

#[test]
fn damaged_tokenizers() {
    let (made, config) = Made::llama(32, 32, 1, 512);
    let source = tokenizer("sentencepiece");
    let dir = tempfile::tempdir().unwrap();
    let model = std::fs::read(source.join("tokenizer.model")).unwrap();
    std::fs::write(
        dir.path().join("tokenizer.model"),
        &model[..model.len() / 2],
    )
    .unwrap();
    assert_says(
        &refusal(parts(&made, &config, dir.path(), "")),
        &["tokenizer.model", "truncated", "fetch it again"],
    );
    std::fs::remove_file(dir.path().join("tokenizer.model")).unwrap();
    let path = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(source.join("tokenizer.json")).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    assert_says(
        &refusal(parts(&made, &config, dir.path(), "")),
        &["tokenizer.json"],
    );

    let mut json: Json = serde_json::from_str(&text).unwrap();
    json["model"]["merges"].as_array_mut().unwrap().truncate(50);
    std::fs::write(&path, json.to_string()).unwrap();
    // Fewer merges than pieces: some pieces would not be found by it, but by llama.cpp.
    assert_says(
        &refusal(parts(&made, &config, dir.path(), "")),
        &["tokenizer.json", "tokenizer.model"],
    );

    let mut json: Json = serde_json::from_str(&text).unwrap();
    json["added_tokens"][0]["id"] = 7.into();
    std::fs::write(&path, json.to_string()).unwrap();
    assert_says(
        &refusal(parts(&made, &config, dir.path(), "")),
        &["token 7 is both"],
    );

    let mut json: Json = serde_json::from_str(&text).unwrap();
    json["added_tokens"][3]["content"] = "</s>".into();
    std::fs::write(&path, json.to_string()).unwrap();
    assert_says(
        &refusal(parts(&made, &config, dir.path(), "")),
        &["two tokens", "</s>"],
    );

    let mut json: Json = serde_json::from_str(&text).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    vocab.insert("huge".into(), u64::MAX.into());
    std::fs::write(&path, json.to_string()).unwrap();
    assert_says(&refusal(parts(&made, &config, dir.path(), "")), &["has id"]);
}

#[test]
fn weights_that_no_type_holds() {
    let dir = tokenizer("sentencepiece");
    let (mut made, config) = Made::llama(32, 32, 1, 512);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("llm.gguf");
    let name = "model.layers.0.mlp.up_proj.weight";
    let convert = |made: &Made, quant| {
        LlmConversion::new(parts(made, &config, &dir, ""), quant)
            .unwrap()
            .write(&path, &|_| ())
    };
    made.tensors.get_mut(name).unwrap().1[5] = 1e5;
    convert(&made, LlmQuant::F32).unwrap();
    convert(&made, LlmQuant::Bf16).unwrap();
    std::fs::remove_file(&path).unwrap();
    for quant in [LlmQuant::F16, LlmQuant::Q8_0] {
        let error = convert(&made, quant).unwrap_err().to_string();
        assert_says(&error, &[name, "100000", "BF16"]);
    }
    made.tensors.get_mut(name).unwrap().1[5] = f32::NAN;
    let error = convert(&made, LlmQuant::F32).unwrap_err().to_string();
    assert_says(&error, &[name, "NaN", "damaged"]);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn a_conversion_that_stops_leaves_nothing() {
    let dir = tokenizer("sentencepiece");
    let (mut made, config) = Made::llama(32, 32, 2, 512);
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("llm.gguf");
    let total = LlmConversion::new(parts(&made, &config, &dir, ""), LlmQuant::F32)
        .unwrap()
        .source_bytes() as usize;
    let already = made.bytes_read.take();
    for part in 1..6 {
        made.fails_after = Some(already + total * part / 6);
        made.bytes_read.set(0);
        let conversion =
            LlmConversion::new(parts(&made, &config, &dir, ""), LlmQuant::F32).unwrap();
        let error = conversion
            .write(&path, &|_| assert!(!path.exists()))
            .unwrap_err();
        assert_says(&error.to_string(), &["made.safetensors"]);
        assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
    }
}
