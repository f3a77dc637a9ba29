//! Pictures, conversations, templates and answers.

mod conversation;

use prompts::{CallReader, CallSyntax, ChatTemplate, Layout, Said, check_images, join};
use qformer::image::{ImageLimits, decode};

/// Templates of published models.
const TEMPLATES: [&str; 15] = [
    include_str!("../../../tests/golden/chat_templates/content-parts.jinja"),
    include_str!("../../../tests/golden/chat_templates/gemma.jinja"),
    include_str!("../../../tests/golden/chat_templates/generation-blocks.jinja"),
    include_str!("../../../tests/golden/chat_templates/indented.jinja"),
    include_str!("../../../tests/golden/chat_templates/llama-3.2.jinja"),
    include_str!("../../../tests/golden/chat_templates/llama-3.jinja"),
    include_str!("../../../tests/golden/chat_templates/mistral-7b-instruct.jinja"),
    include_str!("../../../tests/golden/chat_templates/phi-3-mini.jinja"),
    include_str!("../../../tests/golden/chat_templates/qwen2.5.jinja"),
    include_str!("../../../tests/golden/chat_templates/qwen3.jinja"),
    include_str!("../../../tests/golden/chat_templates/smollm2.jinja"),
    include_str!("../../../tests/golden/chat_templates/tools-hermes.jinja"),
    include_str!("../../../tests/golden/chat_templates/tools-llama.jinja"),
    include_str!("../../../tests/golden/chat_templates/tools-mistral.jinja"),
    include_str!("../../../tests/golden/chat_templates/vicuna.jinja"),
];

/// Special tokens that the prompts are joined for.
const SPECIAL: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"];

/// An encoded picture. What is decoded has pixels, no more than the limit.
pub fn image(input: &[u8]) {
    let limits = ImageLimits {
        max_bytes: 1 << 20,
        max_pixels: 1 << 16,
    };
    if let Ok(picture) = decode(input, &limits) {
        let pixels = u64::from(picture.width()) * u64::from(picture.height());
        assert!((1..=limits.max_pixels).contains(&pixels));
    }
}

/// A conversation, through the template that the first byte chooses. Each picture comes out once, and joining the prompt
/// for the tokenizer changes none of its text.
pub fn chat_messages(input: &[u8]) {
    let Some((&choice, input)) = input.split_first() else {
        return;
    };
    let template = template(TEMPLATES[usize::from(choice) % TEMPLATES.len()]);
    let (messages, tools, images) = conversation::read(input);
    if check_images(&messages, images).is_err() {
        return;
    }
    let layout = chat_layout();
    let Ok(segments) = layout.render_with_tools(&messages, &tools, Some(&template)) else {
        return;
    };
    assert_eq!(conversation::images(&segments), images);
    let text = conversation::text(&segments);
    assert_eq!(conversation::text(&join(segments, &SPECIAL)), text);
}

/// A template as a GGUF may bring one, with two conversations: it ends, and within its limits.
pub fn chat_template(input: &[u8]) {
    let template = template(&String::from_utf8_lossy(input));
    let layout = chat_layout();
    let (messages, ..) =
        conversation::read(b"sBe brief.\0uWhat is\0i\0aA <think>x</think> cat\0uSure?");
    let _ = layout.render(&messages, Some(&template));
    // This conversation has tools in it.
    let _ = layout.call_syntax(Some(&template));
}

/// An answer with calls in it, in the syntax that the first byte chooses: what is read does not depend on how it is cut.
pub fn calls(input: &[u8]) {
    let Some((&choice, input)) = input.split_first() else {
        return;
    };
    let syntax = match choice % 3 {
        0 => CallSyntax::Hermes,
        1 => CallSyntax::Llama,
        _ => CallSyntax::Mistral,
    };
    let most = 1 + usize::from(choice / 6) % 3;
    let functions = vec!["look".to_owned(), "look_up".to_owned()];
    let reader = || CallReader::new(syntax, functions.clone(), most, choice / 3 % 2 == 1);
    let text = String::from_utf8_lossy(input);
    let whole = said(reader(), [&*text]);
    let mut letter = [0; 4];
    let mut by_letter = reader();
    let mut read = Vec::new();
    for character in text.chars() {
        read.extend(by_letter.push(character.encode_utf8(&mut letter)));
    }
    read.extend(by_letter.finish());
    assert_eq!(conversation::joined(read), whole);
    let begun = whole.iter().filter(|said| matches!(said, Said::Call(_)));
    assert!(begun.count() <= most);
}

fn said<'a>(mut reader: CallReader, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Said> {
    let mut said: Vec<Said> = Vec::new();
    for piece in pieces {
        said.extend(reader.push(piece));
    }
    said.extend(reader.finish());
    conversation::joined(said)
}

fn chat_layout() -> Layout {
    Layout::ChatTemplate(prompts::ChatTemplateLayout::default())
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate {
        source: source.to_owned(),
        bos_token: "<s>".to_owned(),
        eos_token: "</s>".to_owned(),
    }
}
