//! A [`Matcher`] for many who ask at once: features, scores and captions, batched across
//! requests.
//!
//! Some threads decode picture files and count tokens, while one runs the model on all that waits
//! for it together. What was made of a picture is kept, and found again by the hash of its bytes.
//!
//! - `decoder`: from picture files to pixels
//! - `worker`: the thread that owns the model
//! - `chat`: messages and a picture as a caption's request

mod chat;
mod decoder;
mod worker;

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qformer::checkpoint::Products;
use qformer::stage1::CaptionOptions;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::bundle::Manifest;
use crate::cache::{Cache, ImageKey};
use crate::event::{Event, FinishReason, Summary, Usage};
use crate::matcher::{Abilities, Caption, Matcher};
use crate::model::default_device;
use crate::stages::{Running, Stage, Stages};
use crate::vision_worker::{Counters, MAX_BATCH, MAX_DECODERS, VisionActivity};
use crate::{Error, Result};
use decoder::{Decoder, Looked, Room};
use worker::Worker;

/// How to run a bundle that compares pictures and texts.
#[derive(Debug, Clone)]
pub struct RetrieverOptions {
    /// How it multiplies on a CPU.
    pub products: Products,
    /// Requests that may wait.
    pub queue: usize,
    /// Longest time from a request's submission until its work begins; none where none is given.
    pub queue_timeout: Option<Duration>,
    /// Bytes kept of pictures seen before.
    pub image_cache_bytes: usize,
}

impl Default for RetrieverOptions {
    fn default() -> Self {
        Self {
            products: Products::default(),
            queue: 64,
            queue_timeout: None,
            image_cache_bytes: 256 << 20,
        }
    }
}

/// Pictures and texts, and what is wanted of them.
#[derive(Debug, Clone)]
pub struct RetrievalRequest {
    /// Encoded picture files.
    pub pictures: Vec<Arc<[u8]>>,
    /// Texts.
    pub texts: Vec<String>,
    /// What is wanted.
    pub want: Want,
    /// Where its time goes, to be looked at by whoever made the request.
    pub stages: Stages,
}

/// What is wanted of pictures and texts.
#[derive(Debug, Clone)]
pub enum Want {
    /// The features of each.
    Features,
    /// How well pairs fit, each an index of a picture and one of a text. Of the `matched` most
    /// similar pairs the matching head says more, where there is one.
    Scores {
        /// The pairs.
        pairs: Vec<(usize, usize)>,
        /// How many of them are read by the matching head.
        matched: usize,
    },
    /// A caption of the one picture, which goes on from the text where there is one, or, by a
    /// model that answers, an answer to it.
    Caption(CaptionOptions),
}

/// What was wanted.
#[derive(Debug, Clone)]
pub enum Found {
    /// The features, in the order of the request; rows have length 1.
    Features {
        /// Of each picture one row or several.
        pictures: Vec<Arc<[Vec<f32>]>>,
        /// Of each text one row.
        texts: Vec<Vec<f32>>,
    },
    /// The scores of the pairs, in their order.
    Scores(Vec<Score>),
    /// The caption.
    Caption(Caption),
}

/// How well a picture and a text fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// The largest cosine of their features (ITC), from -1 to 1.
    pub similarity: f32,
    /// The probability that they belong together (ITM), where the matching head read them.
    pub probability: Option<f32>,
}

/// A request's outcome.
#[derive(Debug, Clone)]
pub struct Retrieved {
    /// What was wanted.
    pub found: Found,
    /// Tokens of the texts, and rows that the model reads of the pictures.
    pub usage: Usage,
}

/// How busy a retriever is, and what it has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetrieverActivity {
    /// Requests that are worked on.
    pub active: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Pictures; each that was read for its features or a caption is a reading.
    pub vision: VisionActivity,
    /// Texts whose features were computed.
    pub texts: u64,
    /// Pairs of a picture and a text that the matching head read.
    pub pairs: u64,
}

/// Written by the threads.
#[derive(Default)]
struct Tally {
    vision: Counters,
    texts: AtomicU64,
    pairs: AtomicU64,
    active: AtomicUsize,
    waiting: Arc<AtomicUsize>,
}

/// A request that waits, counted until it is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn new(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request on its way.
struct Job {
    request: RetrievalRequest,
    reply: Reply,
    deadline: Option<Instant>,
    waiting: Option<Waiting>,
    /// The stretch in which it waits, for a decoder or for the model.
    queued: Option<Running>,
}

impl Job {
    fn begin_to_wait(&mut self) {
        self.queued = Some(self.request.stages.begin(Stage::Queue));
    }

    /// Whether nobody waits for it any more.
    fn is_left(&self) -> bool {
        match &self.reply {
            Reply::Once(reply) => reply.is_closed(),
            Reply::Events(events) => events.is_closed(),
        }
    }

    fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() > deadline)
    }

    /// Answers it.
    fn answer(self, outcome: Result<Retrieved>) {
        match self.reply {
            // Who has left is not told.
            Reply::Once(reply) => drop(reply.send(outcome)),
            Reply::Events(events) => tell(&events, outcome, &self.request.stages),
        }
    }
}

/// Where an outcome goes.
enum Reply {
    Once(oneshot::Sender<Result<Retrieved>>),
    Events(mpsc::Sender<Event>),
}

/// Events of a caption: its channel has room for both.
fn tell(events: &mpsc::Sender<Event>, outcome: Result<Retrieved>, stages: &Stages) {
    let caption = match outcome {
        Ok(Retrieved {
            found: Found::Caption(caption),
            usage,
        }) => Ok((caption, usage)),
        Ok(_) => Err(Error::Stopped),
        Err(error) => Err(error),
    };
    match caption {
        Err(error) => drop(events.try_send(Event::Error(error))),
        Ok((caption, usage)) => {
            let token = Event::Token {
                choice: 0,
                id: caption.ids.last().map_or(0, |id| *id as i32),
                text: caption.text,
                logprobs: Vec::new(),
            };
            let done = Event::Done(Summary {
                choice: 0,
                finish_reason: match caption.is_whole {
                    true => FinishReason::Stop,
                    false => FinishReason::Length,
                },
                usage,
                timings: stages.timings(),
                text: String::new(),
                logprobs: Vec::new(),
                mean_logprob: caption.mean_logprob,
            });
            drop(events.try_send(token));
            drop(events.try_send(done));
        }
    }
}

/// A loaded bundle that compares pictures and texts, and its threads; dropping it lets them finish
/// and joins them.
pub struct Retriever {
    manifest: Manifest,
    abilities: Abilities,
    matcher: Arc<Matcher>,
    fingerprint: String,
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    tally: Arc<Tally>,
    options: RetrieverOptions,
}

impl Retriever {
    /// Opens and loads a bundle.
    ///
    /// # Errors
    /// The bundle is not whole, a part cannot be loaded, or it is one with a language model.
    pub fn open(dir: &Path, options: &RetrieverOptions) -> Result<Self> {
        let matcher = Matcher::open(dir, options.products, &default_device()?)?;
        Self::start(matcher, options)
    }

    /// Starts the threads of a loaded bundle.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(matcher: Matcher, options: &RetrieverOptions) -> Result<Self> {
        let matcher = Arc::new(matcher);
        let cache: Cache<Looked> = Cache::new(options.image_cache_bytes);
        let cache = Arc::new(Mutex::new(cache));
        let tally = Arc::new(Tally::default());
        let (jobs, waiting) = sync_channel(options.queue.max(1));
        // As many as the model takes next, while it is at work.
        let (decoded, next) = sync_channel(MAX_BATCH);
        let room = Arc::new(Room::default());
        let manifest = matcher.manifest().clone();
        let mut retriever = Self {
            fingerprint: fingerprint(&manifest, options),
            abilities: matcher.abilities(),
            manifest,
            matcher: matcher.clone(),
            jobs: Some(jobs),
            threads: Vec::new(),
            tally: tally.clone(),
            options: options.clone(),
        };
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..num_cpus::get().min(MAX_DECODERS) {
            let decoder = Decoder {
                jobs: waiting.clone(),
                decoded: decoded.clone(),
                matcher: matcher.clone(),
                cache: cache.clone(),
                room: room.clone(),
            };
            retriever.spawn("decode", move || decoder.run())?;
        }
        let worker = Worker {
            matcher,
            cache,
            tally,
        };
        retriever.spawn("retrieve", move || worker.run(&next))?;
        Ok(retriever)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let builder = std::thread::Builder::new().name(name.to_owned());
        self.threads
            .push(builder.spawn(run).map_err(Error::Thread)?);
        Ok(())
    }

    /// The bundle's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What the model can do.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// The model itself.
    pub fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// Stands for what answers depend on beside the request: the bundle, its options, this
    /// program's version.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// How busy it is, and what it has done.
    pub fn activity(&self) -> RetrieverActivity {
        RetrieverActivity {
            active: self.tally.active.load(Ordering::Relaxed),
            waiting: self.tally.waiting.load(Ordering::Relaxed),
            vision: self.tally.vision.activity(),
            texts: self.tally.texts.load(Ordering::Relaxed),
            pairs: self.tally.pairs.load(Ordering::Relaxed),
        }
    }

    /// Starts a request; dropping the receiver cancels it.
    ///
    /// # Errors
    /// The request refers to what it does not hold, wants what the model cannot do, or the queue
    /// is full. A picture at fault is told by the outcome.
    pub fn submit(
        &self,
        request: RetrievalRequest,
    ) -> Result<oneshot::Receiver<Result<Retrieved>>> {
        self.check(&request)?;
        let (reply, outcome) = oneshot::channel();
        self.queue(request, Reply::Once(reply))?;
        Ok(outcome)
    }

    fn check(&self, request: &RetrievalRequest) -> Result<()> {
        let invalid = |reason: String| Err(Error::InvalidRequest { reason });
        let family = &self.manifest.family;
        let (pictures, texts) = (request.pictures.len(), request.texts.len());
        match &request.want {
            Want::Features | Want::Scores { .. } if !self.abilities.compares => {
                return invalid(format!("this {family} has no features to compare"));
            }
            Want::Caption(_) if !self.abilities.captions && !self.abilities.answers => {
                return invalid(format!("this {family} writes no captions"));
            }
            _ => {}
        }
        match &request.want {
            Want::Features => Ok(()),
            Want::Scores { pairs, .. } => {
                let is_there =
                    |(picture, text): &(usize, usize)| *picture < pictures && *text < texts;
                match pairs.iter().all(is_there) {
                    true => Ok(()),
                    false => invalid("a pair names a picture or text that is not there".to_owned()),
                }
            }
            Want::Caption(_) => match pictures == 1 && texts <= 1 {
                true => Ok(()),
                false => invalid(format!(
                    "a caption is of one picture and at most one text, and not of {pictures} and {texts}"
                )),
            },
        }
    }

    fn queue(&self, request: RetrievalRequest, reply: Reply) -> Result<()> {
        let jobs = self.jobs.as_ref().ok_or(Error::Stopped)?;
        let now = Instant::now();
        let mut job = Job {
            request,
            reply,
            deadline: self.options.queue_timeout.map(|timeout| now + timeout),
            waiting: Some(Waiting::new(&self.tally.waiting)),
            queued: None,
        };
        job.begin_to_wait();
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Error::QueueFull {
                limit: self.options.queue,
            },
            TrySendError::Disconnected(_) => Error::Stopped,
        })
    }

    /// How captions are chosen where a request says nothing.
    pub fn default_caption(&self) -> CaptionOptions {
        self.matcher.default_caption()
    }
}

impl Drop for Retriever {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn key_of(file: &[u8]) -> ImageKey {
    Sha256::digest(file).into()
}

/// A name for a bundle, as it is run by this program: whatever changes answers changes it.
fn fingerprint(manifest: &Manifest, options: &RetrieverOptions) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let of = format!("{version} {manifest:?} {:?}", options.products);
    let digest = Sha256::digest(of.as_bytes());
    let hex = digest.iter().take(5).map(|byte| format!("{byte:02x}"));
    format!("fp_{}", hex.collect::<String>())
}
