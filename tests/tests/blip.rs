//! BLIP against transformers: `golden/make_blip.py` made both the models and what is expected of
//! them.

#![allow(clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use image::RgbImage;
use qbridge_tests::golden_model::{one_layer, without};
use qbridge_tests::{golden, repository};
use qformer::blip::{Blip, BlipConfig, EncoderStart, RANKED_CANDIDATES, Task};
use qformer::checkpoint::{Checkpoint, Compute};
use qformer::generate::Generation;
use qformer::image::{ImageLimits, decode};
use qformer::preprocess::Preprocessing;
use qformer::wordpiece::WordPiece;
use serde::Deserialize;
use serde_json::Value;

const TOLERANCE: f32 = 1e-4;

fn cpu() -> Compute {
    Compute::on(&Device::Cpu)
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let text = std::fs::read_to_string(golden(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(name: &str) -> Blip {
    Blip::open(&golden(&format!("blip/{name}")), &cpu()).unwrap()
}

fn pictures() -> Vec<RgbImage> {
    let golden: Value = read("clip/golden.json");
    let paths: Vec<String> = serde_json::from_value(golden["pictures"].clone()).unwrap();
    let read = |path| std::fs::read(repository().join(path)).unwrap();
    let decoded = |path| decode(&read(path), &ImageLimits::default()).unwrap();
    paths.into_iter().map(decoded).collect()
}

/// What the ViT makes of all pictures.
fn vision(blip: &Blip) -> Tensor {
    blip.vision(&blip.pixels(&pictures()).unwrap()).unwrap()
}

fn entry(vision: &Tensor, picture: usize) -> Tensor {
    vision.narrow(0, picture, 1).unwrap()
}

/// Options as `generate` of transformers takes them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Setting {
    num_beams: usize,
    max_length: Option<usize>,
    #[serde(default)]
    min_length: usize,
    length_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl Setting {
    fn options(&self) -> Generation {
        let default = Generation::default();
        Generation {
            num_beams: self.num_beams,
            max_length: self.max_length,
            min_length: self.min_length,
            length_penalty: self.length_penalty.unwrap_or(default.length_penalty),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or(default.repetition_penalty),
        }
    }
}

#[derive(Deserialize)]
struct Golden {
    settings: Vec<Setting>,
    pairs: Vec<Pair>,
    #[serde(default)]
    candidates: Vec<String>,
    #[serde(default)]
    ranked: Vec<Ranking>,
}

#[derive(Deserialize)]
struct Pair {
    picture: usize,
    text: String,
    ids: Vec<Vec<u32>>,
    #[serde(default)]
    ids_enc: Vec<Vec<u32>>,
    #[serde(default)]
    decoded: String,
}

#[derive(Deserialize)]
struct Ranking {
    picture: usize,
    text: String,
    order: Vec<usize>,
    scores: Vec<f32>,
}

#[derive(Deserialize)]
struct Matches {
    pairs: Vec<Match>,
}

#[derive(Deserialize)]
struct Match {
    picture: usize,
    text: String,
    cosine: f32,
    logits: [f32; 2],
    logits_enc: [f32; 2],
}

#[test]
fn captions_equal_transformers_token_for_token() {
    let golden: Golden = read("blip/captioning.json");
    assert_eq!(golden.pairs.len(), 20);
    let blip = open("captioning");
    assert_eq!(blip.task(), Task::Captioning);
    let vision = vision(&blip);
    for (n, setting) in golden.settings.iter().enumerate() {
        let options = setting.options();
        for pair in &golden.pairs {
            let prefix = (!pair.text.is_empty()).then_some(pair.text.as_str());
            let captions = blip
                .caption(&entry(&vision, pair.picture), prefix, &options)
                .unwrap();
            assert_eq!(
                captions[0].ids, pair.ids[n],
                "setting {n}, {} {:?}",
                pair.picture, pair.text
            );
            if n == 0 {
                assert_eq!(captions[0].text, pair.decoded);
            }
        }
        // What is in a batch changes nothing.
        let plain: Vec<&Pair> = golden
            .pairs
            .iter()
            .filter(|pair| pair.text.is_empty())
            .collect();
        let places: Vec<u32> = plain.iter().map(|pair| pair.picture as u32).collect();
        assert!(places.len() > 2);
        let places = Tensor::new(places, &Device::Cpu).unwrap();
        let batch = vision.index_select(&places, 0).unwrap();
        for (caption, pair) in blip
            .caption(&batch, None, &options)
            .unwrap()
            .iter()
            .zip(plain)
        {
            assert_eq!(
                caption.ids, pair.ids[n],
                "in a batch, setting {n}, {}",
                pair.picture
            );
        }
    }
}

#[test]
fn matches_equal_transformers() {
    let golden: Matches = read("blip/retrieval.json");
    assert_eq!(golden.pairs.len(), 20);
    let texts: Vec<&str> = golden.pairs.iter().map(|pair| pair.text.as_str()).collect();
    for start in [EncoderStart::Cls, EncoderStart::Enc] {
        let blip = open("retrieval").with_encoder_start(start);
        assert_eq!(blip.task(), Task::Retrieval);
        let vision = vision(&blip);
        let images = blip.image_features(&vision).unwrap();
        let features = blip.text_features(&texts).unwrap();
        let cosines = blip
            .contrastive(&images, &features)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let logits = blip
            .match_logits(&vision, &texts)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let probabilities = blip
            .match_probability(&vision, &texts)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        for (i, pair) in golden.pairs.iter().enumerate() {
            assert_eq!(pair.picture, i);
            let expected = match start {
                EncoderStart::Cls => pair.logits,
                EncoderStart::Enc => pair.logits_enc,
            };
            assert!(
                (cosines[i][i] - pair.cosine).abs() < TOLERANCE,
                "{i}: {}",
                cosines[i][i]
            );
            for (found, expected) in logits[i].iter().zip(expected) {
                assert!(
                    (found - expected).abs() < TOLERANCE,
                    "{i}: {found} {expected}"
                );
            }
            let probability = 1.0 / (1.0 + (expected[0] - expected[1]).exp());
            assert!((probabilities[i] - probability).abs() < TOLERANCE);
        }
        // One picture for several texts is the same as one for each.
        let alone = blip.match_logits(&entry(&vision, 4), &texts[2..7]).unwrap();
        let alone = alone.to_vec2::<f32>().unwrap();
        for (found, expected) in alone[2].iter().zip(&logits[4]) {
            assert!((found - expected).abs() < 1e-5);
        }
        assert!(blip.match_logits(&vision, &texts[..3]).is_err());
    }
}

/// The golden outputs would be no proof if a part could be left out without their telling.
#[test]
fn golden_outputs_tell_when_any_part_is_wrong() {
    let golden: Matches = read("blip/retrieval.json");
    let texts: Vec<&str> = golden.pairs.iter().map(|pair| pair.text.as_str()).collect();
    let source = qbridge_tests::golden("blip/retrieval");
    let whole = open("retrieval");
    let pixels = whole.pixels(&pictures()).unwrap();
    for tensor in Checkpoint::open(&source).unwrap().names() {
        let blip = Blip::load(
            &without(&source, tensor),
            whole.config().clone(),
            whole.preprocessing().clone(),
            whole.tokenizer().clone(),
            &cpu(),
        )
        .unwrap();
        let vision = blip.vision(&pixels).unwrap();
        let images = blip.image_features(&vision).unwrap();
        let features = blip.text_features(&texts).unwrap();
        let cosines = blip
            .contrastive(&images, &features)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let logits = blip
            .match_logits(&vision, &texts)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let differences = golden.pairs.iter().enumerate().flat_map(|(i, pair)| {
            let [first, second] = pair.logits;
            [
                cosines[i][i] - pair.cosine,
                logits[i][0] - first,
                logits[i][1] - second,
            ]
        });
        let difference = differences.map(f32::abs).fold(0.0, f32::max);
        // A bias of the keys shifts all scores of a query alike.
        let unseen = tensor.ends_with("key.bias");
        assert_eq!(
            difference > 5.0 * TOLERANCE,
            !unseen,
            "without {tensor}: {difference}"
        );
    }
}

#[test]
fn answers_equal_transformers_token_for_token() {
    let golden: Golden = read("blip/answering.json");
    assert_eq!(golden.pairs.len(), 20);
    for start in [EncoderStart::Cls, EncoderStart::Enc] {
        let blip = open("answering").with_encoder_start(start);
        assert_eq!(blip.task(), Task::QuestionAnswering);
        let vision = vision(&blip);
        let places: Vec<u32> = golden
            .pairs
            .iter()
            .map(|pair| pair.picture as u32)
            .collect();
        let places = Tensor::new(places, &Device::Cpu).unwrap();
        let batch = vision.index_select(&places, 0).unwrap();
        let questions: Vec<&str> = golden.pairs.iter().map(|pair| pair.text.as_str()).collect();
        for (n, setting) in golden.settings.iter().enumerate() {
            let options = setting.options();
            // Questions of all lengths in one batch, of which the reference says one at a time.
            let answers = blip.answer(&batch, &questions, &options).unwrap();
            for (answer, pair) in answers.iter().zip(&golden.pairs) {
                let expected = match start {
                    EncoderStart::Cls => &pair.ids[n],
                    EncoderStart::Enc => &pair.ids_enc[n],
                };
                assert_eq!(
                    answer.ids, *expected,
                    "setting {n}, {} {:?}",
                    pair.picture, pair.text
                );
            }
            let alone = blip
                .answer(&entry(&batch, 5), &questions[5..6], &options)
                .unwrap();
            assert_eq!(alone[0], answers[5]);
        }
    }
}

#[test]
fn candidate_answers_are_ranked_as_the_reference_does() {
    let golden: Golden = read("blip/answering.json");
    assert!(golden.candidates.len() > RANKED_CANDIDATES && golden.ranked.len() == 3);
    let blip = open("answering");
    let vision = vision(&blip);
    for ranking in &golden.ranked {
        let picture = entry(&vision, ranking.picture);
        let ranked = blip
            .rank_answers(&picture, &ranking.text, &golden.candidates)
            .unwrap();
        assert_eq!(ranked.len(), RANKED_CANDIDATES);
        let expected: BTreeMap<usize, f32> = ranking
            .order
            .iter()
            .copied()
            .zip(ranking.scores.iter().copied())
            .collect();
        for (place, found) in ranked.iter().enumerate() {
            let score = expected[&found.candidate];
            assert!((found.score - score).abs() < TOLERANCE, "{found:?} {score}");
            // Where two are as good as equal, either may come first.
            let here = ranking.scores[place];
            assert!(
                (found.score - here).abs() < 2.0 * TOLERANCE,
                "{place}: {found:?} {here}"
            );
        }
        assert_eq!(ranked[0].candidate, ranking.order[0]);
        // A few candidates are ranked as they are among all.
        let few = blip
            .rank_answers(&picture, &ranking.text, &golden.candidates[..5])
            .unwrap();
        for found in few {
            if let Some(score) = expected.get(&found.candidate) {
                assert!((found.score - score).abs() < TOLERANCE);
            }
        }
    }
}

/// Full sizes by name and shape: one layer of each stack, whose like the others are.
#[test]
fn published_layouts_load_by_name_and_shape() {
    let published: BTreeMap<String, Value> = read("blip/published.json");
    assert_eq!(published.len(), 5);
    let tokenizer_dir = golden("blip/captioning");
    for (name, layout) in published {
        let (dir, config) = one_layer(&layout, &["vision_config", "text_config"]);
        let config = BlipConfig::from_json(&config.to_string()).unwrap();
        let whole = BlipConfig::from_json(&layout["config"].to_string()).unwrap();
        let layers = if name.contains("large") { 24 } else { 12 };
        assert_eq!(whole.vision_config.num_hidden_layers, layers, "{name}");
        let tokenizer = WordPiece::open_dir(&tokenizer_dir, &config.text_config).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let preprocessing = Preprocessing::clip(384);
        let blip = Blip::load(&checkpoint, config, preprocessing, tokenizer, &cpu());
        let blip = blip.unwrap_or_else(|error| panic!("{name}: {error}"));
        let task = match &name {
            name if name.contains("captioning") => Task::Captioning,
            name if name.contains("itm") => Task::Retrieval,
            _ => Task::QuestionAnswering,
        };
        assert_eq!(blip.task(), task, "{name}");
        // The head's bias is stored twice.
        let twice = "text_decoder.cls.predictions.bias";
        let unused: Vec<&str> = checkpoint.unused().filter(|name| *name != twice).collect();
        assert_eq!(unused, [""; 0], "{name}");
    }
}

#[test]
fn what_a_checkpoint_is_not_for_is_refused() {
    let captioning = open("captioning");
    let vision = vision(&captioning);
    let picture = entry(&vision, 0);
    let error = captioning
        .match_logits(&picture, &["a dog"])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "this is a BlipForConditionalGeneration, and it takes a BlipForImageTextRetrieval"
    );
    assert!(captioning.image_features(&vision).is_err());
    assert!(
        captioning
            .answer(&picture, &["what?"], &Generation::default())
            .is_err()
    );
    let retrieval = open("retrieval");
    assert!(
        retrieval
            .caption(&picture, None, &Generation::default())
            .is_err()
    );
    let long = Generation {
        max_length: Some(70),
        min_length: 70,
        ..Generation::default()
    };
    let error = captioning
        .caption(&picture, None, &long)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("65 tokens, and the model has 64 positions"),
        "{error}"
    );
    let dir = golden("clip/openai");
    let error = Blip::open(&dir, &cpu()).unwrap_err().to_string();
    assert!(error.contains("\"clip\" is not \"blip\""), "{error}");
    let error = Blip::task_of(&Checkpoint::open(dir).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("give a checkpoint of BlipForConditionalGeneration"),
        "{error}"
    );
}
