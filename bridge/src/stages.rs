//! Where the time of a request goes, while it goes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::event::Timings;

/// What is done for a request, in the order in which it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Decoding an encoded picture.
    ImageDecode,
    /// Resizing it and turning it into normalized pixels.
    Preprocess,
    /// The ViT, with the pictures of others that waited together.
    Vit,
    /// Q-Former and projection, likewise.
    Qformer,
    /// Waiting for a slot.
    Queue,
    /// From admission to the first token's logits.
    Prefill,
    /// From the first token to the last.
    Decode,
}

impl Stage {
    /// The name that [`Timings`], metrics and spans know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::ImageDecode => "image_decode",
            Stage::Preprocess => "preprocess",
            Stage::Vit => "vit",
            Stage::Qformer => "qformer",
            Stage::Queue => "queue",
            Stage::Prefill => "prefill",
            Stage::Decode => "decode",
        }
    }
}

/// A stage's work for a request, once; of several pictures each has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// What was done.
    pub stage: Stage,
    /// When it began.
    pub start: Instant,
    /// When it ended, unless it has not yet.
    pub end: Option<Instant>,
}

/// The stretches of one request so far. Clones are of the same request, so whoever made it can see how far it came, even
/// if no answer ever tells.
#[derive(Debug, Clone, Default)]
pub struct Stages(Arc<Mutex<Vec<Stretch>>>);

impl Stages {
    /// Begins a stretch, which ends when what is returned is dropped.
    #[must_use = "the stretch ends when this is dropped"]
    pub fn begin(&self, stage: Stage) -> Running {
        let mut stretches = self.lock();
        stretches.push(Stretch {
            stage,
            start: Instant::now(),
            end: None,
        });
        Running {
            stages: self.clone(),
            index: stretches.len() - 1,
        }
    }

    /// What `work` gives; its time is a stretch.
    pub fn during<T>(&self, stage: Stage, work: impl FnOnce() -> T) -> T {
        let _running = self.begin(stage);
        work()
    }

    /// The stretches, in the order in which they began.
    pub fn stretches(&self) -> Vec<Stretch> {
        self.lock().clone()
    }

    /// Seconds by stage; a stretch that has not ended counts up to now.
    pub fn timings(&self) -> Timings {
        let mut timings = Timings::default();
        let now = Instant::now();
        for stretch in self.lock().iter() {
            let end = stretch.end.unwrap_or(now);
            let seconds = end.saturating_duration_since(stretch.start).as_secs_f64();
            *match stretch.stage {
                Stage::ImageDecode => &mut timings.image_decode,
                Stage::Preprocess => &mut timings.preprocess,
                Stage::Vit => &mut timings.vit,
                Stage::Qformer => &mut timings.qformer,
                Stage::Queue => &mut timings.queue,
                Stage::Prefill => &mut timings.prefill,
                Stage::Decode => &mut timings.decode,
            } += seconds;
        }
        timings
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Stretch>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stretch that goes on until this is dropped.
#[derive(Debug)]
pub struct Running {
    stages: Stages,
    index: usize,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(stretch) = self.stages.lock().get_mut(self.index) {
            stretch.end = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::thread::sleep;
    use std::time::Duration;

    const A_WHILE: Duration = Duration::from_millis(2);

    #[test]
    fn stretches_of_a_stage_add_up() {
        let stages = Stages::default();
        stages.during(Stage::Preprocess, || sleep(A_WHILE));
        stages.during(Stage::Preprocess, || sleep(A_WHILE));
        let queue = stages.begin(Stage::Queue);
        sleep(A_WHILE);
        let timings = stages.timings();
        assert!(timings.preprocess >= 2.0 * A_WHILE.as_secs_f64());
        assert!(timings.queue >= A_WHILE.as_secs_f64(), "it goes on");
        assert_eq!((timings.image_decode, timings.decode), (0.0, 0.0));
        drop(queue);
        let stretches = stages.clone().stretches();
        assert_eq!(stretches.len(), 3);
        for pair in stretches.windows(2) {
            assert!(pair[0].end.unwrap() <= pair[1].start);
        }
    }
}
