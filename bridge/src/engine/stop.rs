//! Stop strings, which may begin in one token and end in another.

/// Watches an answer for stop strings and holds text back while it may be the
/// beginning of one.
///
/// The answer ends before the stop string that is complete first; where two are
/// complete at the same character, before the longer one. So the outcome does not
/// depend on how the text is cut into tokens.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Empty strings never stop anything.
    pub fn new(stops: Vec<String>) -> Self {
        StopStrings {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// Whether there is nothing to watch for.
    pub fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// Takes new text and returns what can be delivered, and whether the answer
    /// ends with it.
    pub fn push(&mut self, text: String) -> (String, bool) {
        if self.stops.is_empty() {
            return (text, false);
        }
        if text.is_empty() {
            return (text, false);
        }
        self.held.push_str(&text);
        let first = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at)))
            .min();
        if let Some((_, start)) = first {
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), true);
        }
        let kept = self
            .stops
            .iter()
            .map(|stop| longest_beginning(stop, &self.held))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text still held back, when the answer ends without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest proper beginning of `stop` that `text` ends with.
fn longest_beginning(stop: &str, text: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .rev()
        .find(|&length| text.ends_with(&stop[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], tokens: &[&str]) -> (Vec<String>, bool) {
        let mut watch = StopStrings::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut out = Vec::new();
        for token in tokens {
            let (text, stopped) = watch.push((*token).to_owned());
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(watch.finish());
        (out, false)
    }

    #[test]
    fn a_stop_string_over_three_tokens_is_never_seen() {
        let (out, stopped) = run(&["\nUser:"], &["Hello\n", "Us", "er: me"]);
        assert_eq!(out, ["Hello", "", ""]);
        assert!(stopped);
    }

    #[test]
    fn text_that_only_looked_like_a_stop_comes_late_but_comes() {
        let (out, stopped) = run(&["END"], &["the E", "NT", "E", "N"]);
        assert_eq!(out, ["the ", "ENT", "", "", "EN"]);
        assert!(!stopped);
    }

    #[test]
    fn the_stop_complete_first_wins_and_the_longer_of_two() {
        assert_eq!(run(&["abcd", "bc"], &["xabcd"]).0, ["xa"]);
        assert_eq!(run(&["bc", "abc"], &["xabc"]).0, ["x"]);
        assert_eq!(
            run(&[""], &["x"]),
            (vec!["x".to_owned(), String::new()], false)
        );
    }

    #[test]
    fn stops_and_text_beyond_ascii() {
        assert_eq!(
            run(&["é!"], &["caf", "é", "!"]),
            (vec!["caf".into(), String::new(), String::new()], true)
        );
    }

    proptest! {
        #[test]
        fn the_outcome_does_not_depend_on_the_tokens(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let singly: Vec<&str> = characters.iter().map(String::as_str).collect();
            let (one_by_one, stopped) = run(&stops, &singly);

            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(singly.len() + 1)).collect();
            cuts.extend([0, singly.len()]);
            cuts.sort_unstable();
            let tokens: Vec<String> = cuts.windows(2).map(|cut| singly[cut[0]..cut[1]].concat()).collect();
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            let (in_tokens, stopped_in_tokens) = run(&stops, &tokens);

            prop_assert_eq!(stopped, stopped_in_tokens);
            prop_assert_eq!(one_by_one.concat(), in_tokens.concat());
            if !stopped {
                prop_assert_eq!(one_by_one.concat(), text);
            }
        }
    }
}
