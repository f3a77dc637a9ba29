//! Bundles of CLIP, BLIP and BLIP-2's first stage, made and served: what transformers computed
//! (`golden/make_clip.py`, `make_blip.py`, `make_stage1.py`) comes out of commands and routes.

#![allow(clippy::panic, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use candle_core::{Device, Tensor};
use qbridge_tests::hub::{Hub, MODEL, files_of};
use qbridge_tests::{Server, golden, one_line_error, qbridge, repository, stdout};
use qformer::wordpiece::{TextSizes, WordPiece};
use serde_json::{Value, json};
use tempfile::TempDir;

const TOLERANCE: f32 = 1e-4;

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn strings(json: &Value, key: &str) -> Vec<String> {
    serde_json::from_value(json[key].clone()).unwrap()
}

/// The pictures of CLIP's and BLIP's golden files.
fn pictures() -> Vec<PathBuf> {
    let paths = strings(&read("clip/golden.json"), "pictures");
    let paths = paths.iter().map(|path| repository().join(path));
    paths.collect()
}

fn reference(file: &str, tensor: &str) -> Tensor {
    candle_core::safetensors::load(golden(file), &Device::Cpu).unwrap()[tensor].clone()
}

fn converted(sources: &[&str], args: &[&str]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    let mut convert = qbridge(["convert", "--vision", "f32"]);
    convert.args(sources.iter().map(|source| golden(source)));
    stdout(convert.args(args).arg("--out").arg(&out));
    (dir, out)
}

fn serve(bundle: &Path, args: &[&str]) -> Server {
    Server::start(bundle, &[&["--vision", "f32"], args].concat())
}

fn uri(path: &Path) -> Value {
    let data = STANDARD.encode(std::fs::read(path).unwrap());
    json!(format!("data:image/png;base64,{data}"))
}

fn part(path: &Path) -> Value {
    json!({"type": "image_url", "image_url": {"url": uri(path)}})
}

fn post(server: &Server, path: &str, body: &Value) -> Value {
    let (status, answer) = server.post(path, body);
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

fn get(server: &Server, path: &str) -> Value {
    let mut response = ureq::get(format!("{}{path}", server.url)).call().unwrap();
    serde_json::from_reader(response.body_mut().as_reader()).unwrap()
}

fn metric(server: &Server, name: &str) -> f64 {
    let url = server.url.replace("/v1", "/metrics");
    let text = ureq::get(url)
        .call()
        .unwrap()
        .body_mut()
        .read_to_string()
        .unwrap();
    let prefix = format!("qbridge_{name}{{model=\"model\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
    line.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
        .parse()
        .unwrap()
}

/// A text as the API takes it, which takes no empty one: a space is none to the tokenizers.
fn said(text: &str) -> String {
    match text.is_empty() {
        true => " ".to_owned(),
        false => text.to_owned(),
    }
}

#[track_caller]
fn near(found: &Value, expected: f32) {
    let found = found.as_f64().unwrap() as f32;
    assert!((found - expected).abs() < TOLERANCE, "{found} {expected}");
}

#[track_caller]
fn rows_near(found: &[Value], expected: &Tensor) {
    let expected = expected.to_vec2::<f32>().unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        let row = found.as_array().unwrap();
        assert_eq!(row.len(), expected.len());
        for (found, expected) in row.iter().zip(expected) {
            near(found, *expected);
        }
    }
}

#[test]
fn clips_features_come_through_the_server() {
    let texts = strings(&read("clip/golden.json"), "texts");
    let texts: Vec<String> = texts.iter().map(|text| said(text)).collect();
    for name in ["openai", "gelu"] {
        let (_dir, bundle) = converted(&[&format!("clip/{name}")], &[]);
        let server = serve(&bundle, &[]);
        let embed = |input: Value, fields: Value| {
            let mut body = json!({"model": "model", "input": input});
            for (name, value) in fields.as_object().unwrap() {
                body[name] = value.clone();
            }
            post(&server, "/embeddings", &body)
        };
        let vectors = |answer: &Value| -> Vec<Value> {
            let data = answer["data"].as_array().unwrap();
            data.iter()
                .map(|entry| entry["embedding"].clone())
                .collect()
        };
        let pictures: Vec<Value> = pictures().iter().map(|path| part(path)).collect();
        let file = format!("clip/{name}.safetensors");
        let both: Vec<Value> = (texts.iter().map(|text| json!(text)))
            .chain(pictures.clone())
            .collect();
        let answer = embed(json!(both), json!({}));
        let found = vectors(&answer);
        rows_near(&found[..20], &reference(&file, "text_features"));
        rows_near(&found[20..], &reference(&file, "image_features"));
        let usage = &answer["usage"];
        assert!(
            usage["prompt_tokens"].as_u64()
                > usage["prompt_tokens_details"]["image_tokens"].as_u64()
        );
        // Alone, and as bytes.
        for (place, input) in both.iter().enumerate().step_by(7) {
            let answer = embed(input.clone(), json!({"encoding_format": "base64"}));
            let bytes = STANDARD
                .decode(vectors(&answer)[0].as_str().unwrap())
                .unwrap();
            let row: Vec<Value> = bytes
                .chunks_exact(4)
                .map(|four| json!(f32::from_le_bytes(four.try_into().unwrap())))
                .collect();
            for (one, other) in row.iter().zip(found[place].as_array().unwrap()) {
                near(one, other.as_f64().unwrap() as f32);
            }
        }
        // All of them were seen when they came alone. (One more warmed the model up.)
        assert_eq!(metric(&server, "vision_pictures_total"), 21.0);
        assert!(metric(&server, "vision_cache_hits_total") >= 2.0);
        assert!(metric(&server, "vision_batches_total") <= 4.0);
        // Cosines of a text and all pictures.
        let answer = post(
            &server,
            "/rerank",
            &json!({"model": "model", "query": texts[2], "documents": pictures}),
        );
        let logits = reference(&file, "logits").to_vec2::<f32>().unwrap();
        let scale = {
            let images = reference(&file, "image_features").to_vec2::<f32>().unwrap();
            let texts = reference(&file, "text_features").to_vec2::<f32>().unwrap();
            let cosine: f32 = images[0].iter().zip(&texts[0]).map(|(a, b)| a * b).sum();
            logits[0][0] / cosine
        };
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), 20);
        assert!(results.is_sorted_by(|a, b| {
            a["relevance_score"].as_f64() >= b["relevance_score"].as_f64()
        }));
        for result in results {
            let picture = result["index"].as_u64().unwrap() as usize;
            near(&result["relevance_score"], logits[picture][2] / scale);
            assert_eq!(result["probability"], Value::Null);
        }
    }
}

#[test]
fn blips_scores_come_through_the_server() {
    let golden = read("blip/retrieval.json");
    let pairs = golden["pairs"].as_array().unwrap();
    let (_dir, bundle) = converted(&["blip/retrieval"], &[]);
    let server = serve(&bundle, &[]);
    let texts: Vec<&Value> = pairs.iter().map(|pair| &pair["text"]).collect();
    let parts: Vec<Value> = pictures().iter().map(|path| part(path)).collect();
    let body = json!({"model": "model", "text_1": parts, "text_2": texts});
    let answer = post(&server, "/score", &body);
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 20);
    let probability = |pair: &Value| {
        let logits: [f32; 2] = serde_json::from_value(pair["logits"].clone()).unwrap();
        1.0 / (1.0 + (logits[0] - logits[1]).exp())
    };
    for (found, pair) in data.iter().zip(pairs) {
        near(
            &found["similarity"],
            pair["cosine"].as_f64().unwrap() as f32,
        );
        near(&found["score"], probability(pair));
    }
    // One picture against all texts: each text's number is as alone, the nearest are matched.
    let rerank = |fields: Value| {
        let mut body = json!({"model": "model", "query": parts[4], "documents": texts});
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        post(&server, "/rerank", &body)["results"].clone()
    };
    let all = rerank(json!({}));
    let all = all.as_array().unwrap();
    let of_pair = all.iter().find(|result| result["index"] == 4).unwrap();
    near(&of_pair["relevance_score"], probability(&pairs[4]));
    let few = rerank(json!({"itm_top_k": 3, "top_n": 5}));
    let few = few.as_array().unwrap();
    assert_eq!(few.len(), 5);
    let mut nearest: Vec<&Value> = all.iter().collect();
    nearest.sort_by(|a, b| {
        b["similarity"]
            .as_f64()
            .partial_cmp(&a["similarity"].as_f64())
            .unwrap()
    });
    let nearest: Vec<&Value> = nearest.iter().map(|result| &result["index"]).collect();
    for (place, result) in few.iter().enumerate() {
        let is_matched = !result["probability"].is_null();
        assert_eq!(is_matched, place < 3, "{result}");
        assert_eq!(nearest[..3].contains(&&result["index"]), is_matched);
        assert_eq!(result["relevance_score"].as_f64() >= Some(0.0), is_matched);
    }
    // One warmed the model up.
    assert_eq!(metric(&server, "pairs_total"), 1.0 + 20.0 + 20.0 + 3.0);
}

#[test]
fn the_first_stages_scores_and_rows_come_through_the_server() {
    let golden_json = read("stage1/golden.json");
    let texts = golden_json["texts"].as_object().unwrap().keys();
    let texts: Vec<String> = texts.map(|text| said(text)).collect();
    let names = strings(&golden_json, "pictures");
    let (_dir, bundle) = converted(&["stage1/checkpoint"], &[]);
    let server = serve(&bundle, &[]);
    let path = |name: &String| golden(&format!("llm/pictures/{name}.png"));
    let file = "stage1/checkpoint.safetensors";
    let similarities = reference(file, "contrastive").to_vec2::<f32>().unwrap();
    let logits = reference(file, "match_logits").to_vec2::<f32>().unwrap();
    for (i, name) in names.iter().enumerate() {
        let body = json!({"model": "model", "text_1": part(&path(name)), "text_2": texts});
        let answer = post(&server, "/score", &body);
        for (j, found) in answer["data"].as_array().unwrap().iter().enumerate() {
            near(&found["similarity"], similarities[4 * i][j]);
            if j / 4 == i {
                let [no, yes] = logits[j][..] else { panic!() };
                near(&found["score"], 1.0 / (1.0 + (no - yes).exp()));
            }
        }
    }
    let body = json!({
        "model": "model", "input": [part(&golden("llm/pictures/ramp.png")), "a face"],
        "return_multivector": true,
    });
    let answer = post(&server, "/embeddings", &body);
    let expected = reference(file, "image_features").get(0).unwrap();
    rows_near(
        answer["data"][0]["embeddings"].as_array().unwrap(),
        &expected,
    );
    let expected = reference(file, "text_features").narrow(0, 2, 1).unwrap();
    rows_near(
        answer["data"][1]["embeddings"].as_array().unwrap(),
        &expected,
    );
    assert_eq!(
        answer["usage"]["prompt_tokens_details"]["image_tokens"],
        rows(&bundle)
    );
}

/// The queries of a bundle.
fn rows(bundle: &Path) -> u64 {
    let text = std::fs::read_to_string(bundle.join("bundle.toml")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("num_query_tokens = "));
    line.unwrap().parse().unwrap()
}

fn ask(picture: &Path, text: &str, fields: &Value) -> Value {
    let mut content = vec![part(picture)];
    if !text.is_empty() {
        content.push(json!({"type": "text", "text": text}));
    }
    let mut body = json!({"model": "model", "messages": [{"role": "user", "content": content}]});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// What the chat route takes of transformers' setting; none where it cannot be asked for so.
fn fields_of(setting: &Value) -> Option<Value> {
    let limits = ["max_length", "min_length", "repetition_penalty"];
    let is_plain = limits.iter().all(|name| setting.get(name).is_none());
    is_plain.then(|| json!({"num_beams": setting["num_beams"]}))
}

#[test]
fn blips_captions_and_answers_come_by_the_chat_route() {
    let pictures = pictures();
    for (name, with_prefix) in [("captioning", true), ("answering", false)] {
        let (_dir, bundle) = converted(&[&format!("blip/{name}")], &[]);
        let server = serve(&bundle, &[]);
        let golden_json = read(&format!("blip/{name}.json"));
        let sizes = TextSizes {
            vocab_size: 1 << 16,
            max_position_embeddings: 64,
        };
        let tokenizer = WordPiece::open(&bundle.join("tokenizer.json"), sizes).unwrap();
        let settings = golden_json["settings"].as_array().unwrap();
        let setting = settings
            .iter()
            .position(|setting| fields_of(setting).is_some());
        let fields = fields_of(&settings[setting.unwrap()]).unwrap();
        for pair in golden_json["pairs"].as_array().unwrap() {
            let picture = &pictures[pair["picture"].as_u64().unwrap() as usize];
            let text = pair["text"].as_str().unwrap();
            let ids: Vec<u32> =
                serde_json::from_value(pair["ids"][setting.unwrap()].clone()).unwrap();
            let expected = match with_prefix {
                true => pair["decoded"].as_str().unwrap().to_owned(),
                false => tokenizer.decode(&ids).unwrap(),
            };
            let answer = post(&server, "/chat/completions", &ask(picture, text, &fields));
            let choice = &answer["choices"][0];
            assert_eq!(choice["message"]["content"], expected, "{name}: {pair}");
            assert_eq!(answer["usage"]["completion_tokens"], ids.len());
            let reason = if ids.len() == 20 { "length" } else { "stop" };
            assert_eq!(choice["finish_reason"], reason, "{pair}");
        }
        let streamed = ask(&pictures[0], "what?", &json!({"stream": true}));
        let (status, text) = server.post_text("/chat/completions", &streamed.to_string());
        assert_eq!(status, 200);
        let whole = post(
            &server,
            "/chat/completions",
            &ask(&pictures[0], "what?", &json!({})),
        );
        let pieces: String = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
            .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
            .collect();
        assert_eq!(whole["choices"][0]["message"]["content"], pieces);
        assert!(text.trim_end().ends_with("data: [DONE]"));
    }
}

#[test]
fn what_a_caption_cannot_be_asked_is_refused_by_name() {
    let (_dir, bundle) = converted(&["blip/captioning"], &[]);
    let server = serve(&bundle, &[]);
    let pictures = pictures();
    let picture = &pictures[0];
    for (fields, param) in [
        (json!({"temperature": 0.5}), "temperature"),
        (json!({"n": 2, "temperature": 0.5}), "temperature"),
        (json!({"stop": "a"}), "stop"),
        (json!({"logprobs": true}), "logprobs"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
        ),
        (json!({"logit_bias": {"1": 1}}), "logit_bias"),
        (json!({"frequency_penalty": 1}), "frequency_penalty"),
        (json!({"num_beams": 17}), "num_beams"),
        (json!({"max_tokens": 64}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": "a"}]}),
            "messages",
        ),
        (
            json!({"messages": [
                {"role": "system", "content": "a"},
                {"role": "user", "content": [part(picture)]},
            ]}),
            "messages",
        ),
    ] {
        let (status, answer) = server.post("/chat/completions", &ask(picture, "", &fields));
        assert_eq!(status, 400, "{fields}: {answer}");
        assert_eq!(answer["error"]["param"], param, "{fields}: {answer}");
    }
    let tools = json!({"tools": [{"type": "function", "function": {"name": "a"}}]});
    let (status, _) = server.post("/chat/completions", &ask(picture, "", &tools));
    assert_eq!(status, 400);
    let (status, answer) = server.post("/embeddings", &json!({"model": "model", "input": "a"}));
    assert_eq!(status, 400);
    assert_eq!(answer["error"]["code"], "model_not_supported");
    post(
        &server,
        "/chat/completions",
        &ask(picture, "", &json!({"max_tokens": 3})),
    );
}

#[test]
fn a_q_former_captions_by_the_chat_route_as_by_the_command() {
    let tokenizer = golden("instructblip/checkpoint/qformer_tokenizer");
    let (_dir, bundle) = converted(
        &["stage1/lavis.pth", "lavis/eva_vit_g.pth"],
        &["--qformer-tokenizer", tokenizer.to_str().unwrap()],
    );
    let picture = golden("llm/pictures/face.png");
    let line = stdout(
        qbridge(["caption", "--quiet", "--vision", "f32"])
            .arg(&bundle)
            .arg(&picture),
    );
    let row: Value = serde_json::from_str(&line).unwrap();
    let server = serve(&bundle, &[]);
    let answer = post(&server, "/chat/completions", &ask(&picture, "", &json!({})));
    assert_eq!(answer["choices"][0]["message"]["content"], row["caption"]);
    assert_eq!(
        answer["usage"]["completion_tokens"],
        row["usage"]["completion_tokens"]
    );
    let (status, error) = server.post("/chat/completions", &ask(&picture, "a", &json!({})));
    assert_eq!(
        (status, &error["error"]["param"]),
        (400, &json!("messages"))
    );
}

/// Many at once are answered as one at a time, in fewer batches.
#[test]
fn requests_that_come_together_are_answered_as_alone() {
    let (_dir, bundle) = converted(&["blip/retrieval"], &[]);
    let server = serve(&bundle, &["--image-cache", "0"]);
    let pictures = pictures();
    let body = |i: usize| {
        let picture = part(&pictures[i % pictures.len()]);
        json!({"model": "model", "text_1": picture, "text_2": ["a dog", "the banana", "10 what"]})
    };
    let alone: Vec<Value> = (0..16).map(|i| post(&server, "/score", &body(i))).collect();
    let batches = metric(&server, "vision_batches_total");
    assert_eq!(batches, 1.0 + 16.0);
    std::thread::scope(|scope| {
        let together: Vec<_> = (0..16)
            .map(|i| {
                let (server, body) = (&server, body(i));
                scope.spawn(move || post(server, "/score", &body))
            })
            .collect();
        for (together, alone) in together.into_iter().zip(&alone) {
            let together = together.join().unwrap();
            for (found, alone) in together["data"]
                .as_array()
                .unwrap()
                .iter()
                .zip(alone["data"].as_array().unwrap())
            {
                near(&found["score"], alone["score"].as_f64().unwrap() as f32);
                near(
                    &found["similarity"],
                    alone["similarity"].as_f64().unwrap() as f32,
                );
            }
        }
    });
    // Nothing is kept, so that all pictures were looked at again.
    assert_eq!(metric(&server, "vision_pictures_total"), 1.0 + 32.0);
}

#[test]
fn a_picture_at_fault_fails_its_own_request_alone() {
    let (_dir, bundle) = converted(&["clip/openai"], &[]);
    let server = serve(&bundle, &[]);
    let bad = json!("data:image/png;base64,AAAA");
    let good = part(&pictures()[0]);
    let body = json!({"model": "model", "input": [{"image": bad}]});
    let (status, answer) = server.post("/embeddings", &body);
    assert_eq!(status, 400);
    assert_eq!(answer["error"]["code"], "invalid_image");
    assert_eq!(answer["error"]["param"], "input[0].image");
    let body = json!({"model": "model", "input": [{"image": bad}, good]});
    let (_, answer) = server.post("/embeddings", &body);
    assert_eq!(answer["error"]["param"], "input");
    post(
        &server,
        "/embeddings",
        &json!({"model": "model", "input": good}),
    );
    for path in ["/chat/completions", "/completions"] {
        let body = json!({
            "model": "model", "prompt": "a", "messages": [{"role": "user", "content": "a"}],
        });
        let (status, answer) = server.post(path, &body);
        assert_eq!(status, 400);
        assert_eq!(answer["error"]["code"], "model_not_supported", "{path}");
    }
}

#[test]
fn openais_own_client_reads_embeddings() {
    let (_dir, bundle) = converted(&["clip/openai"], &[]);
    let server = serve(&bundle, &[]);
    let output = Command::new("python3")
        .arg(repository().join("tests/openai_embeddings.py"))
        .args([&server.url, "model"])
        .arg(&pictures()[0])
        .output()
        .unwrap();
    let [out, err] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{out}{err}");
    assert_eq!(
        out.lines().filter(|line| line.starts_with("ok ")).count(),
        5,
        "{out}"
    );
}

#[test]
fn a_server_may_have_models_of_several_kinds() {
    let (_clip, clip) = converted(&["clip/openai"], &[]);
    let (_blip, blip) = converted(&["blip/captioning"], &[]);
    let other = format!("captions={}", blip.display());
    let server = serve(&clip, &[&other]);
    let models = get(&server, "/models");
    let capabilities = |index: usize| &models["data"][index]["capabilities"];
    assert_eq!(capabilities(0), &json!(["embedding"]), "{models}");
    assert_eq!(capabilities(1), &json!(["chat"]), "{models}");
    post(
        &server,
        "/embeddings",
        &json!({"model": "model", "input": "a"}),
    );
    let mut asked = ask(&pictures()[1], "", &json!({}));
    asked["model"] = json!("captions");
    assert_eq!(
        post(&server, "/chat/completions", &asked)["model"],
        "captions"
    );
}

#[test]
fn bundles_match_embed_and_classify_as_checkpoints_do() {
    let json = read("clip/golden.json");
    let texts = strings(&json, "texts");
    let (dir, bundle) = converted(&["clip/openai"], &[]);
    let pictures = pictures();
    let mut embed = qbridge(["embed", "--vision", "f32"]);
    embed.arg(&bundle).args(&pictures);
    for text in &texts {
        embed.args(["--text", text]);
    }
    let rows: Vec<Value> = stdout(&mut embed)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let features: Vec<Value> = rows[..20]
        .iter()
        .map(|row| row["features"][0].clone())
        .collect();
    rows_near(
        &features,
        &reference("clip/openai.safetensors", "image_features"),
    );
    let features: Vec<Value> = rows[20..]
        .iter()
        .map(|row| row["features"].clone())
        .collect();
    rows_near(
        &features,
        &reference("clip/openai.safetensors", "text_features"),
    );
    let mut run = qbridge(["match", "--json"]);
    let line = stdout(run.arg(&bundle).arg(&pictures[0]).arg(&texts[0]));
    let found: Value = serde_json::from_str(&line).unwrap();
    assert!(
        found["similarity"].is_number() && found.get("probability").is_none(),
        "{line}"
    );
    let mut run = qbridge(["match"]);
    let table = stdout(run.arg(&bundle).arg(&pictures[0]).arg("a dog"));
    assert!(table.starts_with("similarity  text\n"), "{table}");

    let labels = dir.path().join("labels.txt");
    std::fs::write(&labels, strings(&json, "labels").join("\n")).unwrap();
    let classify = |source: &Path| {
        let mut classify = qbridge(["classify", "--json", "--vision", "f32", "--labels"]);
        classify.arg(&labels).arg(source).args(&pictures[..3]);
        classify
    };
    assert_eq!(
        stdout(&mut classify(&bundle)),
        stdout(&mut classify(&golden("clip/openai")))
    );
    let (_blip, blip) = converted(&["blip/retrieval"], &[]);
    let error = one_line_error(&mut classify(&blip));
    assert!(error.contains("this is a blip"), "{error}");
    let inspected = stdout(qbridge(["inspect", "--verify"]).arg(&bundle));
    assert!(inspected.contains("24 features"), "{inspected}");
    assert!(!inspected.contains("Q-Former"), "{inspected}");
}

/// An index keeps 16 bits a number.
#[test]
fn a_clip_is_searched_and_refused_where_a_matching_head_is_read() {
    let json = read("clip/golden.json");
    let text = &strings(&json, "texts")[0];
    let (dir, bundle) = converted(&["clip/openai"], &[]);
    let pictures = pictures();
    let index = dir.path().join("pictures.index");
    let mut run = qbridge(["index", "--quiet", "--vision", "f32"]);
    stdout(run.arg(&bundle).args(&pictures).arg("--out").arg(&index));
    let search = |more: &[&str]| {
        let mut search = qbridge(["search", "--json", "--vision", "f32", "--top", "50"]);
        search.arg(&index).arg(text).args(more);
        search
    };
    let images = reference("clip/openai.safetensors", "image_features");
    let texts = reference("clip/openai.safetensors", "text_features");
    let cosines = images.matmul(&texts.t().unwrap()).unwrap();
    let cosines = cosines.to_vec2::<f32>().unwrap();
    let found = stdout(&mut search(&[]));
    let found: Vec<Value> = (found.lines())
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(found.len(), pictures.len());
    for row in &found {
        let is_it = |path: &PathBuf| row["image"].as_str() == path.to_str();
        let picture = pictures.iter().position(is_it).unwrap();
        let similarity = row["similarity"].as_f64().unwrap() as f32;
        let error = (similarity - cosines[picture][0]).abs();
        assert!(error < 5e-4, "{row} {}", cosines[picture][0]);
    }
    let order = |row: &Value| row["similarity"].as_f64().unwrap();
    assert!(found.is_sorted_by(|a, b| order(a) >= order(b)));

    let table = dir.path().join("pairs.jsonl");
    let row = json!({"image": pictures[0], "text": text});
    std::fs::write(&table, format!("{row}\n")).unwrap();
    let pairs = |command: &str, more: &[&str]| {
        let mut run = qbridge([command, "--quiet"]);
        run.arg(&bundle).arg(&table);
        run.args(["--text-column", "text"]).args(more);
        run
    };
    for (mut run, told) in [
        (search(&["--rerank", "2"]), "--rerank"),
        (pairs("filter", &["--min-itm", "0.3"]), "--min-itm"),
        (pairs("bootstrap", &["--captioner", "absent"]), "the filter"),
    ] {
        let error = one_line_error(&mut run);
        assert!(error.contains("no matching head"), "{error}");
        assert!(error.contains(told), "{error}");
    }
    let kept = stdout(&mut pairs("filter", &["--min-itc", "-1"]));
    assert_eq!(kept, format!("{row}\n"));
}

#[test]
fn captions_come_by_the_command_too() {
    let (_dir, bundle) = converted(&["blip/captioning"], &[]);
    let golden_json = read("blip/captioning.json");
    let pictures = pictures();
    for pair in golden_json["pairs"].as_array().unwrap().iter().take(6) {
        let mut caption = qbridge(["caption", "--quiet", "--vision", "f32"]);
        caption.arg(&bundle);
        caption.arg(&pictures[pair["picture"].as_u64().unwrap() as usize]);
        if pair["text"] != "" {
            caption.args(["--prefix", pair["text"].as_str().unwrap()]);
        }
        let row: Value = serde_json::from_str(&stdout(&mut caption)).unwrap();
        assert_eq!(row["caption"], pair["decoded"]);
    }
    let run = |bundle: &Path, args: &[&str]| {
        let mut caption = qbridge(["caption"]);
        caption.arg(bundle).arg(&pictures[0]).args(args);
        caption
    };
    for (flag, value) in [
        ("--prompt", "a"),
        ("--temperature", "1"),
        ("--min-score", "-1"),
    ] {
        let error = one_line_error(&mut run(&bundle, &[flag, value]));
        assert!(
            error.contains("a BLIP knows no") && error.contains(flag),
            "{error}"
        );
    }
    let (_dir, answering) = converted(&["blip/answering"], &[]);
    let error = one_line_error(&mut run(&answering, &[]));
    assert!(error.contains("--prompt"), "{error}");
    let line = stdout(&mut run(&answering, &["--prompt", "what?", "--quiet"]));
    let row: Value = serde_json::from_str(&line).unwrap();
    assert!(row["caption"].is_string());
    let (_dir, clip) = converted(&["clip/openai"], &[]);
    let error = one_line_error(&mut run(&clip, &[]));
    assert!(error.contains("no head that writes captions"), "{error}");
    let mut ask = qbridge(["ask"]);
    let error = one_line_error(ask.arg(&clip).arg(&pictures[0]).arg("what?"));
    assert!(error.contains("no language model"), "{error}");
}

#[test]
fn what_such_bundles_cannot_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("model");
    for (source, args, word) in [
        (
            "clip/openai",
            ["--llm-quant", "Q8_0"],
            "a CLIP, which has no language model",
        ),
        (
            "blip/retrieval",
            ["--layout", "blip2"],
            "a BLIP, which has no language model",
        ),
        ("clip/openai", ["--image-size", "64"], "--image-size"),
    ] {
        let mut convert = qbridge(["convert"]);
        convert
            .arg(golden(source))
            .args(args)
            .arg("--out")
            .arg(&out);
        let error = one_line_error(&mut convert);
        assert!(error.contains(word), "{error}");
        assert!(!out.exists());
    }
    // A manifest whose numbers are not those of the weights, and one of another family.
    let (_dir, bundle) = converted(&["clip/openai"], &[]);
    let manifest = bundle.join("bundle.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    for (old, new, word) in [
        ("projection_dim = 24", "projection_dim = 23", "23"),
        (
            "family = \"clip\"",
            "family = \"blip\"",
            "clip does not go with",
        ),
        (
            "family = \"clip\"",
            "family = \"blip-2\"",
            "does not go with",
        ),
    ] {
        assert!(text.contains(old), "{text}");
        std::fs::write(&manifest, text.replacen(old, new, 1)).unwrap();
        let mut run = qbridge(["match"]);
        let error = one_line_error(run.arg(&bundle).arg(&pictures()[0]).arg("a"));
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn smaller_types_keep_the_temperature_and_the_order() {
    let json = read("clip/golden.json");
    let file = "clip/openai.safetensors";
    let expected = reference(file, "probabilities").to_vec2::<f32>().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let labels = dir.path().join("labels.txt");
    std::fs::write(&labels, strings(&json, "labels").join("\n")).unwrap();
    // Of a similarity, which is at most 100. Without VNNI inputs have 7 bits, and this model is tiny: up to 1.4 there.
    for (weights, tolerance) in [("f16", 0.02), ("int8", 2.0)] {
        let out = dir.path().join(weights);
        let mut convert = qbridge(["convert", "--vision", weights]);
        stdout(convert.arg(golden("clip/openai")).arg("--out").arg(&out));
        let weights = qformer::checkpoint::Checkpoint::from_files(&[out.join("text.safetensors")]);
        let scale = weights
            .unwrap()
            .raw("logit_scale")
            .unwrap()
            .to_f32()
            .unwrap();
        let own = qformer::checkpoint::Checkpoint::open(golden("clip/openai")).unwrap();
        assert_eq!(scale, own.raw("logit_scale").unwrap().to_f32().unwrap());
        let mut classify = qbridge(["classify", "--json", "--top", "9", "--labels"]);
        classify.arg(&labels).arg(&out).args(pictures());
        for template in strings(&json, "templates") {
            classify.args(["--template", &template]);
        }
        for (line, expected) in stdout(&mut classify).lines().zip(&expected) {
            let line: Value = serde_json::from_str(line).unwrap();
            let labels = line["labels"].as_array().unwrap();
            let names = strings(&json, "labels");
            assert_eq!(labels.len(), names.len());
            // Similarities are the logarithms of probabilities, but for what all of a picture's share.
            let differences = names.iter().zip(expected).map(|(name, expected)| {
                let label = labels.iter().find(|label| label["label"] == **name);
                let found = label.unwrap()["probability"].as_f64().unwrap();
                found.ln() - f64::from(*expected).ln()
            });
            let differences: Vec<f64> = differences.collect();
            let mean = differences.iter().sum::<f64>() / differences.len() as f64;
            assert!(
                differences.iter().all(|d| (d - mean).abs() < tolerance),
                "{line} {expected:?}"
            );
        }
    }
}

#[test]
fn models_of_the_hub_become_the_same_bundles() {
    for source in ["clip/openai", "blip/retrieval"] {
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::of(&files_of(&golden(source)));
        let pulled = dir.path().join("pulled");
        let pull = |args: &[&str]| {
            let mut pull = qbridge(["pull", MODEL, "--endpoint", &hub.endpoint]);
            pull.args(["--vision", "f32"]).args(args);
            pull.arg("--cache").arg(dir.path().join("cache"));
            pull.arg("--out").arg(&pulled);
            pull.env_remove("HF_TOKEN").env("NO_PROXY", "127.0.0.1");
            pull
        };
        let error = one_line_error(&mut pull(&["--llm-quant", "Q8_0"]));
        assert!(error.contains("leave out --llm-quant"), "{error}");
        assert!(hub.asked("/blob/").is_empty());
        stdout(&mut pull(&[]));
        let (_dir, bundle) = converted(&[source], &[]);
        let (mut pulled, mut made) = (files_of(&pulled), files_of(&bundle));
        for files in [&mut pulled, &mut made] {
            assert!(files.remove("bundle.toml").is_some());
        }
        assert_eq!(pulled.len(), 3);
        assert!(pulled == made);
    }
}

/// A wait of a client that leaves ends.
#[test]
fn a_server_that_compares_stops_when_it_is_asked() {
    let (_dir, bundle) = converted(&["clip/openai"], &[]);
    let server = serve(&bundle, &[]);
    post(
        &server,
        "/embeddings",
        &json!({"model": "model", "input": "a"}),
    );
    let started = std::time::Instant::now();
    let log = server.stop();
    assert!(started.elapsed() < Duration::from_secs(30), "{log}");
}
