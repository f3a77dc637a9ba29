//! Several workers of one engine: each request is answered as by one alone.

use super::*;

/// Two workers of two slots each.
fn two_workers() -> EngineOptions {
    EngineOptions {
        slots: 4,
        workers: Some(2),
        ..options()
    }
}

#[test]
fn they_answer_as_one_does() {
    let engine = engine(two_workers());
    assert_eq!(engine.options().workers, Some(2));
    let cases = cases();
    let receivers: Vec<_> = (cases.iter().cycle().take(60))
        .map(|case| submit(&engine, case.parts(), |_| {}))
        .collect();
    for (receiver, case) in receivers.into_iter().zip(cases.iter().cycle()) {
        assert_eq!(read(receiver).unwrap().ids, case.answer_ids);
    }
    wait_until("all slots free", || engine.activity().active == 0);
    let activity = engine.activity();
    assert_eq!((activity.sequences, activity.waiting), (0, 0));
    assert!(activity.kept_sequences > 0);
}

#[test]
fn a_request_may_take_more_than_a_workers_share() {
    let engine = engine(two_workers());
    let case = &cases()[0];
    let four = |sequence: &mut Sequence| sequence.sampling.n = 4;
    // Among others, for which it waits and which wait for it.
    let before: Vec<_> = (0..6)
        .map(|_| submit(&engine, case.parts(), |_| {}))
        .collect();
    let mut wide = submit(&engine, case.parts(), four);
    let after: Vec<_> = (0..6)
        .map(|_| submit(&engine, case.parts(), |_| {}))
        .collect();
    let (mut ids, mut done) = (vec![Vec::new(); 4], 0);
    while done < 4 {
        match wide.blocking_recv().unwrap() {
            Event::Token { choice, id, .. } => ids[choice].push(id),
            Event::Done(_) => done += 1,
            Event::Error(error) => panic!("{error}"),
        }
    }
    assert!(ids.iter().all(|ids| *ids == case.answer_ids));
    for receiver in before.into_iter().chain(after) {
        assert_eq!(read(receiver).unwrap().ids, case.answer_ids);
    }
}

#[test]
fn questions_about_a_picture_go_to_the_worker_that_has_it() {
    let engine = engine(two_workers());
    let (one, other) = super::prefixes::two_pictures();
    let cases = cases();
    let pictures = [one, other].map(|case| cases[case].soft_prompt.clone());
    let n_rows = pictures[0].len() / model().n_embd();
    let question = |picture: usize, number: i32| {
        vec![
            PromptPart::Embeddings(pictures[picture].clone()),
            PromptPart::Tokens(vec![50 + number, 51, 52]),
        ]
    };
    let receivers: Vec<_> = (0..16)
        .map(|i| submit(&engine, question(i as usize % 2, i), |_| {}))
        .collect();
    let cached = receivers
        .into_iter()
        .map(|receiver| read(receiver).unwrap().summary.usage.cached_tokens);
    // Both workers may come to compute both: one that would be idle takes what there is.
    let anew = cached.filter(|&cached| cached < n_rows).count();
    assert!((2..=4).contains(&anew), "{anew} of 16");
}

#[test]
fn there_are_as_many_as_pay() {
    let settled = |options: EngineOptions| engine(options).options().workers;
    let many = |slots, threads, for_throughput| {
        settled(EngineOptions {
            slots,
            threads: Some(threads),
            for_throughput,
            ..options()
        })
    };
    assert_eq!(many(16, 2, false), Some(1));
    assert_eq!(many(16, 1, true), Some(1));
    assert_eq!(many(7, 8, true), Some(1));
    assert_eq!(many(8, 8, true), Some(2));
    assert_eq!(many(16, 3, true), Some(3));
    let asked = |slots, workers| {
        settled(EngineOptions {
            slots,
            threads: Some(4),
            workers: Some(workers),
            ..options()
        })
    };
    assert_eq!(asked(2, 3), Some(2));
    assert_eq!(asked(8, 0), Some(1));
    assert_eq!(asked(8, 9), Some(4));
}

#[test]
fn they_all_end_with_the_engine() {
    let engine = engine(two_workers());
    let case = &cases()[0];
    let endless = |sequence: &mut Sequence| {
        sequence.ignore_eos = true;
        sequence.max_tokens = None;
    };
    let receivers: Vec<_> = (0..12)
        .map(|_| submit(&engine, case.parts(), endless))
        .collect();
    wait_until("both at work", || engine.activity().active == 4);
    drop(engine);
    for receiver in receivers {
        assert!(matches!(read(receiver), Err(Error::Stopped)));
    }
}
