//! Everything that a client is told went wrong, and the one place that says how.

use std::io;

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bridge::ErrorKind;
use reqwest::Url;
use serde_json::{Value, json};

use crate::fetch::FetchError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Seconds after which a request that found the queue full may come again.
const RETRY_WHEN_FULL: HeaderValue = HeaderValue::from_static("1");
/// Seconds after which a request that came before the model may come again.
const RETRY_WHEN_LOADING: HeaderValue = HeaderValue::from_static("5");
/// Tells OpenAI's clients not to send the same request again.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a request is not answered, in words for whoever sent it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field has a wrong type or value.
    #[error("{param}: {reason}")]
    InvalidValue {
        /// The field, as a path (`messages[0].content`).
        param: String,
        /// What it must be.
        reason: String,
    },
    /// A required field is not there.
    #[error("{param} is required")]
    Missing {
        /// The field.
        param: String,
    },
    /// A field that would change the output, and is not supported.
    #[error("{param} is not supported: {reason}")]
    Unsupported {
        /// The field.
        param: String,
        /// What is supported instead.
        reason: String,
    },
    /// A field that this server does not know.
    #[error(
        "{param} is not a field that this server knows; it does not ignore fields that might change the answer"
    )]
    UnknownField {
        /// The field.
        param: String,
    },
    /// The body is no JSON object.
    #[error("{reason}")]
    InvalidBody {
        /// What is wrong with it.
        reason: String,
    },
    /// The body does not say that it is JSON.
    #[error("send the body as content-type: application/json")]
    ContentType,
    /// The body is larger than allowed.
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge {
        /// Most bytes allowed.
        limit: usize,
    },
    /// The body did not arrive in time, or not whole.
    #[error("the body did not arrive")]
    BodyLost,
    /// No key, or a wrong one.
    #[error("send a valid API key as authorization: Bearer KEY")]
    Unauthorized,
    /// The request calls the server by a name that is not known to be its own.
    #[error(
        "this server answers to localhost and addresses alone; start it with --allow-host to add a name, or with keys"
    )]
    UnknownHost,
    /// No such model.
    #[error("the model {model:?} does not exist; this server has {served}")]
    ModelNotFound {
        /// The name asked for.
        model: String,
        /// The names of the models served.
        served: String,
    },
    /// The model is of a kind that does not do what is asked.
    #[error("the model {model:?} {lacks}: that takes {needed}")]
    WrongModel {
        /// The model.
        model: String,
        /// What it does not do.
        lacks: &'static str,
        /// The kinds of models that do.
        needed: &'static str,
    },
    /// The model was unloaded.
    #[error("the model {model:?} is not loaded: load it (POST /models/load) first")]
    ModelNotLoaded {
        /// The model.
        model: String,
    },
    /// No such path.
    #[error("there is nothing at this path")]
    NotFound,
    /// The path exists, with another method.
    #[error("this path does not take this method")]
    MethodNotAllowed,
    /// A picture cannot be read.
    #[error("{reason}")]
    InvalidImage {
        /// The picture's field, where it is known.
        param: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A picture is over a limit of bytes or pixels.
    #[error("{reason}")]
    ImageTooLarge {
        /// The picture's field, where it is known.
        param: String,
        /// The limit.
        reason: String,
    },
    /// A picture's address, where none of its kind is fetched.
    #[error("{reason}: send the picture as a data: URI (data:image/png;base64,...)")]
    RemoteImage {
        /// The picture's field.
        param: String,
        /// What this server does not do.
        reason: &'static str,
    },
    /// A picture's address that nothing was fetched from.
    #[error("{reason}")]
    ImageFetch {
        /// The picture's field.
        param: String,
        /// Why, in words that tell nothing about the network around the server.
        reason: String,
    },
    /// What is said has no form in the model's prompt.
    #[error("{reason}")]
    InvalidPrompt {
        /// The field that holds it.
        param: &'static str,
        /// What is wrong with them.
        reason: String,
    },
    /// The prompt does not fit the context.
    #[error("the prompt has {n_prompt_tokens} tokens, and the context holds {n_ctx}")]
    ContextLengthExceeded {
        /// The field that holds it.
        param: &'static str,
        /// Rows of the prompt, pictures included.
        n_prompt_tokens: usize,
        /// Rows of the context.
        n_ctx: usize,
    },
    /// Too many requests at once.
    #[error("too many requests are waiting; try again later")]
    QueueFull,
    /// The model is not there yet.
    #[error("the server is loading; try again later")]
    Loading,
    /// No slot took the request in time.
    #[error("no slot was free in time; try again later")]
    QueueTimeout,
    /// The answer took too long.
    #[error("{stage} took longer than {seconds} seconds")]
    Timeout {
        /// What took too long.
        stage: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// Not the request's fault; the log has the cause.
    #[error("internal error")]
    Internal,
    /// The server cannot start as it is asked to; no client is told.
    #[error("{reason}")]
    Setup {
        /// Why.
        reason: String,
    },
    /// The model cannot be loaded; no client is told.
    #[error(transparent)]
    Load(bridge::Error),
    /// The listener failed; no client is told.
    #[error("cannot serve: {0}")]
    Listen(#[source] io::Error),
}

impl Error {
    /// A field's wrong value.
    pub(crate) fn invalid(param: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::InvalidValue {
            param: param.into(),
            reason: reason.into(),
        }
    }

    /// A field that is not supported.
    pub(crate) fn unsupported(param: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Unsupported {
            param: param.into(),
            reason: reason.into(),
        }
    }

    /// A model of a kind that does not do what is asked, and the kinds that do.
    pub(crate) fn wrong_model(model: &str, lacks: &'static str, needed: &'static str) -> Error {
        Error::WrongModel {
            model: model.to_owned(),
            lacks,
            needed,
        }
    }

    /// A picture that cannot be read.
    pub(crate) fn invalid_image(param: &str, reason: &str) -> Error {
        Error::InvalidImage {
            param: param.to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// A picture of more than `limit` bytes.
    pub(crate) fn image_too_large(param: &str, limit: usize) -> Error {
        Error::ImageTooLarge {
            param: param.to_owned(),
            reason: format!("the picture has more than {limit} bytes"),
        }
    }

    /// A picture that was not fetched; what the network said goes to the log alone.
    pub(crate) fn from_fetch(error: &FetchError, url: &Url, param: &str) -> Error {
        let source = std::error::Error::source(error);
        tracing::info!(host = url.host_str(), %error, cause = source.map(detail), "a picture was not fetched");
        match error {
            FetchError::TooLarge { limit } => Error::image_too_large(param, *limit),
            FetchError::Setup { .. } => Error::Internal,
            error => Error::ImageFetch {
                param: param.to_owned(),
                reason: error.to_string(),
            },
        }
    }

    /// The model's own error; the field to blame is `prompt_param`, or `image_param` for a picture.
    pub(crate) fn from_model(
        error: &bridge::Error,
        prompt_param: &'static str,
        image_param: &str,
    ) -> Error {
        if let bridge::Error::ContextLengthExceeded {
            n_prompt_tokens,
            n_ctx,
        } = *error
        {
            return Error::ContextLengthExceeded {
                param: prompt_param,
                n_prompt_tokens,
                n_ctx,
            };
        }
        let reason = error.to_string();
        if let bridge::Error::TooManyBeams { limit, .. } = error {
            return Error::invalid(
                "num_beams",
                format!("must be at most {limit}, the sequences that this server computes at once"),
            );
        }
        match error {
            bridge::Error::TooManyChoices { limit, .. } => {
                return Error::invalid(
                    "n",
                    format!(
                        "must be at most {limit}, the sequences that this server computes at once"
                    ),
                );
            }
            bridge::Error::Unsupported { field, reason } => {
                return Error::unsupported(*field, reason);
            }
            bridge::Error::LogitBias { reason } => return Error::invalid("logit_bias", reason),
            bridge::Error::ToolSchema { tool, reason } => {
                return Error::invalid(format!("tools[{tool}].function.parameters"), reason);
            }
            bridge::Error::Schema { reason } => {
                return Error::invalid("response_format.json_schema.schema", reason);
            }
            _ => {}
        }
        let param = image_param.to_owned();
        match error.kind() {
            ErrorKind::InvalidRequest | ErrorKind::ContextLengthExceeded => {
                let param = prompt_param;
                Error::InvalidPrompt { param, reason }
            }
            ErrorKind::InvalidImage => Error::InvalidImage { param, reason },
            ErrorKind::ImageTooLarge => Error::ImageTooLarge { param, reason },
            ErrorKind::QueueFull => Error::QueueFull,
            ErrorKind::QueueTimeout => Error::QueueTimeout,
            ErrorKind::Internal => {
                tracing::error!(%error, "the model failed");
                Error::Internal
            }
        }
    }

    /// The error's name on the wire.
    pub(crate) fn code(&self) -> &'static str {
        self.status_and_code().1
    }

    /// The HTTP status and OpenAI's `code`.
    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Error::InvalidValue { .. } => (StatusCode::BAD_REQUEST, "invalid_value"),
            Error::Missing { .. } => (StatusCode::BAD_REQUEST, "missing_required_parameter"),
            Error::Unsupported { .. } => (StatusCode::BAD_REQUEST, "unsupported_parameter"),
            Error::UnknownField { .. } => (StatusCode::BAD_REQUEST, "unknown_parameter"),
            Error::InvalidBody { .. } => (StatusCode::BAD_REQUEST, "invalid_json"),
            Error::ContentType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Error::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Error::BodyLost => (StatusCode::REQUEST_TIMEOUT, "body_timeout"),
            Error::Unauthorized => (StatusCode::UNAUTHORIZED, "invalid_api_key"),
            Error::UnknownHost => (StatusCode::FORBIDDEN, "unknown_host"),
            Error::ModelNotFound { .. } => (StatusCode::NOT_FOUND, "model_not_found"),
            Error::WrongModel { .. } => (StatusCode::BAD_REQUEST, "model_not_supported"),
            Error::ModelNotLoaded { .. } => (StatusCode::SERVICE_UNAVAILABLE, "model_not_loaded"),
            Error::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Error::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Error::InvalidImage { .. } => (StatusCode::BAD_REQUEST, "invalid_image"),
            Error::ImageTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "image_too_large"),
            Error::RemoteImage { .. } => (StatusCode::BAD_REQUEST, "remote_image_unsupported"),
            Error::ImageFetch { .. } => (StatusCode::BAD_REQUEST, "image_fetch_failed"),
            Error::InvalidPrompt { .. } => (StatusCode::BAD_REQUEST, "invalid_prompt"),
            Error::ContextLengthExceeded { .. } => {
                (StatusCode::BAD_REQUEST, "context_length_exceeded")
            }
            Error::QueueFull => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Error::Loading => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
            Error::QueueTimeout => (StatusCode::SERVICE_UNAVAILABLE, "queue_timeout"),
            Error::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
            Error::Internal | Error::Setup { .. } | Error::Load(_) | Error::Listen(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal_error")
            }
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Error::InvalidValue { param, .. }
            | Error::Missing { param }
            | Error::Unsupported { param, .. }
            | Error::UnknownField { param }
            | Error::InvalidImage { param, .. }
            | Error::ImageTooLarge { param, .. }
            | Error::ImageFetch { param, .. }
            | Error::RemoteImage { param, .. } => Some(param),
            Error::ModelNotFound { .. }
            | Error::ModelNotLoaded { .. }
            | Error::WrongModel { .. } => Some("model"),
            Error::InvalidPrompt { param, .. } | Error::ContextLengthExceeded { param, .. } => {
                Some(param)
            }
            Error::InvalidBody { .. }
            | Error::ContentType
            | Error::BodyTooLarge { .. }
            | Error::BodyLost
            | Error::Unauthorized
            | Error::UnknownHost
            | Error::NotFound
            | Error::MethodNotAllowed
            | Error::QueueFull
            | Error::Loading
            | Error::QueueTimeout
            | Error::Timeout { .. }
            | Error::Internal
            | Error::Setup { .. }
            | Error::Load(_)
            | Error::Listen(_) => None,
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`, in answers and in streams.
    pub(crate) fn body(&self) -> Value {
        let (status, code) = self.status_and_code();
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let mut error = json!({
            "message": self.to_string(),
            "type": kind,
            "param": self.param(),
            "code": code,
        });
        if let Error::ContextLengthExceeded {
            n_prompt_tokens,
            n_ctx,
            ..
        } = self
        {
            error["n_prompt_tokens"] = json!(n_prompt_tokens);
            error["n_ctx"] = json!(n_ctx);
        }
        json!({ "error": error })
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, _) = self.status_and_code();
        let mut response = (status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self {
            Error::QueueFull | Error::QueueTimeout => {
                headers.insert(RETRY_AFTER, RETRY_WHEN_FULL);
            }
            Error::Loading => {
                headers.insert(RETRY_AFTER, RETRY_WHEN_LOADING);
            }
            Error::Unauthorized => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // What took minutes once would take them again.
            Error::Timeout { .. } => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            _ => {}
        }
        response
    }
}

/// An error and what caused it, in one line.
fn detail(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
