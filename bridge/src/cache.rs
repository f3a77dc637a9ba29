//! What was made of pictures before, as much as fits into a number of bytes.

use lru::LruCache;

/// Identity of a picture: SHA-256 of its encoded bytes. The model and its
/// preprocessing are fixed for a cache's lifetime.
pub(crate) type ImageKey = [u8; 32];

/// What takes memory.
pub(crate) trait Kept: Clone {
    /// Bytes of it.
    fn bytes(&self) -> usize;
}

/// The pictures seen last.
pub(crate) struct Cache<V> {
    seen: LruCache<ImageKey, V>,
    bytes: usize,
    limit: usize,
}

impl<V: Kept> Cache<V> {
    pub fn new(limit: usize) -> Self {
        Self {
            seen: LruCache::unbounded(),
            bytes: 0,
            limit,
        }
    }

    pub fn get(&mut self, key: &ImageKey) -> Option<V> {
        self.seen.get(key).cloned()
    }

    /// Bytes of what is kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a picture; how many others went for it.
    pub fn put(&mut self, key: ImageKey, seen: V) -> usize {
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
    use std::sync::Arc;

    use super::*;

    #[derive(Clone)]
    struct Rows(Arc<[f32]>);

    impl Kept for Rows {
        fn bytes(&self) -> usize {
            size_of_val(&*self.0)
        }
    }

    #[test]
    fn the_cache_keeps_what_was_used_last_and_counts_bytes() {
        let seen = |n: usize| Rows(vec![0.0; n].into());
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
