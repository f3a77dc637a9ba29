//! How llama.cpp's threads wait for each other.

/// Iterations before a waiting thread sleeps: some microseconds, longer than
/// most waits inside a step. Measured on two cores, 100 tokens of a 135M model:
/// about as fast as the default on an idle machine, and 8 to 60 times faster
/// beside another busy process, where the default spins through whole time slices.
#[cfg(target_os = "linux")]
const SPIN_COUNT: &str = "1000";

/// Bounds the spinning, unless the environment says how it should be.
///
/// GNU OpenMP reads its settings before `main`, so the program starts itself
/// anew with the setting in place (the same process, nothing read or opened
/// yet). Where that fails it goes on as it is: slower on a busy machine.
pub fn bound_spinning() {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;

        let is_set = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"]
            .iter()
            .any(|name| std::env::var_os(name).is_some());
        let mut args = std::env::args_os();
        if let (false, Some(name), Ok(program)) = (is_set, args.next(), std::env::current_exe()) {
            let error = std::process::Command::new(program)
                .arg0(name)
                .args(args)
                .env("GOMP_SPINCOUNT", SPIN_COUNT)
                .exec();
            tracing::debug!(%error, "GOMP_SPINCOUNT could not be set");
        }
    }
}
