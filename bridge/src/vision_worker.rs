//! The thread that turns pictures into soft prompts.
//!
//! Requests that wait together are encoded together; of a picture seen before,
//! whatever depends on it alone is taken from a cache: its soft prompt, or the
//! ViT's output where the Q-Former reads the question too. The engine never
//! waits for it, and requests without pictures never pass through it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use candle_core::{DType, Tensor};
use lru::LruCache;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::Sender;

use crate::engine::{Engine, PromptPart, Sequence};
use crate::event::{Event, Timings};
use crate::image_encoder::ImageEncoder;
use crate::prompt::Piece;
use crate::{Error, Result};

/// Most pictures in one forward pass: beyond this a CPU gains nothing.
const MAX_BATCH: usize = 8;

/// Rows of one picture, `queries x n_embd` floats.
type SoftPrompt = Arc<[f32]>;

/// Identity of a picture: SHA-256 of its encoded bytes. The model and its
/// preprocessing are fixed for a worker's lifetime.
type ImageKey = [u8; 32];

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

/// What the vision thread has done since it started.
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

/// Written by the vision thread alone.
#[derive(Default)]
struct Counters {
    batches: AtomicU64,
    pictures: AtomicU64,
    readings: AtomicU64,
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
    cache_evictions: AtomicU64,
    cache_bytes: AtomicU64,
}

fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

/// Handle of the vision thread; dropping it lets the thread finish and joins it.
pub(crate) struct VisionWorker {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    queue: usize,
    counters: Arc<Counters>,
}

impl VisionWorker {
    /// Starts the thread; at most `queue` jobs wait, and `cache_bytes` are kept of
    /// pictures seen before.
    pub fn start(
        encoder: ImageEncoder,
        engine: Arc<Engine>,
        queue: usize,
        cache_bytes: usize,
    ) -> Result<Self> {
        let (jobs, receiver) = sync_channel(queue);
        let counters = Arc::new(Counters::default());
        let counted = counters.clone();
        let thread = std::thread::Builder::new()
            .name("vision".to_owned())
            .spawn(move || {
                Worker {
                    encoder,
                    engine,
                    cache: Cache::new(cache_bytes),
                    counters: counted,
                }
                .run(&receiver);
            })
            .map_err(Error::Thread)?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            queue,
            counters,
        })
    }

    /// What the thread has done.
    pub fn activity(&self) -> VisionActivity {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        VisionActivity {
            batches: count(&self.counters.batches),
            pictures: count(&self.counters.pictures),
            readings: count(&self.counters.readings),
            cache_hits: count(&self.counters.cache_hits),
            cache_misses: count(&self.counters.cache_misses),
            cache_evictions: count(&self.counters.cache_evictions),
            cache_bytes: count(&self.counters.cache_bytes),
        }
    }

    /// Queues a job.
    ///
    /// # Errors
    /// The queue is full, or the thread is gone.
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
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Everything of a picture that does not depend on the question.
#[derive(Clone)]
enum Seen {
    /// Where the Q-Former reads the picture alone.
    SoftPrompt(SoftPrompt),
    /// The ViT's output, `[patches + 1, vision width]`, where it also reads the
    /// instruction.
    Vision(Tensor),
}

impl Seen {
    fn bytes(&self) -> usize {
        match self {
            Seen::SoftPrompt(rows) => size_of_val(&**rows),
            Seen::Vision(vision) => vision.elem_count() * vision.dtype().size_in_bytes(),
        }
    }
}

/// The pictures seen last, as many as fit into a number of bytes.
struct Cache {
    seen: LruCache<ImageKey, Seen>,
    bytes: usize,
    limit: usize,
}

impl Cache {
    fn new(limit: usize) -> Self {
        Self {
            seen: LruCache::unbounded(),
            bytes: 0,
            limit,
        }
    }

    fn get(&mut self, key: &ImageKey) -> Option<Seen> {
        self.seen.get(key).cloned()
    }

    /// Keeps a picture; how many others went for it.
    fn put(&mut self, key: ImageKey, seen: Seen) -> usize {
        let mut evicted = 0;
        self.bytes += seen.bytes();
        if let Some(replaced) = self.seen.put(key, seen) {
            self.bytes -= replaced.bytes();
        }
        while self.bytes > self.limit
            && let Some((_, oldest)) = self.seen.pop_lru()
        {
            self.bytes -= oldest.bytes();
            evicted += 1;
        }
        evicted
    }
}

struct Worker {
    encoder: ImageEncoder,
    engine: Arc<Engine>,
    cache: Cache,
    counters: Arc<Counters>,
}

/// A job on its way through a batch.
struct Pending {
    job: Job,
    keys: Vec<ImageKey>,
    timings: Timings,
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
    fn run(&mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut n_images = first.images.len();
            let mut batch = vec![first];
            while n_images < MAX_BATCH {
                let Ok(job) = jobs.try_recv() else { break };
                n_images += job.images.len();
                batch.push(job);
            }
            self.process(batch);
        }
    }

    fn process(&mut self, batch: Vec<Job>) {
        // Encoded in this batch, beside the cache: a batch with more pictures
        // than the cache holds must not lose any.
        let mut seen: HashMap<ImageKey, Seen> = HashMap::new();
        let mut new_pixels: Vec<(ImageKey, Tensor)> = Vec::new();
        let mut pending = Vec::with_capacity(batch.len());
        for job in batch {
            if job.sequence.events.is_closed() {
                continue;
            }
            if job.sequence.is_late() {
                fail(&job.sequence.events, Error::QueueTimeout);
                continue;
            }
            let mut timings = Timings::default();
            match self.prepare(&job.images, &mut seen, &mut new_pixels, &mut timings) {
                Ok(keys) => pending.push(Pending {
                    job,
                    keys,
                    timings,
                    soft_prompts: Vec::new(),
                }),
                Err(error) => fail(&job.sequence.events, error),
            }
        }
        let fresh: Vec<ImageKey> = new_pixels.iter().map(|(key, _)| *key).collect();
        let mut together = Timings::default();
        loop {
            // Whoever has left needs no picture any more.
            new_pixels.retain(|(key, _)| pending.iter().any(|pending| pending.needs(key)));
            if new_pixels.is_empty() {
                break;
            }
            let rest = new_pixels.split_off(new_pixels.len().min(MAX_BATCH));
            let chunk = std::mem::replace(&mut new_pixels, rest);
            match self.see(&chunk, &mut together) {
                Ok(new) => seen.extend(chunk.iter().map(|(key, _)| *key).zip(new)),
                Err(error) => tracing::error!(%error, "a batch of pictures could not be encoded"),
            }
        }
        let read = self.read(&mut pending, &seen, &mut together);
        for mut pending in pending {
            let is_new = pending.keys.iter().any(|key| fresh.contains(key));
            if is_new {
                pending.timings.vit = together.vit;
            }
            if is_new || read {
                pending.timings.qformer = together.qformer;
            }
            self.hand_over(pending);
        }
        for (key, seen) in seen {
            let evicted = self.cache.put(key, seen);
            add(&self.counters.cache_evictions, evicted);
        }
        let bytes = self.cache.bytes as u64;
        self.counters.cache_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Keys of a job's pictures; those not known yet are decoded into
    /// `new_pixels`.
    fn prepare(
        &mut self,
        images: &[Arc<[u8]>],
        seen: &mut HashMap<ImageKey, Seen>,
        new_pixels: &mut Vec<(ImageKey, Tensor)>,
        timings: &mut Timings,
    ) -> Result<Vec<ImageKey>> {
        images
            .iter()
            .map(|file| {
                let key: ImageKey = Sha256::digest(file).into();
                let twice = seen.contains_key(&key) || new_pixels.iter().any(|(k, _)| *k == key);
                let known = if twice { None } else { self.cache.get(&key) };
                if twice || known.is_some() {
                    add(&self.counters.cache_hits, 1);
                    seen.extend(known.map(|known| (key, known)));
                } else {
                    add(&self.counters.cache_misses, 1);
                    let image = timed(&mut timings.image_decode, || self.encoder.decode(file))?;
                    let pixels =
                        timed(&mut timings.preprocess, || self.encoder.preprocess(&image))?;
                    new_pixels.push((key, pixels));
                }
                Ok(key)
            })
            .collect()
    }

    /// Runs new pictures as far as the question does not matter.
    fn see(&self, chunk: &[(ImageKey, Tensor)], timings: &mut Timings) -> Result<Vec<Seen>> {
        let pixels: Vec<&Tensor> = chunk.iter().map(|(_, pixels)| pixels).collect();
        let pixels = Tensor::stack(&pixels, 0)?;
        let vision = timed(&mut timings.vit, || self.encoder.vision(&pixels))?;
        add(&self.counters.batches, 1);
        add(&self.counters.pictures, chunk.len());
        if self.encoder.reads_instruction() {
            // Copied, so that none keeps the memory of all.
            return (0..chunk.len())
                .map(|i| Ok(Seen::Vision(vision.get(i)?.copy()?)))
                .collect();
        }
        let soft_prompts = timed(&mut timings.qformer, || self.soft_prompts(&vision, &[]))?;
        Ok(soft_prompts.into_iter().map(Seen::SoftPrompt).collect())
    }

    /// Gives each job the soft prompts of its pictures; where the Q-Former
    /// reads instructions, this is where it does. Whether it did.
    fn read(
        &self,
        pending: &mut [Pending],
        seen: &HashMap<ImageKey, Seen>,
        timings: &mut Timings,
    ) -> bool {
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
        for chunk in readings.chunks(MAX_BATCH) {
            let instructions: Vec<&str> = chunk
                .iter()
                .map(|(job, image, _)| {
                    let instructions = &pending[*job].job.instructions;
                    instructions.get(*image).map_or("", String::as_str)
                })
                .collect();
            let vision: Vec<&Tensor> = chunk.iter().map(|(_, _, vision)| *vision).collect();
            let read = timed(&mut timings.qformer, || {
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
        !readings.is_empty()
    }

    fn soft_prompts(&self, vision: &Tensor, instructions: &[&str]) -> Result<Vec<SoftPrompt>> {
        let soft_prompts = self.encoder.soft_prompts(vision, instructions)?;
        let pictures = soft_prompts.dim(0)?;
        add(&self.counters.readings, pictures);
        (0..pictures)
            .map(|i| {
                let rows = soft_prompts.get(i)?.to_dtype(DType::F32)?;
                Ok(rows.flatten_all()?.to_vec1::<f32>()?.into())
            })
            .collect()
    }

    fn hand_over(&self, pending: Pending) {
        let Pending {
            job,
            timings,
            soft_prompts,
            ..
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
        sequence.timings = timings;
        if let Err(error) = self.engine.submit(sequence) {
            fail(&events, error);
        }
    }
}

/// What `work` gives; its seconds are added to `total`.
fn timed<T>(total: &mut f64, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    *total += started.elapsed().as_secs_f64();
    result
}

/// Tells a request that it failed. Its channel holds nothing yet, so there is
/// room; a closed one means that nobody is left to tell.
fn fail(events: &Sender<Event>, error: Error) {
    let _ = events.try_send(Event::Error(error));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_what_was_used_last_and_counts_bytes() {
        let seen = |n: usize| Seen::SoftPrompt(vec![0.0; n].into());
        let mut cache = Cache::new(100);
        for key in 0..5 {
            cache.put([key; 32], seen(5));
        }
        assert_eq!(cache.bytes, 100);
        assert!(cache.get(&[0; 32]).is_some());
        cache.put([5; 32], seen(6));
        // Two had to go, and the oldest was in use.
        assert_eq!((cache.bytes, cache.seen.len()), (84, 4));
        assert!(cache.get(&[0; 32]).is_some() && cache.get(&[5; 32]).is_some());
        assert!(cache.get(&[1; 32]).is_none() && cache.get(&[2; 32]).is_none());
        // An entry in place of itself, and one beyond the whole limit.
        cache.put([5; 32], seen(6));
        assert_eq!((cache.bytes, cache.seen.len()), (84, 4));
        cache.put([6; 32], seen(26));
        assert_eq!((cache.bytes, cache.seen.len()), (0, 0));
    }
}
