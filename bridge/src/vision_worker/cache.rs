//! What was seen in pictures before.

use candle_core::Tensor;
use lru::LruCache;

use super::{ImageKey, SoftPrompt};

/// Everything of a picture that does not depend on the question.
#[derive(Clone)]
pub(super) enum Seen {
    /// Where the Q-Former reads the picture alone.
    SoftPrompt(SoftPrompt),
    /// The ViT's output, `[patches + 1, vision width]`, where it also reads the
    /// instruction.
    Vision(Tensor),
}

impl Seen {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Seen::SoftPrompt(rows) => size_of_val(&**rows),
            Seen::Vision(vision) => vision.elem_count() * vision.dtype().size_in_bytes(),
        }
    }
}

/// The pictures seen last, as many as fit into a number of bytes.
pub(super) struct Cache {
    seen: LruCache<ImageKey, Seen>,
    bytes: usize,
    limit: usize,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            seen: LruCache::unbounded(),
            bytes: 0,
            limit,
        }
    }

    pub(super) fn get(&mut self, key: &ImageKey) -> Option<Seen> {
        self.seen.get(key).cloned()
    }

    /// Bytes of what is kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a picture; how many others went for it.
    pub(super) fn put(&mut self, key: ImageKey, seen: Seen) -> usize {
        let mut evicted = 0;
        self.bytes += seen.bytes();
        if let Some(replaced) = self.seen.put(key, seen) {
            self.bytes -= replaced.bytes();
        }
        while self.bytes > self.limit
            && let Some((_, oldest)) = self.seen.pop_lru()
        {
            self.bytes -= oldest.bytes();
            evicted += 1;
        }
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_what_was_used_last_and_counts_bytes() {
        let seen = |n: usize| Seen::SoftPrompt(vec![0.0; n].into());
        let mut cache = Cache::new(100);
        for key in 0..5 {
            cache.put([key; 32], seen(5));
        }
        assert_eq!(cache.bytes, 100);
        assert!(cache.get(&[0; 32]).is_some());
        cache.put([5; 32], seen(6));
        // Two had to go, and the oldest was in use.
        assert_eq!((cache.bytes, cache.seen.len()), (84, 4));
        assert!(cache.get(&[0; 32]).is_some() && cache.get(&[5; 32]).is_some());
        assert!(cache.get(&[1; 32]).is_none() && cache.get(&[2; 32]).is_none());
        // An entry in place of itself, and one beyond the whole limit.
        cache.put([5; 32], seen(6));
        assert_eq!((cache.bytes, cache.seen.len()), (84, 4));
        cache.put([6; 32], seen(26));
        assert_eq!((cache.bytes, cache.seen.len()), (0, 0));
    }
}
