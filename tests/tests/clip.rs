//! CLIP against transformers: `golden/make_clip.py` made both the models and what is expected of
//! them.

#![allow(clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use qbridge_tests::golden_model::{max_difference, one_layer, without};
use qbridge_tests::{golden, repository};
use qformer::checkpoint::{Checkpoint, Compute, Products};
use qformer::clip::{Clip, ClipConfig, ClipTokenizer};
use qformer::image::{ImageLimits, decode};
use qformer::preprocess::Preprocessing;
use serde_json::Value;

const MODELS: [&str; 2] = ["openai", "gelu"];
const TOLERANCE: f32 = 1e-4;

fn cpu() -> Compute {
    Compute::on(&Device::Cpu)
}

fn json() -> Value {
    let text = std::fs::read_to_string(golden("clip/golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn strings(json: &Value, key: &str) -> Vec<String> {
    serde_json::from_value(json[key].clone()).unwrap()
}

fn pictures(json: &Value) -> Vec<RgbImage> {
    let read = |path: String| std::fs::read(repository().join(path)).unwrap();
    let decoded = |path| decode(&read(path), &ImageLimits::default()).unwrap();
    strings(json, "pictures").into_iter().map(decoded).collect()
}

fn outputs(name: &str) -> BTreeMap<String, Tensor> {
    let path = golden(&format!("clip/{name}.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu)
        .unwrap()
        .into_iter()
        .collect()
}

fn open(name: &str, compute: &Compute) -> Clip {
    Clip::open(&golden(&format!("clip/{name}")), compute).unwrap()
}

#[test]
fn pictures_are_cropped_as_the_reference_does() {
    let json = json();
    let paths = strings(&json, "pictures");
    let expected = outputs("pixels");
    for name in MODELS {
        let dir = golden(&format!("clip/{name}"));
        let preprocessing = Preprocessing::read(&dir).unwrap().unwrap();
        let plain = Preprocessing {
            mean: [0.0; 3],
            std: [1.0; 3],
            rescale_factor: 1.0,
            ..preprocessing
        };
        for (i, picture) in pictures(&json).iter().enumerate() {
            let pixels = expected[name].get(i).unwrap().flatten_all().unwrap();
            let pixels = pixels.to_dtype(DType::F32).unwrap().to_vec1::<f32>();
            assert_eq!(
                plain.pixels(picture),
                pixels.unwrap(),
                "{} {name}",
                paths[i]
            );
        }
    }
}

#[test]
fn features_and_scores_equal_transformers() {
    let json = json();
    let pictures = pictures(&json);
    let texts = strings(&json, "texts");
    assert_eq!((pictures.len(), texts.len()), (20, 20));
    for name in MODELS {
        let clip = open(name, &cpu());
        let expected = outputs(name);
        let images = clip
            .image_features(&clip.pixels(&pictures).unwrap())
            .unwrap();
        let features = clip.text_features(&texts).unwrap();
        let logits = clip.contrastive(&images, &features).unwrap();
        let labels = strings(&json, "labels");
        let classes = clip
            .class_features(&labels, &strings(&json, "templates"))
            .unwrap();
        let probabilities = clip.classify(&images, &classes).unwrap();
        // Logits are cosines times the temperature's inverse, and so is their rounding.
        for (key, found, scale) in [
            ("image_features", &images, 1.0),
            ("text_features", &features, 1.0),
            (
                "logits",
                &(logits / f64::from(clip.logit_scale())).unwrap(),
                clip.logit_scale(),
            ),
            ("classes", &classes, 1.0),
            ("probabilities", &probabilities, 1.0),
        ] {
            let expected = (&expected[key] / f64::from(scale)).unwrap();
            let difference = max_difference(found, &expected);
            assert!(difference < TOLERANCE, "{name} {key}: {difference}");
        }
        // What is in a batch changes nothing.
        for (i, picture) in pictures.iter().enumerate().step_by(7) {
            let alone = clip.pixels(std::slice::from_ref(picture)).unwrap();
            let alone = clip.image_features(&alone).unwrap();
            assert!(max_difference(&alone, &images.narrow(0, i, 1).unwrap()) < 1e-5);
            let alone = clip.text_features(&texts[i..=i]).unwrap();
            assert!(max_difference(&alone, &features.narrow(0, i, 1).unwrap()) < 1e-5);
        }
    }
}

/// The golden outputs would be no proof if a part could be left out without their telling.
#[test]
fn golden_outputs_tell_when_any_part_is_wrong() {
    let json = json();
    let (pictures, texts) = (pictures(&json), strings(&json, "texts"));
    for name in MODELS {
        let expected = outputs(name);
        let source = golden(&format!("clip/{name}"));
        let whole = open(name, &cpu());
        let pixels = whole.pixels(&pictures[..4]).unwrap();
        for tensor in Checkpoint::open(&source).unwrap().names() {
            let checkpoint = without(&source, tensor);
            let clip = Clip::load(
                &checkpoint,
                whole.config().clone(),
                whole.preprocessing().clone(),
                whole.tokenizer().clone(),
                &cpu(),
            )
            .unwrap();
            let images = clip.image_features(&pixels).unwrap();
            let texts = clip.text_features(&texts[..10]).unwrap();
            // Features without a length are no numbers.
            let of = |found: &Tensor, key: &str, n| {
                let difference = max_difference(found, &expected[key].narrow(0, 0, n).unwrap());
                if difference.is_nan() { 1.0 } else { difference }
            };
            let difference = of(&images, "image_features", 4)
                .max(of(&texts, "text_features", 10))
                .max((clip.logit_scale() - whole.logit_scale()).abs());
            // A bias of the keys shifts all scores of a query alike.
            let unseen = tensor.ends_with("k_proj.bias");
            assert_eq!(
                difference > 5.0 * TOLERANCE,
                !unseen,
                "{name} without {tensor}: {difference}"
            );
        }
    }
}

#[test]
fn products_in_8_bits_stay_close() {
    let json = json();
    let compute = Compute {
        products: Products::Int8,
        ..cpu()
    };
    let clip = open("openai", &compute);
    let images = clip
        .image_features(&clip.pixels(&pictures(&json)).unwrap())
        .unwrap();
    let difference = max_difference(&images, &outputs("openai")["image_features"]);
    assert!(difference > 1e-5 && difference < 0.1, "{difference}");
}

#[test]
fn strings_become_the_references_ids() {
    let json = json();
    let strings: Vec<(String, Vec<u32>)> = serde_json::from_value(json["strings"].clone()).unwrap();
    assert_eq!(strings.len(), 300);
    let dir = golden("clip/openai");
    let config = ClipConfig::read(&dir).unwrap().text_config;
    let tokenizer = ClipTokenizer::open_dir(&dir, &config).unwrap();
    // The same from a vocabulary and its merges, and through a bundle's file.
    let temporary = tempfile::tempdir().unwrap();
    let json = std::fs::read(dir.join("tokenizer.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let merges: Vec<[String; 2]> = serde_json::from_value(json["model"]["merges"].clone()).unwrap();
    let merges: Vec<String> = merges.iter().map(|pair| pair.join(" ")).collect();
    let write =
        |name: &str, text: String| std::fs::write(temporary.path().join(name), text).unwrap();
    write("vocab.json", json["model"]["vocab"].to_string());
    write(
        "merges.txt",
        format!("#version: 0.2\n{}\n", merges.join("\n")),
    );
    let from_vocabulary = ClipTokenizer::open_dir(temporary.path(), &config).unwrap();
    let saved = temporary.path().join("saved.json");
    tokenizer.save(&saved).unwrap();
    let reopened = ClipTokenizer::open(&saved, &config).unwrap();
    for (tokenizer, how) in [
        (tokenizer, "tokenizer.json"),
        (from_vocabulary, "vocab.json"),
        (reopened, "saved.json"),
    ] {
        for (text, ids) in &strings {
            assert_eq!(tokenizer.encode(text).unwrap(), *ids, "{how} {text:?}");
        }
    }
}

/// The same weights under open_clip's names tell the same.
#[test]
fn open_clip_s_layout_is_read() {
    let json = json();
    let source = golden("clip/openai");
    let tensors = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu);
    let tensors: BTreeMap<String, Tensor> = tensors.unwrap().into_iter().collect();
    let mut renamed = std::collections::HashMap::new();
    for (name, tensor) in &tensors {
        let (joined, part) = match ["q", "k", "v"]
            .iter()
            .position(|part| name.contains(&format!("self_attn.{part}_proj")))
        {
            Some(part) => (
                name.replace(["q_proj", "k_proj", "v_proj"][part], "qkv"),
                Some(part),
            ),
            None => (name.clone(), None),
        };
        if part.is_some_and(|part| part > 0) {
            continue;
        }
        let tensor = match part {
            Some(_) => {
                let of = |part: &str| tensors[&name.replace("q_proj", part)].clone();
                Tensor::cat(&[of("q_proj"), of("k_proj"), of("v_proj")], 0).unwrap()
            }
            None if name.ends_with("_projection.weight") => {
                tensor.t().unwrap().contiguous().unwrap()
            }
            None => tensor.clone(),
        };
        let name = [
            ("visual_projection.weight", "visual.proj"),
            ("text_projection.weight", "text_projection"),
            (
                "vision_model.encoder.layers",
                "visual.transformer.resblocks",
            ),
            ("text_model.encoder.layers", "transformer.resblocks"),
            ("vision_model.embeddings.patch_embedding", "visual.conv1"),
            (
                "vision_model.embeddings.position_embedding.weight",
                "visual.positional_embedding",
            ),
            ("vision_model.embeddings", "visual"),
            ("vision_model.pre_layrnorm", "visual.ln_pre"),
            ("vision_model.post_layernorm", "visual.ln_post"),
            (
                "text_model.embeddings.position_embedding.weight",
                "positional_embedding",
            ),
            ("text_model.embeddings.token_embedding", "token_embedding"),
            ("text_model.final_layer_norm", "ln_final"),
            ("layer_norm", "ln_"),
            ("self_attn.qkv.", "attn.in_proj_"),
            ("self_attn", "attn"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ]
        .iter()
        .fold(joined, |name, (from, to)| name.replace(from, to));
        renamed.insert(name, tensor);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("open_clip_model.safetensors");
    candle_core::safetensors::save(&renamed, &path).unwrap();
    std::fs::copy(
        source.join("tokenizer.json"),
        dir.path().join("tokenizer.json"),
    )
    .unwrap();
    let vocab_size = tensors["text_model.embeddings.token_embedding.weight"]
        .dim(0)
        .unwrap();
    let config = serde_json::json!({"model_cfg": {
        "embed_dim": 24, "quick_gelu": true,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8, "mlp_ratio": 2.0},
        "text_cfg": {"context_length": 77, "vocab_size": vocab_size, "width": 32, "heads": 2, "layers": 3, "mlp_ratio": 2.0},
    }});
    std::fs::write(dir.path().join("open_clip_config.json"), config.to_string()).unwrap();
    let clip = Clip::open(dir.path(), &cpu()).unwrap();
    let expected = outputs("openai");
    let images = clip
        .image_features(&clip.pixels(&pictures(&json)).unwrap())
        .unwrap();
    let texts = clip.text_features(&strings(&json, "texts")).unwrap();
    assert!(max_difference(&images, &expected["image_features"]) < TOLERANCE);
    assert!(max_difference(&texts, &expected["text_features"]) < TOLERANCE);
}

/// Full sizes by name and shape: one layer of each tower, whose like the others are.
#[test]
fn published_layouts_load_by_name_and_shape() {
    let text = std::fs::read_to_string(golden("clip/published.json")).unwrap();
    let published: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(published.len(), 4);
    let tokenizer_dir = golden("clip/openai");
    for (name, layout) in published {
        let (dir, config) = one_layer(&layout, &["vision_config", "text_config"]);
        let config = ClipConfig::from_json(&config.to_string()).unwrap();
        let whole = ClipConfig::from_json(&layout["config"].to_string()).unwrap();
        let layers = (
            whole.vision_config.num_hidden_layers,
            whole.text_config.num_hidden_layers,
        );
        let large = name.contains("large");
        assert_eq!(layers, (if large { 24 } else { 12 }, 12), "{name}");
        let tokenizer = ClipTokenizer::open_dir(&tokenizer_dir, &config.text_config).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let preprocessing = Preprocessing::clip_cropped(config.vision_config.image_size);
        let clip = Clip::load(&checkpoint, config, preprocessing, tokenizer, &cpu());
        clip.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(checkpoint.unused().collect::<Vec<_>>(), [""; 0], "{name}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let error = |dir: &Path| Clip::open(dir, &cpu()).unwrap_err().to_string();
    let dir = tempfile::tempdir().unwrap();
    let copy = |name: &str| {
        std::fs::copy(
            golden(&format!("clip/openai/{name}")),
            dir.path().join(name),
        )
        .unwrap()
    };
    assert!(error(dir.path()).contains("config.json"));
    copy("config.json");
    assert!(error(dir.path()).contains("neither tokenizer.json nor vocab.json"));
    let tokenizer = golden("instructblip/checkpoint/qformer_tokenizer/tokenizer.json");
    std::fs::copy(tokenizer, dir.path().join("tokenizer.json")).unwrap();
    assert!(error(dir.path()).contains("holds no BPE"));
    copy("tokenizer.json");
    assert!(error(dir.path()).contains("model.safetensors"));
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "config.json",
        &config.replace("\"vocab_size\": ", "\"vocab_size\": 1"),
    );
    copy("model.safetensors");
    assert!(error(dir.path()).contains("token_embedding.weight has shape"));
    write(
        "config.json",
        r#"{"model_type": "clip", "text_config": {"vocab_size": 512}}"#,
    );
    assert!(error(dir.path()).contains("and CLIP 512 token embeddings"));
    write("config.json", &config);
    write(
        "preprocessor_config.json",
        r#"{"image_processor_type": "CLIPImageProcessor"}"#,
    );
    assert!(error(dir.path()).contains("224 is not vision_config.image_size = 32"));
    copy("preprocessor_config.json");
    let clip = Clip::open(dir.path(), &cpu()).unwrap();
    let none: [&str; 0] = [];
    assert!(clip.text_features(&none).is_err());
    assert!(clip.class_features(&["dog"], &none).is_err());
    assert!(clip.class_features(&["dog"], &["a photo"]).is_err());
    let pixels = Tensor::zeros((1, 3, 31, 32), DType::F32, &Device::Cpu).unwrap();
    assert!(clip.image_features(&pixels).is_err());
}
