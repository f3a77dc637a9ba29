//! Answers that must have a form: JSON, JSON of a schema, or calls of functions.
//!
//! The grammar is llguidance's. It says before each token which tokens may come, so
//! that an answer that ends by itself has the form. Schemas come from strangers, so
//! their size, their depth, and the work they cause are limited.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use prompts::CallSyntax;
use serde_json::{Value, json};

use crate::language_model::LanguageModel;
use crate::{Error, Result};

/// Most bytes of a schema, written without spaces.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;

/// Deepest nesting of objects and lists in a schema.
pub const MAX_SCHEMA_DEPTH: usize = 32;

/// The form that an answer must have.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// A JSON object.
    JsonObject,
    /// JSON that a JSON Schema describes.
    JsonSchema(Value),
    /// Calls of functions, their arguments of a schema each.
    Calls(Calls),
}

/// Calls of functions in a model's own syntax.
#[derive(Debug, Clone, PartialEq)]
pub struct Calls {
    /// How the model writes calls.
    pub syntax: CallSyntax,
    /// Names of the functions, and JSON Schemas of their arguments.
    pub functions: Vec<(String, Value)>,
    /// Whether the prompt ends with the opening of a call, so that nothing else can
    /// follow; otherwise the model may also write text.
    pub opened: bool,
    /// Whether several calls may come, where the syntax has room for them.
    pub several: bool,
}

/// A model's vocabulary, ready for grammars.
pub(crate) struct Grammars {
    factory: ParserFactory,
    /// The token that stands for the end of an answer in masks.
    end: u32,
}

impl Grammars {
    /// Reads the vocabulary; takes some tens of milliseconds.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where the model has no token that ends an answer, or a
    /// vocabulary that llguidance cannot take.
    pub(crate) fn new(model: &LanguageModel) -> Result<Self> {
        let unusable = |reason: String| Error::InvalidRequest {
            reason: format!("this model's answers cannot be given a form: {reason}"),
        };
        let end = model.end_of_generation().first().copied();
        let end = end
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| unusable("no token of its vocabulary ends an answer".to_owned()))?;
        let words: Vec<Vec<u8>> = (0..model.n_vocab())
            .map(|id| word(model, i32::try_from(id).unwrap_or(i32::MAX)))
            .collect();
        let factory = catch_unwind(AssertUnwindSafe(|| {
            let info = TokRxInfo::new(words.len() as u32, end);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
            let slices = SlicedBiasComputer::json_slices();
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)?;
            factory.quiet();
            *factory.limits_mut() = ParserLimits {
                // About 10 ms of a mask, and the memory of some thousands of states.
                max_lexer_states: 50_000,
                max_grammar_size: 100_000,
                verbose_errors: false,
                ..ParserLimits::default()
            };
            Ok(factory)
        }));
        let factory = factory.map_err(|error| unusable(first_line(&error.to_string())))?;
        Ok(Grammars { factory, end })
    }

    /// The constraint of a form.
    ///
    /// # Errors
    /// [`Error::Schema`] for a schema that is too large, is none, or asks for what the
    /// grammar cannot say; [`Error::ToolSchema`] where it is a function's.
    pub(crate) fn constraint(&self, format: &Format, model: &LanguageModel) -> Result<Constraint> {
        match format {
            Format::JsonObject => self.json(&json!({"type": "object"})),
            Format::JsonSchema(schema) => self.json(schema),
            Format::Calls(calls) => {
                for (_, schema) in &calls.functions {
                    check_schema(schema).map_err(|error| self.blame(calls, error))?;
                }
                self.compile(TopLevelGrammar::from_lark(calls.grammar(model)))
                    .map_err(|error| self.blame(calls, error))
            }
        }
    }

    fn json(&self, schema: &Value) -> Result<Constraint> {
        check_schema(schema)?;
        self.compile(TopLevelGrammar::from_json_schema(spaced(schema)))
    }

    /// The error of the function whose schema is at fault.
    fn blame(&self, calls: &Calls, error: Error) -> Error {
        let mut functions = calls.functions.iter().enumerate();
        let found = functions.find_map(|(tool, (_, schema))| match self.json(schema) {
            Err(Error::Schema { reason }) => Some(Error::ToolSchema { tool, reason }),
            _ => None,
        });
        found.unwrap_or(error)
    }

    fn compile(&self, grammar: TopLevelGrammar) -> Result<Constraint> {
        let matcher = catch_unwind(AssertUnwindSafe(|| {
            let parser = self.factory.create_parser(grammar)?;
            Ok(Matcher::new(Ok(parser)))
        }));
        let matcher = matcher.map_err(schema_error)?;
        match matcher.get_error() {
            Some(error) => Err(schema_error(error)),
            None => Ok(Constraint {
                matcher,
                end: self.end,
            }),
        }
    }
}

/// `schema` with spaces as Python's `json.dumps` puts them: left free, some models
/// never stop putting more.
fn spaced(schema: &Value) -> Value {
    let mut schema = schema.clone();
    schema["x-guidance"] = json!({
        "whitespace_flexible": false,
        "item_separator": ", ",
        "key_separator": ": ",
    });
    schema
}

impl Calls {
    /// The calls as a grammar of llguidance's, in its dialect of Lark.
    fn grammar(&self, model: &LanguageModel) -> String {
        let text = |text: &str| json!(text).to_string();
        let (begin, separator, end) = (
            self.syntax.opening(),
            self.syntax.separator(),
            self.syntax.closing(),
        );
        let more = match separator.filter(|_| self.several) {
            Some(separator) => format!("({} call)* {}", text(separator), text(end)),
            // Behind the only call nothing can follow, so the answer is over with it.
            None => String::new(),
        };
        let start = match (self.opened, self.syntax) {
            (true, _) => format!("start: call {more}\n"),
            (false, CallSyntax::Hermes) => {
                // The mark may come after text, and text after a call.
                let repeat = if self.several { "*" } else { "?" };
                let (mark, space) = begin.split_at(begin.trim_end().len());
                format!(
                    "start: (head {} call {}){repeat} TEXT\nhead[lazy]: TEXT {}\nTEXT: /(.|\\n)*/\n",
                    text(space),
                    text(end),
                    text(mark),
                )
            }
            (false, CallSyntax::Llama) => {
                "start: TEXT | call\nTEXT: /([^{](.|\\n)*)?/\n".to_owned()
            }
            (false, CallSyntax::Mistral) => {
                let (mark, bracket) = begin.split_at(begin.len() - 1);
                // The mark is one token of the vocabulary, which text cannot spell.
                let mark = match model.control_token(mark) {
                    Some(id) => format!("<[{id}]>"),
                    None => text(mark),
                };
                format!(
                    "start: TEXT | {mark} {} call {more}\nTEXT: /([^\\[](.|\\n)*)?/\n",
                    text(bracket),
                )
            }
        };
        let mut grammar = format!("%llguidance {{}}\n{start}");
        let names: Vec<String> = (0..self.functions.len())
            .map(|i| format!("call_{i}"))
            .collect();
        grammar.push_str(&format!("call: {}\n", names.join(" | ")));
        for (i, (name, schema)) in self.functions.iter().enumerate() {
            let head = format!(
                "{{\"name\": {}, \"{}\": ",
                text(name),
                self.syntax.arguments()
            );
            grammar.push_str(&format!(
                "call_{i}: {} arguments_{i} \"}}\"\narguments_{i}: %json {}\n",
                text(&head),
                spaced(schema)
            ));
        }
        grammar
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// What a token stands for in a grammar: its bytes, or a name that no text has.
fn word(model: &LanguageModel, id: i32) -> Vec<u8> {
    let bytes = model.token_bytes(id);
    if !bytes.is_empty() && !model.is_end_of_generation(id) {
        return bytes;
    }
    let name = model.token_text(id).unwrap_or_default();
    let mut marked = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    marked.extend_from_slice(name.as_bytes());
    marked
}

fn check_schema(schema: &Value) -> Result<()> {
    if !schema.is_object() {
        return Err(schema_error("it must be an object"));
    }
    let depth = depth(schema);
    if depth > MAX_SCHEMA_DEPTH {
        return Err(schema_error(format!(
            "it is nested {depth} deep, and {MAX_SCHEMA_DEPTH} is the most"
        )));
    }
    let bytes = schema.to_string().len();
    if bytes > MAX_SCHEMA_BYTES {
        return Err(schema_error(format!(
            "it has {bytes} bytes, and {MAX_SCHEMA_BYTES} is the most"
        )));
    }
    Ok(())
}

/// Objects and lists within each other. As deep as a JSON parser lets them be.
fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn schema_error(reason: impl std::fmt::Display) -> Error {
    let reason = first_line(&reason.to_string());
    Error::Schema {
        reason: match reason.contains(NOTHING_FITS) {
            true => "no answer fits it: it needs itself, or contradicts itself".to_owned(),
            false => reason,
        },
    }
}

/// llguidance's name of a grammar that lets nothing come next.
const NOTHING_FITS: &str = "NoExtensionBias";

/// What follows is a backtrace or a grammar, which say nothing to a user.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(300).collect()
}

/// A form on its way through one answer.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    end: u32,
}

impl Constraint {
    /// A copy for another answer; the two share nothing that either waits for.
    pub(crate) fn fork(&self) -> Self {
        Constraint {
            matcher: self.matcher.deep_clone(),
            end: self.end,
        }
    }

    /// What may come next.
    ///
    /// # Errors
    /// [`Error::Schema`] when that takes more work than is allowed.
    pub(crate) fn allowed(&mut self) -> Result<Allowed> {
        let mask = self.matcher.compute_mask_or_eos().map_err(schema_error)?;
        let may_end = mask.is_allowed(self.end);
        let must_end = may_end && mask.num_set() == 1;
        Ok(Allowed {
            mask,
            may_end,
            must_end,
        })
    }

    /// Takes the next token of the answer.
    ///
    /// # Errors
    /// [`Error::Schema`] when that takes more work than is allowed.
    pub(crate) fn accept(&mut self, id: i32) -> Result<()> {
        let id = u32::try_from(id).unwrap_or(u32::MAX);
        self.matcher.consume_token(id).map_err(schema_error)
    }

    /// Whether the answer is complete and nothing can follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

/// The tokens that may come next.
pub(crate) struct Allowed {
    mask: SimpleVob,
    may_end: bool,
    must_end: bool,
}

impl Allowed {
    /// Whether nothing but the end may come.
    pub(crate) fn must_end(&self) -> bool {
        self.must_end
    }

    /// Takes every other token out of `scores`, `[n_vocab]`. Tokens of `ends` may come
    /// where the answer may end, and only there, whatever their text.
    pub(crate) fn apply(&self, ends: &[i32], scores: &mut [f32]) {
        let places = ends.iter().filter_map(|&id| usize::try_from(id).ok());
        let places = places.filter(|&id| id < scores.len());
        let of_ends: Vec<(usize, f32)> = places.map(|id| (id, scores[id])).collect();
        let words = self.mask.as_slice();
        for (scores, word) in scores.chunks_mut(32).zip(words) {
            for (bit, score) in scores.iter_mut().enumerate() {
                if word & (1 << bit) == 0 {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        for (id, score) in of_ends {
            scores[id] = match self.may_end {
                true => score,
                false => f32::NEG_INFINITY,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn model() -> LanguageModel {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/llm/llm.gguf");
        LanguageModel::load(&path).unwrap()
    }

    fn refused(schema: Value) -> String {
        let model = model();
        let error = Grammars::new(&model)
            .unwrap()
            .constraint(&Format::JsonSchema(schema), &model)
            .unwrap_err();
        assert!(matches!(error, Error::Schema { .. }), "{error}");
        let error = error.to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    /// A text token by token, and whether each may come.
    fn takes(constraint: &mut Constraint, model: &LanguageModel, text: &str) -> bool {
        let n_vocab = model.n_vocab();
        model.tokenize(text, false).unwrap().into_iter().all(|id| {
            let mut scores = vec![0.0; n_vocab];
            let allowed = constraint.allowed().unwrap();
            allowed.apply(model.end_of_generation(), &mut scores);
            scores[id as usize] == 0.0 && constraint.accept(id).is_ok()
        })
    }

    #[test]
    fn only_json_of_the_schema_comes_through() {
        let model = model();
        let grammars = Grammars::new(&model).unwrap();
        let schema = json!({
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
            "required": ["a", "b"],
            "additionalProperties": false,
        });
        let fresh = grammars
            .constraint(&Format::JsonSchema(schema), &model)
            .unwrap();
        for (text, fits) in [
            (r#"{"a": 12, "b": "x"}"#, true),
            (r#"{"a": 12, "b": "z"}"#, false),
            (r#"{"b": "x"}"#, false),
            (r#"{"a": 1.5, "b": "x"}"#, false),
            ("hello", false),
            (" {", false),
        ] {
            let mut constraint = fresh.fork();
            assert_eq!(takes(&mut constraint, &model, text), fits, "{text}");
            assert_eq!(constraint.is_complete(), fits, "{text}");
        }
        let mut object = grammars.constraint(&Format::JsonObject, &model).unwrap();
        assert!(takes(
            &mut object,
            &model,
            r#"{"any": [1, {"thing": null}]}"#
        ));
        assert!(object.is_complete());
        let mut list = grammars.constraint(&Format::JsonObject, &model).unwrap();
        assert!(!takes(&mut list, &model, "[1]"));
    }

    #[test]
    fn an_answer_ends_where_it_may_and_only_there() {
        let model = model();
        let grammars = Grammars::new(&model).unwrap();
        let schema = Format::JsonSchema(json!({"type": "integer"}));
        let mut constraint = grammars.constraint(&schema, &model).unwrap();
        let ends = |constraint: &mut Constraint| {
            let mut scores = vec![0.0; model.n_vocab()];
            // The second is text: "2", which a stop id may well be.
            let two = model.tokenize("2", false).unwrap()[0];
            let ends = [model.end_of_generation()[0], two];
            constraint.allowed().unwrap().apply(&ends, &mut scores);
            ends.map(|id| scores[id as usize] == 0.0)
        };
        assert_eq!(ends(&mut constraint), [false, false]);
        assert!(takes(&mut constraint, &model, "1"));
        assert_eq!(ends(&mut constraint), [true, true]);
    }

    /// Two functions, the second's schema with a definition that it refers to.
    fn calls(syntax: CallSyntax, opened: bool, several: bool) -> Calls {
        let of = |properties: Value| {
            let required: Vec<_> = properties.as_object().unwrap().keys().cloned().collect();
            json!({
                "type": "object", "properties": properties, "required": required,
                "additionalProperties": false, "$defs": {"side": {"enum": ["left", "right"]}},
            })
        };
        Calls {
            syntax,
            functions: vec![
                ("count".to_owned(), of(json!({"n": {"type": "integer"}}))),
                (
                    "turn".to_owned(),
                    of(json!({"to": {"$ref": "#/$defs/side"}})),
                ),
            ],
            opened,
            several,
        }
    }

    #[test]
    fn only_calls_of_the_functions_come_through() {
        let model = model();
        let grammars = Grammars::new(&model).unwrap();
        let [count, turn] = [
            r#"{"name": "count", "KEY": {"n": 3}}"#,
            r#"{"name": "turn", "KEY": {"to": "left"}}"#,
        ];
        for (syntax, opened, several, answer, fits) in [
            (CallSyntax::Hermes, true, false, "COUNT".to_owned(), true),
            (
                CallSyntax::Hermes,
                true,
                false,
                "COUNT\n</tool_call>".to_owned(),
                false,
            ),
            (
                CallSyntax::Hermes,
                true,
                true,
                "COUNT\n</tool_call>\n<tool_call>\nTURN\n</tool_call>".to_owned(),
                true,
            ),
            (
                CallSyntax::Hermes,
                true,
                true,
                "so: COUNT".to_owned(),
                false,
            ),
            (
                CallSyntax::Hermes,
                true,
                false,
                r#"{"name": "fly", "arguments": {}}"#.to_owned(),
                false,
            ),
            (
                CallSyntax::Hermes,
                true,
                false,
                r#"{"name": "turn", "arguments": {"to": "up"}}"#.to_owned(),
                false,
            ),
            (
                CallSyntax::Hermes,
                false,
                true,
                "so: <tool_call>\nTURN\n</tool_call>\n<tool_call>\nCOUNT\n</tool_call> so"
                    .to_owned(),
                true,
            ),
            (
                CallSyntax::Hermes,
                false,
                true,
                "words < words {\n".to_owned(),
                true,
            ),
            (
                CallSyntax::Hermes,
                false,
                true,
                "<tool_call>\nno call".to_owned(),
                false,
            ),
            (CallSyntax::Llama, true, true, "TURN".to_owned(), true),
            (CallSyntax::Llama, false, true, "words {".to_owned(), true),
            (CallSyntax::Llama, false, true, "TURN".to_owned(), true),
            (CallSyntax::Llama, false, true, "{}".to_owned(), false),
            (
                CallSyntax::Mistral,
                true,
                true,
                "COUNT, TURN]".to_owned(),
                true,
            ),
            (
                CallSyntax::Mistral,
                false,
                true,
                "[TOOL_CALLS][COUNT]".to_owned(),
                true,
            ),
            (
                CallSyntax::Mistral,
                false,
                true,
                "[TOOL_CALLS] none".to_owned(),
                false,
            ),
        ] {
            let answer = answer.replace("COUNT", count).replace("TURN", turn);
            let answer = answer.replace("KEY", syntax.arguments());
            let form = Format::Calls(calls(syntax, opened, several));
            let mut constraint = grammars.constraint(&form, &model).unwrap();
            let went = takes(&mut constraint, &model, &answer);
            let may_end = || {
                constraint
                    .clone()
                    .allowed()
                    .is_ok_and(|allowed| allowed.may_end)
            };
            let ends = went && (constraint.is_complete() || may_end());
            assert_eq!(ends, fits, "{form:?} {answer}");
        }
    }

    #[test]
    fn a_functions_schema_that_is_none_is_blamed_on_it() {
        let model = model();
        let grammars = Grammars::new(&model).unwrap();
        for (schema, at) in [(json!({"type": "no such type"}), 1), (json!(3), 0)] {
            let mut calls = calls(CallSyntax::Hermes, true, false);
            calls.functions[at].1 = schema;
            let error = grammars
                .constraint(&Format::Calls(calls), &model)
                .unwrap_err();
            assert!(
                matches!(error, Error::ToolSchema { tool, .. } if tool == at),
                "{error}"
            );
        }
    }

    #[test]
    fn schemas_that_are_none_are_refused() {
        for schema in [json!(true), json!([]), json!("object"), json!(null)] {
            assert!(refused(schema).contains("object"));
        }
        refused(json!({"type": "no such type"}));
        refused(json!({"type": "string", "pattern": "("}));
        refused(json!({"$ref": "http://127.0.0.1/schema.json"}));
        refused(json!({"$ref": "#/$defs/missing"}));
        refused(json!({"type": "object", "properties": 3}));
        refused(json!({"not": {"type": "string"}}));
    }

    #[test]
    fn a_schema_that_nothing_fits_is_told() {
        let model = model();
        let schema = Format::JsonSchema(json!({"$ref": "#"}));
        let constraint = Grammars::new(&model).unwrap().constraint(&schema, &model);
        let error = constraint.and_then(|mut constraint| constraint.allowed());
        let error = error.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("no answer fits it"), "{error}");
    }

    /// Among them what CVE-2025-48944 is about: patterns and types that nobody checked
    /// took a worker of vLLM down.
    #[test]
    fn schemas_that_cost_too_much_are_refused_soon() {
        let nested = |n: usize| {
            (0..n).fold(
                json!({"type": "null"}),
                |inner, _| json!({"type": "object", "properties": {"a": inner}, "required": ["a"]}),
            )
        };
        let started = std::time::Instant::now();
        assert!(refused(nested(40)).contains("deep"));
        let words: Vec<String> = (0..20_000).map(|n| format!("word {n}")).collect();
        assert!(refused(json!({"enum": words})).contains("bytes"));
        for hostile in [
            json!({"type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}"}),
            json!({"type": "string", "pattern": "(x+x+)+y|(.{1000}){1000}"}),
            json!({"type": "array", "items": nested(10), "minItems": 1_000_000_000u64, "maxItems": 2_000_000_000u64}),
        ] {
            let model = model();
            let constraint = Grammars::new(&model)
                .unwrap()
                .constraint(&Format::JsonSchema(hostile), &model);
            // Refused, or cheap after all.
            if let Ok(mut constraint) = constraint {
                let _ = constraint.allowed();
            }
        }
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }
}
