//! Many sequences, slow and absent readers, full queues, the end of the engine.

use std::thread::sleep;

use bridge::stages::Stage;

use super::*;

#[test]
fn dropping_the_receiver_frees_the_slot() {
    let engine = engine(options());
    let endless = submit(&engine, text_prompt(4), |sequence| {
        sequence.max_tokens = None;
        sequence.ignore_eos = true;
        let (events, _closed) = channel(1);
        // A channel of one event: it would sit in the slot forever, paused.
        drop(std::mem::replace(&mut sequence.events, events));
    });
    drop(endless);
    let case = &cases()[1];
    assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);

    // One that is paused, its reader alive, then gone: not one more token of it.
    wait_until("the first is through", || engine.activity().active == 0);
    let before = engine.activity().sampled_tokens;
    let (events, receiver) = channel(1);
    let mut sequence = Sequence::new(text_prompt(4), events);
    sequence.ignore_eos = true;
    engine.submit(sequence).unwrap();
    let waiting = submit(&engine, case.parts(), |_| {});
    // One token in the channel, one that did not fit.
    wait_until("it is paused", || {
        engine.activity().sampled_tokens == before + 2
    });
    std::thread::sleep(Duration::from_millis(50));
    let activity = engine.activity();
    assert_eq!(
        (activity.active, activity.waiting),
        (1, 1),
        "held while the reader lives"
    );
    drop(receiver);
    assert_eq!(read(waiting).unwrap().ids, case.answer_ids);
    let sampled = engine.activity().sampled_tokens - before;
    assert_eq!(sampled as usize, 2 + case.answer_ids.len());
    wait_until("all slots are free", || engine.activity().active == 0);
}

/// The step that is being computed when the reader goes is the last one, whether or not anything was read.
#[test]
fn whoever_leaves_costs_no_further_step() {
    let engine = engine(EngineOptions {
        slots: 2,
        n_ctx: 2048,
        ..options()
    });
    for reads in [0, 1, 20] {
        let start = engine.activity().steps;
        let mut receiver = submit(&engine, text_prompt(4), |sequence| {
            sequence.max_tokens = None;
            sequence.ignore_eos = true;
        });
        for _ in 0..reads {
            receiver.blocking_recv().unwrap();
        }
        wait_until("it runs", || engine.activity().active == 1);
        // Closed and not dropped: what was sent before can still be counted.
        receiver.close();
        let closed = engine.activity().steps;
        wait_until("its slot is free", || engine.activity().active == 0);
        let after = engine.activity().steps;
        assert!(after - closed <= 1, "{closed} {after}");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(engine.activity().steps, after, "nothing is left to compute");
        // A step makes a token, so one step at most was in vain.
        let mut sent = reads;
        while receiver.blocking_recv().is_some() {
            sent += 1;
        }
        let in_vain = after - start - sent;
        assert!(in_vain <= 1, "{in_vain} of {} steps", after - start);
    }
    // Who leaves while waiting for a slot takes none.
    let before = engine.activity().sampled_tokens;
    let held: Vec<_> = (0..2)
        .map(|_| {
            let (events, receiver) = channel(1);
            let mut sequence = Sequence::new(text_prompt(4), events);
            sequence.ignore_eos = true;
            engine.submit(sequence).unwrap();
            receiver
        })
        .collect();
    wait_until("both are paused", || {
        engine.activity().sampled_tokens == before + 4
    });
    let rows = engine.activity().prompt_rows;
    drop(submit(&engine, text_prompt(50), |_| {}));
    drop(held);
    wait_until("all is over", || {
        let activity = engine.activity();
        activity.active == 0 && activity.waiting == 0
    });
    assert_eq!(engine.activity().prompt_rows, rows);
}

#[test]
fn a_slow_reader_pauses_only_itself() {
    let engine = engine(EngineOptions {
        slots: 2,
        ..options()
    });
    let case = &cases()[0];
    let (events, slow) = channel(1);
    let mut sequence = Sequence::new(case.parts(), events);
    sequence.max_tokens = Some(24);
    engine.submit(sequence).unwrap();
    for case in cases() {
        assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);
    }
    assert_eq!(engine.activity().active, 1, "the slow one is still there");
    let late = read(slow).unwrap();
    assert_eq!(
        (late.ids, late.text),
        (case.answer_ids.clone(), case.answer.clone())
    );
}

#[test]
fn full_slots_leave_each_other_their_room() {
    let engine = engine(EngineOptions {
        slots: 8,
        n_ctx: 128,
        ..options()
    });
    let receivers: Vec<_> = (0..16)
        .map(|i| {
            submit(&engine, text_prompt(100 + i), |sequence| {
                sequence.max_tokens = None;
                sequence.ignore_eos = true;
            })
        })
        .collect();
    for (receiver, i) in receivers.into_iter().zip(0..) {
        assert_eq!(read(receiver).unwrap().ids.len(), 28 - i);
    }
}

#[test]
fn a_sequence_that_overflows_fails_alone() {
    let engine = engine(EngineOptions {
        slots: 2,
        ..options()
    });
    // Finite, but its square is not: logits that are not numbers.
    let huge = vec![PromptPart::Embeddings(vec![3e38; model().n_embd()].into())];
    let bad = submit(&engine, huge, |_| {});
    let case = &cases()[3];
    assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);
    if let Err(error) = read(bad) {
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
    assert_eq!(ask(&engine, case.parts(), |_| {}).ids, case.answer_ids);
}

#[test]
fn a_full_queue_says_so() {
    let engine = engine(EngineOptions {
        queue: 2,
        ..options()
    });
    let (events, held) = channel(1);
    engine
        .submit(Sequence::new(text_prompt(4), events))
        .unwrap();
    let case = &cases()[0];
    let waiting = [
        submit(&engine, case.parts(), |_| {}),
        submit(&engine, case.parts(), |_| {}),
    ];
    let (events, _receiver) = channel(4);
    let error = engine
        .submit(Sequence::new(text_prompt(4), events))
        .unwrap_err();
    assert!(matches!(error, Error::QueueFull { limit: 2 }), "{error}");
    // One who went away while waiting leaves his place.
    let [gone, stays] = waiting;
    drop(gone);
    let next = submit(&engine, case.parts(), |_| {});
    drop(held);
    for receiver in [stays, next] {
        assert_eq!(read(receiver).unwrap().ids, case.answer_ids);
    }
}

#[test]
fn dropping_the_engine_tells_everyone() {
    let engine = engine(options());
    let running = submit(&engine, text_prompt(4), |sequence| {
        sequence.max_tokens = None;
        sequence.ignore_eos = true;
    });
    let waiting = submit(&engine, text_prompt(4), |_| {});
    drop(engine);
    // The first may have been through before; none may hang.
    let _ = read(running);
    match read(waiting) {
        Ok(answer) => assert_eq!(answer.ids.len(), 24),
        Err(error) => assert!(matches!(error, Error::Stopped), "{error}"),
    }
}

#[test]
fn prompts_are_computed_beside_those_who_generate() {
    let engine = engine(EngineOptions {
        slots: 2,
        n_batch: 16,
        n_ubatch: 16,
        // The two begin alike, and every row shall count.
        prefix_sequences: 0,
        ..options()
    });
    // 100 tokens take 100 steps, and the 7 of a prompt of 104 rows are among them.
    // The second may come too late to overlap; then once more.
    let mut steps = Vec::new();
    while steps.len() < 20 && steps.last() != Some(&100) {
        let before = engine.activity();
        let first = submit(&engine, text_prompt(4), |sequence| {
            sequence.max_tokens = Some(100);
            sequence.ignore_eos = true;
        });
        let second = submit(&engine, text_prompt(104), |sequence| {
            sequence.max_tokens = Some(1)
        });
        read(first).unwrap();
        read(second).unwrap();
        wait_until("all are through", || engine.activity().active == 0);
        let after = engine.activity();
        assert_eq!(after.prompt_rows - before.prompt_rows, 108);
        assert_eq!(after.sampled_tokens - before.sampled_tokens, 101);
        steps.push(after.steps - before.steps);
    }
    assert_eq!(steps.last(), Some(&100), "{steps:?}");
}

#[test]
fn timings_name_the_stages() {
    const BEFORE: Duration = Duration::from_millis(5);
    let engine = engine(options());
    let first = submit(&engine, cases()[0].parts(), |_| {});
    let second = submit(&engine, cases()[1].parts(), |sequence| {
        sequence.stages.during(Stage::Vit, || sleep(BEFORE));
    });
    read(first).unwrap();
    let timings = read(second).unwrap().summary.timings;
    assert!(
        timings.vit >= BEFORE.as_secs_f64(),
        "what came before is kept"
    );
    assert!(
        timings.queue > 0.0 && timings.prefill > 0.0 && timings.decode > 0.0,
        "{timings:?}"
    );
}

#[test]
fn impossible_sizes_are_refused() {
    for options in [
        EngineOptions {
            slots: 0,
            ..options()
        },
        EngineOptions {
            slots: 257,
            ..options()
        },
        EngineOptions {
            n_ctx: 1,
            ..options()
        },
        EngineOptions {
            n_batch: 0,
            ..options()
        },
    ] {
        let error = Engine::start(model(), options).unwrap_err();
        assert!(matches!(error, Error::Context { .. }), "{error}");
    }
    // The model's learned length is the longest context.
    let engine = engine(EngineOptions {
        n_ctx: 100_000,
        ..options()
    });
    assert_eq!(engine.options().n_ctx, model().n_ctx_train());
}
