//! Rows that requests share because they begin alike: the answers stay the same, only
//! the work becomes less.

use super::beams::{beam_cases, settings};
use super::*;

fn cached(answer: &Answer) -> usize {
    answer.summary.usage.cached_tokens
}

fn rows_of(parts: &[PromptPart]) -> usize {
    let n_embd = model().n_embd();
    let rows = |part: &PromptPart| match part {
        PromptPart::Tokens(ids) => ids.len(),
        PromptPart::Embeddings(values) => values.len() / n_embd,
    };
    parts.iter().map(rows).sum()
}

/// Text, a picture, text.
fn framed(picture: usize, text: &[i32]) -> Vec<PromptPart> {
    vec![
        PromptPart::Tokens(vec![30, 31, 32, 33, 34]),
        // A copy: what is shared is known by its content.
        PromptPart::Embeddings(cases()[picture].soft_prompt.to_vec().into()),
        PromptPart::Tokens(text.to_vec()),
    ]
}

/// The setting of five beams, and its place among the settings.
fn five_beams() -> (usize, Sampling) {
    let five = |sampling: &Sampling| sampling.num_beams == 5;
    let at = settings().iter().position(five).unwrap();
    (at, settings()[at])
}

/// Two cases of different pictures.
pub(super) fn two_pictures() -> (usize, usize) {
    let cases = cases();
    let differs = |case: &Case| case.soft_prompt != cases[0].soft_prompt;
    (0, cases.iter().position(differs).unwrap())
}

#[test]
fn a_prompt_seen_before_costs_one_row_and_answers_the_same() {
    let engine = engine(options());
    for case in cases() {
        let first = ask(&engine, case.parts(), |_| {});
        let before = engine.activity();
        let again = ask(&engine, case.parts(), |_| {});
        let after = engine.activity();
        assert_eq!(first.ids, case.answer_ids);
        assert_eq!(again.ids, case.answer_ids);
        let n_prompt = rows_of(&case.parts());
        assert_eq!(cached(&again), n_prompt - 1);
        assert_eq!(after.prompt_rows - before.prompt_rows, 1);
        assert_eq!(after.reused_rows - before.reused_rows, n_prompt as u64 - 1);
    }
}

#[test]
fn what_comes_together_is_computed_once() {
    let engine = engine(EngineOptions {
        slots: 4,
        ..options()
    });
    let text: Vec<i32> = (50..60).collect();
    let (one, other) = two_pictures();
    let prompts = [one, one, other, one, other].map(|picture| framed(picture, &text));
    let receivers = prompts
        .clone()
        .map(|prompt| submit(&engine, prompt, |_| {}));
    let answers = receivers.map(|receiver| read(receiver).unwrap());
    let whole = rows_of(&prompts[0]) - 1;
    assert_eq!(answers.each_ref().map(cached), [0, whole, 5, whole, whole]);
    for (answer, prompt) in answers.iter().zip(prompts) {
        let fresh = self::engine(options());
        assert_eq!(answer.ids, ask(&fresh, prompt, |_| {}).ids);
    }
}

#[test]
fn a_second_turn_computes_what_is_new() {
    let with = engine(options());
    let without = engine(EngineOptions {
        prefix_sequences: 0,
        ..options()
    });
    for case in cases() {
        let first = ask(&with, case.parts(), |_| {});
        let mut second = case.parts();
        second.push(PromptPart::Tokens(first.ids.clone()));
        second.push(PromptPart::Tokens((40..52).collect()));
        let before = with.activity().prompt_rows;
        let reused = ask(&with, second.clone(), |_| {});
        let computed = ask(&without, second.clone(), |_| {});
        assert_eq!(reused.ids, computed.ids);
        assert_eq!(cached(&computed), 0);
        // The last token of the first answer was drawn and never computed.
        let new = 12 + 1;
        assert_eq!(cached(&reused), rows_of(&second) - new);
        assert_eq!(with.activity().prompt_rows - before, new as u64);
    }
    assert_eq!(without.activity().kept_sequences, 0);
}

#[test]
fn other_pictures_share_the_text_before_them_alone() {
    let engine = engine(options());
    let (one, other) = two_pictures();
    let text: Vec<i32> = (50..60).collect();
    let first = ask(&engine, framed(one, &text), |_| {});
    let second = ask(&engine, framed(other, &text), |_| {});
    let third = ask(&engine, framed(one, &text), |_| {});
    assert_eq!([cached(&first), cached(&second)], [0, 5]);
    assert_eq!(cached(&third), rows_of(&framed(one, &text)) - 1);
    assert_eq!(first.ids, third.ids);
    let fresh = self::engine(options());
    assert_eq!(ask(&fresh, framed(other, &text), |_| {}).ids, second.ids);
}

/// LMCache cut its digests to 16 and to 64 bits and took what had such a key for the same. Rows that share the first or
/// the last 16 bits of their digest, or their floats in another order, are others here.
#[test]
fn lmcache_3301_and_4783_rows_are_known_by_a_long_digest() {
    let n_embd = model().n_embd();
    let picture = cases()[0].soft_prompt.to_vec();
    let digest = |row: &[f32]| {
        let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
        <[u8; 32]>::from(Sha256::digest(bytes))
    };
    let first = digest(&picture[..n_embd]);
    let like = |fits: &dyn Fn([u8; 32]) -> bool| {
        let mut other = picture.clone();
        // Another value that is as good as the same.
        let found = (1..10_000_000u32).any(|step| {
            other[0] = f32::from_bits(picture[0].to_bits() ^ (step & 0xfff));
            other[1] = f32::from_bits(picture[1].to_bits() ^ (step >> 12));
            fits(digest(&other[..n_embd]))
        });
        assert!(found);
        other
    };
    let mut turned = picture.clone();
    turned[..n_embd].reverse();
    let mut swapped = picture.clone();
    swapped.rotate_left(n_embd);
    let others = [
        like(&|other| other[..2] == first[..2]),
        like(&|other| other[30..] == first[30..]),
        turned,
        swapped,
    ];
    let engine = engine(options());
    let framed = |rows: &[f32]| {
        vec![
            PromptPart::Tokens(vec![30, 31, 32]),
            PromptPart::Embeddings(rows.to_vec().into()),
            PromptPart::Tokens(vec![40, 41]),
        ]
    };
    ask(&engine, framed(&picture), |_| {});
    for rows in &others {
        let answer = ask(&engine, framed(rows), |_| {});
        assert_eq!(cached(&answer), 3, "the text before it alone");
        let alone = ask(&engine, framed(rows), |sequence| {
            sequence.cache_prompt = false
        });
        assert_eq!(answer.ids, alone.ids);
    }
}

#[test]
fn beams_begin_with_rows_that_others_computed() {
    let engine = engine(EngineOptions {
        slots: 5,
        ..options()
    });
    let (at, sampling) = five_beams();
    for case in beam_cases() {
        ask(&engine, case.parts.clone(), |_| {});
        for _ in 0..2 {
            let answer = ask(&engine, case.parts.clone(), |sequence| {
                sequence.sampling = sampling;
            });
            assert_eq!(answer.ids, case.answers[at]);
            assert_eq!(cached(&answer), rows_of(&case.parts) - 1);
        }
    }
}

#[test]
fn whoever_does_not_want_it_neither_takes_nor_leaves() {
    let engine = engine(options());
    let case = &cases()[0];
    let private = |sequence: &mut Sequence| sequence.cache_prompt = false;
    ask(&engine, case.parts(), private);
    wait_until("it is through", || engine.activity().active == 0);
    assert_eq!(engine.activity().kept_sequences, 0);
    assert_eq!(cached(&ask(&engine, case.parts(), |_| {})), 0);
    let answer = ask(&engine, case.parts(), private);
    assert_eq!((cached(&answer), &answer.ids), (0, &case.answer_ids));
}

#[test]
fn cancelled_requests_leave_nothing() {
    let engine = engine(options());
    for _ in 0..3 {
        let endless = submit(&engine, text_prompt(40), |sequence| {
            sequence.max_tokens = None;
            sequence.ignore_eos = true;
        });
        let before = engine.activity().sampled_tokens;
        wait_until("it runs", || engine.activity().sampled_tokens > before + 2);
        drop(endless);
        wait_until("it is gone", || engine.activity().active == 0);
        assert_eq!(engine.activity().kept_sequences, 0);
    }
    assert_eq!(cached(&ask(&engine, text_prompt(40), |_| {})), 0);
}

#[test]
fn what_is_kept_makes_way() {
    // 128 cells, and prompts of 100 rows that have nothing in common.
    let engine = engine(EngineOptions {
        prefix_sequences: 3,
        ..options()
    });
    let distinct = |n: i32| vec![PromptPart::Tokens((200 + n..300 + n).collect())];
    for _ in 0..2 {
        for n in 1..8 {
            let answer = ask(&engine, distinct(n), |sequence| {
                sequence.max_tokens = Some(28);
                sequence.ignore_eos = true;
            });
            assert_eq!((answer.ids.len(), cached(&answer)), (28, 0));
            wait_until("it is through", || engine.activity().active == 0);
            assert_eq!(engine.activity().kept_sequences, 1, "one fits");
        }
    }
    // Small ones: as many as there are sequences, the one slot's own among them.
    for n in 1..10 {
        ask(&engine, vec![PromptPart::Tokens(vec![100 + n, 5])], |_| {});
    }
    wait_until("it is through", || engine.activity().active == 0);
    assert_eq!(engine.activity().kept_sequences, 4);
}

#[test]
fn thirty_two_at_once_keep_to_themselves() {
    let engine = engine(EngineOptions {
        slots: 8,
        cache_sequences: Some(3),
        n_batch: 48,
        n_ubatch: 48,
        prefix_sequences: 6,
        queue: 1000,
        ..options()
    });
    let (at, five) = five_beams();
    let (greedy, beams) = (cases(), beam_cases());
    for round in 0..3 {
        let running: Vec<_> = (0..32)
            .map(|i| {
                let n = (i * 7 + round) % greedy.len();
                let (parts, sampling, expected) = match i % 5 {
                    4 => (beams[n].parts.clone(), five, &beams[n].answers[at]),
                    _ => (
                        greedy[n].parts(),
                        Sampling::default(),
                        &greedy[n].answer_ids,
                    ),
                };
                let receiver = submit(&engine, parts, |sequence| {
                    sequence.sampling = sampling;
                    sequence.cache_prompt = i % 7 != 3;
                });
                (i, receiver, expected)
            })
            .collect();
        for (i, receiver, expected) in running {
            if i % 6 == 5 {
                drop(receiver);
                continue;
            }
            assert_eq!(&read(receiver).unwrap().ids, expected);
        }
    }
    wait_until("all are through", || engine.activity().active == 0);
    let activity = engine.activity();
    assert_eq!(activity.sequences, 0);
    assert!(activity.reused_rows > 0 && activity.kept_sequences <= 14);
    // Every cell can still be had.
    let all = ask(&engine, text_prompt(100), |sequence| {
        sequence.max_tokens = None;
        sequence.ignore_eos = true;
    });
    assert_eq!(all.ids.len(), 28);
}

#[test]
fn an_encoder_reads_its_input_whole() {
    let model = Arc::new(LanguageModel::load(&golden("t5/t5.gguf")).unwrap());
    assert!(!model.shares_prefixes());
    let engine = Engine::start(model, options()).unwrap();
    assert_eq!(engine.options().prefix_sequences, 0);
}
