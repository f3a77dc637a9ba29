//! `qbridge completion` and `qbridge man`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

/// `qbridge completion`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  qbridge completion bash > ~/.local/share/bash-completion/completions/qbridge
  qbridge completion zsh > ~/.zfunc/_qbridge
  qbridge completion fish > ~/.config/fish/completions/qbridge.fish")]
pub struct CompletionArgs {
    /// The shell
    pub shell: Shell,
}

/// `qbridge man`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  qbridge man --out ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Directory to write qbridge.1 and a page for each command to; made where it is missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}
