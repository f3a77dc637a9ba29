//! A bundle at work: messages and pictures in, events out.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use prompts::{CallSyntax, ChatTemplate, Layout, Message, Segment, Tool, check_images};
use qformer::checkpoint::Products;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{Receiver, channel};

use crate::bundle::{Bundle, Manifest};
use crate::constraint::{Calls, Format};
use crate::engine::{
    Activity, CacheType, Engine, EngineOptions, FlashAttention, PromptPart, Sampling, Sequence,
};
use crate::event::Event;
use crate::image_encoder::ImageEncoder;
use crate::language_model::{LanguageModel, LanguageModelOptions};
use crate::llama::MAX_SEQUENCES;
use crate::prompt::{Piece, tokenize};
use crate::stages::Stages;
pub use crate::vision_worker::VisionActivity;
use crate::vision_worker::{Job, VisionWorker};
use crate::{Error, Result};

/// Events that may wait for a slow reader; when as many do, its sequence
/// pauses.
const EVENT_CAPACITY: usize = 64;

/// Longest context that is taken without being asked for: memory for the KV
/// cache grows with it.
const DEFAULT_MAX_CONTEXT: usize = 4096;

/// [`EngineOptions::prefix_sequences`] where only throughput counts: what is shared there is the prompt's beginning
/// and a picture with several questions, and attention passes over the cells of all that is kept, if only to skip them.
const THROUGHPUT_PREFIXES: usize = 2;

/// How to run a bundle.
#[derive(Debug, Clone)]
pub struct ModelOptions {
    /// Requests that are answered together, each with `num_beams` beams.
    pub slots: usize,
    /// Beams of a request that the slots are made for; the bundle's default where
    /// none is given. A request with more takes the place of several.
    pub num_beams: Option<usize>,
    /// Rows of context for each sequence; the model's own, at most 4096, where
    /// none is given.
    pub n_ctx: Option<usize>,
    /// Type of the KV cache.
    pub cache_type: CacheType,
    /// Threads of the language model; one for each physical core where none
    /// is given.
    pub threads: Option<usize>,
    /// How ViT and Q-Former multiply on a CPU.
    pub vision: Products,
    /// Whether the language model's attention runs as one fused operation.
    pub flash_attention: FlashAttention,
    /// Most rows of one step of the language model; [`EngineOptions`]'s default where
    /// none is given.
    pub n_batch: Option<usize>,
    /// Most rows that it computes at once; likewise.
    pub n_ubatch: Option<usize>,
    /// Where the language model's weights go.
    pub language_model: LanguageModelOptions,
    /// Requests that may wait.
    pub queue: usize,
    /// Keep what was computed for finished requests, for those that begin alike.
    pub prefix_cache: bool,
    /// Longest time from a request's submission until a slot takes it, its pictures
    /// included; none where none is given.
    pub queue_timeout: Option<Duration>,
    /// Bytes kept of pictures seen before. A soft prompt of 32 rows of 4096 floats
    /// takes half a megabyte, ViT-g's output for a picture 1.4.
    pub image_cache_bytes: usize,
    /// [`EngineOptions::prompt_lookup`].
    pub prompt_lookup: usize,
    /// [`EngineOptions::for_throughput`]: for many pictures whose answers nobody watches.
    pub for_throughput: bool,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            slots: 1,
            num_beams: None,
            n_ctx: None,
            cache_type: CacheType::F16,
            threads: None,
            vision: Products::default(),
            flash_attention: FlashAttention::default(),
            n_batch: None,
            n_ubatch: None,
            language_model: LanguageModelOptions::default(),
            queue: 64,
            prefix_cache: true,
            queue_timeout: None,
            image_cache_bytes: 256 << 20,
            prompt_lookup: 0,
            for_throughput: false,
        }
    }
}

impl ModelOptions {
    /// What the engine is made with, for a language model that was trained for `n_ctx_train` rows.
    pub(crate) fn engine_options(&self, manifest: &Manifest, n_ctx_train: usize) -> EngineOptions {
        let num_beams = self.num_beams.unwrap_or(manifest.generation.num_beams);
        let defaults = EngineOptions::default();
        EngineOptions {
            slots: self
                .slots
                .saturating_mul(num_beams.max(1))
                .min(MAX_SEQUENCES),
            // Beams share their prompt, so they need no whole sequence each.
            cache_sequences: Some(self.slots),
            n_ctx: self
                .n_ctx
                .unwrap_or_else(|| n_ctx_train.min(DEFAULT_MAX_CONTEXT)),
            cache_type: self.cache_type,
            flash_attention: self.flash_attention,
            n_batch: self.n_batch.unwrap_or(defaults.n_batch),
            n_ubatch: self.n_ubatch.unwrap_or(defaults.n_ubatch),
            threads: self.threads,
            queue: self.queue,
            prefix_sequences: match (self.prefix_cache, self.for_throughput) {
                (true, true) => THROUGHPUT_PREFIXES,
                (true, false) => defaults.prefix_sequences,
                (false, _) => 0,
            },
            prompt_lookup: self.prompt_lookup,
            for_throughput: self.for_throughput,
            workers: defaults.workers,
        }
    }
}

/// What to say to the model.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// Messages, laid out as the model's family does.
    Chat(Vec<Message>),
    /// Text without a template; pictures stand where the family puts them.
    Raw(String),
    /// Token ids as they are, without pictures.
    Tokens(Vec<i32>),
}

/// Functions that the model may call. What it calls stands in its answer, in its own
/// syntax: [`prompts::CallReader`] reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    /// The functions.
    pub functions: Vec<Tool>,
    /// Whether it must call any.
    pub choice: ToolChoice,
    /// Whether the arguments are held to the functions' schemas where the model chooses
    /// whether to call; where it must call, they always are.
    pub strict: bool,
    /// Whether it may call several at once.
    pub several: bool,
}

/// Whether a model calls a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolChoice {
    /// It chooses.
    Auto,
    /// At least one.
    Required,
    /// This one, by its index, once.
    Function(usize),
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What to say.
    pub prompt: Prompt,
    /// Encoded picture files, in the order in which the prompt counts them.
    pub images: Vec<Arc<[u8]>>,
    /// Most tokens of the answer; the bundle's default where none is given.
    pub max_tokens: Option<usize>,
    /// How to choose tokens; [`Model::default_sampling`] is the bundle's way.
    pub sampling: Sampling,
    /// Strings that end the answer, beside the layout's own.
    pub stop: Vec<String>,
    /// Added to the logits of tokens: ids and values from -100 to 100.
    pub logit_bias: Vec<(i32, f32)>,
    /// With each token the logarithm of its probability and this many of the likeliest,
    /// at most 20. Not with beams.
    pub top_logprobs: Option<usize>,
    /// The form that the answer must have. The layout's own stop strings and stop ids do
    /// not count then: the form says where the answer ends. Not with beams.
    pub format: Option<Format>,
    /// What the model may call; not with a `format`.
    pub tools: Option<Tools>,
    /// Words that the answer begins with: the model continues them, and its events tell
    /// what follows. Not for an encoder-decoder.
    pub answer_prefix: String,
    /// Whether what requests that began alike computed is used, and this one's kept.
    pub cache_prompt: bool,
    /// Where its time goes, to be looked at by whoever made the request.
    pub stages: Stages,
}

impl Request {
    /// A prompt without pictures, and the bundle's limits.
    pub fn new(prompt: Prompt, sampling: Sampling) -> Self {
        Self {
            prompt,
            images: Vec::new(),
            max_tokens: None,
            sampling,
            stop: Vec::new(),
            logit_bias: Vec::new(),
            top_logprobs: None,
            format: None,
            tools: None,
            answer_prefix: String::new(),
            cache_prompt: true,
            stages: Stages::default(),
        }
    }
}

/// A loaded bundle, and the threads that run it.
pub struct Model {
    manifest: Manifest,
    layout: Layout,
    template: Option<ChatTemplate>,
    call_syntax: prompts::Result<CallSyntax>,
    fingerprint: String,
    language_model: Arc<LanguageModel>,
    encoder: Arc<ImageEncoder>,
    // Declared before the engine: it hands work over to it until it is joined.
    vision: VisionWorker,
    engine: Arc<Engine>,
    n_ctx: usize,
    queue_timeout: Option<Duration>,
}

impl Model {
    /// Opens a bundle and loads it.
    ///
    /// # Errors
    /// The bundle is not whole, its parts do not fit together, or a part
    /// cannot be loaded.
    pub fn open(dir: &Path, options: &ModelOptions) -> Result<Self> {
        let bundle = Bundle::open(dir)?;
        let layout = bundle.manifest().prompt.clone();
        let (Some(layout), Ok(llm_path)) = (layout, bundle.llm_path()) else {
            return Err(bundle.no_language_model());
        };
        let device = default_device()?;
        let encoder = ImageEncoder::from_bundle(&bundle, options.vision, &device)?;
        let encoder = Arc::new(encoder);
        let language_model = Arc::new(LanguageModel::load_with(
            &llm_path,
            &options.language_model,
        )?);
        let engine_options =
            options.engine_options(bundle.manifest(), language_model.n_ctx_train());
        let engine = Arc::new(Engine::start(language_model.clone(), engine_options)?);
        let manifest = bundle.manifest().clone();
        let template = language_model.chat_template().map(|source| ChatTemplate {
            source: source.to_owned(),
            bos_token: language_model.bos_text(),
            eos_token: language_model.eos_text(),
        });
        Ok(Self {
            call_syntax: layout.call_syntax(template.as_ref()),
            fingerprint: fingerprint(&manifest, engine.options()),
            template,
            vision: VisionWorker::start(
                encoder.clone(),
                engine.clone(),
                // Those that will not wait for a slot wait here all the same.
                options.slots + options.queue,
                options.image_cache_bytes,
            )?,
            queue_timeout: options.queue_timeout,
            n_ctx: engine.options().n_ctx,
            encoder,
            engine,
            language_model,
            manifest,
            layout,
        })
    }

    /// The bundle's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// How text and pictures are laid out in a prompt.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How tokens are chosen where a request says nothing.
    pub fn default_sampling(&self) -> Sampling {
        self.manifest.generation.sampling()
    }

    /// The language model, which knows the tokens.
    pub fn language_model(&self) -> &LanguageModel {
        &self.language_model
    }

    /// What encodes its pictures, to measure each stage with.
    pub fn image_encoder(&self) -> &ImageEncoder {
        &self.encoder
    }

    /// What runs its language model, likewise.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How busy the engine is.
    pub fn activity(&self) -> Activity {
        self.engine.activity()
    }

    /// How the model writes calls of functions.
    ///
    /// # Errors
    /// Why it calls none: its layout has no place for functions, or writes calls in a way
    /// that is not known.
    pub fn call_syntax(&self) -> prompts::Result<CallSyntax> {
        self.call_syntax.clone()
    }

    /// Stands for what answers depend on beside the request: the bundle, its options,
    /// this program's version.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Rows of context for each sequence.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// What the vision threads have done.
    pub fn vision_activity(&self) -> VisionActivity {
        self.vision.activity()
    }

    /// Starts a request. Its events come over the returned channel; dropping
    /// the receiver cancels it. Blocks no longer than rendering and
    /// tokenizing the text take.
    ///
    /// # Errors
    /// The messages have no form in this model's layout, the prompt does not
    /// fit the context, or the queue is full. A picture at fault is told by
    /// the first event.
    pub fn submit(&self, request: Request) -> Result<Receiver<Event>> {
        self.start(request, &[])
    }

    /// Starts a request whose answers are given, to learn what the model makes of them.
    /// Each token of answer `i`, and the one that ends it as the layout has answers end,
    /// comes with its log-probability as choice `i` of the events. The request's
    /// settings of how tokens are chosen do not count.
    ///
    /// # Errors
    /// Those of [`Model::submit`], and [`Error::InvalidRequest`] for no answers, an empty
    /// one, or more than [`Model::max_sequences`].
    pub fn score(&self, request: Request, answers: &[String]) -> Result<Receiver<Event>> {
        let invalid = |reason: &str| {
            let reason = reason.to_owned();
            Err(Error::InvalidRequest { reason })
        };
        if answers.is_empty() {
            return invalid("no answers to choose from: give at least one");
        }
        if answers.iter().any(|answer| answer.trim().is_empty()) {
            return invalid("an answer to choose from is empty");
        }
        let request = Request {
            sampling: Sampling {
                n: answers.len(),
                ..Sampling::default()
            },
            max_tokens: None,
            stop: Vec::new(),
            logit_bias: Vec::new(),
            top_logprobs: Some(0),
            format: None,
            tools: None,
            ..request
        };
        self.start(request, answers)
    }

    /// Sequences that are computed at once: the most answers or beams of a request.
    pub fn max_sequences(&self) -> usize {
        self.engine.options().slots
    }

    fn start(&self, request: Request, answers: &[String]) -> Result<Receiver<Event>> {
        // Before the pictures are encoded in vain.
        self.engine.check_sampling(&request.sampling)?;
        self.engine.check_logit_bias(&request.logit_bias)?;
        let calls = match &request.tools {
            Some(tools) => self.calls(tools)?,
            None => None,
        };
        let opening = calls.as_ref().filter(|calls| calls.opened);
        let opening = opening.map_or("", |calls| calls.syntax.opening());
        let format = match (&request.format, calls) {
            (Some(_), Some(_)) => {
                return Err(Error::InvalidRequest {
                    reason: "an answer has one form: a format, or calls".to_owned(),
                });
            }
            (format, calls) => format.clone().or(calls.map(Format::Calls)),
        };
        let constraint = match &format {
            Some(format) => Some(self.language_model.constraint(format)?),
            None => None,
        };
        let mut segments = self.render(&request, opening)?;
        let prefix = request.answer_prefix.trim_end();
        if !prefix.is_empty() {
            self.begin_answer(&request.prompt, &mut segments, prefix)?;
        }
        let instructions = self.instructions(&request);
        let given = answers
            .iter()
            .map(|answer| self.answer_ids(&segments, answer))
            .collect::<Result<Vec<_>>>()?;
        let pieces = match &request.prompt {
            Prompt::Tokens(ids) => vec![Piece::Tokens(ids.clone())],
            Prompt::Chat(_) | Prompt::Raw(_) => tokenize(segments, &self.language_model)?,
        };
        let n_prompt_tokens = self.count_rows(&pieces);
        if n_prompt_tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        if n_prompt_tokens > self.engine.max_prompt_rows() {
            return Err(Error::ContextLengthExceeded {
                n_prompt_tokens,
                n_ctx: self.n_ctx,
            });
        }
        let defaults = &self.manifest.generation;
        let mut stop = match constraint {
            Some(_) => Vec::new(),
            None => self.layout.stop().to_vec(),
        };
        stop.extend(request.stop);
        let (events, receiver) = channel(EVENT_CAPACITY);
        let mut sequence = Sequence {
            prompt: Vec::new(),
            max_tokens: Some(request.max_tokens.unwrap_or(defaults.max_tokens)),
            sampling: request.sampling,
            penalize_prompt: defaults.penalize_prompt,
            logit_bias: request.logit_bias,
            top_logprobs: request.top_logprobs,
            constraint,
            given,
            continues_text: !prefix.is_empty(),
            stop_ids: self.layout.stop_ids().to_vec(),
            stop,
            cache_prompt: request.cache_prompt,
            stages: request.stages,
            deadline: self.queue_timeout.map(|longest| Instant::now() + longest),
            ..Sequence::new(Vec::new(), events)
        };
        if pieces.iter().any(|piece| matches!(piece, Piece::Image(_))) {
            self.vision.submit(Job {
                images: request.images,
                instructions,
                pieces,
                sequence,
            })?;
        } else {
            sequence.prompt = pieces
                .into_iter()
                .filter_map(|piece| match piece {
                    Piece::Tokens(ids) => Some(PromptPart::Tokens(ids)),
                    Piece::Image(_) => None,
                })
                .collect();
            self.engine.submit(sequence)?;
        }
        Ok(receiver)
    }

    /// What the Q-Former reads beside each picture, where it reads anything.
    fn instructions(&self, request: &Request) -> Vec<String> {
        let qformer = self.manifest.qformer.as_ref();
        if !qformer.is_some_and(|qformer| qformer.use_qformer_text_input) {
            return Vec::new();
        }
        let n_images = request.images.len();
        match &request.prompt {
            Prompt::Chat(messages) => self.layout.instructions(messages, n_images),
            Prompt::Raw(text) => vec![text.clone(); n_images],
            Prompt::Tokens(_) => Vec::new(),
        }
    }

    /// The form of an answer that must, or may, call functions.
    fn calls(&self, tools: &Tools) -> Result<Option<Calls>> {
        let syntax = self.call_syntax.clone()?;
        let functions = tools.functions.iter().map(|tool| {
            let any = || json!({"type": "object"});
            let schema = tool.parameters.clone().unwrap_or_else(any);
            (tool.name.clone(), schema)
        });
        let calls = |functions: Vec<_>, opened, several| {
            Some(Calls {
                syntax,
                functions,
                opened,
                several,
            })
        };
        Ok(match tools.choice {
            ToolChoice::Auto if !tools.strict => None,
            ToolChoice::Auto => calls(functions.collect(), false, tools.several),
            ToolChoice::Required => calls(functions.collect(), true, tools.several),
            ToolChoice::Function(index) => {
                calls(functions.skip(index).take(1).collect(), true, false)
            }
        })
    }

    /// The prompt's text and the places of its pictures, `opening` behind all of it.
    fn render(&self, request: &Request, opening: &str) -> Result<Vec<Segment>> {
        let layout = &self.layout;
        let n_images = request.images.len();
        let tools = request.tools.as_ref();
        let tools = tools.map_or(&[][..], |tools| &tools.functions);
        let mut segments = match &request.prompt {
            Prompt::Chat(messages) => {
                check_images(messages, n_images)?;
                layout.render_with_tools(messages, tools, self.template.as_ref())?
            }
            Prompt::Raw(text) => layout.render_raw(text, n_images)?,
            Prompt::Tokens(_) => Vec::new(),
        };
        if !opening.is_empty() {
            segments.push(Segment::special(opening));
        }
        Ok(segments)
    }

    /// Puts the first words of the answer behind a prompt.
    fn begin_answer(
        &self,
        prompt: &Prompt,
        segments: &mut Vec<Segment>,
        prefix: &str,
    ) -> Result<()> {
        let model = &self.language_model;
        let who = match prompt {
            _ if model.is_encoder_decoder() => "an encoder-decoder",
            Prompt::Tokens(_) => "a prompt of token ids",
            Prompt::Chat(_) | Prompt::Raw(_) => "",
        };
        if !who.is_empty() {
            return Err(Error::InvalidRequest {
                reason: format!("the answer of {who} cannot be begun for it: leave the prefix out"),
            });
        }
        let space = match self.wants_space(&rows(tokenize(segments.clone(), model)?)) {
            true => " ",
            false => "",
        };
        segments.push(Segment::text(format!("{space}{}", prefix.trim_start())));
        Ok(())
    }

    /// Whether a word behind these tokens has a space before it: behind text it has one,
    /// behind `<|assistant|>` it has none.
    fn wants_space(&self, ids: &[i32]) -> bool {
        ids.last()
            .and_then(|&id| self.language_model.token_bytes(id).last().copied())
            .is_some_and(|byte| !byte.is_ascii_whitespace())
    }

    /// The tokens of an answer behind a prompt, and what ends it.
    fn answer_ids(&self, prompt: &[Segment], answer: &str) -> Result<Vec<i32>> {
        let model = &self.language_model;
        let layout = &self.layout;
        let mut text = answer.trim().to_owned();
        let end = match (layout.stop_ids().first(), layout.stop().first()) {
            (Some(&id), _) => Some(id),
            (None, Some(stop)) => {
                text.push_str(stop);
                None
            }
            (None, None) => model.eos(),
        };
        let alone = model.tokenize(&text, false)?;
        let mut ids = if model.is_encoder_decoder() {
            alone
        } else {
            let before = rows(tokenize(prompt.to_vec(), model)?);
            if self.wants_space(&before) {
                text.insert(0, ' ');
            }
            let mut whole = prompt.to_vec();
            whole.push(Segment::text(text));
            let whole = rows(tokenize(whole, model)?);
            // Where a token reaches over the border, the prompt stays as it is.
            let behind = whole.strip_prefix(before.as_slice());
            behind.map_or(alone, <[i32]>::to_vec)
        };
        ids.extend(end);
        Ok(ids)
    }

    fn count_rows(&self, pieces: &[Piece]) -> usize {
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Tokens(ids) => ids.len(),
                Piece::Image(_) => self.manifest.num_query_tokens,
            })
            .sum()
    }
}

/// A name for a bundle, as it is run by this program: whatever changes answers changes it.
fn fingerprint(manifest: &Manifest, options: &EngineOptions) -> String {
    let of = format!(
        "{} {manifest:?} {:?} {:?} {}",
        env!("CARGO_PKG_VERSION"),
        options.cache_type,
        options.flash_attention,
        options.n_ctx,
    );
    let digest = Sha256::digest(of.as_bytes());
    let hex = digest.iter().take(5).map(|byte| format!("{byte:02x}"));
    format!("fp_{}", hex.collect::<String>())
}

/// The tokens of a prompt, to be compared: -1, which is none, stands for a picture.
fn rows(pieces: Vec<Piece>) -> Vec<i32> {
    let of_piece = |piece| match piece {
        Piece::Tokens(ids) => ids,
        Piece::Image(_) => vec![-1],
    };
    pieces.into_iter().flat_map(of_piece).collect()
}

/// The GPU where this build has one and the machine too, else the CPU.
///
/// # Errors
/// The GPU is there but fails.
pub fn default_device() -> Result<Device> {
    if cfg!(feature = "cuda") && candle_core::utils::cuda_is_available() {
        return Ok(Device::new_cuda(0)?);
    }
    if cfg!(feature = "metal") && candle_core::utils::metal_is_available() {
        return Ok(Device::new_metal(0)?);
    }
    Ok(Device::Cpu)
}
