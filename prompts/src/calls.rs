//! Calls of functions, read out of what a model writes, as it writes.

use crate::CallSyntax;

/// A stretch of an answer that holds calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Text that is no call.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// The next stretch of the arguments of the call that began last: JSON, as the model wrote it.
    Arguments(String),
}

/// Takes an answer apart while it comes. What it returns does not depend on how the text is cut.
///
/// Something that begins like a call and is none, or calls a function that is not there, is text. So is the beginning of
/// a call that the answer ends in, unless its arguments had begun. White space around calls is neither.
#[derive(Debug, Clone)]
pub struct CallReader {
    syntax: CallSyntax,
    functions: Vec<String>,
    /// Most calls; what follows the last one is left out.
    most: usize,
    calls: usize,
    /// What has come and is not decided yet.
    held: String,
    state: State,
    /// Whether anything but white space was text or a call.
    has_begun: bool,
    /// Whether nothing but white space came since a call.
    is_behind_call: bool,
    /// White space that is text if text follows.
    space: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In text, or before anything.
    Text,
    /// In an object that should be a call. The text that was taken for its mark, if it was written.
    Head { mark: &'static str },
    /// In the arguments.
    Arguments(Nesting),
    /// Behind the arguments, in the object.
    Tail(Nesting),
    /// Behind a call.
    Between,
    /// Nothing that follows counts.
    Over,
}

/// Where in JSON a character stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// Goes past a character; true where it closes what was open outermost.
    fn closes(&mut self, letter: char) -> bool {
        match letter {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => self.in_string = !self.in_string,
            _ if self.in_string => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }

    /// The length of what ends with the outermost closing bracket, if that is in `text`.
    fn end(&mut self, text: &str) -> Option<usize> {
        let (at, last) = text
            .char_indices()
            .find(|&(_, letter)| self.closes(letter))?;
        Some(at + last.len_utf8())
    }
}

/// The beginning of an object that should be a call.
enum Head {
    /// Not told yet.
    Incomplete,
    /// No call of any function.
    None,
    /// The arguments begin at `at`.
    Begins { name: String, at: usize },
    /// The object is whole, and ends at `at`.
    Whole {
        name: String,
        arguments: String,
        at: usize,
    },
}

impl CallReader {
    /// Reads an answer of a model that may call `functions`, `most` times. With `opened`, the prompt ended with the
    /// opening of a call.
    pub fn new(
        syntax: CallSyntax,
        functions: Vec<String>,
        most: usize,
        opened: bool,
    ) -> CallReader {
        CallReader {
            syntax,
            functions,
            most,
            calls: 0,
            held: String::new(),
            state: match opened {
                true => State::Head { mark: "" },
                false => State::Text,
            },
            has_begun: false,
            is_behind_call: false,
            space: String::new(),
        }
    }

    /// How the model writes calls.
    pub fn syntax(&self) -> CallSyntax {
        self.syntax
    }

    /// How many calls have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes what comes next.
    pub fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        while self.step(&mut said) {}
        joined(said)
    }

    /// What is left at the end of the answer.
    pub fn finish(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Text => self.text(&rest, &mut said),
            State::Head { mark } => {
                self.text(mark, &mut said);
                self.text(&rest, &mut said);
            }
            State::Arguments(_) | State::Tail(_) | State::Between | State::Over => {}
        }
        if self.calls == 0 && !self.space.is_empty() {
            said.push(Said::Text(std::mem::take(&mut self.space)));
        }
        joined(said)
    }

    /// Decides about as much of what is held as one state can; false where more must come.
    fn step(&mut self, said: &mut Vec<Said>) -> bool {
        match self.state {
            State::Text => self.read_text(said),
            State::Head { mark } => self.read_head(mark, said),
            State::Arguments(mut nesting) => {
                let end = nesting.end(&self.held);
                let rest = end.map_or(String::new(), |end| self.held.split_off(end));
                let arguments = std::mem::replace(&mut self.held, rest);
                if !arguments.is_empty() {
                    said.push(Said::Arguments(arguments));
                }
                self.state = match end {
                    Some(_) => State::Tail(Nesting {
                        depth: 1,
                        ..Nesting::default()
                    }),
                    None => State::Arguments(nesting),
                };
                end.is_some()
            }
            State::Tail(mut nesting) => {
                let end = nesting.end(&self.held);
                self.held = end.map_or(String::new(), |end| self.held.split_off(end));
                self.state = match end {
                    Some(_) => self.behind_call(),
                    None => State::Tail(nesting),
                };
                end.is_some()
            }
            State::Between => self.read_between(),
            State::Over => {
                self.held.clear();
                false
            }
        }
    }

    fn behind_call(&self) -> State {
        match self.calls >= self.most {
            true => State::Over,
            false => State::Between,
        }
    }

    fn read_text(&mut self, said: &mut Vec<Said>) -> bool {
        if let Some(mark) = self.syntax.mark() {
            if let Some(at) = self.held.find(mark) {
                let rest = self.held.split_off(at + mark.len());
                let text = std::mem::replace(&mut self.held, rest);
                self.text(&text[..at], said);
                self.state = State::Head { mark };
                return true;
            }
            let kept = (1..mark.len())
                .rev()
                .find(|&n| self.held.ends_with(&mark[..n]));
            let rest = self.held.split_off(self.held.len() - kept.unwrap_or(0));
            let text = std::mem::replace(&mut self.held, rest);
            if self.syntax == CallSyntax::Mistral && self.may_begin_bare(&text, "[") {
                self.held.insert_str(0, &text);
                return self.begin_bare("[");
            }
            self.text(&text, said);
            return false;
        }
        let text = std::mem::take(&mut self.held);
        if self.may_begin_bare(&text, "{") {
            self.held = text;
            return self.begin_bare("{");
        }
        self.text(&text, said);
        false
    }

    /// Whether nothing came before `text`, and it begins, white space aside, like a call without its mark: that is a
    /// control token in some vocabularies, which text does not show.
    fn may_begin_bare(&self, text: &str, bracket: &str) -> bool {
        !self.has_begun && text.trim_start().starts_with(bracket)
    }

    fn begin_bare(&mut self, bracket: &str) -> bool {
        let at = self.held.find(bracket).unwrap_or(0);
        self.space.push_str(&self.held[..at]);
        self.held.drain(..at);
        self.state = State::Head { mark: "" };
        true
    }

    fn read_head(&mut self, mark: &'static str, said: &mut Vec<Said>) -> bool {
        match self.head() {
            Head::Incomplete => false,
            Head::None => {
                self.state = State::Text;
                // The beginning is text now, so it is not looked at again.
                let first = self.held.chars().next().map_or(0, char::len_utf8);
                let rest = self.held.split_off(first);
                let first = std::mem::replace(&mut self.held, rest);
                self.text(mark, said);
                self.text(&first, said);
                true
            }
            Head::Begins { name, at } => {
                self.begin(name, said);
                self.held.drain(..at);
                self.state = State::Arguments(Nesting::default());
                true
            }
            Head::Whole {
                name,
                arguments,
                at,
            } => {
                self.begin(name, said);
                said.push(Said::Arguments(arguments));
                self.held.drain(..at);
                self.state = self.behind_call();
                true
            }
        }
    }

    fn begin(&mut self, name: String, said: &mut Vec<Said>) {
        self.space.clear();
        self.has_begun = true;
        self.is_behind_call = true;
        self.calls += 1;
        said.push(Said::Call(name));
    }

    /// What the held text is, which stands behind a mark, or where there may be one.
    fn head(&self) -> Head {
        let mut json = Json {
            text: &self.held,
            at: 0,
        };
        json.skip_space();
        if self.syntax == CallSyntax::Mistral && json.peek() == Some('[') {
            json.at += 1;
            json.skip_space();
        }
        match json.peek() {
            None => return Head::Incomplete,
            Some('{') => json.at += 1,
            Some(_) => return Head::None,
        }
        let (mut name, mut arguments) = (None, None);
        let first = json.at;
        loop {
            json.skip_space();
            let is_first = json.text[first..json.at].trim().is_empty();
            match json.peek() {
                None => return Head::Incomplete,
                Some('}') => break,
                Some(',') if !is_first => json.at += 1,
                Some('"') if is_first => {}
                Some(_) => return Head::None,
            }
            json.skip_space();
            let key = match json.value() {
                None => return Head::Incomplete,
                Some(key) => serde_json::from_str::<String>(key),
            };
            let Ok(key) = key else { return Head::None };
            json.skip_space();
            match json.peek() {
                None => return Head::Incomplete,
                Some(':') => json.at += 1,
                Some(_) => return Head::None,
            }
            json.skip_space();
            if key == self.syntax.arguments()
                && json.peek() == Some('{')
                && let Some(name) = name
            {
                let at = json.at;
                return Head::Begins { name, at };
            }
            let Some(value) = json.value() else {
                return Head::Incomplete;
            };
            if key == "name" {
                match serde_json::from_str::<String>(value) {
                    Ok(of) if self.functions.contains(&of) => name = Some(of),
                    _ => return Head::None,
                }
            } else if key == self.syntax.arguments() {
                arguments = Some(value.to_owned());
            }
        }
        let Some(name) = name else { return Head::None };
        let arguments = match arguments {
            None => "{}".to_owned(),
            Some(value) if value.starts_with('{') => value,
            Some(_) => return Head::None,
        };
        let at = json.at + 1;
        Head::Whole {
            name,
            arguments,
            at,
        }
    }

    /// Looks for the next call, or for text.
    fn read_between(&mut self) -> bool {
        let (end, next) = match self.syntax {
            CallSyntax::Hermes => ("</tool_call>", None),
            CallSyntax::Llama => (";", Some('{')),
            CallSyntax::Mistral => ("]", Some('{')),
        };
        let rest = self.held.trim_start();
        if rest.is_empty() || rest.len() < end.len() && end.starts_with(rest) {
            self.held = rest.to_owned();
            return false;
        }
        let (rest, state) = match rest.strip_prefix(end) {
            Some(rest) if self.syntax != CallSyntax::Llama => (rest, State::Text),
            Some(rest) => (rest, State::Between),
            None if self.syntax == CallSyntax::Mistral && rest.starts_with(',') => {
                (&rest[1..], State::Between)
            }
            None if next.is_some_and(|next| rest.starts_with(next)) => {
                (rest, State::Head { mark: "" })
            }
            None => (rest, State::Text),
        };
        self.held = rest.to_owned();
        self.state = state;
        true
    }

    /// Text, whose white space at its end waits for more text; that beside calls is dropped.
    fn text(&mut self, text: &str, said: &mut Vec<Said>) {
        let core = text.trim();
        if core.is_empty() {
            if !self.is_behind_call {
                self.space.push_str(text);
            }
            return;
        }
        let mut whole = std::mem::take(&mut self.space);
        match self.is_behind_call {
            true => whole.push_str(core),
            false => whole.push_str(text.trim_end()),
        }
        self.space.push_str(&text[text.trim_end().len()..]);
        self.has_begun = true;
        self.is_behind_call = false;
        said.push(Said::Text(whole));
    }
}

/// JSON that may not be whole, read from left to right.
struct Json<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Json<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// The value that begins here, if its end is there.
    fn value(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let end = match self.peek()? {
            '{' | '[' => Nesting::default().end(rest)?,
            '"' => {
                let mut nesting = Nesting::default();
                let closing = rest.char_indices().find(|&(_, letter)| {
                    nesting.closes(letter);
                    letter == '"' && !nesting.in_string
                });
                closing?.0 + 1
            }
            _ => rest.find([',', '}', ']', ' ', '\n'])?,
        };
        self.at += end;
        Some(&rest[..end])
    }
}

/// Neighbouring stretches of one kind as one.
fn joined(said: Vec<Said>) -> Vec<Said> {
    let mut joined: Vec<Said> = Vec::with_capacity(said.len());
    for next in said {
        match (joined.last_mut(), next) {
            (Some(Said::Text(before)), Said::Text(text)) => before.push_str(&text),
            (Some(Said::Arguments(before)), Said::Arguments(text)) => before.push_str(&text),
            (_, next) => joined.push(next),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CallSyntax::{Hermes, Llama, Mistral};

    /// What an answer holds, cut into pieces of every size, which must not matter.
    fn read(syntax: CallSyntax, most: usize, opened: bool, answer: &str) -> Vec<Said> {
        let functions = vec!["look".to_owned(), "count".to_owned()];
        let letters: Vec<char> = answer.chars().collect();
        let of_size = |size: usize| {
            let mut reader = CallReader::new(syntax, functions.clone(), most, opened);
            let mut said = Vec::new();
            for piece in letters.chunks(size) {
                said.extend(reader.push(&piece.iter().collect::<String>()));
            }
            said.extend(reader.finish());
            let said = joined(said);
            let calls = said.iter().filter(|said| matches!(said, Said::Call(_)));
            assert_eq!(calls.count(), reader.calls());
            said
        };
        let whole = of_size(letters.len().max(1));
        for size in 1..letters.len() {
            assert_eq!(of_size(size), whole, "{answer:?} in pieces of {size}");
        }
        whole
    }

    fn text(text: &str) -> Said {
        Said::Text(text.into())
    }

    fn call(name: &str, arguments: &str) -> [Said; 2] {
        [Said::Call(name.into()), Said::Arguments(arguments.into())]
    }

    #[test]
    fn calls_of_hermes_stand_among_text() {
        let answer = "I look.\n<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"a } \\\" {\", \"n\": [1, {}]}}\n</tool_call>\n<tool_call>\n{\"name\": \"count\", \"arguments\": {}}\n</tool_call>";
        let [first, arguments] = call("look", "{\"at\": \"a } \\\" {\", \"n\": [1, {}]}");
        let [second, none] = call("count", "{}");
        let all = [text("I look."), first, arguments, second, none];
        assert_eq!(read(Hermes, 9, false, answer), all);
        assert_eq!(read(Hermes, 1, false, answer), all[..3]);
        let opened = answer.split_once("<tool_call>\n").unwrap().1;
        assert_eq!(read(Hermes, 9, true, opened), all[1..]);
    }

    #[test]
    fn a_call_may_lack_arguments_or_have_them_first() {
        for (object, arguments) in [
            ("{\"name\": \"look\"}", "{}"),
            (
                "{\"arguments\": {\"a\": 1}, \"name\": \"look\"}",
                "{\"a\": 1}",
            ),
            (
                "{ \"id\" : 7, \"name\" : \"look\" , \"arguments\" : { } , \"x\": \"}\" }",
                "{ }",
            ),
        ] {
            let answer = format!("<tool_call>{object}</tool_call>");
            assert_eq!(
                read(Hermes, 9, false, &answer),
                call("look", arguments),
                "{object}"
            );
        }
    }

    #[test]
    fn what_is_no_call_is_text_to_the_letter() {
        for answer in [
            "",
            " \n",
            " Two words. \n",
            "a < b, <tool, <tool_call",
            "<tool_call>",
            "<tool_call>\nnone\n</tool_call>",
            "<tool_call>\n{\"name\": \"fly\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"look\", \"arguments\": 3}\n</tool_call> ",
            "<tool_call>\n{\"name\": \"look\", ",
            "<tool_call>{\"name\": 3}",
            "{\"name\": \"look\", \"arguments\": {}}",
        ] {
            let whole: Vec<Said> = (!answer.is_empty())
                .then(|| text(answer))
                .into_iter()
                .collect();
            assert_eq!(read(Hermes, 9, false, answer), whole);
        }
        for answer in [
            "[TOOL_CALLS",
            "[1, 2]",
            "[TOOL_CALLS] none",
            "see [{\"name\": \"look\"}]",
        ] {
            assert_eq!(read(Mistral, 9, false, answer), [text(answer)]);
        }
        for answer in [
            "{\"a\": 1}",
            "so: {\"name\": \"look\", \"parameters\": {}}",
            "{",
        ] {
            assert_eq!(read(Llama, 9, false, answer), [text(answer)]);
        }
    }

    #[test]
    fn an_answer_that_is_cut_keeps_what_came_of_its_arguments() {
        let answer = "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"at\": \"a";
        assert_eq!(read(Hermes, 9, false, answer), call("look", "{\"at\": \"a"));
    }

    #[test]
    fn llamas_call_is_the_whole_answer() {
        let one = "{\"name\": \"look\", \"parameters\": {\"at\": 1}}";
        assert_eq!(read(Llama, 9, false, one), call("look", "{\"at\": 1}"));
        let two = format!("\n{one}; {{\"name\": \"count\", \"parameters\": {{}}}}");
        let both = [call("look", "{\"at\": 1}"), call("count", "{}")].concat();
        assert_eq!(read(Llama, 9, false, &two), both);
    }

    #[test]
    fn calls_of_mistral_are_a_list() {
        let list = "[{\"name\": \"look\", \"arguments\": {\"at\": 1}, \"id\": \"123456789\"}, {\"name\": \"count\", \"arguments\": {}}]";
        let both = [call("look", "{\"at\": 1}"), call("count", "{}")].concat();
        // The mark is a control token, which text does not show, in some vocabularies.
        for answer in [
            list.to_owned(),
            format!("[TOOL_CALLS]{list}"),
            format!("[TOOL_CALLS] {list}"),
        ] {
            assert_eq!(read(Mistral, 9, false, &answer), both);
        }
        assert_eq!(read(Mistral, 9, true, &list[1..]), both);
        let after = format!("I look. [TOOL_CALLS]{list}");
        assert_eq!(read(Mistral, 9, false, &after)[0], text("I look."));
    }
}
