//! What answers requests: a loaded model, or a test's script.

use std::path::Path;

use bridge::bundle::Manifest;
use bridge::engine::Sampling;
use bridge::event::Event;
use bridge::model::{Model, ModelOptions, Prompt, Request, VisionActivity};
use bridge::retriever::{RetrievalRequest, Retrieved, Retriever, RetrieverOptions, Want};
use bridge::stages::Stages;
use prompts::{CallSyntax, Message, Part, Role};
use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;

/// How busy a model is, and what it has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// The language model.
    pub engine: bridge::engine::Activity,
    /// The ViT and the Q-Former.
    pub vision: VisionActivity,
    /// Texts whose features were computed.
    pub texts: u64,
    /// Pairs of a picture and a text that a matching head read.
    pub pairs: u64,
}

/// What a model does, and so which routes it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Answers messages with pictures.
    pub chats: bool,
    /// Goes on with texts, and tells their tokens: it has a language model.
    pub completes: bool,
    /// Has features of pictures and texts.
    pub compares: bool,
    /// Has a head that says whether a text is a picture's (ITM).
    pub matches: bool,
}

/// Names of [`Abilities`], in their order.
pub(crate) const ABILITIES: [&str; 4] = ["chat", "completion", "embedding", "matching"];

impl Abilities {
    /// Those of a language model that sees pictures.
    pub const LANGUAGE_MODEL: Abilities = Abilities {
        chats: true,
        completes: true,
        compares: false,
        matches: false,
    };

    /// What `/v1/models` calls those that there are.
    pub(crate) fn names(self) -> Vec<&'static str> {
        ABILITIES
            .into_iter()
            .zip([self.chats, self.completes, self.compares, self.matches])
            .filter_map(|(name, has)| has.then_some(name))
            .collect()
    }
}

/// The outcome of a request that compares, when it is there.
pub type Retrieving = oneshot::Receiver<bridge::Result<Retrieved>>;

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

    /// What the model does.
    fn abilities(&self) -> Abilities {
        Abilities::LANGUAGE_MODEL
    }

    /// Starts a request that compares pictures and texts. Dropping the receiver cancels it. Does not block.
    ///
    /// # Errors
    /// The model does not compare, or the queue is full; a picture at fault is told by the outcome.
    fn retrieve(&self, _: RetrievalRequest) -> bridge::Result<Retrieving> {
        Err(bridge::Error::Stopped)
    }
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
            ..Activity::default()
        }
    }
}

impl Backend for Retriever {
    fn default_sampling(&self) -> Sampling {
        self.manifest().generation.sampling()
    }

    fn call_syntax(&self) -> prompts::Result<CallSyntax> {
        Err(prompts::Error::NoTools)
    }

    fn fingerprint(&self) -> &str {
        Retriever::fingerprint(self)
    }

    fn submit(&self, request: Request) -> bridge::Result<Receiver<Event>> {
        self.submit_chat(request)
    }

    fn tokenize(&self, text: &str) -> bridge::Result<Vec<i32>> {
        let ids = self.matcher().heads().tokens(text)?;
        Ok(ids.into_iter().map(|id| id as i32).collect())
    }

    fn detokenize(&self, _: &[i32]) -> Option<String> {
        None
    }

    fn n_ctx(&self) -> usize {
        self.matcher().heads().max_tokens()
    }

    fn activity(&self) -> Activity {
        let activity = Retriever::activity(self);
        Activity {
            engine: bridge::engine::Activity {
                active: activity.active,
                waiting: activity.waiting,
                ..bridge::engine::Activity::default()
            },
            vision: activity.vision,
            texts: activity.texts,
            pairs: activity.pairs,
        }
    }

    fn abilities(&self) -> Abilities {
        let abilities = Retriever::abilities(self);
        Abilities {
            chats: abilities.captions || abilities.answers,
            completes: false,
            compares: abilities.compares,
            matches: abilities.matches,
        }
    }

    fn retrieve(&self, request: RetrievalRequest) -> bridge::Result<Retrieving> {
        Retriever::submit(self, request)
    }
}

/// A bundle of any family, at work.
pub enum Loaded {
    /// One with a language model.
    Answers(Box<Model>),
    /// One that compares pictures and texts, or captions pictures by itself.
    Compares(Box<Retriever>),
}

impl Loaded {
    /// Opens a bundle of any family, and warms it up.
    ///
    /// # Errors
    /// The bundle is not whole, or a part cannot be loaded.
    pub fn open(dir: &Path, options: &ModelOptions) -> bridge::Result<Loaded> {
        if Manifest::read(dir)?.has_language_model() {
            let model = Model::open(dir, options)?;
            warm_up(&model)?;
            return Ok(Loaded::Answers(Box::new(model)));
        }
        let retriever = Retriever::open(
            dir,
            &RetrieverOptions {
                products: options.vision,
                // Those that will not wait for a slot wait here all the same.
                queue: options.slots + options.queue,
                queue_timeout: options.queue_timeout,
                image_cache_bytes: options.image_cache_bytes,
            },
        )?;
        warm_up_retriever(&retriever)?;
        Ok(Loaded::Compares(Box::new(retriever)))
    }

    fn backend(&self) -> &dyn Backend {
        match self {
            Loaded::Answers(model) => model.as_ref(),
            Loaded::Compares(retriever) => retriever.as_ref(),
        }
    }
}

impl Backend for Loaded {
    fn default_sampling(&self) -> Sampling {
        self.backend().default_sampling()
    }

    fn call_syntax(&self) -> prompts::Result<CallSyntax> {
        self.backend().call_syntax()
    }

    fn fingerprint(&self) -> &str {
        self.backend().fingerprint()
    }

    fn submit(&self, request: Request) -> bridge::Result<Receiver<Event>> {
        self.backend().submit(request)
    }

    fn tokenize(&self, text: &str) -> bridge::Result<Vec<i32>> {
        self.backend().tokenize(text)
    }

    fn detokenize(&self, ids: &[i32]) -> Option<String> {
        self.backend().detokenize(ids)
    }

    fn n_ctx(&self) -> usize {
        self.backend().n_ctx()
    }

    fn activity(&self) -> Activity {
        self.backend().activity()
    }

    fn abilities(&self) -> Abilities {
        self.backend().abilities()
    }

    fn retrieve(&self, request: RetrievalRequest) -> bridge::Result<Retrieving> {
        self.backend().retrieve(request)
    }
}

/// Runs each of its parts once. Blocks.
fn warm_up_retriever(retriever: &Retriever) -> bridge::Result<()> {
    let abilities = Retriever::abilities(retriever);
    let (want, text) = match abilities.compares {
        true => {
            let pairs = vec![(0, 0)];
            (Want::Scores { pairs, matched: 1 }, Some("a picture"))
        }
        false => {
            let mut options = retriever.default_caption();
            (options.max_tokens, options.min_tokens) = (1, 0);
            (Want::Caption(options), abilities.answers.then_some("what?"))
        }
    };
    let outcome = Retriever::submit(
        retriever,
        RetrievalRequest {
            pictures: vec![WARM_UP_PICTURE.into()],
            texts: text.into_iter().map(str::to_owned).collect(),
            want,
            stages: Stages::default(),
        },
    )?;
    let outcome = outcome.blocking_recv();
    outcome.unwrap_or(Err(bridge::Error::Stopped)).map(|_| ())
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
