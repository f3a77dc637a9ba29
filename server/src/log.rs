//! Logs that whoever sends a request cannot write lines of their own into.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Writes each event as one line: control characters in it are escaped, for they come from outside. Colours would be too,
/// so turn them off.
pub fn lines<M>(writer: M) -> Lines<M> {
    Lines { writer }
}

/// See [`lines`].
#[derive(Debug, Clone)]
pub struct Lines<M> {
    writer: M,
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Lines<M> {
    type Writer = LineWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self.writer.make_writer())
    }
}

/// Escapes what is written, which is whole events.
#[derive(Debug)]
pub struct LineWriter<W>(W);

impl<W: Write> Write for LineWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let (event, end) = match text.strip_suffix('\n') {
            Some(event) => (event, "\n"),
            None => (&*text, ""),
        };
        let mut line = String::with_capacity(text.len());
        for character in event.chars() {
            match character {
                control if control.is_control() => line.extend(control.escape_default()),
                other => line.push(other),
            }
        }
        line.push_str(end);
        self.0.write_all(line.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
