//! Numbers and ids against transformers.

use super::*;

#[test]
fn prompts_tokenize_as_in_transformers() {
    for case in cases() {
        let mut ids = vec![model().bos().unwrap()];
        ids.extend(model().tokenize(&case.prompt, false).unwrap());
        assert_eq!(ids, case.prompt_ids, "{:?}", case.prompt);
    }
}

#[test]
fn control_tokens_are_parsed_only_where_asked() {
    let model = model();
    assert_eq!(model.tokenize("</s>", true).unwrap(), [1]);
    let plain = model.tokenize("</s>", false).unwrap();
    assert!(plain.len() > 1 && !plain.contains(&1), "{plain:?}");
    let bytes: Vec<u8> = plain.iter().flat_map(|&id| model.token_bytes(id)).collect();
    assert_eq!(bytes, b"</s>");
    assert!(
        model.token_bytes(1).is_empty(),
        "a control token has no text"
    );
    assert_eq!(model.special_token_texts(), ["<s>", "</s>", "<image>"]);
    assert!(model.is_end_of_generation(1) && !model.is_end_of_generation(20));
    assert_eq!(
        (model.bos_text(), model.eos_text()),
        ("<s>".into(), "</s>".into())
    );
    assert!(model.token_bytes(-1).is_empty() && model.token_bytes(320).is_empty());
}

#[test]
fn first_logits_equal_transformers() {
    // The fused attention rounds more; a cache in f32 does without it by itself.
    for (flash_attention, tolerance) in [
        (FlashAttention::Auto, 1e-3),
        (FlashAttention::Off, 1e-3),
        (FlashAttention::On, 5e-2),
    ] {
        let options = ContextOptions {
            n_ctx: 256,
            n_batch: 256,
            n_ubatch: 256,
            n_seq_max: 1,
            cache_type: CacheType::F32,
            flash_attention,
            threads: 2,
        };
        let mut context =
            Context::new(model(), &options, Arc::new(AtomicBool::new(false))).unwrap();
        for case in cases() {
            context.remove(0);
            context.clear();
            let n_embd = model().n_embd();
            let mut position = 0;
            for row in case.soft_prompt.chunks(n_embd) {
                context.add_embedding(0, position, row, false).unwrap();
                position += 1;
            }
            let mut last = None;
            for (i, &id) in case.prompt_ids.iter().enumerate() {
                let ends = i + 1 == case.prompt_ids.len();
                last = Some(context.add_token(0, position, id, ends).unwrap());
                position += 1;
            }
            context.process().unwrap();
            assert_eq!(context.last_position(0), Some(position - 1));
            let logits = context.logits(last.unwrap()).unwrap();
            assert_eq!(logits.len(), case.first_logits.len());
            let worst = logits
                .iter()
                .zip(&case.first_logits)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(
                worst < tolerance,
                "{flash_attention:?} {:?}: off by {worst}",
                case.prompt
            );
        }
    }
}

#[test]
fn greedy_ids_equal_transformers_generate() {
    let engine = engine(options());
    for case in cases() {
        let answer = ask(&engine, case.parts(), |_| {});
        assert_eq!(answer.ids, case.answer_ids, "{:?}", case.prompt);
        assert_eq!(answer.text, case.answer, "{:?}", case.prompt);
        let usage = answer.summary.usage;
        assert_eq!(usage.prompt_tokens, 8 + case.prompt_ids.len());
        assert_eq!(usage.image_tokens, 8);
        assert_eq!(usage.completion_tokens, case.answer_ids.len());
        let ended = case.answer_ids.last() == Some(&1);
        let expected = if ended {
            FinishReason::Stop
        } else {
            FinishReason::Length
        };
        assert_eq!(answer.summary.finish_reason, expected);
    }
}

#[test]
fn twenty_at_once_over_eight_slots_equal_the_singles() {
    for cache_type in [CacheType::F32, CacheType::F16] {
        let singles: Vec<Vec<i32>> = {
            let engine = engine(EngineOptions {
                cache_type,
                ..options()
            });
            cases()
                .iter()
                .map(|case| ask(&engine, case.parts(), |_| {}).ids)
                .collect()
        };
        let engine = engine(EngineOptions {
            slots: 8,
            cache_type,
            ..options()
        });
        let receivers: Vec<_> = cases()
            .iter()
            .map(|case| submit(&engine, case.parts(), |_| {}))
            .collect();
        for (receiver, single) in receivers.into_iter().zip(singles) {
            assert_eq!(read(receiver).unwrap().ids, single, "{cache_type:?}");
        }
    }
}

#[test]
fn chunked_prompts_give_the_same_answers() {
    // 16 rows a step: soft prompt and text are cut anywhere, beside others that generate.
    let engine = engine(EngineOptions {
        slots: 3,
        n_batch: 16,
        n_ubatch: 8,
        ..options()
    });
    let receivers: Vec<_> = cases()
        .iter()
        .map(|case| submit(&engine, case.parts(), |_| {}))
        .collect();
    for (receiver, case) in receivers.into_iter().zip(cases()) {
        assert_eq!(
            read(receiver).unwrap().ids,
            case.answer_ids,
            "{:?}",
            case.prompt
        );
    }
}

#[test]
fn soft_prompts_may_stand_anywhere_in_the_prompt() {
    // Embedding rows that are the tokens' own embeddings answer as the tokens do.
    let bytes = std::fs::read(golden("llm/checkpoint/model.safetensors")).unwrap();
    let checkpoint = SafeTensors::deserialize(&bytes).unwrap();
    let embeddings = rows(&checkpoint, "language_model.model.embed_tokens.weight");
    let ids: Vec<i32> = (0..30).map(|i| (i * 37 + 11) % 300 + 3).collect();
    let soft = |range: std::ops::Range<usize>| {
        let values: Vec<f32> = ids[range]
            .iter()
            .flat_map(|&id| embeddings[id as usize].clone())
            .collect();
        PromptPart::Embeddings(values.into())
    };
    let tokens = |range: std::ops::Range<usize>| PromptPart::Tokens(ids[range].to_vec());
    let engine = engine(options());
    let plain = ask(&engine, vec![tokens(0..30)], |_| {}).ids;
    for parts in [
        vec![soft(0..30)],
        vec![tokens(0..12), soft(12..20), tokens(20..30)],
        vec![
            soft(0..3),
            tokens(3..4),
            soft(4..9),
            tokens(9..9),
            soft(9..30),
        ],
    ] {
        assert_eq!(ask(&engine, parts, |_| {}).ids, plain);
    }
}

#[test]
fn every_cache_type_runs() {
    for cache_type in [CacheType::F32, CacheType::F16, CacheType::Q8_0] {
        let engine = engine(EngineOptions {
            cache_type,
            ..options()
        });
        let case = &cases()[0];
        let answer = ask(&engine, case.parts(), |_| {});
        assert_eq!(answer.ids[..4], case.answer_ids[..4], "{cache_type:?}");
    }
}
