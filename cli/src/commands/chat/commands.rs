//! Lines that begin with `/`.

use std::path::PathBuf;

/// All of them, as they are typed.
pub const COMMANDS: [&str; 5] = ["/image ", "/reset", "/save ", "/help", "/quit"];

/// What `/help` prints.
pub const HELP: &str = "\
/image PATH   show a picture with what you say next; an empty line has it described
/reset        forget everything that was said and shown
/save FILE    write the conversation as JSON, for --load and for OpenAI's API
/help         this
/quit         end, as Ctrl-D does
Ctrl-C stops an answer; what was said of it counts. A space before / sends the line to the model.";

/// What a line asks of the chat.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Show a picture.
    Image(PathBuf),
    /// Begin anew.
    Reset,
    /// Write the conversation.
    Save(PathBuf),
    /// Tell the commands.
    Help,
    /// End.
    Quit,
}

impl Command {
    /// The command of a line; none where it goes to the model.
    ///
    /// # Errors
    /// There is no such command, or it lacks its file.
    pub fn parse(line: &str) -> Option<Result<Command, String>> {
        let line = line.strip_prefix('/')?;
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let file = |command: fn(PathBuf) -> Command| match rest {
            "" => Err(format!("/{name} needs a file")),
            file => Ok(command(unquoted(file))),
        };
        let alone = |command| match rest {
            "" => Ok(command),
            _ => Err(format!("/{name} takes nothing behind it")),
        };
        Some(match name {
            "image" => file(Command::Image),
            "save" => file(Command::Save),
            "reset" => alone(Command::Reset),
            "help" => alone(Command::Help),
            "quit" => alone(Command::Quit),
            _ => Err(format!("there is no /{name}; /help lists what there is")),
        })
    }
}

/// A path as terminals paste a file that is dropped on them: in quotes, or with backslashes.
fn unquoted(path: &str) -> PathBuf {
    for quote in ['\'', '"'] {
        let inner = path
            .strip_prefix(quote)
            .and_then(|path| path.strip_suffix(quote));
        if let Some(inner) = inner {
            return inner.into();
        }
    }
    if let Some(rest) = path.strip_prefix("~/")
        && let Some(home) = std::env::home_dir()
    {
        return home.join(unescaped(rest));
    }
    unescaped(path).into()
}

/// Without the backslashes of a shell; where backslashes part directories, they stay.
fn unescaped(path: &str) -> String {
    if cfg!(windows) {
        return path.to_owned();
    }
    let mut unescaped = String::with_capacity(path.len());
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => unescaped.extend(chars.next()),
            c => unescaped.push(c),
        }
    }
    unescaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn commands_are_told_from_what_is_said() {
        for said in ["what is this?", " /image x", "", "a/b"] {
            assert_eq!(Command::parse(said), None, "{said:?}");
        }
        for (line, command) in [
            ("/image cat.png", Command::Image("cat.png".into())),
            ("/image  my cat.png ", Command::Image("my cat.png".into())),
            ("/image 'my cat.png'", Command::Image("my cat.png".into())),
            (
                "/image my\\ cat\\(1\\).png",
                Command::Image("my cat(1).png".into()),
            ),
            ("/save \"a b.json\"", Command::Save("a b.json".into())),
            ("/reset", Command::Reset),
            ("/help ", Command::Help),
            ("/quit", Command::Quit),
        ] {
            assert_eq!(Command::parse(line).unwrap().unwrap(), command, "{line:?}");
        }
        for (line, told) in [
            ("/imge cat.png", "there is no /imge"),
            ("/", "there is no /"),
            ("/image", "/image needs a file"),
            ("/save  ", "/save needs a file"),
            ("/quit now", "/quit takes nothing"),
        ] {
            let error = Command::parse(line).unwrap().unwrap_err();
            assert!(error.contains(told), "{line:?}: {error}");
        }
    }
}
