//! `qbridge ask`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, ValueEnum};
use qbridge::Ranking;

use super::{Cli, EngineArgs, GenerationArgs};

/// `qbridge ask`
#[derive(Debug, Args)]
#[command(
    override_usage = "qbridge ask [OPTIONS] <BUNDLE> <PICTURE>... <QUESTION>
       qbridge ask [OPTIONS] <BUNDLE> <PICTURE>... --question <QUESTION>...
       qbridge ask [OPTIONS] <BUNDLE> <PICTURE>... --repeat
       qbridge ask [OPTIONS] <BUNDLE> --jsonl <FILE>",
    after_help = "A PICTURE is a file (PNG, JPEG, WebP, GIF, BMP, TIFF), an http(s) URL at a public address, or - for standard
input. Each question is asked of each picture. A single answer is streamed; several are lines of picture, question
and answer with tabs between, or with --json JSON objects, in the order in which they were asked. What cannot be
answered is told on standard error, or as \"error\" of its object, the others go on, and the exit code is 1 at the end.

--jsonl reads {\"image\": FILE, \"question\": TEXT} a line, and \"images\", \"choices\" and \"id\" where there are any.
docs/ask.md describes every field.

Examples:
  qbridge ask demo cat.png \"what is this?\"
  qbridge ask demo cat.png \"is this an animal?\" --json | jq -r .text
  qbridge ask demo cat.png dog.png -q \"what is this?\" -q \"is this an animal?\"
  qbridge ask demo cat.png \"is this an animal?\" --choices yes,no
  qbridge ask demo cat.png \"what is this?\" --schema answer.schema.json
  qbridge ask demo cat.png --repeat
  qbridge ask demo --jsonl questions.jsonl > answers.jsonl
  qbridge ask blip2-opt cat.png \"Question: what is this? Answer:\" --raw
  qbridge ask instructblip 1.png \"what happens?\" --frame 2.png --frame 3.png --frame 4.png
  curl -s https://example.com/cat.png | qbridge ask demo - \"what is this?\""
)]
pub struct AskArgs {
    /// Bundle directory
    pub bundle: PathBuf,
    /// Pictures, and last the question, unless --question or --repeat asks it
    #[arg(value_name = "PICTURE... QUESTION")]
    pub inputs: Vec<OsString>,
    /// A question about each of the pictures; may be repeated
    #[arg(short, long = "question", value_name = "QUESTION")]
    pub questions: Vec<String>,
    /// The next frame of a video, after the picture; may be repeated
    #[arg(long = "frame", value_name = "FILE")]
    pub frames: Vec<PathBuf>,
    /// Read questions, one a line, and answer each; the pictures are encoded once
    #[arg(long, conflicts_with_all = ["questions", "jsonl"])]
    pub repeat: bool,
    /// Read pictures and questions as JSON lines from a file, or from - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["inputs", "questions", "frames"])]
    pub jsonl: Option<PathBuf>,
    /// Answer with the likeliest of these, separated by commas; with --jsonl, where a line has none of its own
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = parse_choice,
        conflicts_with_all = ["schema", "max_tokens", "temperature", "seed", "min_tokens", "num_beams", "length_penalty",
                              "repetition_penalty"]
    )]
    pub choices: Vec<String>,
    /// How choices of different lengths are compared
    #[arg(long, value_enum, default_value_t = RankBy::Sum)]
    pub rank_by: RankBy,
    /// Hold answers to the JSON Schema in a file
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
    /// Send the question as it is, without the prompt template
    #[arg(long)]
    pub raw: bool,
    /// Print one JSON object for each answer, instead of its text
    #[arg(long)]
    pub json: bool,
    /// Questions that are answered together [default: as many as there are, at most 4]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub slots: Option<u16>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub generation: GenerationArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
}

/// How choices of different lengths are compared.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RankBy {
    /// By their probability: the sum of the log-probabilities of their tokens
    Sum,
    /// By the mean of them, which does not favour short ones
    Mean,
}

impl From<RankBy> for Ranking {
    fn from(rank_by: RankBy) -> Ranking {
        match rank_by {
            RankBy::Sum => Ranking::Sum,
            RankBy::Mean => Ranking::Mean,
        }
    }
}

/// What is asked on the command line.
#[derive(Debug, PartialEq)]
pub struct Asked {
    /// At least one.
    pub pictures: Vec<PathBuf>,
    /// None where they are read one by one.
    pub questions: Vec<String>,
}

impl AskArgs {
    /// Refuses what the definitions above cannot tell, with `--jsonl` too.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn check(&self) -> Result<(), clap::Error> {
        check_choices("ask", &self.choices)
    }

    /// Tells the pictures and the questions among the arguments apart. Not for `--jsonl`.
    ///
    /// # Errors
    /// Wrong usage.
    pub fn asked(&self) -> Result<Asked, clap::Error> {
        let mut inputs = self.inputs.clone();
        let mut questions = self.questions.clone();
        if questions.is_empty() && !self.repeat {
            let last = inputs.pop().filter(|_| !inputs.is_empty());
            let Some(last) = last else {
                return Err(wrong(
                    "ask",
                    ErrorKind::MissingRequiredArgument,
                    "a picture and a question are needed: qbridge ask BUNDLE cat.png \"what is this?\"",
                ));
            };
            if PathBuf::from(&last).is_file() {
                let last = last.display();
                return Err(wrong(
                    "ask",
                    ErrorKind::MissingRequiredArgument,
                    format!("{last} is a file, and the question is missing: say it last"),
                ));
            }
            let question = last
                .into_string()
                .map_err(|_| wrong("ask", ErrorKind::InvalidUtf8, "the question is not UTF-8"))?;
            questions.push(question);
        }
        if inputs.is_empty() {
            return Err(wrong(
                "ask",
                ErrorKind::MissingRequiredArgument,
                "a picture is needed",
            ));
        }
        if !self.frames.is_empty() && inputs.len() > 1 {
            return Err(wrong(
                "ask",
                ErrorKind::ArgumentConflict,
                "--frame goes with one picture, which is the first frame",
            ));
        }
        let dashes = inputs.iter().filter(|input| *input == "-").count();
        if dashes > usize::from(!self.repeat) {
            return Err(wrong(
                "ask",
                ErrorKind::ArgumentConflict,
                match self.repeat {
                    true => "with --repeat questions are read from standard input: name a file",
                    false => "standard input holds one picture",
                },
            ));
        }
        Ok(Asked {
            pictures: inputs.into_iter().map(PathBuf::from).collect(),
            questions,
        })
    }
}

/// Wrong usage of a command that its definitions cannot tell.
fn wrong(command: &str, kind: ErrorKind, message: impl std::fmt::Display) -> clap::Error {
    let mut cli = Cli::command();
    cli.build();
    match cli.find_subcommand_mut(command) {
        Some(command) => command.error(kind, message),
        None => cli.error(kind, message),
    }
}

/// Refuses choices of a command among which one is twice: they would share what is probable.
///
/// # Errors
/// Wrong usage.
pub fn check_choices(command: &str, choices: &[String]) -> Result<(), clap::Error> {
    match repeated(choices) {
        None => Ok(()),
        Some(choice) => Err(wrong(
            command,
            ErrorKind::ValueValidation,
            format!("--choices: {choice:?} is there twice"),
        )),
    }
}

/// The first choice that is there before it.
pub fn repeated(choices: &[String]) -> Option<&str> {
    let mut before = HashSet::new();
    let mut choices = choices.iter().map(String::as_str);
    choices.find(|choice| !before.insert(choice.trim()))
}

/// Reads a choice.
pub fn parse_choice(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a choice is empty".to_owned()),
        choice => Ok(choice.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use clap::Parser;

    use super::super::Command;
    use super::*;

    fn parse(args: &[&str]) -> Result<AskArgs, clap::Error> {
        match Cli::try_parse_from(["qbridge", "ask", "demo"].iter().chain(args))?.command {
            Command::Ask(args) => Ok(args),
            _ => panic!("another command"),
        }
    }

    fn asked(args: &[&str]) -> Result<Asked, clap::Error> {
        parse(args)?.asked()
    }

    #[test]
    fn the_last_is_the_question_unless_it_is_named() {
        for (args, pictures, questions) in [
            (&["a.png", "what?"][..], &["a.png"][..], &["what?"][..]),
            (
                &["a.png", "b.png", "what?"],
                &["a.png", "b.png"],
                &["what?"],
            ),
            (
                &["a.png", "b.png", "-q", "what?", "-q", "who?"],
                &["a.png", "b.png"],
                &["what?", "who?"],
            ),
            (&["--question", "what?", "a.png"], &["a.png"], &["what?"]),
            (&["-", "what?", "--json"], &["-"], &["what?"]),
            (&["a.png", "--repeat"], &["a.png"], &[]),
        ] {
            let found = asked(args).unwrap();
            let paths: Vec<PathBuf> = pictures.iter().map(PathBuf::from).collect();
            assert_eq!(found.pictures, paths, "{args:?}");
            assert_eq!(found.questions, questions, "{args:?}");
        }
    }

    #[test]
    fn wrong_usage_is_told() {
        let file = env!("CARGO_MANIFEST_DIR").to_owned() + "/Cargo.toml";
        for (args, told) in [
            (&[][..], "a picture and a question are needed"),
            (&["a.png"], "a picture and a question are needed"),
            (&["a.png", &file], "the question is missing"),
            (&["-q", "what?"], "a picture is needed"),
            (&["--repeat"], "a picture is needed"),
            (&["-", "--repeat"], "name a file"),
            (&["-", "-", "what?"], "holds one picture"),
            (
                &["a.png", "b.png", "what?", "--frame", "c.png"],
                "--frame goes with one picture",
            ),
            (&["a.png", "--repeat", "-q", "what?"], "cannot be used with"),
            (&["a.png", "what?", "--jsonl", "-"], "cannot be used with"),
            (
                &["a.png", "what?", "--choices", "a,,b"],
                "a choice is empty",
            ),
            (
                &["a.png", "what?", "--choices", "a,b", "--schema", "s"],
                "cannot be used with",
            ),
            (
                &["a.png", "what?", "--choices", "a,b", "--temperature", "1"],
                "cannot be used with",
            ),
        ] {
            let error = asked(args).unwrap_err();
            assert!(error.to_string().contains(told), "{args:?}: {error}");
            assert_eq!(error.exit_code(), 2, "{args:?}");
        }
    }

    #[test]
    fn a_choice_is_there_once() {
        let check = |args: &[&str]| parse(args).unwrap().check();
        check(&["a.png", "what?", "--choices", "yes,no"]).unwrap();
        for args in [
            &["a.png", "what?", "--choices", "yes,no, yes"][..],
            &["--jsonl", "-", "--choices", "yes,yes"],
        ] {
            let error = check(args).unwrap_err();
            assert!(
                error.to_string().contains("\"yes\" is there twice"),
                "{error}"
            );
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn choices_are_trimmed() {
        let args = parse(&[
            "a.png",
            "what?",
            "--choices",
            "a cat, a dog",
            "--choices",
            "no",
        ]);
        assert_eq!(args.unwrap().choices, ["a cat", "a dog", "no"]);
    }
}
