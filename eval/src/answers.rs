//! Answers, in the forms in which the benchmarks' authors take them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::json::{self, Id};
use crate::{Dataset, Error, Result, Task};

/// A model's answers, by what they answer.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    by_id: HashMap<String, Answer>,
    /// Those without an id, in their order (POPE's own format).
    in_order: Vec<Answer>,
    /// What rows with an `error` instead are about.
    failed: HashSet<String>,
    /// How all were asked, where that is said, and the place that says it.
    settings: Option<(String, Map<String, Value>)>,
}

/// An answer, and what its file says of it.
#[derive(Debug, Clone, Default)]
struct Answer {
    text: String,
    /// What was asked, where that is said.
    question: Option<String>,
    /// Where it stands, for messages.
    place: String,
}

const IDS: [&str; 4] = ["question_id", "questionId", "image_id", "id"];
const TEXTS: [&str; 4] = ["answer", "prediction", "caption", "pred_answer"];

impl Answers {
    /// Reads a JSON array or JSON lines of objects with an id (`question_id`, `questionId`, `image_id` or
    /// `id`) and a text (`answer`, `prediction`, `caption` or `pred_answer`). Objects without an id, as
    /// POPE's, stand in the order of the questions. Lines with `settings` are no answers, and those with an
    /// `error` have no text: see [`Answers::has_failed`].
    ///
    /// # Errors
    /// The file cannot be read, a record of it has no text or a second answer to its question, some have an id
    /// and some none, or they were asked with different settings.
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
            None if present("settings").is_some() => {
                let settings = record.get("settings").and_then(Value::as_object);
                let settings = settings.ok_or_else(|| wrong("settings: an object".to_owned()))?;
                return self.add_settings(place, settings).map_err(wrong);
            }
            None if present("error").is_some() => None,
            None => {
                return Err(wrong(format!(
                    "no answer: one of {} is expected",
                    TEXTS.join(", ")
                )));
            }
        };
        let answer = text.map(|text| Answer {
            text,
            question: present("question")
                .and_then(Value::as_str)
                .map(str::to_owned),
            place: place.to_owned(),
        });
        let ids = IDS.join(", ");
        let Some((name, id)) = field(&IDS) else {
            if !self.by_id.is_empty() || !self.failed.is_empty() {
                return Err(wrong(format!(
                    "no id, which those before have: one of {ids}"
                )));
            }
            // Without it, those that follow would be taken for answers to other questions.
            let answer = answer.ok_or_else(|| {
                wrong(format!(
                    "an error in the place of an answer needs an id: one of {ids}"
                ))
            })?;
            self.in_order.push(answer);
            return Ok(());
        };
        if !self.in_order.is_empty() {
            return Err(wrong(format!("{name}: those before have no id")));
        }
        let id: Id = serde_json::from_value(id.clone())
            .map_err(|error| wrong(format!("{name}: {error}")))?;
        match self.take(&id, answer) {
            true => Ok(()),
            false => Err(wrong(format!("{name} {id} is answered a second time"))),
        }
    }

    /// Notes how answers were asked. Those of one model, asked alike, are one benchmark's.
    fn add_settings(&mut self, place: &str, settings: &Map<String, Value>) -> Result<(), String> {
        let Some((first, earlier)) = &self.settings else {
            self.settings = Some((place.to_owned(), settings.clone()));
            return Ok(());
        };
        for name in earlier.keys().chain(settings.keys()) {
            let of =
                |settings: &Map<String, Value>| settings.get(name).cloned().unwrap_or_default();
            let (earlier, now) = (of(earlier), of(settings));
            if earlier != now {
                return Err(format!(
                    "settings.{name} is {now}, and {earlier} in {first}: these are answers of two runs, to be scored apart"
                ));
            }
        }
        Ok(())
    }

    /// Takes the answer to a question, or notes that there is none because it failed. False where there was
    /// one or the other before.
    pub fn insert(&mut self, id: &Id, answer: Option<String>) -> bool {
        let of = |text| Answer {
            text,
            ..Answer::default()
        };
        self.take(id, answer.map(of))
    }

    fn take(&mut self, id: &Id, answer: Option<Answer>) -> bool {
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
        self.by_id.get(&id.key()).map(|answer| answer.text.as_str())
    }

    /// Whether they belong to the questions: what is said of settings and questions is the data set's, and none
    /// answers another question. Of a part of a data set's questions, `is_part`, answers to the others may be there
    /// too, and so they may to GQA's questions that are not of the balanced set.
    ///
    /// # Errors
    /// They do not, for what stands at a place in `path`.
    pub fn check(&self, dataset: &Dataset, path: &Path, is_part: bool) -> Result<()> {
        let wrong = |place: &str, reason: String| Err(Error::file(path, place, reason));
        if let Some((place, settings)) = &self.settings {
            let (task, asked) = (dataset.task.name(), settings.get("task"));
            if let Some(asked) = asked.filter(|asked| *asked != task) {
                return wrong(
                    place,
                    format!("settings.task is {asked}, and {task} is scored"),
                );
            }
        }
        let records = &dataset.records;
        for (i, record) in records.iter().enumerate() {
            let answer = self.by_id.get(&record.id.key()).or(self.in_order.get(i));
            let Some(answer) = answer else { continue };
            let Some(asked) = &answer.question else {
                continue;
            };
            if !record.question.is_empty() && !is_same(asked, &record.question) {
                let (id, question) = (&record.id, &record.question);
                let reason = format!("question is {asked:?}, and {question:?} in the data ({id})");
                return wrong(&answer.place, reason);
            }
        }
        if is_part || dataset.task == Task::Gqa {
            return Ok(());
        }
        let known: HashSet<String> = records.iter().map(|record| record.id.key()).collect();
        let strange = self.by_id.iter().filter(|(id, _)| !known.contains(*id));
        // The map has no order, and which is told should not be by chance.
        if let Some((id, answer)) = strange.min_by_key(|(id, _)| *id) {
            return wrong(&answer.place, format!("{id} is none of the questions"));
        }
        match self.in_order.get(records.len()) {
            Some(first) => wrong(
                &first.place,
                format!(
                    "{} answers to {} questions, and this is the first too many",
                    self.in_order.len(),
                    records.len()
                ),
            ),
            None => Ok(()),
        }
    }

    /// Whether only their order says what they answer.
    pub fn are_in_order(&self) -> bool {
        !self.in_order.is_empty()
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
            let answers = self.in_order[..n].iter();
            return Ok(answers.map(|answer| answer.text.clone()).collect());
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

/// Whether two wordings are of one question: letters and digits are, since some clean the others up before they ask.
fn is_same(a: &str, b: &str) -> bool {
    let words = |text: &str| -> String {
        let letters = text.chars().filter(|c| c.is_alphanumeric());
        letters.flat_map(char::to_lowercase).collect()
    };
    words(a) == words(b)
}
