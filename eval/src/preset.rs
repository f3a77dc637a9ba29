//! Prompts and settings of the papers.

use std::borrow::Cow;

use crate::Task;

/// How a paper, or its code, asked its models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// BLIP-2 (Li et al. 2023, arXiv:2301.12597), sections 4.1 and 4.2.
    Blip2,
    /// LAVIS's `projects/blip2/eval/*.yaml`, which differ: "Short answer" for OPT too, and no length penalty
    /// reaches it.
    Blip2Lavis,
    /// InstructBLIP (Dai et al. 2023, arXiv:2305.06500), appendix, and LAVIS's `projects/instructblip`.
    InstructBlip,
}

/// What to send for each record, and how to choose tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The prompt, the question in the place of `{}`.
    pub prompt: Cow<'static, str>,
    /// Whether the question goes through LAVIS's `blip_question` first: see [`lavis_question`].
    pub lavis_question: bool,
    /// Most tokens of an answer.
    pub max_tokens: u32,
    /// Fewest tokens of an answer.
    pub min_tokens: u32,
    /// Beams.
    pub num_beams: u16,
    /// Power of the length that beams' scores are divided by.
    pub length_penalty: f32,
    /// Penalty of tokens that are there already.
    pub repetition_penalty: f32,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Preset; 3] = [Preset::Blip2, Preset::Blip2Lavis, Preset::InstructBlip];

    /// The preset of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name)
    }

    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Preset::Blip2 => "blip2",
            Preset::Blip2Lavis => "blip2-lavis",
            Preset::InstructBlip => "instructblip",
        }
    }

    /// Where it comes from.
    pub fn source(self) -> &'static str {
        match self {
            Preset::Blip2 => "the paper of BLIP-2",
            Preset::Blip2Lavis => "LAVIS's evaluation of BLIP-2",
            Preset::InstructBlip => "the paper of InstructBLIP, and LAVIS's evaluation of it",
        }
    }

    /// The settings for a task, and for a language model that is an encoder-decoder (Flan-T5) or not.
    pub fn settings(self, task: Task, is_encoder_decoder: bool) -> Settings {
        const SHORT: &str = "Question: {} Short answer:";
        let answer = Settings {
            prompt: Cow::Borrowed(SHORT),
            lavis_question: true,
            max_tokens: 10,
            min_tokens: 1,
            num_beams: 5,
            length_penalty: -1.0,
            repetition_penalty: 1.0,
        };
        let caption = Settings {
            prompt: Cow::Borrowed("a photo of"),
            lavis_question: false,
            max_tokens: 30,
            min_tokens: 8,
            length_penalty: 1.0,
            ..answer.clone()
        };
        match (self, task.is_caption()) {
            (Preset::Blip2 | Preset::Blip2Lavis, true) => caption,
            (Preset::Blip2, false) if is_encoder_decoder => answer,
            (Preset::Blip2, false) => Settings {
                prompt: Cow::Borrowed("Question: {} Answer:"),
                ..answer
            },
            (Preset::Blip2Lavis, false) if is_encoder_decoder => answer,
            (Preset::Blip2Lavis, false) => Settings {
                length_penalty: 0.0,
                ..answer
            },
            (Preset::InstructBlip, true) => Settings {
                prompt: Cow::Borrowed("A short image caption."),
                max_tokens: if task == Task::Nocaps { 80 } else { 30 },
                min_tokens: if task == Task::Nocaps { 10 } else { 8 },
                ..caption
            },
            (Preset::InstructBlip, false) if is_encoder_decoder => answer,
            // LAVIS's Vicuna model keeps the repetition penalty of its `generate` in `predict_answers`.
            (Preset::InstructBlip, false) => Settings {
                length_penalty: 0.0,
                repetition_penalty: 1.5,
                ..answer
            },
        }
    }
}

impl Settings {
    /// The prompt about a question.
    pub fn prompt_for(&self, question: &str) -> String {
        match self.lavis_question {
            true => self.prompt.replace("{}", &lavis_question(question)),
            false => self.prompt.replace("{}", question),
        }
    }
}

/// Most words of a question that are kept.
const MAX_WORDS: usize = 50;

/// A caption as LAVIS's `blip_caption` leaves it, which retrieval goes through: lowercase, spaces for `.!"()*#:;~`, no two
/// spaces, 50 words at most.
pub fn lavis_caption(caption: &str) -> String {
    let lower = caption.to_lowercase();
    let spaced = lower.replace(|c| ".!\"()*#:;~".contains(c), " ");
    // Python's `\s{2,}`: a single tab or line break stays.
    let mut kept = String::with_capacity(spaced.len());
    let mut characters = spaced.chars().peekable();
    while let Some(c) = characters.next() {
        let mut is_run = false;
        while c.is_whitespace() && characters.next_if(|c| c.is_whitespace()).is_some() {
            is_run = true;
        }
        kept.push(if is_run { ' ' } else { c });
    }
    let kept = kept.trim_end_matches('\n').trim_matches(' ');
    let words: Vec<&str> = kept.split(' ').take(MAX_WORDS).collect();
    words.join(" ")
}

/// A question as LAVIS's `blip_question` leaves it: lowercase, without `.!"()*#:;~`, 50 words at most.
pub fn lavis_question(question: &str) -> String {
    let kept: String = question
        .to_lowercase()
        .chars()
        .filter(|c| !".!\"()*#:;~".contains(*c))
        .collect();
    let words: Vec<&str> = kept
        .trim_end_matches(' ')
        .split(' ')
        .take(MAX_WORDS)
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_cleaned_as_lavis_does() {
        assert_eq!(
            lavis_question("What's \"this\" (a Dog)?  "),
            "what's this a dog?"
        );
        let long = "word ".repeat(60);
        assert_eq!(lavis_question(&long).split(' ').count(), 50);
    }

    #[test]
    fn captions_are_cleaned_as_lavis_does() {
        assert_eq!(
            lavis_caption(" A \"dog\",\truns... (fast!)\n"),
            "a dog ,\truns fast"
        );
        assert_eq!(lavis_caption("a\n\nb"), "a b");
        let long = "word ".repeat(60);
        assert_eq!(lavis_caption(&long).split(' ').count(), 50);
    }

    #[test]
    fn opt_and_t5_are_asked_as_the_paper_says() {
        let prompt = |preset: Preset, t5| preset.settings(Task::Vqav2, t5).prompt;
        assert_eq!(prompt(Preset::Blip2, false), "Question: {} Answer:");
        assert_eq!(prompt(Preset::Blip2, true), "Question: {} Short answer:");
        assert_eq!(
            prompt(Preset::Blip2Lavis, false),
            "Question: {} Short answer:"
        );
        assert_eq!(
            Preset::Blip2.settings(Task::Okvqa, false).length_penalty,
            -1.0
        );
    }
}
