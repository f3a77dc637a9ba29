//! Chat templates against transformers: tests/golden/make_prompts.py makes the golden prompts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use prompts::{
    CallSyntax, ChatTemplate, Error, ImagePosition, Layout, Message, Part, Role, Segment, Tool,
    ToolCall,
};
use serde::Deserialize;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

#[derive(Deserialize)]
struct Golden {
    template: String,
    bos_token: String,
    eos_token: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    title: String,
    messages: Vec<(String, String)>,
    prompt: Option<String>,
    refused: Option<String>,
}

fn golden_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn goldens() -> Vec<Golden> {
    let mut paths: Vec<PathBuf> = fs::read_dir(golden_folder().join("prompts"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
        .collect()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate {
        source: source.into(),
        bos_token: "<s>".into(),
        eos_token: "</s>".into(),
    }
}

fn stored(name: &str) -> ChatTemplate {
    template(&fs::read_to_string(golden_folder().join("chat_templates").join(name)).unwrap())
}

fn message(role: &str, text: &str) -> Message {
    let role = match role {
        "system" => Role::System,
        "user" => Role::User,
        _ => Role::Assistant,
    };
    Message::text(role, text)
}

fn text_of(segments: &[Segment]) -> String {
    segments
        .iter()
        .map(|segment| match segment {
            Segment::Text { text, .. } => text.as_str(),
            other => panic!("no text: {other:?}"),
        })
        .collect()
}

fn image_and(text: &str) -> Message {
    Message {
        role: Role::User,
        parts: vec![Part::Image(0), Part::Text(text.into())],
    }
}

fn render(source: &ChatTemplate, messages: &[Message]) -> prompts::Result<Vec<Segment>> {
    Layout::preset("chat-template")
        .unwrap()
        .render(messages, Some(source))
}

#[test]
fn prompts_equal_those_of_transformers() {
    let goldens = goldens();
    assert_eq!(goldens.len(), 12);
    for golden in goldens {
        let mut source = stored(&golden.template);
        source.bos_token = golden.bos_token;
        source.eos_token = golden.eos_token;
        let today = jiff::Zoned::now().strftime("%d %b %Y").to_string();
        for case in golden.cases {
            let messages: Vec<Message> = case
                .messages
                .iter()
                .map(|(role, text)| message(role, text))
                .collect();
            let place = format!("{}, {}", golden.template, case.title);
            match (render(&source, &messages), case.prompt, case.refused) {
                (Ok(segments), Some(prompt), None) => {
                    assert_eq!(
                        text_of(&segments),
                        prompt.replace("{date}", &today),
                        "{place}"
                    );
                    // What people wrote, and only that, is kept from the special-token parser.
                    let template_text = segments.iter().filter_map(|segment| match segment {
                        Segment::Text {
                            text,
                            special: true,
                        } => Some(text.as_str()),
                        _ => None,
                    });
                    let template_text: Vec<&str> = template_text.collect();
                    for (_, text) in &case.messages {
                        assert!(
                            !template_text.iter().any(|part| part.contains(text.trim())),
                            "{place}"
                        );
                    }
                }
                (Err(Error::Refused { reason }), None, Some(refused)) => {
                    assert_eq!(reason, refused, "{place}")
                }
                (got, prompt, refused) => {
                    panic!("{place}: {got:?}, transformers: {prompt:?} {refused:?}")
                }
            }
        }
    }
}

fn string(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// A tool as OpenAI's clients write it.
fn tool(value: &Value) -> Tool {
    let function = &value["function"];
    Tool {
        name: string(&function["name"]),
        description: function.get("description").map(string),
        parameters: function.get("parameters").cloned(),
    }
}

fn message_with_tools(value: &Value) -> Message {
    let mut message = message(&string(&value["role"]), &string(&value["content"]));
    for call in value["tool_calls"].as_array().into_iter().flatten() {
        message.parts.push(Part::Call(ToolCall {
            id: string(&call["id"]),
            name: string(&call["function"]["name"]),
            arguments: call["function"]["arguments"].as_object().unwrap().clone(),
        }));
    }
    if let Some(id) = value.get("tool_call_id") {
        message.role = Role::Tool;
        message.parts.push(Part::ResultOf(string(id)));
    }
    message
}

#[test]
fn prompts_with_tools_equal_those_of_transformers() {
    let mut prompts = 0;
    for name in ["tools-hermes", "tools-llama", "tools-mistral"] {
        let path = golden_folder().join(format!("prompts_with_tools/{name}.json"));
        let golden: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let mut source = stored(golden["template"].as_str().unwrap());
        source.bos_token = string(&golden["bos_token"]);
        source.eos_token = string(&golden["eos_token"]);
        let tools: Vec<Tool> = golden["tools"]
            .as_array()
            .unwrap()
            .iter()
            .map(tool)
            .collect();
        for case in golden["cases"].as_array().unwrap() {
            let messages = case["messages"].as_array().unwrap();
            let messages: Vec<Message> = messages.iter().map(message_with_tools).collect();
            let layout = Layout::preset("chat-template").unwrap();
            let rendered = layout.render_with_tools(&messages, &tools, Some(&source));
            let place = format!("{name}, {}", case["title"]);
            match rendered {
                Ok(segments) => {
                    assert_eq!(
                        text_of(&segments),
                        case["prompt"].as_str().unwrap(),
                        "{place}"
                    );
                    // No special token but the template's own: that of a call's arguments, of a tool's answer, and what
                    // might be one in a tool's description.
                    for segment in &segments {
                        if let Segment::Text {
                            text,
                            special: true,
                        } = segment
                        {
                            for forged in ["Ulm <|im", "\u{2600} <|im", "[or village]", "<degrees>"]
                            {
                                assert!(!text.contains(forged), "{place}: {text}");
                            }
                        }
                    }
                    prompts += 1;
                }
                Err(Error::Refused { reason }) => {
                    assert_eq!(reason, case["refused"].as_str().unwrap(), "{place}");
                }
                Err(error) => panic!("{place}: {error}"),
            }
        }
    }
    assert_eq!(prompts, 13);
}

#[test]
fn the_template_shows_how_calls_are_written() {
    let syntax = |source: &ChatTemplate| {
        let layout = Layout::preset("chat-template").unwrap();
        layout.call_syntax(Some(source))
    };
    assert_eq!(
        syntax(&stored("tools-hermes.jinja")),
        Ok(CallSyntax::Hermes)
    );
    assert_eq!(syntax(&stored("tools-llama.jinja")), Ok(CallSyntax::Llama));
    assert_eq!(
        syntax(&stored("tools-mistral.jinja")),
        Ok(CallSyntax::Mistral)
    );
    // Templates that know no tools, do not show results, or refuse calls.
    for name in ["smollm2", "gemma", "qwen3", "llama-3.2"] {
        assert_eq!(
            syntax(&stored(&format!("{name}.jinja"))),
            Err(Error::NoTools),
            "{name}"
        );
    }
    let other = stored("tools-hermes.jinja")
        .source
        .replace("tool_call>", "function_call>");
    assert_eq!(syntax(&template(&other)), Err(Error::UnknownCallSyntax));
    // Where calls are shown and tools are not, the model could not know of any.
    let untold = stored("tools-hermes.jinja")
        .source
        .replace("if tools", "if false");
    assert_eq!(syntax(&template(&untold)), Err(Error::NoTools));
    let turns = Layout::preset("blip2-opt").unwrap();
    assert_eq!(turns.call_syntax(None), Err(Error::NoTools));
}

#[test]
fn calls_and_results_stand_in_their_places() {
    let call = || {
        Part::Call(ToolCall {
            id: "1".into(),
            name: "now".into(),
            arguments: Default::default(),
        })
    };
    let of = |role, parts| Message { role, parts };
    let result = || vec![Part::ResultOf("1".into()), Part::Text("noon".into())];
    let user = message("user", "Hi");
    for (messages, at) in [
        (vec![of(Role::User, vec![call()])], 0),
        (vec![user.clone(), message("tool", "noon")], usize::MAX),
        (
            vec![
                user.clone(),
                of(Role::Tool, vec![Part::Text("noon".into())]),
            ],
            1,
        ),
        (vec![user.clone(), of(Role::User, result())], 1),
    ] {
        let rendered = render(&stored("tools-hermes.jinja"), &messages);
        match (rendered, at) {
            (Err(Error::MisplacedCall { message, .. }), at) => assert_eq!(message, at),
            (rendered, at) => assert_eq!((rendered, at), (Err(Error::NothingToAnswer), usize::MAX)),
        }
    }
    // A layout of turns has no place for any.
    let turns = Layout::preset("minigpt4").unwrap();
    let messages = [
        user.clone(),
        of(Role::Assistant, vec![call()]),
        of(Role::Tool, result()),
    ];
    assert_eq!(turns.render(&messages, None), Err(Error::NoTools));
    let tools = [Tool {
        name: "now".into(),
        description: None,
        parameters: None,
    }];
    assert_eq!(
        turns.render_with_tools(&[user], &tools, None),
        Err(Error::NoTools)
    );
}

#[test]
fn a_picture_stands_where_its_part_stands() {
    let between = Message {
        role: Role::User,
        parts: vec![
            Part::Text("Compare ".into()),
            Part::Image(1),
            Part::Text(" with ".into()),
            Part::Image(0),
        ],
    };
    let segments = render(
        &stored("smollm2.jinja"),
        &[message("system", "Be brief."), between],
    )
    .unwrap();
    assert_eq!(
        segments,
        [
            Segment::special("<|im_start|>system\n"),
            Segment::text("Be brief."),
            Segment::special("<|im_end|>\n<|im_start|>user\n"),
            Segment::text("Compare"),
            Segment::special(" "),
            Segment::Image(1),
            Segment::special(" "),
            Segment::text("with"),
            Segment::special(" "),
            Segment::Image(0),
            Segment::special("<|im_end|>\n<|im_start|>assistant\n"),
        ]
    );
}

#[test]
fn a_picture_can_stand_at_the_start_of_its_turn() {
    let layout: Layout =
        toml::from_str("layout = \"chat-template\"\nimage_position = \"start_of_turn\"").unwrap();
    let message = Message {
        role: Role::User,
        parts: vec![Part::Text("What is it?".into()), Part::Image(0)],
    };
    let segments = layout
        .render(&[message], Some(&stored("qwen3.jinja")))
        .unwrap();
    assert_eq!(
        segments,
        [
            Segment::special("<|im_start|>user\n"),
            Segment::Image(0),
            Segment::text("What is it?"),
            Segment::special("<|im_end|>\n<|im_start|>assistant\n"),
        ]
    );
}

#[test]
fn templates_that_read_a_list_of_parts_get_one() {
    let segments = render(&stored("content-parts.jinja"), &[image_and("What is it?")]).unwrap();
    assert_eq!(
        segments,
        [
            Segment::special("<|im_start|>User: "),
            Segment::Image(0),
            Segment::text("What is it?"),
            Segment::special("<end_of_utterance>\nAssistant:"),
        ]
    );
}

#[test]
fn a_lone_picture_is_asked_the_caption_prompt() {
    let lone = Message {
        role: Role::User,
        parts: vec![Part::Image(0)],
    };
    let layout: Layout =
        toml::from_str("layout = \"chat-template\"\ncaption_prompt = \"Describe it.\"").unwrap();
    let captioned = layout
        .render(std::slice::from_ref(&lone), Some(&stored("qwen3.jinja")))
        .unwrap();
    assert_eq!(
        captioned[1..3],
        [Segment::Image(0), Segment::text("Describe it.")]
    );
    let alone = render(&stored("qwen3.jinja"), &[lone]).unwrap();
    assert_eq!(
        alone[1..],
        [
            Segment::Image(0),
            Segment::special("<|im_end|>\n<|im_start|>assistant\n")
        ]
    );
}

#[test]
fn the_manifest_may_bring_its_own_template() {
    let layout: Layout =
        toml::from_str("layout = \"chat-template\"\ntemplate = \"{{ messages[0].content }}!\"")
            .unwrap();
    let segments = layout.render(&[message("user", "Hi")], None).unwrap();
    assert_eq!(segments, [Segment::text("Hi"), Segment::special("!")]);
}

#[test]
fn a_broken_template_is_named_with_its_line() {
    let error = render(
        &template("{{ bos_token }}\n{% for %}"),
        &[message("user", "Hi")],
    )
    .unwrap_err();
    let Error::Template { line, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*line, Some(2));
    assert!(!error.is_request());
    assert!(
        error
            .to_string()
            .starts_with("the chat template fails in line 2: "),
        "{error}"
    );

    let error = render(
        &template("\n\n{{ messages[0].content.no_such() }}"),
        &[message("user", "Hi")],
    )
    .unwrap_err();
    assert!(
        matches!(error, Error::Template { line: Some(3), .. }),
        "{error:?}"
    );
}

#[test]
fn refusals_are_the_requests_fault_and_show_no_marks() {
    let error = render(
        &template("{{ raise_exception('No: ' + messages[0].content) }}"),
        &[message("user", "Hi")],
    );
    let error = error.unwrap_err();
    assert_eq!(
        error,
        Error::Refused {
            reason: "No: Hi".into()
        }
    );
    assert!(error.is_request());
}

#[test]
fn what_a_template_leaves_out_is_an_error() {
    let users_only =
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}";
    let error = render(
        &template(users_only),
        &[message("system", "Be brief."), message("user", "Hi")],
    )
    .unwrap_err();
    assert_eq!(
        error,
        Error::Dropped {
            message: 0,
            role: Role::System
        }
    );
    let first_word = "{{ messages[0].content.split(' ')[0] }}";
    assert_eq!(
        render(&template(first_word), &[image_and("two words")]).unwrap_err(),
        Error::Torn
    );
    let twice = "{{ messages[0].content }}{{ messages[0].content }}";
    assert_eq!(
        render(&template(twice), &[image_and("Hi")]).unwrap_err(),
        Error::Torn
    );
}

#[test]
fn a_picture_that_a_template_leaves_out_is_an_error() {
    let last_only = "{{ messages[-1].content }}";
    let lone = Message {
        role: Role::User,
        parts: vec![Part::Image(0)],
    };
    let error = render(&template(last_only), &[lone, message("user", "Hi")]).unwrap_err();
    let role = Role::User;
    assert_eq!(error, Error::Dropped { message: 0, role });
    // The beginning of one text and the end of another are no text of anybody.
    let halves = "{{ messages[0].content.split('b')[0] }}{{ messages[1].content.split('b')[1] }}";
    let both = [message("user", "abc"), message("user", "abc")];
    assert_eq!(render(&template(halves), &both).unwrap_err(), Error::Torn);
}

#[test]
fn texts_of_one_message_are_joined_by_a_line_break() {
    let part = |text: &str| Part::Text(text.into());
    let parts = vec![part("one"), part("two"), Part::Image(0), part("three")];
    let message = Message {
        role: Role::User,
        parts,
    };
    let segments = render(&template("{{ messages[0].content }}"), &[message]).unwrap();
    let expected = [
        Segment::text("one\ntwo"),
        Segment::Image(0),
        Segment::text("three"),
    ];
    assert_eq!(segments, expected);
}

#[test]
fn templates_are_bounded() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let error = render(&template(endless), &[message("user", "Hi")]).unwrap_err();
    assert!(matches!(error, Error::TooManySteps { .. }), "{error:?}");
    let long = "{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}";
    let error = render(&template(long), &[message("user", "Hi")]).unwrap_err();
    assert!(matches!(error, Error::TooLong { .. }), "{error:?}");
    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    let error = render(&template(recursive), &[message("user", "Hi")]).unwrap_err();
    assert!(
        matches!(error, Error::Template { .. } | Error::TooManySteps { .. }),
        "{error:?}"
    );
}

#[test]
fn json_is_written_as_python_writes_it() {
    let source = r#"{{ {'a': [1, 2.5, true, none], 'é': '<b> "q" \n'} | tojson }}|{{ {'a': [1]} | tojson(indent=2) }}"#;
    let layout = format!("{source}{{{{ messages[0].content }}}}");
    let segments = render(&template(&layout), &[message("user", "Hi")]).unwrap();
    let expected =
        "{\"a\": [1, 2.5, true, null], \"é\": \"<b> \\\"q\\\" \\n\"}|{\n  \"a\": [\n    1\n  ]\n}";
    assert_eq!(segments[0], Segment::special(expected));
}

#[test]
fn before_bos_reads_as_start_of_turn() {
    let layout = Layout::ChatTemplate(prompts::ChatTemplateLayout {
        image_position: ImagePosition::BeforeBos,
        ..Default::default()
    });
    let message = Message {
        role: Role::User,
        parts: vec![Part::Text("Hi".into()), Part::Image(0)],
    };
    let segments = layout
        .render(&[message], Some(&stored("qwen3.jinja")))
        .unwrap();
    assert_eq!(segments[1..3], [Segment::Image(0), Segment::text("Hi")]);
}
