//! Tokens that are guessed ahead: the answers are those without, in fewer steps.

use super::*;

const MOST: usize = 8;

fn guessing() -> Engine {
    engine(EngineOptions {
        prompt_lookup: MOST,
        ..options()
    })
}

/// A prompt of text that repeats itself behind a picture.
fn repetitive(case: &Case) -> Vec<PromptPart> {
    let text: Vec<i32> = (case.prompt_ids.iter().copied())
        .chain((0..36).map(|i| 30 + i % 6))
        .collect();
    vec![
        PromptPart::Embeddings(case.soft_prompt.clone()),
        PromptPart::Tokens(text),
    ]
}

/// A long answer of three tokens, which is bound to repeat itself.
fn of_few_tokens(sequence: &mut Sequence) {
    sequence.logit_bias = vec![(30, 100.0), (31, 100.0), (32, 100.0)];
    sequence.max_tokens = Some(60);
}

/// Ways to draw: the likeliest, by chance, with penalties, to a limit or a text that cuts a guess short.
fn ways() -> [fn(&mut Sequence); 6] {
    [
        |_| {},
        of_few_tokens,
        |sequence| {
            of_few_tokens(sequence);
            sequence.max_tokens = Some(13);
        },
        |sequence| {
            of_few_tokens(sequence);
            sequence.sampling.temperature = 0.8;
            sequence.sampling.seed = Some(11);
            sequence.top_logprobs = Some(2);
        },
        |sequence| {
            of_few_tokens(sequence);
            sequence.sampling.frequency_penalty = 0.1;
            sequence.sampling.repetition_penalty = 1.1;
        },
        |sequence| {
            of_few_tokens(sequence);
            sequence.stop_ids = vec![32];
        },
    ]
}

#[test]
fn answers_are_the_same_in_fewer_steps() {
    let (plain, guessing) = (engine(options()), guessing());
    for case in cases() {
        for with in ways() {
            let expected = ask(&plain, repetitive(&case), with);
            let found = ask(&guessing, repetitive(&case), with);
            assert_eq!(found.ids, expected.ids);
            assert_eq!(found.text, expected.text);
            assert_eq!(found.summary.finish_reason, expected.summary.finish_reason);
            assert_eq!(found.summary.usage, expected.summary.usage);
        }
    }
    let (plain, guessing) = (plain.activity(), guessing.activity());
    assert_eq!(plain.guessed_tokens, 0);
    assert_eq!(guessing.sampled_tokens, plain.sampled_tokens);
    assert!(guessing.right_guesses > 200, "{guessing:?}");
    assert!(guessing.guessed_tokens > guessing.right_guesses);
    // A right guess saves its step.
    assert_eq!(guessing.steps + guessing.right_guesses, plain.steps);
}

#[test]
fn many_at_once_do_not_disturb_each_other() {
    let plain = engine(options());
    let guessing = engine(EngineOptions {
        slots: 6,
        // Not enough for what six may guess.
        n_batch: 12,
        prefix_sequences: 0,
        prompt_lookup: MOST,
        ..options()
    });
    let cases = cases();
    let answers: Vec<Vec<i32>> = cases
        .iter()
        .map(|case| ask(&plain, repetitive(case), of_few_tokens).ids)
        .collect();
    let receivers: Vec<_> = cases
        .iter()
        .map(|case| submit(&guessing, repetitive(case), of_few_tokens))
        .collect();
    for (receiver, expected) in receivers.into_iter().zip(&answers) {
        assert_eq!(&read(receiver).unwrap().ids, expected);
    }
    assert!(guessing.activity().right_guesses > 100);
    assert_eq!(guessing.activity().sequences, 0);
}

/// What is kept after an answer is what belongs to it, and no guess that was wrong.
#[test]
fn a_second_turn_finds_the_rows_of_the_first() {
    let (plain, guessing) = (engine(options()), guessing());
    for case in cases() {
        let [expected, found] = [&plain, &guessing].map(|engine| {
            let first = ask(engine, repetitive(&case), |sequence| {
                of_few_tokens(sequence);
                sequence.max_tokens = Some(32);
            });
            let mut parts = repetitive(&case);
            parts.push(PromptPart::Tokens(first.ids));
            parts.push(PromptPart::Tokens(vec![40, 41, 42]));
            let second = ask(engine, parts, |_| {});
            (second.ids, second.summary.usage)
        });
        assert_eq!(found, expected);
        assert!(found.1.cached_tokens > 60);
    }
}

/// More than a step has room for logits of.
#[test]
fn long_given_answers_take_as_many_steps_as_they_need() {
    let engine = engine(EngineOptions {
        slots: 2,
        prefix_sequences: 0,
        ..options()
    });
    let before = engine.activity().steps;
    let given: Vec<Vec<i32>> = (0..2).map(|n| (20 + n..70 + n).collect()).collect();
    let receiver = submit(&engine, cases()[0].parts(), |sequence| {
        sequence.sampling.n = 2;
        sequence.given = given.clone();
    });
    let found = super::choices::choices(receiver, 2);
    assert!(found.iter().map(|choice| &choice.ids).eq(&given));
    // 34 rows of logits, two for others' prompts and next tokens.
    assert_eq!(
        engine.activity().steps - before,
        1 + 49usize.div_ceil(16) as u64
    );
}

/// The tokens of a given answer are known, so they take one step after the prompt's.
#[test]
fn a_given_answer_takes_two_steps() {
    let engine = engine(EngineOptions {
        slots: 3,
        ..options()
    });
    let given = |lengths: [i32; 3]| {
        let before = engine.activity().steps;
        let receiver = submit(&engine, cases()[0].parts(), |sequence| {
            sequence.sampling.n = 3;
            sequence.top_logprobs = Some(0);
            sequence.given = lengths.map(|n| (0..n).map(|i| 20 + i).collect()).to_vec();
        });
        let found = super::choices::choices(receiver, 3);
        for (choice, n) in found.iter().zip(lengths) {
            assert_eq!(choice.ids, (0..n).map(|i| 20 + i).collect::<Vec<_>>());
        }
        engine.activity().steps - before
    };
    assert_eq!(given([9, 9, 9]), 2);
    // The short ones end, then the long one goes on alone.
    assert_eq!(given([9, 4, 4]), 3);
    assert_eq!(given([1, 9, 2]), 4 - 1);
}
