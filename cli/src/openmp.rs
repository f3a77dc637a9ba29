//! How llama.cpp's threads wait for each other.

/// Iterations before a waiting thread sleeps: some microseconds, longer than
/// most waits inside a step. Measured on two cores, 100 tokens of a 135M model:
/// about as fast as the default on an idle machine, and 8 to 60 times faster
/// beside another busy process, where the default spins through whole time slices.
#[cfg(target_os = "linux")]
const SPIN_COUNT: &str = "1000";

/// The same where only the whole counts: steps are long there, and so are waits
/// inside them, which end sooner than a sleep on an idle machine. A busy one loses
/// nothing by it as long as there are large steps (docs/performance.md).
#[cfg(target_os = "linux")]
const THROUGHPUT_SPIN_COUNT: &str = "10000";

/// Bounds the spinning, unless the environment says how it should be.
///
/// GNU OpenMP reads its settings before `main`, so the program starts itself
/// anew with the setting in place (the same process, nothing read or opened
/// yet). Where that fails it goes on as it is: slower on a busy machine.
pub fn bound_spinning(for_throughput: bool) {
    #[cfg(not(target_os = "linux"))]
    let _ = for_throughput;
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;

        let is_set = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"]
            .iter()
            .any(|name| std::env::var_os(name).is_some());
        let mut args = std::env::args_os();
        if let (false, Some(name), Ok(program)) = (is_set, args.next(), std::env::current_exe()) {
            let count = match for_throughput {
                true => THROUGHPUT_SPIN_COUNT,
                false => SPIN_COUNT,
            };
            let error = std::process::Command::new(program)
                .arg0(name)
                .args(args)
                .env("GOMP_SPINCOUNT", count)
                .exec();
            tracing::debug!(%error, "GOMP_SPINCOUNT could not be set");
        }
    }
}
