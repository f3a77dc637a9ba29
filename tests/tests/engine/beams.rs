//! Beam search, least lengths and the repetition penalty against transformers
//! (tests/golden/make_beams.py), and what beams take of the engine.

use super::*;

pub(super) struct BeamCase {
    pub(super) parts: Vec<PromptPart>,
    /// One for each setting.
    pub(super) answers: Vec<Vec<i32>>,
}

pub(super) fn settings() -> Vec<Sampling> {
    let settings = json("llm/beams.json")["settings"].clone();
    settings.as_array().unwrap().iter().map(setting).collect()
}

pub(super) fn beam_cases() -> Vec<BeamCase> {
    let pictures = json("llm/golden.json")["pictures"].clone();
    let bytes = std::fs::read(golden("llm/reference.safetensors")).unwrap();
    let soft_prompts = rows(&SafeTensors::deserialize(&bytes).unwrap(), "soft_prompt");
    let beams = json("llm/beams.json");
    let cases = beams["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    cases
        .iter()
        .map(|case| {
            let pictures = pictures.as_array().unwrap();
            let picture = pictures.iter().position(|name| *name == case["picture"]);
            BeamCase {
                parts: vec![
                    PromptPart::Embeddings(soft_prompts[picture.unwrap()].clone().into()),
                    PromptPart::Tokens(ids(&case["prompt_ids"])),
                ],
                answers: case["answers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(ids)
                    .collect(),
            }
        })
        .collect()
}

fn five_beams() -> Sampling {
    Sampling {
        num_beams: 5,
        ..Sampling::default()
    }
}

#[test]
fn every_setting_answers_as_transformers_does() {
    let engine = engine(EngineOptions {
        slots: 5,
        ..options()
    });
    let cases = beam_cases();
    for (i, sampling) in settings().into_iter().enumerate() {
        for (n, case) in cases.iter().enumerate() {
            let answer = ask(&engine, case.parts.clone(), |sequence| {
                sequence.sampling = sampling;
            });
            assert_eq!(answer.ids, case.answers[i], "pair {n}, {sampling:?}");
            let ended = case.answers[i].last() == Some(&1);
            let finish_reason = answer.summary.finish_reason;
            assert_eq!(finish_reason == FinishReason::Stop, ended);
            let usage = answer.summary.usage;
            assert_eq!(usage.completion_tokens, answer.ids.len());
        }
    }
}

#[test]
fn beams_beside_other_requests_answer_as_alone() {
    // Seven sequences for requests of one to five beams, prompts cut into steps of 24.
    let engine = engine(EngineOptions {
        slots: 7,
        n_batch: 24,
        n_ubatch: 16,
        queue: 1000,
        ..options()
    });
    let settings = settings();
    let mut expected = Vec::new();
    let mut receivers = Vec::new();
    for case in beam_cases() {
        for (sampling, answer) in settings.iter().zip(case.answers) {
            expected.push(answer);
            receivers.push(submit(&engine, case.parts.clone(), |sequence| {
                sequence.sampling = *sampling;
            }));
        }
    }
    let mut at_once = 0;
    for (receiver, expected) in receivers.into_iter().zip(expected) {
        at_once = at_once.max(engine.activity().active);
        assert_eq!(read(receiver).unwrap().ids, expected);
    }
    assert!(at_once > 1, "nothing ran beside another");
}

#[test]
fn beams_share_the_cells_of_their_prompt() {
    // 128 rows, 110 of them the prompt: five copies would be 550.
    let engine = engine(EngineOptions {
        slots: 5,
        cache_sequences: Some(1),
        ..options()
    });
    let answer = ask(&engine, text_prompt(110), |sequence| {
        sequence.sampling = five_beams();
        sequence.ignore_eos = true;
        sequence.max_tokens = None;
    });
    assert_eq!(answer.ids.len(), 18 / 5, "the rows that are left, for five");
    assert_eq!(engine.activity().prompt_rows, 110, "computed once");
    let wider = self::engine(EngineOptions {
        slots: 5,
        ..options()
    });
    let with_room = ask(&wider, text_prompt(110), |sequence| {
        sequence.sampling = five_beams();
        sequence.ignore_eos = true;
        sequence.max_tokens = Some(3);
    });
    assert_eq!(answer.ids, with_room.ids);
    // Three at once would not fit; they wait for each other instead of failing.
    let receivers: Vec<_> = (0..3)
        .map(|_| {
            submit(&engine, text_prompt(110), |sequence| {
                sequence.max_tokens = Some(3);
            })
        })
        .collect();
    for receiver in receivers {
        read(receiver).unwrap();
    }
}

#[test]
fn the_cache_itself_shares_cells() {
    // 256 cells: 200 for the prompt, 5 beams of 11 tokens. One is left, two do not fit.
    let options = ContextOptions {
        n_ctx: 256,
        n_batch: 256,
        n_ubatch: 256,
        n_seq_max: 5,
        cache_type: CacheType::F32,
        flash_attention: FlashAttention::Auto,
        threads: 2,
    };
    let mut context = Context::new(model(), &options, Arc::new(AtomicBool::new(false))).unwrap();
    for position in 0..200 {
        let id = 20 + position as i32 % 40;
        context.add_token(0, position, id, position == 199).unwrap();
    }
    context.process().unwrap();
    for sequence in 1..5 {
        context.fork(0, sequence);
        assert_eq!(context.last_position(sequence), Some(199));
    }
    for position in 200..211 {
        context.clear();
        for sequence in 0..5 {
            context
                .add_token(sequence, position, 30 + sequence as i32, true)
                .unwrap();
        }
        context.process().unwrap();
    }
    context.clear();
    for sequence in 0..2 {
        context.add_token(sequence, 211, 30, true).unwrap();
    }
    let full = context.process().unwrap_err();
    assert_eq!(full, bridge::llama::ProcessError::NoRoom);
    // Taking four away frees their own tokens and leaves the prompt.
    for sequence in 1..5 {
        context.remove(sequence);
    }
    context.process().unwrap();
    assert_eq!(context.last_position(0), Some(211));
    assert_eq!(context.last_position(4), None);
}

#[test]
fn cancelling_beams_frees_all_their_sequences() {
    let engine = engine(EngineOptions {
        slots: 5,
        ..options()
    });
    let endless = submit(&engine, text_prompt(4), |sequence| {
        sequence.sampling = five_beams();
        sequence.ignore_eos = true;
        sequence.max_tokens = None;
    });
    wait_until("it runs", || engine.activity().sampled_tokens > 10);
    assert_eq!(engine.activity().sequences, 5);
    drop(endless);
    let before = engine.activity().steps;
    wait_until("it is gone", || engine.activity().sequences == 0);
    let steps = engine.activity().steps - before;
    assert!(steps <= 1, "{steps} steps after it was cancelled");
    assert_eq!(engine.activity().active, 0);
    // All five are there for the next.
    let case = &beam_cases()[0];
    let sampling = settings()[8];
    assert_eq!(sampling.num_beams, 5);
    let answer = ask(&engine, case.parts.clone(), |sequence| {
        sequence.sampling = sampling;
    });
    assert_eq!(answer.ids, case.answers[8]);
}

#[test]
fn who_needs_many_sequences_is_not_overtaken() {
    let engine = engine(EngineOptions {
        slots: 5,
        ..options()
    });
    let long = |max_tokens| {
        submit(&engine, text_prompt(4), |sequence| {
            sequence.ignore_eos = true;
            sequence.max_tokens = Some(max_tokens);
        })
    };
    let running = long(100);
    let beams = submit(&engine, text_prompt(8), |sequence| {
        sequence.sampling = five_beams();
        sequence.max_tokens = Some(4);
    });
    // There are four sequences free for these, and the beams were first.
    let late: Vec<_> = (0..4).map(|_| long(2)).collect();
    let beams = read(beams).unwrap().summary.timings;
    let running = read(running).unwrap().summary.timings;
    assert!(beams.queue > 0.5 * running.decode, "{beams:?} {running:?}");
    for late in late {
        let late = read(late).unwrap().summary.timings;
        assert!(late.queue > beams.queue, "{late:?} {beams:?}");
    }
}

#[test]
fn more_beams_than_sequences_are_refused_with_both_numbers() {
    let engine = engine(EngineOptions {
        slots: 4,
        ..options()
    });
    let (events, _receiver) = channel(4);
    let mut sequence = Sequence::new(text_prompt(4), events);
    sequence.sampling = five_beams();
    let error = engine.submit(sequence).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    let message = error.to_string();
    assert!(
        message.contains("is 5") && message.contains('4'),
        "{message}"
    );
}

#[test]
fn stop_strings_end_beams() {
    let engine = engine(EngineOptions {
        slots: 5,
        ..options()
    });
    let mut stopped = 0;
    for case in beam_cases() {
        let plain = ask(&engine, case.parts.clone(), |sequence| {
            sequence.sampling = five_beams();
        });
        // Two characters from the middle of the best answer.
        let Some((at, _)) = plain
            .text
            .char_indices()
            .nth(plain.text.chars().count() / 2)
        else {
            continue;
        };
        let stop: String = plain.text[at..].chars().take(2).collect();
        let answer = ask(&engine, case.parts.clone(), |sequence| {
            sequence.sampling = five_beams();
            sequence.stop = vec![stop.clone()];
        });
        assert!(
            !answer.text.contains(&stop),
            "{:?} holds {stop:?}",
            answer.text
        );
        assert_eq!(answer.summary.usage.completion_tokens, answer.ids.len());
        stopped += usize::from(answer.ids.last() != Some(&1));
    }
    assert!(stopped > 0);
}

#[test]
fn temperature_and_least_length_go_together() {
    let engine = engine(options());
    let ended = cases()
        .into_iter()
        .find(|case| case.answer_ids.last() == Some(&1))
        .unwrap();
    let n = ended.answer_ids.len();
    for temperature in [0.0, 1.0] {
        for seed in 0..8 {
            let answer = ask(&engine, ended.parts(), |sequence| {
                sequence.sampling.temperature = temperature;
                sequence.sampling.seed = Some(seed);
                sequence.sampling.min_tokens = n + 2;
            });
            assert!(answer.ids.len() > n + 2 || answer.ids.last() != Some(&1));
            assert!(!answer.ids[..n + 2].contains(&1), "{:?}", answer.ids);
        }
    }
}
