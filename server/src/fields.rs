//! A JSON object read field by field, so that each failure names its field and none is forgotten.

use serde_json::{Map, Value};

use crate::schema::Object;
use crate::{Error, Result};

/// An object's fields that have not been read yet.
#[derive(Debug)]
pub(crate) struct Fields {
    fields: Map<String, Value>,
    path: String,
    object: &'static Object,
}

impl Fields {
    /// The fields of `value`, which stands at `path` and must be such an `object`.
    pub(crate) fn of(value: Value, path: &str, object: &'static Object) -> Result<Fields> {
        match value {
            Value::Object(fields) => Ok(Fields {
                fields,
                path: path.to_owned(),
                object,
            }),
            other => Err(Error::invalid(path, expected("an object", &other))),
        }
    }

    /// The path of a field.
    pub(crate) fn path(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    /// A field's value; `null` is no value. What the object's table does not have is not to be had, so that nothing is
    /// read that is not documented.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.object.field(name)?;
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there, be it `null`.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// Whether the field has a value that is not `null`.
    pub(crate) fn contains_value(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field that must be there.
    pub(crate) fn required(&mut self, name: &str) -> Result<Value> {
        self.take(name).ok_or_else(|| Error::Missing {
            param: self.path(name),
        })
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>> {
        self.take(name)
            .map(|value| as_string(value, &self.path(name)))
            .transpose()
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(Error::invalid(
                self.path(name),
                expected("true or false", &other),
            )),
        }
    }

    /// One of the words that the table has for the field.
    pub(crate) fn choice(&mut self, name: &str) -> Result<Option<String>> {
        let (path, choices) = (self.path(name), self.object.choices(name));
        let Some(word) = self.string(name)? else {
            return Ok(None);
        };
        match choices.contains(&word.as_str()) {
            true => Ok(Some(word)),
            false => Err(Error::invalid(path, format!("must be {}", or(choices)))),
        }
    }

    /// A number in the range that the table has for it.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f32>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let range = self.object.numbers(name);
        match value.as_f64() {
            Some(number) if range.contains(&number) => Ok(Some(number as f32)),
            _ => {
                let wanted = format!("a number from {} to {}", range.start(), range.end());
                Err(Error::invalid(self.path(name), expected(&wanted, &value)))
            }
        }
    }

    /// An integer in the range that the table has for it.
    pub(crate) fn integer(&mut self, name: &str) -> Result<Option<i64>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let range = self.object.integers(name);
        match value.as_i64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let wanted = match *range.end() {
                    i64::MAX => format!("an integer of at least {}", range.start()),
                    end => format!("an integer from {} to {end}", range.start()),
                };
                Err(Error::invalid(self.path(name), expected(&wanted, &value)))
            }
        }
    }

    /// Refuses what was not read.
    pub(crate) fn finish(self) -> Result<()> {
        let unknown = self.fields.iter().find(|(_, value)| !value.is_null());
        match unknown {
            Some((name, _)) => Err(Error::UnknownField {
                param: self.path(name),
            }),
            None => Ok(()),
        }
    }
}

/// `a, b or c`
fn or(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [firsts @ .., last] => format!("{} or {last}", firsts.join(", ")),
    }
}

/// A string at `path`.
pub(crate) fn as_string(value: Value, path: &str) -> Result<String> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Error::invalid(path, expected("a string", &other))),
    }
}

/// A list at `path`.
pub(crate) fn as_list(value: Value, path: &str) -> Result<Vec<Value>> {
    match value {
        Value::Array(list) => Ok(list),
        other => Err(Error::invalid(path, expected("a list", &other))),
    }
}

/// `must be WANTED, not GOT`; of what was sent, only short values are repeated.
pub(crate) fn expected(wanted: &str, got: &Value) -> String {
    let got = match got {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    format!("must be {wanted}, not {got}")
}
