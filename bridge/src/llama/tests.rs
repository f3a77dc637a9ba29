use super::*;
use std::path::Path;

fn model() -> Arc<LanguageModel> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llm/llm.gguf");
    Arc::new(LanguageModel::load(&path).unwrap())
}

fn context(abort: &Arc<AtomicBool>) -> Context {
    context_of(8, abort)
}

fn context_of(n_batch: usize, abort: &Arc<AtomicBool>) -> Context {
    let options = ContextOptions {
        n_ctx: 256,
        n_batch,
        n_ubatch: n_batch,
        n_seq_max: 2,
        cache_type: CacheType::F32,
        flash_attention: FlashAttention::Auto,
        threads: 1,
    };
    Context::new(model(), &options, abort.clone()).unwrap()
}

/// If this fails, llama-cpp-2 changed the layout of `LlamaModel`: nothing in
/// this module may be used until `model_ptr` is right again.
#[test]
fn model_pointer_is_the_models_own() {
    let model = model();
    assert_eq!(n_embd_input(model.raw()), 128);
    assert!(has_tokenizer(model.raw()));
    assert_eq!(encoder_and_decoder(model.raw()), (false, true));
}

#[test]
fn rows_out_of_range_are_refused_and_leave_the_batch_alone() {
    let mut context = context(&Arc::default());
    assert!(context.add_token(2, 0, 5, false).is_err());
    assert!(context.add_token(0, usize::MAX, 5, false).is_err());
    assert!(context.add_token(0, 0, 320, false).is_err());
    assert!(context.add_token(0, 0, -1, false).is_err());
    assert!(context.add_embedding(0, 0, &[0.0; 127], false).is_err());
    assert!(context.add_embedding(0, 0, &[0.0; 256], false).is_err());
    assert_eq!(context.n_rows(), 0);
    assert_eq!(context.process(), Err(ProcessError::Refused));
    for i in 0..8 {
        context.add_token(0, i, 5, i == 7).unwrap();
    }
    assert!(
        context.add_token(1, 0, 5, false).is_err(),
        "the batch is full"
    );
    context.process().unwrap();
    assert_eq!(context.last_position(0), Some(7));
    assert_eq!(context.last_position(1), None);
    context.remove(0);
    assert_eq!(context.last_position(0), None);
}

#[test]
fn more_logits_than_there_is_room_for_are_refused() {
    let mut context = context_of(64, &Arc::default());
    let most = 2 + SPARE_OUTPUTS;
    let rows: Vec<Row> = (0..most)
        .map(|i| context.add_token(0, i, 5, true).unwrap())
        .collect();
    assert_eq!(context.outputs_left(), 0);
    assert!(context.add_token(0, most, 5, true).is_err());
    context.add_token(0, most, 5, false).unwrap();
    context.process().unwrap();
    assert!(rows.iter().all(|&row| context.logits(row).is_ok()));
}

#[test]
fn logits_come_for_the_rows_that_asked() {
    let mut context = context(&Arc::default());
    let first = context.add_token(0, 0, 5, false).unwrap();
    let second = context.add_token(1, 0, 6, true).unwrap();
    let third = context.add_token(0, 1, 7, true).unwrap();
    assert_eq!(context.outputs_left(), SPARE_OUTPUTS);
    context.process().unwrap();
    assert!(context.logits(first).is_err());
    let of_second = context.logits(second).unwrap().to_vec();
    let of_third = context.logits(third).unwrap().to_vec();
    assert_eq!((of_second.len(), of_third.len()), (320, 320));
    assert_ne!(of_second, of_third);
}

#[test]
fn a_batch_that_leaves_a_gap_is_refused() {
    let mut context = context(&Arc::default());
    context.add_token(0, 3, 5, true).unwrap();
    context.process().unwrap();
    context.clear();
    context.add_token(0, 9, 5, true).unwrap();
    assert_eq!(context.process(), Err(ProcessError::Refused));
}

#[test]
fn a_full_cache_says_no_room() {
    let mut context = context(&Arc::default());
    for step in 0..32 {
        context.clear();
        for i in 0..8 {
            context.add_token(0, step * 8 + i, 5, false).unwrap();
        }
        context.process().unwrap();
    }
    context.clear();
    context.add_token(1, 0, 5, true).unwrap();
    assert_eq!(context.process(), Err(ProcessError::NoRoom));
    context.remove(0);
    context.process().unwrap();
}

#[test]
fn the_abort_flag_stops_a_computation() {
    let abort = Arc::new(AtomicBool::new(true));
    let mut context = context(&abort);
    context.add_token(0, 0, 5, true).unwrap();
    assert_eq!(context.process(), Err(ProcessError::Aborted));
    abort.store(false, Ordering::Relaxed);
    context.process().unwrap();
}

#[test]
fn a_context_that_cannot_be_made_says_why() {
    let options = ContextOptions {
        n_ctx: 256,
        n_batch: 8,
        n_ubatch: 8,
        n_seq_max: 1,
        cache_type: CacheType::Q8_0,
        flash_attention: FlashAttention::Off,
        threads: 1,
    };
    let error = Context::new(model(), &options, Arc::default())
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("needs fused attention"),
        "{error}"
    );
}

#[test]
fn type_layouts() {
    assert_eq!(type_layout(sys::GGML_TYPE_F32), Some((1, 4)));
    assert_eq!(type_layout(sys::GGML_TYPE_Q4_1), Some((32, 20)));
    assert_eq!(type_layout(4), None, "a type that was removed");
    assert_eq!(type_layout(u32::MAX), None);
}

#[test]
fn stopping_as_asked_is_no_error() {
    assert!(is_abort(
        "graph_compute: ggml_backend_sched_graph_compute_async failed with error 1"
    ));
    assert!(is_abort(
        "process_ubatch: failed to compute graph, compute status: 1"
    ));
    for failed in [
        "graph_compute: ggml_backend_sched_graph_compute_async failed with error -1",
        "process_ubatch: failed to compute graph, compute status: -2",
    ] {
        assert!(!is_abort(failed), "{failed}");
    }
}
