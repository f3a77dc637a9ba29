//! A bundle at work.

use std::path::PathBuf;
use std::sync::Arc;

use bridge::bundle::Manifest;
use bridge::model::{self, ModelOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{Answer, AnswerStream, Candidate, Error, Picture, Ranking, Request, Result, rank};

/// Requests that [`Model::open`] lets generate at once. Each has room for a whole context in the KV cache.
pub const DEFAULT_SLOTS: usize = 4;

/// A bundle at work. Clones are the same model, which lives as long as one of them or an [`AnswerStream`]. Dropping the last
/// ends its threads and waits for them: at most as long as one token or a batch of pictures takes.
#[derive(Clone)]
pub struct Model {
    inner: Arc<model::Model>,
    /// A place for each request that may be in the engine's queue, so that none is refused for want of one.
    places: Arc<Semaphore>,
}

impl Model {
    /// Opens a bundle directory and loads it, on a thread of its own.
    ///
    /// # Errors
    /// The bundle is not whole, its parts do not fit together, or a part cannot be loaded.
    pub async fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let options = ModelOptions {
            slots: DEFAULT_SLOTS,
            ..ModelOptions::default()
        };
        Self::open_with(dir, options).await
    }

    /// [`Model::open`] with room for more or fewer requests at once, other sizes or threads. By default,
    /// [`ModelOptions::slots`] is 1.
    ///
    /// # Errors
    /// Those of [`Model::open`], and [`Error::Context`] for sizes that cannot be.
    pub async fn open_with(dir: impl Into<PathBuf>, options: ModelOptions) -> Result<Self> {
        let dir = dir.into();
        let queue = options.queue.max(1);
        let options = ModelOptions { queue, ..options };
        let (sender, receiver) = oneshot::channel();
        std::thread::Builder::new()
            .name("qbridge-load".to_owned())
            .spawn(move || {
                // Fails only where nobody waits for it any more.
                let _ = sender.send(model::Model::open(&dir, &options));
            })
            .map_err(Error::Thread)?;
        let inner = receiver.await.map_err(|_| Error::Stopped)??;
        Ok(Self {
            inner: Arc::new(inner),
            places: Arc::new(Semaphore::new(queue)),
        })
    }

    /// What the bundle says of itself.
    pub fn manifest(&self) -> &Manifest {
        self.inner.manifest()
    }

    /// Rows of context for each request: tokens of text and rows of pictures, prompt and answer together.
    pub fn n_ctx(&self) -> usize {
        self.inner.n_ctx()
    }

    /// Describes a picture, as the bundle has pictures described.
    ///
    /// # Errors
    /// The picture cannot be read, or the model failed.
    pub async fn caption(&self, picture: Picture) -> Result<String> {
        self.text_of(Request::new().picture(picture)).await
    }

    /// Answers a question about a picture.
    ///
    /// # Errors
    /// The picture cannot be read, the question is empty or too long for the context, or the model failed.
    pub async fn ask(&self, picture: Picture, question: impl Into<String>) -> Result<String> {
        self.text_of(Request::new().picture(picture).text(question))
            .await
    }

    async fn text_of(&self, request: Request) -> Result<String> {
        let answer = self.answer(request).await?;
        Ok(answer.text.trim().to_owned())
    }

    /// Answers a request.
    ///
    /// # Errors
    /// The request has no form in this model's layout, a picture cannot be read, the prompt does not fit the context, or
    /// the model failed.
    pub async fn answer(&self, request: Request) -> Result<Answer> {
        self.stream(request).await?.finish().await
    }

    /// Answers a request, with the text as it comes. Waits where as many requests wait as may.
    ///
    /// # Errors
    /// Those of [`Model::answer`] that show before the pictures are looked at; the others come over the stream.
    pub async fn stream(&self, request: Request) -> Result<AnswerStream> {
        let place = self.place().await?;
        let request = request.into_bridge(self.inner.default_sampling());
        let events = self.inner.submit(request)?;
        Ok(AnswerStream::new(events, place, self.inner.clone()))
    }

    /// Scores given answers to a request, and returns them with the likeliest first, equals in the order given. How
    /// tokens would be chosen does not count. [`Ranking`] ranks them otherwise, and tells probabilities. The prompt is computed once; [`ModelOptions::num_beams`] says how many
    /// answers are computed together.
    ///
    /// # Errors
    /// Those of [`Model::answer`], and [`Error::InvalidRequest`] for no answers or an empty one.
    pub async fn rank(
        &self,
        request: Request,
        answers: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Vec<Candidate>> {
        let answers: Vec<String> = answers.into_iter().map(Into::into).collect();
        let request = request.into_bridge(self.inner.default_sampling());
        let most = self.inner.max_sequences();
        let mut ranked = Vec::with_capacity(answers.len());
        // No answers are one group too, which is refused.
        for first in (0..answers.len().max(1)).step_by(most) {
            let group = &answers[first..answers.len().min(first + most)];
            let _place = self.place().await?;
            let events = self.inner.score(request.clone(), group)?;
            ranked.extend(rank::candidates(events, group, first).await?);
        }
        Ranking::Sum.rank(&mut ranked);
        Ok(ranked)
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit> {
        let place = self.places.clone().acquire_owned().await;
        place.map_err(|_| Error::Stopped)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("name", &self.manifest().name)
            .finish_non_exhaustive()
    }
}
