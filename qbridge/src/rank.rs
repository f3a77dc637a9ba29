//! Which of some given answers is the likeliest.

use bridge::event::{Event, TokenLogprobs};
use tokio::sync::mpsc::Receiver;

use crate::{Error, Result};

/// A given answer with what the model makes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The answer.
    pub text: String,
    /// Where it stood among those given, from 0.
    pub index: usize,
    /// Natural logarithm of the probability that the model answers exactly this: the sum over its tokens, the one that
    /// ends an answer included.
    pub logprob: f64,
    /// How many tokens that is.
    pub tokens: usize,
}

impl Candidate {
    /// The mean over the tokens, for answers of different lengths: the sum favours short ones.
    pub fn mean_logprob(&self) -> f64 {
        self.logprob / self.tokens as f64
    }
}

/// Reads the scores of `texts`, the first of which stands at `first` among all.
pub(crate) async fn candidates(
    mut events: Receiver<Event>,
    texts: &[String],
    first: usize,
) -> Result<Vec<Candidate>> {
    let mut found: Vec<Candidate> = texts
        .iter()
        .zip(first..)
        .map(|(text, index)| Candidate {
            text: text.clone(),
            index,
            logprob: 0.0,
            tokens: 0,
        })
        .collect();
    let mut add = |choice: usize, logprobs: Vec<TokenLogprobs>| {
        if let Some(candidate) = found.get_mut(choice) {
            candidate.tokens += logprobs.len();
            candidate.logprob += (logprobs.iter())
                .map(|token| f64::from(token.token.logprob))
                .sum::<f64>();
        }
    };
    let mut open = texts.len();
    while open > 0 {
        match events.recv().await {
            Some(Event::Token {
                choice, logprobs, ..
            }) => add(choice, logprobs),
            Some(Event::Done(summary)) => {
                add(summary.choice, summary.logprobs);
                open -= 1;
            }
            Some(Event::Error(error)) => return Err(error),
            None => return Err(Error::Stopped),
        }
    }
    Ok(found)
}
