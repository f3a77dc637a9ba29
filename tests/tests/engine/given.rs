//! Answers that are given instead of drawn: what the model makes of their tokens, against
//! transformers' teacher forcing (tests/golden/make_scores.py).

use super::choices::choices;
use super::encoder_decoder::{t5_cases, t5_engine};
use super::*;

/// The log-probabilities of given answers, all in one request.
fn scores(engine: &Engine, parts: Vec<PromptPart>, given: &[Vec<i32>]) -> Vec<Vec<f32>> {
    let receiver = submit(engine, parts, |sequence| {
        sequence.sampling.n = given.len();
        sequence.top_logprobs = Some(0);
        // Neither of these ends an answer that is given, nor does an end in its midst.
        sequence.stop = vec!["e".to_owned()];
        sequence.stop_ids = vec![223];
        sequence.given = given.to_vec();
    });
    let found = choices(receiver, given.len());
    for (choice, ids) in found.iter().zip(given) {
        assert_eq!(&choice.ids, ids);
        let told: Vec<i32> = choice.logprobs.iter().map(|of| of.token.id).collect();
        assert_eq!(&told, ids, "a log-probability for each token");
    }
    let logprobs = |choice: &super::choices::Choice| {
        let of_tokens = choice.logprobs.iter();
        of_tokens.map(|of| of.token.logprob).collect()
    };
    found.iter().map(logprobs).collect()
}

#[test]
fn given_answers_score_as_in_transformers() {
    let golden = json("llm/scores.json");
    let golden = golden["cases"].as_array().unwrap();
    let engine = engine(EngineOptions {
        slots: 5,
        n_batch: 16,
        ..options()
    });
    let mut worst: f32 = 0.0;
    for (case, scored) in cases().iter().zip(golden) {
        assert_eq!(scored["prompt"], case.prompt);
        let answers = scored["answers"].as_array().unwrap();
        let given: Vec<Vec<i32>> = answers.iter().map(|answer| ids(&answer["ids"])).collect();
        let found = scores(&engine, case.parts(), &given);
        // Alone, as together.
        let alone = scores(&engine, case.parts(), &given[1..2]);
        for (answer, found) in answers.iter().zip(&found).chain([(&answers[1], &alone[0])]) {
            let expected = answer["logprobs"].as_array().unwrap();
            assert_eq!(expected.len(), found.len());
            for (found, expected) in found.iter().zip(expected) {
                worst = worst.max((f64::from(*found) - expected.as_f64().unwrap()).abs() as f32);
            }
        }
    }
    assert!(worst < 1e-3, "off by {worst}");
    assert_eq!(engine.activity().sequences, 0);
}

#[test]
fn an_encoder_decoder_scores_what_it_is_given() {
    let engine = t5_engine(4);
    for case in t5_cases().iter().take(8) {
        let logits = &case.first_logits[0];
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
        let given: Vec<Vec<i32>> = vec![vec![7, 1], vec![1], case.answers[0].clone()];
        let found = scores(&engine, case.parts.clone(), &given);
        for (found, given) in found.iter().zip(&given) {
            let expected = logits[given[0] as usize] - max - sum.ln();
            assert!(
                (found[0] - expected).abs() < 2e-2,
                "{} {expected}",
                found[0]
            );
        }
    }
}

#[test]
fn given_answers_that_cannot_be_are_refused() {
    let engine = engine(EngineOptions {
        slots: 2,
        ..options()
    });
    let refused = |n: usize, given: Vec<Vec<i32>>| {
        let (events, _receiver) = channel(1);
        let mut sequence = Sequence::new(cases()[0].parts(), events);
        sequence.sampling.n = n;
        sequence.given = given;
        engine.submit(sequence).unwrap_err()
    };
    for (n, given) in [
        (2, vec![vec![5]]),
        (1, vec![vec![]]),
        (1, vec![vec![320]]),
        (1, vec![vec![-1]]),
    ] {
        let error = refused(n, given);
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    }
    let error = refused(1, vec![vec![5; 128]]);
    assert_eq!(error.kind(), ErrorKind::ContextLengthExceeded, "{error}");
}
