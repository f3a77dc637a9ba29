//! What a single request may ask for, and how its answer ends.

use bridge::engine::detokenize::Detokenizer;

use super::*;

#[test]
fn stop_strings_end_the_answer_before_them() {
    let engine = engine(options());
    // One whose text is long enough and spans several tokens.
    let case = cases()
        .into_iter()
        .find(|case| case.answer.contains("Questionman"))
        .unwrap();
    let whole = ask(&engine, case.parts(), |_| {});
    let stop = "onman";
    let answer = ask(&engine, case.parts(), |sequence| {
        sequence.stop = vec!["never in there".to_owned(), stop.to_owned()];
    });
    let expected = &whole.text[..whole.text.find(stop).unwrap()];
    assert_eq!(answer.text, expected);
    assert_eq!(answer.summary.finish_reason, FinishReason::Stop);
    assert!(answer.ids.len() < whole.ids.len());
    assert_eq!(answer.ids, whole.ids[..answer.ids.len()]);
    assert_eq!(answer.summary.usage.completion_tokens, answer.ids.len());
}

#[test]
fn stop_ids_end_the_answer() {
    let engine = engine(options());
    let case = &cases()[0];
    let stop = case.answer_ids[5];
    let at = case.answer_ids.iter().position(|&id| id == stop).unwrap();
    let answer = ask(&engine, case.parts(), |sequence| {
        sequence.stop_ids = vec![stop]
    });
    assert_eq!(
        answer.ids,
        case.answer_ids[..=at],
        "the stop token is counted"
    );
    assert_eq!(answer.summary.finish_reason, FinishReason::Stop);
    assert_eq!(answer.summary.usage.completion_tokens, at + 1);
    assert!(
        case.answer
            .starts_with(answer.text.trim_end_matches('\u{fffd}'))
    );

    let ended = cases()
        .into_iter()
        .find(|case| case.answer_ids.last() == Some(&1))
        .unwrap();
    let on = ask(&engine, ended.parts(), |sequence| {
        sequence.ignore_eos = true
    });
    assert_eq!(on.ids.len(), 24);
    assert_eq!(on.ids[..ended.answer_ids.len()], ended.answer_ids);
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let engine = engine(EngineOptions {
        n_ctx: 32,
        ..options()
    });
    let (events, _receiver) = channel(4);
    let error = engine
        .submit(Sequence::new(text_prompt(32), events))
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::ContextLengthExceeded {
                n_prompt_tokens: 32,
                n_ctx: 32
            }
        ),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::ContextLengthExceeded);
    // One row of room is one token.
    let answer = ask(&engine, text_prompt(31), |sequence| {
        sequence.max_tokens = None
    });
    assert_eq!(answer.ids.len(), 1);
    // To the end of the context, in a context full to the last row, with all slots.
    let answer = ask(&engine, text_prompt(20), |sequence| {
        sequence.max_tokens = None;
        sequence.ignore_eos = true;
    });
    assert_eq!(answer.ids.len(), 12);
    assert_eq!(answer.summary.finish_reason, FinishReason::Length);
}

#[test]
fn what_cannot_be_answered_is_refused_before_any_work() {
    let engine = engine(options());
    let n_embd = model().n_embd();
    let soft = |values: Vec<f32>| vec![PromptPart::Embeddings(values.into())];
    let refused = |parts: Vec<PromptPart>, with: fn(&mut Sequence)| {
        let (events, _receiver) = channel(4);
        let mut sequence = Sequence::new(parts, events);
        with(&mut sequence);
        let error = engine.submit(sequence).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
        error.to_string()
    };
    refused(vec![], |_| {});
    refused(soft(vec![]), |_| {});
    let width = refused(soft(vec![0.0; n_embd + 1]), |_| {});
    assert!(width.contains("129") && width.contains("128"), "{width}");
    let mut nan = vec![0.0; n_embd];
    nan[7] = f32::NAN;
    refused(soft(nan), |_| {});
    let unknown = refused(vec![PromptPart::Tokens(vec![5, 320])], |_| {});
    assert!(unknown.contains("320"), "{unknown}");
    refused(vec![PromptPart::Tokens(vec![-1])], |_| {});
    refused(text_prompt(4), |sequence| sequence.max_tokens = Some(0));
    refused(text_prompt(4), |sequence| sequence.sampling.top_p = 0.0);
    let case = &cases()[0];
    assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);
}

#[test]
fn the_same_seed_gives_the_same_answer_alone_and_in_company() {
    let sampling = |seed| Sampling {
        temperature: 1.0,
        top_k: 40,
        top_p: 0.95,
        seed: Some(seed),
        ..Sampling::default()
    };
    let engine = engine(EngineOptions {
        slots: 4,
        ..options()
    });
    let case = &cases()[0];
    let alone = |seed| {
        ask(&engine, case.parts(), |sequence| {
            sequence.sampling = sampling(seed)
        })
        .ids
    };
    let first = alone(11);
    assert_eq!(first, alone(11));
    assert_ne!(first, alone(12));
    let company: Vec<_> = [11, 12, 13, 11]
        .map(|seed| {
            submit(&engine, case.parts(), |sequence| {
                sequence.sampling = sampling(seed)
            })
        })
        .into_iter()
        .map(|receiver| read(receiver).unwrap().ids)
        .collect();
    assert_eq!(company[0], first);
    assert_eq!(company[3], first);
}

#[test]
fn sentencepiece_answers_do_not_begin_with_a_space() {
    let model = LanguageModel::load(&golden("llm/spm.gguf")).unwrap();
    assert!(model.strips_leading_space());
    for text in ["Paris", "Paris is in", " Paris", "é😀 is", "is\n  in"] {
        let ids = model.tokenize(text, false).unwrap();
        let mut detokenizer = Detokenizer::new(model.strips_leading_space());
        let mut decoded = String::new();
        for &id in &ids {
            detokenizer.push(&model.token_bytes(id), &mut decoded);
        }
        detokenizer.finish(&mut decoded);
        assert_eq!(decoded, text, "{ids:?}");
    }
    let first = model.tokenize("Paris", false).unwrap();
    assert_eq!(
        model.token_bytes(first[0]),
        b" Paris",
        "the space is the token's"
    );
    assert!(!self::model().strips_leading_space());
}
