//! Answers, in the forms in which the benchmarks' authors take them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Value, json};

use crate::json::{self, Id};
use crate::{Dataset, Error, Result, Task};

/// A model's answers, by what they answer.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    by_id: HashMap<String, String>,
    /// Those without an id, in their order (POPE's own format).
    in_order: Vec<String>,
    /// What rows with an `error` instead are about.
    failed: HashSet<String>,
}

const IDS: [&str; 4] = ["question_id", "questionId", "image_id", "id"];
const TEXTS: [&str; 4] = ["answer", "prediction", "caption", "pred_answer"];

impl Answers {
    /// Reads a JSON array or JSON lines of objects with an id (`question_id`, `questionId`, `image_id` or
    /// `id`) and a text (`answer`, `prediction`, `caption` or `pred_answer`). Objects without an id, as
    /// POPE's, stand in the order of the questions. Lines with `settings` are passed over, and those with an
    /// `error` have no text: see [`Answers::has_failed`].
    ///
    /// # Errors
    /// The file cannot be read, or a record of it has no text or a second answer to its question.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut answers = Self::default();
        if text.trim_start().starts_with('[') {
            let records: Vec<Value> = json::parse(path, "", &text)?;
            for (i, record) in records.iter().enumerate() {
                answers.add(path, &format!("record {}", i + 1), record)?;
            }
            return Ok(answers);
        }
        for (i, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let place = format!("line {}", i + 1);
            let record: Value = json::parse(path, &place, line)?;
            answers.add(path, &place, &record)?;
        }
        Ok(answers)
    }

    fn add(&mut self, path: &Path, place: &str, record: &Value) -> Result<()> {
        let wrong = |reason: String| Error::file(path, place, reason);
        if !record.is_object() {
            return Err(wrong(
                "an object is expected, with an id and an answer".to_owned(),
            ));
        }
        let present = |name: &str| record.get(name).filter(|value| !value.is_null());
        let field = |names: &[&'static str]| {
            let named = |name: &&'static str| Some((*name, present(name)?));
            names.iter().find_map(named)
        };
        let text = match field(&TEXTS) {
            Some((_, Value::String(text))) => Some(text.clone()),
            Some((name, _)) => return Err(wrong(format!("{name} must be a string"))),
            None if present("settings").is_some() => return Ok(()),
            None if present("error").is_some() => None,
            None => {
                return Err(wrong(format!(
                    "no answer: one of {} is expected",
                    TEXTS.join(", ")
                )));
            }
        };
        let Some((name, id)) = field(&IDS) else {
            self.in_order.extend(text);
            return Ok(());
        };
        let id: Id = serde_json::from_value(id.clone())
            .map_err(|error| wrong(format!("{name}: {error}")))?;
        match self.insert(&id, text) {
            true => Ok(()),
            false => Err(wrong(format!("{name} {id} is answered a second time"))),
        }
    }

    /// Takes the answer to a question, or notes that there is none because it failed. False where there was
    /// one or the other before.
    pub fn insert(&mut self, id: &Id, answer: Option<String>) -> bool {
        if self.has(id) {
            return false;
        }
        let key = id.key();
        match answer {
            Some(answer) => self.by_id.insert(key, answer).is_none(),
            None => self.failed.insert(key),
        }
    }

    /// Whether a question has an answer, or an error in its place.
    pub fn has(&self, id: &Id) -> bool {
        let key = id.key();
        self.by_id.contains_key(&key) || self.failed.contains(&key)
    }

    /// Whether a question has an error in the place of its answer.
    pub fn has_failed(&self, id: &Id) -> bool {
        self.failed.contains(&id.key())
    }

    /// The answer to a question.
    pub fn get(&self, id: &Id) -> Option<&str> {
        self.by_id.get(&id.key()).map(String::as_str)
    }

    /// The answers in the order of a data set's records.
    ///
    /// # Errors
    /// Some are missing: `path` is where they should be.
    pub fn aligned(&self, dataset: &Dataset, path: &Path) -> Result<Vec<String>> {
        let n = dataset.records.len();
        if self.by_id.is_empty() {
            if self.in_order.len() < n {
                let reason = format!("{} answers to {n} questions", self.in_order.len());
                return Err(Error::file(path, "", reason));
            }
            return Ok(self.in_order[..n].to_vec());
        }
        let records = dataset.records.iter();
        let found: Vec<Option<&str>> = records.map(|record| self.get(&record.id)).collect();
        let missing = found.iter().filter(|answer| answer.is_none()).count();
        if let Some(first) = found.iter().position(Option::is_none) {
            let id = &dataset.records[first].id;
            let reason = format!("no answer to {missing} of {n} questions, the first is {id}");
            return Err(Error::file(path, "", reason));
        }
        Ok(found.into_iter().flatten().map(str::to_owned).collect())
    }

    /// The answers as the benchmark's server or script takes them: one JSON array, or JSON lines for POPE.
    pub fn submission(dataset: &Dataset, answers: &[String]) -> String {
        let objects = dataset.records.iter().zip(answers).map(|(record, answer)| {
            let id = &record.id;
            match dataset.task {
                Task::Vqav2 | Task::Okvqa | Task::Textvqa => {
                    json!({"question_id": id, "answer": answer})
                }
                Task::Gqa => json!({"questionId": id, "prediction": answer}),
                Task::Coco | Task::Nocaps => json!({"image_id": id, "caption": answer}),
                Task::Pope => json!({"question": record.question, "answer": answer}),
                // Nothing is asked, and there is nothing to submit.
                Task::CocoRetrieval | Task::Flickr30k => Value::Null,
            }
        });
        if dataset.task == Task::Pope {
            return objects.map(|object| format!("{object}\n")).collect();
        }
        Value::Array(objects.collect()).to_string()
    }
}
