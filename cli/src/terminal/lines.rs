//! What is typed, or comes from a pipe, line by line.

use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::{DefaultHistory, History};
use rustyline::validate::Validator;
use rustyline::{Config, Context, Editor, Helper};
use tokio::sync::mpsc;

/// Lines that are kept of what was typed.
const MAX_HISTORY: usize = 1000;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its end.
    Text(String),
    /// A line that is not UTF-8, as far as it can be read.
    NotUtf8(String),
    /// Ctrl-C instead of the line that was begun.
    Cancelled,
    /// SIGINT while a pipe was waited for.
    Interrupted,
    /// Nothing more comes.
    End,
}

/// Standard input, line by line.
pub enum Lines {
    /// A terminal, with editing and history.
    Editor {
        editor: Box<Editor<Words, DefaultHistory>>,
        history: Option<PathBuf>,
    },
    /// Anything else.
    Pipe(mpsc::Receiver<io::Result<Line>>),
}

impl Lines {
    /// Standard input. On a terminal, words that begin a line are completed from `words`, and what is typed is kept where
    /// `history` says so.
    ///
    /// # Errors
    /// The terminal cannot be used.
    pub fn open(words: &'static [&'static str], history: bool) -> Result<Lines> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            let (sender, receiver) = mpsc::channel(1);
            std::thread::Builder::new()
                .name("qbridge-lines".to_owned())
                .spawn(move || {
                    let mut lines = io::stdin().lock().split(b'\n');
                    while lines
                        .next()
                        .is_some_and(|line| sender.blocking_send(line.map(read)).is_ok())
                    {
                    }
                })?;
            return Ok(Lines::Pipe(receiver));
        }
        let config = Config::builder()
            .auto_add_history(true)
            .max_history_size(MAX_HISTORY)
            .and_then(|config| config.history_ignore_dups(true))
            .context("terminal")?
            .build();
        let mut editor = Editor::with_config(config).context("terminal")?;
        editor.set_helper(Some(Words {
            words,
            files: FilenameCompleter::new(),
        }));
        let history = history.then(history_file).flatten();
        if let Some(path) = &history {
            // There is none at first, and one that cannot be read is no reason not to talk.
            if let Err(error) = editor.load_history(path) {
                tracing::debug!(%error, path = %path.display(), "no history");
            }
        }
        Ok(Lines::Editor {
            editor: Box::new(editor),
            history,
        })
    }

    /// Whether somebody types.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Lines::Editor { .. })
    }

    /// The next line. `prompt` stands before it on a terminal.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn next(&mut self, prompt: &str) -> Result<Line> {
        match self {
            // Nothing else is to be done while somebody types.
            Lines::Editor { editor, history } => match editor.readline(prompt) {
                Ok(line) => {
                    if let Some(path) = history
                        && let Err(error) = keep(editor.history_mut(), path)
                    {
                        tracing::debug!(%error, path = %path.display(), "history not kept");
                    }
                    Ok(Line::Text(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Line::Cancelled),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("terminal"),
            },
            Lines::Pipe(lines) => tokio::select! {
                line = lines.recv() => match line {
                    Some(line) => line.context("standard input"),
                    None => Ok(Line::End),
                },
                _ = tokio::signal::ctrl_c() => Ok(Line::Interrupted),
            },
        }
    }
}

/// A line of a pipe, without the end that Windows gives it.
fn read(mut line: Vec<u8>) -> Line {
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    match String::from_utf8(line) {
        Ok(line) => Line::Text(line),
        Err(error) => Line::NotUtf8(String::from_utf8_lossy(error.as_bytes()).into_owned()),
    }
}

/// Adds the last line to the file; other chats may be adding theirs.
fn keep(history: &mut DefaultHistory, path: &Path) -> rustyline::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    history.append(path)
}

/// Where the XDG base directory specification has what a user typed.
fn history_file() -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .and_then(absolute)
        .or_else(|| Some(std::env::home_dir()?.join(".local/state")))?;
    Some(state.join("qbridge").join("history"))
}

/// Completes words at the beginning of a line, and files behind them.
pub struct Words {
    words: &'static [&'static str],
    files: FilenameCompleter,
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = line.get(..at).unwrap_or(line);
        if !typed.starts_with('/') {
            return Ok((at, Vec::new()));
        }
        if typed.contains(char::is_whitespace) {
            return self.files.complete_path(line, at);
        }
        let words = self.words.iter().filter(|word| word.starts_with(typed));
        let pair = |word: &&str| Pair {
            display: (*word).to_owned(),
            replacement: (*word).to_owned(),
        };
        Ok((0, words.map(pair).collect()))
    }
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_pipe_need_not_be_utf8() {
        let text = |line: &str| Line::Text(line.to_owned());
        assert_eq!(read("ein Bär".into()), text("ein Bär"));
        assert_eq!(read(b"what?\r".to_vec()), text("what?"));
        assert_eq!(read(Vec::new()), text(""));
        let line = Line::NotUtf8("B\u{fffd}r".to_owned());
        assert_eq!(read(b"B\xe4r".to_vec()), line);
    }
}
