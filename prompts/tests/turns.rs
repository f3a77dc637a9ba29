//! Written-out layouts against the prompts that LAVIS and MiniGPT-4 send.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use prompts::{Error, Layout, Message, Part, Role, Segment, SpecialToken, check_images};

const BOS: Segment = Segment::Token(SpecialToken::Bos);
const EOS: Segment = Segment::Token(SpecialToken::Eos);

fn user(parts: &[&str]) -> Message {
    let part = |part: &&str| {
        if *part == "IMAGE" {
            Part::Image(0)
        } else {
            Part::Text((*part).into())
        }
    };
    Message {
        role: Role::User,
        parts: parts.iter().map(part).collect(),
    }
}

fn assistant(text: &str) -> Message {
    Message::text(Role::Assistant, text)
}

fn render(preset: &str, messages: &[Message]) -> prompts::Result<Vec<Segment>> {
    Layout::preset(preset).unwrap().render(messages, None)
}

fn blip2(messages: &[Message]) -> prompts::Result<Vec<Segment>> {
    render("blip2-opt", messages)
}

fn minigpt4(messages: &[Message]) -> prompts::Result<Vec<Segment>> {
    render("minigpt4", messages)
}

#[test]
fn blip2_puts_the_queries_before_bos() {
    let expected = [
        Segment::Image(0),
        BOS,
        Segment::text("Question: which city is this? Answer:"),
    ];
    assert_eq!(
        blip2(&[user(&["IMAGE", "which city is this?"])]).unwrap(),
        expected
    );
    assert_eq!(
        blip2(&[user(&["which city is this?", "IMAGE"])]).unwrap(),
        expected
    );
}

#[test]
fn blip2_captions_a_picture_alone() {
    assert_eq!(
        blip2(&[user(&["IMAGE"])]).unwrap(),
        [Segment::Image(0), BOS]
    );
    let mut coco = serde_json::to_value(Layout::preset("blip2-opt").unwrap()).unwrap();
    coco["caption_prompt"] = "a photo of".into();
    let coco: Layout = serde_json::from_value(coco).unwrap();
    let expected = [Segment::Image(0), BOS, Segment::text("a photo of")];
    assert_eq!(coco.render(&[user(&["IMAGE"])], None).unwrap(), expected);
}

#[test]
fn blip2_joins_turns_as_the_lavis_demo() {
    let messages = [
        user(&["IMAGE", "which city is this?"]),
        assistant(" singapore\n"),
        user(&["why?"]),
    ];
    let expected = "Question: which city is this? Answer: singapore. Question: why? Answer:";
    assert_eq!(
        blip2(&messages).unwrap(),
        [Segment::Image(0), BOS, Segment::text(expected)]
    );
}

#[test]
fn blip2_takes_one_image_in_the_first_turn() {
    let late = [
        user(&["Hi"]),
        assistant("Hi"),
        user(&["IMAGE", "what is it?"]),
    ];
    assert_eq!(blip2(&late).unwrap_err(), Error::ImageNotInFirstTurn);
    let two = [user(&["IMAGE", "IMAGE", "what is it?"])];
    assert_eq!(
        blip2(&two).unwrap_err(),
        Error::TooManyImages { images: 2, max: 1 }
    );
    let system = [
        Message::text(Role::System, "Be brief."),
        user(&["IMAGE", "what is it?"]),
    ];
    assert_eq!(blip2(&system).unwrap_err(), Error::NoSystemTurn);
    assert_eq!(
        render("blip2", &[user(&["IMAGE"])]).unwrap(),
        [Segment::Image(0), BOS]
    );
    let split = [user(&["IMAGE"]), user(&["what is it?"])];
    assert_eq!(
        blip2(&split).unwrap(),
        [
            Segment::Image(0),
            BOS,
            Segment::text("Question: what is it? Answer:")
        ]
    );
}

const MINIGPT4_SYSTEM: &str = "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I \
                               provide it to you. Please answer my questions.";

#[test]
fn minigpt4_shows_the_image_inside_the_turn() {
    let messages = [
        user(&["IMAGE", "What is it?"]),
        assistant("A dog."),
        user(&["Which breed?"]),
    ];
    assert_eq!(
        minigpt4(&messages).unwrap(),
        [
            BOS,
            Segment::text(format!("{MINIGPT4_SYSTEM}###Human: <Img>")),
            Segment::Image(0),
            Segment::text(
                "</Img> What is it?###Assistant: A dog.###Human: Which breed?###Assistant: "
            ),
        ]
    );
}

#[test]
fn minigpt4_separates_pictures_by_a_space() {
    let messages = [user(&["IMAGE", "IMAGE", "\nSame?"])];
    assert_eq!(
        minigpt4(&messages).unwrap()[2..],
        [
            Segment::Image(0),
            Segment::text("</Img> <Img>"),
            Segment::Image(0),
            Segment::text("</Img>\nSame?###Assistant: "),
        ]
    );
}

#[test]
fn minigpt4_takes_a_system_message_at_the_start() {
    let system = Message::text(Role::System, "Be brief.");
    let segments = minigpt4(&[system.clone(), user(&["Hi"])]).unwrap();
    assert_eq!(
        segments,
        [BOS, Segment::text("Be brief.###Human: Hi###Assistant: ")]
    );
    let error = minigpt4(&[user(&["Hi"]), system]).unwrap_err();
    assert_eq!(error, Error::SystemNotFirst { message: 1 });
}

#[test]
fn minigpt4_for_llama_2_begins_each_turn_with_bos() {
    let messages = [
        user(&["IMAGE", "What is it?"]),
        assistant("A dog."),
        user(&["Which breed?"]),
    ];
    assert_eq!(
        render("minigpt4-llama2", &messages).unwrap(),
        [
            BOS,
            Segment::text(MINIGPT4_SYSTEM),
            BOS,
            Segment::text("[INST] <Img>"),
            Segment::Image(0),
            Segment::text("</Img> What is it? [/INST] A dog."),
            BOS,
            Segment::text("[INST] Which breed? [/INST] "),
        ]
    );
    assert!(Layout::preset("minigpt4-llama2").unwrap().stop().is_empty());
}

#[test]
fn minigpt_v2_has_no_system_message() {
    let messages = [
        user(&["IMAGE", "[vqa] What is it?"]),
        assistant("A dog."),
        user(&["Which breed?"]),
    ];
    assert_eq!(
        render("minigpt-v2", &messages).unwrap(),
        [
            BOS,
            BOS,
            Segment::text("[INST] <Img>"),
            Segment::Image(0),
            Segment::text("</Img> [vqa] What is it? [/INST]A dog."),
            BOS,
            Segment::text("[INST] Which breed? [/INST]"),
        ]
    );
}

#[test]
fn instructblip_reads_the_bare_instruction_behind_eos() {
    let question = [user(&["What is unusual about this image?", "IMAGE"])];
    let text = Segment::text("What is unusual about this image?");
    assert_eq!(
        render("instructblip", &question).unwrap(),
        [Segment::Image(0), EOS, text.clone()]
    );
    assert_eq!(
        render("instructblip-t5", &question).unwrap(),
        [Segment::Image(0), text, EOS]
    );
    let caption = Segment::text("A short image caption.");
    assert_eq!(
        render("instructblip", &[user(&["IMAGE"])]).unwrap(),
        [Segment::Image(0), EOS, caption]
    );
}

#[test]
fn blip2_with_t5_ends_with_eos() {
    let question = [user(&["IMAGE", "what is this?"])];
    let text = Segment::text("Question: what is this? Short answer:");
    assert_eq!(
        render("blip2-t5", &question).unwrap(),
        [Segment::Image(0), text, EOS]
    );
    assert_eq!(
        render("blip2-t5", &[user(&["IMAGE"])]).unwrap(),
        [Segment::Image(0), EOS]
    );
    let layout = Layout::preset("blip2-t5").unwrap();
    assert!(layout.stop().is_empty() && layout.stop_ids().is_empty());
}

#[test]
fn instructblip_reads_frames_in_their_order() {
    let frames = Message {
        role: Role::User,
        parts: vec![
            Part::Image(0),
            Part::Image(1),
            Part::Text("What happens?".into()),
            Part::Image(2),
        ],
    };
    let segments = render("instructblip", std::slice::from_ref(&frames)).unwrap();
    let images = [0, 1, 2].map(Segment::Image);
    assert_eq!(segments[..3], images);
    assert_eq!(segments[3..], [EOS, Segment::text("What happens?")]);
    let layout = Layout::preset("instructblip").unwrap();
    assert_eq!(layout.instructions(&[frames], 3), ["What happens?"; 3]);
}

#[test]
fn the_instruction_is_the_question_of_the_pictures_turn_or_of_the_next() {
    // The layout's own text is never part of it.
    for preset in ["instructblip", "blip2", "minigpt4"] {
        let layout = Layout::preset(preset).unwrap();
        let instruction = |messages: &[Message]| layout.instructions(messages, 1);
        let follow_up = [
            user(&["IMAGE", "which city?"]),
            assistant("Rome"),
            user(&["why?"]),
        ];
        assert_eq!(instruction(&follow_up), ["which city?"]);
        // Neighbouring messages are one turn.
        let apart = [user(&["IMAGE"]), user(&["which city?"])];
        assert_eq!(instruction(&apart), ["which city?"]);
        let later = [user(&["IMAGE"]), assistant("A city."), user(&["which?"])];
        assert_eq!(instruction(&later), ["which?"]);
        let two_texts = [user(&["look", "IMAGE", "which city?"])];
        assert_eq!(instruction(&two_texts), ["look\nwhich city?"]);
        let alone = [user(&["IMAGE"])];
        assert_eq!(instruction(&alone), [layout.caption_prompt()]);
        assert!(layout.instructions(&[user(&["hello"])], 0).is_empty());
    }
}

#[test]
fn presets_carry_what_ends_an_answer() {
    assert_eq!(Layout::preset("blip2-opt").unwrap().stop_ids(), [50118]);
    assert_eq!(Layout::preset("blip2").unwrap().stop(), ["\n"]);
    assert_eq!(Layout::preset("minigpt4").unwrap().stop(), ["###"]);
    let error = Layout::preset("llava").unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no prompt layout named \"llava\"; there are chat-template, blip2, blip2-opt, blip2-t5, \
         instructblip, instructblip-t5, minigpt4, minigpt4-llama2, minigpt-v2"
    );
}

#[test]
fn raw_text_is_sent_as_it_is() {
    let raw = |name: &str| {
        Layout::preset(name)
            .unwrap()
            .render_raw("a </s> photo of", 1)
            .unwrap()
    };
    let text = Segment::special("a </s> photo of");
    assert_eq!(raw("blip2-opt"), [Segment::Image(0), BOS, text.clone()]);
    assert_eq!(raw("minigpt4"), [BOS, Segment::Image(0), text.clone()]);
    assert_eq!(raw("chat-template"), [Segment::Image(0), text.clone()]);
    assert_eq!(raw("instructblip"), [Segment::Image(0), EOS, text.clone()]);
    assert_eq!(raw("instructblip-t5"), [Segment::Image(0), text, EOS]);
    assert_eq!(
        Layout::preset("blip2-opt")
            .unwrap()
            .render_raw("", 1)
            .unwrap(),
        [Segment::Image(0), BOS]
    );
    let error = Layout::preset("blip2-opt")
        .unwrap()
        .render_raw("", 2)
        .unwrap_err();
    assert_eq!(error, Error::TooManyImages { images: 2, max: 1 });
}

#[test]
fn conversations_without_a_question_are_refused() {
    assert_eq!(minigpt4(&[]).unwrap_err(), Error::NoMessages);
    assert_eq!(
        minigpt4(&[user(&[])]).unwrap_err(),
        Error::EmptyMessage { message: 0 }
    );
    assert_eq!(
        minigpt4(&[user(&["Hi"]), assistant("Hi")]).unwrap_err(),
        Error::NothingToAnswer
    );
    for role in [Role::System, Role::Assistant] {
        let error = minigpt4(&[
            Message {
                role,
                parts: vec![Part::Image(0)],
            },
            user(&["Hi"]),
        ])
        .unwrap_err();
        assert_eq!(error, Error::ImageOutsideUserMessage { message: 0, role });
    }
}

#[test]
fn images_and_their_places_must_agree() {
    let messages = [user(&["IMAGE", "Hi"])];
    assert_eq!(check_images(&messages, 1), Ok(()));
    let unused = check_images(&messages, 2).unwrap_err();
    assert_eq!(unused, Error::UnusedImage { image: 1 });
    let missing = Error::NoSuchImage {
        message: 0,
        image: 0,
        images: 0,
    };
    assert_eq!(check_images(&messages, 0).unwrap_err(), missing);
}

#[test]
fn layouts_survive_toml() {
    for name in prompts::PRESETS {
        let layout = Layout::preset(name).unwrap();
        let written = toml::to_string(&layout).unwrap();
        assert_eq!(
            toml::from_str::<Layout>(&written).unwrap(),
            layout,
            "{written}"
        );
    }
    let error = toml::from_str::<Layout>("layout = \"turns\"\nuser_prefx = \"\"").unwrap_err();
    assert!(error.to_string().contains("user_prefx"), "{error}");
}

#[test]
fn a_blank_question_is_refused_and_a_picture_alone_is_not() {
    for preset in ["blip2", "minigpt4"] {
        for text in ["", " \n"] {
            let error = render(preset, &[user(&["IMAGE", text])]).unwrap_err();
            assert_eq!(error, Error::EmptyQuestion);
            assert!(error.is_request());
        }
        render(preset, &[user(&["IMAGE"])]).unwrap();
    }
}
