//! The heads of BLIP-2's first stage against transformers and LAVIS's formulas
//! (`tests/golden/make_stage1.py`), and the bundles that hold them.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use bridge::bundle::Bundle;
use bridge::convert::{Conversion, ConvertOptions};
use bridge::matcher::Matcher;
use candle_core::{DType, Device, Tensor};
use qbridge_tests::golden;
use qbridge_tests::golden_model::{GoldenModel, max_difference, tensor_shapes, values};
use qformer::checkpoint::{Checkpoint, Compute, Products, WeightType};
use qformer::config::{Blip2Config, HeadsConfig};
use qformer::image::{ImageLimits, decode};
use qformer::preprocess::Preprocessing;
use qformer::stage1::{CaptionOptions, Stage1, Stage1Config, contrastive};
use qformer::{Mask, WordPiece};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What the project promises of every stage, in f32 on a CPU.
const TOLERANCE: f32 = 1e-4;

fn stage1(name: &str) -> PathBuf {
    golden(&format!("stage1/{name}"))
}

fn golden_json() -> Value {
    serde_json::from_slice(&std::fs::read(stage1("golden.json")).unwrap()).unwrap()
}

/// The texts of the pairs with the reference's ids.
fn texts(golden: &Value) -> Vec<(&str, Vec<u32>)> {
    let texts = golden["texts"].as_object().unwrap().iter();
    texts
        .map(|(text, ids)| (text.as_str(), numbers(ids)))
        .collect()
}

fn numbers(list: &Value) -> Vec<u32> {
    serde_json::from_value(list.clone()).unwrap()
}

fn options() -> ConvertOptions {
    ConvertOptions {
        vision: Some(WeightType::F32),
        ..ConvertOptions::default()
    }
}

/// A bundle of LAVIS's files.
fn lavis_options() -> ConvertOptions {
    let tokenizer = golden("instructblip/checkpoint/qformer_tokenizer");
    ConvertOptions {
        qformer_tokenizer: Some(tokenizer),
        ..options()
    }
}

fn lavis_files(name: &str) -> [PathBuf; 2] {
    let tower = match name {
        "vitL" => "lavis/clip_vit_L.pth",
        _ => "lavis/eva_vit_g.pth",
    };
    [stage1(&format!("{name}.pth")), golden(tower)]
}

/// A bundle in a directory of its own.
struct Converted {
    dir: TempDir,
}

impl Converted {
    fn of(sources: &[PathBuf], options: ConvertOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("bundle");
        let conversion = Conversion::plan(sources, None, &out, options).unwrap();
        conversion.run(&|_| ()).unwrap();
        Self { dir }
    }

    fn checkpoint() -> Self {
        Self::of(&[stage1("checkpoint")], options())
    }

    fn lavis(name: &str) -> Self {
        Self::of(&lavis_files(name), lavis_options())
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn matcher(&self) -> Matcher {
        Matcher::open(&self.path(), Products::F32, &Device::Cpu).unwrap()
    }
}

fn reference(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(stage1(&format!("{name}.safetensors")), &Device::Cpu).unwrap()
}

#[track_caller]
fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    let difference = max_difference(found, expected);
    println!("{what}: {difference:.1e}");
    assert!(difference < TOLERANCE, "{what}: {difference}");
}

/// Features and scores of picture i and text i, all at once and pair by pair.
fn equals_transformers(name: &str, model: &Stage1, vision: &Tensor, texts: &[&str]) {
    let expected = reference(name);
    let compare = |stage: &str, found: &Tensor, expected: &Tensor| {
        assert_close(&format!("{name} {stage}"), found, expected);
    };
    let image_features = model.image_features(vision).unwrap();
    let text_features = model.text_features(texts).unwrap();
    let similarities = contrastive(&image_features, &text_features).unwrap();
    compare(
        "image features",
        &image_features,
        &expected["image_features"],
    );
    compare("text features", &text_features, &expected["text_features"]);
    compare("contrastive", &similarities, &expected["contrastive"]);
    let multimodal = model.multimodal_features(vision, texts).unwrap();
    compare("multimodal", &multimodal, &expected["multimodal"]);
    let logits = model.match_logits(vision, texts).unwrap();
    compare("match logits", &logits, &expected["match_logits"]);
    let second = probabilities(&expected["match_logits"]);
    let found = model.match_probability(vision, texts).unwrap();
    for (found, expected) in found.iter().zip(&second) {
        assert!((found - expected).abs() < TOLERANCE, "{found} {expected}");
    }
    for (i, text) in texts.iter().enumerate() {
        let entry = |x: &Tensor| x.narrow(0, i, 1).unwrap();
        let alone = model.match_logits(&entry(vision), &[text]).unwrap();
        compare(
            "match logits alone",
            &alone,
            &entry(&expected["match_logits"]),
        );
        let alone = model.text_features(&[text]).unwrap();
        compare(
            "text features alone",
            &alone,
            &entry(&expected["text_features"]),
        );
        let tokens = model.token_features(text).unwrap();
        compare("[CLS]", &tokens.narrow(0, 0, 1).unwrap(), &alone);
    }
}

/// The second of two probabilities, from logits `[batch, 2]`.
fn probabilities(logits: &Tensor) -> Vec<f32> {
    let logits = logits.to_vec2::<f32>().unwrap();
    let second = |row: Vec<f32>| row[1].exp() / (row[0].exp() + row[1].exp());
    logits.into_iter().map(second).collect()
}

#[test]
fn a_checkpoint_of_transformers_equals_it() {
    let golden = golden_json();
    let bundle = Converted::checkpoint();
    let matcher = bundle.matcher();
    let pictures = golden["pictures"].as_array().unwrap().iter();
    let vision: Vec<Tensor> = pictures
        .flat_map(|name| {
            let path = format!("llm/pictures/{}.png", name.as_str().unwrap());
            let file = std::fs::read(qbridge_tests::golden(&path)).unwrap();
            vec![matcher.vision(&file).unwrap(); 4]
        })
        .collect();
    let vision = Tensor::cat(&vision, 0).unwrap();
    let texts = texts(&golden);
    for (text, ids) in &texts {
        assert_eq!(
            matcher
                .heads()
                .as_stage1()
                .unwrap()
                .tokenizer()
                .encode(text)
                .unwrap(),
            *ids
        );
    }
    let texts: Vec<&str> = texts.iter().map(|(text, _)| *text).collect();
    equals_transformers(
        "checkpoint",
        matcher.heads().as_stage1().unwrap(),
        &vision,
        &texts,
    );

    // One picture and many texts share the picture's part.
    let expected = reference("checkpoint");
    let first = vision.narrow(0, 0, 1).unwrap();
    let matches = matcher.match_texts(&first, &texts).unwrap();
    let similarities = expected["contrastive"].to_vec2::<f32>().unwrap();
    let second = probabilities(&expected["match_logits"]);
    for (i, found) in matches.iter().enumerate() {
        assert!((found.similarity - similarities[0][i]).abs() < TOLERANCE);
        if i < 4 {
            assert!((found.probability - second[i]).abs() < TOLERANCE);
        }
    }
    assert!(!matcher.heads().as_stage1().unwrap().writes_captions());
    let error = matcher
        .heads()
        .as_stage1()
        .unwrap()
        .caption(&first, &CaptionOptions::default());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("no head that writes captions"), "{error}");
}

/// ViT output of the golden pixels that captions are kept of.
fn lavis_vision(model: &Stage1, golden: &Value, n: usize) -> Tensor {
    let pixels: Vec<f32> = numbers(&golden["pixels"])[..n]
        .iter()
        .flat_map(|i| values(&format!("pixels.{i}"), &[3, 16, 16]))
        .collect();
    // `values` knows `pixels` alone to be twice as large.
    let pixels = Tensor::from_vec(pixels, (n, 3, 16, 16), &Device::Cpu).unwrap();
    model.vision(&pixels).unwrap()
}

#[test]
fn lavis_s_files_equal_transformers() {
    let golden = golden_json();
    let texts = texts(&golden);
    for (name, n) in [("lavis", 20), ("vitL", 4)] {
        let matcher = Converted::lavis(name).matcher();
        let model = matcher.heads().as_stage1().unwrap();
        let texts: Vec<&str> = texts[..n].iter().map(|(text, _)| *text).collect();
        let vision = lavis_vision(model, &golden, n);
        equals_transformers(name, model, &vision, &texts);

        let found = model.caption_logprob(&vision, &texts).unwrap();
        let expected = reference(name)["caption_logprobs"]
            .to_vec1::<f32>()
            .unwrap();
        for ((found, n_tokens), expected) in found.into_iter().zip(expected) {
            let difference = (found - expected).abs() / n_tokens as f32;
            assert!(difference < TOLERANCE, "{found} {expected} of {n_tokens}");
        }
    }
}

fn caption_options(setting: &Value) -> CaptionOptions {
    let number = |name: &str| setting[name].as_u64().unwrap() as usize;
    CaptionOptions {
        max_tokens: number("max_tokens"),
        min_tokens: number("min_tokens"),
        num_beams: number("num_beams"),
        length_penalty: setting["length_penalty"].as_f64().unwrap() as f32,
    }
}

#[test]
fn captions_equal_transformers_token_for_token() {
    let golden = golden_json();
    let matcher = Converted::lavis("lavis").matcher();
    let model = matcher.heads().as_stage1().unwrap();
    let vision = lavis_vision(model, &golden, 20);
    let settings = golden["settings"].as_array().unwrap();
    assert_eq!(caption_options(&settings[0]), CaptionOptions::default());
    assert_eq!(matcher.default_caption(), CaptionOptions::default());
    let captions = golden["captions"].as_array().unwrap();
    for (i, (setting, expected)) in settings.iter().zip(captions).enumerate() {
        let scores = &golden["scores"][i];
        assert_eq!(scores.is_null(), setting["num_beams"] == 1);
        let options = caption_options(setting);
        let together = model.caption(&vision, &options).unwrap();
        assert_eq!(together.len(), 20);
        for (i, caption) in together.iter().enumerate() {
            let what = format!("{setting} {i}");
            assert_eq!(caption.ids, numbers(&expected[i]["ids"]), "{what}");
            // The reference's scores are sums with a length penalty.
            if let Some(score) = scores[i].as_f64() {
                let n_tokens = caption.ids.len() as f32;
                let sum = score as f32 * n_tokens.powf(options.length_penalty);
                let difference = (caption.mean_logprob - sum / n_tokens).abs();
                assert!(difference < TOLERANCE, "{what}: {difference}");
            }
            assert_eq!(
                caption.text,
                expected[i]["text"].as_str().unwrap(),
                "{what}"
            );
        }
        for (i, caption) in together.iter().enumerate().step_by(7) {
            let alone = model.caption(&vision.narrow(0, i, 1).unwrap(), &options);
            let alone = alone.unwrap();
            assert_eq!(alone[0].ids, caption.ids, "{setting} {i} alone");
        }
    }
}

/// Under the unimodal mask, queries and text are as if each were alone; under the causal one,
/// queries are, and a token is as if nothing came behind it.
#[test]
fn what_a_mask_hides_changes_nothing() {
    let golden = GoldenModel::read(&qbridge_tests::golden("instructblip"), "shallow");
    let dir = golden.checkpoint_dir();
    let encoder = golden
        .load(&Checkpoint::open(dir.path()).unwrap(), DType::F32)
        .unwrap();
    let qformer = encoder.qformer().unwrap();
    let vision = encoder.vision().forward(&golden.pixels()).unwrap();
    let texts: [&[u32]; 3] = [&[2, 40, 41, 3], &[2, 50, 3], &[2, 60, 61, 62, 63, 3]];
    let rows = |x: &Tensor, entry, start, n| {
        let entry = x.narrow(0, entry, 1).unwrap();
        entry.narrow(1, start, n).unwrap()
    };
    let n_queries = golden.config.num_query_tokens;
    let queries = qformer.forward(&vision).unwrap();
    let masked = |texts: &[&[u32]], mask| qformer.forward_masked(&vision, texts, mask).unwrap();
    let unimodal = masked(&texts, Mask::Unimodal);
    let causal = masked(&texts, Mask::MultimodalCausal);
    let cut = texts.map(|text| &text[..text.len() - 1]);
    let causal_of_cut = masked(&cut, Mask::MultimodalCausal);
    let alone = qformer.forward_text(&texts).unwrap();
    for (i, text) in texts.iter().enumerate() {
        let expected = rows(&queries, i, 0, n_queries);
        for (what, found) in [("unimodal", &unimodal), ("causal", &causal)] {
            assert_close(what, &rows(found, i, 0, n_queries), &expected);
        }
        let found = rows(&unimodal, i, n_queries, text.len());
        assert_close("text alone", &found, &rows(&alone, i, 0, text.len()));
        let n = text.len() - 1;
        let found = rows(&causal, i, n_queries, n);
        assert_close("text cut", &found, &rows(&causal_of_cut, i, n_queries, n));
    }
    // And what it shows does change something.
    let together = masked(&texts, Mask::Bidirectional);
    let queries_of = |x: &Tensor| rows(x, 0, 0, n_queries);
    assert!(max_difference(&queries_of(&together), &queries_of(&queries)) > 0.01);
    let text_of = |x: &Tensor| rows(x, 0, n_queries, 4);
    assert!(max_difference(&text_of(&causal), &text_of(&unimodal)) > 0.01);
}

/// Every tensor of the checkpoint is needed, and has its place.
#[test]
fn every_tensor_is_read() {
    let config = Blip2Config::read(&stage1("checkpoint")).unwrap();
    let names: Vec<String> = tensor_shapes(&config, 0).into_keys().collect();
    let checkpoint = Checkpoint::open(stage1("checkpoint")).unwrap();
    assert_eq!(names, checkpoint.names().collect::<Vec<_>>());
    let bundle = Converted::checkpoint();
    let opened = Bundle::open(&bundle.path()).unwrap();
    assert_eq!(names, opened.checkpoint().names().collect::<Vec<_>>());
    for name in &names {
        let dir = tempfile::tempdir().unwrap();
        copy(&stage1("checkpoint"), dir.path());
        let path = dir.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        tensors.remove(name).unwrap();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let out = dir.path().join("bundle");
        let sources = [dir.path().to_owned()];
        let error = Conversion::plan(&sources, None, &out, options())
            .and_then(|conversion| conversion.run(&|_| ()))
            .and_then(|bundle| Matcher::from_bundle(&bundle, Products::F32, &Device::Cpu));
        let error = error.err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains(name)), "{name}");
    }
}

/// The golden outputs would be no proof if a part could be left out without their telling.
#[test]
fn golden_outputs_tell_when_any_part_is_wrong() {
    let dir = stage1("checkpoint");
    let config = Blip2Config::read(&dir).unwrap();
    let heads = HeadsConfig {
        image_text_hidden_size: config.image_text_hidden_size,
        captions: false,
    };
    let tokenizer = WordPiece::open_stage1(&dir, &config.qformer_config).unwrap();
    let tensors = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu);
    let tensors = tensors.unwrap();
    let golden = golden_json();
    let texts: Vec<&str> = texts(&golden)[..4].iter().map(|(text, _)| *text).collect();
    let file = std::fs::read(qbridge_tests::golden("llm/pictures/ramp.png")).unwrap();
    let picture = decode(&file, &ImageLimits::default()).unwrap();
    let pixels = Preprocessing::clip(28).pixels(&picture);
    let pixels = Tensor::from_vec(pixels, (1, 3, 28, 28), &Device::Cpu).unwrap();
    let expected = reference("checkpoint");
    let expected = |name: &str| expected[name].narrow(0, 0, 4).unwrap();
    let difference = |tensors: &HashMap<String, Tensor>| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        candle_core::safetensors::save(tensors, &path).unwrap();
        let checkpoint = Checkpoint::from_files(&[path]).unwrap();
        let sizes = Stage1Config {
            vision: &config.vision_config,
            qformer: &config.qformer_config,
            heads: &heads,
            num_query_tokens: config.num_query_tokens,
        };
        let compute = Compute::on(&Device::Cpu);
        let model = Stage1::load(&checkpoint, sizes, tokenizer.clone(), &compute).unwrap();
        let vision = model.vision(&pixels).unwrap();
        let image = model.image_features(&vision).unwrap().repeat((4, 1, 1));
        let text = model.text_features(&texts).unwrap();
        let logits = model.match_logits(&vision, &texts).unwrap();
        max_difference(&image.unwrap(), &expected("image_features"))
            .max(max_difference(&text, &expected("text_features")))
            .max(max_difference(&logits, &expected("match_logits")))
    };
    assert!(difference(&tensors) < TOLERANCE);
    for (name, tensor) in &tensors {
        // A bias of the keys shifts all scores of a row alike.
        let unseen = name.ends_with("key.bias");
        let mut wrong = tensors.clone();
        wrong.insert(name.clone(), tensor.zeros_like().unwrap());
        let difference = difference(&wrong);
        assert!(
            unseen || difference > 10.0 * TOLERANCE,
            "without {name}: {difference}"
        );
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// `names.txt`: names and shapes of Salesforce/blip2-itm-vit-g.
fn published() -> BTreeMap<String, Vec<usize>> {
    let text = std::fs::read_to_string(stage1("names.txt")).unwrap();
    let tensor = |line: &str| {
        let (name, shape) = line.split_once(' ').unwrap();
        let shape = shape.split(' ').map(|size| size.parse().unwrap());
        (name.to_owned(), shape.collect())
    };
    text.lines().map(tensor).collect()
}

/// A checkpoint of full size that takes no room on disk: its tensors are a hole in the file.
fn full_size(dir: &Path, shapes: &BTreeMap<String, Vec<usize>>) {
    copy(&stage1("checkpoint"), dir);
    // The published config states what is not the class's default.
    let config = json!({
        "architectures": ["Blip2ForImageTextRetrieval"], "model_type": "blip-2",
        "image_text_hidden_size": 256, "image_token_index": 30523,
        "qformer_config": {"vocab_size": 30523, "use_qformer_text_input": true},
    });
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let preprocessing = json!({"size": {"height": 224, "width": 224}});
    std::fs::write(
        dir.join("preprocessor_config.json"),
        preprocessing.to_string(),
    )
    .unwrap();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let info = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name.clone(), info);
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

#[test]
fn the_published_names_and_shapes_are_those_that_are_read() {
    let published = published();
    let config = Blip2Config::from_json(
        r#"{"architectures": ["Blip2ForImageTextRetrieval"],
            "qformer_config": {"vocab_size": 30523}}"#,
    );
    assert_eq!(tensor_shapes(&config.unwrap(), 0), published);
    let dir = tempfile::tempdir().unwrap();
    full_size(dir.path(), &published);
    let sources = [dir.path().to_owned()];
    let plan = |options| Conversion::plan(&sources, None, &dir.path().join("bundle"), options);
    let options = ConvertOptions {
        vision: Some(WeightType::F16),
        ..ConvertOptions::default()
    };
    // Two bytes of each element are written, and read again for their hash.
    let elements: usize = published
        .values()
        .map(|shape| shape.iter().product::<usize>())
        .sum();
    assert_eq!(plan(options).unwrap().bytes(), 4 * elements as u64);
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_both_numbers() {
    for (name, shape, words) in [
        (
            "vision_projection.weight",
            vec![255, 768],
            ["[255, 768]", "[256, 768]"],
        ),
        ("itm_head.weight", vec![1, 768], ["[1, 768]", "[2, 768]"]),
        (
            "query_tokens",
            vec![1, 16, 768],
            ["[1, 16, 768]", "[1, 32, 768]"],
        ),
        (
            "embeddings.word_embeddings.weight",
            vec![30522, 768],
            ["[30522, 768]", "[30523, 768]"],
        ),
    ] {
        let mut shapes = published();
        shapes.insert(name.to_owned(), shape);
        let dir = tempfile::tempdir().unwrap();
        full_size(dir.path(), &shapes);
        let sources = [dir.path().to_owned()];
        let error = Conversion::plan(&sources, None, &dir.path().join("bundle"), options());
        let error = error.err().unwrap().to_string();
        for word in words.into_iter().chain([name]) {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    }
}
