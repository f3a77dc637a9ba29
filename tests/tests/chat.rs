//! `qbridge chat`, driven through a pipe and through a terminal.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use qbridge_tests::{
    Server, demo_bundle, golden, one_line_error, qbridge, qbridge_path, repository, stdout,
};
use serde_json::{Value, json};

fn picture(name: &str) -> String {
    let path = repository().join(format!("demo/pictures/{name}.png"));
    path.to_str().unwrap().to_owned()
}

fn chat<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>, lines: &[&str]) -> Output {
    let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
    chat_bytes(args, lines.as_bytes())
}

fn chat_bytes<A: AsRef<std::ffi::OsStr>>(
    args: impl IntoIterator<Item = A>,
    lines: &[u8],
) -> Output {
    let mut child = qbridge(["chat", "--cache-type", "f32", "--max-tokens", "24"])
        .arg(demo_bundle())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn rows(output: &Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn text(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.is_empty(), "{told}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

const TURNS: [&str; 2] = ["What is this?", "Is it an animal?"];

/// What the server answers to a conversation, with or without what it keeps of earlier ones: that moves log-probabilities.
fn served(server: &Server, messages: &Value, cache_prompt: bool) -> String {
    let body = json!({
        "model": "qbridge-demo",
        "temperature": 0,
        "max_tokens": 24,
        "messages": messages,
        "cache_prompt": cache_prompt,
    });
    let (status, answer) = server.post("/chat/completions", &body);
    assert_eq!(status, 200, "{answer}");
    let content = &answer["choices"][0]["message"]["content"];
    content.as_str().unwrap().to_owned()
}

#[test]
fn a_conversation_through_a_pipe_is_the_servers() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("talk.json");
    let save = format!("/save {}", saved.display());
    let penguin = picture("penguin");
    let output = chat([&penguin], &[TURNS[0], TURNS[1], &save]);
    let answers = text(&output);
    let answers: Vec<&str> = answers.lines().collect();
    assert_eq!(answers.len(), 2, "answers and nothing else: {answers:?}");
    assert_eq!(answers[0], "a penguin");

    // What was saved goes to the server as it is, and to openai's clients.
    let server = Server::start(&demo_bundle(), &["--cache-type", "f32"]);
    let body: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    assert_eq!(body["model"], "qbridge-demo");
    let messages = body["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 4);
    for (end, answer) in [(1, answers[0]), (3, answers[1])] {
        assert_eq!(
            served(&server, &json!(messages[..end]), true).trim(),
            answer
        );
        assert_eq!(messages[end]["content"], answer);
    }
    // Each token of the answer leads by 1.1 and more in log-probability; what the server keeps moves them by up to 0.2.
    let question = "Is it a bird?";
    let mut further = messages.clone();
    further.push(json!({"role": "user", "content": question}));
    let load = ["--load", saved.to_str().unwrap()];
    let output = chat(load, &[question]);
    assert_eq!(
        text(&output).trim(),
        served(&server, &json!(further), false).trim()
    );
}

#[test]
fn earlier_turns_are_not_computed_again() {
    let output = chat([&picture("penguin"), "--json"], &[TURNS[0], TURNS[1]]);
    let rows = rows(&output);
    let usage = |row: &Value, field: &str| row["usage"][field].as_u64().unwrap();
    assert_eq!(rows[0]["images"], json!([picture("penguin")]));
    assert_eq!(rows[1]["images"], json!([]));
    assert_eq!(
        usage(&rows[1], "image_tokens"),
        usage(&rows[0], "image_tokens")
    );
    // All of the first turn is there already.
    assert!(
        usage(&rows[1], "cached_tokens") >= usage(&rows[0], "prompt_tokens"),
        "{rows:?}"
    );
    assert_eq!(rows[1]["timings"]["vit"], 0.0);
}

#[test]
fn commands_show_reset_and_fail_without_ending_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("broken.png"), "no picture").unwrap();
    let broken = format!("/image {}/broken.png", dir.path().display());
    let dog = format!("/image '{}'", picture("dog"));
    let output = chat(
        [&picture("penguin"), "--json"],
        &[
            TURNS[0],
            "/reset",
            &dog,
            TURNS[0],
            &broken,
            "/image absent.png",
            "/imge x",
            "/save /none/x.json",
            "/help",
            "",
            "/quit",
            "never asked",
        ],
    );
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&output);
    assert_eq!(rows.len(), 6, "{rows:?}");
    assert_eq!(rows[0]["text"], "a penguin");
    // As if it were the first question.
    let alone = stdout(
        qbridge(["ask", "--cache-type", "f32"])
            .arg(demo_bundle())
            .args([&picture("dog"), TURNS[0]]),
    );
    assert_eq!(rows[1]["text"], alone.trim_end());
    assert_eq!(
        rows[1]["usage"]["image_tokens"],
        rows[0]["usage"]["image_tokens"]
    );
    for (row, told) in
        rows[2..]
            .iter()
            .zip(["broken.png", "absent.png", "/help lists", "/none/x.json"])
    {
        assert!(row["error"].as_str().unwrap().contains(told), "{row}");
    }
    let absent = rows[3]["error"].as_str().unwrap();
    assert_eq!(absent.matches("No such file").count(), 1, "{absent}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("/image PATH"), "{told}");
}

#[test]
fn a_refused_turn_leaves_its_picture_to_the_next() {
    let too_long = "very ".repeat(300);
    let output = chat(
        [&picture("banana"), "--json", "--ctx-size", "256"],
        &[&too_long, TURNS[0]],
    );
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&output);
    let error = rows[0]["error"].as_str().unwrap();
    assert!(error.contains("the context holds 256"), "{error}");
    assert_eq!(rows[1]["images"], json!([picture("banana")]));
    assert_eq!(rows[1]["text"], "a banana");
}

#[test]
fn a_line_that_is_not_utf8_is_told_and_the_next_is_answered() {
    let lines = b"caf\xe9?\nWhat is this?\n";
    let output = chat_bytes([&picture("banana"), "--json"], lines);
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&output);
    assert_eq!(rows[0]["error"], "the line is not UTF-8");
    assert_eq!(rows[0]["question"], "caf\u{fffd}?");
    assert_eq!(rows[1]["text"], "a banana");
}

#[test]
fn a_picture_of_which_nothing_was_said_is_saved_and_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("talk.json");
    let save = format!("/save {}", saved.display());
    assert_eq!(text(&chat([picture("banana")], &[&save])), "");
    let body: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    assert_eq!(body["messages"].as_array().unwrap().len(), 1);
    let load = ["--load", saved.to_str().unwrap()];
    assert_eq!(text(&chat(load, &[TURNS[0]])).trim(), "a banana");
}

#[test]
fn only_conversations_are_saved_over() {
    let dir = tempfile::tempdir().unwrap();
    let (shown, mine) = (dir.path().join("dog.png"), dir.path().join("mine.json"));
    std::fs::copy(picture("dog"), &shown).unwrap();
    std::fs::write(&mine, "{\"mine\": 1}").unwrap();
    let save = |path: &Path| format!("/save {}", path.display());
    let saved = dir.path().join("talk.json");
    let lines = [save(&shown), save(&mine), save(&saved), save(&saved)];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let output = chat([shown.to_str().unwrap(), "--json"], &lines);
    assert_eq!(output.status.code(), Some(1));
    let rows = rows(&output);
    assert_eq!(rows.len(), 2, "{rows:?}");
    for (row, name) in rows.iter().zip(["dog.png", "mine.json"]) {
        let error = row["error"].as_str().unwrap();
        assert!(error.contains(name), "{error}");
        assert!(error.contains("/save another file"), "{error}");
    }
    let bytes = |path: &str| std::fs::read(path).unwrap();
    assert_eq!(std::fs::read(&shown).unwrap(), bytes(&picture("dog")));
    assert_eq!(std::fs::read(&mine).unwrap(), b"{\"mine\": 1}");
    assert!(saved.exists());
}

#[test]
fn an_empty_line_has_pictures_described() {
    let caption = stdout(
        qbridge(["caption", "--cache-type", "f32", "--max-tokens", "24"])
            .arg(demo_bundle())
            .arg(picture("dog")),
    );
    let caption: Value = serde_json::from_str(&caption).unwrap();
    assert_eq!(
        text(&chat([picture("dog")], &["", ""])).trim(),
        caption["caption"]
    );
}

#[test]
fn what_cannot_be_begun_with_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("talk.json");
    let command = |args: &[&str]| one_line_error(qbridge(["chat"]).arg(demo_bundle()).args(args));
    let load = path.to_str().unwrap();
    assert!(command(&["--load", load]).contains("talk.json"));
    std::fs::write(
        &path,
        "{\"messages\": [{\"role\": \"tool\", \"content\": \"4\"}]}",
    )
    .unwrap();
    let error = command(&["--load", load]);
    assert!(
        error.contains("talk.json") && error.contains("messages[0].role"),
        "{error}"
    );
    assert!(command(&[load]).contains("talk.json"));
    assert!(command(&["-"]).contains("name a file"));
}

/// Keys, Ctrl-C, history and drawn pictures, as `golden/../pty_chat.py` types and sees them.
#[test]
fn a_terminal_has_editing_history_and_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let script = golden("../pty_chat.py");
    assert!(Path::new(&script).exists());
    let output = Command::new("python3")
        .arg(script)
        .arg(qbridge_path())
        .arg(demo_bundle())
        .arg(picture("penguin"))
        .arg(dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("python3");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
