//! The thread that turns pictures into soft prompts.
//!
//! Requests that wait together are encoded together; a picture seen before is
//! taken from a cache. The engine never waits for it, and requests without
//! pictures never pass through it.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
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

/// Soft prompts kept; one of 32 rows of 4096 floats takes half a megabyte.
const CACHE_ENTRIES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Rows of one picture, `queries x n_embd` floats.
type SoftPrompt = Arc<[f32]>;

/// Identity of a picture: SHA-256 of its encoded bytes. The model and its
/// preprocessing are fixed for a worker's lifetime.
type ImageKey = [u8; 32];

/// A request whose pictures are still to be encoded.
pub(crate) struct Job {
    /// Encoded picture files.
    pub images: Vec<Arc<[u8]>>,
    /// The prompt, with places for the pictures.
    pub pieces: Vec<Piece>,
    /// What to hand to the engine; its prompt is filled in here.
    pub sequence: Sequence,
}

/// Handle of the vision thread; dropping it lets the thread finish and joins it.
pub(crate) struct VisionWorker {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    queue: usize,
}

impl VisionWorker {
    /// Starts the thread; at most `queue` jobs wait.
    pub fn start(encoder: ImageEncoder, engine: Arc<Engine>, queue: usize) -> Result<Self> {
        let (jobs, receiver) = sync_channel(queue);
        let thread = std::thread::Builder::new()
            .name("vision".to_owned())
            .spawn(move || {
                Worker {
                    encoder,
                    engine,
                    cache: LruCache::new(CACHE_ENTRIES),
                }
                .run(&receiver);
            })
            .map_err(Error::Thread)?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            queue,
        })
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

struct Worker {
    encoder: ImageEncoder,
    engine: Arc<Engine>,
    cache: LruCache<ImageKey, SoftPrompt>,
}

/// A job on its way through a batch.
struct Pending {
    job: Job,
    keys: Vec<ImageKey>,
    timings: Timings,
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
            batch.retain(|job| !job.sequence.events.is_closed());
            self.process(batch);
        }
    }

    fn process(&mut self, batch: Vec<Job>) {
        // Encoded in this batch, beside the cache: a batch with more pictures
        // than the cache holds must not lose any.
        let mut soft_prompts: HashMap<ImageKey, SoftPrompt> = HashMap::new();
        let mut new_pixels: Vec<(ImageKey, Tensor)> = Vec::new();
        let mut pending = Vec::with_capacity(batch.len());
        for job in batch {
            let started = Instant::now();
            match self.prepare(&job.images, &mut soft_prompts, &mut new_pixels) {
                Ok(keys) => pending.push(Pending {
                    job,
                    keys,
                    timings: Timings {
                        preprocess: started.elapsed().as_secs_f64(),
                        ..Timings::default()
                    },
                }),
                Err(error) => fail(&job.sequence.events, error),
            }
        }
        let fresh: Vec<ImageKey> = new_pixels.iter().map(|(key, _)| *key).collect();
        let started = Instant::now();
        for chunk in new_pixels.chunks(MAX_BATCH) {
            match self.encode(chunk) {
                Ok(rows) => soft_prompts.extend(chunk.iter().map(|(key, _)| *key).zip(rows)),
                Err(error) => tracing::error!(%error, "a batch of pictures could not be encoded"),
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        for Pending {
            job,
            keys,
            mut timings,
        } in pending
        {
            if keys.iter().any(|key| fresh.contains(key)) {
                timings.vision = seconds;
            }
            self.hand_over(job, &keys, timings, &soft_prompts);
        }
        for (key, rows) in soft_prompts {
            self.cache.put(key, rows);
        }
    }

    /// Keys of a job's pictures; those not known yet are decoded into
    /// `new_pixels`.
    fn prepare(
        &mut self,
        images: &[Arc<[u8]>],
        soft_prompts: &mut HashMap<ImageKey, SoftPrompt>,
        new_pixels: &mut Vec<(ImageKey, Tensor)>,
    ) -> Result<Vec<ImageKey>> {
        images
            .iter()
            .map(|file| {
                let key: ImageKey = Sha256::digest(file).into();
                if soft_prompts.contains_key(&key) || new_pixels.iter().any(|(k, _)| *k == key) {
                    return Ok(key);
                }
                match self.cache.get(&key) {
                    Some(rows) => {
                        soft_prompts.insert(key, rows.clone());
                    }
                    None => new_pixels.push((key, self.encoder.pixels(file)?)),
                }
                Ok(key)
            })
            .collect()
    }

    fn encode(&self, chunk: &[(ImageKey, Tensor)]) -> Result<Vec<SoftPrompt>> {
        let pixels: Vec<&Tensor> = chunk.iter().map(|(_, pixels)| pixels).collect();
        let encoding = self.encoder.forward(&Tensor::stack(&pixels, 0)?)?;
        (0..chunk.len())
            .map(|i| {
                let rows = encoding.soft_prompt.get(i)?.to_dtype(DType::F32)?;
                Ok(rows.flatten_all()?.to_vec1::<f32>()?.into())
            })
            .collect()
    }

    fn hand_over(
        &self,
        job: Job,
        keys: &[ImageKey],
        timings: Timings,
        soft_prompts: &HashMap<ImageKey, SoftPrompt>,
    ) {
        let prompt = job.pieces.into_iter().map(|piece| match piece {
            Piece::Tokens(ids) => Some(PromptPart::Tokens(ids)),
            Piece::Image(index) => {
                let rows = soft_prompts.get(keys.get(index)?)?;
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

/// Tells a request that it failed. Its channel holds nothing yet, so there is
/// room; a closed one means that nobody is left to tell.
fn fail(events: &Sender<Event>, error: Error) {
    let _ = events.try_send(Event::Error(error));
}
