//! Bytes of tokens to text, one token at a time.

/// Turns the bytes of consecutive tokens into text and never splits a character.
///
/// What [`Detokenizer::push`] and [`Detokenizer::finish`] return, put together, is
/// `String::from_utf8_lossy` of all bytes: invalid bytes become U+FFFD, and so does
/// a character that the answer's end cuts off.
///
/// SentencePiece vocabularies write the space before a word into the word's token,
/// so the first token of an answer would begin with a space. Decoding the whole
/// answer drops that one space (the `Strip` step of the `tokenizers` decoder,
/// `remove_space` in `llama_detokenize`), and so does this, where
/// `strip_leading_space` says that the vocabulary is of that kind.
#[derive(Debug, Clone, Default)]
pub struct Detokenizer {
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
    strip_leading_space: bool,
}

impl Detokenizer {
    /// For one answer.
    pub fn new(strip_leading_space: bool) -> Self {
        Detokenizer {
            pending: Vec::new(),
            strip_leading_space,
        }
    }

    /// Appends to `text` what became readable with these bytes.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        let bytes = match bytes {
            [] => return,
            [b' ', rest @ ..] if std::mem::take(&mut self.strip_leading_space) => rest,
            bytes => bytes,
        };
        self.strip_leading_space = false;
        self.pending.extend_from_slice(bytes);
        let mut incomplete = 0;
        let length = self.pending.len();
        let mut seen = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            seen += chunk.valid().len() + invalid.len();
            if invalid.is_empty() {
                continue;
            }
            // Bytes at the very end may be the start of a character still to come.
            let may_continue = seen == length
                && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if may_continue {
                incomplete = invalid.len();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..length - incomplete);
    }

    /// Appends U+FFFD to `text` if a character stayed incomplete.
    pub fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(tokens: &[&[u8]], strip: bool) -> (Vec<String>, String) {
        let mut detokenizer = Detokenizer::new(strip);
        let mut steps = Vec::new();
        for token in tokens {
            let mut text = String::new();
            detokenizer.push(token, &mut text);
            steps.push(text);
        }
        let mut last = String::new();
        detokenizer.finish(&mut last);
        (steps, last)
    }

    #[test]
    fn a_character_in_byte_tokens_comes_whole() {
        let (steps, last) = decode(&[b"a\xf0", b"\x9f", b"\x98", b"\x80b"], false);
        assert_eq!(steps, ["a", "", "", "😀b"]);
        assert_eq!(last, "");
    }

    #[test]
    fn what_stays_incomplete_becomes_one_replacement_character() {
        let (steps, last) = decode(&[b"caf\xc3"], false);
        assert_eq!(steps, ["caf"]);
        assert_eq!(last, "\u{fffd}");
        // A lead byte followed by something that cannot continue it is not held back.
        let (steps, last) = decode(&[b"\xc3", b"x"], false);
        assert_eq!(steps, ["", "\u{fffd}x"]);
        assert_eq!(last, "");
    }

    #[test]
    fn one_space_is_dropped_at_the_start_and_only_there() {
        assert_eq!(decode(&[b"  Paris", b" is"], true).0, [" Paris", " is"]);
        assert_eq!(decode(&[b"", b" Paris"], true).0, ["", "Paris"]);
        assert_eq!(decode(&[b"P", b" a"], true).0, ["P", " a"]);
        assert_eq!(decode(&[b" Paris"], false).0, [" Paris"]);
    }

    proptest! {
        #[test]
        fn pieces_together_are_the_lossy_decoding_of_the_whole(
            // Bytes that make many multi-byte sequences, whole and broken.
            tokens in prop::collection::vec(
                prop::collection::vec(
                    prop_oneof![
                        Just(b'a'), Just(0xe2), Just(0x82), Just(0xac), Just(0xf0),
                        Just(0x9f), Just(0x98), Just(0x80), Just(0xc3), any::<u8>(),
                    ],
                    0..5,
                ),
                0..12,
            )
        ) {
            let all = tokens.concat();
            let parts: Vec<&[u8]> = tokens.iter().map(Vec::as_slice).collect();
            let (steps, last) = decode(&parts, false);
            prop_assert_eq!(steps.concat() + &last, String::from_utf8_lossy(&all));
        }
    }
}
