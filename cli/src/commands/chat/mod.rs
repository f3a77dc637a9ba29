//! `qbridge chat`: a conversation about pictures.
//!
//! - `conversation`: what was said and shown
//! - `commands`: lines that begin with `/`

mod commands;
mod conversation;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use qbridge::{Generation, Model, ModelOptions};

use self::commands::{COMMANDS, Command, HELP};
use self::conversation::{Conversation, Part};
use super::answers::{self, Failure, Named, Row, generation};
use super::{INTERRUPTED, model_options, print_json};
use crate::args::ChatArgs;
use crate::input;
use crate::signals::interruptible;
use crate::terminal::{Drawing, Line, Lines, NOT_UTF8, Printer};
use crate::told::told;

/// Columns of a terminal that does not tell its size.
const COLUMNS: u16 = 80;

/// Runs the command.
pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async { Chat::open(args).await?.run().await })
}

struct Chat<'a> {
    args: &'a ChatArgs,
    model: Model,
    generation: Generation,
    lines: Lines,
    printer: Printer,
    drawing: Option<Drawing>,
    conversation: Conversation,
    /// Pictures that are shown with what is said next.
    shown: Vec<Named>,
    has_failed: bool,
}

impl<'a> Chat<'a> {
    async fn open(args: &'a ChatArgs) -> Result<Chat<'a>> {
        let (conversation, mut pictures) = match &args.load {
            Some(path) => load_shown(path)?,
            None => (Conversation::default(), Vec::new()),
        };
        for path in &args.pictures {
            pictures.push(open_picture(path)?);
        }
        let options = ModelOptions {
            num_beams: args.generation.num_beams.map(usize::from),
            ..model_options(&args.engine, 1)
        };
        let printer = Printer::new();
        let draws = printer.is_terminal() && !args.no_pictures;
        let drawing = draws
            .then(|| Drawing::detect(|name| std::env::var(name).ok()))
            .flatten();
        let mut chat = Chat {
            model: answers::open(&args.bundle, options).await?,
            generation: generation(&args.generation),
            lines: Lines::open(&COMMANDS, !args.no_history)?,
            args,
            printer,
            drawing,
            conversation,
            shown: Vec::new(),
            has_failed: false,
        };
        for picture in pictures {
            chat.show(picture)?;
        }
        Ok(chat)
    }

    async fn run(mut self) -> Result<ExitCode> {
        if self.lines.is_terminal() {
            eprintln!(
                "{}: /help tells what can be typed.",
                self.model.manifest().name
            );
            if self.conversation.len() > 0 {
                eprintln!("It goes on behind {} messages.", self.conversation.len());
            }
        }
        loop {
            let line = match self.lines.next("> ").await? {
                Line::Text(line) => line,
                Line::NotUtf8(line) => {
                    self.fail(&line, NOT_UTF8.to_owned())?;
                    continue;
                }
                Line::Cancelled => continue,
                Line::Interrupted => return Ok(ExitCode::from(INTERRUPTED)),
                Line::End => break,
            };
            let done = match Command::parse(&line) {
                Some(Ok(Command::Quit)) => break,
                Some(Ok(command)) => self.obey(command),
                Some(Err(reason)) => Err(Failure::Question(reason)),
                None => self.say(&line).await,
            };
            match done {
                Ok(()) => {}
                Err(Failure::Question(reason) | Failure::Pictures(reason)) => {
                    self.fail(&line, reason)?;
                }
                Err(Failure::Run(error)) => return Err(error),
            }
        }
        Ok(match self.has_failed && !self.lines.is_terminal() {
            true => ExitCode::FAILURE,
            false => ExitCode::SUCCESS,
        })
    }

    /// Tells why a line came to nothing; the next may come to something.
    fn fail(&mut self, line: &str, reason: String) -> Result<()> {
        self.has_failed = true;
        match self.args.json {
            true => print_json(&self.row(line).failed(reason)),
            false => {
                eprintln!("qbridge: {reason}");
                Ok(())
            }
        }
    }

    fn row(&self, line: &str) -> Row {
        Row {
            images: self.shown.iter().map(|named| named.name.clone()).collect(),
            question: Some(line.to_owned()),
            ..Row::default()
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), Failure> {
        let done = match command {
            Command::Image(path) => open_picture(&path).and_then(|named| self.show(named)),
            Command::Save(path) => self.save(&path),
            Command::Reset => {
                self.conversation = Conversation::default();
                self.shown.clear();
                Ok(())
            }
            Command::Help => {
                // Not an answer.
                eprintln!("{HELP}");
                Ok(())
            }
            Command::Quit => Ok(()),
        };
        done.map_err(|error| Failure::Question(told(&error)))
    }

    /// Shows a picture with what is said next.
    fn show(&mut self, named: Named) -> Result<()> {
        if let Some(drawing) = self.drawing {
            let columns = console::Term::stdout()
                .size_checked()
                .map_or(COLUMNS, |(_, columns)| columns);
            let drawn = drawing.draw(named.picture.bytes(), columns.into())?;
            self.printer.raw(&drawn)?;
        }
        self.shown.push(named);
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<()> {
        check_save(path)?;
        let mut conversation = self.conversation.clone();
        if !self.shown.is_empty() {
            // Nothing is said of them yet.
            conversation.say(self.shown.iter().map(part).collect());
        }
        let text = conversation.to_json(&self.model.manifest().name)?;
        fs::write(path, text).with_context(|| path.display().to_string())?;
        if self.lines.is_terminal() {
            eprintln!("{} messages in {}", conversation.len(), path.display());
        }
        Ok(())
    }

    /// A turn of each.
    async fn say(&mut self, line: &str) -> Result<(), Failure> {
        let is_blank = line.trim().is_empty();
        if is_blank && self.shown.is_empty() {
            return Ok(());
        }
        let pictures = self.shown.iter().map(part);
        let text = (!is_blank).then(|| Part::Text(line.to_owned()));
        self.conversation.say(pictures.chain(text).collect());
        let row = self.row(line);
        let shown = std::mem::take(&mut self.shown);
        let mut said = String::new();
        let (printer, is_json) = (self.printer, self.args.json);
        let request = self
            .conversation
            .request()
            .generation(self.generation.clone());
        let answer = answers::answer(&self.model, request, &shown, |text| {
            said.push_str(text);
            match is_json {
                true => Ok(()),
                false => printer.text(text),
            }
        });
        let answer = match interruptible(answer).await {
            Some(Ok(answer)) => Some(answer),
            Some(Err(failure)) => {
                self.conversation.take_back();
                // Pictures that are at fault would fail each line that follows.
                if !matches!(failure, Failure::Pictures(_)) {
                    self.shown = shown;
                }
                return Err(failure);
            }
            None => None,
        };
        if !is_json {
            printer.raw("\n")?;
        }
        match said.trim() {
            // Stopped before it began.
            "" if answer.is_none() => {
                self.conversation.take_back();
                self.shown = shown;
            }
            said => self.conversation.answered(said),
        }
        if is_json {
            let row = match answer {
                Some(answer) => row.answered(answer),
                None => Row {
                    text: Some(said),
                    error: Some("stopped".to_owned()),
                    ..row
                },
            };
            print_json(&row).map_err(Failure::Run)?;
        }
        Ok(())
    }
}

/// Reads a picture that can be decoded, so that none is found to be broken in the middle of a conversation.
fn open_picture(path: &Path) -> Result<Named> {
    if path.as_os_str() == "-" {
        bail!("-: standard input is what is said; name a file");
    }
    let name = path.display().to_string();
    let picture = input::picture(path)?;
    picture.check().with_context(|| name.clone())?;
    Ok(Named { name, picture })
}

fn load(path: &Path) -> Result<Conversation> {
    let named = || path.display().to_string();
    let file = File::open(path).with_context(named)?;
    Conversation::from_json(BufReader::new(file))
        .map_err(|reason| anyhow!(reason))
        .with_context(named)
}

/// A conversation, and the pictures of which nothing was said yet.
fn load_shown(path: &Path) -> Result<(Conversation, Vec<Named>)> {
    let mut conversation = load(path)?;
    let pictures = conversation.take_shown().into_iter();
    let shown = pictures.map(|picture| Named {
        name: path.display().to_string(),
        picture,
    });
    let shown = shown.collect::<Vec<_>>();
    for named in &shown {
        named.picture.check().with_context(|| named.name.clone())?;
    }
    Ok((conversation, shown))
}

/// A picture as what is said holds it.
fn part(named: &Named) -> Part {
    Part::Picture(named.picture.clone())
}

/// Refuses to write over what is no saved conversation, such as the picture itself. Devices and pipes lose nothing.
fn check_save(path: &Path) -> Result<()> {
    let holds_something = |metadata: fs::Metadata| metadata.is_file() && metadata.len() > 0;
    if path.metadata().is_ok_and(holds_something) && load(path).is_err() {
        bail!(
            "{} is there and holds no conversation: /save another file, or remove it first",
            path.display()
        );
    }
    Ok(())
}
