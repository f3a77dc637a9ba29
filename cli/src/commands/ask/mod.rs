//! `qbridge ask`: questions about pictures, one or many, from arguments, JSON lines or the terminal.
//!
//! - `questions`: what is asked
//! - `asker`: the model that is asked

mod asker;
mod questions;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use futures_util::stream::{self, Stream, StreamExt};
use qbridge::Picture;
use tokio::sync::mpsc;

use self::asker::{Asker, Pictures};
use self::questions::{Question, Source, read_lines};
use super::answers::{Failure, Named, Row};
use super::{INTERRUPTED, print_json};
use crate::args::{AskArgs, Asked};
use crate::signals::interruptible;
use crate::terminal::{Line, Lines, NOT_UTF8, Printer};

/// Lines that were read and wait to be asked.
const READ: usize = 4;

/// A question, or the row of what is none.
type Read = io::Result<Result<Question, Box<Row>>>;

/// Runs the command.
pub fn run(args: &AskArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(ask(args));
    // A file that is still being read, from a pipe for one, is not waited for.
    runtime.shutdown_background();
    done
}

async fn ask(args: &AskArgs) -> Result<ExitCode> {
    args.check().unwrap_or_else(|error| error.exit());
    if let Some(path) = &args.jsonl {
        let asker = Asker::open(args, None).await?;
        let questions = lines(path)?.map(|read| read.map(|asked| asked.map(|of| with(args, of))));
        return answer_all(&asker, questions, true).await;
    }
    let asked = args.asked().unwrap_or_else(|error| error.exit());
    if args.repeat {
        return repeat(args, &asked).await;
    }
    let mut questions = Vec::new();
    for picture in &asked.pictures {
        let sources = sources(args, picture)?;
        questions.extend((asked.questions.iter()).map(|text| question(args, &sources, text)));
    }
    if let [question] = &questions[..] {
        // Before the bundle is loaded in vain.
        let pictures = Pictures::new()?.load(&question.pictures).await?;
        let asker = Asker::open(args, Some(1)).await?;
        let is_whole = answer(&asker, question, &pictures, args.json).await?;
        return Ok(exit_code(is_whole));
    }
    let asker = Asker::open(args, Some(questions.len())).await?;
    let questions = stream::iter(questions).map(|question| Ok(Ok(question)));
    answer_all(&asker, questions, args.json).await
}

/// A picture of the command line, with the frames after it.
fn sources(args: &AskArgs, picture: &Path) -> Result<Vec<Source>> {
    let first = match picture.as_os_str() == "-" {
        true => Source::Here(Named {
            name: "-".to_owned(),
            picture: Picture::read(io::stdin().lock()).context("-")?,
        }),
        false => Source::named(picture.to_owned()),
    };
    let frames = args.frames.iter().map(|frame| Source::named(frame.clone()));
    Ok(std::iter::once(first).chain(frames).collect())
}

fn question(args: &AskArgs, pictures: &[Source], text: &str) -> Question {
    Question {
        line: None,
        id: None,
        pictures: pictures.to_vec(),
        text: text.to_owned(),
        choices: args.choices.clone(),
    }
}

/// A line's question; the choices of the command line are those of lines without their own.
fn with(args: &AskArgs, question: Question) -> Question {
    match question.choices.is_empty() {
        true => Question {
            choices: args.choices.clone(),
            ..question
        },
        false => question,
    }
}

/// Reads questions until there are no more, and answers each before the next is read.
async fn repeat(args: &AskArgs, asked: &Asked) -> Result<ExitCode> {
    let reader = Pictures::new()?;
    let mut shown = Vec::new();
    for picture in &asked.pictures {
        let pictures = reader.load(&sources(args, picture)?).await?;
        for named in &pictures {
            named.picture.check().with_context(|| named.name.clone())?;
        }
        shown.push(pictures);
    }
    let asker = Asker::open(args, Some(1)).await?;
    let mut lines = Lines::open(&[], true)?;
    let mut has_failed = false;
    loop {
        let text = match lines.next("? ").await? {
            Line::Text(text) if text.trim().is_empty() => continue,
            Line::Text(text) => text,
            Line::NotUtf8(text) => {
                has_failed = true;
                for pictures in &shown {
                    let row = question(args, &here(pictures), &text).row();
                    report(&row.failed(NOT_UTF8.to_owned()), args.json)?;
                }
                continue;
            }
            Line::Cancelled => continue,
            Line::Interrupted => return Ok(ExitCode::from(INTERRUPTED)),
            Line::End => break,
        };
        for pictures in &shown {
            let question = question(args, &here(pictures), &text);
            let answer = async {
                match shown.len() {
                    1 => answer(&asker, &question, pictures, args.json).await,
                    _ => tell(&asker, &question, pictures, args.json).await,
                }
            };
            match interruptible(answer).await {
                None => {
                    // Behind the answer that was begun.
                    Printer::new().raw("\n")?;
                    break;
                }
                Some(Ok(is_whole)) => has_failed |= !is_whole,
                Some(Err(Failure::Question(reason) | Failure::Pictures(reason))) => {
                    has_failed = true;
                    report(&question.row().failed(reason), args.json)?;
                }
                Some(Err(failure)) => return Err(failure.into()),
            }
        }
    }
    Ok(exit_code(!has_failed || lines.is_terminal()))
}

/// Pictures that were read, as those of a question.
fn here(pictures: &[Named]) -> Vec<Source> {
    pictures.iter().cloned().map(Source::Here).collect()
}

fn exit_code(is_success: bool) -> ExitCode {
    match is_success {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Answers one question, and tells whether the answer is whole. Its text is printed as it comes, unless it is chosen or
/// part of a row.
async fn answer(
    asker: &Asker,
    question: &Question,
    pictures: &[Named],
    is_json: bool,
) -> Result<bool, Failure> {
    let printer = Printer::new();
    let is_streamed = !is_json && question.choices.is_empty();
    let on_text = |text: &str| match is_streamed {
        true => printer.text(text),
        false => Ok(()),
    };
    let row = asker.ask(question, pictures, on_text).await?;
    if is_json {
        print_json(&row).map_err(Failure::Run)?;
        return Ok(row.error.is_none());
    }
    if !is_streamed {
        printer.text(row.text.as_deref().unwrap_or_default())?;
    }
    printer.raw("\n")?;
    if let Some(error) = &row.error {
        eprintln!("qbridge: {error}");
    }
    Ok(row.error.is_none())
}

/// Answers one of several questions, and tells whether the answer is whole.
async fn tell(
    asker: &Asker,
    question: &Question,
    pictures: &[Named],
    is_json: bool,
) -> Result<bool, Failure> {
    let row = asker.ask(question, pictures, |_| Ok(())).await?;
    report(&row, is_json).map_err(Failure::Run)?;
    Ok(row.error.is_none())
}

/// Answers questions together, and prints their rows in their order.
async fn answer_all(
    asker: &Asker,
    questions: impl Stream<Item = Read>,
    is_json: bool,
) -> Result<ExitCode> {
    let row = async |read: Read| match read? {
        Ok(question) => asker.row(question).await,
        Err(row) => Ok(*row),
    };
    let rows = questions.map(row).buffered(asker.in_flight());
    let mut rows = std::pin::pin!(rows);
    let (mut n, mut failed) = (0u64, 0u64);
    while let Some(row) = rows.next().await {
        let row = row?;
        n += 1;
        failed += u64::from(row.error.is_some());
        report(&row, is_json)?;
    }
    if failed > 0 {
        eprintln!("qbridge: {failed} of {n} questions failed");
    }
    Ok(exit_code(failed == 0))
}

/// Prints a row: as JSON, or picture, question and answer with tabs between, an error on standard error.
fn report(row: &Row, is_json: bool) -> Result<()> {
    if is_json {
        return print_json(row);
    }
    if let Some(error) = &row.error {
        eprintln!("qbridge: {error}");
        return Ok(());
    }
    let columns = [
        row.images.join(" "),
        row.question.clone().unwrap_or_default(),
        row.text.clone().unwrap_or_default(),
    ];
    // Tabs and line breaks tell columns and rows apart, so there are none within.
    let columns = columns.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    Ok(Printer::new().text(&format!("{}\n", columns.join("\t")))?)
}

/// The questions of a file, or of standard input, as they are read on a thread of their own.
fn lines(path: &Path) -> Result<impl Stream<Item = Read> + use<>> {
    let is_stdin = path.as_os_str() == "-";
    let file = match is_stdin {
        true => None,
        false => Some(File::open(path).with_context(|| path.display().to_string())?),
    };
    let (sender, mut receiver) = mpsc::channel(READ);
    std::thread::Builder::new()
        .name("qbridge-lines".to_owned())
        .spawn(move || {
            let reader: Box<dyn BufRead> = match file {
                Some(file) => Box::new(BufReader::new(file)),
                None => Box::new(io::stdin().lock()),
            };
            read_lines(reader, |read| sender.blocking_send(read).is_ok());
        })?;
    Ok(stream::poll_fn(move |context| receiver.poll_recv(context)))
}
