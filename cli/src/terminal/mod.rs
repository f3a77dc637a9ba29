//! Talking with whoever, or whatever, is at the other end.
//!
//! - `lines`: what is typed, or comes from a pipe
//! - `pictures`: pictures drawn with escape sequences

mod lines;
mod pictures;

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

pub use lines::{Line, Lines};
pub use pictures::Drawing;

/// Why a line is not taken.
pub const NOT_UTF8: &str = "the line is not UTF-8";

/// Text for people or programs, on standard output.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    is_terminal: bool,
}

impl Printer {
    /// Standard output, as it is.
    pub fn new() -> Printer {
        Printer {
            is_terminal: io::stdout().is_terminal(),
        }
    }

    /// Whether people see what is printed.
    pub fn is_terminal(self) -> bool {
        self.is_terminal
    }

    /// Prints a piece of an answer at once. A model may say anything, so a terminal is told none of its control characters.
    ///
    /// # Errors
    /// Nobody reads any more, or the disk is full.
    pub fn text(self, text: &str) -> io::Result<()> {
        let text = match self.is_terminal {
            true => printable(text),
            false => Cow::Borrowed(text),
        };
        self.raw(&text)
    }

    /// Prints escape sequences of our own.
    ///
    /// # Errors
    /// Those of [`Printer::text`].
    pub fn raw(self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

/// The text without control characters other than tabs and line breaks.
fn printable(text: &str) -> Cow<'_, str> {
    let is_printable = |c: char| !c.is_control() || c == '\n' || c == '\t';
    match text.chars().all(is_printable) {
        true => Cow::Borrowed(text),
        false => Cow::Owned(text.chars().filter(|c| is_printable(*c)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_no_escape_sequences() {
        assert_eq!(printable("ein Bär\n\t🐻"), "ein Bär\n\t🐻");
        assert_eq!(printable("\u{1b}]0;title\u{7}a\u{9b}2Jb\r"), "]0;titlea2Jb");
    }
}
