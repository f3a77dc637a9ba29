//! `qbridge serve`: a bundle over HTTP.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bridge::model::{Model, ModelOptions};
use server::fetch::{FetchOptions, Fetcher, UrlPolicy};
use server::{ApiKeys, MediaDir, ServeOptions, Tls};

use super::model_options;
use crate::args::ServeArgs;
use crate::progress;

/// Keys in the environment, where no list of processes shows them.
const API_KEYS: &str = "QBRIDGE_API_KEYS";

/// Runs the command until SIGINT or SIGTERM.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let options = serve_options(args)?;
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((args.host.as_str(), args.port))
            .await
            .with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
        let address = listener.local_addr()?;
        let spinner = progress::spinner(format!("loading {}", args.bundle.display()));
        let model_options = ModelOptions {
            queue: usize::from(args.queue),
            prefix_cache: !args.no_prefix_cache,
            ..model_options(&args.engine, args.slots)
        };
        let bundle = args.bundle.clone();
        let load = move || {
            let model = Arc::new(Model::open(&bundle, &model_options)?);
            server::warm_up(&model)?;
            Ok(model)
        };
        let ready = |model: &Arc<Model>| {
            spinner.finish_and_clear();
            let name = &model.manifest().name;
            eprintln!("serving {name} on {scheme}://{address}/v1");
        };
        server::serve(load, options, listener, ready, shutdown_signal()).await?;
        Ok(ExitCode::SUCCESS)
    })
}

fn serve_options(args: &ServeArgs) -> Result<ServeOptions> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificates), Some(key)) => Some(Tls::from_pem_files(certificates, key)?),
        _ => None,
    };
    let fetcher = match &args.allow_remote_images {
        None => None,
        Some(hosts) => Some(Arc::new(Fetcher::new(FetchOptions {
            urls: UrlPolicy {
                hosts: hosts.iter().cloned().collect(),
                ..UrlPolicy::default()
            },
            ..FetchOptions::default()
        })?)),
    };
    let media = args.media_path.as_deref().map(|path| {
        MediaDir::open(path).with_context(|| format!("--media-path {}", path.display()))
    });
    Ok(ServeOptions {
        api_keys: api_keys(args)?,
        no_auth: args.no_auth,
        cors_origins: args.cors_origins.clone(),
        tls,
        fetcher,
        media: media.transpose()?,
        max_requests: usize::from(args.slots) + usize::from(args.queue),
        first_token_timeout: Duration::from_secs(args.first_token_timeout.into()),
        request_timeout: Duration::from_secs(args.request_timeout.into()),
        ..ServeOptions::default()
    })
}

/// The keys of the file and of the environment together.
fn api_keys(args: &ServeArgs) -> Result<Option<ApiKeys>> {
    let file = match &args.api_key_file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Some(text.with_context(|| format!("--api-key-file {}", path.display()))?)
        }
    };
    let environment = match std::env::var(API_KEYS) {
        Ok(keys) => Some(keys),
        Err(std::env::VarError::NotPresent) => None,
        Err(error) => return Err(error).context(API_KEYS),
    };
    if file.is_none() && environment.is_none() {
        return Ok(None);
    }
    let lines = file.iter().flat_map(|text| text.lines());
    let items = environment.iter().flat_map(|text| text.split(','));
    Ok(Some(ApiKeys::new(lines.chain(items))?))
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
