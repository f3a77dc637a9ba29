//! The Q-Former that reads an instruction beside the picture, against
//! transformers (`tests/golden/make_instructblip.py`).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use qbridge_tests::golden;
use qbridge_tests::golden_model::{GoldenModel, max_difference, project, write};
use qformer::checkpoint::Checkpoint;
use qformer::config::QFormerConfig;
use qformer::{Encoder, Error, WordPiece};

/// What the project promises of every stage, in f32 on a CPU.
const TOLERANCE: f32 = 1e-4;

fn tokenizer_dir() -> PathBuf {
    golden("instructblip/checkpoint/qformer_tokenizer")
}

/// Sizes that the golden tokenizer fits.
fn config() -> QFormerConfig {
    QFormerConfig {
        vocab_size: 427,
        ..QFormerConfig::default()
    }
}

fn tokenizer() -> WordPiece {
    WordPiece::open_dir(&tokenizer_dir(), &config()).unwrap()
}

fn read(name: &str) -> GoldenModel {
    GoldenModel::read(&golden("instructblip"), name)
}

/// The instructions of a model, and their ids as the reference has them.
fn instructions(golden: &GoldenModel, name: &str) -> Vec<(String, Vec<u32>)> {
    let path = qbridge_tests::golden(&format!("instructblip/{name}/instructions.json"));
    let texts: Vec<String> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let numbers = |name| -> Vec<u32> {
        let numbers = golden.numbers(name, |bytes| u32::from_le_bytes(bytes).into());
        numbers.into_iter().map(|n| n as u32).collect()
    };
    let (ids, lengths) = (numbers("texts"), numbers("lengths"));
    let rows = ids.chunks_exact(ids.len() / texts.len());
    let ids = rows.zip(lengths).map(|(row, n)| row[..n as usize].to_vec());
    texts.into_iter().zip(ids).collect()
}

fn queries(encoder: &Encoder, vision: &Tensor, texts: &[Vec<u32>]) -> Tensor {
    let queries = encoder
        .qformer()
        .unwrap()
        .forward_with_texts(vision, texts)
        .unwrap();
    queries.to_dtype(DType::F32).unwrap()
}

/// Vision, queries and soft prompt, together and one by one.
fn equals_transformers(name: &str) {
    let golden = read(name);
    let dir = golden.checkpoint_dir();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let encoder = golden.load(&checkpoint, DType::F32).unwrap();
    assert!(encoder.qformer().unwrap().reads_text());
    let pixels = golden.pixels();
    let vision = encoder.vision().forward(&pixels).unwrap();
    let texts: Vec<Vec<u32>> = instructions(&golden, name)
        .into_iter()
        .map(|(_, ids)| ids)
        .collect();
    let compare = |stage: &str, found: &Tensor, expected: &Tensor| {
        let difference = max_difference(found, expected);
        println!("{name} {stage}: {difference:.1e}");
        assert!(difference < TOLERANCE, "{name} {stage}: {difference}");
    };
    let found = golden.rows(&vision, "rows_vision");
    compare("vision", &found, &golden.output("vision"));
    let expected = golden.output("queries");
    let expected_soft_prompt = golden.output("soft_prompt");
    let together = queries(&encoder, &vision, &texts);
    compare(
        "queries",
        &golden.rows(&together, "rows_queries"),
        &expected,
    );
    let soft_prompt = project(&checkpoint, &together, golden.n_embd);
    let soft_prompt = golden.rows(&soft_prompt, "rows_queries");
    compare("soft prompt", &soft_prompt, &expected_soft_prompt);
    for (i, text) in texts.iter().enumerate() {
        let entry = |x: &Tensor| x.narrow(0, i, 1).unwrap();
        let vision = encoder.vision().forward(&entry(&pixels)).unwrap();
        let alone = queries(&encoder, &vision, std::slice::from_ref(text));
        let alone = golden.rows(&alone, "rows_queries");
        compare(&format!("queries of {i} alone"), &alone, &entry(&expected));
    }
}

#[test]
fn a_shallow_model_equals_transformers() {
    equals_transformers("shallow");
}

#[test]
fn a_deep_model_with_long_and_cut_instructions_equals_transformers() {
    equals_transformers("deep");
}

#[test]
fn a_model_of_one_query_equals_transformers() {
    equals_transformers("one_query");
}

#[test]
fn three_layers_of_full_width_equal_transformers() {
    equals_transformers("full_width");
}

#[test]
fn instructions_become_the_references_ids() {
    let tokenizer = tokenizer();
    for name in ["shallow", "deep", "one_query", "full_width"] {
        for (text, ids) in instructions(&read(name), name) {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text}");
        }
    }
}

/// The golden outputs would be no proof if a part could be left out without
/// their telling.
#[test]
fn golden_outputs_tell_when_any_part_is_wrong() {
    let golden = read("shallow");
    let texts: Vec<Vec<u32>> = instructions(&golden, "shallow")
        .into_iter()
        .map(|(_, ids)| ids)
        .collect();
    let expected = golden.output("soft_prompt");
    let difference = |checkpoint: &Checkpoint, golden: &GoldenModel, texts: &[Vec<u32>]| {
        let encoder = golden.load(checkpoint, DType::F32).unwrap();
        let vision = encoder.vision().forward(&golden.pixels()).unwrap();
        let queries = queries(&encoder, &vision, texts);
        max_difference(&project(checkpoint, &queries, golden.n_embd), &expected)
    };
    let dir = golden.checkpoint_dir();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert!(difference(&checkpoint, &golden, &texts) < TOLERANCE);
    let names: Vec<&str> = checkpoint.names().collect();
    assert_eq!(names.len(), 133);
    for name in names {
        // A bias of the keys shifts all scores of a query alike, and the last
        // layer's text is read by nobody.
        let unseen = name.ends_with("key.bias")
            || name.starts_with("qformer.encoder.layer.2.intermediate.")
            || name.starts_with("qformer.encoder.layer.2.output.");
        let mut weights = golden.weights();
        weights.get_mut(name).unwrap().bytes.fill(0);
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("model.safetensors"), weights);
        let difference = difference(&Checkpoint::open(dir.path()).unwrap(), &golden, &texts);
        assert!(
            unseen || difference > 10.0 * TOLERANCE,
            "without {name}: {difference}"
        );
    }
    // Other words, other order, other lengths.
    let edits: [fn(&mut Vec<Vec<u32>>); 4] = [
        |texts| texts[0][3] += 1,
        |texts| texts[0].swap(2, 4),
        |texts| texts[1].truncate(1),
        |texts| texts[2].push(3),
    ];
    for (i, edit) in edits.into_iter().enumerate() {
        let mut edited = texts.clone();
        edit(&mut edited);
        let difference = difference(&checkpoint, &golden, &edited);
        assert!(difference > 10.0 * TOLERANCE, "edit {i}: {difference}");
    }
}

#[test]
fn texts_that_cannot_be_read_are_refused() {
    let golden = read("shallow");
    let dir = golden.checkpoint_dir();
    let encoder = golden
        .load(&Checkpoint::open(dir.path()).unwrap(), DType::F32)
        .unwrap();
    let vision = encoder.vision().forward(&golden.pixels()).unwrap();
    let read = |texts: &[Vec<u32>]| {
        encoder
            .qformer()
            .unwrap()
            .forward_with_texts(&vision, texts)
    };
    let none = vec![Vec::new(); 3];
    let without = encoder.qformer().unwrap().forward(&vision).unwrap();
    assert_eq!(max_difference(&read(&none).unwrap(), &without), 0.0);
    let too_long = vec![vec![1; 203], vec![1], vec![1]];
    let unknown = vec![vec![1], vec![427], vec![1]];
    for (texts, expected) in [
        (too_long, "203 tokens, and the Q-Former has 202 positions"),
        (
            unknown,
            "token 427, and the Q-Former has 427 word embeddings",
        ),
        (vec![vec![1]], "1 texts for 3 pictures"),
    ] {
        let error = read(&texts).unwrap_err();
        assert!(matches!(error, Error::Text { .. }));
        assert!(error.to_string().contains(expected), "{error}");
    }

    let blip2 = GoldenModel::read(&qbridge_tests::golden("vision"), "shallow");
    let dir = blip2.checkpoint_dir();
    let encoder = blip2
        .load(&Checkpoint::open(dir.path()).unwrap(), DType::F32)
        .unwrap();
    let error = encoder
        .qformer()
        .unwrap()
        .forward_with_texts(&vision, &none);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("reads no text"), "{error}");
}

#[test]
fn a_checkpoint_without_word_embeddings_is_named() {
    let golden = read("shallow");
    let mut weights = golden.weights();
    let name = "qformer.embeddings.word_embeddings.weight";
    weights.remove(name);
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("model.safetensors"), weights);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = golden.load(&checkpoint, DType::F32).unwrap_err();
    assert!(matches!(error, Error::MissingTensor { tensor, .. } if tensor == name));
}

#[test]
fn a_thousand_strings_become_the_references_ids() {
    let text = std::fs::read_to_string(golden("instructblip/wordpiece.json")).unwrap();
    let strings: Vec<(String, Vec<u32>)> = serde_json::from_str(&text).unwrap();
    assert_eq!(strings.len(), 1000);
    let dir = tempfile::tempdir().unwrap();
    // The same tokenizer from its vocabulary alone, and through a bundle's file.
    let vocabulary_dir = dir.path().join("vocabulary");
    std::fs::create_dir(&vocabulary_dir).unwrap();
    std::fs::write(vocabulary_dir.join("vocab.txt"), vocabulary()).unwrap();
    let settings = r#"{"model_max_length": 202, "truncation_side": "left"}"#;
    std::fs::write(vocabulary_dir.join("tokenizer_config.json"), settings).unwrap();
    let from_vocabulary = WordPiece::open_dir(&vocabulary_dir, &config()).unwrap();
    let saved = dir.path().join("saved.json");
    tokenizer().save(&saved).unwrap();
    let reopened = WordPiece::open(&saved, &config()).unwrap();
    for tokenizer in [tokenizer(), from_vocabulary, reopened] {
        assert_eq!(tokenizer.vocab_size(), 427);
        for (text, ids) in &strings {
            assert_eq!(tokenizer.encode(text).unwrap(), *ids, "{text:?}");
        }
    }
}

/// The golden tokenizer's `vocab.txt`, `[DEC]` left out as in BERT's.
fn vocabulary() -> String {
    let json = std::fs::read(tokenizer_dir().join("tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, &str)> = vocabulary
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap(), token.as_str()))
        .collect();
    tokens.sort_unstable();
    let lines = tokens.iter().enumerate().map(|(line, (id, token))| {
        assert_eq!(*id, line as u64);
        format!("{token}\n")
    });
    lines.collect()
}

#[test]
fn long_texts_are_cut_where_the_tokenizer_says() {
    let text = "what is the colour of it ".repeat(60);
    let whole = tokenizer().encode(&text).unwrap();
    assert_eq!(whole.len(), 202);
    // The Q-Former's positions are a limit too.
    let short = QFormerConfig {
        max_position_embeddings: 40,
        ..config()
    };
    let cut = WordPiece::open_dir(&tokenizer_dir(), &short).unwrap();
    let cut = cut.encode(&text).unwrap();
    assert_eq!((cut.len(), cut[0]), (40, whole[0]));
    assert_eq!(cut[1..], whole[whole.len() - 39..]);
    // On the right where the file says so.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocab.txt"), vocabulary()).unwrap();
    let open = |settings: &str| {
        std::fs::write(dir.path().join("tokenizer_config.json"), settings).unwrap();
        let tokenizer = WordPiece::open_dir(dir.path(), &config()).unwrap();
        tokenizer.encode("what is the colour of it").unwrap()
    };
    let all = open(r#"{"model_max_length": 1e30}"#);
    let left = open(r#"{"model_max_length": 5, "truncation_side": "left"}"#);
    let right = open(r#"{"model_max_length": 5}"#);
    assert_eq!(left[1..4], all[all.len() - 4..all.len() - 1]);
    assert_eq!(right[1..4], all[1..4]);
    let cased = open(r#"{"do_lower_case": false}"#);
    assert_eq!(cased, all);
}

#[test]
fn tokenizers_that_do_not_fit_are_refused() {
    let error = |dir: &Path, config: &QFormerConfig| {
        let error = WordPiece::open_dir(dir, config).unwrap_err();
        error.to_string()
    };
    let fewer = QFormerConfig {
        vocab_size: 426,
        ..config()
    };
    let message = error(&tokenizer_dir(), &fewer);
    for part in ["tokenizer.json", "427 tokens", "426 word embeddings"] {
        assert!(message.contains(part), "{message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let message = error(dir.path(), &config());
    assert!(
        message.contains("neither tokenizer.json nor vocab.txt"),
        "{message}"
    );
    let write = |text: &str| std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
    let bpe = golden("instructblip/checkpoint/tokenizer.json");
    for (text, expected) in [
        ("", "EOF"),
        ("{}", "tokenizer.json"),
        (&std::fs::read_to_string(bpe).unwrap(), "lacks [SEP]"),
    ] {
        write(text);
        let message = error(dir.path(), &config());
        assert!(message.contains(expected), "{message}");
    }
    let whole = std::fs::read_to_string(tokenizer_dir().join("tokenizer.json")).unwrap();
    write(&whole);
    let settings = r#"{"model_max_length": 2}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), settings).unwrap();
    let message = error(dir.path(), &config());
    assert!(message.contains("no room beside [CLS]"), "{message}");
    std::fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    assert!(error(dir.path(), &config()).contains("tokenizer_config.json"));

    // A bundle's file says where texts are cut; this one does not.
    let error = WordPiece::open(&tokenizer_dir().join("tokenizer.json"), &config());
    let message = error.unwrap_err().to_string();
    assert!(message.contains("where texts are cut"), "{message}");
}
