//! Pictures as they are found, on a thread that ends with the program where it waits for a list.

use std::ops::ControlFlow;
use std::thread::JoinHandle;

use indicatif::ProgressBar;
use tokio::sync::mpsc;

use super::{Item, Visitor};
use crate::args::Shard;
use crate::batch::set_total;

/// Pictures that were found and wait to be read; those of archives are in memory.
const FOUND: usize = 4;

/// Where pictures are found.
pub trait Walk: Clone + Send + 'static {
    /// Tells of all of them.
    fn walk(&self, visitor: &mut dyn Visitor) -> ControlFlow<()>;
    /// Whether a second walk would find the same.
    fn can_be_walked_twice(&self) -> bool;
}

/// What is found on another thread.
pub struct Found {
    /// The pictures, in their order.
    pub items: mpsc::Receiver<Item>,
    finder: JoinHandle<ControlFlow<()>>,
}

impl Found {
    /// Ends it, once there are no more items; whether all was found.
    pub fn finish(self) -> bool {
        drop(self.items);
        self.finder.join().is_ok()
    }
}

/// Finds the pictures of a shard that `is_new`, by their names. `bar` is told how many of `what` there are, done ones too.
pub fn find(
    inputs: &impl Walk,
    shard: Option<Shard>,
    bar: Option<ProgressBar>,
    what: &'static str,
    is_new: impl FnMut(&str) -> bool + Send + 'static,
) -> Found {
    let (sender, items) = mpsc::channel(FOUND);
    if let Some(bar) = bar.filter(|_| inputs.can_be_walked_twice()) {
        let inputs = inputs.clone();
        std::thread::spawn(move || {
            let mut counter = Counter { shard, count: 0 };
            if inputs.walk(&mut counter).is_continue() {
                set_total(&bar, what, counter.count);
            }
        });
    }
    let mut feeder = Feeder {
        shard,
        is_new,
        items: sender,
    };
    let inputs = inputs.clone();
    let finder = std::thread::spawn(move || inputs.walk(&mut feeder));
    Found { items, finder }
}

/// Hands over what is still to be done.
struct Feeder<F> {
    shard: Option<Shard>,
    is_new: F,
    items: mpsc::Sender<Item>,
}

impl<F: FnMut(&str) -> bool> Visitor for Feeder<F> {
    fn wants(&mut self, name: &str) -> bool {
        self.shard.is_none_or(|shard| shard.holds(name)) && (self.is_new)(name)
    }

    fn take(&mut self, item: Item) -> ControlFlow<()> {
        match self.items.blocking_send(item) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// Counts pictures and reads none.
struct Counter {
    shard: Option<Shard>,
    count: u64,
}

impl Visitor for Counter {
    fn wants(&mut self, name: &str) -> bool {
        self.count += u64::from(self.shard.is_none_or(|shard| shard.holds(name)));
        false
    }

    fn take(&mut self, _: Item) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}
