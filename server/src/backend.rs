//! What answers requests: a loaded model, or a test's script.

use std::sync::Arc;

use bridge::engine::Sampling;
use bridge::event::Event;
use bridge::model::{Model, Prompt, Request};
use prompts::{Message, Part, Role};
use tokio::sync::mpsc::Receiver;

/// What the server asks for answers.
pub trait Backend: Send + Sync + 'static {
    /// Name of the model, as requests give it.
    fn name(&self) -> &str;

    /// Sampling of a request that says nothing about it.
    fn default_sampling(&self) -> Sampling;

    /// Starts a request. Dropping the receiver cancels it. Called where blocking is allowed.
    ///
    /// # Errors
    /// The request is at fault, or the queue is full; a picture at fault is told by the first event.
    fn submit(&self, request: Request) -> bridge::Result<Receiver<Event>>;
}

impl Backend for Arc<Model> {
    fn name(&self) -> &str {
        &self.manifest().name
    }

    fn default_sampling(&self) -> Sampling {
        Model::default_sampling(self)
    }

    fn submit(&self, request: Request) -> bridge::Result<Receiver<Event>> {
        Model::submit(self, request)
    }
}

/// A grey pixel.
const WARM_UP_PICTURE: &[u8] = include_bytes!("pixel.png");

/// Answers one token about a picture, so that no client waits for what happens but once. Blocks.
///
/// # Errors
/// The model fails.
pub fn warm_up<B: Backend>(backend: &B) -> bridge::Result<()> {
    let mut events = backend.submit(Request {
        prompt: Prompt::Chat(vec![Message {
            role: Role::User,
            parts: vec![Part::Image(0), Part::Text("Hello".to_owned())],
        }]),
        images: vec![WARM_UP_PICTURE.into()],
        max_tokens: Some(1),
        sampling: backend.default_sampling(),
        stop: Vec::new(),
    })?;
    while let Some(event) = events.blocking_recv() {
        if let Event::Error(error) = event {
            return Err(error);
        }
    }
    Ok(())
}
