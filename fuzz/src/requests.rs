//! Requests as the server reads them.

use std::sync::LazyLock;

use bridge::engine::Sampling;
use bridge::model::Prompt;
use prompts::{CallSyntax, check_images};
use server::{ServeOptions, data_uri, read_chat};

/// Limits that small inputs reach.
static OPTIONS: LazyLock<ServeOptions> = LazyLock::new(|| ServeOptions {
    max_image_bytes: 512,
    max_images: 3,
    ..ServeOptions::default()
});

/// The body of a request for a chat completion. What is taken refers to pictures that are there, each within its limit.
pub fn chat_body(input: &[u8]) {
    let syntax = Ok(CallSyntax::Hermes);
    let Ok(request) = read_chat(input, Sampling::default(), &syntax, &OPTIONS) else {
        return;
    };
    assert!(request.images.len() <= OPTIONS.max_images);
    for image in &request.images {
        assert!((1..=OPTIONS.max_image_bytes).contains(&image.len()));
    }
    let Prompt::Chat(messages) = &request.prompt else {
        panic!("a chat is a prompt of messages");
    };
    assert_eq!(check_images(messages, request.images.len()), Ok(()));
}

/// What stands behind `data:`.
pub fn data_uri(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(bytes) = data_uri::decode(text, OPTIONS.max_image_bytes, "url") {
        assert!((1..=OPTIONS.max_image_bytes).contains(&bytes.len()));
    }
}
