//! Bodies of requests for answers: every field is honoured, known to be harmless, or refused by name.

use bridge::constraint::Format;
use bridge::engine::Sampling;
use bridge::model::{Prompt, Request, ToolChoice, Tools};
use prompts::{CallReader, CallSyntax};
use serde_json::Value;

use crate::content;
use crate::fields::{Fields, as_list, as_string, expected};
use crate::images::Images;
use crate::schema::Object;
use crate::tables::{
    CHAT, HARMLESS, JSON_SCHEMA, MAX_PROMPTS, MAX_STOPS, RESPONSE_FORMAT, STREAM_OPTIONS, TEXT,
};
use crate::tools::{self, Syntax};
use crate::{Error, Result, ServeOptions};

/// What is asked for: a message after messages, or text after text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

impl Kind {
    /// The field that holds what is said to the model.
    pub(crate) fn prompt_param(self) -> &'static str {
        match self {
            Kind::Chat => "messages",
            Kind::Text => "prompt",
        }
    }

    /// What the body may hold.
    pub(crate) fn table(self) -> &'static Object {
        match self {
            Kind::Chat => &CHAT,
            Kind::Text => &TEXT,
        }
    }
}

/// A request for an answer, checked.
#[derive(Debug)]
pub(crate) struct AnswerRequest {
    /// What the model is asked, but for its pictures: a request for each prompt.
    pub(crate) requests: Vec<Request>,
    /// The pictures.
    pub(crate) images: Images,
    /// Whether to answer piece by piece.
    pub(crate) stream: bool,
    /// Whether a stream ends with its usage.
    pub(crate) include_usage: bool,
    /// Whether the seconds of each stage are told.
    pub(crate) timings: bool,
    /// Whether the log-probabilities of tokens are told.
    pub(crate) logprobs: bool,
    /// Reads calls of functions out of a choice, where there may be any.
    pub(crate) calls: Option<CallReader>,
    /// Whether the request names a tier to be served in.
    pub(crate) names_tier: bool,
}

impl AnswerRequest {
    /// Reads a body whose model is known: `sampling`, the model's, stands in for what it does not say, and `syntax` is
    /// how the model calls functions.
    pub(crate) fn parse(
        kind: Kind,
        mut fields: Fields,
        sampling: Sampling,
        syntax: &Syntax,
        options: &ServeOptions,
    ) -> Result<AnswerRequest> {
        let prompt = fields.required(kind.prompt_param())?;
        let tools = match kind {
            Kind::Chat => {
                refuse_unsupported(&mut fields)?;
                tools::tools(&mut fields, syntax)?
            }
            Kind::Text => {
                refuse_unsupported_of_text(&mut fields)?;
                None
            }
        };
        let names_tier = fields.contains_value("service_tier");
        for harmless in HARMLESS {
            fields.take(harmless.name);
        }
        let top_logprobs = match kind {
            Kind::Chat => top_logprobs(&mut fields)?,
            Kind::Text => size(fields.integer("logprobs")?),
        };
        let format = match kind {
            Kind::Chat => format(&mut fields)?,
            Kind::Text => None,
        };
        let names_num_beams = fields.contains_value("num_beams");
        let mut sampling = self::sampling(&mut fields, sampling)?;
        if format.is_some() && tools.is_some() {
            return Err(Error::unsupported("response_format", "not with tools"));
        }
        let must_call = |tools: &Tools| tools.choice != ToolChoice::Auto;
        for (name, is_asked) in [
            ("logprobs", top_logprobs.is_some()),
            ("response_format", format.is_some()),
            ("tool_choice", tools.as_ref().is_some_and(must_call)),
            ("tools", tools.as_ref().is_some_and(|tools| tools.strict)),
        ] {
            if is_asked && names_num_beams && sampling.num_beams > 1 {
                return Err(Error::unsupported(name, "not with num_beams"));
            }
            if is_asked {
                sampling.num_beams = 1;
            }
        }
        if kind == Kind::Text {
            best_of(&mut fields, sampling.n)?;
        }
        let logit_bias = logit_bias(&mut fields)?;
        let max_tokens = max_tokens(&mut fields)?;
        let stop = stop(&mut fields)?;
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut fields, stream)?;
        let timings = fields.boolean("timings")?.unwrap_or(false);
        let cache_prompt = fields.boolean("cache_prompt")?.unwrap_or(true);
        fields.finish()?;
        // Last, since decoding pictures is the one step that costs something.
        let (prompts, images) = match kind {
            Kind::Chat => {
                let (messages, images) = content::messages(prompt, syntax, options)?;
                (vec![Prompt::Chat(messages)], images)
            }
            Kind::Text => (text_prompts(prompt)?, Images::new("prompt", 0)),
        };
        let calls = match (&tools, syntax) {
            (Some(tools), &Ok(syntax)) => Some(tools::reader(tools, syntax)),
            _ => None,
        };
        let request = |prompt| Request {
            max_tokens,
            stop: stop.clone(),
            logit_bias: logit_bias.clone(),
            top_logprobs,
            format: format.clone(),
            tools: tools.clone(),
            cache_prompt,
            ..Request::new(prompt, sampling)
        };
        Ok(AnswerRequest {
            requests: prompts.into_iter().map(request).collect(),
            images,
            stream,
            include_usage,
            timings,
            logprobs: top_logprobs.is_some(),
            calls,
            names_tier,
        })
    }
}

/// What the body of `POST /v1/chat/completions` asks of a model with such a sampling by default, which writes calls in
/// `syntax` (or says why it writes none): as the server reads it, but for the model's name and for fetching pictures.
///
/// # Errors
/// The refusal that the request is answered with.
pub fn read_chat(
    body: &[u8],
    sampling: Sampling,
    syntax: &prompts::Result<CallSyntax>,
    options: &ServeOptions,
) -> Result<Request> {
    let mut fields = body_fields(body, Kind::Chat.table())?;
    as_string(fields.required("model")?, "model")?;
    let asked = AnswerRequest::parse(Kind::Chat, fields, sampling, syntax, options)?;
    let images = asked.images.here();
    let request = asked.requests.into_iter().next();
    let request = request.ok_or_else(|| Error::Missing {
        param: Kind::Chat.prompt_param().to_owned(),
    })?;
    Ok(Request { images, ..request })
}

/// The fields of a body.
pub(crate) fn body_fields(body: &[u8], table: &'static Object) -> Result<Fields> {
    let body: Value = serde_json::from_slice(body).map_err(|error| Error::InvalidBody {
        reason: format!(
            "the body is not valid JSON (line {}, column {})",
            error.line(),
            error.column()
        ),
    })?;
    let Value::Object(_) = body else {
        return Err(Error::InvalidBody {
            reason: "the body must be a JSON object".to_owned(),
        });
    };
    Fields::of(body, "", table)
}

/// The prompts of `/v1/completions`: a text or token ids, or a list of either.
fn text_prompts(prompt: Value) -> Result<Vec<Prompt>> {
    let param = "prompt";
    let list = match prompt {
        Value::String(text) => return Ok(vec![Prompt::Raw(text)]),
        Value::Array(list) => list,
        other => {
            let wanted = "a string, a list of strings, or token ids";
            return Err(Error::invalid(param, expected(wanted, &other)));
        }
    };
    if list.is_empty() {
        return Err(Error::invalid(param, "must not be empty"));
    }
    if list.iter().all(Value::is_number) {
        return Ok(vec![tokens(list, param)?]);
    }
    if list.len() > MAX_PROMPTS {
        let reason = format!("must not have more than {MAX_PROMPTS} prompts");
        return Err(Error::invalid(param, reason));
    }
    let are_texts = list[0].is_string();
    let prompts = list.into_iter().enumerate().map(|(index, prompt)| {
        let param = format!("{param}[{index}]");
        match prompt {
            Value::String(text) if are_texts => Ok(Prompt::Raw(text)),
            Value::Array(ids) if !are_texts => tokens(ids, &param),
            other => {
                let wanted = match are_texts {
                    true => "a string, as those before",
                    false => "a string or a list of token ids, as those before",
                };
                Err(Error::invalid(param, expected(wanted, &other)))
            }
        }
    });
    prompts.collect()
}

/// Token ids; whether the vocabulary has them the model knows.
fn tokens(list: Vec<Value>, param: &str) -> Result<Prompt> {
    let id = |id: &Value| i32::try_from(id.as_i64()?).ok().filter(|&id| id >= 0);
    match list.iter().map(id).collect::<Option<Vec<i32>>>() {
        Some(ids) if !ids.is_empty() => Ok(Prompt::Tokens(ids)),
        Some(_) => Err(Error::invalid(param, "must not be empty")),
        None => Err(Error::invalid(param, "must be token ids of the vocabulary")),
    }
}

/// Fields of `/v1/completions` alone that are not supported, unless their value asks for nothing.
fn refuse_unsupported_of_text(fields: &mut Fields) -> Result<()> {
    if fields.boolean("echo")? == Some(true) {
        return Err(Error::unsupported("echo", "the prompt is not repeated"));
    }
    if fields
        .string("suffix")?
        .is_some_and(|suffix| !suffix.is_empty())
    {
        return Err(Error::unsupported(
            "suffix",
            "text is put behind the prompt alone",
        ));
    }
    Ok(())
}

/// More answers than are told are not made.
fn best_of(fields: &mut Fields, n: usize) -> Result<()> {
    match size(fields.integer("best_of")?) {
        Some(best_of) if best_of != n => {
            Err(Error::unsupported("best_of", "must be n: all are told"))
        }
        _ => Ok(()),
    }
}

/// How many of the likeliest tokens a chat wants to be told with each, if any.
fn top_logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    match (logprobs, size(fields.integer("top_logprobs")?)) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(Error::invalid(
            "top_logprobs",
            "is allowed only with logprobs: true",
        )),
    }
}

/// The form that the answer must have, if any.
fn format(fields: &mut Fields) -> Result<Option<Format>> {
    let Some(format) = fields.take("response_format") else {
        return Ok(None);
    };
    let mut format = Fields::of(format, "response_format", &RESPONSE_FORMAT)?;
    let kind = as_string(format.required("type")?, "response_format.type")?;
    match kind.as_str() {
        "text" => format.finish().map(|()| None),
        "json_object" => format.finish().map(|()| Some(Format::JsonObject)),
        "json_schema" => {
            let path = format.path("json_schema");
            let schema = Fields::of(format.required("json_schema")?, &path, &JSON_SCHEMA)?;
            format.finish()?;
            json_schema(schema).map(Some)
        }
        _ => Err(Error::invalid(
            "response_format.type",
            "must be text, json_object or json_schema",
        )),
    }
}

fn json_schema(mut fields: Fields) -> Result<Format> {
    let path = fields.path("name");
    let name = as_string(fields.required("name")?, &path)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_plain) {
        return Err(Error::invalid(
            path,
            "must be 1 to 64 letters, digits, _ and -",
        ));
    }
    // What it says of itself is for readers, and it is followed strictly in any case.
    fields.string("description")?;
    fields.boolean("strict")?;
    let path = fields.path("schema");
    let schema = match fields.required("schema")? {
        schema @ Value::Object(_) => schema,
        other => return Err(Error::invalid(path, expected("an object", &other))),
    };
    fields.finish()?;
    Ok(Format::JsonSchema(schema))
}

/// `logit_bias`: token ids as names of numbers.
fn logit_bias(fields: &mut Fields) -> Result<Vec<(i32, f32)>> {
    let biases = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(biases)) => biases,
        // Some clients write an empty map as a list.
        Some(Value::Array(list)) if list.is_empty() => return Ok(Vec::new()),
        Some(other) => {
            return Err(Error::invalid(
                "logit_bias",
                expected("a map of token ids to numbers", &other),
            ));
        }
    };
    let bias = |(id, bias): (String, Value)| {
        let id: Option<i32> = id.parse().ok().filter(|&id| id >= 0);
        let bias = bias.as_f64().filter(|bias| bias.abs() <= 100.0);
        id.zip(bias.map(|bias| bias as f32))
    };
    let biases: Option<Vec<_>> = biases.into_iter().map(bias).collect();
    biases.ok_or_else(|| {
        Error::invalid(
            "logit_bias",
            "must map token ids to numbers from -100 to 100",
        )
    })
}

/// A number of things, from a field whose table lets nothing below 0 in.
fn size(number: Option<i64>) -> Option<usize> {
    number.map(|number| usize::try_from(number).unwrap_or(usize::MAX))
}

/// A list or map that is not supported, unless it is empty.
fn refuse_asking(fields: &mut Fields, name: &str, reason: &str) -> Result<()> {
    match fields.take(name) {
        None => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Ok(()),
        Some(Value::Object(map)) if map.is_empty() => Ok(()),
        Some(_) => Err(Error::unsupported(name, reason)),
    }
}

/// Fields that would change the answer and are not supported, unless their value asks for nothing.
fn refuse_unsupported(fields: &mut Fields) -> Result<()> {
    refuse_asking(fields, "functions", "send tools")?;
    for (name, reason) in [
        ("audio", "answers are text"),
        ("prediction", "answers are not predicted"),
        ("web_search_options", "nothing is searched"),
    ] {
        if fields.take(name).is_some() {
            return Err(Error::unsupported(name, reason));
        }
    }
    match fields.take("function_call") {
        None => {}
        Some(Value::String(choice)) if choice == "none" || choice == "auto" => {}
        Some(_) => return Err(Error::unsupported("function_call", "send tool_choice")),
    }
    if let Some(modalities) = fields.take("modalities") {
        let modalities = as_list(modalities, "modalities")?;
        if modalities.iter().any(|modality| modality != "text") {
            return Err(Error::unsupported("modalities", "the one modality is text"));
        }
    }
    Ok(())
}

fn sampling(fields: &mut Fields, defaults: Sampling) -> Result<Sampling> {
    let mut sampling = defaults;
    let names_temperature = fields.contains_value("temperature");
    for (name, value) in [
        ("temperature", &mut sampling.temperature),
        ("top_p", &mut sampling.top_p),
        ("min_p", &mut sampling.min_p),
        ("frequency_penalty", &mut sampling.frequency_penalty),
        ("presence_penalty", &mut sampling.presence_penalty),
        ("length_penalty", &mut sampling.length_penalty),
    ] {
        if let Some(number) = fields.number(name)? {
            *value = number;
        }
    }
    // -1 is vLLM's way to say all, 0 llama.cpp's.
    if let Some(top_k) = fields.integer("top_k")? {
        sampling.top_k = usize::try_from(top_k).unwrap_or(0);
    }
    if let Some(min_tokens) = fields.integer("min_tokens")? {
        sampling.min_tokens = usize::try_from(min_tokens).unwrap_or(usize::MAX);
    }
    let llama_cpp = fields.number("repeat_penalty")?;
    let vllm = fields.number("repetition_penalty")?;
    match (llama_cpp, vllm) {
        (Some(one), Some(other)) if one != other => {
            return Err(Error::invalid(
                "repetition_penalty",
                "contradicts repeat_penalty, which is the same",
            ));
        }
        (one, other) => {
            if let Some(penalty) = one.or(other) {
                sampling.repetition_penalty = penalty;
            }
        }
    }
    if let Some(seed) = fields.integer("seed")? {
        sampling.seed = Some(seed as u64);
    }
    let num_beams = fields.integer("num_beams")?;
    if let Some(num_beams) = num_beams {
        sampling.num_beams = usize::try_from(num_beams).unwrap_or(1);
    }
    sampling.prefer_named(names_temperature, num_beams.is_some());
    if let Some(n) = size(fields.integer("n")?) {
        sampling.n = n;
    }
    if sampling.num_beams > 1 && sampling.n > sampling.num_beams {
        return Err(Error::invalid(
            "n",
            format!("must be at most num_beams, {}", sampling.num_beams),
        ));
    }
    if sampling.num_beams > 1 {
        for (name, value) in [
            ("temperature", sampling.temperature),
            ("frequency_penalty", sampling.frequency_penalty),
            ("presence_penalty", sampling.presence_penalty),
        ] {
            if value != 0.0 {
                return Err(Error::invalid(
                    name,
                    format!("must be 0 with num_beams {}", sampling.num_beams),
                ));
            }
        }
    }
    Ok(sampling)
}

/// `max_completion_tokens`, or its old name `max_tokens`; where both are there the new one holds.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>> {
    let old = fields.integer("max_tokens")?;
    let new = fields.integer("max_completion_tokens")?;
    Ok(new
        .or(old)
        .map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>> {
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(list)) => list
            .into_iter()
            .enumerate()
            .map(|(index, stop)| as_string(stop, &format!("stop[{index}]")))
            .collect::<Result<_>>()?,
        Some(other) => {
            return Err(Error::invalid(
                "stop",
                expected("a string or a list of strings", &other),
            ));
        }
    };
    if stops.len() > MAX_STOPS {
        return Err(Error::invalid(
            "stop",
            format!("must not have more than {MAX_STOPS} strings"),
        ));
    }
    if stops.iter().any(String::is_empty) {
        return Err(Error::invalid("stop", "must not be empty"));
    }
    Ok(stops)
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool> {
    let Some(options) = fields.take("stream_options") else {
        return Ok(false);
    };
    if !stream {
        return Err(Error::invalid(
            "stream_options",
            "is allowed only with stream: true",
        ));
    }
    let mut options = Fields::of(options, "stream_options", &STREAM_OPTIONS)?;
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    // Padding against eavesdroppers; asks for nothing in the answer.
    options.boolean("include_obfuscation")?;
    options.finish()?;
    Ok(include_usage)
}
