//! From picture files to pixels, on several threads.

use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};

use candle_core::Tensor;
use sha2::{Digest, Sha256};

use super::{Job, Seen, fail, lock};
use crate::Result;
use crate::cache::{Cache, ImageKey};
use crate::image_encoder::ImageEncoder;
use crate::stages::{Stage, Stages};

/// A job whose pictures are decoded.
pub(super) struct Decoded {
    pub(super) job: Job,
    /// In its order.
    pub(super) pictures: Vec<(ImageKey, DecodedPicture)>,
}

impl Decoded {
    /// Whether all of its pictures have been through the ViT before.
    pub(super) fn is_known(&self) -> bool {
        let is_seen = |picture: &DecodedPicture| matches!(picture, DecodedPicture::Seen(_));
        self.pictures.iter().all(|(_, picture)| is_seen(picture))
    }
}

/// A picture on its way to the ViT.
pub(super) enum DecodedPicture {
    /// It has been there before.
    Seen(Seen),
    /// `[3, size, size]`, normalized.
    Pixels(Tensor),
}

/// One of the threads that decode.
pub(super) struct Decoder {
    pub(super) jobs: Arc<Mutex<Receiver<Job>>>,
    pub(super) decoded: SyncSender<Decoded>,
    pub(super) encoder: Arc<ImageEncoder>,
    pub(super) cache: Arc<Mutex<Cache<Seen>>>,
}

impl Decoder {
    pub(super) fn run(&self) {
        loop {
            // Whoever waits for a job holds the lock: the others have none to take either.
            let job = lock(&self.jobs).recv();
            let Ok(job) = job else { return };
            if job.is_over() {
                continue;
            }
            let pictures = job
                .images
                .iter()
                .map(|file| self.decode(file, &job.sequence.stages))
                .collect();
            let decoded = match pictures {
                Ok(pictures) => Decoded { job, pictures },
                Err(error) => {
                    fail(&job.sequence.events, error);
                    continue;
                }
            };
            if self.decoded.send(decoded).is_err() {
                return;
            }
        }
    }

    fn decode(&self, file: &[u8], stages: &Stages) -> Result<(ImageKey, DecodedPicture)> {
        let key: ImageKey = Sha256::digest(file).into();
        // Not held while a picture is decoded.
        let known = lock(&self.cache).get(&key);
        if let Some(seen) = known {
            return Ok((key, DecodedPicture::Seen(seen)));
        }
        let image = stages.during(Stage::ImageDecode, || self.encoder.decode(file))?;
        let pixels = stages.during(Stage::Preprocess, || self.encoder.preprocess(&image))?;
        Ok((key, DecodedPicture::Pixels(pixels)))
    }
}
