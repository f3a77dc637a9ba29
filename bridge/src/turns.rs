//! The cores of a worker, taken in turns.
//!
//! ViT and language model each use all of them, and those of the language model wait for each other many times a token. Side
//! by side both do, and each waits for threads that the other has put aside. One after the other they finish sooner, all in
//! all, and later for whoever waits for a single token: so it is done where only the whole counts.

use std::sync::{Condvar, Mutex, PoisonError};

/// Who comes first goes first.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Turns that were asked for, and those that have ended.
    asked: u64,
    ended: u64,
}

/// A turn, until it is dropped.
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    /// Waits until everybody who came before has ended.
    pub fn take(&self) -> Turn<'_> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.asked;
        state.asked += 1;
        while state.ended != number {
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = (self.0.state.lock()).unwrap_or_else(PoisonError::into_inner);
        state.ended += 1;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_and_in_order() {
        let (turns, inside, log) = (
            Turns::default(),
            AtomicUsize::new(0),
            Mutex::new(Vec::new()),
        );
        let first = turns.take();
        std::thread::scope(|scope| {
            for number in 0..4 {
                let before = turns.state.lock().unwrap().asked;
                let (turns, inside, log) = (&turns, &inside, &log);
                scope.spawn(move || {
                    let _turn = turns.take();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    log.lock().unwrap().push(number);
                    inside.fetch_sub(1, Ordering::SeqCst);
                });
                // Until it stands in line.
                while turns.state.lock().unwrap().asked == before {
                    std::thread::yield_now();
                }
            }
            assert!(log.lock().unwrap().is_empty());
            drop(first);
        });
        assert_eq!(log.into_inner().unwrap(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_panic_ends_a_turn() {
        let turns = Turns::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = turns.take();
            panic!("in the middle of it");
        }));
        assert!(panicked.is_err());
        turns.take();
    }
}
