//! The models of a server, by name, and the routes that tell of them: `GET /v1/models`, `GET /v1/models/{id}`,
//! `POST /models/load`, `POST /models/unload`, `GET /health`, `GET /ready`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use serde_json::{Value, json};

use crate::answer::{blocking, read_body};
use crate::fields::as_string;
use crate::request::body_fields;
use crate::tables::NAMED;
use crate::{App, Backend, Error, Result, unix_seconds};

/// How often it is looked whether the last answer of a model has ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);

type Load<B> = dyn Fn() -> bridge::Result<B> + Send + Sync;

/// A model that a server is to have.
pub struct Source<B> {
    name: String,
    load: Box<Load<B>>,
}

impl<B> Source<B> {
    /// A model that requests call `name`. `load` makes it, at the start and whenever it is asked to be loaded again.
    pub fn new(
        name: impl Into<String>,
        load: impl Fn() -> bridge::Result<B> + Send + Sync + 'static,
    ) -> Source<B> {
        Source {
            name: name.into(),
            load: Box::new(load),
        }
    }
}

impl<B> fmt::Debug for Source<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A model, loaded or not.
struct Served<B> {
    source: Source<B>,
    backend: RwLock<Option<Arc<B>>>,
    /// Held while the model is loaded, so that this happens but once.
    loading: Mutex<()>,
}

impl<B> Served<B> {
    fn backend(&self) -> Option<Arc<B>> {
        let backend = self.backend.read();
        backend.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, backend: Option<Arc<B>>) -> Option<Arc<B>> {
        let held = self.backend.write();
        std::mem::replace(&mut *held.unwrap_or_else(PoisonError::into_inner), backend)
    }

    /// Makes sure that the model is there. Blocks.
    fn load(&self) -> bridge::Result<()> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if self.backend().is_none() {
            self.replace(Some(Arc::new((self.source.load)()?)));
        }
        Ok(())
    }
}

/// The models of a server.
pub(crate) struct Models<B> {
    /// The first one first.
    served: Vec<Served<B>>,
    aliases: BTreeMap<String, String>,
    /// Whether all of them have been loaded once.
    ready: AtomicBool,
    /// Unix seconds: when they were "created".
    started: u64,
}

impl<B: Backend> Models<B> {
    /// Models that are not loaded yet, and other names of theirs.
    ///
    /// # Errors
    /// There is none, two have one name, or an alias leads nowhere.
    pub(crate) fn new(
        sources: Vec<Source<B>>,
        aliases: &BTreeMap<String, String>,
    ) -> Result<Models<B>> {
        let refuse = |reason: String| Err(Error::Setup { reason });
        if sources.is_empty() {
            return refuse("there is no model to serve".to_owned());
        }
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        for (index, name) in names.iter().enumerate() {
            if names[..index].contains(name) || aliases.contains_key(*name) {
                return refuse(format!(
                    "two models have the name {name:?}: give one another (NAME=DIR)"
                ));
            }
        }
        for (alias, name) in aliases {
            if !names.contains(&name.as_str()) {
                return refuse(format!(
                    "the alias {alias:?} stands for {name:?}, which is not served"
                ));
            }
        }
        Ok(Models {
            served: sources
                .into_iter()
                .map(|source| Served {
                    source,
                    backend: RwLock::new(None),
                    loading: Mutex::new(()),
                })
                .collect(),
            aliases: aliases.clone(),
            ready: AtomicBool::new(false),
            started: unix_seconds(),
        })
    }

    /// Loads all of them, one after the other. Blocks.
    pub(crate) fn load_all(&self) -> bridge::Result<()> {
        self.served.iter().try_for_each(Served::load)?;
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether requests can be answered yet.
    pub(crate) fn is_ready(&self) -> Result<()> {
        match self.ready.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(Error::Loading),
        }
    }

    fn find(&self, name: &str) -> Result<&Served<B>> {
        self.is_ready()?;
        let own = self.aliases.get(name).map_or(name, String::as_str);
        let served = self.served.iter().find(|served| served.source.name == own);
        served.ok_or_else(|| Error::ModelNotFound {
            model: name.chars().take(100).collect(),
            served: self
                .names()
                .map(|name| format!("{name:?}"))
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// The model that requests call `name`, and its own name.
    pub(crate) fn get(&self, name: &str) -> Result<(&str, Arc<B>)> {
        let served = self.find(name)?;
        let backend = served.backend().ok_or_else(|| Error::ModelNotLoaded {
            model: served.source.name.clone(),
        })?;
        Ok((&served.source.name, backend))
    }

    /// The model for a request that names none: the first one.
    pub(crate) fn first(&self) -> Result<(&str, Arc<B>)> {
        self.is_ready()?;
        let name = self
            .served
            .first()
            .map(|served| served.source.name.as_str());
        self.get(name.unwrap_or_default())
    }

    /// Those that are loaded, by name.
    pub(crate) fn loaded(&self) -> impl Iterator<Item = (&str, Arc<B>)> {
        self.served
            .iter()
            .filter_map(|served| Some((served.source.name.as_str(), served.backend()?)))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let own = self.served.iter().map(|served| served.source.name.as_str());
        own.chain(self.aliases.keys().map(String::as_str))
    }

    fn describe(&self, name: &str) -> Result<Value> {
        let backend = self.find(name)?.backend();
        Ok(json!({
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "qbridge",
            "status": if backend.is_some() { "loaded" } else { "unloaded" },
            // A bundle may be another one when it is loaded again.
            "capabilities": backend.map(|backend| backend.abilities().names()),
        }))
    }
}

/// The process is alive.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The models are loaded and warm: requests would be answered.
pub(crate) async fn ready<B: Backend>(State(app): State<Arc<App<B>>>) -> Result<Json<Value>> {
    app.models.is_ready()?;
    Ok(Json(json!({"status": "ok"})))
}

pub(crate) async fn list<B: Backend>(State(app): State<Arc<App<B>>>) -> Result<Json<Value>> {
    app.models.is_ready()?;
    let models = app.models.names().map(|name| app.models.describe(name));
    let models = models.collect::<Result<Vec<_>>>()?;
    Ok(Json(json!({"object": "list", "data": models})))
}

pub(crate) async fn retrieve<B: Backend>(
    State(app): State<Arc<App<B>>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    app.models.describe(&id).map(Json)
}

/// Loads a model that was unloaded; the answer comes when it is there.
pub(crate) async fn load<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Json<Value>> {
    let name = named(&app, request).await?;
    blocking(move || {
        let served = app.models.find(&name)?;
        served.load().map_err(|error| {
            tracing::error!(%error, name, "a model could not be loaded");
            Error::Internal
        })?;
        app.models.describe(&name).map(Json)
    })
    .await
}

/// Unloads a model: it takes no more requests, answers those that it has, and its memory is free when the answer comes.
pub(crate) async fn unload<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Json<Value>> {
    let name = named(&app, request).await?;
    let backend = app.models.find(&name)?.replace(None);
    if let Some(backend) = backend {
        // Goes on if the client leaves: the last to hold a model waits for its threads, which no request should.
        let drained = tokio::spawn(async move {
            while Arc::strong_count(&backend) > 1 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
            blocking(move || {
                drop(backend);
                Ok(())
            })
            .await
        });
        drained.await.map_err(|_| Error::Internal)??;
    }
    app.models.describe(&name).map(Json)
}

/// The model that a body names.
async fn named<B: Backend>(app: &App<B>, request: Request) -> Result<String> {
    app.models.is_ready()?;
    let _permit = app.admit()?;
    let body = read_body(request, &app.options).await?;
    let mut fields = body_fields(&body, &NAMED)?;
    let name = as_string(fields.required("model")?, "model")?;
    fields.finish()?;
    Ok(name)
}
