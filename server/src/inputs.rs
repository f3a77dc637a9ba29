//! Texts and pictures of requests that compare them.
//!
//! The shapes of several APIs: OpenAI's strings, content parts as in messages, `{"content": [..]}` as vLLM's scores have
//! them, and `{"text"}` or `{"image"}` as Jina's.

use serde_json::Value;

use crate::fields::{Fields, as_list, as_string, expected};
use crate::images::Images;
use crate::schema::Object;
use crate::tables::{IMAGE_URL, INPUT, INPUT_PART, MAX_INPUTS};
use crate::{Error, Result, ServeOptions};

/// A text or a picture of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// The text of this index.
    Text(usize),
    /// The picture of this index.
    Picture(usize),
}

/// The texts and pictures of a request, in the order in which they were read.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) texts: Vec<String>,
    pub(crate) images: Images,
}

impl Inputs {
    /// None yet; what is wrong with all of its pictures is blamed on the field `root`.
    pub(crate) fn new(root: &'static str, max_pictures: usize) -> Inputs {
        Inputs {
            texts: Vec::new(),
            images: Images::new(root, max_pictures),
        }
    }

    /// Reads what stands at `path`: one text or picture, or a list.
    pub(crate) fn several(
        &mut self,
        value: Value,
        path: &str,
        options: &ServeOptions,
    ) -> Result<Vec<Input>> {
        let list = match value {
            Value::Array(list) => list,
            value => return self.one(value, path, &INPUT, options),
        };
        check_length(list.len(), path)?;
        if list.iter().all(Value::is_number) || list.iter().all(Value::is_array) {
            return Err(Error::unsupported(
                path,
                "token ids of another model mean nothing here: send texts",
            ));
        }
        let mut inputs = Vec::with_capacity(list.len());
        for (index, value) in list.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            match self.one(value, &path, &INPUT, options)?.as_slice() {
                [input] => inputs.push(*input),
                _ => return Err(Error::invalid(path, "must be one text or one picture")),
            }
        }
        Ok(inputs)
    }

    /// Reads what must be one text or picture.
    pub(crate) fn single(
        &mut self,
        value: Value,
        path: &str,
        options: &ServeOptions,
    ) -> Result<Input> {
        if value.is_array() {
            return Err(Error::invalid(
                path,
                expected("a text or a picture", &value),
            ));
        }
        match self.one(value, path, &INPUT, options)?.as_slice() {
            [input] => Ok(*input),
            _ => Err(Error::invalid(path, "must be one text or one picture")),
        }
    }

    /// A string, a part, or the parts of a `content`.
    fn one(
        &mut self,
        value: Value,
        path: &str,
        table: &'static Object,
        options: &ServeOptions,
    ) -> Result<Vec<Input>> {
        let is_part = table.name == INPUT_PART.name;
        let value = match value {
            Value::String(text) if !is_part => return Ok(vec![self.text(text, path)?]),
            value @ Value::Object(_) => value,
            other => {
                let wanted = match is_part {
                    true => "a part with a text or a picture",
                    false => "a text, a picture or a list of them",
                };
                return Err(Error::invalid(path, expected(wanted, &other)));
            }
        };
        let mut fields = Fields::of(value, path, table)?;
        let kind = fields.choice("type")?;
        let of_kind = |name: &str| kind.as_deref().is_none_or(|kind| kind == name);
        let content = fields.take("content");
        let text = fields.take("text");
        let image_url = fields.take("image_url");
        let image = fields.take("image");
        let [content_path, text_path, url_path, image_path] =
            ["content", "text", "image_url", "image"].map(|name| fields.path(name));
        fields.finish()?;
        match (content, text, image_url, image) {
            (Some(content), None, None, None) if kind.is_none() => {
                let list = as_list(content, &content_path)?;
                check_length(list.len(), &content_path)?;
                let mut inputs = Vec::with_capacity(list.len());
                for (index, part) in list.into_iter().enumerate() {
                    let path = format!("{content_path}[{index}]");
                    inputs.extend(self.one(part, &path, &INPUT_PART, options)?);
                }
                Ok(inputs)
            }
            (None, Some(text), None, None) if of_kind("text") => {
                let text = as_string(text, &text_path)?;
                Ok(vec![self.text(text, &text_path)?])
            }
            (None, None, Some(image), None) if of_kind("image_url") => {
                Ok(vec![self.picture(image, &url_path, options)?])
            }
            (None, None, None, Some(image)) if kind.is_none() => {
                let url = as_string(image, &image_path)?;
                Ok(vec![self.url(&url, image_path, options)?])
            }
            _ => Err(Error::invalid(
                path,
                "must hold one of text, image_url, image and content, and type, where it is there, must name it",
            )),
        }
    }

    fn text(&mut self, text: String, path: &str) -> Result<Input> {
        if text.is_empty() {
            return Err(Error::invalid(path, "must not be empty"));
        }
        self.texts.push(text);
        Ok(Input::Text(self.texts.len() - 1))
    }

    /// `{"url": ..}`, or the bare URL.
    fn picture(&mut self, value: Value, path: &str, options: &ServeOptions) -> Result<Input> {
        if let Value::String(url) = value {
            return self.url(&url, path.to_owned(), options);
        }
        let mut fields = Fields::of(value, path, &IMAGE_URL)?;
        let url_path = fields.path("url");
        let url = as_string(fields.required("url")?, &url_path)?;
        fields.choice("detail")?;
        fields.finish()?;
        self.url(&url, url_path, options)
    }

    fn url(&mut self, url: &str, path: String, options: &ServeOptions) -> Result<Input> {
        Ok(Input::Picture(self.images.add(url, path, options)?))
    }
}

fn check_length(length: usize, path: &str) -> Result<()> {
    match length {
        0 => Err(Error::invalid(path, "must not be empty")),
        length if length > MAX_INPUTS => Err(Error::invalid(
            path,
            format!("must not have more than {MAX_INPUTS} texts and pictures"),
        )),
        _ => Ok(()),
    }
}
