//! What answers requests: a loaded model, or a test's script.

use std::sync::Arc;

use bridge::engine::Sampling;
use bridge::event::Event;
use bridge::model::{Model, Request};
use tokio::sync::mpsc::Receiver;

/// What the server asks for answers.
pub trait Backend: Send + Sync + 'static {
    /// Name of the model, as requests give it.
    fn name(&self) -> &str;

    /// Sampling of a request that says nothing about it.
    fn default_sampling(&self) -> Sampling;

    /// Starts a request. Dropping the receiver cancels it. Called where blocking is allowed.
    ///
    /// # Errors
    /// The request is at fault, or the queue is full; a picture at fault is told by the first event.
    fn submit(&self, request: Request) -> bridge::Result<Receiver<Event>>;
}

impl Backend for Arc<Model> {
    fn name(&self) -> &str {
        &self.manifest().name
    }

    fn default_sampling(&self) -> Sampling {
        Model::default_sampling(self)
    }

    fn submit(&self, request: Request) -> bridge::Result<Receiver<Event>> {
        Model::submit(self, request)
    }
}
