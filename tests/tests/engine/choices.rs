//! Several answers to one prompt, what the model made of their tokens, and what a
//! request forbids, favours or demands.

use bridge::constraint::Format;
use bridge::event::TokenLogprobs;

use super::beams::{beam_cases, settings};
use super::*;

#[derive(Default)]
pub struct Choice {
    pub ids: Vec<i32>,
    text: String,
    pub logprobs: Vec<TokenLogprobs>,
    summary: Option<Summary>,
}

impl Choice {
    fn summary(&self) -> &Summary {
        self.summary.as_ref().expect("an end")
    }
}

/// All answers of a request, in their order.
pub fn choices(mut receiver: Receiver<Event>, n: usize) -> Vec<Choice> {
    let mut found: Vec<Choice> = (0..n).map(|_| Choice::default()).collect();
    while let Some(event) = receiver.blocking_recv() {
        match event {
            Event::Token {
                choice,
                id,
                text,
                logprobs,
            } => {
                let choice = &mut found[choice];
                assert!(choice.summary.is_none(), "a token after the end");
                choice.ids.push(id);
                choice.text.push_str(&text);
                choice.logprobs.extend(logprobs);
            }
            Event::Done(summary) => {
                let choice = &mut found[summary.choice];
                choice.text.push_str(&summary.text);
                choice.logprobs.extend_from_slice(&summary.logprobs);
                choice.summary = Some(summary);
            }
            Event::Error(error) => panic!("{error}"),
        }
    }
    assert!(found.iter().all(|choice| choice.summary.is_some()));
    found
}

fn one(engine: &Engine, parts: Vec<PromptPart>, with: impl FnOnce(&mut Sequence)) -> Choice {
    choices(submit(engine, parts, with), 1).remove(0)
}

fn many() -> Engine {
    engine(EngineOptions {
        slots: 5,
        ..options()
    })
}

#[test]
fn greedy_choices_are_the_same_and_share_their_prompt() {
    let engine = many();
    for case in cases().iter().take(6) {
        let before = engine.activity().prompt_rows;
        let found = choices(
            submit(&engine, case.parts(), |sequence| {
                sequence.sampling.n = 4;
                sequence.cache_prompt = false;
            }),
            4,
        );
        for choice in &found {
            assert_eq!(choice.ids, case.answer_ids);
            assert_eq!(
                choice.summary().usage.completion_tokens,
                case.answer_ids.len()
            );
        }
        let n_prompt = found[0].summary().usage.prompt_tokens as u64;
        assert_eq!(engine.activity().prompt_rows - before, n_prompt);
    }
    wait_until("all are through", || engine.activity().active == 0);
    assert_eq!(engine.activity().sequences, 0);
}

#[test]
fn drawn_choices_follow_from_the_seed_and_differ() {
    let engine = many();
    let case = &cases()[0];
    let draw = |n, seed| {
        let found = choices(
            submit(&engine, case.parts(), |sequence| {
                sequence.sampling = Sampling {
                    temperature: 1.5,
                    seed: Some(seed),
                    n,
                    ..Sampling::default()
                };
            }),
            n,
        );
        found
            .into_iter()
            .map(|choice| choice.ids)
            .collect::<Vec<_>>()
    };
    let four = draw(4, 3);
    assert_eq!(four, draw(4, 3), "whatever is in the KV cache");
    assert_eq!(four[0], draw(1, 3)[0], "the first is as if alone");
    for i in 0..4 {
        for j in 0..i {
            assert_ne!(four[i], four[j]);
        }
    }
    // Long enough to tell that they end at different times.
    assert_ne!(four, draw(4, 4));
}

#[test]
fn beams_deliver_the_n_best() {
    let engine = many();
    let at = settings()
        .iter()
        .position(|sampling| sampling.num_beams == 5)
        .unwrap();
    let case = &beam_cases()[0];
    let found = choices(
        submit(&engine, case.parts.clone(), |sequence| {
            sequence.sampling = Sampling {
                n: 3,
                ..settings()[at]
            };
        }),
        3,
    );
    assert_eq!(found[0].ids, case.answers[at]);
    assert!(found[1].ids != found[0].ids && found[2].ids != found[1].ids);
    for (sampling, name) in [
        (
            Sampling {
                n: 6,
                ..settings()[at]
            },
            "num_beams",
        ),
        (
            Sampling {
                n: 6,
                ..Sampling::default()
            },
            "n is 6",
        ),
    ] {
        let error = engine.check_sampling(&sampling).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_client_that_leaves_frees_all_choices() {
    let engine = many();
    let endless = submit(&engine, text_prompt(4), |sequence| {
        sequence.sampling.n = 5;
        sequence.ignore_eos = true;
        sequence.max_tokens = Some(24);
    });
    drop(endless);
    wait_until("they are gone", || engine.activity().active == 0);
    assert_eq!(engine.activity().sequences, 0);
    let all = submit(&engine, text_prompt(4), |sequence| sequence.sampling.n = 5);
    assert_eq!(choices(all, 5).len(), 5);
}

#[test]
fn logprobs_are_those_of_transformers() {
    let engine = engine(options());
    for case in cases() {
        let found = one(&engine, case.parts(), |sequence| {
            sequence.top_logprobs = Some(20);
            // Neither changes what the model thinks.
            sequence.sampling.temperature = 0.5;
            sequence.sampling.seed = Some(1);
            sequence.logit_bias = vec![(40, 5.0)];
        });
        let max = case.first_logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = case.first_logits.iter().map(|x| (x - max).exp()).sum();
        let expected = |id: i32| case.first_logits[id as usize] - max - sum.ln();
        let first = &found.logprobs[0];
        assert_eq!(first.token.id, found.ids[0]);
        assert_eq!(first.top.len(), 20);
        for token in first.top.iter().chain([&first.token]) {
            assert!((token.logprob - expected(token.id)).abs() < 1e-3);
        }
        assert!(
            first
                .top
                .windows(2)
                .all(|two| two[0].logprob >= two[1].logprob)
        );
        let likeliest = (0..320).max_by(|&a, &b| expected(a).total_cmp(&expected(b)));
        assert_eq!(first.top[0].id, likeliest.unwrap());
    }
}

#[test]
fn logprobs_spell_the_answer() {
    let engine = engine(options());
    for case in cases() {
        for stop in [None, Some("onman"), Some("e")] {
            let found = one(&engine, case.parts(), |sequence| {
                sequence.top_logprobs = Some(0);
                sequence.stop = stop.map(str::to_owned).into_iter().collect();
            });
            let bytes: Vec<u8> = found
                .logprobs
                .iter()
                .flat_map(|of| of.token.bytes.clone())
                .collect();
            let spelled = String::from_utf8_lossy(&bytes).into_owned();
            let ended = found.summary().finish_reason == FinishReason::Stop;
            if stop.is_some() && ended {
                // The last token may go on where the stop string cut it.
                assert!(
                    spelled.starts_with(&found.text),
                    "{spelled:?} {:?}",
                    found.text
                );
            } else {
                assert_eq!(spelled, found.text);
            }
            assert!(found.logprobs.iter().all(|of| of.top.is_empty()));
        }
    }
    // Without being asked, none.
    assert!(one(&engine, cases()[0].parts(), |_| {}).logprobs.is_empty());
}

#[test]
fn a_bias_bans_and_forces() {
    let engine = engine(options());
    let case = &cases()[0];
    let banned = case.answer_ids[0];
    let found = one(&engine, case.parts(), |sequence| {
        sequence.logit_bias = vec![(banned, -100.0)];
    });
    assert!(!found.ids.contains(&banned));
    let found = one(&engine, case.parts(), |sequence| {
        sequence.logit_bias = vec![(50, 100.0)];
    });
    assert_eq!(found.ids, [50; 24]);
    for (id, bias, name) in [(320, 1.0, "320"), (-1, 1.0, "-1"), (5, 100.5, "100.5")] {
        let error = engine.check_logit_bias(&[(id, bias)]).unwrap_err();
        assert!(matches!(error, Error::LogitBias { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

fn schema() -> Format {
    Format::JsonSchema(serde_json::json!({
        "type": "object",
        "properties": {
            "animal": {"enum": ["dog", "cat"]},
            "legs": {"type": "integer", "minimum": 0, "maximum": 8},
            "names": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
        },
        "required": ["animal", "legs", "names"],
        "additionalProperties": false,
    }))
}

fn fits(text: &str) {
    let value: serde_json::Value = serde_json::from_str(text).expect(text);
    let object = value.as_object().unwrap();
    assert_eq!(object.len(), 3);
    assert!(["dog", "cat"].contains(&object["animal"].as_str().unwrap()));
    assert!((0..=8).contains(&object["legs"].as_i64().unwrap()));
    assert!(object["names"].as_array().unwrap().len() <= 2);
}

#[test]
fn an_answer_has_the_form_that_is_demanded() {
    let engine = many();
    let constraint = model().constraint(&schema()).unwrap();
    let mut complete = 0;
    for (seed, case) in (0..).zip(cases()) {
        let found = choices(
            submit(&engine, case.parts(), |sequence| {
                sequence.constraint = Some(constraint.clone());
                sequence.max_tokens = Some(60);
                sequence.sampling = Sampling {
                    temperature: 1.0,
                    seed: Some(seed),
                    n: 3,
                    // The form ends it sooner.
                    min_tokens: 60,
                    ..Sampling::default()
                };
                // A newline, say: text that may not cut it short.
                sequence.stop_ids = vec![case.answer_ids[0]];
            }),
            3,
        );
        for choice in found {
            if choice.summary().finish_reason == FinishReason::Stop {
                fits(&choice.text);
                complete += 1;
            }
        }
    }
    assert!(complete > 30, "{complete} of 60 were complete");
}

#[test]
fn what_beams_cannot_do_is_refused() {
    let engine = many();
    let constraint = model().constraint(&Format::JsonObject).unwrap();
    let refused = |with: &dyn Fn(&mut Sequence)| {
        let (events, _receiver) = channel(4);
        let mut sequence = Sequence::new(text_prompt(4), events);
        sequence.sampling.num_beams = 2;
        with(&mut sequence);
        let error = engine.submit(sequence).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    };
    refused(&|sequence| sequence.constraint = Some(constraint.clone()));
    refused(&|sequence| sequence.top_logprobs = Some(1));
}
