//! Errors as they are told, in one line.

use anyhow::Error;

/// An error with its causes behind colons, each once: some errors tell theirs themselves.
pub fn told(error: &Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.ends_with(&cause) {
            told.push_str(": ");
            told.push_str(&cause);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let source = || io::Error::other("no such file");
        let path = "a.png".into();
        let of_bundle = qbridge::Error::Io {
            path,
            source: source(),
        };
        let error = Error::from(of_bundle).context("the picture");
        assert_eq!(told(&error), "the picture: a.png: no such file");
        let error = Error::from(source()).context("a.png");
        assert_eq!(told(&error), "a.png: no such file");
    }
}
