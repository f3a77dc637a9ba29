//! Being stopped, and how to go on.

use std::ffi::{OsStr, OsString};

use tokio::sync::oneshot;

use crate::commands::INTERRUPTED;
use crate::signals;

/// Asks for the end at the first signal, and ends at the second.
pub async fn watch_signals(stop: oneshot::Sender<()>) {
    signals::stop().await;
    eprintln!("stopping when what is in flight is done; once more stops at once");
    let _ = stop.send(());
    signals::stop().await;
    std::process::exit(INTERRUPTED.into());
}

/// What to say to whoever stopped a run. Without anything written, there is nothing to go on with.
pub fn how_to_go_on(is_written: bool, is_resumed: bool) -> String {
    if !is_written {
        return "stopped; with --out FILE, a run can be gone on with".to_owned();
    }
    let words = to_go_on(std::env::args_os(), is_resumed);
    format!("stopped; to go on:\n  {}", words.join(" "))
}

/// The command that goes on with what `args` began. Behind `--` there are no flags, only names.
fn to_go_on(args: impl Iterator<Item = OsString>, is_resumed: bool) -> Vec<String> {
    let args: Vec<OsString> = args.collect();
    let end = args.iter().position(|word| word == "--");
    let (flags, names) = args.split_at(end.unwrap_or(args.len()));
    let flags = flags.iter().filter(|word| *word != "--overwrite");
    let mut words: Vec<String> = flags.map(|word| quoted(word)).collect();
    if !is_resumed {
        words.push("--resume".to_owned());
    }
    words.extend(names.iter().map(|word| quoted(word)));
    words
}

/// A word as a shell reads it.
fn quoted(word: &OsStr) -> String {
    let Some(word) = word.to_str() else {
        // Bytes that are no text have numbers, in octal.
        let bytes = word.as_encoded_bytes().iter();
        let escaped = bytes.map(|&byte| match byte {
            b' '..=b'~' if !b"'\\".contains(&byte) => char::from(byte).to_string(),
            byte => format!("\\{byte:03o}"),
        });
        return format!("$'{}'", escaped.collect::<String>());
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_goes_on_has_its_flag_before_the_names() {
        let go_on = |args: &[&str], is_resumed| {
            to_go_on(args.iter().map(OsString::from), is_resumed).join(" ")
        };
        assert_eq!(
            go_on(
                &["qbridge", "caption", "demo", "it's", "--overwrite"],
                false
            ),
            r"qbridge caption demo 'it'\''s' --resume"
        );
        assert_eq!(
            go_on(
                &["qbridge", "--json", "--", "-odd.png", "--overwrite"],
                false
            ),
            "qbridge --json --resume -- -odd.png --overwrite"
        );
        assert_eq!(
            go_on(&["q", "--resume", "--", "a"], true),
            "q --resume -- a"
        );
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_text_are_quoted_too() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(
            quoted(OsStr::from_bytes(b"caf\xe9 '.png")),
            r"$'caf\351 \047.png'"
        );
    }
}
