//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Value, json};

use crate::answer::{blocking, read_body};
use crate::fields::{Fields, as_list, as_string};
use crate::request::body_fields;
use crate::schema::Object;
use crate::tables::{DETOKENIZE, TOKENIZE};
use crate::{App, Backend, Error, Result};

/// `{"prompt": TEXT}` to `{"tokens", "count", "max_model_len"}`.
pub(crate) async fn tokenize<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Json<Value>> {
    with_fields(app, request, &TOKENIZE, |backend, mut fields| {
        let text = as_string(fields.required("prompt")?, "prompt")?;
        fields.finish()?;
        let tokens = backend.tokenize(&text);
        let tokens = tokens.map_err(|error| Error::from_model(&error, "prompt", "prompt"))?;
        Ok(json!({
            "count": tokens.len(),
            "max_model_len": backend.n_ctx(),
            "tokens": tokens,
        }))
    })
    .await
}

/// `{"tokens": [ID]}` to `{"prompt": TEXT}`.
pub(crate) async fn detokenize<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Json<Value>> {
    with_fields(app, request, &DETOKENIZE, |backend, mut fields| {
        let tokens = as_list(fields.required("tokens")?, "tokens")?;
        fields.finish()?;
        let ids = tokens.iter().map(|id| i32::try_from(id.as_i64()?).ok());
        let text = ids
            .collect::<Option<Vec<i32>>>()
            .and_then(|ids| backend.detokenize(&ids))
            .ok_or_else(|| Error::invalid("tokens", "must be token ids of the vocabulary"))?;
        Ok(json!({ "prompt": text }))
    })
    .await
}

/// Reads a body, within the limits that requests for answers have, and answers it off the async runtime.
async fn with_fields<B: Backend>(
    app: Arc<App<B>>,
    request: Request,
    table: &'static Object,
    answer: impl FnOnce(&B, Fields) -> Result<Value> + Send + 'static,
) -> Result<Json<Value>> {
    app.models.is_ready()?;
    let permit = app.admit()?;
    let body = read_body(request, &app.options).await?;
    let answered = blocking(move || {
        let _permit = permit;
        let mut fields = body_fields(&body, table)?;
        let (name, model) = match fields.string("model")? {
            Some(name) => app.models.get(&name)?,
            None => app.models.first()?,
        };
        if !model.abilities().completes {
            return Err(Error::wrong_model(
                name,
                "has no language model whose tokens could be told",
                "a bundle with a language model",
            ));
        }
        answer(&model, fields)
    });
    answered.await.map(Json)
}
