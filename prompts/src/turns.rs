//! Turns written out as plain text, for families from before chat templates.

use crate::layout::{asks_for_caption, merge_neighbours, with_caption_prompt};
use crate::message::{check, ordered_parts};
use crate::segment::Segments;
use crate::{Error, ImagePosition, Message, Part, Result, Role, Segment, SpecialToken};
use serde::{Deserialize, Serialize};

/// Text around each turn. All of it is plain text (`###`, `<Img>` are no tokens of these vocabularies), so nothing in the
/// prompt is parsed for special tokens, and all text between two pictures is tokenized in one piece.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TurnsLayout {
    /// What a picture without words is asked.
    pub caption_prompt: String,
    /// Whether the caption prompt of a conversation's first turn stands alone, without the text around a turn.
    pub caption_without_turn: bool,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Token ids that end an answer, besides the vocabulary's own.
    pub stop_ids: Vec<i32>,
    /// Most images in a conversation.
    pub max_images: Option<usize>,
    /// Whether the prompt has a BOS token.
    pub bos: bool,
    /// The token that stands for BOS, for models that were trained behind another than their vocabulary's.
    pub bos_token: SpecialToken,
    /// Whether the prompt ends with EOS, as encoders read it.
    pub eos: bool,
    /// Whether each user's message has a BOS token before its prefix.
    pub turn_bos: bool,
    /// Where pictures stand.
    pub image_position: ImagePosition,
    /// Text before a picture.
    pub image_prefix: String,
    /// Text after a picture.
    pub image_suffix: String,
    /// Text between a picture and the text or picture beside it in a message.
    pub image_separator: String,
    /// Whether a system message has a place.
    pub accepts_system: bool,
    /// System message of a conversation that has none.
    pub default_system: String,
    /// Text after the system message.
    pub system_suffix: String,
    /// Text before a user's message.
    pub user_prefix: String,
    /// Text after a user's message, up to where the answer begins.
    pub user_suffix: String,
    /// Text before an answer of an earlier turn, which is trimmed.
    pub assistant_prefix: String,
    /// Text after an answer of an earlier turn.
    pub assistant_suffix: String,
}

impl TurnsLayout {
    /// BLIP-2 with a decoder: paper section 4, LAVIS `app/vqa.py` and `blip2_opt.py`.
    pub(crate) fn blip2() -> TurnsLayout {
        TurnsLayout {
            caption_without_turn: true,
            stop: vec!["\n".into()],
            max_images: Some(1),
            bos: true,
            image_position: ImagePosition::BeforeBos,
            user_prefix: "Question: ".into(),
            user_suffix: " Answer:".into(),
            assistant_prefix: " ".into(),
            assistant_suffix: ". ".into(),
            ..TurnsLayout::default()
        }
    }

    /// BLIP-2 with T5: paper section 4.2 and LAVIS `blip2_t5.py`; an encoder reads the prompt, so nothing begins it.
    pub(crate) fn blip2_t5() -> TurnsLayout {
        TurnsLayout {
            stop: Vec::new(),
            bos: false,
            eos: true,
            user_suffix: " Short answer:".into(),
            ..TurnsLayout::blip2()
        }
    }

    /// InstructBLIP with a decoder: LAVIS `blip2_vicuna_instruct.py` and the prompts of `projects/instructblip`. The family
    /// was trained on single turns; earlier ones are joined by line breaks.
    pub(crate) fn instructblip() -> TurnsLayout {
        TurnsLayout {
            caption_prompt: "A short image caption.".into(),
            bos: true,
            bos_token: SpecialToken::Eos,
            image_position: ImagePosition::BeforeBos,
            assistant_prefix: "\n".into(),
            assistant_suffix: "\n".into(),
            ..TurnsLayout::default()
        }
    }

    /// InstructBLIP with T5: LAVIS `blip2_t5_instruct.py`.
    pub(crate) fn instructblip_t5() -> TurnsLayout {
        TurnsLayout {
            bos: false,
            bos_token: SpecialToken::Bos,
            eos: true,
            ..TurnsLayout::instructblip()
        }
    }

    /// MiniGPT-4 with Vicuna v0: `minigpt4/conversation/conversation.py`, `CONV_VISION_Vicuna0`.
    pub(crate) fn minigpt4() -> TurnsLayout {
        TurnsLayout {
            caption_prompt: "Describe this image in detail.".into(),
            stop: vec!["###".into()],
            bos: true,
            image_prefix: "<Img>".into(),
            image_suffix: "</Img>".into(),
            image_separator: " ".into(),
            accepts_system: true,
            default_system: "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I \
                             provide it to you. Please answer my questions."
                .into(),
            system_suffix: "###".into(),
            user_prefix: "Human: ".into(),
            user_suffix: "###Assistant: ".into(),
            assistant_suffix: "###".into(),
            ..TurnsLayout::default()
        }
    }

    /// MiniGPT-4 with LLaMA-2: `CONV_VISION_LLama2`. Its template writes `<s>` before each turn, which the reference's
    /// tokenizer reads as BOS, behind the one that it puts before the system message itself.
    pub(crate) fn minigpt4_llama2() -> TurnsLayout {
        TurnsLayout {
            stop: Vec::new(),
            turn_bos: true,
            system_suffix: String::new(),
            user_prefix: "[INST] ".into(),
            user_suffix: " [/INST] ".into(),
            assistant_suffix: String::new(),
            ..TurnsLayout::minigpt4()
        }
    }

    /// MiniGPT-v2: `CONV_VISION_minigptv2`. Tasks are named in the text, as `[vqa]` or `[caption]`.
    pub(crate) fn minigpt_v2() -> TurnsLayout {
        TurnsLayout {
            caption_prompt: "[caption] Describe this image in detail.".into(),
            accepts_system: false,
            default_system: String::new(),
            user_suffix: " [/INST]".into(),
            ..TurnsLayout::minigpt4_llama2()
        }
    }

    pub(crate) fn render(&self, messages: &[Message]) -> Result<Vec<Segment>> {
        check(messages, self.max_images)?;
        let caption = matches!(messages, [only] if asks_for_caption(only));
        // These layouts alternate.
        let messages = merge_neighbours(with_caption_prompt(messages, &self.caption_prompt));
        let mut segments = Segments::default();
        if self.image_position == ImagePosition::BeforeBos {
            self.images_before(&messages)?
                .into_iter()
                .for_each(|image| self.push_image(image, &mut segments));
        }
        if self.bos {
            segments.push(Segment::Token(self.bos_token));
        }
        if caption && self.caption_without_turn {
            messages
                .iter()
                .for_each(|message| self.push_content(message, &mut segments));
            return Ok(self.finish(segments));
        }
        let has_system = messages
            .first()
            .is_some_and(|first| first.role == Role::System);
        if !has_system && !self.default_system.is_empty() {
            segments.push_text(&self.default_system, false);
            segments.push_text(&self.system_suffix, false);
        }
        for (index, message) in messages.iter().enumerate() {
            match message.role {
                Role::System if !self.accepts_system => return Err(Error::NoSystemTurn),
                Role::System if index > 0 => return Err(Error::SystemNotFirst { message: index }),
                Role::System => {
                    self.push_content(message, &mut segments);
                    segments.push_text(&self.system_suffix, false);
                }
                Role::User => {
                    if self.turn_bos {
                        segments.push(Segment::Token(self.bos_token));
                    }
                    segments.push_text(&self.user_prefix, false);
                    self.push_content(message, &mut segments);
                    segments.push_text(&self.user_suffix, false);
                }
                Role::Assistant => {
                    let answer: Vec<&str> = message.texts().collect();
                    if message.calls().next().is_some() {
                        return Err(Error::NoTools);
                    }
                    segments.push_text(&self.assistant_prefix, false);
                    segments.push_text(answer.join("\n").trim(), false);
                    segments.push_text(&self.assistant_suffix, false);
                }
                Role::Tool => return Err(Error::NoTools),
            }
        }
        Ok(self.finish(segments))
    }

    fn finish(&self, mut segments: Segments) -> Vec<Segment> {
        if self.eos {
            segments.push(Segment::Token(SpecialToken::Eos));
        }
        segments.into_vec()
    }

    /// The images of a layout that reads them before everything else.
    fn images_before(&self, messages: &[Message]) -> Result<Vec<usize>> {
        let mut turns = messages.iter().filter(|message| message.role == Role::User);
        let first = turns
            .next()
            .map(|turn| turn.images().collect())
            .unwrap_or_default();
        match turns.any(|turn| turn.images().next().is_some()) {
            true => Err(Error::ImageNotInFirstTurn),
            false => Ok(first),
        }
    }

    fn push_image(&self, image: usize, segments: &mut Segments) {
        segments.push_text(&self.image_prefix, false);
        segments.push(Segment::Image(image));
        segments.push_text(&self.image_suffix, false);
    }

    /// A message's parts, the image separator between a picture and its neighbour unless there is whitespace already.
    fn push_content(&self, message: &Message, segments: &mut Segments) {
        let before_bos = self.image_position == ImagePosition::BeforeBos;
        let mut after_image = None;
        for part in ordered_parts(message, self.image_position) {
            match part {
                Part::Image(_) if before_bos => {}
                Part::Image(image) => {
                    if after_image.is_some()
                        && !segments.last_char().is_some_and(char::is_whitespace)
                    {
                        segments.push_text(&self.image_separator, false);
                    }
                    self.push_image(image, segments);
                    after_image = Some(true);
                }
                Part::Text(text) => {
                    if after_image == Some(true)
                        && !text.is_empty()
                        && !text.starts_with(char::is_whitespace)
                    {
                        segments.push_text(&self.image_separator, false);
                    }
                    segments.push_text(&text, false);
                    after_image = Some(false);
                }
                Part::Call(_) | Part::ResultOf(_) => {}
            }
        }
    }
}
