//! The threads that turn pictures into soft prompts.
//!
//! Some decode picture files, while one runs the ViT on those that wait for it
//! together, or one beside each worker of the engine; of a picture seen before,
//! whatever depends on it alone is taken from a cache: its soft prompt, or the ViT's
//! output where the Q-Former reads the question too. The engine never waits for them, and requests without pictures never pass
//! through them.
//!
//! - `claims`: which pictures are being encoded
//! - `decoder`: from picture files to pixels

mod claims;
mod decoder;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use candle_core::{DType, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::mpsc::Sender;

use crate::cache::{Cache, ImageKey, Kept};
use crate::engine::{Engine, PromptPart, Sequence};
use crate::event::Event;
use crate::image_encoder::ImageEncoder;
use crate::prompt::Piece;
use crate::stages::{Running, Stage, Stages};
use crate::{Error, Result};
use claims::Claims;
use decoder::{Decoded, DecodedPicture, Decoder};

/// Most pictures in one forward pass: beyond this a CPU gains nothing.
pub(crate) const MAX_BATCH: usize = 8;

/// Rows of one picture, `queries x n_embd` floats.
type SoftPrompt = Arc<[f32]>;

/// Everything of a picture that does not depend on the question.
#[derive(Clone)]
enum Seen {
    /// Where the Q-Former reads the picture alone.
    SoftPrompt(SoftPrompt),
    /// The ViT's output, `[patches + 1, vision width]`, where it also reads the
    /// instruction.
    Vision(Tensor),
}

impl Kept for Seen {
    fn bytes(&self) -> usize {
        match self {
            Seen::SoftPrompt(rows) => size_of_val(&**rows),
            Seen::Vision(vision) => vision.elem_count() * vision.dtype().size_in_bytes(),
        }
    }
}

/// A request whose pictures are still to be encoded.
pub(crate) struct Job {
    /// Encoded picture files.
    pub images: Vec<Arc<[u8]>>,
    /// What the Q-Former reads beside each, where it reads anything.
    pub instructions: Vec<String>,
    /// The prompt, with places for the pictures.
    pub pieces: Vec<Piece>,
    /// What to hand to the engine; its prompt is filled in here.
    pub sequence: Sequence,
}

impl Job {
    /// Whether nobody waits for it any more; whoever is too late is told.
    fn is_over(&self) -> bool {
        let is_late = self.sequence.is_late();
        if is_late {
            fail(&self.sequence.events, Error::QueueTimeout);
        }
        is_late || self.sequence.events.is_closed()
    }
}

/// What the threads have done since they started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VisionActivity {
    /// Forward passes of the ViT, each of the pictures that waited together.
    pub batches: u64,
    /// Pictures that went through the ViT.
    pub pictures: u64,
    /// Pictures that went through the Q-Former: more where it reads the
    /// instruction, since then a picture is read anew for each question.
    pub readings: u64,
    /// Pictures of requests that had been seen before, or came twice.
    pub cache_hits: u64,
    /// Pictures of requests that had not.
    pub cache_misses: u64,
    /// Pictures that made room for others.
    pub cache_evictions: u64,
    /// Bytes kept of pictures seen before.
    pub cache_bytes: u64,
}

/// Written by the vision threads alone.
#[derive(Default)]
pub(crate) struct Counters {
    pub batches: AtomicU64,
    pub pictures: AtomicU64,
    pub readings: AtomicU64,
    pub cache_hits: AtomicU64,
    pub cache_misses: AtomicU64,
    pub cache_evictions: AtomicU64,
    pub cache_bytes: AtomicU64,
}

impl Counters {
    /// What was counted.
    pub fn activity(&self) -> VisionActivity {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        VisionActivity {
            batches: count(&self.batches),
            pictures: count(&self.pictures),
            readings: count(&self.readings),
            cache_hits: count(&self.cache_hits),
            cache_misses: count(&self.cache_misses),
            cache_evictions: count(&self.cache_evictions),
            cache_bytes: count(&self.cache_bytes),
        }
    }
}

pub(crate) fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

/// Threads that decode: with more, other parts are slower than they are.
pub(crate) const MAX_DECODERS: usize = 8;

/// Handle of the threads; dropping it lets them finish and joins them.
pub(crate) struct VisionWorker {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    queue: usize,
    counters: Arc<Counters>,
}

impl VisionWorker {
    /// Starts the threads; at most `queue` jobs wait, and `cache_bytes` are kept of
    /// pictures seen before.
    pub fn start(
        encoder: Arc<ImageEncoder>,
        engine: Arc<Engine>,
        queue: usize,
        cache_bytes: usize,
    ) -> Result<Self> {
        let cache: Arc<Mutex<Cache<Seen>>> = Arc::new(Mutex::new(Cache::new(cache_bytes)));
        let counters = Arc::new(Counters::default());
        let (jobs, waiting) = sync_channel(queue);
        // As many as the ViT takes next, while it is at work.
        let (decoded, next) = sync_channel(MAX_BATCH);
        let mut worker = VisionWorker {
            jobs: Some(jobs),
            threads: Vec::new(),
            queue,
            counters: counters.clone(),
        };
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..num_cpus::get().min(MAX_DECODERS) {
            let decoder = Decoder {
                jobs: waiting.clone(),
                decoded: decoded.clone(),
                encoder: encoder.clone(),
                cache: cache.clone(),
            };
            worker.spawn("decode", move || decoder.run())?;
        }
        let next = Arc::new(Mutex::new(next));
        let claims = Arc::new(Claims::default());
        let n_workers = engine.options().n_workers();
        for number in 0..n_workers {
            let seer = Worker {
                number,
                most: MAX_BATCH.div_ceil(n_workers),
                pool: pool(number, n_workers)?,
                encoder: encoder.clone(),
                engine: engine.clone(),
                cache: cache.clone(),
                claims: claims.clone(),
                counters: counters.clone(),
            };
            let next = next.clone();
            worker.spawn("vision", move || seer.run(&next))?;
        }
        Ok(worker)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let builder = std::thread::Builder::new().name(name.to_owned());
        self.threads
            .push(builder.spawn(run).map_err(Error::Thread)?);
        Ok(())
    }

    /// What the threads have done.
    pub fn activity(&self) -> VisionActivity {
        self.counters.activity()
    }

    /// Queues a job.
    ///
    /// # Errors
    /// The queue is full, or the threads are gone.
    pub fn submit(&self, job: Job) -> Result<()> {
        let jobs = self.jobs.as_ref().ok_or(Error::Stopped)?;
        jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Error::QueueFull { limit: self.queue },
            TrySendError::Disconnected(_) => Error::Stopped,
        })
    }
}

impl Drop for VisionWorker {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The threads that one of several computes with, its share of rayon's; none where it has them all.
fn pool(number: usize, of: usize) -> Result<Option<ThreadPool>> {
    if of == 1 {
        return Ok(None);
    }
    let threads = (rayon::current_num_threads() + number) / of;
    let pool = ThreadPoolBuilder::new().num_threads(threads.max(1));
    let pool = pool.thread_name(move |i| format!("vision-{number}-{i}"));
    let started = pool.build();
    Ok(Some(started.map_err(|error| {
        Error::Thread(std::io::Error::other(error))
    })?))
}

struct Worker {
    /// That of the engine's worker beside it.
    number: usize,
    /// Most pictures in a forward pass.
    most: usize,
    pool: Option<ThreadPool>,
    encoder: Arc<ImageEncoder>,
    engine: Arc<Engine>,
    cache: Arc<Mutex<Cache<Seen>>>,
    claims: Arc<Claims>,
    counters: Arc<Counters>,
}

/// A job on its way through a batch.
struct Pending {
    job: Job,
    keys: Vec<ImageKey>,
    /// Of each picture, none where encoding it failed.
    soft_prompts: Vec<Option<SoftPrompt>>,
}

impl Pending {
    /// Whether somebody waits for what is seen in a picture.
    fn needs(&self, key: &ImageKey) -> bool {
        !self.job.sequence.events.is_closed() && self.keys.contains(key)
    }
}

impl Worker {
    fn run(&self, decoded: &Mutex<Receiver<Decoded>>) {
        loop {
            let first = lock(decoded).recv();
            let Ok(first) = first else { return };
            if !self.encoder.reads_instruction() && first.is_known() {
                self.process(vec![first]);
                continue;
            }
            // While it waits for its turn, others may take what comes.
            let turn = self.engine.turn(self.number);
            self.process(self.batch(first, decoded));
            drop(turn);
        }
    }

    /// `first` and what waits behind it, as far as they go through the ViT together.
    fn batch(&self, first: Decoded, decoded: &Mutex<Receiver<Decoded>>) -> Vec<Decoded> {
        let mut n_images = first.pictures.len();
        let mut batch = vec![first];
        // Whoever holds it waits for more, so there is none.
        if let Ok(decoded) = decoded.try_lock() {
            while n_images < self.most {
                let Ok(next) = decoded.try_recv() else { break };
                n_images += next.pictures.len();
                batch.push(next);
            }
        }
        batch
    }

    fn process(&self, batch: Vec<Decoded>) {
        // Encoded in this batch, beside the cache: a batch with more pictures
        // than the cache holds must not lose any.
        let mut seen: HashMap<ImageKey, Seen> = HashMap::new();
        let mut new_pixels: Vec<(ImageKey, Tensor)> = Vec::new();
        let mut pending = Vec::with_capacity(batch.len());
        for decoded in batch {
            let Decoded { job, pictures } = decoded;
            if job.is_over() {
                continue;
            }
            pending.push(Pending {
                job,
                keys: pictures.iter().map(|(key, _)| *key).collect(),
                soft_prompts: Vec::new(),
            });
            for (key, picture) in pictures {
                self.add(key, picture, &mut seen, &mut new_pixels);
            }
        }
        let fresh: Vec<ImageKey> = new_pixels.iter().map(|(key, _)| *key).collect();
        // What is done for them together is done for each.
        let with_new: Vec<Stages> = pending
            .iter()
            .filter(|pending| pending.keys.iter().any(|key| fresh.contains(key)))
            .map(|pending| pending.job.sequence.stages.clone())
            .collect();
        loop {
            // Whoever has left needs no picture any more.
            new_pixels.retain(|(key, _)| pending.iter().any(|pending| pending.needs(key)));
            if new_pixels.is_empty() {
                break;
            }
            // Held until the cache has them. What another thread encodes comes from there in a later turn.
            let keys = new_pixels.iter().map(|(key, _)| *key);
            let claim = self.claims.take(keys, self.most);
            let (chunk, rest): (Vec<_>, Vec<_>) =
                (new_pixels.into_iter()).partition(|(key, _)| claim.has(key));
            new_pixels = rest;
            let chunk = self.unknown(chunk, &mut seen);
            if chunk.is_empty() {
                continue;
            }
            match self.see(&chunk, &with_new) {
                Ok(new) => self.keep(chunk.iter().map(|(key, _)| *key).zip(new), &mut seen),
                Err(error) => tracing::error!(%error, "a batch of pictures could not be encoded"),
            }
        }
        self.read(&mut pending, &seen);
        for pending in pending {
            self.hand_over(pending);
        }
    }

    /// Those of `pictures` that are not in the cache.
    fn unknown(
        &self,
        mut pictures: Vec<(ImageKey, Tensor)>,
        seen: &mut HashMap<ImageKey, Seen>,
    ) -> Vec<(ImageKey, Tensor)> {
        let mut cache = lock(&self.cache);
        pictures.retain(|(key, _)| match cache.get(key) {
            Some(known) => {
                seen.insert(*key, known);
                false
            }
            None => true,
        });
        pictures
    }

    /// Keeps what is new, for this batch and in the cache.
    fn keep(
        &self,
        new: impl Iterator<Item = (ImageKey, Seen)>,
        seen: &mut HashMap<ImageKey, Seen>,
    ) {
        let mut cache = lock(&self.cache);
        for (key, new) in new {
            let evicted = cache.put(key, new.clone());
            add(&self.counters.cache_evictions, evicted);
            seen.insert(key, new);
        }
        let bytes = cache.bytes() as u64;
        self.counters.cache_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Puts a picture to those that are known, or to those that are new.
    fn add(
        &self,
        key: ImageKey,
        picture: DecodedPicture,
        seen: &mut HashMap<ImageKey, Seen>,
        new_pixels: &mut Vec<(ImageKey, Tensor)>,
    ) {
        if seen.contains_key(&key) || new_pixels.iter().any(|(new, _)| *new == key) {
            return add(&self.counters.cache_hits, 1);
        }
        let known = match picture {
            DecodedPicture::Seen(known) => Ok(known),
            // Another request's may have been encoded since.
            DecodedPicture::Pixels(pixels) => lock(&self.cache).get(&key).ok_or(pixels),
        };
        match known {
            Ok(known) => {
                add(&self.counters.cache_hits, 1);
                seen.insert(key, known);
            }
            Err(pixels) => {
                add(&self.counters.cache_misses, 1);
                new_pixels.push((key, pixels));
            }
        }
    }

    /// Runs new pictures as far as the question does not matter.
    fn see(&self, chunk: &[(ImageKey, Tensor)], requests: &[Stages]) -> Result<Vec<Seen>> {
        let pixels: Vec<&Tensor> = chunk.iter().map(|(_, pixels)| pixels).collect();
        let pixels = Tensor::stack(&pixels, 0)?;
        let vision = || self.computing(|| self.encoder.vision(&pixels));
        let vision = during(requests, Stage::Vit, vision)?;
        add(&self.counters.batches, 1);
        add(&self.counters.pictures, chunk.len());
        if self.encoder.reads_instruction() {
            // Copied, so that none keeps the memory of all.
            return (0..chunk.len())
                .map(|i| Ok(Seen::Vision(vision.get(i)?.copy()?)))
                .collect();
        }
        let read = || self.soft_prompts(&vision, &[]);
        let soft_prompts = during(requests, Stage::Qformer, read)?;
        Ok(soft_prompts.into_iter().map(Seen::SoftPrompt).collect())
    }

    /// Gives each job the soft prompts of its pictures; where the Q-Former
    /// reads instructions, this is where it does.
    fn read(&self, pending: &mut [Pending], seen: &HashMap<ImageKey, Seen>) {
        // Place in `pending`, place among its pictures, and what to read.
        let mut readings: Vec<(usize, usize, &Tensor)> = Vec::new();
        for (job, pending) in pending.iter_mut().enumerate() {
            pending.soft_prompts = Vec::with_capacity(pending.keys.len());
            for (image, key) in pending.keys.iter().enumerate() {
                pending.soft_prompts.push(match seen.get(key) {
                    Some(Seen::SoftPrompt(rows)) => Some(rows.clone()),
                    Some(Seen::Vision(vision)) => {
                        readings.push((job, image, vision));
                        None
                    }
                    None => None,
                });
            }
        }
        for chunk in readings.chunks(self.most) {
            let mut jobs: Vec<usize> = chunk.iter().map(|(job, _, _)| *job).collect();
            jobs.dedup();
            let stages = |job: usize| pending[job].job.sequence.stages.clone();
            let requests: Vec<Stages> = jobs.into_iter().map(stages).collect();
            let instructions: Vec<&str> = chunk
                .iter()
                .map(|(job, image, _)| {
                    let instructions = &pending[*job].job.instructions;
                    instructions.get(*image).map_or("", String::as_str)
                })
                .collect();
            let vision: Vec<&Tensor> = chunk.iter().map(|(_, _, vision)| *vision).collect();
            let read = during(&requests, Stage::Qformer, || {
                self.soft_prompts(&Tensor::stack(&vision, 0)?, &instructions)
            });
            match read {
                Ok(soft_prompts) => {
                    for ((job, image, _), rows) in chunk.iter().zip(soft_prompts) {
                        pending[*job].soft_prompts[*image] = Some(rows);
                    }
                }
                Err(error) => tracing::error!(%error, "a batch of pictures could not be read"),
            }
        }
    }

    fn soft_prompts(&self, vision: &Tensor, instructions: &[&str]) -> Result<Vec<SoftPrompt>> {
        let soft_prompts = || self.encoder.soft_prompts(vision, instructions);
        let soft_prompts = self.computing(soft_prompts)?;
        let pictures = soft_prompts.dim(0)?;
        add(&self.counters.readings, pictures);
        (0..pictures)
            .map(|i| {
                let rows = soft_prompts.get(i)?.to_dtype(DType::F32)?;
                Ok(rows.flatten_all()?.to_vec1::<f32>()?.into())
            })
            .collect()
    }

    /// Has `work` done by its threads.
    fn computing<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    fn hand_over(&self, pending: Pending) {
        let Pending {
            job, soft_prompts, ..
        } = pending;
        let prompt = job.pieces.into_iter().map(|piece| match piece {
            Piece::Tokens(ids) => Some(PromptPart::Tokens(ids)),
            Piece::Image(index) => {
                let rows = soft_prompts.get(index)?.as_ref()?;
                Some(PromptPart::Embeddings(rows.clone()))
            }
        });
        let mut sequence = job.sequence;
        let events = sequence.events.clone();
        let Some(prompt) = prompt.collect() else {
            return fail(&events, Error::VisionFailed);
        };
        sequence.prompt = prompt;
        if let Err(error) = self.engine.submit(sequence) {
            fail(&events, error);
        }
    }
}

/// What `work` gives; its time is a stretch of each of the requests.
pub(crate) fn during<T>(requests: &[Stages], stage: Stage, work: impl FnOnce() -> T) -> T {
    let _running: Vec<Running> = requests.iter().map(|stages| stages.begin(stage)).collect();
    work()
}

/// Tells a request that it failed. Its channel holds nothing yet, so there is
/// room; a closed one means that nobody is left to tell.
fn fail(events: &Sender<Event>, error: Error) {
    let _ = events.try_send(Event::Error(error));
}

/// What is behind a lock; whoever held it when it panicked left nothing half done.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
