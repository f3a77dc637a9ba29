//! Joining text for the tokenizer without letting users write special tokens.

use crate::Segment;
use crate::segment::Segments;
use aho_corasick::{AhoCorasick, MatchKind};
use std::ops::Range;

/// Joins neighbouring text segments into as few pieces as can be tokenized one by one.
///
/// Tokenizers merge across the border between a template's text and a user's (`user:` and ` hello`, the space that a
/// sentencepiece vocabulary puts before a text's first word), so tokenizing segments apart would give other tokens than the
/// reference, which tokenizes the whole prompt. `special_tokens` are the texts of the vocabulary's special tokens
/// (`<|im_start|>`). Where the user's text has a part in none of them, which is nearly always, all neighbouring text
/// becomes one piece with `special: true`. What a user typed of one becomes a piece of its own with `special: false`;
/// what is then left to parse holds only special tokens of the template.
pub fn join(segments: Vec<Segment>, special_tokens: &[impl AsRef<str>]) -> Vec<Segment> {
    let patterns: Vec<&str> = special_tokens
        .iter()
        .map(AsRef::as_ref)
        .filter(|text| !text.is_empty())
        .collect();
    let finder = AhoCorasick::builder()
        .match_kind(MatchKind::Standard)
        .build(&patterns)
        .ok();
    let mut joined = Segments::default();
    let mut run: Vec<(String, bool)> = Vec::new();
    for segment in segments {
        match segment {
            Segment::Text { text, special } => run.push((text, special)),
            other => {
                join_run(&run, finder.as_ref(), &mut joined);
                run.clear();
                joined.push(other);
            }
        }
    }
    join_run(&run, finder.as_ref(), &mut joined);
    joined.into_vec()
}

fn join_run(run: &[(String, bool)], finder: Option<&AhoCorasick>, joined: &mut Segments) {
    let any_special = run.iter().any(|(_, special)| *special);
    // A finder that cannot be built (too many tokens for its memory limit) leaves the segments as they are: safe, if
    // with other borders between tokens.
    let Some(finder) = finder.filter(|_| any_special) else {
        return run
            .iter()
            .for_each(|(text, special)| joined.push_text(text, *special));
    };
    let whole: String = run.iter().map(|(text, _)| text.as_str()).collect();
    let mut user: Vec<Range<usize>> = Vec::new();
    let mut end = 0;
    for (text, special) in run {
        let begin = end;
        end += text.len();
        if !special {
            user.push(begin..end);
        }
    }
    // The bytes of user text that are part of a special token's text, in order; ranges may overlap.
    let mut forged: Vec<Range<usize>> = Vec::new();
    for found in finder.find_overlapping_iter(&whole) {
        let first = user.partition_point(|text| text.end <= found.start());
        for text in user[first..]
            .iter()
            .take_while(|text| text.start < found.end())
        {
            forged.push(text.start.max(found.start())..text.end.min(found.end()));
        }
    }
    forged.sort_by_key(|range| range.start);
    let mut done = 0;
    for range in forged {
        let begin = range.start.max(done);
        if begin >= range.end {
            continue;
        }
        joined.push_text(&whole[done..begin], true);
        joined.push_text(&whole[begin..range.end], false);
        done = range.end;
    }
    joined.push_text(&whole[done..], true);
}
