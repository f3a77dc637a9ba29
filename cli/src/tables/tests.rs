#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

/// What was found: name, text, and where the picture is.
#[derive(Default)]
struct Taken(Vec<(String, Option<String>, String)>);

impl Visitor for Taken {
    fn wants(&mut self, _: &str) -> bool {
        true
    }

    fn take(&mut self, item: Item) -> ControlFlow<()> {
        let picture = match item.picture {
            Picture::File(path) => path.display().to_string(),
            Picture::Url(url) => url,
            Picture::Unreadable(reason) => format!("! {reason}"),
            Picture::Bytes(bytes) => format!("{} bytes", bytes.len()),
        };
        self.0.push((item.name, item.text, picture));
        ControlFlow::Continue(())
    }
}

fn table(dir: &Path, name: &str, contents: &str) -> TableArgs {
    let path = dir.join(name);
    std::fs::write(&path, contents).unwrap();
    TableArgs {
        table: path,
        text_column: "caption".to_owned(),
        image_column: None,
        images: None,
    }
}

fn walk(args: &TableArgs) -> Vec<(String, Option<String>, String)> {
    let mut taken = Taken::default();
    let _ = Table::new(args).unwrap().walk(&mut taken);
    taken.0
}

fn row(name: &str, text: &str, picture: &str) -> (String, Option<String>, String) {
    (name.to_owned(), Some(text.to_owned()), picture.to_owned())
}

#[test]
fn lines_that_are_no_rows_are_told_and_the_others_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let contents = "{\"image\": \"a.png\", \"caption\": \"one\"}\n\nnonsense\n{\"caption\": \"x\"}\n\
                    {\"image\": 3, \"caption\": \"x\"}\n[1]\n{\"image\": null}\n\
                    {\"image\": \"https://b/c.png\", \"caption\": \"two\"}\n{\"image\": \"d.png\", \"caption\": null}";
    let mut args = table(dir.path(), "a.jsonl", contents);
    let found = walk(&args);
    assert_eq!(found[0], row("a.png", "one", "a.png"));
    assert_eq!(found[6], row("https://b/c.png", "two", "https://b/c.png"));
    assert_eq!(found[7], ("d.png".to_owned(), None, "d.png".to_owned()));
    assert_eq!(found.len(), 8);
    for (place, told) in [
        (1, "expected ident"),
        (2, "it has no image"),
        (3, "image holds no text but a number"),
        (4, "invalid type: sequence"),
        (5, "image is null"),
    ] {
        let (name, _, reason) = &found[place];
        assert!(name.ends_with(&format!("a.jsonl#{place}")), "{name}");
        assert!(
            reason.starts_with("! ") && reason.contains(told),
            "{reason}"
        );
    }
    args.images = Some("pictures".into());
    assert_eq!(walk(&args)[0], row("a.png", "one", "pictures/a.png"));
    args.text_column = "text".to_owned();
    assert!(walk(&args)[0].2.contains("it has no text"));
}

#[test]
fn records_of_another_length_are_told_and_the_others_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let contents = "caption,image,n\none,a.png,1\ntwo,b.png\n\"th\nree\",c.png,3\nfour,,4\n";
    let args = table(dir.path(), "a.csv", contents);
    let found = walk(&args);
    assert_eq!(found[0], row("a.png", "one", "a.png"));
    assert!(
        found[1].2.contains("2 cells, and the header has 3"),
        "{found:?}"
    );
    assert_eq!(found[2], row("c.png", "th\nree", "c.png"));
    assert!(found[3].2.contains("no picture in this row"), "{found:?}");
    assert_eq!(found.len(), 4);
    let args = TableArgs {
        image_column: Some("picture".to_owned()),
        ..args
    };
    let found = walk(&args);
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .2
            .contains("there is no column picture among caption, image, n"),
        "{found:?}"
    );
}

#[test]
fn what_is_kept_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let jsonl = "{ \"image\":\"a\" ,\"n\":1.0}\n{\"image\":\"b\"}\r\n\n{}\n";
    let csv = "image,n\na,1.0\nb,\"x,\"\"y\"\nc,\n";
    let scores = Scores {
        similarity: Some(0.123_46),
        probability: None,
    };
    let kept = |number: u64| (number != 1).then_some(scores);
    for (name, contents, plain, scored) in [
        (
            "a.jsonl",
            jsonl,
            "{ \"image\":\"a\" ,\"n\":1.0}\n{}\n",
            "{ \"image\":\"a\" ,\"n\":1.0,\"similarity\":0.1235,\"probability\":null}\n\
             {\"similarity\":0.1235,\"probability\":null}\n",
        ),
        (
            "a.csv",
            csv,
            "image,n\na,1.0\nc,\n",
            "image,n,similarity,probability\na,1.0,0.1235,\nc,,0.1235,\n",
        ),
    ] {
        let table = Table::new(&table(dir.path(), name, contents)).unwrap();
        for (has_scores, expected) in [(false, plain), (true, scored)] {
            let mut out = Vec::new();
            table.write(&mut out, has_scores, &kept).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}

#[test]
fn a_damaged_parquet_file_is_told_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let golden =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/retrieval/pairs.parquet");
    let whole = std::fs::read(golden).unwrap();
    let args = table(dir.path(), "a.parquet", "");
    let out = dir.path().join("out.parquet");
    let kept = |number: u64| number.is_multiple_of(2).then(Scores::default);
    for at in (0..whole.len()).step_by(whole.len() / 100) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&args.table, &bytes).unwrap();
        let table = Table::new(&args).unwrap();
        // Some bytes are a picture's own, or nobody's.
        let _ = table.copy(&out, false, &kept);
        let _ = table.check_scores();
        assert!(!walk(&args).is_empty());
    }
}
