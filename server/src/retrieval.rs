//! `POST /v1/embeddings`, `POST /v1/rerank` and `POST /v1/score`: pictures and texts in one space of features.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bridge::event::Usage;
use bridge::retriever::{Found, RetrievalRequest, Retrieved, Score, Want};
use bridge::stages::Stages;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::answer::{blocking, read_body};
use crate::fields::{Fields, as_string};
use crate::inputs::{Input, Inputs};
use crate::request::body_fields;
use crate::schema::Object;
use crate::tables::{EMBEDDINGS, MATCHED_BY_DEFAULT, MAX_INPUTS, RERANK, SCORE};
use crate::traces::{CLIENT_LEFT, RequestSpan};
use crate::{Abilities, App, Backend, Error, Result, ServeOptions, unix_seconds};

/// Most pictures of a request: their pixels are in memory together.
const MAX_PICTURES: usize = 128;

/// A request that is read, and what is to be known when its answer is written.
struct Asked<T> {
    inputs: Inputs,
    want: Want,
    then: T,
}

/// A request that was answered.
struct Done<T> {
    retrieved: Retrieved,
    then: T,
    /// The model's own name.
    model: String,
    abilities: Abilities,
}

/// Says that the client left, unless the answer is complete.
struct Leaving(Option<RequestSpan>);

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(span) = &self.0 {
            span.breaks(CLIENT_LEFT);
        }
    }
}

/// Reads a request, within the limits that requests for answers have, and has the model answer it.
async fn retrieve<B: Backend, T: Send + 'static>(
    app: &Arc<App<B>>,
    request: Request,
    table: &'static Object,
    param: &'static str,
    read: impl FnOnce(&mut Fields, &ServeOptions, Abilities) -> Result<Asked<T>> + Send + 'static,
) -> Result<Done<T>> {
    let span = RequestSpan::of(&request);
    app.models.is_ready()?;
    // Before the body is read: a request that finds no room costs nothing.
    let permit = app.admit()?;
    let started = Instant::now();
    let body = read_body(request, &app.options).await?;
    let stages = Stages::default();
    let (reader, of) = (app.clone(), (span.clone(), stages.clone()));
    let (asked, model, backend, permit) = blocking(move || {
        let mut fields = body_fields(&body, table)?;
        drop(body);
        let asked_name = as_string(fields.required("model")?, "model")?;
        let (name, backend) = reader.models.get(&asked_name)?;
        let abilities = backend.abilities();
        if !abilities.compares {
            return Err(Error::wrong_model(
                name,
                "has no features of pictures and texts",
                "a clip, a blip for retrieval (itm) or a blip2-itm",
            ));
        }
        let asked = read(&mut fields, &reader.options, abilities)?;
        fields.finish()?;
        let (span, stages) = of;
        span.retrieves(param, &asked_name, name, &stages);
        // The permit goes with the work, which goes on when the client has left.
        Ok((asked, name.to_owned(), backend, permit))
    })
    .await?;
    let abilities = backend.abilities();
    let Asked { inputs, want, then } = asked;
    let image_param = inputs.images.param();
    let texts = inputs.texts;
    let pictures = inputs.images.load(&app.options).await?;
    let mut leaving = Leaving(Some(span.clone()));
    let options = &app.options;
    let (deadline, after) = [
        (started + options.request_timeout, options.request_timeout),
        (
            Instant::now() + options.first_token_timeout,
            options.first_token_timeout,
        ),
    ]
    .into_iter()
    .min()
    .unwrap_or((started, options.request_timeout));
    let outcome = backend.retrieve(RetrievalRequest {
        pictures,
        texts,
        want,
        stages: stages.clone(),
    });
    let outcome = match outcome {
        Ok(outcome) => timeout_at(deadline, outcome).await,
        Err(error) => {
            leaving.0 = None;
            return Err(Error::from_model(&error, param, &image_param));
        }
    };
    leaving.0 = None;
    let retrieved = match outcome {
        Ok(Ok(retrieved)) => retrieved,
        Ok(Err(_)) => {
            tracing::error!("the model stopped in the middle of a request");
            return Err(Error::Internal);
        }
        Err(_) => {
            return Err(Error::Timeout {
                stage: "the answer",
                seconds: after.as_secs(),
            });
        }
    };
    let retrieved = retrieved.map_err(|error| Error::from_model(&error, param, &image_param))?;
    let took = started.elapsed();
    app.metrics
        .answered(&model, retrieved.usage, stages.timings(), took);
    span.answered(retrieved.usage, &[]);
    drop(permit);
    Ok(Done {
        retrieved,
        then,
        model,
        abilities,
    })
}

/// What an embeddings request says of its answer.
struct Embedding {
    order: Vec<Input>,
    base64: bool,
    dimensions: Option<usize>,
    multivector: bool,
}

#[derive(Serialize)]
struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<EmbeddingEntry>,
    model: &'a str,
    usage: Value,
}

#[derive(Serialize)]
struct EmbeddingEntry {
    object: &'static str,
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<Vector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embeddings: Option<Vec<Vector>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

impl Embedding {
    fn read(fields: &mut Fields, options: &ServeOptions) -> Result<Asked<Embedding>> {
        harmless(fields);
        let base64 = fields.choice("encoding_format")?.as_deref() == Some("base64");
        let dimensions = size(fields.integer("dimensions")?);
        let multivector = fields.boolean("return_multivector")?.unwrap_or(false);
        let input = fields.required("input")?;
        let mut inputs = Inputs::new("input", MAX_PICTURES);
        let order = inputs.several(input, "input", options)?;
        Ok(Asked {
            inputs,
            want: Want::Features,
            then: Embedding {
                order,
                base64,
                dimensions,
                multivector,
            },
        })
    }

    fn entry(&self, index: usize, rows: &[Vec<f32>]) -> Result<EmbeddingEntry> {
        let vector = |row: &[f32]| Ok(self.vector(shortened(row, self.dimensions)?));
        let (embedding, embeddings) = match self.multivector {
            true => {
                let rows = rows.iter().map(|row| vector(row));
                (None, Some(rows.collect::<Result<_>>()?))
            }
            false => (Some(vector(&mean(rows))?), None),
        };
        Ok(EmbeddingEntry {
            object: "embedding",
            index,
            embedding,
            embeddings,
        })
    }

    fn vector(&self, row: Vec<f32>) -> Vector {
        match self.base64 {
            false => Vector::Float(row),
            true => {
                let bytes: Vec<u8> = row.into_iter().flat_map(f32::to_le_bytes).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

/// The mean direction of rows of length 1; a single row is its own.
fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    match rows {
        [] => Vec::new(),
        [row] => row.clone(),
        [first, others @ ..] => {
            let mut sum = first.clone();
            for row in others {
                sum.iter_mut()
                    .zip(row)
                    .for_each(|(sum, value)| *sum += value);
            }
            normalized(sum)
        }
    }
}

/// The first `dimensions` values, brought back to length 1.
fn shortened(row: &[f32], dimensions: Option<usize>) -> Result<Vec<f32>> {
    match dimensions {
        None => Ok(row.to_vec()),
        Some(dimensions) if dimensions == row.len() => Ok(row.to_vec()),
        Some(dimensions) => match row.get(..dimensions) {
            Some(row) => Ok(normalized(row.to_vec())),
            None => Err(Error::invalid(
                "dimensions",
                format!("must be at most {}, which this model has", row.len()),
            )),
        },
    }
}

fn normalized(mut row: Vec<f32>) -> Vec<f32> {
    let squares = row.iter().map(|value| f64::from(*value).powi(2));
    let length = squares.sum::<f64>().sqrt() as f32;
    if length > 0.0 {
        row.iter_mut().for_each(|value| *value /= length);
    }
    row
}

/// `POST /v1/embeddings`
pub(crate) async fn embeddings<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Response> {
    let read = |fields: &mut Fields, options: &ServeOptions, _| Embedding::read(fields, options);
    let done = retrieve(&app, request, &EMBEDDINGS, "input", read).await?;
    // Megabytes of numbers.
    blocking(move || {
        let Found::Features { pictures, texts } = done.retrieved.found else {
            return Err(Error::Internal);
        };
        let asked = done.then;
        let entries = asked.order.iter().enumerate().map(|(index, input)| {
            let rows = match *input {
                Input::Picture(picture) => pictures.get(picture).map(|rows| &**rows),
                Input::Text(text) => texts.get(text).map(std::slice::from_ref),
            };
            asked.entry(index, rows.ok_or(Error::Internal)?)
        });
        json_response(&EmbeddingList {
            object: "list",
            data: entries.collect::<Result<_>>()?,
            model: &done.model,
            usage: usage(done.retrieved.usage),
        })
    })
    .await
}

/// What a request for a ranking says of its answer.
struct Ranking {
    documents: usize,
    matched: usize,
    top_n: Option<usize>,
    /// As they were sent, where they are sent back.
    sent: Option<Vec<Value>>,
}

impl Ranking {
    fn read(
        fields: &mut Fields,
        options: &ServeOptions,
        abilities: Abilities,
    ) -> Result<Asked<Ranking>> {
        harmless(fields);
        let top_n = size(fields.integer("top_n")?);
        let returned = fields.boolean("return_documents")?.unwrap_or(false);
        let matched = matched(fields, abilities)?.unwrap_or(MATCHED_BY_DEFAULT);
        let query = fields.required("query")?;
        let documents = fields.required("documents")?;
        let sent = returned.then(|| sent(&documents));
        let mut inputs = Inputs::new("documents", MAX_PICTURES);
        let query = inputs.single(query, "query", options)?;
        let documents = inputs.several(documents, "documents", options)?;
        let pairs = documents
            .iter()
            .enumerate()
            .map(|(index, document)| pair(query, *document, &format!("documents[{index}]")))
            .collect::<Result<_>>()?;
        Ok(Asked {
            inputs,
            want: Want::Scores { pairs, matched },
            then: Ranking {
                documents: documents.len(),
                matched,
                top_n,
                sent,
            },
        })
    }
}

/// `POST /v1/rerank`
pub(crate) async fn rerank<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Response> {
    let done = retrieve(&app, request, &RERANK, "documents", Ranking::read).await?;
    let Found::Scores(scores) = done.retrieved.found else {
        return Err(Error::Internal);
    };
    let Ranking {
        documents,
        matched,
        top_n,
        sent,
    } = done.then;
    let score = |index: &usize| {
        let score = scores.get(*index);
        score.map_or(f32::NEG_INFINITY, |score| {
            relevance(score, done.abilities, matched)
        })
    };
    let mut order: Vec<usize> = (0..documents).collect();
    order.sort_by(|a, b| score(b).total_cmp(&score(a)));
    order.truncate(top_n.unwrap_or(documents));
    let results = order.into_iter().map(|index| {
        let mut result = json!({"index": index, "relevance_score": score(&index)});
        add_parts(&mut result, scores.get(index));
        if let Some(document) = sent.as_ref().and_then(|sent| sent.get(index)) {
            result["document"] = document.clone();
        }
        result
    });
    json_response(&json!({
        "id": format!("rerank-{}", uuid::Uuid::new_v4().simple()),
        "model": done.model,
        "usage": usage(done.retrieved.usage),
        "results": results.collect::<Vec<_>>(),
    }))
}

/// `POST /v1/score`
pub(crate) async fn score<B: Backend>(
    State(app): State<Arc<App<B>>>,
    request: Request,
) -> Result<Response> {
    let read = |fields: &mut Fields, options: &ServeOptions, abilities| {
        harmless(fields);
        let matched = matched(fields, abilities)?.unwrap_or(MAX_INPUTS);
        let (one, two) = (fields.required("text_1")?, fields.required("text_2")?);
        let mut inputs = Inputs::new("text_2", MAX_PICTURES);
        let ones = inputs.several(one, "text_1", options)?;
        let twos = inputs.several(two, "text_2", options)?;
        let pairs = match (ones.as_slice(), twos.len()) {
            ([one], _) => twos.iter().map(|two| (*one, *two)).collect(),
            (ones, n) if ones.len() == n => ones.iter().copied().zip(twos).collect::<Vec<_>>(),
            (ones, n) => {
                return Err(Error::invalid(
                    "text_2",
                    format!(
                        "must be as many as text_1, or text_1 one: they are {n} and {}",
                        ones.len()
                    ),
                ));
            }
        };
        let pairs = pairs.into_iter().enumerate();
        let pairs = pairs.map(|(index, (one, two))| pair(one, two, &format!("text_2[{index}]")));
        Ok(Asked {
            inputs,
            want: Want::Scores {
                pairs: pairs.collect::<Result<_>>()?,
                matched,
            },
            then: matched,
        })
    };
    let done = retrieve(&app, request, &SCORE, "text_2", read).await?;
    let Found::Scores(scores) = done.retrieved.found else {
        return Err(Error::Internal);
    };
    let data = scores.iter().enumerate().map(|(index, score)| {
        let mut entry = json!({
            "index": index,
            "object": "score",
            "score": relevance(score, done.abilities, done.then),
        });
        add_parts(&mut entry, Some(score));
        entry
    });
    json_response(&json!({
        "id": format!("score-{}", uuid::Uuid::new_v4().simple()),
        "object": "list",
        "created": unix_seconds(),
        "model": done.model,
        "data": data.collect::<Vec<_>>(),
        "usage": usage(done.retrieved.usage),
    }))
}

/// How many of the most similar pairs the matching head shall read, where the request says it.
fn matched(fields: &mut Fields, abilities: Abilities) -> Result<Option<usize>> {
    let matched = size(fields.integer("itm_top_k")?);
    match matched {
        Some(n) if n > 0 && !abilities.matches => Err(Error::unsupported(
            "itm_top_k",
            "this model has no matching head: blip2-itm and blip for retrieval have one",
        )),
        matched => Ok(matched),
    }
}

/// A picture and a text, whichever comes first.
fn pair(one: Input, two: Input, path: &str) -> Result<(usize, usize)> {
    match (one, two) {
        (Input::Picture(picture), Input::Text(text))
        | (Input::Text(text), Input::Picture(picture)) => Ok((picture, text)),
        (Input::Text(_), Input::Text(_)) => Err(Error::invalid(
            path,
            "must be a picture: a text is compared with pictures (compare texts by /v1/embeddings)",
        )),
        (Input::Picture(_), Input::Picture(_)) => Err(Error::invalid(
            path,
            "must be a text: a picture is compared with texts (compare pictures by /v1/embeddings)",
        )),
    }
}

/// One number for a pair: the matching head's probability where it was asked. What it did not read, of a request in which
/// it read some, comes behind: its similarity less one is below any probability, or equal to none.
fn relevance(score: &Score, abilities: Abilities, matched: usize) -> f32 {
    match score.probability {
        Some(probability) => probability,
        None if abilities.matches && matched > 0 => score.similarity - 1.0,
        None => score.similarity,
    }
}

/// What a pair's number is made of.
fn add_parts(entry: &mut Value, score: Option<&Score>) {
    if let Some(score) = score {
        entry["similarity"] = json!(score.similarity);
        entry["probability"] = json!(score.probability);
    }
}

/// The documents one by one, each as an object.
fn sent(documents: &Value) -> Vec<Value> {
    let list = match documents {
        Value::Array(list) => list.clone(),
        Value::Object(fields) => match fields.get("content") {
            Some(Value::Array(list)) => list.clone(),
            _ => vec![documents.clone()],
        },
        other => vec![other.clone()],
    };
    let object = |document: Value| match document {
        Value::String(text) => json!({ "text": text }),
        other => other,
    };
    list.into_iter().map(object).collect()
}

fn harmless(fields: &mut Fields) {
    fields.take("user");
}

/// A number of things, from a field whose table lets nothing below 0 in.
fn size(number: Option<i64>) -> Option<usize> {
    number.map(|number| usize::try_from(number).unwrap_or(usize::MAX))
}

/// Pictures count with the rows that the model reads of them.
fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
            "audio_tokens": 0,
        },
    })
}

fn json_response(value: &impl Serialize) -> Result<Response> {
    let body = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "an answer could not be written");
        Error::Internal
    })?;
    Response::builder()
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(|_| Error::Internal)
}
