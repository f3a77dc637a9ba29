//! What answers requests: a loaded model, or a test's script.

use bridge::engine::Sampling;
use bridge::event::Event;
use bridge::model::{Model, Prompt, Request, VisionActivity};
use prompts::{CallSyntax, Message, Part, Role};
use tokio::sync::mpsc::Receiver;

/// How busy a model is, and what it has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// The language model.
    pub engine: bridge::engine::Activity,
    /// The ViT and the Q-Former.
    pub vision: VisionActivity,
}

/// What the server asks for answers.
pub trait Backend: Send + Sync + 'static {
    /// Sampling of a request that says nothing about it.
    fn default_sampling(&self) -> Sampling;

    /// How the model writes calls of functions, or why it makes none.
    fn call_syntax(&self) -> prompts::Result<CallSyntax>;

    /// Stands for what answers depend on beside the request.
    fn fingerprint(&self) -> &str;

    /// Starts a request. Dropping the receiver cancels it. Called where blocking is allowed.
    ///
    /// # Errors
    /// The request is at fault, or the queue is full; a picture at fault is told by the first event.
    fn submit(&self, request: Request) -> bridge::Result<Receiver<Event>>;

    /// The token ids of a text, in which special tokens are text like any other.
    ///
    /// # Errors
    /// The model fails.
    fn tokenize(&self, text: &str) -> bridge::Result<Vec<i32>>;

    /// The text of token ids; `None` where one is not in the vocabulary.
    fn detokenize(&self, ids: &[i32]) -> Option<String>;

    /// Most tokens of a prompt and its answer together.
    fn n_ctx(&self) -> usize;

    /// How busy the model is, and what it has done.
    fn activity(&self) -> Activity;
}

impl Backend for Model {
    fn default_sampling(&self) -> Sampling {
        Model::default_sampling(self)
    }

    fn call_syntax(&self) -> prompts::Result<CallSyntax> {
        Model::call_syntax(self)
    }

    fn fingerprint(&self) -> &str {
        Model::fingerprint(self)
    }

    fn submit(&self, request: Request) -> bridge::Result<Receiver<Event>> {
        Model::submit(self, request)
    }

    fn tokenize(&self, text: &str) -> bridge::Result<Vec<i32>> {
        self.language_model().tokenize(text, false)
    }

    fn detokenize(&self, ids: &[i32]) -> Option<String> {
        let model = self.language_model();
        let mut bytes = Vec::new();
        for &id in ids {
            if !model.contains(id) {
                return None;
            }
            model.token_bytes_into(id, &mut bytes);
        }
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn n_ctx(&self) -> usize {
        Model::n_ctx(self)
    }

    fn activity(&self) -> Activity {
        Activity {
            engine: Model::activity(self),
            vision: self.vision_activity(),
        }
    }
}

/// A grey pixel.
const WARM_UP_PICTURE: &[u8] = include_bytes!("pixel.png");

/// Answers one token about a picture, so that no client waits for what happens but once. Blocks.
///
/// # Errors
/// The model fails.
pub fn warm_up<B: Backend>(backend: &B) -> bridge::Result<()> {
    let message = Message {
        role: Role::User,
        parts: vec![Part::Image(0), Part::Text("Hello".to_owned())],
    };
    let mut events = backend.submit(Request {
        images: vec![WARM_UP_PICTURE.into()],
        max_tokens: Some(1),
        cache_prompt: false,
        ..Request::new(Prompt::Chat(vec![message]), backend.default_sampling())
    })?;
    while let Some(event) = events.blocking_recv() {
        if let Event::Error(error) = event {
            return Err(error);
        }
    }
    Ok(())
}
