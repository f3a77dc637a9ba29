//! Text from a decoder that tells logits: the likeliest token each time, or beams.
//!
//! Reference: `generate(do_sample=False, num_beams=n)` of transformers 5.23
//! (`generation/utils.py`, `_sample` and `_beam_search`; the processors of
//! `generation/logits_process.py` in their order).

use candle_core::{DType, Tensor};

use crate::beam::{self, BeamSearch, log_softmax};
use crate::{Error, Result};

/// Tokens behind the prompt where no longest text is given (transformers, `GenerationConfig`).
const DEFAULT_NEW_TOKENS: usize = 20;

/// How text is generated; the defaults are transformers'.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Beams of a beam search; 1 takes the likeliest token each time.
    pub num_beams: usize,
    /// Most tokens of a text, its prompt included; where none is given, 20 behind the prompt.
    pub max_length: Option<usize>,
    /// Tokens, the prompt included, before a text may end.
    pub min_length: usize,
    /// A beam's log-probability is divided by its length, the prompt not counted, raised to
    /// this power.
    pub length_penalty: f32,
    /// Divides the positive logits of the tokens that a text holds, prompt included, and
    /// multiplies the negative ones (with beams: the log-probabilities); 1 changes nothing.
    pub repetition_penalty: f32,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            num_beams: 1,
            max_length: None,
            min_length: 0,
            length_penalty: 1.0,
            repetition_penalty: 1.0,
        }
    }
}

/// What a decoder is to read.
///
/// At first every entry of the batch has one row, its prompt; after that, each has the tokens
/// that continue its rows.
#[derive(Debug)]
pub struct Step<'a> {
    /// The batch entry of each row, in ascending order.
    pub entries: &'a [usize],
    /// The row of the step before that each row continues; empty at first.
    pub parents: &'a [u32],
    /// Token ids, `length` for each row, to be read behind what the row continues.
    pub tokens: &'a [u32],
    /// Tokens of each row.
    pub length: usize,
}

/// A text in the making, or several beams of it.
enum Search {
    Greedy { ids: Vec<u32>, is_over: bool },
    Beams(BeamSearch),
}

/// Generates a text behind each of `prompts`, all of one length; the token ids of each, its
/// prompt not included, up to `end` or the longest that `options` allow.
///
/// `decode` gives the logits `[rows, vocabulary]` that follow the last token of each row of a
/// [`Step`].
///
/// # Errors
/// [`Error::Text`] where the prompts are empty or of several lengths, or leave no room below
/// `max_length`, or where an option is out of range; and what `decode` says.
pub fn generate(
    prompts: &[impl AsRef<[u32]>],
    end: u32,
    options: &Generation,
    mut decode: impl FnMut(&Step) -> Result<Tensor>,
) -> Result<Vec<Vec<u32>>> {
    let length = prompts.first().map_or(0, |prompt| prompt.as_ref().len());
    options.check(length)?;
    if length == 0 || prompts.iter().any(|prompt| prompt.as_ref().len() != length) {
        return Err(refused(
            "prompts of one batch must have one length".to_owned(),
        ));
    }
    let mut searches: Vec<Search> = prompts.iter().map(|_| options.search(length)).collect();
    let mut entries: Vec<usize> = (0..prompts.len()).collect();
    let mut parents = Vec::new();
    let mut tokens: Vec<u32> = prompts.iter().flat_map(AsRef::as_ref).copied().collect();
    let mut n_read = length;
    while !entries.is_empty() {
        let logits = decode(&Step {
            entries: &entries,
            parents: &parents,
            tokens: &tokens,
            length: n_read,
        })?;
        let mut logits = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let (mut next_entries, mut next_parents, mut next_tokens) = (vec![], vec![], vec![]);
        let mut first = 0;
        for rows in entries.chunk_by(|left, right| left == right) {
            let entry = rows[0];
            let prompt = prompts[entry].as_ref();
            let logits = &mut logits[first..first + rows.len()];
            for (parent, token) in searches[entry].advance(prompt, end, options, logits) {
                next_entries.push(entry);
                next_parents.push((first + parent) as u32);
                next_tokens.push(token);
            }
            first += rows.len();
        }
        (entries, parents, tokens) = (next_entries, next_parents, next_tokens);
        n_read = 1;
    }
    Ok(searches.into_iter().map(Search::into_ids).collect())
}

impl Generation {
    fn check(&self, prompt: usize) -> Result<()> {
        let problem = if self.num_beams == 0 {
            "num_beams is 0, it must be at least 1".to_owned()
        } else if let Some(max_length) = self.max_length
            && max_length <= prompt
        {
            format!("max_length is {max_length}, and the prompt has {prompt} tokens already")
        } else if !self.length_penalty.is_finite() {
            format!("length_penalty is {}", self.length_penalty)
        } else if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            format!(
                "repetition_penalty is {}, it must be above 0",
                self.repetition_penalty
            )
        } else {
            return Ok(());
        };
        Err(refused(problem))
    }

    /// Most tokens behind a prompt of so many.
    fn max_new_tokens(&self, prompt: usize) -> usize {
        self.max_length
            .map_or(DEFAULT_NEW_TOKENS, |max_length| max_length - prompt)
    }

    fn search(&self, prompt: usize) -> Search {
        match self.num_beams {
            1 => Search::Greedy {
                ids: Vec::new(),
                is_over: false,
            },
            n => Search::Beams(BeamSearch::new(
                n,
                self.length_penalty,
                self.max_new_tokens(prompt),
                1,
            )),
        }
    }

    /// What transformers' processors make of the scores that follow `prompt` and `ids`.
    fn process(
        &self,
        prompt: &[u32],
        ids: impl Iterator<Item = u32>,
        end: u32,
        scores: &mut [f32],
    ) {
        let mut text: Vec<u32> = prompt.iter().copied().chain(ids).collect();
        let n_tokens = text.len();
        if self.repetition_penalty != 1.0 {
            text.sort_unstable();
            text.dedup();
            for id in text {
                if let Some(score) = scores.get_mut(id as usize) {
                    match *score < 0.0 {
                        true => *score *= self.repetition_penalty,
                        false => *score /= self.repetition_penalty,
                    }
                }
            }
        }
        if n_tokens < self.min_length
            && let Some(score) = scores.get_mut(end as usize)
        {
            *score = f32::NEG_INFINITY;
        }
    }
}

impl Search {
    /// Takes the logits that follow each row; the rows that go on, each by the row that it
    /// continues and its next token.
    fn advance(
        &mut self,
        prompt: &[u32],
        end: u32,
        options: &Generation,
        logits: &mut [Vec<f32>],
    ) -> Vec<(usize, u32)> {
        match self {
            Search::Greedy { ids, is_over } => {
                let Some(scores) = logits.first_mut() else {
                    return Vec::new();
                };
                options.process(prompt, ids.iter().copied(), end, scores);
                let token = argmax(scores) as u32;
                ids.push(token);
                *is_over = token == end || ids.len() >= options.max_new_tokens(prompt.len());
                match is_over {
                    true => Vec::new(),
                    false => vec![(0, token)],
                }
            }
            Search::Beams(beams) => {
                for (beam, scores) in logits.iter_mut().enumerate() {
                    log_softmax(scores);
                    let ids = beams.running()[beam].ids.iter().map(|id| *id as u32);
                    options.process(prompt, ids, end, scores);
                    beams.offer(beam, scores);
                }
                match beams.step(|_, id| id as u32 == end) {
                    beam::Step::Done => Vec::new(),
                    beam::Step::Continue(parents) => {
                        let last = |ids: &[i32]| ids.last().map_or(0, |id| *id as u32);
                        let tokens = beams.running().iter().map(|beam| last(&beam.ids));
                        parents.into_iter().zip(tokens).collect()
                    }
                }
            }
        }
    }

    fn into_ids(self) -> Vec<u32> {
        match self {
            Search::Greedy { ids, .. } => ids,
            Search::Beams(beams) => {
                let best = beams.finished().first().or(beams.running().first());
                best.map_or(Vec::new(), |best| {
                    best.ids.iter().map(|id| *id as u32).collect()
                })
            }
        }
    }
}

/// The place of the largest value, the first of several.
pub(crate) fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

fn refused(reason: String) -> Error {
    Error::Text { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const END: u32 = 0;

    /// Logits of a little language over four tokens, by a row's last two tokens, and the rows
    /// as the steps tell them.
    struct Language {
        rows: Vec<Vec<u32>>,
        n_rows: Vec<usize>,
    }

    impl Language {
        fn new() -> Self {
            Self {
                rows: Vec::new(),
                n_rows: Vec::new(),
            }
        }

        fn decode(&mut self, step: &Step) -> Result<Tensor> {
            let before = std::mem::take(&mut self.rows);
            for (row, tokens) in step.tokens.chunks_exact(step.length).enumerate() {
                let parent = step.parents.get(row);
                let mut ids = parent.map_or(Vec::new(), |parent| before[*parent as usize].clone());
                ids.extend(tokens);
                self.rows.push(ids);
            }
            assert_eq!(step.entries.len(), self.rows.len());
            self.n_rows.push(self.rows.len());
            let logits = self.rows.iter().flat_map(|ids| {
                let seed = ids.iter().fold(7u32, |seed, id| seed * 31 + id);
                (0..4).map(move |token| {
                    let hash = (seed * 17 + token).wrapping_mul(2_654_435_761);
                    (hash >> 20) as f32 / 1024.0
                })
            });
            let shape = (self.rows.len(), 4);
            Ok(Tensor::from_vec(logits.collect(), shape, &Device::Cpu)?)
        }
    }

    fn run(prompts: &[Vec<u32>], options: &Generation) -> (Vec<Vec<u32>>, Language) {
        let mut language = Language::new();
        let ids = generate(prompts, END, options, |step| language.decode(step)).unwrap();
        (ids, language)
    }

    #[test]
    fn a_batch_says_what_each_entry_says_alone() {
        let prompts: Vec<Vec<u32>> = (0..9).map(|i| vec![1, i % 4, i / 4]).collect();
        for num_beams in [1, 2, 3] {
            let options = Generation {
                num_beams,
                max_length: Some(12),
                ..Generation::default()
            };
            let (together, language) = run(&prompts, &options);
            // Entries that have ended are not decoded on.
            assert!(
                language.n_rows.last() < language.n_rows.get(1),
                "{:?}",
                language.n_rows
            );
            for (prompt, ids) in prompts.iter().zip(&together) {
                let alone = run(std::slice::from_ref(prompt), &options).0;
                assert_eq!(alone[0], *ids);
                assert!(ids.last() == Some(&END) || ids.len() == 9, "{ids:?}");
                assert_eq!(
                    ids.iter().filter(|id| **id == END).count(),
                    usize::from(ids.len() < 9 || ids[8] == END)
                );
            }
        }
    }

    #[test]
    fn lengths_and_penalties_hold() {
        for num_beams in [1, 3] {
            let options = |min_length, max_length| Generation {
                num_beams,
                min_length,
                max_length: Some(max_length),
                ..Generation::default()
            };
            for first in 0..4 {
                let prompt = [vec![first, 2]];
                assert!(run(&prompt, &options(8, 12)).0[0].len() >= 7 - 1);
                assert!(run(&prompt, &options(0, 4)).0[0].len() <= 2);
                // Whoever must not repeat itself has said everything soon.
                let strict = Generation {
                    repetition_penalty: 1e6,
                    ..options(0, 30)
                };
                let ids = &run(&prompt, &strict).0[0];
                assert!(first == END || ids.len() <= 4, "{ids:?}");
            }
        }
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let refused = |prompts: &[Vec<u32>], options: Generation| {
            let nothing = |_: &Step| -> Result<Tensor> { unreachable!() };
            generate(prompts, END, &options, nothing)
                .unwrap_err()
                .to_string()
        };
        let default = Generation::default;
        let prompt = [vec![1, 2]];
        for (options, expected) in [
            (
                Generation {
                    num_beams: 0,
                    ..default()
                },
                "num_beams",
            ),
            (
                Generation {
                    max_length: Some(2),
                    ..default()
                },
                "the prompt has 2 tokens",
            ),
            (
                Generation {
                    length_penalty: f32::NAN,
                    ..default()
                },
                "length_penalty",
            ),
            (
                Generation {
                    repetition_penalty: 0.0,
                    ..default()
                },
                "repetition_penalty",
            ),
        ] {
            assert!(refused(&prompt, options).contains(expected));
        }
        assert!(refused(&[vec![1], vec![1, 2]], default()).contains("one length"));
        assert!(refused(&[vec![]], default()).contains("one length"));
    }
}
