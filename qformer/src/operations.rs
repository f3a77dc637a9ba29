//! Where the time of a forward pass goes, operation by operation.
//!
//! Nothing is measured unless [`record`] asks for it: a pass that nobody records looks at one
//! thread-local value for each operation.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use candle_core::Tensor;

/// All operations of one name in a recorded pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// What it is, such as `MLP: fc1, GELU`.
    pub name: &'static str,
    /// How often it ran.
    pub calls: usize,
    /// How long, all calls together, without the operations inside of it that have names of their own.
    pub duration: Duration,
    /// Floating-point operations of its products, a multiplication and an addition counting as
    /// two; 0 where it has none. Products in 8 bits count like those in f32.
    pub flops: u64,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

#[derive(Default)]
pub(crate) struct Recorder {
    operations: Vec<Operation>,
    /// Those that are running, the innermost last.
    running: Vec<Running>,
}

struct Running {
    operation: usize,
    /// What operations inside of it took.
    inner: Duration,
}

impl Recorder {
    fn begin(&mut self, name: &'static str) {
        let known = self
            .operations
            .iter()
            .position(|operation| operation.name == name);
        let operation = known.unwrap_or_else(|| {
            self.operations.push(Operation {
                name,
                calls: 0,
                duration: Duration::ZERO,
                flops: 0,
            });
            self.operations.len() - 1
        });
        self.running.push(Running {
            operation,
            inner: Duration::ZERO,
        });
    }

    fn end(&mut self, elapsed: Duration) {
        let Some(ended) = self.running.pop() else {
            return;
        };
        if let Some(outer) = self.running.last_mut() {
            outer.inner += elapsed;
        }
        let operation = &mut self.operations[ended.operation];
        operation.calls += 1;
        operation.duration += elapsed.saturating_sub(ended.inner);
    }
}

/// Runs `work` and tells what its operations on this thread took, in the order in which they first
/// began. What several threads share counts once, from its beginning to its end.
///
/// On a GPU each operation is waited for, so a recorded pass takes longer than another.
pub fn record<T>(work: impl FnOnce() -> T) -> (T, Vec<Operation>) {
    let before = RECORDER.replace(Some(Recorder::default()));
    let result = work();
    let recorder = RECORDER.replace(before);
    (
        result,
        recorder.map_or_else(Vec::new, |recorder| recorder.operations),
    )
}

/// Gives this thread another recorder, and returns the one that it had.
pub(crate) fn replace_recorder(recorder: Option<Recorder>) -> Option<Recorder> {
    RECORDER.replace(recorder)
}

fn is_recording() -> bool {
    RECORDER.with_borrow(Option::is_some)
}

fn with_recorder(change: impl FnOnce(&mut Recorder)) {
    RECORDER.with_borrow_mut(|recorder| {
        if let Some(recorder) = recorder {
            change(recorder);
        }
    });
}

/// `work` as an operation of this name, if anybody records.
pub(crate) fn timed<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    if !is_recording() {
        return work();
    }
    with_recorder(|recorder| recorder.begin(name));
    let started = Instant::now();
    let result = work();
    let elapsed = started.elapsed();
    with_recorder(|recorder| recorder.end(elapsed));
    result
}

/// The same for work that a GPU may do in its own time: it is waited for, if anybody records.
pub(crate) fn timed_tensor(
    name: &'static str,
    work: impl FnOnce() -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    timed(name, || {
        let tensor = work()?;
        if is_recording() {
            tensor.device().synchronize()?;
        }
        Ok(tensor)
    })
}

/// Counts a product of `rows` rows of `inputs` values with `outputs` columns to the operation that is running.
pub(crate) fn count_product(rows: usize, inputs: usize, outputs: usize) {
    with_recorder(|recorder| {
        if let Some(running) = recorder.running.last() {
            let flops = [rows, inputs, outputs]
                .into_iter()
                .fold(2, |product: u64, n| product.saturating_mul(n as u64));
            recorder.operations[running.operation].flops += flops;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleep(milliseconds: u64) {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }

    #[test]
    fn inner_operations_are_taken_out_of_outer_ones() {
        let started = Instant::now();
        let ((), operations) = record(|| {
            for _ in 0..2 {
                timed("outer", || {
                    count_product(3, 5, 7);
                    sleep(2);
                    timed("inner", || sleep(40));
                });
            }
        });
        let total = started.elapsed();
        let [outer, inner] = &operations[..] else {
            panic!("{operations:?}");
        };
        assert_eq!(
            (outer.name, outer.calls, outer.flops),
            ("outer", 2, 2 * 210)
        );
        assert_eq!((inner.name, inner.calls, inner.flops), ("inner", 2, 0));
        assert!(inner.duration >= Duration::from_millis(80), "{inner:?}");
        assert!(outer.duration >= Duration::from_millis(4), "{outer:?}");
        assert!(outer.duration + inner.duration <= total, "{operations:?}");
    }

    #[test]
    fn nothing_is_recorded_unasked() {
        assert_eq!(timed("alone", || 7), 7);
        count_product(1, 1, 1);
        assert_eq!(record(|| ()), ((), Vec::new()));
        // And what is recorded inside stays inside.
        let (inner, outer) = record(|| record(|| timed("inside", || ())).1);
        assert_eq!((inner.len(), outer.len()), (1, 0));
    }
}
