//! Bad input is a normal case: one clear line that names what is wrong, exit
//! code 1, and a server that goes on serving.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use qbridge_tests::{Server, chat, demo_bundle, golden, one_line_error, qbridge, repository};

fn demo_picture() -> PathBuf {
    repository().join("demo/pictures/dog.png")
}

/// A PNG header that announces 30000 x 30000 pixels, and nothing after it.
fn huge_png() -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(30_000_u32.to_be_bytes());
    chunk.extend(30_000_u32.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    png.extend(13_u32.to_be_bytes());
    png.extend(&chunk);
    png.extend(crc32(&chunk).to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Pictures that cannot be read, each with words that the error must hold.
fn bad_pictures() -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let whole = std::fs::read(demo_picture()).unwrap();
    vec![
        (
            "truncated.png",
            whole[..whole.len() / 2].to_vec(),
            &["cut short"],
        ),
        ("empty.png", Vec::new(), &["empty"]),
        ("huge.png", huge_png(), &["30000"]),
        ("text.png", b"this is no picture at all".to_vec(), &["PNG"]),
    ]
}

#[test]
fn bad_pictures_are_named_with_their_fault() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes, words) in bad_pictures() {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        for command in ["ask", "encode"] {
            let mut command = qbridge([command]);
            command.arg(demo_bundle()).arg(&path);
            if command.get_args().next().unwrap() == "ask" {
                command.arg("what is this?");
            } else {
                command.arg("--out").arg(dir.path().join("x.safetensors"));
            }
            let error = one_line_error(&mut command);
            assert!(error.contains(name), "{error}");
            for word in words {
                assert!(error.contains(word), "{name}: {error}");
            }
        }
    }
    let error = one_line_error(
        qbridge(["ask"])
            .arg(demo_bundle())
            .arg(dir.path().join("absent.png"))
            .arg("what is this?"),
    );
    assert!(error.contains("absent.png"), "{error}");
    let error = one_line_error(
        qbridge(["ask"])
            .arg(demo_bundle())
            .arg(dir.path())
            .arg("what is this?"),
    );
    assert!(error.contains("directory"), "{error}");
}

#[test]
fn questions_that_cannot_be_asked() {
    let ask = |question: &str, extra: &[&str]| {
        one_line_error(
            qbridge(["ask"])
                .arg(demo_bundle())
                .arg(demo_picture())
                .arg(question)
                .args(extra),
        )
    };
    assert!(ask("", &[]).contains("question is empty"));
    let error = ask(&"word ".repeat(300), &["--ctx-size", "256"]);
    assert!(
        error.contains("256") && error.contains("context"),
        "{error}"
    );
}

/// Copies the golden checkpoint, to be damaged.
fn checkpoint(dir: &Path) -> PathBuf {
    let copy = dir.join("checkpoint");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(golden("llm/checkpoint")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

fn bundle_error(checkpoint: &Path, llm: &Path, dir: &Path) -> String {
    let out = dir.join("bundle");
    let error = one_line_error(
        qbridge(["bundle"])
            .arg(checkpoint)
            .arg("--llm")
            .arg(llm)
            .arg("--out")
            .arg(&out),
    );
    assert!(!out.exists(), "nothing that looks like a bundle is left");
    error
}

#[test]
fn a_missing_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    std::fs::remove_file(checkpoint.join("model.safetensors")).unwrap();
    std::fs::write(
        checkpoint.join("model.safetensors.index.json"),
        r#"{"weight_map": {"query_tokens": "model-00001-of-00002.safetensors"}}"#,
    )
    .unwrap();
    let error = bundle_error(&checkpoint, &golden("llm/llm.gguf"), dir.path());
    assert!(
        error.contains("model-00001-of-00002.safetensors"),
        "{error}"
    );
}

#[test]
fn damaged_safetensors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(dir.path());
    let path = checkpoint.join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut header_too_long = whole.clone();
    header_too_long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut header_not_json = whole.clone();
    header_not_json[8..16].copy_from_slice(b"not json");
    for bytes in [
        Vec::new(),
        whole[..7].to_vec(),
        whole[..whole.len() - 100].to_vec(),
        header_too_long,
        header_not_json,
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = bundle_error(&checkpoint, &golden("llm/llm.gguf"), dir.path());
        assert!(error.contains("model.safetensors"), "{error}");
    }
}

#[test]
fn a_language_model_of_another_width_is_refused_with_both_numbers_and_files() {
    let dir = tempfile::tempdir().unwrap();
    // The demo's GGUF is 576 wide, the golden checkpoint's projection gives 128.
    let error = bundle_error(
        &golden("llm/checkpoint"),
        &demo_bundle().join("llm.gguf"),
        dir.path(),
    );
    for word in ["128", "576", "model.safetensors", "llm.gguf"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn what_is_no_language_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(golden("llm/llm.gguf")).unwrap();
    let path = dir.path().join("llm.gguf");
    for bytes in [&b""[..], b"GGUF", b"not a GGUF, but text", &whole[..2000]] {
        std::fs::write(&path, bytes).unwrap();
        let error = bundle_error(&golden("llm/checkpoint"), &path, dir.path());
        assert!(error.contains("llm.gguf"), "{error}");
    }
}

#[test]
fn a_directory_that_is_no_bundle_says_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = one_line_error(
        qbridge(["ask"])
            .arg(dir.path())
            .arg(demo_picture())
            .arg("what is this?"),
    );
    assert!(error.contains("qbridge bundle"), "{error}");
}

#[test]
fn the_server_answers_bad_input_and_goes_on() {
    let server = Server::start(&demo_bundle(), &["--ctx-size", "256"]);
    let whole = std::fs::read(demo_picture()).unwrap();
    for (name, bytes, words) in bad_pictures() {
        let (status, body) = server.post("/chat/completions", &chat(&bytes, "what is this?"));
        let expected = if name == "huge.png" { 413 } else { 400 };
        assert_eq!(status, expected, "{name}: {body}");
        let message = body["error"]["message"].as_str().unwrap();
        // An empty data URI is refused before anything is decoded.
        let words = if name == "empty.png" {
            &["no bytes"]
        } else {
            words
        };
        for word in words {
            assert!(message.contains(word), "{name}: {message}");
        }
        for field in ["type", "param", "code"] {
            assert!(body["error"].get(field).is_some(), "{name}: {body}");
        }
    }
    let (status, body) = server.post("/chat/completions", &chat(&whole, &"word ".repeat(300)));
    assert_eq!(status, 400, "{body}");
    assert_eq!(body["error"]["code"], "context_length_exceeded");
    let (status, body) = server.post("/chat/completions", &chat(&whole, ""));
    assert_eq!(status, 400, "{body}");
    assert_eq!(body["error"]["code"], "invalid_prompt");
    assert_eq!(server.post_text("/chat/completions", "{").0, 400);
    assert_eq!(server.post_text("/nowhere", "{}").0, 404);

    let (status, body) = server.post("/chat/completions", &chat(&whole, "what is this?"));
    assert_eq!(status, 200, "{body}");
}
