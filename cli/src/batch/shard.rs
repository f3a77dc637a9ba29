//! One of several parts of the work.

use sha2::{Digest, Sha256};

use crate::args::Shard;

/// Enough of a name's SHA-256 to tell names apart.
pub type NameHash = [u8; 16];

/// The hash of a name.
pub fn hash(name: impl AsRef<[u8]>) -> NameHash {
    let digest: [u8; 32] = Sha256::digest(name).into();
    let mut hash = NameHash::default();
    hash.copy_from_slice(&digest[..size_of::<NameHash>()]);
    hash
}

impl Shard {
    /// Whether a picture is in this part. It depends on its name alone, so that pictures that come or go move no others.
    pub fn holds(&self, name: &str) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = hash(name);
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) % self.count == self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_in_one_shard_and_shards_are_alike() {
        let count = 4;
        let mut sizes = [0; 4];
        for i in 0..4000 {
            let name = format!("photos/{i}.jpg");
            let held: Vec<u64> = (0..count)
                .filter(|&index| Shard { index, count }.holds(&name))
                .collect();
            assert_eq!(held.len(), 1, "{name}");
            sizes[held[0] as usize] += 1;
        }
        // Six standard deviations of a quarter of 4,000.
        assert!(
            sizes.iter().all(|size| (836..1164).contains(size)),
            "{sizes:?}"
        );
    }
}
