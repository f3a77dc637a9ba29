//! Token ids of 1,000 texts against the tokenizers of transformers.

use super::*;

fn load(tokenizer_dir: &Path, rows: usize) -> Arc<LanguageModel> {
    let (made, config) = Made::llama(32, 32, 1, rows);
    Converted::new(parts(&made, &config, tokenizer_dir, ""), LlmQuant::F32).load()
}

/// Tokens of a `tokenizer.json`, and then some.
fn rows(name: &str) -> usize {
    let json = json(&tokenizer(name).join("tokenizer.json"));
    let vocab = &json["model"]["vocab"];
    let n = vocab
        .as_object()
        .map_or_else(|| vocab.as_array().unwrap().len(), |vocab| vocab.len());
    n + json["added_tokens"].as_array().unwrap().len() + 8
}

/// A copy of a tokenizer without some of its files.
fn without(name: &str, files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tokenizer(name)).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap();
        if !files.iter().any(|without| *without == file) {
            std::fs::copy(&path, dir.path().join(file)).unwrap();
        }
    }
    dir
}

fn texts() -> Vec<String> {
    serde_json::from_value(json(&golden("convert_llm/strings.json"))).unwrap()
}

/// Checks all texts, special tokens read as text and read as tokens.
fn check(name: &str, dir: &Path) {
    let model = load(dir, rows(name));
    let golden = json(&tokenizer(name).join("ids.json"));
    let texts = texts();
    assert_eq!(texts.len(), 1000);
    let mut different = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let plain = ids(&golden["plain"][i]);
        let special = golden["special"]
            .get(i.to_string())
            .map_or(plain.clone(), ids);
        for (parse_special, expected) in [(false, plain), (true, special)] {
            let found = model.tokenize(text, parse_special).unwrap();
            if found != expected {
                different.push(format!(
                    "{text:?} {parse_special}: {found:?}, not {expected:?}"
                ));
            }
        }
    }
    assert!(
        different.is_empty(),
        "{}:\n{}",
        different.len(),
        different.join("\n")
    );
}

#[test]
fn sentencepiece_bpe() {
    check("sentencepiece", &tokenizer("sentencepiece"));
}

#[test]
fn sentencepiece_bpe_from_tokenizer_json() {
    check(
        "sentencepiece",
        without("sentencepiece", &["tokenizer.model"]).path(),
    );
}

#[test]
fn byte_level_bpe() {
    check("byte_level", &tokenizer("byte_level"));
}

#[test]
fn byte_level_bpe_from_vocab_and_merges() {
    let dir = without("byte_level", &["tokenizer.json"]);
    let complete = json(&tokenizer("byte_level").join("tokenizer.json"));
    let added = complete["added_tokens"].as_array().unwrap();
    let image = added.iter().find(|token| token["content"] == "<image>");
    let write = |file: &str, json: Json| {
        std::fs::write(dir.path().join(file), json.to_string()).unwrap();
    };
    write(
        "added_tokens.json",
        serde_json::json!({"<image>": image.unwrap()["id"]}),
    );
    write(
        "special_tokens_map.json",
        serde_json::json!({"additional_special_tokens": ["<image>"]}),
    );
    check("byte_level", dir.path());
}

#[test]
fn unigram() {
    check("unigram", &tokenizer("unigram"));
}

#[test]
fn unigram_from_tokenizer_json() {
    check("unigram", without("unigram", &["spiece.model"]).path());
}
