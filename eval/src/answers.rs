//! Answers, in the forms in which the benchmarks' authors take them.

use std::collections::HashMap;
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
}

const IDS: [&str; 4] = ["question_id", "questionId", "image_id", "id"];
const TEXTS: [&str; 4] = ["answer", "prediction", "caption", "pred_answer"];

impl Answers {
    /// Reads a JSON array or JSON lines of objects with an id (`question_id`, `questionId`, `image_id` or
    /// `id`) and a text (`answer`, `prediction`, `caption` or `pred_answer`). Objects without an id, as
    /// POPE's, stand in the order of the questions. Lines without a text are passed over where they have
    /// `settings` or `error`.
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
        let field = |names: &[&'static str]| {
            let named = |name: &&'static str| Some((*name, record.get(*name)?));
            names.iter().find_map(named)
        };
        let text = match field(&TEXTS) {
            Some((_, Value::String(text))) => text.clone(),
            Some((name, _)) => return Err(wrong(format!("{name} must be a string"))),
            None if record.get("settings").is_some() || record.get("error").is_some() => {
                return Ok(());
            }
            None => {
                return Err(wrong(format!(
                    "no answer: one of {} is expected",
                    TEXTS.join(", ")
                )));
            }
        };
        let Some((name, id)) = field(&IDS) else {
            self.in_order.push(text);
            return Ok(());
        };
        let id: Id = serde_json::from_value(id.clone())
            .map_err(|error| wrong(format!("{name}: {error}")))?;
        match self.by_id.insert(id.key(), text) {
            None => Ok(()),
            Some(_) => Err(wrong(format!("{name} {id} is answered a second time"))),
        }
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
            }
        });
        if dataset.task == Task::Pope {
            return objects.map(|object| format!("{object}\n")).collect();
        }
        Value::Array(objects.collect()).to_string()
    }
}
