//! On whose threads layers are loaded, and a forward pass runs.

use candle_core::Device;
use rayon::prelude::*;

use crate::{Result, linear, operations};

/// Loads `count` layers, shared out among rayon's threads.
pub(crate) fn load_layers<T: Send>(
    count: usize,
    load: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let by_candle = linear::is_by_candle();
    let layers = (0..count).into_par_iter();
    layers
        .map(|index| like(by_candle, || load(index)))
        .collect()
}

/// Runs `work` as the thread would that asks for it, which may be inside of [`linear::by_candle`].
fn like<T>(by_candle: bool, work: impl FnOnce() -> T) -> T {
    match by_candle {
        true => linear::by_candle(work),
        false => work(),
    }
}

/// Runs `work` on a thread of rayon's where it computes on a CPU. A forward pass has some two hundred loops and products that
/// are shared out among those threads. From another thread each of them would be handed over, and that thread woken at the
/// end: with two threads and the demo's ViT in 8 bits, 950 context switches a picture beside 165, and some 7 % of the time.
pub(crate) fn among_workers<T: Send>(device: &Device, work: impl FnOnce() -> T + Send) -> T {
    if !device.is_cpu() || rayon::current_thread_index().is_some() {
        return work();
    }
    // What is kept for this thread counts there too.
    let by_candle = linear::is_by_candle();
    let recorder = operations::replace_recorder(None);
    let (result, recorder) = rayon::scope(|_| {
        let before = operations::replace_recorder(recorder);
        let result = like(by_candle, work);
        (result, operations::replace_recorder(before))
    });
    operations::replace_recorder(recorder);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::{record, timed};

    #[test]
    fn what_is_kept_for_a_thread_comes_along() {
        let name = || std::thread::current().name().map(str::to_owned);
        let outside = name();
        let (inside, operations) = record(|| {
            linear::by_candle(|| {
                among_workers(&Device::Cpu, || {
                    assert!(linear::is_by_candle());
                    timed("work", || (name(), rayon::current_thread_index()))
                })
            })
        });
        assert!(inside.0 != outside && inside.1.is_some());
        assert_eq!(operations.len(), 1);
        assert!(!linear::is_by_candle());
        among_workers(&Device::Cpu, || assert!(!linear::is_by_candle()));
    }

    #[test]
    fn layers_are_loaded_as_the_caller_would() {
        let load = |_| Ok(linear::is_by_candle());
        let inside = linear::by_candle(|| load_layers(100, load)).unwrap();
        assert_eq!(inside, [true; 100]);
        assert_eq!(load_layers(100, load).unwrap(), [false; 100]);
    }
}
