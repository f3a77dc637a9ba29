//! What comes next, guessed from what came before: prompt lookup decoding.
//!
//! An answer often repeats stretches of its prompt or of itself. Where its last tokens stood there before, those that followed
//! are computed along with the next one, in one step, and kept as long as they are what is drawn. So an answer is the same
//! with and without, but for rounding: rows computed together and alone may differ in their last bits.

/// Tokens in a row that must have been there before.
const MATCH: usize = 3;

/// Guesses at first. With the token before them they make four rows, which products on a CPU take together.
const FIRST: usize = 3;

/// Most tokens to draw without a guess after one that was wrong from its first token.
const MAX_PAUSE: usize = 31;

/// The tokens of one answer and of the text before it.
#[derive(Debug)]
pub(super) struct Lookup {
    ids: Vec<i32>,
    most: usize,
    ahead: usize,
    /// Tokens to draw before the next guess, and how many it were last time.
    waits: usize,
    pause: usize,
}

impl Lookup {
    /// Guesses at most `most` tokens at a time.
    pub(super) fn new(prompt_ids: &[i32], most: usize) -> Self {
        Lookup {
            ids: prompt_ids.to_vec(),
            most,
            ahead: FIRST.min(most),
            waits: 0,
            pause: 0,
        }
    }

    /// A token was drawn.
    pub(super) fn push(&mut self, id: i32) {
        self.ids.push(id);
        self.waits = self.waits.saturating_sub(1);
    }

    /// What may come next; nothing where the last tokens are new.
    pub(super) fn guess(&self) -> &[i32] {
        let ids = &self.ids[..];
        let Some(start) = ids.len().checked_sub(MATCH) else {
            return &[];
        };
        if self.waits > 0 {
            return &[];
        }
        // The latest of several places is the likeliest to go on alike.
        let place = (0..start).rfind(|&i| ids[i..i + MATCH] == ids[start..]);
        let next = place.map_or(&[][..], |i| &ids[i + MATCH..]);
        &next[..next.len().min(self.ahead)]
    }

    /// How many of the tokens that were guessed were drawn.
    pub(super) fn learn(&mut self, guessed: usize, right: usize) {
        if guessed == 0 {
            return;
        }
        if right == 0 {
            self.pause = (2 * self.pause + 1).min(MAX_PAUSE);
            self.waits = self.pause;
            self.ahead = FIRST.min(self.most);
        } else {
            self.pause = 0;
            if right == self.ahead {
                self.ahead = (2 * self.ahead + 1).min(self.most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_last_tokens_is_guessed() {
        let mut lookup = Lookup::new(&[1, 2, 3, 4, 5, 6, 1, 2], 8);
        assert_eq!(lookup.guess(), [0; 0], "only two are known");
        lookup.push(3);
        assert_eq!(lookup.guess(), [4, 5, 6]);
        lookup.learn(3, 3);
        assert_eq!(lookup.guess(), [4, 5, 6, 1, 2, 3], "up to 7 after that");
        lookup.push(9);
        assert_eq!(lookup.guess(), [0; 0]);
    }

    #[test]
    fn the_latest_place_counts_even_where_it_overlaps() {
        let lookup = Lookup::new(&[1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1);
        assert_eq!(lookup.guess(), [8]);
        assert_eq!(Lookup::new(&[5, 5, 5, 5], 8).guess(), [5]);
        assert_eq!(Lookup::new(&[5, 5], 8).guess(), [0; 0]);
    }

    #[test]
    fn wrong_guesses_make_it_wait_longer_and_longer() {
        let mut lookup = Lookup::new(&[5; 9], 8);
        for pause in [1, 3, 7, 15, 31, 31] {
            assert_eq!(lookup.guess(), [5]);
            lookup.learn(1, 0);
            for _ in 0..pause {
                assert!(lookup.guess().is_empty());
                lookup.push(5);
            }
        }
        lookup.learn(1, 1);
        lookup.learn(1, 0);
        lookup.push(5);
        assert!(!lookup.guess().is_empty(), "one that was right forgives");
    }
}
