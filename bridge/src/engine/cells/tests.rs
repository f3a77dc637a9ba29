use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

fn tokens(ids: &[i32]) -> Vec<RowKey> {
    ids.iter().map(|&id| RowKey::Token(id)).collect()
}

/// Runs a request from beginning to end: what it shared, and what had to happen.
fn run(cells: &mut Cells, prompt: &[i32], answer: &[i32], keep: bool) -> (usize, Vec<Op>) {
    let mut ops = Vec::new();
    let prompt = tokens(prompt);
    let n_cells = prompt.len() + answer.len();
    let admission = cells.admit(&prompt, 1, n_cells, &mut ops).unwrap();
    let first = admission.sequences[0];
    cells.computed(first, &prompt[admission.shared..]);
    cells.computed(first, &tokens(answer));
    cells.finish(&admission.sequences, keep, &mut ops);
    (admission.shared, ops)
}

#[test]
fn what_finished_is_shared_up_to_the_first_difference() {
    let mut cells = Cells::new(100, 4);
    assert_eq!(run(&mut cells, &[1, 2, 3], &[4, 5], true).0, 0);
    // The next turn: the answer counts.
    assert_eq!(run(&mut cells, &[1, 2, 3, 4, 5, 6, 7], &[8], true).0, 5);
    assert_eq!(run(&mut cells, &[1, 2, 9], &[], true).0, 2);
    // The same prompt again: its last row is computed anew.
    assert_eq!(run(&mut cells, &[1, 2, 9], &[], true).0, 2);
    assert_eq!(run(&mut cells, &[9, 2, 3], &[], true).0, 0);
    // [1 2 3 4 5 6 7 8], [1 2 9] and [9 2 3]; the first turn is a beginning of the second.
    assert_eq!((cells.kept(), cells.occupied()), (3, 8 + 1 + 3));
}

#[test]
fn a_picture_is_its_content() {
    let mut cells = Cells::new(100, 4);
    let prompt = |picture: u8| {
        let mut rows = tokens(&[1, 2]);
        rows.extend([RowKey::Embedding([picture; 16]); 3]);
        rows.extend(tokens(&[3, 4]));
        rows
    };
    let mut shared = |picture| {
        let mut ops = Vec::new();
        let prompt = prompt(picture);
        let admission = cells.admit(&prompt, 1, 7, &mut ops).unwrap();
        cells.computed(admission.sequences[0], &prompt[admission.shared..]);
        cells.finish(&admission.sequences, true, &mut ops);
        admission.shared
    };
    assert_eq!([shared(1), shared(2), shared(1), shared(2)], [0, 2, 6, 6]);
}

#[test]
fn the_oldest_makes_way_when_cells_or_sequences_are_wanted() {
    // Three of four cells each: the third needs the first one's.
    let mut cells = Cells::new(10, 8);
    for prompt in [[1, 1, 1, 1], [2, 2, 2, 2]] {
        run(&mut cells, &prompt, &[], true);
    }
    // Used again, so that [2 2 2 2] is the oldest.
    run(&mut cells, &[1, 1, 1, 1], &[], true);
    run(&mut cells, &[3, 3, 3, 3], &[], true);
    assert_eq!(run(&mut cells, &[1, 1, 1, 1], &[], true).0, 3);
    assert_eq!(run(&mut cells, &[2, 2, 2, 2], &[], true).0, 0);

    let mut cells = Cells::new(100, 2);
    for prompt in [[1, 1, 1], [2, 2, 2], [3, 3, 3]] {
        run(&mut cells, &prompt, &[], true);
    }
    assert_eq!(cells.kept(), 2);
    assert_eq!(run(&mut cells, &[1, 1, 1], &[], true).0, 0);
}

#[test]
fn the_last_sequence_is_taken_over_by_whoever_continues_it() {
    let mut cells = Cells::new(6, 1);
    run(&mut cells, &[1, 2, 3, 4, 5], &[], true);
    let (shared, ops) = run(&mut cells, &[1, 2, 9], &[], true);
    assert_eq!(shared, 2);
    assert_eq!(ops[0], Op::Truncate { sequence: 0, n: 2 });
}

#[test]
fn rows_of_a_running_request_are_shared_too() {
    let mut cells = Cells::new(100, 4);
    let mut ops = Vec::new();
    let prompt = tokens(&[1, 2, 3, 4]);
    let first = cells.admit(&prompt, 1, 10, &mut ops).unwrap();
    cells.computed(first.sequences[0], &prompt[..3]);
    let second = cells.admit(&prompt, 1, 10, &mut ops).unwrap();
    assert_eq!((first.shared, second.shared), (0, 3));
    // The first is cancelled: its rows stay with the second alone.
    cells.finish(&first.sequences, false, &mut ops);
    assert_eq!((cells.occupied(), cells.kept()), (3, 0));
    cells.finish(&second.sequences, false, &mut ops);
    assert_eq!((cells.occupied(), cells.is_idle()), (0, true));
}

/// A KV cache as llama.cpp keeps it: each sequence's cells, shared by number.
#[derive(Default)]
struct Cache {
    sequences: HashMap<usize, Vec<(u64, RowKey)>>,
    next: u64,
}

impl Cache {
    fn apply(&mut self, ops: &mut Vec<Op>) {
        for op in ops.drain(..) {
            match op {
                Op::Share { from, to, n } => {
                    assert!(self.rows(to).is_empty(), "{to} is not empty");
                    let rows = self.rows(from)[..n].to_vec();
                    *self.rows(to) = rows;
                }
                Op::Truncate { sequence, n } => self.rows(sequence).truncate(n),
            }
        }
    }

    fn rows(&mut self, sequence: usize) -> &mut Vec<(u64, RowKey)> {
        self.sequences.entry(sequence).or_default()
    }

    fn compute(&mut self, sequence: usize, keys: &[RowKey]) {
        for &key in keys {
            self.next += 1;
            let cell = self.next;
            self.rows(sequence).push((cell, key));
        }
    }

    fn occupied(&self) -> usize {
        let cells = self.sequences.values().flatten();
        cells.map(|&(cell, _)| cell).collect::<HashSet<u64>>().len()
    }
}

/// A request under way.
struct Running {
    prompt: Vec<RowKey>,
    /// Rows of the prompt in the cache.
    n: usize,
    sequences: Vec<usize>,
    n_cells: usize,
    /// Rows computed for each of several sequences, of which [`Cells`] knows nothing.
    own: usize,
    tracked: bool,
}

const CAPACITY: usize = 64;
const SLOTS: usize = 5;

#[derive(Debug, Clone)]
enum Step {
    Admit {
        prompt: Vec<i32>,
        beams: usize,
        answer: usize,
        tracked: bool,
    },
    Compute {
        which: prop::sample::Index,
        n: usize,
    },
    Finish {
        which: prop::sample::Index,
        keep: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let prompt = prop::collection::vec(0..2i32, 1..24);
    let step = prop_oneof![
        3 => (prompt, 1..4usize, 1..8usize, any::<bool>()).prop_map(
            |(prompt, beams, answer, tracked)| Step::Admit { prompt, beams, answer, tracked }
        ),
        4 => (any::<prop::sample::Index>(), 1..12usize)
            .prop_map(|(which, n)| Step::Compute { which, n }),
        2 => (any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(which, keep)| Step::Finish { which, keep }),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// Whatever comes: a request gets in whenever one without sharing would, what it
    /// shares is its own prompt, no cell is counted twice or forgotten, and in the
    /// end every cell and every sequence is free or kept.
    #[test]
    fn cells_and_sequences_never_leak(n_kept in 0..6usize, steps in steps()) {
        let mut cells = Cells::new(CAPACITY, SLOTS + n_kept);
        let mut cache = Cache::default();
        let mut running: Vec<Running> = Vec::new();
        let mut ops = Vec::new();
        for step in steps {
            match step {
                Step::Admit { prompt, beams, answer, tracked } => {
                    let n_cells = prompt.len() + beams * answer;
                    let in_use: usize = running.iter().map(|r| r.n_cells).sum();
                    let sequences: usize = running.iter().map(|r| r.sequences.len()).sum();
                    if in_use + n_cells > CAPACITY || sequences + beams > SLOTS {
                        continue;
                    }
                    let prompt = tokens(&prompt);
                    let keys = if tracked { &prompt[..] } else { &[] };
                    let admission = cells.admit(keys, beams, n_cells, &mut ops);
                    let Admission { sequences, shared } = admission.expect("room for it");
                    cache.apply(&mut ops);
                    prop_assert!(shared < prompt.len());
                    let rows = cache.rows(sequences[0]).clone();
                    let held: Vec<RowKey> = rows.iter().map(|&(_, key)| key).collect();
                    prop_assert_eq!(&held[..], &prompt[..shared]);
                    for &other in &sequences[1..] {
                        prop_assert!(cache.rows(other).is_empty());
                    }
                    running.push(Running { prompt, n: shared, sequences, n_cells, own: 0, tracked });
                }
                Step::Compute { which, n } if !running.is_empty() => {
                    let i = which.index(running.len());
                    let request = &mut running[i];
                    let first = request.sequences[0];
                    let rest = &request.prompt[request.n..];
                    if !rest.is_empty() {
                        let keys = rest[..n.min(rest.len())].to_vec();
                        cache.compute(first, &keys);
                        if request.tracked {
                            cells.computed(first, &keys);
                        }
                        request.n += keys.len();
                        if request.n == request.prompt.len() {
                            let rows = cache.rows(first).clone();
                            for &other in &request.sequences[1..] {
                                *cache.rows(other) = rows.clone();
                            }
                        }
                    } else if request.prompt.len() + request.own + request.sequences.len() <= request.n_cells {
                        let key = [RowKey::Token(7)];
                        let alone = request.sequences.len() == 1;
                        for &sequence in &request.sequences {
                            cache.compute(sequence, &key);
                        }
                        if alone && request.tracked {
                            cells.computed(first, &key);
                            // A row like those of the prompt from here on.
                            request.prompt.push(key[0]);
                            request.n += 1;
                        } else {
                            request.own += request.sequences.len();
                            // As beams do when one takes another's place.
                            request.sequences.rotate_left(1);
                        }
                    }
                }
                Step::Finish { which, keep } if !running.is_empty() => {
                    let request = running.swap_remove(which.index(running.len()));
                    cells.finish(&request.sequences, keep && request.tracked, &mut ops);
                    cache.apply(&mut ops);
                }
                _ => {}
            }
            let own: usize = running
                .iter()
                .map(|r| if r.tracked { r.own } else { r.own + r.n })
                .sum();
            prop_assert_eq!(cache.occupied(), cells.occupied() + own);
            prop_assert!(cache.occupied() <= CAPACITY);
            prop_assert!(cells.occupied() + cells.reserved <= CAPACITY);
        }
        for request in running {
            cells.finish(&request.sequences, false, &mut ops);
        }
        cache.apply(&mut ops);
        prop_assert!(cells.is_idle());
        prop_assert_eq!(cells.reserved, 0);
        prop_assert_eq!(cache.occupied(), cells.occupied());
        prop_assert_eq!(cells.kept() + cells.free_sequences.len(), SLOTS + n_kept);
        let kept: Vec<usize> = cells.kept_where(|_| true);
        for sequence in kept {
            cells.finish(&[sequence], false, &mut ops);
        }
        prop_assert_eq!(cells.occupied(), 0);
    }
}
