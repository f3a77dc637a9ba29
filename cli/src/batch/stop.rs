//! Being stopped, and how to go on.

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
    let mut words: Vec<String> = std::env::args_os()
        .filter(|word| word != "--overwrite")
        .map(|word| quoted(&word.to_string_lossy()))
        .collect();
    if !is_resumed {
        words.push("--resume".to_owned());
    }
    format!("stopped; to go on:\n  {}", words.join(" "))
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
