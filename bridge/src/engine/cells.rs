//! Which sequence of a context holds which rows of the KV cache, so that requests
//! share the cells of equal beginnings and what has finished stays as long as there
//! is room.
//!
//! Nothing here knows llama.cpp: what has to happen there comes back as [`Op`]s.
//! Each row that was computed once is counted once, however many sequences hold it,
//! so the count is that of llama.cpp's occupied cells.

/// What a row was computed from. Rows with equal keys that follow equal rows have
/// equal keys and values in the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKey {
    /// A token id.
    Token(i32),
    /// The first half of the SHA-256 of an embedding row's floats, little-endian.
    Embedding([u8; 16]),
}

/// A change to a context's KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// The first `n` rows of `from` become those of the empty sequence `to` too.
    Share {
        /// The sequence that holds them.
        from: usize,
        /// The sequence that is to.
        to: usize,
        /// Rows.
        n: usize,
    },
    /// A sequence keeps its first `n` rows alone.
    Truncate {
        /// The sequence.
        sequence: usize,
        /// Rows.
        n: usize,
    },
}

/// What an admitted request got.
#[derive(Debug, PartialEq, Eq)]
pub struct Admission {
    /// Its sequences. The rows it shares are in the first.
    pub sequences: Vec<usize>,
    /// The rows at the beginning of its prompt that are computed already.
    pub shared: usize,
}

/// The cells and sequences of one context.
#[derive(Debug)]
pub struct Cells {
    capacity: usize,
    /// Every row of any sequence, and places for more.
    rows: Vec<Row>,
    free_rows: Vec<usize>,
    sequences: Vec<Sequence>,
    free_sequences: Vec<usize>,
    /// Cells set aside for rows to come, over all requests.
    reserved: usize,
    /// Counts the requests, to tell what was used last.
    clock: u64,
}

#[derive(Debug)]
struct Row {
    key: RowKey,
    holders: usize,
}

#[derive(Debug, Default)]
struct Sequence {
    state: State,
    /// Places in [`Cells::rows`].
    rows: Vec<usize>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    /// A request's, with the cells set aside for what it has yet to compute.
    Running { reserved: usize },
    /// Nobody's, and last used then.
    Kept { used: u64 },
}

impl Cells {
    /// For a context of `capacity` cells and `n_sequences` sequences.
    pub fn new(capacity: usize, n_sequences: usize) -> Self {
        Cells {
            capacity,
            rows: Vec::new(),
            free_rows: Vec::new(),
            sequences: (0..n_sequences).map(|_| Sequence::default()).collect(),
            free_sequences: (0..n_sequences).rev().collect(),
            reserved: 0,
            clock: 0,
        }
    }

    /// Whether no request is in it.
    pub fn is_idle(&self) -> bool {
        let running = |sequence: &Sequence| matches!(sequence.state, State::Running { .. });
        !self.sequences.iter().any(running)
    }

    /// Cells that hold a row.
    pub fn occupied(&self) -> usize {
        self.rows.len() - self.free_rows.len()
    }

    /// Sequences that belong to no request and are kept.
    pub fn kept(&self) -> usize {
        let kept = |sequence: &&Sequence| matches!(sequence.state, State::Kept { .. });
        self.sequences.iter().filter(kept).count()
    }

    /// Lets a request in that takes `n_sequences` sequences and at most `n_cells`
    /// cells. `prompt` names the rows of its prompt where they may be shared, and is
    /// empty otherwise; the last of them is always left to compute, since what
    /// follows it is wanted. What was used longest ago makes way.
    ///
    /// `None`, and no change, where requests hold too many sequences.
    pub fn admit(
        &mut self,
        prompt: &[RowKey],
        n_sequences: usize,
        n_cells: usize,
        ops: &mut Vec<Op>,
    ) -> Option<Admission> {
        if n_sequences == 0 || n_sequences > self.free_sequences.len() + self.kept() {
            return None;
        }
        self.clock += 1;
        let shareable = &prompt[..prompt.len().saturating_sub(1)];
        let source = self.longest_match(shareable);
        let shared = source.map_or(0, |(_, n)| n);
        let first = self.take_sharing(source, ops)?;
        let reserved = n_cells.saturating_sub(shared);
        self.sequences[first].state = State::Running { reserved };
        self.reserved += reserved;
        let mut sequences = vec![first];
        while sequences.len() < n_sequences {
            let sequence = self.take(None, ops)?;
            self.sequences[sequence].state = State::Running { reserved: 0 };
            sequences.push(sequence);
        }
        while self.occupied() + self.reserved > self.capacity
            && let Some(oldest) = self.oldest(None)
        {
            self.evict(oldest, ops);
        }
        Some(Admission { sequences, shared })
    }

    /// The sequence that begins with the most rows of `prompt`, and how many.
    fn longest_match(&self, prompt: &[RowKey]) -> Option<(usize, usize)> {
        let common = |sequence: &Sequence| {
            let keys = sequence.rows.iter().map(|&row| &self.rows[row].key);
            keys.zip(prompt).take_while(|(a, b)| a == b).count()
        };
        let lengths = self.sequences.iter().map(common).enumerate();
        lengths.max_by_key(|&(_, n)| n).filter(|&(_, n)| n > 0)
    }

    /// A sequence that holds the rows to share and no others.
    fn take_sharing(&mut self, source: Option<(usize, usize)>, ops: &mut Vec<Op>) -> Option<usize> {
        let Some((from, n)) = source else {
            return self.take(None, ops);
        };
        if let State::Kept { used } = &mut self.sequences[from].state {
            *used = self.clock;
        }
        // Without another sequence the source itself is taken over. It is a kept one:
        // `admit` has counted.
        let Some(to) = self.take(Some(from), ops) else {
            self.truncate(from, n, ops);
            return Some(from);
        };
        let rows = self.sequences[from].rows[..n].to_vec();
        for &row in &rows {
            self.rows[row].holders += 1;
        }
        self.sequences[to].rows = rows;
        ops.push(Op::Share { from, to, n });
        Some(to)
    }

    /// A free sequence, or else the kept one that was used longest ago, but not `but`.
    fn take(&mut self, but: Option<usize>, ops: &mut Vec<Op>) -> Option<usize> {
        if self.free_sequences.is_empty() {
            let oldest = self.oldest(but)?;
            self.evict(oldest, ops);
        }
        self.free_sequences.pop()
    }

    fn oldest(&self, but: Option<usize>) -> Option<usize> {
        let kept = self.sequences.iter().enumerate().filter_map(|(i, s)| {
            let State::Kept { used } = s.state else {
                return None;
            };
            (Some(i) != but).then_some((used, i))
        });
        kept.min().map(|(_, sequence)| sequence)
    }

    fn evict(&mut self, sequence: usize, ops: &mut Vec<Op>) {
        self.truncate(sequence, 0, ops);
        self.sequences[sequence].state = State::Free;
        self.free_sequences.push(sequence);
    }

    fn truncate(&mut self, sequence: usize, n: usize, ops: &mut Vec<Op>) {
        let rows = &mut self.sequences[sequence].rows;
        for row in rows.drain(n.min(rows.len())..) {
            self.rows[row].holders -= 1;
            if self.rows[row].holders == 0 {
                self.free_rows.push(row);
            }
        }
        ops.push(Op::Truncate { sequence, n });
    }

    /// A request has computed rows of these keys in `sequence`, the first of its own.
    pub fn computed(&mut self, sequence: usize, keys: &[RowKey]) {
        for &key in keys {
            let row = Row { key, holders: 1 };
            let place = match self.free_rows.pop() {
                Some(place) => {
                    self.rows[place] = row;
                    place
                }
                None => {
                    self.rows.push(row);
                    self.rows.len() - 1
                }
            };
            self.sequences[sequence].rows.push(place);
        }
        if let State::Running { reserved } = &mut self.sequences[sequence].state {
            let n = keys.len().min(*reserved);
            *reserved -= n;
            self.reserved -= n;
        }
    }

    /// A request ends and leaves its `sequences`. With `keep`, the rows that
    /// [`Cells::computed`] was told of stay in the first of them, which holds them
    /// whatever its order was before.
    pub fn finish(&mut self, sequences: &[usize], keep: bool, ops: &mut Vec<Op>) {
        let Some(&first) = sequences.first() else {
            return;
        };
        let mut rows = Vec::new();
        for &sequence in sequences {
            if let State::Running { reserved } = self.sequences[sequence].state {
                self.reserved -= reserved;
            }
            self.sequences[sequence].state = State::Free;
            rows.append(&mut self.sequences[sequence].rows);
        }
        self.sequences[first].rows = rows;
        let n = self.sequences[first].rows.len();
        let keep = keep && n > 0 && !self.touch_longer(first);
        for &sequence in &sequences[1..] {
            self.evict(sequence, ops);
        }
        if !keep {
            return self.evict(first, ops);
        }
        self.evict_beginnings_of(first, ops);
        self.truncate(first, n, ops);
        self.sequences[first].state = State::Kept { used: self.clock };
    }

    /// Whether a kept sequence begins with all rows of `sequence`; it counts as used.
    fn touch_longer(&mut self, sequence: usize) -> bool {
        let longer = self.kept_where(|kept| self.begins_with(kept, sequence));
        for &kept in &longer {
            self.sequences[kept].state = State::Kept { used: self.clock };
        }
        !longer.is_empty()
    }

    /// Whoever could share them can share the longer one.
    fn evict_beginnings_of(&mut self, sequence: usize, ops: &mut Vec<Op>) {
        for kept in self.kept_where(|kept| self.begins_with(sequence, kept)) {
            self.evict(kept, ops);
        }
    }

    fn kept_where(&self, condition: impl Fn(usize) -> bool) -> Vec<usize> {
        let kept = |&i: &usize| matches!(self.sequences[i].state, State::Kept { .. });
        let all = 0..self.sequences.len();
        all.filter(kept).filter(|&i| condition(i)).collect()
    }

    fn begins_with(&self, sequence: usize, beginning: usize) -> bool {
        let [rows, beginning] = [sequence, beginning].map(|i| &self.sequences[i].rows);
        let key = |&row: &usize| self.rows[row].key;
        rows.len() >= beginning.len() && rows.iter().zip(beginning).all(|(a, b)| key(a) == key(b))
    }
}

#[cfg(test)]
mod tests;
