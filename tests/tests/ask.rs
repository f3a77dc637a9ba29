//! `qbridge ask` with several pictures and questions, JSON lines, choices, schemas, and questions that are typed.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use qbridge_tests::{
    demo_bundle, golden, one_line_error, qbridge, qbridge_path, repository, stdout,
};
use serde_json::{Value, json};

/// Far longer than an answer takes.
const DEADLINE: Duration = Duration::from_secs(120);

const QUESTIONS: [&str; 2] = ["What is this?", "Is this an animal?"];

fn picture(name: &str) -> String {
    let path = repository().join(format!("demo/pictures/{name}.png"));
    path.to_str().unwrap().to_owned()
}

/// `qbridge ask BUNDLE`, with answers that do not depend on what else is computed.
fn ask<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = qbridge(["ask", "--cache-type", "f32"]);
    command.arg(demo_bundle()).args(args);
    command
}

fn output(command: &mut Command, stdin: impl AsRef<[u8]>) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(stdin.as_ref())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn rows(output: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(output).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What each picture is answered to each question, asked alone.
fn alone(pictures: &[String]) -> Vec<[String; 3]> {
    let asked = pictures
        .iter()
        .flat_map(|picture| QUESTIONS.map(|question| (picture, question)));
    asked
        .map(|(picture, question)| {
            let answer = stdout(&mut ask([picture, question]));
            [
                picture.clone(),
                question.to_owned(),
                answer.trim_end().to_owned(),
            ]
        })
        .collect()
}

#[test]
fn each_question_of_each_picture_is_answered_as_if_it_were_alone() {
    // Nothing that the model is in two minds about: how rows are batched moves its log-probabilities by some tenths.
    let pictures = ["bicycle", "dog"].map(picture);
    let expected = alone(&pictures);
    let answers: Vec<&str> = expected.iter().map(|each| each[2].as_str()).collect();
    assert_eq!(answers, ["a bicycle", "no", "a dog", "yes"]);

    let text = stdout(ask(&pictures).args(["-q", QUESTIONS[0], "--question", QUESTIONS[1]]));
    let found: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    assert_eq!(found, expected);

    let text = stdout(ask(&pictures).args([QUESTIONS[0], "--json", "--slots", "2"]));
    for (row, [picture, question, answer]) in
        rows(text.as_bytes()).iter().zip(expected.iter().step_by(2))
    {
        assert_eq!(row["images"], json!([picture]));
        assert_eq!(row["question"], question.as_str());
        assert_eq!(row["text"], answer.as_str());
        assert_eq!(row["error"], Value::Null);
        assert_eq!(row["finish_reason"], "stop");
    }
}

#[test]
fn a_picture_that_fails_leaves_the_others_their_answers() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.png");
    std::fs::write(&broken, &std::fs::read(picture("dog")).unwrap()[..600]).unwrap();
    let broken = broken.to_str().unwrap();
    let args = [
        &picture("penguin"),
        broken,
        "absent.png",
        &picture("dog"),
        QUESTIONS[0],
    ];
    for is_json in [false, true] {
        let output = ask(args)
            .args(is_json.then_some("--json"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("2 of 4 questions failed"), "{told}");
        if is_json {
            let rows = rows(&output.stdout);
            assert_eq!(rows.len(), 4);
            assert!(rows[0]["text"] == "a penguin" && rows[3]["text"].is_string());
            let error = |row: &Value| row["error"].as_str().unwrap().to_owned();
            assert!(error(&rows[1]).contains("broken.png"), "{rows:?}");
            assert!(error(&rows[2]).contains("absent.png"), "{rows:?}");
            assert!(rows[1]["text"].is_null() && rows[2]["text"].is_null());
        } else {
            assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
            assert!(
                told.contains("broken.png") && told.contains("absent.png"),
                "{told}"
            );
        }
    }
}

#[test]
fn lines_are_answered_in_their_order_and_bad_ones_disturb_none() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("broken.png"), "no picture").unwrap();
    let (penguin, dog) = (picture("penguin"), picture("dog"));
    let lines = [
        json!({"id": 7, "image": penguin, "question": QUESTIONS[0]}).to_string(),
        "nonsense".to_owned(),
        json!({"id": "b", "image": "broken.png", "question": QUESTIONS[0]}).to_string(),
        json!({"images": [dog], "question": QUESTIONS[0]}).to_string(),
        json!({"id": "c", "image": "absent.png", "question": QUESTIONS[0]}).to_string(),
        json!({"id": "u", "image": "http://127.0.0.1/x.png", "question": QUESTIONS[0]}).to_string(),
        String::new(),
        json!({"id": "e", "image": dog, "question": " "}).to_string(),
        json!({"id": "d", "image": dog, "question": QUESTIONS[1], "choices": ["yes", "no"]})
            .to_string(),
    ];
    let path = dir.path().join("questions.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    let output = ask(["--jsonl", "questions.jsonl"])
        .current_dir(&dir)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told.trim_end(), "qbridge: 5 of 8 questions failed");

    let rows = rows(&output.stdout);
    let numbers: Vec<u64> = rows
        .iter()
        .map(|row| row["line"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 8, 9]);
    let ids: Vec<Value> = rows.iter().map(|row| row["id"].clone()).collect();
    assert_eq!(
        ids,
        [
            json!(7),
            json!(null),
            json!("b"),
            json!(null),
            json!("c"),
            json!("u"),
            json!("e"),
            json!("d")
        ]
    );
    for (row, told) in [
        (1, "line 2: not JSON"),
        (2, "broken.png: "),
        (4, "absent.png: "),
        (5, "http://127.0.0.1/x.png: "),
        (6, "question is empty"),
    ] {
        let error = rows[row]["error"].as_str().unwrap();
        assert!(error.contains(told), "{error}");
        assert!(rows[row]["text"].is_null());
    }
    assert_eq!(rows[0]["text"], "a penguin");
    assert_eq!(
        rows[3]["text"],
        stdout(&mut ask([&dog, QUESTIONS[0]])).trim_end()
    );
    assert_eq!(rows[7]["choices"].as_array().unwrap().len(), 2);
    assert_eq!(rows[7]["text"], rows[7]["choices"][0]["text"]);
}

#[test]
fn a_refused_line_comes_back_with_what_it_held() {
    let dog = picture("dog");
    let lines = [
        json!({"id": "a", "image": dog, "question": QUESTIONS[1], "colour": "red"}).to_string(),
        "[]".to_owned(),
        format!("{{\"id\": 18446744073709551616, \"image\": \"{dog}\", \"question\": \"what?\"}}"),
        json!({"image": dog, "question": QUESTIONS[0], "choices": ["yes", "yes"]}).to_string(),
    ];
    // As some editors begin a file.
    let text = format!("\u{feff}{}\n", lines.join("\n"));
    let output = output(&mut ask(["--jsonl", "-"]), text);
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&output.stdout);
    assert_eq!(rows[0]["question"], QUESTIONS[1]);
    assert_eq!(rows[0]["images"], json!([dog]));
    assert_eq!(rows[0]["id"], "a");
    for (row, told) in rows.iter().zip([
        "line 1: unknown field `colour`",
        "line 2: an object is expected",
        "line 3: id is a number that would not come back",
        "line 4: choices: \"yes\" is there twice",
    ]) {
        let error = row["error"].as_str().unwrap();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn a_line_from_a_pipe_is_answered_before_the_next_is_written() {
    let mut child = ask(["--jsonl", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let answers = lines_of(child.stdout.take().unwrap());
    for name in ["penguin", "dog"] {
        let line = json!({"image": picture(name), "question": QUESTIONS[0]});
        writeln!(stdin, "{line}").unwrap();
        let row: Value = serde_json::from_str(&answers.recv_timeout(DEADLINE).unwrap()).unwrap();
        assert_eq!(row["images"][0], picture(name));
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

/// Lines as they come, to be waited for no longer than one wants.
fn lines_of(reader: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
        lines.all(|line| sender.send(line).is_ok())
    });
    receiver
}

/// A bundle of the golden checkpoint, whose log-probabilities transformers told.
fn golden_bundle(dir: &Path) -> PathBuf {
    let out = dir.join("tiny");
    let mut bundle = qbridge(["bundle"]);
    bundle
        .arg(golden("llm/checkpoint"))
        .arg("--llm")
        .arg(golden("llm/llm.gguf"));
    stdout(bundle.arg("--out").arg(&out));
    out
}

#[test]
fn choices_are_ranked_by_transformers_log_probabilities() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = golden_bundle(dir.path());
    let scores: Value =
        serde_json::from_slice(&std::fs::read(golden("llm/scores.json")).unwrap()).unwrap();
    let cases = scores["cases"].as_array().unwrap();
    let known = |case: &Value| -> Vec<(String, Vec<f64>)> {
        let answers = case["answers"].as_array().unwrap().iter();
        let logprobs = |answer: &Value| {
            let all = answer["logprobs"].as_array().unwrap().iter();
            all.map(|logprob| logprob.as_f64().unwrap()).collect()
        };
        answers
            .filter_map(|answer| Some((answer["text"].as_str()?.to_owned(), logprobs(answer))))
            .collect()
    };
    let image = |case: &Value| {
        golden(&format!(
            "llm/pictures/{}.png",
            case["picture"].as_str().unwrap()
        ))
    };
    let lines: String = cases
        .iter()
        .map(|case| {
            let choices: Vec<String> = known(case).into_iter().map(|(text, _)| text).collect();
            let line =
                json!({"image": image(case), "question": case["prompt"], "choices": choices});
            format!("{line}\n")
        })
        .collect();
    for (rank_by, is_mean) in [("sum", false), ("mean", true)] {
        let mut command = qbridge([
            "ask",
            "--raw",
            "--jsonl",
            "-",
            "--cache-type",
            "f32",
            "--rank-by",
            rank_by,
        ]);
        let output = output(command.arg(&bundle), &lines);
        assert!(output.status.success());
        let rows = rows(&output.stdout);
        assert_eq!(rows.len(), cases.len());
        for (row, case) in rows.iter().zip(cases) {
            // The reference's sums, by hand.
            let mut expected: Vec<(String, f64, f64, usize)> = known(case)
                .into_iter()
                .map(|(text, logprobs)| {
                    let (sum, n) = (logprobs.iter().sum::<f64>(), logprobs.len());
                    (text, sum, if is_mean { sum / n as f64 } else { sum }, n)
                })
                .collect();
            expected.sort_by(|a, b| b.2.total_cmp(&a.2));
            let total: f64 = expected.iter().map(|each| each.2.exp()).sum();
            let choices = row["choices"].as_array().unwrap();
            assert_eq!(choices.len(), expected.len());
            assert_eq!(row["text"], expected[0].0.as_str());
            for (choice, (text, sum, score, n)) in choices.iter().zip(&expected) {
                assert_eq!(choice["text"], text.as_str());
                assert_eq!(choice["tokens"], *n);
                let logprob = choice["logprob"].as_f64().unwrap();
                assert!((logprob - sum).abs() < 5e-3, "{text}: {logprob} {sum}");
                let probability = choice["probability"].as_f64().unwrap();
                assert!(
                    (probability - score.exp() / total).abs() < 5e-3,
                    "{text}: {probability}"
                );
            }
        }
    }
}

#[test]
fn the_likeliest_choice_is_the_answer() {
    let (penguin, banana) = (picture("penguin"), picture("banana"));
    let args = ["--choices", "a banana, a penguin,a dog"];
    let text = stdout(ask([&penguin, QUESTIONS[0]]).args(args));
    assert_eq!(text, "a penguin\n");
    let text = stdout(
        ask([&penguin, &banana, QUESTIONS[0]])
            .args(args)
            .arg("--json"),
    );
    let rows = rows(text.as_bytes());
    assert_eq!(
        (&rows[0]["text"], &rows[1]["text"]),
        (&json!("a penguin"), &json!("a banana"))
    );
    for row in rows {
        let probabilities = row["choices"].as_array().unwrap().iter();
        let probabilities: Vec<f64> = probabilities
            .map(|choice| choice["probability"].as_f64().unwrap())
            .collect();
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        assert!(probabilities.is_sorted_by(|a, b| a >= b));
    }
}

#[test]
fn choices_of_the_command_line_are_those_of_lines_without_their_own() {
    let (penguin, dog) = (picture("penguin"), picture("dog"));
    let lines = [
        json!({"image": penguin, "question": QUESTIONS[0]}),
        json!({"image": dog, "question": QUESTIONS[0], "choices": ["a dog", "a cat", "a cow"]}),
    ];
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let args = ["--jsonl", "-", "--choices", "a banana,a penguin"];
    let output = output(&mut ask(args), &lines);
    assert!(output.status.success());
    let rows = rows(&output.stdout);
    for (row, answer, n) in [(&rows[0], "a penguin", 2), (&rows[1], "a dog", 3)] {
        assert_eq!(row["text"], answer);
        assert_eq!(row["choices"].as_array().unwrap().len(), n);
    }
}

#[test]
fn answers_are_json_of_the_schema() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("schema.json");
    let schema = json!({
        "type": "object",
        "properties": {
            "animal": {"type": "boolean"},
            "colour": {"enum": ["black", "white", "brown"]},
            "legs": {"type": "integer", "minimum": 0, "maximum": 4},
        },
        "required": ["animal", "colour", "legs"],
        "additionalProperties": false,
    });
    std::fs::write(&path, schema.to_string()).unwrap();
    let args = [
        &picture("penguin"),
        &picture("dog"),
        "Describe it.",
        "--json",
        "--schema",
    ];
    let text = stdout(ask(args).arg(&path).args(["--max-tokens", "80"]));
    let answers: Vec<Value> = rows(text.as_bytes())
        .iter()
        .map(|row| serde_json::from_str(row["text"].as_str().unwrap()).unwrap())
        .collect();
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let fields = answer.as_object().unwrap();
        assert_eq!(fields.len(), 3, "{answer}");
        assert!(fields["animal"].is_boolean(), "{answer}");
        assert!(
            ["black", "white", "brown"].contains(&fields["colour"].as_str().unwrap()),
            "{answer}"
        );
        assert!(
            (0..=4).contains(&fields["legs"].as_i64().unwrap()),
            "{answer}"
        );
    }

    // Half an object is no answer.
    let mut cut = ask(&args[..3]);
    let output = cut
        .args(["--max-tokens", "3", "--schema"])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("the JSON is cut"), "{told}");

    std::fs::write(&path, "{\"type\": \"colour\"}").unwrap();
    let error = one_line_error(ask(args).arg(&path));
    assert!(
        error.contains("the JSON schema cannot be followed"),
        "{error}"
    );
    std::fs::write(&path, "{").unwrap();
    let error = one_line_error(ask(args).arg(&path));
    assert!(error.contains("schema.json"), "{error}");
}

#[test]
fn questions_from_a_pipe_are_answered_one_by_one() {
    let dog = picture("dog");
    let expected = alone(std::slice::from_ref(&dog));
    let mut child = ask([&dog, "--repeat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let answers = lines_of(child.stdout.take().unwrap());
    for [_, question, answer] in &expected {
        writeln!(stdin, "\n{question}").unwrap();
        assert_eq!(&answers.recv_timeout(DEADLINE).unwrap(), answer);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert!(answers.recv_timeout(DEADLINE).is_err());

    // What does not fit is told, and the next is answered.
    let too_long = "x ".repeat(400);
    let questions = format!("{too_long}\n{}\n", QUESTIONS[0]);
    let output = output(
        ask([&dog, "--repeat", "--json", "--ctx-size", "256"]).arg("--max-tokens=8"),
        &questions,
    );
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&output.stdout);
    assert!(
        rows[0]["error"]
            .as_str()
            .unwrap()
            .contains("the context holds 256"),
        "{rows:?}"
    );
    assert_eq!(rows[1]["text"], "a dog");
    let error = one_line_error(&mut ask(["absent.png", "--repeat"]));
    assert!(error.contains("absent.png"), "{error}");
}

#[test]
fn a_question_that_is_not_utf8_is_told_and_the_next_is_answered() {
    let questions = [b"caf\xe9?\n".as_slice(), b"What is this?\r\n"].concat();
    let output = output(ask([&picture("dog"), "--repeat"]).arg("--json"), questions);
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&output.stdout);
    assert_eq!(rows[0]["error"], "the line is not UTF-8");
    assert_eq!(rows[0]["images"], json!([picture("dog")]));
    assert_eq!(rows[1]["text"], "a dog");
}

#[test]
fn a_picture_is_encoded_once_for_all_questions() {
    let questions = format!("{}\n{}\n", QUESTIONS[0], QUESTIONS[1]);
    let output = output(ask([&picture("dog"), "--repeat"]).arg("--json"), &questions);
    let rows = rows(&output.stdout);
    let vit = |row: &Value| row["timings"]["vit"].as_f64().unwrap();
    assert!(vit(&rows[0]) > 0.0);
    assert_eq!(vit(&rows[1]), 0.0);
}

#[test]
fn wrong_usage_ends_with_two() {
    for args in [
        &[][..],
        &["cat.png"],
        &["-q", "what?"],
        &["a.png", "--repeat", "-q", "what?"],
        &["a.png", "what?", "--choices", "yes,no,yes"],
        &["--jsonl", "-", "--choices", "yes,yes"],
    ] {
        let output = ask(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_examples_of_the_help_work() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for bundle in ["demo", "blip2-opt", "instructblip"] {
        std::os::unix::fs::symlink(demo_bundle(), at(bundle)).unwrap();
    }
    for (name, of) in [
        ("cat", "dog"),
        ("dog", "dog"),
        ("1", "dog"),
        ("2", "penguin"),
        ("3", "dog"),
        ("4", "dog"),
    ] {
        std::os::unix::fs::symlink(picture(of), at(&format!("{name}.png"))).unwrap();
    }
    std::fs::write(at("answer.schema.json"), "{\"type\": \"boolean\"}").unwrap();
    std::fs::write(
        at("questions.jsonl"),
        "{\"image\": \"cat.png\", \"question\": \"what is this?\"}\n",
    )
    .unwrap();
    let talk = json!({"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]});
    std::fs::write(at("talk.json"), talk.to_string()).unwrap();
    // Nothing is fetched in a test.
    let bin = at("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(qbridge_path(), bin.join("qbridge")).unwrap();
    std::fs::write(bin.join("curl"), "#!/bin/sh\ncat cat.png\n").unwrap();
    let mut mode = std::fs::metadata(bin.join("curl")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    std::fs::set_permissions(bin.join("curl"), mode).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for command in ["ask", "chat"] {
        let help = stdout(&mut qbridge([command, "--help"]));
        let examples = help.split_once("Examples:\n").unwrap().1;
        let examples: Vec<&str> = examples
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        assert!(examples.len() > 3, "{help}");
        for example in examples {
            let mut shell = Command::new("bash");
            shell
                .args(["-o", "pipefail", "-c", example])
                .current_dir(dir.path())
                .env("PATH", &path);
            let output = shell
                .env("XDG_STATE_HOME", dir.path())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{example}: {told}");
        }
    }
}
