//! `qbridge doctor`.

use std::path::PathBuf;

use clap::Args;

use super::EngineArgs;

/// `qbridge doctor`
#[derive(Debug, Args)]
#[command(
    after_help = "With a bundle: the memory that its parts need beside what there is, the settings that would be used, and
exit code 1 where it cannot run. Without one: which published models fit. Nothing is loaded.

Examples:
  qbridge doctor
  qbridge doctor demo
  qbridge doctor demo --slots 16 --ctx-size 2048 --cache-type q8_0
  qbridge doctor --memory 16 --json"
)]
pub struct DoctorArgs {
    /// Bundle directory
    pub bundle: Option<PathBuf>,
    /// Requests that are to be answered at once
    #[arg(long, default_value_t = 4, env = "QBRIDGE_SLOTS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub slots: u16,
    /// MiB kept of pictures seen before
    #[arg(long, default_value_t = 256, env = "QBRIDGE_IMAGE_CACHE")]
    pub image_cache: u32,
    /// GB of memory to fit into [default: what is available here]
    #[arg(long, value_name = "GB", value_parser = parse_memory)]
    pub memory: Option<f64>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub engine: EngineArgs,
}

fn parse_memory(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("expected a number of GB, for example 16".to_owned()),
    }
}
