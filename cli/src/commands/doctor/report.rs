//! What was found: text for people, an object for programs.

use std::io::Write;

use bridge::engine::{CacheType, FlashAttention};
use bridge::plan::{Memory, Plan};
use serde::Serialize;

use super::GB;
use crate::machine::Machine;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// This machine and this build.
    pub machine: Machine,
    /// Bytes to fit into.
    pub memory: u64,
    /// The bundle, where one was named.
    pub bundle: Option<BundleReport>,
    /// Published models, where none was.
    pub models: Option<Vec<ModelFit>>,
    /// What to do, in sentences.
    pub advice: Vec<String>,
}

/// A bundle on this machine.
#[derive(Debug, Serialize)]
pub struct BundleReport {
    /// Its name.
    pub name: String,
    /// Architecture and type of the language model, such as `llama Q4_1`, where there is one.
    pub language_model: Option<String>,
    /// How it would be run.
    pub settings: Settings,
    /// Bytes that each part needs, at most.
    pub memory: Memory,
    /// All of them.
    pub total: u64,
    /// All of them with the vision side in f32, and in 8 bits.
    pub total_f32: u64,
    /// See `total_f32`.
    pub total_int8: u64,
    /// Whether they fit.
    pub fits: bool,
    /// Flags that let it fit, where it does not.
    pub way_out: Option<String>,
}

/// How a bundle would be run.
#[derive(Debug, Serialize)]
pub struct Settings {
    /// How its language model would, where it has one.
    #[serde(flatten)]
    pub engine: Option<EngineSettings>,
    /// How ViT and Q-Former multiply on a CPU: `f32` or `int8`.
    pub vision: &'static str,
}

/// How a language model would be run.
#[derive(Debug, Serialize)]
pub struct EngineSettings {
    /// Requests at once.
    pub slots: u16,
    /// Rows of context for each.
    pub n_ctx: usize,
    /// Most rows of a step, and those computed at once.
    pub n_batch: usize,
    /// See `n_batch`.
    pub n_ubatch: usize,
    /// Threads of the language model.
    pub threads: Option<usize>,
    /// Type of the KV cache.
    pub cache_type: CacheType,
    /// `auto`, `on` or `off`.
    pub flash_attention: &'static str,
}

impl EngineSettings {
    /// Those of a plan for so many requests at once.
    pub fn of(plan: &Plan, slots: u16) -> EngineSettings {
        let engine = &plan.engine;
        EngineSettings {
            slots,
            n_ctx: engine.n_ctx,
            n_batch: engine.n_batch,
            n_ubatch: engine.n_ubatch,
            threads: engine.threads,
            cache_type: engine.cache_type,
            flash_attention: match plan.flash_attention {
                FlashAttention::Auto => "auto",
                FlashAttention::Off => "off",
                FlashAttention::On => "on",
            },
        }
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let cache_type = match self.cache_type {
            CacheType::F16 => "f16",
            CacheType::F32 => "f32",
            CacheType::Q8_0 => "q8_0",
        };
        writeln!(
            out,
            "  runs with   {} slots of {} rows, batch {}, ubatch {}, {} threads",
            self.slots,
            self.n_ctx,
            self.n_batch,
            self.n_ubatch,
            self.threads.unwrap_or(1)
        )?;
        writeln!(
            out,
            "              KV cache {cache_type}, flash attention {}",
            self.flash_attention
        )
    }
}

/// A published model.
#[derive(Debug, Serialize)]
pub struct ModelFit {
    /// Its name.
    pub model: &'static str,
    /// With each type of its language model.
    pub fits: Vec<Fit>,
}

/// A published model with its language model in one type.
#[derive(Debug, Serialize)]
pub struct Fit {
    /// The type.
    pub quantization: &'static str,
    /// What it needs with its vision side in f32.
    pub gigabytes: f64,
    /// Whether that fits.
    pub fits: bool,
    /// Whether it does with `--vision int8`.
    pub fits_with_int8: bool,
}

impl Report {
    /// Prints the text.
    pub fn print(&self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        self.print_machine(&mut out)?;
        if let Some(bundle) = &self.bundle {
            bundle.print(&mut out, self.memory)?;
        }
        if let Some(models) = &self.models {
            print_models(&mut out, models, self.memory)?;
        }
        if !self.advice.is_empty() {
            writeln!(out, "\nadvice")?;
        }
        for advice in &self.advice {
            writeln!(out, "  - {advice}")?;
        }
        out.flush()
    }

    fn print_machine(&self, out: &mut impl Write) -> std::io::Result<()> {
        let machine = &self.machine;
        let build = match (machine.has_cuda, machine.has_metal) {
            (true, _) => "for CPU and NVIDIA GPUs",
            (_, true) => "for CPU and Apple's GPU",
            _ => "for CPU alone",
        };
        let gpu = match machine.gpu() {
            Some(gpu) => format!(
                "{} ({}), {:.1} of {:.1} GB free",
                gpu.name,
                gpu.description,
                gpu.memory_free as f64 / GB,
                gpu.memory_total as f64 / GB
            ),
            None => "none that this build uses".to_owned(),
        };
        let openmp = machine.openmp.iter();
        let openmp: Vec<String> = openmp
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        writeln!(out, "machine ({})", machine.platform)?;
        writeln!(
            out,
            "  CPU         {}, {} cores, {} threads usable",
            machine.cpu, machine.cores, machine.usable_threads
        )?;
        writeln!(out, "  has         {}", machine.instruction_sets.join(" "))?;
        writeln!(
            out,
            "  memory      {:.1} GB, {:.1} available",
            machine.memory_total as f64 / GB,
            machine.memory_available as f64 / GB
        )?;
        writeln!(out, "  GPU         {gpu}")?;
        writeln!(out, "  qbridge     {}, built {build}", machine.version)?;
        writeln!(out, "  llama.cpp   {}", machine.llama_cpp)?;
        writeln!(out, "  OpenMP      {}", openmp.join(" "))
    }
}

impl BundleReport {
    fn print(&self, out: &mut impl Write, memory: u64) -> std::io::Result<()> {
        let language_model = self.language_model.as_deref();
        writeln!(
            out,
            "\n{} ({})",
            self.name,
            language_model.unwrap_or("compares pictures and texts")
        )?;
        if let Some(engine) = &self.settings.engine {
            engine.print(out)?;
        }
        writeln!(out, "  vision      {}", self.settings.vision)?;
        writeln!(out, "  memory, at most, in GB")?;
        for (part, bytes) in self.memory.parts() {
            if bytes > 0 {
                writeln!(out, "    {part:<22} {:>8.3}", bytes as f64 / GB)?;
            }
        }
        writeln!(
            out,
            "    {:<22} {:>8.3} (vision f32: {:.3}, int8: {:.3})",
            "all",
            self.total as f64 / GB,
            self.total_f32 as f64 / GB,
            self.total_int8 as f64 / GB
        )?;
        let verdict = match self.fits {
            true => "it fits",
            false => "it does not fit",
        };
        writeln!(out, "  {verdict} into {:.1} GB", memory as f64 / GB)
    }
}

fn print_models(out: &mut impl Write, models: &[ModelFit], memory: u64) -> std::io::Result<()> {
    writeln!(
        out,
        "\npublished models in {:.1} GB: + fits, i fits with --vision int8, - does not",
        memory as f64 / GB
    )?;
    for (i, model) in models.iter().enumerate() {
        if i == 0 {
            let types: Vec<String> = model
                .fits
                .iter()
                .map(|fit| format!("{:>9}", fit.quantization))
                .collect();
            writeln!(out, "  {:<36}{}", "GB", types.concat())?;
        }
        let cells: Vec<String> = model
            .fits
            .iter()
            .map(|fit| {
                let mark = match (fit.fits, fit.fits_with_int8) {
                    (true, _) => '+',
                    (false, true) => 'i',
                    (false, false) => '-',
                };
                format!("{:>7.1} {mark}", fit.gigabytes)
            })
            .collect();
        writeln!(out, "  {:<36}{}", model.model, cells.concat())?;
    }
    Ok(())
}
