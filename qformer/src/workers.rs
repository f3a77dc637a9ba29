//! On whose thread a forward pass runs.

use candle_core::Device;

use crate::{linear, operations};

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
        let result = match by_candle {
            true => linear::by_candle(work),
            false => work(),
        };
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
}
