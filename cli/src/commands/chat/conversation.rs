//! What was said and shown, and its form in files: the body of a chat completion, as OpenAI's API has it.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use qbridge::{Picture, Request};
use qformer::image::{MAX_BYTES, media_type};
use serde::{Deserialize, Serialize};
use server::data_uri;

/// A conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conversation {
    turns: Vec<Turn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Turn {
    System(String),
    User(Vec<Part>),
    Assistant(String),
}

/// A part of what a user says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Words.
    Text(String),
    /// A picture that is shown.
    Picture(Picture),
}

impl Conversation {
    /// How many messages it has.
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    /// The user's turn.
    pub fn say(&mut self, parts: Vec<Part>) {
        self.turns.push(Turn::User(parts));
    }

    /// The model's turn.
    pub fn answered(&mut self, text: &str) {
        self.turns.push(Turn::Assistant(text.to_owned()));
    }

    /// Takes the last turn back.
    pub fn take_back(&mut self) {
        self.turns.pop();
    }

    /// Takes the pictures of a last turn that says nothing: they go with what is said next.
    pub fn take_shown(&mut self) -> Vec<Picture> {
        let is_picture = |part: &Part| matches!(part, Part::Picture(_));
        let last = self.turns.pop_if(|turn| match turn {
            Turn::User(parts) => parts.iter().all(is_picture),
            _ => false,
        });
        let parts = match last {
            Some(Turn::User(parts)) => parts,
            _ => Vec::new(),
        };
        let pictures = parts.into_iter().filter_map(|part| match part {
            Part::Picture(picture) => Some(picture),
            Part::Text(_) => None,
        });
        pictures.collect()
    }

    /// All of it, as the model is asked.
    pub fn request(&self) -> Request {
        let mut request = Request::new();
        for turn in &self.turns {
            request = match turn {
                Turn::System(text) => request.system(text),
                Turn::Assistant(text) => request.answered(text),
                Turn::User(parts) => parts.iter().fold(request, |request, part| match part {
                    Part::Text(text) => request.text(text),
                    Part::Picture(picture) => request.picture(picture.clone()),
                }),
            };
        }
        request
    }

    /// The body of a chat completion: `model` and `messages`, pictures as data URIs.
    ///
    /// # Errors
    /// None that are known.
    pub fn to_json(&self, model: &str) -> serde_json::Result<String> {
        let messages = self.turns.iter().map(Message::of).collect();
        let model = Some(model.to_owned());
        let mut text = serde_json::to_string_pretty(&Body { model, messages })?;
        text.push('\n');
        Ok(text)
    }

    /// Reads such a body.
    ///
    /// # Errors
    /// It is none, or holds what cannot be gone on with; the text names the message.
    pub fn from_json(text: impl Read) -> Result<Conversation, String> {
        let body: Body = serde_json::from_reader(text).map_err(|error| error.to_string())?;
        let turns = body.messages.into_iter().enumerate();
        let turns = turns
            .map(|(index, message)| message.turn(index))
            .collect::<Result<_, _>>()?;
        Ok(Conversation { turns })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    messages: Vec<Message>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: String,
    content: Content,
}

#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "content must be a string or a list of text and image_url parts"
)]
enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ContentPart {
    Text { text: String },
    ImageUrl { image_url: ImageUrl },
}

#[derive(Serialize, Deserialize)]
struct ImageUrl {
    url: String,
}

impl Message {
    fn of(turn: &Turn) -> Message {
        let (role, content) = match turn {
            Turn::System(text) => ("system", Content::Text(text.clone())),
            Turn::Assistant(text) => ("assistant", Content::Text(text.clone())),
            Turn::User(parts) => {
                let content = match &parts[..] {
                    [Part::Text(text)] => Content::Text(text.clone()),
                    parts => Content::Parts(parts.iter().map(ContentPart::of).collect()),
                };
                ("user", content)
            }
        };
        Message {
            role: role.to_owned(),
            content,
        }
    }

    fn turn(self, index: usize) -> Result<Turn, String> {
        let path = format!("messages[{index}]");
        let parts = match self.content {
            Content::Text(text) => vec![Part::Text(text)],
            Content::Parts(parts) => parts
                .into_iter()
                .enumerate()
                .map(|(part, content)| content.part(&format!("{path}.content[{part}]")))
                .collect::<Result<_, _>>()?,
        };
        if self.role == "user" {
            return match parts.is_empty() {
                true => Err(format!("{path}.content is empty")),
                false => Ok(Turn::User(parts)),
            };
        }
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Text(more) => text.push_str(&more),
                Part::Picture(_) => {
                    return Err(format!("{path} holds a picture, which only users show"));
                }
            }
        }
        match self.role.as_str() {
            "assistant" => Ok(Turn::Assistant(text)),
            "system" | "developer" if index == 0 => Ok(Turn::System(text)),
            "system" | "developer" => Err(format!("{path}: a system message must come first")),
            role => Err(format!(
                "{path}.role is {role:?}: it must be system, user or assistant"
            )),
        }
    }
}

impl ContentPart {
    fn of(part: &Part) -> ContentPart {
        match part {
            Part::Text(text) => ContentPart::Text { text: text.clone() },
            Part::Picture(picture) => {
                let bytes = picture.bytes();
                let media_type = media_type(bytes).unwrap_or("application/octet-stream");
                let url = format!("data:{media_type};base64,{}", STANDARD.encode(bytes));
                ContentPart::ImageUrl {
                    image_url: ImageUrl { url },
                }
            }
        }
    }

    fn part(self, path: &str) -> Result<Part, String> {
        match self {
            ContentPart::Text { text } => Ok(Part::Text(text)),
            ContentPart::ImageUrl { image_url } => {
                let param = format!("{path}.image_url.url");
                let data = image_url.url.strip_prefix("data:");
                let data = data.ok_or_else(|| format!("{param}: must be a data: URI"))?;
                let bytes = data_uri::decode(data, MAX_BYTES, &param);
                Ok(Part::Picture(
                    bytes.map_err(|error| format!("{param}: {error}"))?.into(),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn conversation() -> Conversation {
        let png = Picture::from(b"\x89PNG\r\n\x1a\n...".to_vec());
        Conversation {
            turns: vec![
                Turn::System("Be brief.".to_owned()),
                Turn::User(vec![
                    Part::Picture(png),
                    Part::Text("What is this?".to_owned()),
                ]),
                Turn::Assistant("A \"cat\".".to_owned()),
                Turn::User(vec![Part::Text("Sure?".to_owned())]),
            ],
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let text = conversation().to_json("demo").unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["model"], "demo");
        assert_eq!(
            json["messages"][1]["content"][0]["image_url"]["url"],
            "data:image/png;base64,iVBORw0KGgouLi4="
        );
        assert_eq!(
            json["messages"][3],
            serde_json::json!({"role": "user", "content": "Sure?"})
        );
        assert_eq!(
            Conversation::from_json(text.as_bytes()).unwrap(),
            conversation()
        );
    }

    #[test]
    fn pictures_that_nothing_was_said_of_are_taken_up_again() {
        let mut talk = conversation();
        assert_eq!(talk.take_shown(), []);
        let pictures = [vec![1], vec![2]].map(Picture::from);
        talk.say(pictures.iter().cloned().map(Part::Picture).collect());
        assert_eq!(talk.take_shown(), pictures);
        assert_eq!(talk, conversation());
    }

    #[test]
    fn what_cannot_be_gone_on_with_is_refused() {
        let image = "{\"type\": \"image_url\", \"image_url\": {\"url\": \"URL\"}}";
        let message =
            |role: &str, content: &str| format!("{{\"role\": \"{role}\", \"content\": {content}}}");
        let user = message("user", "\"hello\"");
        for (messages, told) in [
            (message("tool", "\"4\""), "messages[0].role is \"tool\""),
            (
                format!("{user}, {}", message("system", "\"x\"")),
                "messages[1]: a system message must come first",
            ),
            (message("user", "[]"), "messages[0].content is empty"),
            (message("user", "7"), "a string or a list"),
            (
                message(
                    "user",
                    &format!("[{}]", image.replace("URL", "https://a.example/b.png")),
                ),
                "messages[0].content[0].image_url.url: must be a data: URI",
            ),
            (
                message(
                    "user",
                    &format!("[{}]", image.replace("URL", "data:image/png;base64,*")),
                ),
                "messages[0].content[0].image_url.url",
            ),
            (
                message(
                    "assistant",
                    &format!("[{}]", image.replace("URL", "data:;base64,aaaa")),
                ),
                "holds a picture",
            ),
        ] {
            let text = format!("{{\"messages\": [{messages}]}}");
            let error = Conversation::from_json(text.as_bytes()).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
        assert!(Conversation::from_json(&b"[]"[..]).is_err());
        assert!(
            Conversation::from_json(&b"{\"messages\": [], \"temperature\": 1}"[..])
                .unwrap_err()
                .contains("temperature")
        );
    }
}
