//! `qbridge serve`: a bundle over HTTP.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bridge::bundle::Manifest;
use bridge::model::ModelOptions;
use server::fetch::{FetchOptions, Fetcher, UrlPolicy};
use server::{ApiKeys, Loaded, MediaDir, ServeOptions, Source, Tls, Traces};

use super::model_options;
use crate::args::ServeArgs;
use crate::{progress, signals};

/// Keys in the environment, where no list of processes shows them.
const API_KEYS: &str = "QBRIDGE_API_KEYS";

/// Runs the command until SIGINT or SIGTERM.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new()?;
    let entered = runtime.enter();
    let options = serve_options(args)?;
    drop(entered);
    let models = models(args)?;
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((args.host.as_str(), args.port))
            .await
            .with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
        let address = listener.local_addr()?;
        let (names, models): (Vec<_>, Vec<_>) = models.into_iter().unzip();
        let names = names.join(", ");
        let spinner = progress::spinner(format!("loading {names}"));
        let ready = || {
            spinner.finish_and_clear();
            eprintln!("serving {names} on {scheme}://{address}/v1");
            if !args.no_ui {
                eprintln!("a page to ask on: {scheme}://{address}/");
            }
        };
        server::serve(models, options, listener, ready, signals::stop()).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// The bundles, each with its name.
fn models(args: &ServeArgs) -> Result<Vec<(String, Source<Loaded>)>> {
    let options = ModelOptions {
        queue: usize::from(args.queue),
        prefix_cache: !args.no_prefix_cache,
        queue_timeout: Some(Duration::from_secs(args.queue_timeout.into())),
        image_cache_bytes: (args.image_cache as usize) << 20,
        ..model_options(&args.engine, args.slots)
    };
    let source = |text: &String| {
        let (name, dir) = match text.split_once('=') {
            // A directory may have that sign in its name.
            Some((name, dir)) if !Path::new(text).exists() => (Some(name), dir),
            _ => (None, text.as_str()),
        };
        let dir = Path::new(dir).to_owned();
        let name = match name {
            Some(name) => name.to_owned(),
            None => Manifest::read(&dir)?.name,
        };
        let options = options.clone();
        let load = move || Loaded::open(&dir, &options);
        Ok((name.clone(), Source::new(name, load)))
    };
    args.bundles.iter().map(source).collect()
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
            timeout: Duration::from_secs(args.fetch_timeout.into()),
            ..FetchOptions::default()
        })?)),
    };
    let media = args.media_path.as_deref().map(|path| {
        MediaDir::open(path).with_context(|| format!("--media-path {}", path.display()))
    });
    Ok(ServeOptions {
        api_keys: api_keys(args)?,
        aliases: args.aliases.iter().cloned().collect(),
        hosts: args.allow_hosts.clone(),
        no_auth: args.no_auth,
        cors_origins: args.cors_origins.clone(),
        page: !args.no_ui,
        tls,
        fetcher,
        media: media.transpose()?,
        max_requests: usize::from(args.slots) + usize::from(args.queue),
        first_token_timeout: Duration::from_secs(args.first_token_timeout.into()),
        request_timeout: Duration::from_secs(args.request_timeout.into()),
        traces: Traces::from_env(args.otlp_endpoint.as_deref())?.map(Arc::new),
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
