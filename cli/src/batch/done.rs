//! What an earlier run has done.

use std::collections::HashMap;

use super::{NameHash, hash};

/// The rows of an earlier run, by their names, some 40 bytes each. A picture that is named twice has two rows.
#[derive(Debug, Default)]
pub struct Done {
    rows: HashMap<NameHash, u32>,
    /// Rows in all.
    pub count: u64,
    /// Those with an error among them.
    pub errors: u64,
}

impl Done {
    /// Counts a row.
    pub fn add(&mut self, name: &str, has_failed: bool) {
        *self.rows.entry(hash(name)).or_default() += 1;
        self.count += 1;
        self.errors += u64::from(has_failed);
    }

    /// Whether the next picture of this name has its row.
    pub fn take(&mut self, name: &str) -> bool {
        match self.rows.get_mut(&hash(name)) {
            Some(rows) if *rows > 0 => {
                *rows -= 1;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_done_as_often_as_it_has_rows() {
        let mut done = Done::default();
        for (name, has_failed) in [("a", false), ("b", true), ("a", false)] {
            done.add(name, has_failed);
        }
        assert_eq!((done.count, done.errors), (3, 1));
        let taken = ["a", "c", "a", "a", "b", "b"].map(|name| done.take(name));
        assert_eq!(taken, [true, false, true, false, true, false]);
    }
}
