//! `qbridge eval` on the demo bundle: benchmarks in their published formats, with the demo's pictures.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use eval::{Answers, Dataset, Task};
use qbridge_tests::{demo_bundle, golden, one_line_error, qbridge, repository, run_killed, stdout};
use serde_json::{Value, json};

const PICTURES: [&str; 8] = [
    "dog",
    "penguin",
    "banana",
    "bicycle",
    "sunflower",
    "lion-umbrella",
    "rocket-pizza",
    "balloons",
];

const QUESTIONS: [&str; 5] = [
    "What is this?",
    "Is this an animal?",
    "What is on the left?",
    "Is there a bicycle in the picture?",
    "How many things are there?",
];

fn demo_picture(name: &str) -> PathBuf {
    repository().join(format!("demo/pictures/{name}.png"))
}

/// COCO's name of a picture.
fn coco_name(image_id: usize) -> String {
    format!("COCO_val2014_{image_id:012}.jpg")
}

/// The demo's pictures as COCO's 1 to 8 in `dir/coco/val2014`, a picture 9 that is broken, and none called 10.
fn coco(dir: &Path) {
    let folder = dir.join("coco/val2014");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, id) in PICTURES.iter().zip(1..) {
        std::fs::copy(demo_picture(name), folder.join(coco_name(id))).unwrap();
    }
    let dog = std::fs::read(demo_picture("dog")).unwrap();
    std::fs::write(folder.join(coco_name(9)), &dog[..dog.len() / 2]).unwrap();
}

fn write(path: &Path, value: &Value) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, value.to_string()).unwrap();
}

/// A question of VQAv2's format: each picture is asked the five questions, then each again.
fn question(i: usize, n_pictures: usize) -> Value {
    json!({
        "question_id": 1000 + i,
        "image_id": 1 + i / QUESTIONS.len() % n_pictures,
        "question": QUESTIONS[i % QUESTIONS.len()],
    })
}

/// VQAv2's files with `n` questions about `n_pictures` pictures, where `people(i)` answered the i-th.
fn vqav2(dir: &Path, n: usize, n_pictures: usize, people: impl Fn(usize) -> Vec<String>) {
    let questions: Vec<Value> = (0..n).map(|i| question(i, n_pictures)).collect();
    let annotation = |i: usize| {
        let answer = |(k, answer): (usize, String)| json!({"answer": answer, "answer_confidence": "yes", "answer_id": k + 1});
        let answers: Vec<Value> = people(i).into_iter().enumerate().map(answer).collect();
        json!({
            "question_id": questions[i]["question_id"],
            "image_id": questions[i]["image_id"],
            "answer_type": "other",
            "answers": answers,
        })
    };
    let annotations: Vec<Value> = (0..n).map(annotation).collect();
    write(
        &dir.join("vqav2/v2_OpenEnded_mscoco_val2014_questions.json"),
        &json!({"data_subtype": "val2014", "questions": questions}),
    );
    write(
        &dir.join("vqav2/v2_mscoco_val2014_annotations.json"),
        &json!({"data_subtype": "val2014", "annotations": annotations}),
    );
}

fn nobody_knows(_: usize) -> Vec<String> {
    vec!["unknown".to_owned(); 10]
}

/// `qbridge eval` of the demo bundle in `dir`.
fn eval<'a>(dir: &Path, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = qbridge(["eval"]);
    command.current_dir(dir).arg(demo_bundle()).args(args);
    command
}

const VQAV2: [&str; 6] = ["--task", "vqav2", "--data", "vqav2", "--images", "coco"];

fn vqa<'a>(dir: &Path, args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = eval(dir, VQAV2);
    command.args(args);
    command
}

fn results(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn metric(results: &Value, name: &str) -> f64 {
    let metrics = results["metrics"].as_array().unwrap();
    let metric = metrics.iter().find(|metric| metric["name"] == name);
    metric.unwrap_or_else(|| panic!("{results}"))["value"]
        .as_f64()
        .unwrap()
}

/// The rows of a file, without the settings that it begins with.
fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.ends_with('\n'), "a half line");
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert!(lines.next().unwrap()["settings"].is_object());
    let rows: Vec<Value> = lines.collect();
    assert!(rows.iter().all(|row| row["id"].is_number()), "{rows:?}");
    rows
}

/// An answer of the demo as the official scorer leaves it: all of them are of these forms.
fn normalized(answer: &str) -> String {
    let answer = answer.to_lowercase();
    let answer = answer.trim_end_matches('.');
    let words = answer
        .split(' ')
        .filter(|word| !["a", "an", "the"].contains(word));
    let digits = |word| match word {
        "one" => "1",
        "two" => "2",
        "three" => "3",
        "four" => "4",
        word => word,
    };
    words.map(digits).collect::<Vec<_>>().join(" ")
}

/// VQA accuracy where `k` of ten people said what the model says: each person is left out in turn, and
/// three of the others are enough.
const ACCURACY: [f64; 11] = [0.0, 0.3, 0.6, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];

#[test]
fn killed_runs_lose_nothing_and_score_what_they_say() {
    let (n, n_pictures) = (100, 10);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    coco(dir);
    vqav2(dir, n, n_pictures, nobody_knows);
    let path = dir.join("a.jsonl");
    let args = ["--out", "a.jsonl", "--resume", "--json"];
    let output = run_killed(|| vqa(dir, args), &path, n, 3);
    assert_eq!(output.status.code(), Some(1), "broken pictures are told");

    let found = rows(&path);
    assert_eq!(found.len(), n);
    for (i, row) in found.iter().enumerate() {
        let question = question(i, n_pictures);
        assert_eq!(row["id"], question["question_id"], "each once, in order");
        assert_eq!(row["question"], question["question"]);
        let image_id = question["image_id"].as_u64().unwrap();
        assert_eq!(row["image"], coco_name(image_id as usize));
        assert_eq!(row["answer"].is_string(), image_id < 9, "{row}");
        let error = row["error"].as_str().unwrap_or_default();
        match image_id {
            9 => assert!(!error.is_empty() && !error.contains("neither"), "{error}"),
            10 => assert!(error.contains("neither here nor in val2014/"), "{error}"),
            _ => assert!(row["error"].is_null(), "{row}"),
        }
    }
    let told = results(&output);
    assert_eq!(told["records"], n * 8 / 10);
    assert_eq!(told["errors"], n * 2 / 10);
    assert_eq!(metric(&told, "accuracy"), 0.0);

    // The answers are those of `qbridge ask`.
    for i in [0, 5, 19, 33] {
        let picture = demo_picture(PICTURES[i / QUESTIONS.len()]);
        let mut ask = qbridge(["ask"]);
        ask.arg(demo_bundle())
            .arg(picture)
            .arg(QUESTIONS[i % QUESTIONS.len()]);
        assert_eq!(found[i]["answer"], stdout(&mut ask).trim());
    }

    // Now k of ten people say what the model said, and what that is worth is known.
    let said = |i: usize| normalized(found[i]["answer"].as_str().unwrap_or("none"));
    let people = |i: usize| {
        let others = (i % 11..10).map(|k| format!("something else {k}"));
        let alike = std::iter::repeat_n(said(i), i % 11);
        alike.chain(others).collect()
    };
    vqav2(dir, n, n_pictures, people);
    let answered: Vec<usize> = (0..n).filter(|i| found[*i]["answer"].is_string()).collect();
    let sum: f64 = answered.iter().map(|i| ACCURACY[i % 11]).sum();
    let expected = 100.0 * sum / answered.len() as f64;
    let before = std::fs::read(&path).unwrap();
    let again = results(&vqa(dir, args).output().unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), before, "nothing was left");
    let of_file = qbridge(["eval", "--answers", "a.jsonl", "--json"])
        .args(VQAV2)
        .current_dir(dir)
        .output()
        .unwrap();
    assert_eq!(of_file.status.code(), Some(1));
    let files = Task::Vqav2.find(&dir.join("vqav2"), None).unwrap();
    let mut dataset = Dataset::read(Task::Vqav2, &files, None).unwrap();
    let answers = Answers::read(&path).unwrap();
    dataset
        .records
        .retain(|record| !answers.has_failed(&record.id));
    let texts = answers.aligned(&dataset, &path).unwrap();
    let of_crate = serde_json::to_value(eval::score(&dataset, &texts, 0)).unwrap();
    for results in [&again, &results(&of_file), &of_crate] {
        let accuracy = metric(results, "accuracy");
        assert!((accuracy - expected).abs() < 1e-9, "{results}: {expected}");
        assert_eq!(results["metrics"], of_crate["metrics"]);
    }
    assert_eq!(again["run"]["skipped"], n);
    assert_eq!(again["run"]["questions"], 0);
}

#[test]
fn scores_of_answers_at_hand_are_the_official_scorers() {
    let text = std::fs::read_to_string(golden("eval/scores.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, f64>> = serde_json::from_str(&text).unwrap();
    assert_eq!(expected.len(), Task::answered().count());
    for (task, expected) in expected {
        let data = golden(&format!("eval/{task}"));
        let score = |more: &[&str]| {
            let mut command = qbridge(["eval", "--task", &task]);
            command.arg("--data").arg(&data);
            command.arg("--answers").arg(data.join("answers.json"));
            stdout(command.args(more))
        };
        let results: Value = serde_json::from_str(&score(&["--json"])).unwrap();
        for (name, expected) in &expected {
            let found = metric(&results, name);
            assert!(
                (found - expected).abs() < 1e-6,
                "{task} {name}: {found} beside {expected}"
            );
        }
        let table = score(&[]);
        assert_eq!(table.lines().count(), 1 + expected.len(), "{table}");
        for name in expected.keys() {
            assert!(table.lines().any(|line| line.starts_with(name)), "{table}");
        }
    }
}

#[test]
fn a_preset_asks_what_its_paper_asks() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    coco(dir);
    vqav2(dir, 5, 1, nobody_knows);
    // One question alone, as `qbridge ask` computes it: a tie is decided alike.
    let of = |args: &str| -> (Value, Value) {
        let told = stdout(&mut vqa(dir, args.split(' ')));
        (
            serde_json::from_str(&told).unwrap(),
            rows(&dir.join("a.jsonl"))[0].clone(),
        )
    };
    let ask = |args: &str, prompt: &str| {
        let mut command = qbridge(["ask", "--raw", "--min-tokens", "1"]);
        command.args(args.split(' ')).arg(demo_bundle());
        command.arg(demo_picture("dog")).arg(prompt);
        stdout(&mut command).trim().to_owned()
    };
    let (told, row) = of("--preset blip2 --limit 1 --out a.jsonl --json");
    assert_eq!(told["settings"]["prompt"], "Question: {} Answer:");
    let paper = "--max-tokens 10 --num-beams 5 --length-penalty -1";
    assert_eq!(row["answer"], ask(paper, "Question: what is this? Answer:"));
    // What is said on the command line wins.
    let (told, row) = of(
        "--preset blip2 --prompt q:{} --max-tokens 3 --num-beams 1 --limit 1 --out a.jsonl --overwrite --json",
    );
    assert_eq!(told["settings"]["num_beams"], 1);
    assert_eq!(row["answer"], ask("--max-tokens 3", "q:what is this?"));
}

#[test]
fn pope_is_answered_by_the_likelier_of_yes_and_no() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    coco(dir);
    let things = ["dog", "penguin", "banana", "bicycle", "sunflower"];
    let line = |i: usize| {
        let (image, thing) = (i / 5, things[i % 5]);
        let label = if image == i % 5 { "yes" } else { "no" };
        json!({
            "question_id": i + 1,
            "image": coco_name(1 + image),
            "text": format!("Is there a {thing} in the image?"),
            "label": label,
        })
    };
    let lines: Vec<Value> = (0..25).map(line).collect();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::create_dir(dir.join("pope")).unwrap();
    std::fs::write(dir.join("pope/coco_pope_popular.json"), text).unwrap();
    let args = "--task pope --data pope --images coco --choices no,yes --out a.jsonl --submission b.json --json";
    let told: Value = serde_json::from_str(&stdout(&mut eval(dir, args.split(' ')))).unwrap();
    let rows = rows(&dir.join("a.jsonl"));
    let count = |answer: &str, label: &str| -> f64 {
        let pairs = rows.iter().zip(&lines);
        let alike = pairs.filter(|(row, line)| row["answer"] == answer && line["label"] == label);
        alike.count() as f64
    };
    let (tp, fp) = (count("yes", "yes"), count("yes", "no"));
    let (tn, fn_) = (count("no", "no"), count("no", "yes"));
    assert_eq!(tp + fp + tn + fn_, 25.0);
    assert!(tp > 0.0 && tn > 0.0, "both are said: {rows:?}");
    for (name, expected) in [
        ("accuracy", (tp + tn) / 25.0),
        ("precision", tp / (tp + fp)),
        ("recall", tp / (tp + fn_)),
        ("f1", 2.0 * tp / (2.0 * tp + fp + fn_)),
        ("yes ratio", (tp + fp) / 25.0),
    ] {
        assert!((metric(&told, name) - expected).abs() < 1e-12, "{name}");
    }
    // As POPE's `evaluate.py` reads answers.
    let submission = std::fs::read_to_string(dir.join("b.json")).unwrap();
    for ((line, row), asked) in submission.lines().zip(&rows).zip(&lines) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            line,
            json!({"question": asked["text"], "answer": row["answer"]})
        );
    }
}

#[test]
fn there_is_no_submission_while_questions_failed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    coco(dir);
    std::fs::create_dir(dir.join("pope")).unwrap();
    // Picture 9 is broken.
    let line = |image: usize| {
        let line = json!({
            "question_id": image,
            "image": coco_name(image),
            "text": "Is there a dog in the image?",
            "label": "no",
        });
        format!("{line}\n")
    };
    let questions: String = [1, 9, 2].map(line).concat();
    std::fs::write(dir.join("pope/coco_pope_popular.json"), questions).unwrap();
    let args = "--task pope --data pope --images coco --choices yes,no --out a.jsonl --resume --submission b.json --json";
    let run = || eval(dir, args.split(' ')).output().unwrap();
    let output = run();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("b.json is not written: 1 of 3 questions failed"),
        "{told}"
    );
    assert!(!dir.join("b.json").exists());
    assert_eq!(results(&output)["records"], 2);

    // As the message says.
    let broken = dir.join("coco/val2014").join(coco_name(9));
    std::fs::copy(demo_picture("dog"), broken).unwrap();
    let rows = std::fs::read_to_string(dir.join("a.jsonl")).unwrap();
    let is_whole = |line: &&str| line.contains("\"error\":null") || line.contains("\"settings\"");
    let rows: Vec<&str> = rows.lines().filter(is_whole).collect();
    assert_eq!(rows.len(), 3);
    std::fs::write(dir.join("a.jsonl"), rows.join("\n") + "\n").unwrap();
    let output = run();
    assert!(output.status.success(), "{output:?}");
    let submission = std::fs::read_to_string(dir.join("b.json")).unwrap();
    assert_eq!(submission.lines().count(), 3);
}

#[test]
fn answers_to_other_questions_are_refused() {
    let data = golden("eval/pope");
    let text = std::fs::read_to_string(data.join("answers.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let refused = |lines: &[&str], told: &str| {
        std::fs::write(&path, lines.join("\n")).unwrap();
        let mut command = qbridge(["eval", "--task", "pope"]);
        command.arg("--data").arg(&data).arg("--answers").arg(&path);
        let error = one_line_error(&mut command);
        assert!(error.contains(told), "{error}");
    };
    let lines: Vec<&str> = text.lines().collect();
    let reversed: Vec<&str> = lines.iter().rev().copied().collect();
    refused(&reversed, "line 1: question is ");
    let too_many = [lines.as_slice(), &lines[..1]].concat();
    refused(&too_many, "this is the first too many");
    let settings = ["{\"settings\":{\"seed\":1}}", "{\"settings\":{\"seed\":2}}"];
    refused(&settings, "line 2: settings.seed is 2, and 1 in line 1");
}

#[test]
fn captions_need_no_question_and_test_splits_no_references() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    coco(dir);
    let images: Vec<Value> = (1..9)
        .map(|id| json!({"id": id, "file_name": coco_name(id)}))
        .collect();
    let captions = ["a dog", "a penguin", "a banana", "a bicycle", "a sunflower"];
    let annotations: Vec<Value> = (0..8)
        .map(|i| json!({"id": i, "image_id": i + 1, "caption": captions.get(i).unwrap_or(&"two things")}))
        .collect();
    let file = dir.join("coco/captions_val2014.json");
    write(
        &file,
        &json!({"images": images, "annotations": annotations}),
    );
    let args = "--task coco --data coco --out a.jsonl --submission b.json --json --prompt";
    let mut args: Vec<&str> = args.split(' ').collect();
    args.push("what is this?");
    let told: Value = serde_json::from_str(&stdout(&mut eval(dir, args))).unwrap();
    // Five are what people say, in two words each: one- and two-grams alike, longer ones none. The other three
    // share no word with what people say.
    let rows = rows(&dir.join("a.jsonl"));
    let mut words = 0;
    for (i, row) in rows.iter().enumerate() {
        let answer = row["answer"].as_str().unwrap();
        assert_eq!(captions.get(i).copied(), (i < 5).then_some(answer));
        assert!(i < 5 || !answer.contains("two") && !answer.contains("things"));
        words += answer.split(' ').count();
    }
    let close = |name: &str, expected: f64| {
        let found = metric(&told, name);
        assert!(
            (found - expected).abs() < 1e-6,
            "{name}: {found} beside {expected}"
        );
    };
    close("CIDEr", 10.0 * (1.0 + 1.0) / 4.0 * 5.0 / 8.0);
    close("BLEU-1", 10.0 / words as f64);
    close("ROUGE-L", 5.0 / 8.0);
    let submission: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(dir.join("b.json")).unwrap()).unwrap();
    for (answer, row) in submission.iter().zip(&rows) {
        assert_eq!(
            *answer,
            json!({"image_id": row["id"], "caption": row["answer"]})
        );
    }

    // A test split: the file to send in, and no scores.
    std::fs::write(
        dir.join("questions.json"),
        json!({"data_subtype": "val2014", "questions": [question(0, 1)]}).to_string(),
    )
    .unwrap();
    let args = "--task vqav2 --questions questions.json --images coco --submission c.json";
    let said = stdout(&mut eval(dir, args.split(' ')));
    assert!(said.starts_with("no scores"), "{said}");
    let submission: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("c.json")).unwrap()).unwrap();
    assert_eq!(
        submission,
        json!([{"question_id": 1000, "answer": "a dog"}])
    );
}

#[test]
fn shards_are_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    coco(dir);
    vqav2(dir, 40, 8, nobody_knows);
    let mut all = String::new();
    for part in ["1/2", "2/2"] {
        stdout(&mut vqa(
            dir,
            ["--shard", part, "--out", "a.jsonl", "--overwrite"],
        ));
        let part = rows(&dir.join("a.jsonl"));
        assert!(
            !part.is_empty() && part.len() < 40 && part.len().is_multiple_of(5),
            "{}",
            part.len()
        );
        all.push_str(&std::fs::read_to_string(dir.join("a.jsonl")).unwrap());
    }
    std::fs::write(dir.join("all.jsonl"), all).unwrap();
    let mut score = qbridge(["eval", "--answers", "all.jsonl", "--json"]);
    let told: Value = serde_json::from_str(&stdout(score.args(VQAV2).current_dir(dir))).unwrap();
    assert_eq!(told["records"], 40);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    coco(dir);
    vqav2(dir, 3, 1, nobody_knows);
    let refused = |args: &[&str], told: &str| {
        let error = one_line_error(&mut vqa(dir, args.iter().copied()));
        assert!(error.contains(told), "{args:?}: {error}");
    };
    stdout(&mut vqa(dir, ["--out", "a.jsonl", "--limit", "1"]));
    refused(&["--out", "a.jsonl"], "a.jsonl exists already");
    refused(
        &["--out", "a.jsonl", "--resume", "--num-beams", "2"],
        "it was begun with num_beams = 1, and now it is 2",
    );
    // More questions are no other settings.
    stdout(&mut vqa(dir, ["--out", "a.jsonl", "--resume"]));
    assert_eq!(rows(&dir.join("a.jsonl")).len(), 3);
    for mine in ["mine", "{\"mine\":1}", "{\"mine\":1}\n"] {
        std::fs::write(dir.join("b.jsonl"), mine).unwrap();
        refused(
            &["--out", "b.jsonl", "--resume"],
            "line 1 is none of `qbridge eval`",
        );
        assert_eq!(std::fs::read_to_string(dir.join("b.jsonl")).unwrap(), mine);
    }
    let error = one_line_error(
        qbridge(["eval", "--answers", "absent.jsonl"])
            .args(VQAV2)
            .current_dir(dir),
    );
    assert!(error.contains("absent.jsonl"), "{error}");
    assert_eq!(error.matches("No such file").count(), 1, "{error}");
    refused(&["--prompt", "what?"], "no place for the question");
    refused(&["--split", "minival"], "vqav2 has no split \"minival\"");
    refused(
        &["--num-beams", "5", "--temperature", "1"],
        "beams are not drawn",
    );
    let error = one_line_error(&mut eval(
        dir,
        ["--task", "vqav2", "--data", "vqav2", "--images", "vqav2"],
    ));
    assert!(
        error.contains("not one of the pictures is there"),
        "{error}"
    );
    for wrong in [
        ["--task", "imagenet"].as_slice(),
        &["--preset", "blip3"],
        &["--resume"],
        &["--shard", "3/2"],
        &["--answers", "a.jsonl"],
        &["--limit", "0"],
        &["--choices", "yes,yes"],
        &["--choices", "yes,,no"],
    ] {
        let output = vqa(dir, wrong.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}
