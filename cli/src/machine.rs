//! The machine and this build, in words and numbers.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use bridge::llama::{self, ComputeDevice};
use serde::Serialize;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Variables that GNU OpenMP, under llama.cpp's threads, reads.
const OPENMP_VARIABLES: [&str; 5] = [
    "GOMP_SPINCOUNT",
    "OMP_WAIT_POLICY",
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "GOMP_CPU_AFFINITY",
];

/// What there is to compute with.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Version of qbridge.
    pub version: &'static str,
    /// Operating system and processor family, such as `linux x86_64`.
    pub platform: String,
    /// What the processor calls itself.
    pub cpu: String,
    /// Physical cores.
    pub cores: usize,
    /// Threads that this process may run at once: fewer in a container with a quota.
    pub usable_threads: usize,
    /// Those of the processor that products use.
    pub instruction_sets: Vec<&'static str>,
    /// Bytes of memory, or of this container's limit.
    pub memory_total: u64,
    /// Bytes that a program started now would get.
    pub memory_available: u64,
    /// Whether this build can use an NVIDIA GPU.
    pub has_cuda: bool,
    /// Whether this build can use Apple's GPU.
    pub has_metal: bool,
    /// What llama.cpp finds, the CPU among them.
    pub devices: Vec<ComputeDevice>,
    /// What llama.cpp was built for, in its own words.
    pub llama_cpp: String,
    /// Settings of OpenMP in the environment.
    pub openmp: BTreeMap<&'static str, String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        let system = System::new_with_specifics(
            RefreshKind::nothing()
                .with_cpu(CpuRefreshKind::nothing())
                .with_memory(MemoryRefreshKind::everything()),
        );
        let (mut memory_total, mut memory_available) =
            (system.total_memory(), system.available_memory());
        if let Some(limits) = system.cgroup_limits() {
            memory_total = memory_total.min(limits.total_memory);
            memory_available = memory_available.min(limits.free_memory);
        }
        let cpu = system.cpus().first().map(|cpu| cpu.brand().trim());
        let set = |name| Some((name, std::env::var(name).ok()?));
        Machine {
            version: env!("CARGO_PKG_VERSION"),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: cpu
                .filter(|name| !name.is_empty())
                .unwrap_or("unknown")
                .to_owned(),
            cores: System::physical_core_count().unwrap_or(1),
            usable_threads: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            instruction_sets: instruction_sets(),
            memory_total,
            memory_available,
            has_cuda: cfg!(feature = "cuda"),
            has_metal: cfg!(feature = "metal"),
            devices: llama::devices(),
            llama_cpp: llama::system_info(),
            openmp: OPENMP_VARIABLES.into_iter().filter_map(set).collect(),
        }
    }

    /// A GPU that this build computes on.
    pub fn gpu(&self) -> Option<&ComputeDevice> {
        self.devices.iter().find(|device| device.is_gpu)
    }

    /// Whether the driver of an NVIDIA GPU is there, whatever this build can do with it.
    pub fn has_nvidia_driver(&self) -> bool {
        Path::new("/proc/driver/nvidia/version").exists()
    }
}

macro_rules! detected {
    ($detect:ident, $($name:tt),*) => {
        [$(($name, std::arch::$detect!($name))),*]
            .into_iter()
            .filter_map(|(name, is_there)| is_there.then_some(name))
            .collect()
    };
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    detected!(
        is_x86_feature_detected,
        "avx",
        "f16c",
        "fma",
        "avx2",
        "avxvnni",
        "avx512f",
        "avx512bw",
        "avx512vnni",
        "avx512bf16"
    )
}

#[cfg(target_arch = "aarch64")]
fn instruction_sets() -> Vec<&'static str> {
    detected!(
        is_aarch64_feature_detected,
        "neon",
        "fp16",
        "dotprod",
        "i8mm",
        "bf16",
        "sve"
    )
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}
