//! What requests may hold: the tables that [`crate::fields::Fields`] reads bodies by, and that the OpenAPI document is
//! made from. A field that is not in them is unknown to the server.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

/// An object, by its fields.
#[derive(Debug)]
pub(crate) struct Object {
    /// What the document calls it.
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// Lists of fields, since some objects share some.
    pub(crate) fields: &'static [&'static [Field]],
}

/// A field; `null` in one that is not required means that it is not there.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) of: Type,
    pub(crate) required: bool,
    pub(crate) about: &'static str,
}

/// What a value must be.
#[derive(Debug)]
pub(crate) enum Type {
    /// Looked at by nobody.
    Any,
    /// Nothing but `null`: known to OpenAI, and refused by name.
    Null,
    /// `false`: OpenAI's `true` would ask for what is not done.
    False,
    Boolean,
    String,
    /// At least one character.
    Text,
    /// Of a form that has a name.
    Formatted(&'static str),
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// Lowest and highest.
    Number(f64, f64),
    /// Lowest and highest.
    Integer(i64, i64),
    /// A map of names to these.
    Map(&'static Type),
    /// Of so many items, at least and at most.
    List(&'static Type, usize, usize),
    Object(&'static Object),
    /// One of several.
    Either(&'static [Type]),
}

/// An empty list or map: asks for nothing.
pub(crate) const EMPTY: Type = Type::Either(&[
    Type::List(&Type::Any, 0, 0),
    Type::Object(&Object {
        name: "Empty",
        about: "Nothing.",
        fields: &[],
    }),
]);

/// A field that may be left out.
pub(crate) const fn optional(name: &'static str, of: Type, about: &'static str) -> Field {
    Field {
        name,
        of,
        required: false,
        about,
    }
}

/// A field that must be there.
pub(crate) const fn required(name: &'static str, of: Type, about: &'static str) -> Field {
    Field {
        name,
        of,
        required: true,
        about,
    }
}

impl Object {
    /// All fields, in the order of the table.
    pub(crate) fn fields(&self) -> impl Iterator<Item = &'static Field> {
        self.fields.iter().copied().flatten()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields().find(|field| field.name == name)
    }

    /// The range of a field that is a number; an empty one for any other.
    pub(crate) fn numbers(&self, name: &str) -> RangeInclusive<f64> {
        match self.field(name).map(|field| &field.of) {
            Some(&Type::Number(low, high)) => low..=high,
            _ => RangeInclusive::new(1.0, 0.0),
        }
    }

    /// The range of a field that is an integer; an empty one for any other.
    pub(crate) fn integers(&self, name: &str) -> RangeInclusive<i64> {
        match self.field(name).map(|field| &field.of) {
            Some(&Type::Integer(low, high)) => low..=high,
            _ => RangeInclusive::new(1, 0),
        }
    }

    /// The words that a field may be; none for any other.
    pub(crate) fn choices(&self, name: &str) -> &'static [&'static str] {
        match self.field(name).map(|field| &field.of) {
            Some(&Type::Choice(choices)) => choices,
            _ => &[],
        }
    }

    /// The object in JSON Schema. The objects in it are put into `named`, under their names, and referred to.
    fn schema(&self, named: &mut Map<String, Value>) -> Value {
        let mut properties = Map::new();
        for field in self.fields() {
            let mut schema = field.of.schema(named);
            if !field.required {
                schema = or_null(schema);
            }
            schema["description"] = json!(field.about);
            properties.insert(field.name.to_owned(), schema);
        }
        let required: Vec<_> = self
            .fields()
            .filter(|field| field.required)
            .map(|field| field.name)
            .collect();
        json!({
            "type": "object",
            "description": self.about,
            "properties": properties,
            "required": required,
            "additionalProperties": {"type": "null"},
        })
    }

    /// A reference to the object, whose schema is put into `named`.
    pub(crate) fn reference(&self, named: &mut Map<String, Value>) -> Value {
        if !named.contains_key(self.name) {
            let schema = self.schema(named);
            named.insert(self.name.to_owned(), schema);
        }
        reference(self.name)
    }
}

/// A reference to a schema of the document.
pub(crate) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

impl Type {
    /// The type in JSON Schema.
    fn schema(&self, named: &mut Map<String, Value>) -> Value {
        match self {
            Type::Any => json!({}),
            Type::Null => json!({"type": "null"}),
            Type::False => json!({"type": "boolean", "const": false}),
            Type::Boolean => json!({"type": "boolean"}),
            Type::String => json!({"type": "string"}),
            Type::Text => json!({"type": "string", "minLength": 1}),
            Type::Formatted(format) => json!({"type": "string", "format": format}),
            Type::Choice(choices) => json!({"type": "string", "enum": choices}),
            Type::Number(low, high) => json!({"type": "number", "minimum": low, "maximum": high}),
            Type::Integer(low, high) => {
                json!({"type": "integer", "minimum": low, "maximum": high})
            }
            Type::Map(of) => {
                json!({"type": "object", "additionalProperties": of.schema(named)})
            }
            Type::List(of, min, max) => {
                let mut schema = json!({"type": "array", "items": of.schema(named)});
                if *min > 0 {
                    schema["minItems"] = json!(min);
                }
                if *max < usize::MAX {
                    schema["maxItems"] = json!(max);
                }
                schema
            }
            Type::Object(object) => object.reference(named),
            Type::Either(types) => {
                let types: Vec<_> = types.iter().map(|of| of.schema(named)).collect();
                json!({ "anyOf": types })
            }
        }
    }
}

/// `schema`, or `null`.
fn or_null(mut schema: Value) -> Value {
    let null = json!({"type": "null"});
    if schema == null || schema == json!({}) {
        return schema;
    }
    match schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        Some(types) => {
            types.push(null);
            schema
        }
        None => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}
