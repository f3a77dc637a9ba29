//! `qbridge serve`: a bundle over HTTP.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use bridge::model::{Model, ModelOptions};
use server::ServeOptions;

use super::model_options;
use crate::args::ServeArgs;
use crate::progress;

/// Runs the command until SIGINT or SIGTERM.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        // The port first: a taken one should not cost a model load.
        let listener = tokio::net::TcpListener::bind((args.host.as_str(), args.port))
            .await
            .with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
        let address = listener.local_addr()?;
        let spinner = progress::spinner(format!("loading {}", args.bundle.display()));
        let options = ModelOptions {
            queue: usize::from(args.queue),
            ..model_options(&args.engine, args.slots)
        };
        let bundle = args.bundle.clone();
        let model = tokio::task::spawn_blocking(move || Model::open(&bundle, &options)).await??;
        spinner.finish_and_clear();
        eprintln!("serving {} on http://{address}/v1", model.manifest().name);
        server::serve(
            Arc::new(model),
            ServeOptions {
                max_requests: usize::from(args.slots) + usize::from(args.queue),
                ..ServeOptions::default()
            },
            listener,
            shutdown_signal(),
        )
        .await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Resolves on SIGINT or, where there is one, SIGTERM.
async fn shutdown_signal() {
    let interrupt = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                () = interrupt => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    interrupt.await;
}
