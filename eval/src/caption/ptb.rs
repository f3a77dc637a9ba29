//! Tokens of captions, as the official scorers take them: what Stanford's PTBTokenizer 3.4.1 gives for
//! `-lowerCase`, less punctuation.
//!
//! The tokenizer is a lexer: of the rules that match where it stands, the one that sees furthest wins, and of
//! several the first. So it is here; its rules were found by asking it (`tests/golden/make_eval.py`), and
//! what is left out is what captions do not have, such as names of files without a word before their dot.
//!
//! - Contractions come apart (`is n't`, `dog 's`, `can not`), words with hyphens and slashes do not.
//! - Brackets are tokens (`-lrb-`), quotes, dashes and the marks that end or part sentences are dropped.
//! - Abbreviations keep their period: a list of them, single letters, and letters with a period each.

use std::sync::LazyLock;

use regex::{Match, Regex};

/// What becomes of a match.
#[derive(Debug, Clone, Copy)]
enum Action {
    /// It is a token.
    Keep,
    /// It is a token, with a plain apostrophe.
    Contract,
    /// Something else is.
    Become(&'static str),
    /// It is no token: punctuation, or what the tokenizer cannot read.
    Drop,
}

use Action::{Become, Contract, Drop, Keep};

/// Letters and digits.
const WORD: &str = r"[\p{L}\p{Nd}][\p{L}\p{Nd}\p{Mc}\u{ad}[\p{Mn}--[\u{fe00}-\u{fe0f}]]]*";
/// A word that begins with a letter.
const NAME: &str = r"\p{L}[\p{L}\p{Nd}\p{M}]*";
/// ASCII letters and digits with up to two hyphens.
const PART: &str = "[A-Za-z0-9]+(?:-[A-Za-z0-9]+){0,2}";
/// What follows a word that is over.
const END: &str = r"(?:[^\p{L}\p{Nd}]|$)";

/// Abbreviations in any case.
const ABBREVIATIONS: &str = "ph\\.d|mr|mrs|ms|dr|prof|st|ste|ave|blvd|rd|jr|sr|co|cos|corp|inc|ltd|plc|cie|bros|vs|etc|jan|feb|mar|\
    apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thurs?|thu|fri|ala|ariz|calif|colo|conn|fla|ga|ind|kans?|ky|md|mich|\
    minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo|gen|col|lt|sgt|capt|maj|reps?|sens?|govs?|pres|rev|hon|messrs|mme|\
    mlle|msgr|adm|cmdr|comdr|cpl|pfc|pvt|supt|det|insp|attys?|est|dept|univ|assn|assoc|mfg|pty|ft|mt|ph|sq|ct|cf|al|esq|\
    bldg|intl|natl|adv|elec|seq|sys|tel";
/// Abbreviations that begin with a capital.
const CAPITALIZED: &str =
    "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash|ARK|AZ|DEL|ILL|LA|MASS|MISS|ORE|PA|TEX|WASH";
/// Abbreviations where a number follows.
const NUMBERED: &str = "ca|nos?|figs?|pp|art|op";

/// Patterns with what becomes of them. A group is the token where the rule looks at what follows it.
fn rules() -> Vec<(String, Action)> {
    let domain = r"(?:[A-Za-z0-9]+\.)+(?:com|net|org|edu|gov|biz|info|tv|us|uk)";
    let path = r#"(?:/[^\s"<>|()]*[^\s"<>|.!?(){},-])"#;
    let suffix = "['’](?i:s|m|d|ll|re|ve)";
    let rules = [
        // Contractions
        (format!("((?i:can))(?i:not){END}"), Keep),
        (format!("((?i:gon|wan))(?i:na){END}"), Keep),
        (format!("((?i:got))(?i:ta){END}"), Keep),
        (format!("((?i:lem|gim))(?i:me){END}"), Keep),
        (format!("('[tT])(?i:is|was){END}"), Keep),
        ("'[nN]'".to_owned(), Keep),
        (format!(r"(\p{{L}}+)[nN]['’‘`][tT]{END}"), Keep),
        (format!(r"([nN]['’‘`][tT]){END}"), Contract),
        (format!("({WORD}(?:[-_]{WORD})*){suffix}{END}"), Keep),
        (format!("({suffix}){END}"), Contract),
        (format!("(['’](?i:em|til|n|cause)){END}"), Keep),
        (r"(['’]\d\ds?)(?:[\s.,;:!?)]|$)".to_owned(), Keep),
        (r"([yYjJdl]['’])\p{L}".to_owned(), Keep),
        (r"[dlnoA-XZ]['’]\p{L}[\p{L}\p{Nd}]+(?:-\p{L}+)*".to_owned(), Keep),
        (format!("((?i:ma['’]am|n?e['’]er|o['’]er|c['’]mon|qu['’]il|li['’]l|ev['’]ry|ol['’])){END}"), Keep),
        // Words
        (format!("{WORD}(?:[-_]{WORD})*"), Keep),
        (format!("{PART}(?:/{PART}){{1,2}}"), Keep),
        (format!("{NAME}(?:[.!?]{NAME})+(?:-{WORD})*"), Keep),
        ("[A-Z]+(?:&[A-Z]+)+".to_owned(), Keep),
        (r"[Cc]\+\+|[CcFf]#".to_owned(), Keep),
        // Abbreviations
        (r"\p{L}(?:\.\p{L})+\.?".to_owned(), Keep),
        (r"\p{L}\.".to_owned(), Keep),
        (format!(r"(?:{WORD}-)?(?:\p{{L}}\.){{2,}}(?:-(?:(?:\p{{L}}\.)+|{WORD}))*"), Keep),
        (format!(r"(?i:{ABBREVIATIONS})\.(?:-{WORD})*"), Keep),
        (format!(r"(?:{CAPITALIZED})\."), Keep),
        (format!(r"((?i:{NUMBERED})\.)\s*\d"), Keep),
        // Numbers
        (r"[-+]?[.,:]?\d+(?:[.,:]\d+)*".to_owned(), Keep),
        (r"(?:\d+ )?\d+/\d+".to_owned(), Keep),
        (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}".to_owned(), Keep),
        (r"(?:\(\d{2,3}\) ?|(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}".to_owned(), Keep),
        (r"[A-Z]*\$".to_owned(), Keep),
        // Addresses and markup
        (r#"https?://[^\s"<>|()]+\.[^\s"<>|()]*[^\s"<>|.!?(){},-]"#.to_owned(), Keep),
        (format!(r"www\.(?:[A-Za-z0-9-]+\.)*[A-Za-z0-9-]+{path}?"), Keep),
        (format!("({domain}{path}?){END}"), Keep),
        (r#"[A-Za-z0-9][^\s"<>|()]*@(?:[^\s"<>|().]+\.)*[^\s"<>|().,;:!?']+"#.to_owned(), Keep),
        (r#"<[A-Za-z0-9][^\s"<>|()]*@(?:[^\s"<>|().]+\.)*[^\s"<>|().,;:!?']+>"#.to_owned(), Keep),
        ("@[A-Za-z_][A-Za-z_0-9]*".to_owned(), Keep),
        (r"#\p{L}+".to_owned(), Keep),
        (r#"</?[A-Za-z][A-Za-z0-9_.:-]*(?: +[A-Za-z][A-Za-z0-9_.:-]*(?:="[^"]*"|='[^']*')?)* ?/?>"#.to_owned(), Keep),
        (r"<[!?][^<>]*>".to_owned(), Keep),
        ("(?i:&amp;)".to_owned(), Become("&")),
        ("(?i:&lt;)".to_owned(), Become("<")),
        ("(?i:&gt;)".to_owned(), Become(">")),
        ("(?i:&quot;|&apos;|&nbsp;)".to_owned(), Drop),
        ("&#[0-9]+;".to_owned(), Keep),
        // Faces
        (r"[<>]?[:;=][-o*']?[()\[\]|]".to_owned(), Keep),
        (format!("([<>]?[:;=][-o*']?[dDpPO\\\\]){END}"), Keep),
        (r"\^_\^|>_<|-_-".to_owned(), Keep),
        // Signs
        (r"\(".to_owned(), Become("-lrb-")),
        (r"\)".to_owned(), Become("-rrb-")),
        (r"\[".to_owned(), Become("-lsb-")),
        (r"\]".to_owned(), Become("-rsb-")),
        (r"\{".to_owned(), Become("-lcb-")),
        (r"\}".to_owned(), Become("-rcb-")),
        ("½".to_owned(), Become("1/2")),
        ("¼".to_owned(), Become("1/4")),
        ("¾".to_owned(), Become("3/4")),
        ("⅓".to_owned(), Become("1/3")),
        ("⅔".to_owned(), Become("2/3")),
        ("€".to_owned(), Become("$")),
        ("£".to_owned(), Become("#")),
        ("¢".to_owned(), Become("cents")),
        (r"[!?]{2,}|_+|\\?\*+|<<|>>".to_owned(), Keep),
        ("''".to_owned(), Drop),
        (r#"-+|[–—―…"'`‘’“”«»‹›.?!,:;\s]"#.to_owned(), Drop),
        (format!("[{SIGNS}]"), Keep),
        (r"[\s\S]".to_owned(), Drop),
    ];
    rules.into()
}

/// Single characters that are tokens.
const SIGNS: &str = r"!-~¡¤-§©¬®-¹¿×÷‚„‟†-•′″⁰-₎₤™⅛←-⏿①-➿";

#[allow(clippy::expect_used)]
static RULES: LazyLock<Vec<(Regex, Action)>> = LazyLock::new(|| {
    let compile = |(pattern, action): (String, Action)| {
        let regex = Regex::new(&format!("^(?:{pattern})")).expect("a rule of this file");
        (regex, action)
    };
    rules().into_iter().map(compile).collect()
});

/// The tokens of a caption, lowercase, one space between two.
pub fn tokenize(caption: &str) -> String {
    let mut rest = caption;
    let mut tokens: Vec<String> = Vec::new();
    while !rest.is_empty() {
        let (length, token) = match plain_word(rest) {
            Some(length) => (length, Some(rest[..length].to_owned())),
            None => next(rest),
        };
        tokens.extend(token.map(|token| token.to_lowercase()));
        rest = &rest[length..];
    }
    tokens.join(" ")
}

/// Length of a word of ASCII letters with a space or the end after it, which most tokens are: no rule but
/// the first takes it, unless it is one of the few that come apart.
fn plain_word(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let length = bytes.iter().take_while(|b| b.is_ascii_alphabetic()).count();
    let is_over = matches!(bytes.get(length), None | Some(b' '));
    let comes_apart = [5, 6].contains(&length)
        && ["cannot", "gonna", "wanna", "gotta", "lemme", "gimme"]
            .contains(&rest[..length].to_lowercase().as_str());
    (length > 0 && is_over && !comes_apart).then_some(length)
}

/// Length of what is taken from the front, and the token that it is.
fn next(rest: &str) -> (usize, Option<String>) {
    let mut best: Option<(usize, Match<'_>, Action)> = None;
    for (rule, action) in RULES.iter() {
        let Some(found) = rule.captures(rest) else {
            continue;
        };
        let (Some(seen), Some(token)) = (found.get(0), found.get(1).or_else(|| found.get(0)))
        else {
            continue;
        };
        if best
            .as_ref()
            .is_none_or(|(longest, ..)| seen.end() > *longest)
        {
            best = Some((seen.end(), token, *action));
        }
    }
    // The last rule takes whatever is there.
    let Some((_, token, action)) = best else {
        return (rest.len(), None);
    };
    let text = match action {
        Keep => Some(escape(token.as_str())),
        Contract => Some(token.as_str().replace('’', "'").replace('‘', "`")),
        Become(text) => Some(text.to_owned()),
        Drop => None,
    };
    (token.end(), text)
}

/// Names for brackets inside a token; spaces there do not part it, and soft hyphens go.
fn escape(token: &str) -> String {
    let mut escaped = String::with_capacity(token.len());
    for c in token.chars() {
        match c {
            '(' => escaped.push_str("-lrb-"),
            ')' => escaped.push_str("-rrb-"),
            ' ' => escaped.push('\u{a0}'),
            '\u{ad}' => {}
            c => escaped.push(c),
        }
    }
    escaped
}
