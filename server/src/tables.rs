//! The bodies of requests, field by field.

use crate::schema::Type::{
    Any, Boolean, Choice, Either, False, Formatted, Integer, List, Map, Null, Number, Object as Of,
    String, Text,
};
use crate::schema::{EMPTY, Field, Object, Type, optional, required};

/// Most stop strings of a request: OpenAI's limit.
pub(crate) const MAX_STOPS: usize = 4;

/// Most functions of a request: OpenAI's limit.
pub(crate) const MAX_TOOLS: usize = 128;

/// Most beams of a request that make sense to any model; the engine may have fewer.
const MAX_BEAMS: i64 = 256;

const ANY_NUMBER: usize = usize::MAX;

/// Fields that cannot change what this server answers.
pub(crate) const HARMLESS: &[Field] = &[
    optional("user", Any, "Not looked at."),
    optional("safety_identifier", Any, "Not looked at."),
    optional("prompt_cache_key", Any, "Not looked at."),
    optional("prompt_cache_retention", Any, "Not looked at."),
    optional("metadata", Any, "Not looked at."),
    optional("store", Any, "Not looked at; nothing is stored."),
    optional("service_tier", Any, "Not looked at."),
    optional("reasoning_effort", Any, "Not looked at."),
    optional("verbosity", Any, "Not looked at."),
];

const MODEL: Field = required(
    "model",
    String,
    "One of those that /v1/models lists; 404 for any other.",
);

/// Fields of both kinds of requests for answers.
const ANSWER: &[Field] = &[
    MODEL,
    optional(
        "max_completion_tokens",
        Integer(1, i64::MAX),
        "Most tokens of the answer; the model's default where none is given.",
    ),
    optional(
        "max_tokens",
        Integer(1, i64::MAX),
        "The old name of max_completion_tokens, which holds where both are given.",
    ),
    optional(
        "temperature",
        Number(0.0, 2.0),
        "0 takes the likeliest token. What is not given of the sampling is as the bundle says.",
    ),
    optional(
        "top_p",
        Number(0.0, 1.0),
        "Keeps the likeliest tokens that reach this probability together.",
    ),
    optional(
        "top_k",
        Integer(-1, u32::MAX as i64),
        "Keeps so many of the likeliest tokens; 0 and -1 keep all.",
    ),
    optional(
        "min_p",
        Number(0.0, 1.0),
        "Drops tokens below this fraction of the likeliest one's probability.",
    ),
    optional(
        "frequency_penalty",
        Number(-2.0, 2.0),
        "Taken off a token's logit for each time that it was seen in the last 64.",
    ),
    optional(
        "presence_penalty",
        Number(-2.0, 2.0),
        "Taken off the logits of the tokens seen in the last 64.",
    ),
    optional(
        "repetition_penalty",
        Number(0.01, 10.0),
        "For each token that the prompt's text or the answer holds; 1 is none.",
    ),
    optional(
        "repeat_penalty",
        Number(0.01, 10.0),
        "Another name of repetition_penalty.",
    ),
    optional(
        "min_tokens",
        Integer(0, u32::MAX as i64),
        "Tokens before an end-of-generation token or stop id may come.",
    ),
    optional(
        "num_beams",
        Integer(1, MAX_BEAMS),
        "Beam search, where above 1; needs temperature and penalties of 0, and as many sequences.",
    ),
    optional(
        "length_penalty",
        Number(-10.0, 10.0),
        "Beams' scores are divided by their length to this power.",
    ),
    optional(
        "seed",
        Integer(i64::MIN, i64::MAX),
        "The same seed and the same logits give the same text.",
    ),
    optional(
        "stop",
        Either(&[Text, List(&Text, 0, MAX_STOPS)]),
        "Ends the answer, which does not include it.",
    ),
    optional(
        "cache_prompt",
        Boolean,
        "Take over what earlier requests computed of the same beginning, and leave it to later ones; true by default.",
    ),
    optional("stream", Boolean, "Answer piece by piece, as events."),
    optional(
        "stream_options",
        Of(&STREAM_OPTIONS),
        "Allowed only with stream.",
    ),
    optional(
        "timings",
        Boolean,
        "Tell the seconds spent in each stage; false by default.",
    ),
    optional(
        "n",
        Integer(1, 128),
        "Answers to choose from, at most the sequences that the server computes at once; with num_beams the best.",
    ),
    optional(
        "logit_bias",
        Map(&Number(-100.0, 100.0)),
        "Token ids, and what to add to their logits before anything else.",
    ),
];

/// `stream_options`
pub(crate) const STREAM_OPTIONS: Object = Object {
    name: "StreamOptions",
    about: "What a stream holds beside the answer.",
    fields: &[&[
        optional(
            "include_usage",
            Boolean,
            "One more event with the usage before the end.",
        ),
        optional(
            "include_obfuscation",
            Boolean,
            "Padding against eavesdroppers; there is none.",
        ),
    ]],
};

/// `POST /v1/chat/completions`
pub(crate) const CHAT: Object = Object {
    name: "ChatCompletionRequest",
    about: "Messages to answer.",
    fields: &[
        &[required(
            "messages",
            List(&Of(&MESSAGE), 1, ANY_NUMBER),
            "What was said so far; the last one is not the assistant's.",
        )],
        ANSWER,
        &[
            optional(
                "logprobs",
                Boolean,
                "Tell the logarithm of each token's probability; not with num_beams.",
            ),
            optional(
                "top_logprobs",
                Integer(0, 20),
                "Tell those of so many of the likeliest tokens too; only with logprobs.",
            ),
            optional(
                "response_format",
                Of(&RESPONSE_FORMAT),
                "The form of the answer.",
            ),
            optional(
                "modalities",
                List(&Choice(&["text"]), 0, ANY_NUMBER),
                "Answers are text.",
            ),
            optional(
                "tools",
                List(&Of(&TOOL), 0, MAX_TOOLS),
                "Functions that the model may call, where its chat template knows of any; not with num_beams and JSON.",
            ),
            optional(
                "tool_choice",
                Either(&[Choice(&["none", "auto", "required"]), Of(&CHOSEN)]),
                "Whether it must call any; auto where there are tools.",
            ),
            optional(
                "parallel_tool_calls",
                Boolean,
                "Whether it may call several at once; true by default.",
            ),
            optional("functions", EMPTY, "The old name of tools: not taken."),
            optional(
                "function_call",
                Choice(&["none", "auto"]),
                "The old name of tool_choice: not taken.",
            ),
            optional("audio", Null, "Answers are text."),
            optional("prediction", Null, "Answers are not predicted."),
            optional("web_search_options", Null, "Nothing is searched."),
        ],
        HARMLESS,
    ],
};

/// `response_format`
pub(crate) const RESPONSE_FORMAT: Object = Object {
    name: "ResponseFormat",
    about: "The form of an answer; not with num_beams.",
    fields: &[&[
        required(
            "type",
            Choice(&["text", "json_object", "json_schema"]),
            "Any text, any JSON object, or JSON that a schema describes.",
        ),
        optional(
            "json_schema",
            Of(&JSON_SCHEMA),
            "The schema, of a form that has one.",
        ),
    ]],
};

/// `response_format.json_schema`
pub(crate) const JSON_SCHEMA: Object = Object {
    name: "JsonSchema",
    about: "A JSON Schema for the answer.",
    fields: &[&[
        required(
            "name",
            Text,
            "What it is called; says nothing to the model.",
        ),
        optional("description", String, "Says nothing to the model."),
        required(
            "schema",
            Map(&Any),
            "The schema: at most 64 KiB, nested 32 deep.",
        ),
        optional("strict", Boolean, "Followed to the letter either way."),
    ]],
};

/// Most prompts of a request.
pub(crate) const MAX_PROMPTS: usize = 128;

const TOKEN: Type = Integer(0, i32::MAX as i64);

/// `POST /v1/completions`
pub(crate) const TEXT: Object = Object {
    name: "CompletionRequest",
    about: "A text to go on with.",
    fields: &[
        &[required(
            "prompt",
            Either(&[
                String,
                List(&String, 1, MAX_PROMPTS),
                List(&TOKEN, 1, ANY_NUMBER),
                List(&List(&TOKEN, 1, ANY_NUMBER), 1, MAX_PROMPTS),
            ]),
            "A text, or token ids, or several of either. A text stands behind what the bundle's layout begins with, and \
             special tokens in it are text; token ids are all there is.",
        )],
        ANSWER,
        &[
            optional("echo", False, "The prompt is not repeated."),
            optional(
                "suffix",
                Choice(&[""]),
                "Text is put behind the prompt alone.",
            ),
            optional("best_of", Integer(1, 128), "Must be n: all are told."),
            optional(
                "logprobs",
                Integer(0, 5),
                "Tell the logarithm of each token's probability, and those of so many of the likeliest; not with num_beams.",
            ),
        ],
        HARMLESS,
    ],
};

/// A message of `messages`
pub(crate) const MESSAGE: Object = Object {
    name: "Message",
    about: "What one side said.",
    fields: &[&[
        required(
            "role",
            Choice(&["system", "developer", "user", "assistant", "tool"]),
            "Who said it; developer is system by another name.",
        ),
        optional(
            "content",
            Either(&[String, List(&Of(&PART), 1, ANY_NUMBER)]),
            "A text, or parts in their order. Only an assistant may have said nothing (null).",
        ),
        optional(
            "tool_calls",
            List(&Of(&CALL), 0, MAX_TOOLS),
            "The functions that the assistant called.",
        ),
        optional(
            "tool_call_id",
            Text,
            "The call that a tool message answers, which needs one.",
        ),
        optional("function_call", Null, "The old name of tool_calls."),
        optional("name", Null, "Prompts name speakers by their role."),
        optional("refusal", Null, "Send it as content."),
        optional("audio", Null, "Send text and pictures."),
    ]],
};

/// One of `tools`
pub(crate) const TOOL: Object = Object {
    name: "Tool",
    about: "A function that the model may call.",
    fields: &[&[
        required("type", FUNCTION_TYPE, "There are no other tools."),
        required("function", Of(&FUNCTION), "The function."),
    ]],
};

const FUNCTION_TYPE: Type = Choice(&["function"]);

/// `function` of a tool
pub(crate) const FUNCTION: Object = Object {
    name: "Function",
    about: "A function, as the model is told of it.",
    fields: &[&[
        required(
            "name",
            Text,
            "Its name: at most 64 letters, digits, _ and -.",
        ),
        optional("description", String, "What it does."),
        optional(
            "parameters",
            Map(&Any),
            "A JSON Schema of its arguments; any object where there is none.",
        ),
        optional(
            "strict",
            Boolean,
            "Hold the arguments to the schema even where tool_choice is auto; for one function it is for all.",
        ),
    ]],
};

/// `tool_choice` that names a function
pub(crate) const CHOSEN: Object = Object {
    name: "ToolChoice",
    about: "The function that the model must call.",
    fields: &[&[
        required("type", FUNCTION_TYPE, "There are no other tools."),
        required("function", Of(&CALLED), "The function."),
    ]],
};

/// `function` of a choice
pub(crate) const CALLED: Object = Object {
    name: "FunctionName",
    about: "A function of tools.",
    fields: &[&[required("name", Text, "Its name.")]],
};

/// One of `tool_calls`
pub(crate) const CALL: Object = Object {
    name: "ToolCall",
    about: "A call that the assistant made.",
    fields: &[&[
        required("id", Text, "What the tool message that answers it names."),
        required("type", FUNCTION_TYPE, "There are no other tools."),
        required("function", Of(&CALL_FUNCTION), "What was called."),
    ]],
};

/// `function` of a call
pub(crate) const CALL_FUNCTION: Object = Object {
    name: "CalledFunction",
    about: "A function and its arguments.",
    fields: &[&[
        required("name", Text, "Its name."),
        required(
            "arguments",
            Formatted("json-object"),
            "Its arguments: a JSON object, or nothing.",
        ),
    ]],
};

/// A part of a message's `content`
pub(crate) const PART: Object = Object {
    name: "ContentPart",
    about: "A text or a picture.",
    fields: &[&[
        required(
            "type",
            Choice(&["text", "image_url"]),
            "Which of the two; the field of the same name holds it.",
        ),
        optional("text", String, "The text, of a part that is one."),
        optional(
            "image_url",
            Either(&[Of(&IMAGE_URL), IMAGE_ADDRESS]),
            "The picture, of a part that is one: in user messages alone. The bare address is taken too.",
        ),
    ]],
};

/// Where a picture is.
const IMAGE_ADDRESS: Type = Formatted("image-uri");

/// `image_url`
pub(crate) const IMAGE_URL: Object = Object {
    name: "ImageUrl",
    about: "Where a picture is.",
    fields: &[&[
        required(
            "url",
            IMAGE_ADDRESS,
            "A data: URI (data:image/png;base64,...). PNG, JPEG, WebP, GIF, BMP or TIFF, known by their bytes. \
             http:, https: and file: where the server was started to take them.",
        ),
        optional(
            "detail",
            Choice(&["auto", "low", "high"]),
            "Pictures are seen at the one size that the model has.",
        ),
    ]],
};

/// Most texts and pictures of a list: OpenAI's limit of embeddings.
pub(crate) const MAX_INPUTS: usize = 2048;

/// How many of the nearest documents the matching head reads where a request does not say (LAVIS, `k_test`).
pub(crate) const MATCHED_BY_DEFAULT: usize = 128;

const INPUT_FIELDS: &[Field] = &[
    optional(
        "type",
        Choice(&["text", "image_url"]),
        "Which of the two, where it is a content part.",
    ),
    optional("text", Text, "A text."),
    optional(
        "image_url",
        Either(&[Of(&IMAGE_URL), IMAGE_ADDRESS]),
        "A picture, as in messages.",
    ),
    optional("image", IMAGE_ADDRESS, "A picture by its bare address."),
];

/// A text or a picture that is compared
pub(crate) const INPUT: Object = Object {
    name: "Input",
    about: "A text or a picture: one of text, image_url and image, or content for a list of them.",
    fields: &[
        INPUT_FIELDS,
        &[optional(
            "content",
            List(&Of(&INPUT_PART), 1, MAX_INPUTS),
            "Parts, each of which is a text or a picture of its own.",
        )],
    ],
};

/// One of its `content`
pub(crate) const INPUT_PART: Object = Object {
    name: "InputPart",
    about: "A text or a picture: one of text, image_url and image.",
    fields: &[INPUT_FIELDS],
};

const ONE_INPUT: Type = Either(&[Text, Of(&INPUT)]);
const INPUTS: Type = Either(&[Text, Of(&INPUT), List(&ONE_INPUT, 1, MAX_INPUTS)]);

const USER: Field = optional("user", Any, "Not looked at.");

const ITM_TOP_K: Field = optional(
    "itm_top_k",
    Integer(0, MAX_INPUTS as i64),
    "Pairs that the matching head (ITM) reads, the most similar ones (ITC): by default 128 in rerank and all in score; 0 leaves it at \
     similarity. Only for models that have such a head.",
);

/// `POST /v1/embeddings`
pub(crate) const EMBEDDINGS: Object = Object {
    name: "EmbeddingsRequest",
    about: "Texts and pictures whose features are asked for.",
    fields: &[&[
        MODEL,
        required("input", INPUTS, "Each gives one embedding, in their order."),
        optional(
            "encoding_format",
            Choice(&["float", "base64"]),
            "Numbers, or the base64 of their bytes as little-endian f32; numbers by default.",
        ),
        optional(
            "dimensions",
            Integer(1, u32::MAX as i64),
            "Only so many of the first values, brought back to length 1; at most those that the model has.",
        ),
        optional(
            "return_multivector",
            Boolean,
            "Tell embeddings, a list of rows, in place of embedding: a blip2-itm's pictures have one for each query, whose mean \
             direction is the embedding.",
        ),
        USER,
    ]],
};

/// `POST /v1/rerank`
pub(crate) const RERANK: Object = Object {
    name: "RerankRequest",
    about: "Pictures that are ordered by a text, or texts by a picture.",
    fields: &[&[
        MODEL,
        required("query", ONE_INPUT, "A text or a picture."),
        required(
            "documents",
            INPUTS,
            "The others: pictures for a text, texts for a picture.",
        ),
        optional(
            "top_n",
            Integer(1, u32::MAX as i64),
            "Only so many of the best.",
        ),
        optional(
            "return_documents",
            Boolean,
            "Send the documents back too; false by default.",
        ),
        ITM_TOP_K,
        USER,
    ]],
};

/// `POST /v1/score`
pub(crate) const SCORE: Object = Object {
    name: "ScoreRequest",
    about: "Pairs of a picture and a text.",
    fields: &[&[
        MODEL,
        required(
            "text_1",
            INPUTS,
            "One, for all of text_2, or as many as those.",
        ),
        required("text_2", INPUTS, "The other side of each pair."),
        ITM_TOP_K,
        USER,
    ]],
};

const TOKENIZERS: &str = "Whose tokens; the first model's where none is given.";

/// `POST /models/load` and `POST /models/unload`
pub(crate) const NAMED: Object = Object {
    name: "ModelName",
    about: "A model of this server.",
    fields: &[&[MODEL]],
};

/// `POST /tokenize`
pub(crate) const TOKENIZE: Object = Object {
    name: "TokenizeRequest",
    about: "A text to count.",
    fields: &[&[
        required("prompt", String, "The text; special tokens in it are text."),
        optional("model", String, TOKENIZERS),
    ]],
};

/// `POST /detokenize`
pub(crate) const DETOKENIZE: Object = Object {
    name: "DetokenizeRequest",
    about: "Tokens to read.",
    fields: &[&[
        required(
            "tokens",
            List(&TOKEN, 0, ANY_NUMBER),
            "Ids of the vocabulary.",
        ),
        optional("model", String, TOKENIZERS),
    ]],
};
