//! Which pictures are being encoded, so that no two threads encode the same one.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

use super::lock;
use crate::cache::ImageKey;

/// The pictures that some thread encodes right now.
#[derive(Default)]
pub(super) struct Claims {
    keys: Mutex<HashSet<ImageKey>>,
    ended: Condvar,
}

/// Pictures that nobody else encodes until this is dropped.
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    keys: Vec<ImageKey>,
}

impl Claims {
    /// Up to `most` of `keys` that nobody encodes. Where others encode all of them, it waits until one is done.
    pub(super) fn take(
        &self,
        keys: impl Iterator<Item = ImageKey> + Clone,
        most: usize,
    ) -> Claim<'_> {
        let mut claimed = lock(&self.keys);
        loop {
            let free = keys.clone().filter(|key| !claimed.contains(key));
            let keys: Vec<ImageKey> = free.take(most).collect();
            if !keys.is_empty() {
                claimed.extend(keys.iter().copied());
                return Claim { claims: self, keys };
            }
            let ended = self.ended.wait(claimed);
            claimed = ended.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Claim<'_> {
    /// Whether it is one of these.
    pub(super) fn has(&self, key: &ImageKey) -> bool {
        self.keys.contains(key)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claimed = lock(&self.claims.keys);
        for key in &self.keys {
            claimed.remove(key);
        }
        drop(claimed);
        self.claims.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(of: u8) -> ImageKey {
        [of; 32]
    }

    #[test]
    fn what_is_claimed_is_left_to_whoever_has_it() {
        let claims = Claims::default();
        let keys = [key(1), key(2), key(3)];
        let first = claims.take(keys.into_iter(), 2);
        assert!(first.has(&key(1)) && first.has(&key(2)) && !first.has(&key(3)));
        let second = claims.take(keys.into_iter(), 2);
        assert!(second.has(&key(3)) && !second.has(&key(1)));
        std::thread::scope(|scope| {
            let third = scope.spawn(|| claims.take(keys[..2].iter().copied(), 2).keys.clone());
            std::thread::sleep(Duration::from_millis(50));
            assert!(!third.is_finished());
            drop(second);
            std::thread::sleep(Duration::from_millis(50));
            assert!(!third.is_finished());
            drop(first);
            assert_eq!(third.join().unwrap(), keys[..2]);
        });
        assert!(lock(&claims.keys).is_empty());
    }
}
