//! Events on their way to a reader who may be slow.

use std::collections::VecDeque;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use crate::event::Event;

/// A channel and what did not fit into it yet. Nothing here ever waits.
pub(super) struct Outbox {
    events: Sender<Event>,
    pending: VecDeque<Event>,
}

impl Outbox {
    pub(super) fn new(events: Sender<Event>) -> Self {
        Outbox {
            events,
            pending: VecDeque::new(),
        }
    }

    /// Sends, in order, what fits.
    pub(super) fn push(&mut self, event: Event) {
        if self.is_empty() {
            self.send(event);
        } else {
            self.pending.push_back(event);
        }
    }

    /// Tries again; true when nothing is left to send.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(event) = self.pending.pop_front() {
            if !self.send(event) {
                break;
            }
        }
        self.is_empty()
    }

    fn send(&mut self, event: Event) -> bool {
        match self.events.try_send(event) {
            Ok(()) => true,
            Err(TrySendError::Full(event)) => {
                self.pending.push_front(event);
                false
            }
            Err(TrySendError::Closed(_)) => {
                self.pending.clear();
                false
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The reader has gone.
    pub(super) fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}
