//! Answers of `ask` and `chat`: got from the model, and as they are printed.

use std::path::PathBuf;

use anyhow::anyhow;
use qbridge::{
    Answer, Candidate, Error, ErrorKind, FinishReason, Generation, Model, ModelOptions, Picture,
    Ranking, Request, Timings, Usage,
};
use serde::Serialize;
use serde_json::Value;

use crate::args::GenerationArgs;
use crate::progress;

/// What `--json` prints of a question. Its fields, in this order, are described in docs/ask.md.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// Of the file of JSON lines, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// What the line called its question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// Names of the pictures.
    pub images: Vec<String>,
    /// The question; none where the line held none.
    pub question: Option<String>,
    /// The answer; none where it failed.
    pub text: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// The answers to choose from, best first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<Choice>>,
    /// Tokens of the answer, the one that ended it included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<i32>>,
    /// Why the answer ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// Rows of the prompt and tokens of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Seconds of each stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// An answer to choose.
#[derive(Debug, Serialize)]
pub struct Choice {
    /// The answer.
    pub text: String,
    /// Its share among the choices; all are 1 together.
    pub probability: f64,
    /// Log-probability of the answer, the sum over its tokens.
    pub logprob: f64,
    /// How many tokens that is.
    pub tokens: usize,
}

impl Row {
    /// A row with an answer.
    pub fn answered(self, answer: Answer) -> Row {
        Row {
            text: Some(answer.text),
            token_ids: Some(answer.token_ids),
            finish_reason: Some(answer.finish_reason),
            usage: Some(answer.usage),
            timings: Some(answer.timings),
            ..self
        }
    }

    /// A row with the best of some answers.
    pub fn chosen(self, mut candidates: Vec<Candidate>, ranking: Ranking) -> Row {
        let probabilities = ranking.rank(&mut candidates);
        let choices: Vec<Choice> = candidates
            .into_iter()
            .zip(probabilities)
            .map(|(candidate, probability)| Choice {
                text: candidate.text,
                probability,
                logprob: candidate.logprob,
                tokens: candidate.tokens,
            })
            .collect();
        Row {
            text: choices.first().map(|best| best.text.clone()),
            choices: Some(choices),
            ..self
        }
    }

    /// A row without an answer.
    pub fn failed(self, error: String) -> Row {
        Row {
            error: Some(error),
            ..self
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// The question is at fault: the others go on.
    Question(String),
    /// Its pictures are, whatever is asked about them: the others go on.
    Pictures(String),
    /// All questions would fail.
    Run(anyhow::Error),
}

impl Failure {
    /// What an error means for other questions. `pictures` are those of this one, with their names.
    pub fn of(error: Error, pictures: &[Named]) -> Failure {
        match error.kind() {
            // The schema is the same for all questions.
            _ if matches!(error, Error::Schema { .. }) => Failure::Run(error.into()),
            ErrorKind::InvalidImage | ErrorKind::ImageTooLarge => {
                let at_fault = pictures.iter().find(|named| named.picture.check().is_err());
                Failure::Pictures(match at_fault {
                    Some(named) => format!("{}: {error}", named.name),
                    None => error.to_string(),
                })
            }
            _ if has_no_place(&error) => Failure::Pictures(error.to_string()),
            ErrorKind::InvalidRequest | ErrorKind::ContextLengthExceeded => {
                Failure::Question(error.to_string())
            }
            _ => Failure::Run(error.into()),
        }
    }
}

/// Whether the model's layout has no place for the pictures.
fn has_no_place(error: &Error) -> bool {
    use prompts::Error::{ImageNotInFirstTurn, TooManyImages};
    matches!(
        error,
        Error::Prompt(TooManyImages { .. } | ImageNotInFirstTurn)
    )
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Run(error.into())
    }
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> anyhow::Error {
        match failure {
            Failure::Question(reason) | Failure::Pictures(reason) => anyhow!(reason),
            Failure::Run(error) => error,
        }
    }
}

/// A picture, and what it is called.
#[derive(Debug, Clone)]
pub struct Named {
    /// The path or URL that it came from.
    pub name: String,
    /// The picture.
    pub picture: Picture,
}

/// Opens a bundle, with a spinner beside it.
///
/// # Errors
/// It cannot be opened.
pub async fn open(bundle: &PathBuf, options: ModelOptions) -> qbridge::Result<Model> {
    let spinner = progress::spinner(format!("loading {}", bundle.display()));
    let model = Model::open_with(bundle, options).await;
    spinner.finish_and_clear();
    model
}

/// How tokens are chosen, as the command line says.
pub fn generation(args: &GenerationArgs) -> Generation {
    Generation {
        max_tokens: args.max_tokens.map(|n| n as usize),
        min_tokens: args.min_tokens.map(|n| n as usize),
        temperature: args.temperature,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
        num_beams: args.num_beams.map(usize::from),
        length_penalty: args.length_penalty,
        ..Generation::default()
    }
}

/// Answers a request; `on_text` sees each piece of text as it comes.
///
/// # Errors
/// The request fails, or `on_text` does.
pub async fn answer(
    model: &Model,
    request: Request,
    pictures: &[Named],
    mut on_text: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<Answer, Failure> {
    let failure = |error| Failure::of(error, pictures);
    let mut stream = model.stream(request).await.map_err(failure)?;
    while let Some(text) = stream.next().await {
        on_text(&text.map_err(failure)?)?;
    }
    stream.finish().await.map_err(failure)
}
