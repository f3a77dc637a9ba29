//! `qbridge inspect`.

use std::path::PathBuf;

use clap::Args;

/// `qbridge inspect`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  qbridge inspect demo
  qbridge inspect demo --verify")]
pub struct InspectArgs {
    /// Bundle directory
    pub bundle: PathBuf,
    /// Also read every file and compare its SHA-256
    #[arg(long)]
    pub verify: bool,
}
