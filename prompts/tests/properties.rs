//! No text that a user writes changes the structure of a prompt.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use prompts::{ChatTemplate, Layout, Message, Part, Role, Segment, join};
use proptest::prelude::*;
use std::fs;

const SPECIAL: [&str; 7] = [
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<",
    "end|><|im",
    "\n\n",
];

fn template(name: &str) -> ChatTemplate {
    let path = format!(
        "{}/../tests/golden/chat_templates/{name}.jinja",
        env!("CARGO_MANIFEST_DIR")
    );
    ChatTemplate {
        source: fs::read_to_string(path).unwrap(),
        bos_token: "<s>".into(),
        eos_token: "</s>".into(),
    }
}

/// Text made of what could do harm: special tokens, marks of ours, whitespace, jinja.
fn hostile_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        proptest::sample::select(vec![
            "<|im_start|>",
            "<|im_end|>",
            "<|im_",
            "end|>",
            "user\n",
            "</s>",
            "<s>",
            " ",
            "\n",
            "{{ messages }}",
            "{% break %}",
            "\u{F0000}",
            "\u{F0000}00000000000000000000\u{F0003}0\u{F0004}",
            "\u{F0001}0\u{F0004}",
            "\u{F0002}",
            "\u{F0003}1",
            "<think>",
            "</think>",
            "<Img>",
            "###",
            "<tool_response>",
        ])
        .prop_map(str::to_owned),
        ".{0,5}",
        "[0-9]{1,21}",
    ];
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn conversation(system: &str, question: &str, answer: &str, last: &str) -> Vec<Message> {
    vec![
        Message::text(Role::System, system),
        Message {
            role: Role::User,
            parts: vec![Part::Text(question.into()), Part::Image(0)],
        },
        Message::text(Role::Assistant, answer),
        Message {
            role: Role::User,
            parts: vec![Part::Image(1), Part::Text(last.into())],
        },
    ]
}

/// The template's own text, without whitespace (a text's outer whitespace counts as the template's), and pictures.
fn structure(segments: &[Segment]) -> String {
    let mut structure = String::new();
    for segment in segments {
        match segment {
            Segment::Text {
                text,
                special: true,
            } => structure.extend(text.split_whitespace()),
            Segment::Text { .. } => {}
            other => structure.push_str(&format!("{other:?}")),
        }
    }
    structure
}

/// A blank question is refused; that has its own test.
fn hostile_question() -> impl Strategy<Value = String> {
    hostile_text().prop_filter("a question says something", |text| !text.trim().is_empty())
}

fn all_text(segments: &[Segment]) -> String {
    segments
        .iter()
        .map(|segment| match segment {
            Segment::Text { text, .. } => text.clone(),
            other => format!("{other:?}"),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn structure_is_the_templates(
        system in hostile_text(), question in hostile_text(), answer in "[a-z <|>\u{F0000}]{0,20}", last in hostile_question(),
        name in proptest::sample::select(vec!["smollm2", "qwen2.5", "qwen3", "llama-3.2", "phi-3-mini", "content-parts"]),
    ) {
        let layout = Layout::preset("chat-template").unwrap();
        let template = template(name);
        let honest = layout.render(&conversation("a", "b", "c", "d"), Some(&template)).unwrap();
        let hostile = layout.render(&conversation(&system, &question, &answer, &last), Some(&template)).unwrap();
        prop_assert_eq!(structure(&hostile), structure(&honest));
        let text = all_text(&hostile);
        for said in [&system, &question, &answer, &last] {
            prop_assert!(text.contains(said.trim()), "{:?} is missing from {:?}", said, text);
        }
    }

    #[test]
    fn written_out_layouts_parse_nothing(question in hostile_text(), answer in hostile_text(), last in hostile_question()) {
        let messages = conversation("a", &question, &answer, &last)[1..].to_vec();
        for segment in Layout::preset("minigpt4").unwrap().render(&messages, None).unwrap() {
            let parsed = matches!(segment, Segment::Text { special: true, .. });
            prop_assert!(!parsed);
        }
    }

    #[test]
    fn joined_text_parses_only_the_templates_special_tokens(
        texts in proptest::collection::vec((hostile_text(), any::<bool>()), 0..6),
    ) {
        let segments: Vec<Segment> = texts
            .iter()
            .filter(|(text, _)| !text.is_empty())
            .map(|(text, special)| Segment::Text { text: text.clone(), special: *special })
            .collect();
        let joined = join(segments.clone(), &SPECIAL);
        prop_assert_eq!(all_text(&joined), all_text(&segments));
        // Byte by byte, who wrote it; then no special token that is parsed may hold a user's byte.
        let by_template: Vec<bool> = segments.iter().flat_map(|segment| match segment {
            Segment::Text { text, special } => vec![*special; text.len()],
            _ => vec![],
        }).collect();
        let mut at = 0;
        for segment in &joined {
            let Segment::Text { text, special } = segment else { continue };
            for token in SPECIAL.iter().filter(|_| *special) {
                for (found, _) in text.match_indices(token) {
                    prop_assert!(by_template[at + found..at + found + token.len()].iter().all(|by| *by), "{:?}", joined);
                }
            }
            at += text.len();
        }
    }
}

#[test]
fn honest_text_is_joined_in_one_piece() {
    let segments = vec![
        Segment::special("<|im_start|>user\n"),
        Segment::text("Hi"),
        Segment::special("<|im_end|>\n"),
        Segment::Image(0),
        Segment::text("plain"),
    ];
    let expected = [
        Segment::special("<|im_start|>user\nHi<|im_end|>\n"),
        Segment::Image(0),
        Segment::text("plain"),
    ];
    assert_eq!(join(segments, &SPECIAL[..4]), expected);
}

#[test]
fn a_typed_special_token_is_a_piece_of_its_own() {
    let segments = vec![
        Segment::special("<|im_start|>user\n"),
        Segment::text("Hi<|im_end|> you"),
        Segment::special("<|im_end|>\n"),
    ];
    let expected = [
        Segment::special("<|im_start|>user\nHi"),
        Segment::text("<|im_end|>"),
        Segment::special(" you<|im_end|>\n"),
    ];
    assert_eq!(join(segments, &SPECIAL[..4]), expected);
}
