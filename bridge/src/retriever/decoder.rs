//! From picture files to pixels, and from texts to the number of their tokens, on several threads.

use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use candle_core::Tensor;

use super::{Job, Want, key_of};
use crate::cache::{Cache, ImageKey, Kept};
use crate::matcher::Matcher;
use crate::stages::Stage;
use crate::vision_worker::lock;
use crate::{Error, Result};

/// What was made of a picture.
#[derive(Clone)]
pub(super) struct Looked {
    /// `[rows, width]`, as [`crate::matcher::Heads::vision`] gives it.
    pub vision: Tensor,
    /// Its features, rows of length 1; none of a model that has none.
    pub features: Arc<[Vec<f32>]>,
}

impl Kept for Looked {
    fn bytes(&self) -> usize {
        let features = self.features.iter().map(|row| size_of_val(row.as_slice()));
        self.vision.elem_count() * self.vision.dtype().size_in_bytes() + features.sum::<usize>()
    }
}

/// Pictures whose pixels are in memory: 384 x 384 of them take 1.7 MB.
const MAX_PIXELS: usize = 256;

/// Room for the pixels of pictures.
#[derive(Default)]
pub(super) struct Room {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// A part of it, free again when this is dropped.
pub(super) struct Taken {
    room: Arc<Room>,
    pictures: usize,
}

impl Room {
    /// Waits until there is room for so many pictures; for more than there ever is, until all is
    /// free.
    fn take(self: &Arc<Self>, pictures: usize) -> Taken {
        let mut taken = lock(&self.taken);
        while *taken > 0 && *taken + pictures > MAX_PIXELS {
            let freed = self.freed.wait(taken);
            taken = freed.unwrap_or_else(PoisonError::into_inner);
        }
        *taken += pictures;
        Taken {
            room: self.clone(),
            pictures,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        *lock(&self.room.taken) -= self.pictures;
        self.room.freed.notify_all();
    }
}

/// A job whose pictures are decoded.
pub(super) struct Decoded {
    pub job: Job,
    /// In its order.
    pub pictures: Vec<(ImageKey, Picture)>,
    /// Tokens of its texts.
    pub tokens: usize,
    /// Held as long as its pixels are.
    pub taken: Taken,
}

/// A picture on its way to the model.
pub(super) enum Picture {
    /// It has been there before.
    Looked(Looked),
    /// `[3, size, size]`, normalized.
    Pixels(Tensor),
}

/// One of the threads that decode.
pub(super) struct Decoder {
    pub jobs: Arc<Mutex<Receiver<Job>>>,
    pub decoded: SyncSender<Decoded>,
    pub matcher: Arc<Matcher>,
    pub cache: Arc<Mutex<Cache<Looked>>>,
    pub room: Arc<Room>,
}

impl Decoder {
    pub fn run(&self) {
        loop {
            // Whoever waits for a job holds the lock: the others have none to take either.
            let job = lock(&self.jobs).recv();
            let Ok(mut job) = job else { return };
            if job.is_left() {
                continue;
            }
            if job.is_late() {
                job.answer(Err(Error::QueueTimeout));
                continue;
            }
            let taken = self.room.take(job.request.pictures.len());
            job.queued = None;
            let decoded = self.decode(&job);
            job.begin_to_wait();
            let decoded = match decoded {
                Ok((pictures, tokens)) => Decoded {
                    job,
                    pictures,
                    tokens,
                    taken,
                },
                Err(error) => {
                    job.answer(Err(error));
                    continue;
                }
            };
            if self.decoded.send(decoded).is_err() {
                return;
            }
        }
    }

    fn decode(&self, job: &Job) -> Result<(Vec<(ImageKey, Picture)>, usize)> {
        let stages = &job.request.stages;
        let picture = |file: &Arc<[u8]>| {
            let key = key_of(file);
            // Not held while a picture is decoded.
            let known = lock(&self.cache).get(&key);
            if let Some(looked) = known {
                return Ok((key, Picture::Looked(looked)));
            }
            let image = stages.during(Stage::ImageDecode, || self.matcher.decode(file))?;
            let pixels = stages.during(Stage::Preprocess, || self.matcher.preprocess(&image))?;
            Ok((key, Picture::Pixels(pixels)))
        };
        let pictures = job.request.pictures.iter().map(picture);
        let pictures = pictures.collect::<Result<Vec<_>>>()?;
        let texts = &job.request.texts;
        if let Want::Caption(_) = job.request.want {
            let words = texts.first().map(String::as_str);
            return Ok((pictures, self.matcher.caption_prompt(words)?));
        }
        let mut tokens = 0;
        for text in texts {
            tokens += self.matcher.heads().tokens(text)?.len();
        }
        Ok((pictures, tokens))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn there_is_room_for_so_many_pictures_and_for_one_job_of_any_size() {
        let room = Arc::new(Room::default());
        let first = room.take(MAX_PIXELS - 1);
        let second = room.take(1);
        let (sender, receiver) = channel();
        let other = room.clone();
        let thread = std::thread::spawn(move || {
            let taken = other.take(2 * MAX_PIXELS);
            sender.send(()).unwrap();
            drop(taken);
        });
        drop(first);
        // One is still there.
        assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
        drop(second);
        assert!(receiver.recv_timeout(Duration::from_secs(60)).is_ok());
        thread.join().unwrap();
        assert_eq!(*lock(&room.taken), 0);
    }
}
