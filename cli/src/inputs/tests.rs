#![allow(clippy::panic, clippy::unwrap_used)]

use super::feed::Walk;
use super::*;

/// Takes all, and none again that it was told to leave out.
#[derive(Default)]
struct Taken {
    left_out: Vec<String>,
    asked: Vec<String>,
    items: Vec<Item>,
}

impl Visitor for Taken {
    fn wants(&mut self, name: &str) -> bool {
        self.asked.push(name.to_owned());
        !self.left_out.iter().any(|left_out| left_out == name)
    }

    fn take(&mut self, item: Item) -> ControlFlow<()> {
        self.items.push(item);
        ControlFlow::Continue(())
    }
}

impl Taken {
    fn names(&self) -> Vec<&str> {
        self.items.iter().map(|item| item.name.as_str()).collect()
    }

    /// Names of what has no bytes, with the reasons.
    fn reasons<'a>(&'a self) -> Vec<&'a str> {
        let reason = |item: &'a Item| match &item.picture {
            Picture::Unreadable(reason) => Some(reason.as_str()),
            _ => None,
        };
        self.items.iter().filter_map(reason).collect()
    }
}

fn inputs<'a>(inputs: impl IntoIterator<Item = &'a Path>) -> Inputs {
    Inputs {
        inputs: inputs
            .into_iter()
            .map(|path| path.as_os_str().to_owned())
            .collect(),
        separator: b'\n',
        image_column: None,
    }
}

fn walk(input: &Path) -> Taken {
    let mut taken = Taken::default();
    let _ = inputs([input]).walk(&mut taken);
    taken
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(name)
}

/// The golden pictures, in the order of `make_caption_inputs.py`.
fn contents() -> Vec<Vec<u8>> {
    ["ramp", "boxes", "circle", "face", "stripes"]
        .map(|name| std::fs::read(golden(&format!("llm/pictures/{name}.png"))).unwrap())
        .to_vec()
}

fn bytes(item: &Item) -> &[u8] {
    match &item.picture {
        Picture::Bytes(bytes) => bytes,
        _ => &[],
    }
}

#[test]
fn directories_are_searched_by_name_and_without_what_is_hidden() {
    let dir = tempfile::tempdir().unwrap();
    for path in [
        "b/2.JPG",
        "b/10.jpg",
        "a.webp",
        "c/d/e.tiff",
        ".hidden/x.png",
        "b/._2.jpg",
        "notes.txt",
        "png",
    ] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let taken = walk(dir.path());
    let root = display(dir.path());
    let names: Vec<&str> = taken
        .names()
        .into_iter()
        .map(|name| &name[root.len() + 1..])
        .collect();
    assert_eq!(names, ["a.webp", "b/10.jpg", "b/2.JPG", "c/d/e.tiff"]);
    assert_eq!(taken.reasons().len(), 0);
    let empty = tempfile::tempdir().unwrap();
    assert!(walk(empty.path()).reasons()[0].contains("no pictures"));
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("far.png"), "").unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub/near.png"), "").unwrap();
    symlink(dir.path(), dir.path().join("sub/circle")).unwrap();
    symlink(elsewhere.path(), dir.path().join("link")).unwrap();
    symlink("nowhere", dir.path().join("broken.png")).unwrap();
    symlink("nowhere", dir.path().join("broken.txt")).unwrap();
    let taken = walk(dir.path());
    let ends: Vec<&str> = taken
        .names()
        .iter()
        .map(|name| name.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(ends, ["broken.png", "far.png", "near.png"]);
    assert_eq!(taken.reasons().len(), 1);
}

#[test]
fn patterns_match_below_and_a_file_with_such_a_name_is_itself() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", "b.png", ".c.png", "d[1].png", "sub/e.png"] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let names = |pattern: &str| {
        let taken = walk(&dir.path().join(pattern));
        let root = display(dir.path()).len() + 1;
        let names = taken
            .names()
            .into_iter()
            .map(|name| name[root..].to_owned());
        (names.collect::<Vec<_>>(), taken.reasons().len())
    };
    assert_eq!(
        names("?.png"),
        (vec!["a.png".to_owned(), "b.png".to_owned()], 0)
    );
    assert_eq!(
        names("**/*.png").0,
        ["a.png", "b.png", "d[1].png", "sub/e.png"]
    );
    assert_eq!(names("d[1].png"), (vec!["d[1].png".to_owned()], 0));
    assert_eq!(names("*.gif").1, 1);
    assert_eq!(names("a[").1, 1);
    assert_eq!(names("absent.png").1, 1);
}

#[test]
fn patterns_find_what_they_found_and_nothing_hidden() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "a/b/c/1.png",
        "a/b/2.png",
        "a/3.png",
        "a/.4.png",
        ".h/5.png",
        "a/.h/6.png",
        "7.PNG",
        "e.png/8.txt",
        "e.png/x/9.png",
    ] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let root = dir.path().display();
    // What the glob library finds, where all names are UTF-8.
    for pattern in [
        "*",
        "**",
        "**/",
        "*/",
        "**/*",
        "**/*.png",
        "**/**/?.png",
        "a/**/*.png",
        "a/**",
        "**/b/**/*.png",
        "**/b/2.png",
        "**/2.png",
        "**/2.PNG",
        "A/*.png",
        "?/*.PNG",
        "*/*/*.png",
        "a//b/*.png",
        "./a/./*.png",
        "a/../a/*.png",
        "a/[!3].png",
        ".h/*.png",
        "**/.h/*.png",
        "[ea]*/*",
        "*.png/",
        "nowhere/*.png",
        "a/3.png/*",
    ] {
        let pattern = format!("{root}/{pattern}");
        let options = glob::MatchOptions {
            require_literal_leading_dot: true,
            require_literal_separator: true,
            ..glob::MatchOptions::default()
        };
        let expected: Vec<PathBuf> = glob::glob_with(&pattern, options)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let mut found = Vec::new();
        let _ = Expansion::new(&pattern).unwrap().walk(&mut |path, read| {
            read.unwrap();
            found.push(path.to_owned());
            ControlFlow::Continue(())
        });
        assert_eq!(found, expected, "{pattern}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn patterns_find_names_that_are_not_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let names: [&[u8]; 3] = [b"a.png", b"caf\xe9.png", b"d\xff/e.png"];
    for name in names {
        let path = dir.path().join(OsStr::from_bytes(name));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    let found = |pattern: &str| {
        let taken = walk(&dir.path().join(pattern));
        let file = |item: &Item| match &item.picture {
            Picture::File(path) => path.strip_prefix(dir.path()).unwrap().to_owned(),
            other => panic!("{other:?}"),
        };
        taken.items.iter().map(file).collect::<Vec<_>>()
    };
    let paths = names.map(|name| PathBuf::from(OsStr::from_bytes(name)));
    assert_eq!(found("*.png"), paths[..2]);
    assert_eq!(found("caf?.png"), paths[1..2]);
    assert_eq!(found("d?/*.png"), paths[2..]);
    assert_eq!(found("**/*.png"), paths);
    // In the output, they stay apart.
    let taken = walk(dir.path());
    let root = display(dir.path()).len() + 1;
    let names: Vec<&str> = taken.names().iter().map(|name| &name[root..]).collect();
    assert_eq!(names, ["a.png", r"caf\xE9.png", r"d\xFF/e.png"]);
}

#[cfg(unix)]
#[test]
fn patterns_follow_links_but_not_in_circles() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub/a.png"), "").unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("sub/circle")).unwrap();
    std::os::unix::fs::symlink("sub", dir.path().join("way")).unwrap();
    let taken = walk(&dir.path().join("**/*.png"));
    let root = display(dir.path()).len() + 1;
    let names: Vec<&str> = taken.names().iter().map(|name| &name[root..]).collect();
    assert_eq!(names, ["sub/a.png", "way/a.png"]);
}

#[test]
fn lists_have_one_input_a_line_or_between_nuls() {
    let mut taken = Taken::default();
    let mut inputs = inputs([]);
    let _ = inputs.list(
        &mut &b"http://a/1.png\r\n\nHTTPS://a/ 2.png\nhttp://a/3.png"[..],
        &mut taken,
    );
    assert_eq!(
        taken.names(),
        ["http://a/1.png", "HTTPS://a/ 2.png", "http://a/3.png"]
    );
    inputs.separator = 0;
    let mut taken = Taken::default();
    let _ = inputs.list(&mut &b"http://a/\n1.png\0http://a/2.png\0"[..], &mut taken);
    assert_eq!(taken.names(), ["http://a/\n1.png", "http://a/2.png"]);
}

#[test]
fn webdatasets_shards() {
    for name in ["shard.tar", "shard.tar.gz"] {
        let path = golden("caption").join(name);
        let taken = walk(&path);
        assert_eq!(
            taken.items.iter().map(bytes).collect::<Vec<_>>(),
            contents()
        );
        let keys: Vec<&str> = taken
            .items
            .iter()
            .filter_map(|item| item.key.as_deref())
            .collect();
        assert_eq!(
            keys,
            [
                "sample/ramp",
                "sample/boxes",
                "sample/circle",
                "sample/face",
                "sample/stripes"
            ]
        );
        assert_eq!(
            taken.names()[3],
            format!("{}/sample/face.png", path.display())
        );
        // What is left out is not read, and what follows is.
        let mut rest = Taken {
            left_out: taken.names()[..4]
                .iter()
                .map(|&name| name.to_owned())
                .collect(),
            ..Taken::default()
        };
        let _ = inputs([path.as_path()]).walk(&mut rest);
        assert_eq!(rest.asked, taken.names());
        assert_eq!(
            (rest.items.len(), bytes(&rest.items[0])),
            (1, contents()[4].as_slice())
        );
    }
}

/// An archive of a picture and what leads to it.
fn linked(archive: impl std::io::Write) {
    use ::tar::EntryType::{Directory, Fifo, Link, Symlink};
    let mut builder = ::tar::Builder::new(archive);
    let mut header = ::tar::Header::new_gnu();
    let contents = &contents()[0];
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    builder
        .append_data(&mut header, "a/whole.png", contents.as_slice())
        .unwrap();
    for (kind, name, target) in [
        (Link, "hard.png", "./a/whole.png"),
        (Symlink, "b/soft.png", "../a/whole.png"),
        (Link, "chain.bin", "hard.png"),
        (Link, "chain.png", "chain.bin"),
        (Link, "gone.png", "a/gone.png"),
        (Symlink, "out.png", "../../whole.png"),
        (Symlink, "absolute.png", "/a/whole.png"),
        (Fifo, "fifo.png", ""),
        (Directory, "directory.png", ""),
    ] {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        match target {
            "" => {
                header.set_path(name).unwrap();
                header.set_cksum();
                builder.append(&header, std::io::empty()).unwrap();
            }
            target => builder.append_link(&mut header, name, target).unwrap(),
        }
    }
    builder.finish().unwrap();
}

#[test]
fn links_in_shards_are_what_they_lead_to_or_say_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("links.tar");
    linked(std::fs::File::create(&path).unwrap());
    let taken = walk(&path);
    let ends: Vec<(&str, usize)> = (taken.items.iter())
        .map(|item| (item.name.rsplit(".tar/").next().unwrap(), bytes(item).len()))
        .collect();
    let whole = contents()[0].len();
    assert_eq!(
        ends,
        [
            ("a/whole.png", whole),
            ("hard.png", whole),
            ("b/soft.png", whole),
            ("chain.png", whole),
            ("gone.png", 0),
            ("out.png", 0),
            ("absolute.png", 0),
            ("fifo.png", 0),
        ]
    );
    assert_eq!(bytes(&taken.items[1]), contents()[0]);
    let reasons = taken.reasons();
    assert!(
        reasons[0].contains("gone.png: this is a link to a/gone.png"),
        "{reasons:?}"
    );
    assert!(reasons[3].contains("no file"), "{reasons:?}");
    // What a link leads to is found where only the link is new.
    let mut rest = Taken {
        left_out: vec![taken.names()[0].to_owned()],
        ..Taken::default()
    };
    let _ = inputs([path.as_path()]).walk(&mut rest);
    assert_eq!(bytes(&rest.items[0]), contents()[0]);

    let path = dir.path().join("links.tar.gz");
    let file = std::fs::File::create(&path).unwrap();
    let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    linked(&mut gz);
    gz.finish().unwrap();
    let taken = walk(&path);
    assert_eq!((taken.items.len(), taken.reasons().len()), (8, 7));
    assert!(taken.reasons()[0].contains("not compressed"));
}

#[test]
fn a_shard_that_breaks_off_gives_what_it_has_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing, a part of a header, and a part of the second picture.
    for (name, lengths) in [("shard.tar", [0, 1, 3600]), ("shard.tar.gz", [0, 1, 700])] {
        let whole = std::fs::read(golden("caption").join(name)).unwrap();
        let cut = dir.path().join(name);
        for length in lengths {
            std::fs::write(&cut, &whole[..length]).unwrap();
            let taken = walk(&cut);
            let pictures = taken
                .items
                .iter()
                .filter(|item| !bytes(item).is_empty())
                .count();
            assert!(pictures < 5, "{length}");
            assert_eq!(
                taken.reasons().len(),
                1,
                "{name} of {length} bytes: {:?}",
                taken.reasons()
            );
        }
    }
}

#[test]
fn columns_of_datasets_and_of_plain_bytes() {
    for name in ["datasets.parquet", "bytes.parquet"] {
        let path = golden("caption").join(name);
        let taken = walk(&path);
        assert_eq!(
            taken.items.iter().map(bytes).collect::<Vec<_>>(),
            contents(),
            "{name}"
        );
        let names: Vec<String> = (0..5)
            .map(|row| format!("{}#{row}", path.display()))
            .collect();
        assert_eq!(taken.names(), names);
        let mut rest = Taken {
            left_out: [0, 1, 2, 4].map(|row| names[row].clone()).to_vec(),
            ..Taken::default()
        };
        let _ = inputs([path.as_path()]).walk(&mut rest);
        assert_eq!(
            rest.items.iter().map(bytes).collect::<Vec<_>>(),
            [&contents()[3]]
        );
    }
}

#[test]
fn columns_of_paths_and_urls() {
    let path = golden("caption/paths.parquet");
    let taken = walk(&path);
    let found: Vec<String> = taken
        .items
        .iter()
        .map(|item| format!("{:?}", item.picture))
        .collect();
    assert!(
        found[0].starts_with("File") && found[0].contains("caption/../llm/pictures/ramp.png"),
        "{found:?}"
    );
    assert!(found[2].contains("no picture in this row"));
    assert_eq!(found[3], "Url(\"http://127.0.0.1/a.png\")");
}

#[test]
fn a_column_is_named_where_there_are_several() {
    let with_column = |name: &str, column: &str| {
        let mut taken = Taken::default();
        let path = golden("caption").join(name);
        let mut inputs = inputs([path.as_path()]);
        inputs.image_column = Some(column.to_owned());
        let _ = inputs.walk(&mut taken);
        taken.items
    };
    assert_eq!(with_column("bytes.parquet", "jpg").len(), 5);
    for (name, column, told) in [
        (
            "bytes.parquet",
            "picture",
            "there is no column picture among id, jpg",
        ),
        ("datasets.parquet", "label", "neither bytes nor text"),
    ] {
        match &with_column(name, column)[0].picture {
            Picture::Unreadable(reason) => assert!(reason.contains(told), "{reason}"),
            other => assert!(matches!(other, Picture::Unreadable(_)), "{other:?}"),
        }
    }
}

#[test]
fn a_damaged_parquet_file_is_told_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(golden("caption/datasets.parquet")).unwrap();
    let path = dir.path().join("damaged.parquet");
    for i in 0..whole.len() / 40 {
        let mut bytes = whole.clone();
        bytes[i * 40] ^= 0x55;
        std::fs::write(&path, &bytes).unwrap();
        // Some bytes are a picture's own, or nobody's.
        assert!(!walk(&path).items.is_empty());
    }
    for length in [0, 3, 8, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(walk(&path).reasons().len(), 1);
    }
}
