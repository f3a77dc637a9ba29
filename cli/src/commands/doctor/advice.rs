//! What could be better, and what to do about it.

use bridge::language_model::GgufInfo;

use super::GB;
use super::report::BundleReport;
use crate::machine::Machine;

/// About the machine and the build.
pub fn of_machine(machine: &Machine) -> Vec<String> {
    let mut advice = Vec::new();
    let mut say = |text: &str| advice.push(text.to_owned());
    if machine.has_nvidia_driver() && !machine.has_cuda {
        say(
            "an NVIDIA GPU is here, and this build does not use it: cargo build --release -p qbridge-cli --features cuda",
        );
    }
    if machine.has_cuda && machine.gpu().is_none() {
        say(
            "this build is for an NVIDIA GPU, and none is visible: nvidia-smi says why, and a container needs --gpus all",
        );
    }
    let has = |name: &str| machine.instruction_sets.contains(&name);
    if cfg!(target_arch = "x86_64") && !has("avx2") {
        say("this processor has no AVX2: expect a fraction of the speed of one that has");
    }
    for (name, told) in [("avx512f", "AVX512 = 1"), ("avx2", "AVX2 = 1")] {
        match (has(name), machine.llama_cpp.contains(told)) {
            (true, false) => say(&format!(
                "this processor has {name}, and llama.cpp was built without: `make build` on this machine builds for it"
            )),
            (false, true) => say(&format!(
                "llama.cpp was built for {name}, which this processor lacks: build on this machine, or for any with AVX2 \
                 by `make build PORTABLE=1`"
            )),
            _ => {}
        }
    }
    if machine.usable_threads < machine.cores {
        say(&format!(
            "this process may use {} of {} cores: a quota or an affinity is set",
            machine.usable_threads, machine.cores
        ));
    }
    let policy = machine.openmp.get("OMP_WAIT_POLICY");
    let spins = policy.is_some_and(|policy| policy.eq_ignore_ascii_case("active"));
    if spins {
        say(
            "OMP_WAIT_POLICY=active lets llama.cpp's threads take the cores from other work: leave it out",
        );
    }
    advice
}

/// About a bundle on this machine.
pub fn of_bundle(llm: Option<&GgufInfo>, report: &BundleReport, machine: &Machine) -> Vec<String> {
    let mut advice = Vec::new();
    if !report.fits {
        advice.push(match &report.way_out {
            Some(flags) => format!("it fits with {flags}"),
            None if llm.is_none() => format!(
                "take a machine with {:.1} GB of free memory",
                report.total as f64 / GB
            ),
            None => format!(
                "take a smaller language model or a smaller type of it (`qbridge convert --llm-quant Q4_K_M`), or a \
                 machine with {:.1} GB of free memory",
                report.total as f64 / GB
            ),
        });
    }
    if machine.gpu().is_some() {
        return advice;
    }
    let kind = llm.map_or("", GgufInfo::file_type_name);
    match kind {
        "F32" | "F16" | "BF16" => advice.push(format!(
            "on a CPU a language model in Q8_0 answers faster than in {kind}, and one in Q4_0 fastest (`--llm-quant`)"
        )),
        "Q4_1" | "Q5_0" | "Q5_1" => advice.push(format!(
            "llama.cpp has no fast product for {kind} on a CPU: IQ4_NL and Q4_0 read prompts about twice as fast, and Q8_0 \
             faster too (`--llm-quant`)"
        )),
        "Q8_0" | "Q4_K_S" | "Q4_K_M" => advice.push(format!(
            "on a CPU Q4_0 reads prompts and answers faster than {kind}, less exactly (`--llm-quant Q4_0`)"
        )),
        _ => {}
    }
    if report.total_int8 < report.total {
        advice.push(format!(
            "--vision int8 encodes pictures faster, a little less exactly, and takes {:.2} GB less",
            (report.total - report.total_int8) as f64 / GB
        ));
    }
    advice
}
