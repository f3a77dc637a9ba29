//! Layouts as data, and the presets.

use crate::{
    CallSyntax, ChatTemplate, ChatTemplateLayout, Error, Message, Part, Result, Role, Segment,
    SpecialToken, Tool, TurnsLayout,
};
use serde::{Deserialize, Serialize};

/// The names [`Layout::preset`] knows.
pub const PRESETS: [&str; 9] = [
    "chat-template",
    "blip2",
    "blip2-opt",
    "blip2-t5",
    "instructblip",
    "instructblip-t5",
    "minigpt4",
    "minigpt4-llama2",
    "minigpt-v2",
];

/// Where a picture stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagePosition {
    /// Where the caller put it among the message's parts.
    #[default]
    InPlace,
    /// Before the text of its message.
    StartOfTurn,
    /// Before everything, even BOS; only the first user message can hold a picture.
    BeforeBos,
}

/// How a model family lays out a conversation: the table `[prompt]` of a bundle's manifest.
///
/// ```
/// let layout: prompts::Layout = toml::from_str(r#"
///     layout = "chat-template"
///     image_position = "start_of_turn"
///     caption_prompt = "Describe the picture."
/// "#)?;
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "kebab-case")]
pub enum Layout {
    /// The language model's own chat template.
    ChatTemplate(ChatTemplateLayout),
    /// Turns written out as plain text.
    Turns(TurnsLayout),
}

impl Layout {
    /// A layout by name, one of [`PRESETS`].
    ///
    /// - `chat-template`: the GGUF's `tokenizer.chat_template`, pictures where the caller puts them.
    /// - `blip2`: `[queries][BOS]Question: {} Answer:`, further turns joined as LAVIS's demo joins them
    ///   (`Question: {} Answer: {}. Question: {} Answer:`); a lone picture is captioned from `[queries][BOS]`.
    ///   Answers end at a line break, whatever the language model.
    /// - `blip2-opt`: the same for OPT, whose answers end at its token of a line break (50118).
    /// - `blip2-t5`: `[queries]Question: {} Short answer:[EOS]`, for an encoder; a lone picture is `[queries][EOS]`.
    /// - `instructblip`: `[queries][EOS]{}`, the instruction as it is; several pictures are the frames of a video. The
    ///   token before the text is the vocabulary's end of sequence: InstructBLIP's Vicuna was given `</s>` (2) as its BOS,
    ///   and answers far worse behind `<s>`.
    /// - `instructblip-t5`: `[queries]{}[EOS]`, for an encoder.
    /// - `minigpt4`: MiniGPT-4's `###Human: <Img>[queries]</Img> {}###Assistant: ` (`minigpt4/conversation`).
    /// - `minigpt4-llama2`: its `[BOS][INST] <Img>[rows]</Img> {} [/INST] ` for LLaMA-2.
    /// - `minigpt-v2`: MiniGPT-v2's `[BOS][BOS][INST] <Img>[rows]</Img> {} [/INST]`, without a system message.
    pub fn preset(name: &str) -> Result<Layout> {
        match name {
            "chat-template" => Ok(Layout::ChatTemplate(ChatTemplateLayout::default())),
            "blip2" => Ok(Layout::Turns(TurnsLayout::blip2())),
            "blip2-opt" => Ok(Layout::blip2(vec![50118])),
            "blip2-t5" => Ok(Layout::Turns(TurnsLayout::blip2_t5())),
            "instructblip" => Ok(Layout::Turns(TurnsLayout::instructblip())),
            "instructblip-t5" => Ok(Layout::Turns(TurnsLayout::instructblip_t5())),
            "minigpt4" => Ok(Layout::Turns(TurnsLayout::minigpt4())),
            "minigpt4-llama2" => Ok(Layout::Turns(TurnsLayout::minigpt4_llama2())),
            "minigpt-v2" => Ok(Layout::Turns(TurnsLayout::minigpt_v2())),
            _ => Err(Error::UnknownPreset {
                name: name.to_owned(),
            }),
        }
    }

    /// The preset `blip2` with stop ids: what a checkpoint's `text_config.eos_token_id` names.
    pub fn blip2(stop_ids: Vec<i32>) -> Layout {
        Layout::Turns(TurnsLayout {
            stop: Vec::new(),
            stop_ids,
            ..TurnsLayout::blip2()
        })
    }

    /// The name that `layout` has in the manifest.
    pub fn name(&self) -> &'static str {
        match self {
            Layout::ChatTemplate(_) => "chat-template",
            Layout::Turns(_) => "turns",
        }
    }

    /// Lays out a conversation. `template` is the language model's chat template; only `chat-template` layouts read it.
    ///
    /// The last message must not be the assistant's. Where it shows a picture and says nothing, it is given
    /// [`Layout::caption_prompt`]. Adjacent texts of one message are joined by a newline; nothing is put between text and
    /// picture beyond what the layout says. Images are taken by their index; [`check_images`](crate::check_images)
    /// compares them with the images of the request.
    pub fn render(
        &self,
        messages: &[Message],
        template: Option<&ChatTemplate>,
    ) -> Result<Vec<Segment>> {
        self.render_with_tools(messages, &[], template)
    }

    /// The same, with functions that the model may call. A layout of turns has no place for any.
    pub fn render_with_tools(
        &self,
        messages: &[Message],
        tools: &[Tool],
        template: Option<&ChatTemplate>,
    ) -> Result<Vec<Segment>> {
        match self {
            Layout::ChatTemplate(layout) => layout.render(messages, tools, template),
            Layout::Turns(_) if !tools.is_empty() => Err(Error::NoTools),
            Layout::Turns(layout) => layout.render(messages),
        }
    }

    /// How the model writes calls, as its chat template shows.
    ///
    /// # Errors
    /// [`Error::NoTools`] where it has no place for functions, [`Error::UnknownCallSyntax`] where it has, but writes
    /// calls in a way that is not known.
    pub fn call_syntax(&self, template: Option<&ChatTemplate>) -> Result<CallSyntax> {
        match self {
            Layout::ChatTemplate(layout) => layout.call_syntax(template),
            Layout::Turns(_) => Err(Error::NoTools),
        }
    }

    /// A prompt written by hand: `images` soft prompts in the family's place, and `text` as it is, special tokens parsed.
    ///
    /// `[queries][BOS][text]` where the image stands before BOS, else `[BOS][queries][text]`, and the layout's EOS behind; a
    /// `chat-template` layout adds no BOS (`[queries][text]`), since only the vocabulary knows whether there is one.
    pub fn render_raw(&self, text: &str, images: usize) -> Result<Vec<Segment>> {
        if let Some(max) = self.max_images().filter(|max| images > *max) {
            return Err(Error::TooManyImages { images, max });
        }
        let mut segments: Vec<Segment> = (0..images).map(Segment::Image).collect();
        if let Layout::Turns(layout) = self
            && layout.bos
        {
            let place = if layout.image_position == ImagePosition::BeforeBos {
                images
            } else {
                0
            };
            segments.insert(place, Segment::Token(layout.bos_token));
        }
        if !text.is_empty() {
            segments.push(Segment::special(text));
        }
        if let Layout::Turns(TurnsLayout { eos: true, .. }) = self {
            segments.push(Segment::Token(SpecialToken::Eos));
        }
        Ok(segments)
    }

    /// The instruction that a Q-Former reads beside each of `images` pictures (InstructBLIP): the user's words of the turn
    /// that shows the picture, or of the next turn that has any, without the layout's own text; [`Layout::caption_prompt`]
    /// where a last turn shows pictures alone.
    ///
    /// Reference: transformers' `InstructBlipProcessor` and LAVIS's `blip2_vicuna_instruct.py` give the Q-Former the very
    /// text that they give the language model, which is the user's instruction and nothing else.
    pub fn instructions(&self, messages: &[Message], images: usize) -> Vec<String> {
        let messages = merge_neighbours(with_caption_prompt(messages, self.caption_prompt()));
        let turns: Vec<(Vec<usize>, String)> = messages
            .iter()
            .filter(|message| message.role == Role::User)
            .map(|turn| {
                let text = turn.texts().collect::<Vec<_>>().join("\n");
                (turn.images().collect(), text)
            })
            .collect();
        (0..images)
            .map(|image| {
                turns
                    .iter()
                    .skip_while(|(shown, _)| !shown.contains(&image))
                    .map(|(_, text)| text)
                    .find(|text| !text.trim().is_empty())
                    .cloned()
                    .unwrap_or_default()
            })
            .collect()
    }

    /// Texts that end an answer; the answer does not include them.
    pub fn stop(&self) -> &[String] {
        match self {
            Layout::ChatTemplate(layout) => &layout.stop,
            Layout::Turns(layout) => &layout.stop,
        }
    }

    /// Token ids that end an answer, besides the vocabulary's own end-of-generation tokens.
    pub fn stop_ids(&self) -> &[i32] {
        match self {
            Layout::ChatTemplate(layout) => &layout.stop_ids,
            Layout::Turns(layout) => &layout.stop_ids,
        }
    }

    /// What a picture without words is asked.
    pub fn caption_prompt(&self) -> &str {
        match self {
            Layout::ChatTemplate(layout) => &layout.caption_prompt,
            Layout::Turns(layout) => &layout.caption_prompt,
        }
    }

    /// Most images that a conversation may hold; `None` is no limit.
    pub fn max_images(&self) -> Option<usize> {
        match self {
            Layout::ChatTemplate(layout) => layout.max_images,
            Layout::Turns(layout) => layout.max_images,
        }
    }
}

/// The conversation with `caption_prompt` put into a last user message that shows a picture and says nothing.
pub(crate) fn with_caption_prompt(messages: &[Message], caption_prompt: &str) -> Vec<Message> {
    let mut messages = messages.to_vec();
    if let Some(last) = messages.last_mut()
        && asks_for_caption(last)
        && !caption_prompt.is_empty()
    {
        last.parts.push(Part::Text(caption_prompt.to_owned()));
    }
    messages
}

/// Neighbouring messages of one role as one message, which is one turn.
pub(crate) fn merge_neighbours(messages: Vec<Message>) -> Vec<Message> {
    let mut merged: Vec<Message> = Vec::with_capacity(messages.len());
    for message in messages {
        match merged.last_mut() {
            Some(last) if last.role == message.role => last.parts.extend(message.parts),
            _ => merged.push(message),
        }
    }
    merged
}

/// Whether a message shows a picture and says nothing.
pub(crate) fn asks_for_caption(message: &Message) -> bool {
    message.role == Role::User && message.says_nothing() && message.images().next().is_some()
}
