//! `GET /v1/models`, `GET /v1/models/{id}`, `GET /health`, `GET /ready`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::request::check_model;
use crate::{App, Backend, Result};

/// The process is alive.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// The model is loaded and warm: requests would be answered.
pub(crate) async fn ready<B: Backend>(State(app): State<Arc<App<B>>>) -> Result<Json<Value>> {
    app.backend()?;
    Ok(Json(json!({"status": "ok"})))
}

pub(crate) async fn list<B: Backend>(State(app): State<Arc<App<B>>>) -> Result<Json<Value>> {
    let name = app.backend()?.name();
    let names = std::iter::once(name).chain(app.options.aliases.iter().map(String::as_str));
    let models: Vec<Value> = names.map(|name| model(name, app.started)).collect();
    Ok(Json(json!({"object": "list", "data": models})))
}

pub(crate) async fn retrieve<B: Backend>(
    State(app): State<Arc<App<B>>>,
    Path(id): Path<String>,
) -> Result<Json<Value>> {
    check_model(&id, app.backend()?.name(), &app.options)?;
    Ok(Json(model(&id, app.started)))
}

fn model(name: &str, created: u64) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": "qbridge"})
}
