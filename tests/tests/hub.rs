//! Fetching from a hub that breaks off, lies, refuses and moves. What the
//! program makes of what is fetched is in `pull.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hub::{Cache, Client, ClientOptions, Tensors, Token};
use qbridge_tests::hub::{Files, Hub, MODEL, Reply, Request, files_of, part, safetensors};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const SMALL: [&str; 3] = [
    "config.json",
    "qformer_tokenizer/vocab.txt",
    "not_there.json",
];
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn noise(n: usize) -> Vec<u8> {
    (0..n as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// A model of two shards, with files that are not for us.
fn model() -> Files {
    let llm = noise(500_000);
    let weight_map = json!({
        "vision_model.a": FIRST, "language_model.x": FIRST, "qformer.b": FIRST,
        "query_tokens": FIRST, "language_model.y": SECOND, "language_projection.c": SECOND,
    });
    let files: [(&str, Vec<u8>); 6] = [
        ("config.json", b"{\"model_type\": \"blip-2\"}".to_vec()),
        ("README.md", b"# nothing for us".to_vec()),
        ("qformer_tokenizer/vocab.txt", b"[PAD]\n".to_vec()),
        (
            FIRST,
            safetensors(&[
                ("vision_model.a", &noise(100_000)),
                ("language_model.x", &llm),
                ("qformer.b", &noise(300)),
                ("query_tokens", &noise(7)),
            ]),
        ),
        (
            SECOND,
            safetensors(&[
                ("language_model.y", &llm),
                ("language_projection.c", &noise(64)),
            ]),
        ),
        (
            INDEX,
            json!({"weight_map": weight_map}).to_string().into_bytes(),
        ),
    ];
    files.map(|(path, bytes)| (path.to_owned(), bytes)).into()
}

fn client_of(hub: &Hub, token: Option<&str>) -> Client {
    Client::new(ClientOptions {
        token: token.map(|token| Token::new(token).unwrap()),
        retries: 3,
        backoff: Duration::from_millis(1),
        ..ClientOptions::new(hub.endpoint.parse().unwrap())
    })
}

const VISION: Tensors = Tensors::Only {
    label: "vision",
    is_wanted: &|name| !name.starts_with("language_model."),
};

/// Fetches `main` into a cache at `dir`: where it is, and the bytes that the
/// progress was told of.
fn fetch(client: Option<&Client>, dir: &Path, tensors: Tensors) -> hub::Result<(PathBuf, u64)> {
    let (model, main) = (MODEL.parse().unwrap(), "main".parse().unwrap());
    let snapshot = Cache::new(dir).snapshot(client, &model, &main, &SMALL)?;
    let weights = snapshot.weights(tensors)?;
    let told = Cell::new(0);
    let dir = weights.fetch(&|n| told.set(told.get() + n))?;
    Ok((dir, told.get()))
}

fn fetch_from(hub: &Hub, dir: &TempDir, tensors: Tensors) -> hub::Result<(PathBuf, u64)> {
    fetch(Some(&client_of(hub, None)), dir.path(), tensors)
}

/// Where the whole of the model is, or will be.
fn place(hub: &Hub, dir: &TempDir, files: &Files) -> PathBuf {
    dir.path().join(MODEL).join(hub.push(files))
}

#[track_caller]
fn assert_whole(dir: &Path, files: &Files) {
    let found = files_of(dir);
    let expected: BTreeSet<&String> = files.keys().filter(|name| *name != "README.md").collect();
    assert_eq!(found.keys().collect::<BTreeSet<_>>(), expected);
    for (name, bytes) in &found {
        assert!(*bytes == files[name], "{name} is another one");
    }
}

/// Tensors of a safetensors file by name.
fn tensors_of(file: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), view.data().to_vec()));
    tensors.collect()
}

#[track_caller]
fn assert_vision_side(dir: &Path) {
    let expected: BTreeMap<String, Vec<u8>> = [
        ("vision_model.a", noise(100_000)),
        ("qformer.b", noise(300)),
        ("query_tokens", noise(7)),
        ("language_projection.c", noise(64)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    assert!(tensors_of(&dir.join("model.safetensors")) == expected);
    let names: Vec<String> = files_of(dir).into_keys().collect();
    assert_eq!(
        names,
        [
            "config.json",
            "model.safetensors",
            "qformer_tokenizer/vocab.txt"
        ]
    );
}

#[test]
fn a_model_is_fetched_whole_and_once() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::of(&files);
    let (place, told) = fetch_from(&hub, &dir, Tensors::All).unwrap();
    assert_whole(&place, &files);
    assert_eq!(told, (files[FIRST].len() + files[SECOND].len()) as u64);
    let (again, told) = fetch_from(&hub, &dir, Tensors::All).unwrap();
    assert_eq!((again, told), (place, 0));
    assert_eq!(hub.asked("/resolve/").len(), 5);
    assert_eq!(hub.asked("/api/").len(), 2);
}

#[test]
fn broken_connections_are_resumed() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    // Ten breaks, more than are taken without anything new between them.
    let hub = Hub::start(&files, |request, before, reply| {
        match request.is_cdn && request.path.ends_with(FIRST) && before < 10 {
            true => reply.cut_after(40_000),
            false => reply,
        }
    });
    let (place, told) = fetch_from(&hub, &dir, Tensors::All).unwrap();
    assert_whole(&place, &files);
    assert_eq!(told, (files[FIRST].len() + files[SECOND].len()) as u64);
    let asked: Vec<Request> = hub
        .asked(FIRST)
        .into_iter()
        .filter(|request| request.is_cdn)
        .collect();
    assert_eq!(asked[0].headers.get("range"), None);
    assert_eq!(asked[1].range(files[FIRST].len()).unwrap().0, 40_000);
    assert!(asked[1].headers["if-range"].starts_with('"'));
    assert_eq!(asked[10].range(files[FIRST].len()).unwrap().0, 400_000);
}

#[test]
fn what_an_earlier_run_left_is_gone_on_with_or_begun_anew() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::of(&files);
    let place = place(&hub, &dir, &files);
    std::fs::create_dir_all(&place).unwrap();
    let left = |name: &str, bytes: &[u8]| std::fs::write(place.join(name), bytes).unwrap();
    left(&format!("{SECOND}.part"), &files[SECOND][..1234]);
    // Of another version, which shows when it is whole.
    left(&format!("{FIRST}.part"), &noise(5000));
    // Longer than the file is.
    left("config.json.part", &noise(900));
    assert_whole(&fetch_from(&hub, &dir, Tensors::All).unwrap().0, &files);
    let starts = |name: &str| {
        let asked = hub.asked(name).into_iter().filter(|request| request.is_cdn);
        asked
            .map(|request| request.range(0).map(|range| range.0))
            .collect::<Vec<_>>()
    };
    assert_eq!(starts(SECOND), [Some(1234)]);
    assert_eq!(starts(FIRST), [Some(5000), None]);
}

#[test]
fn a_file_that_changes_while_it_is_fetched_begins_anew() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let other = noise(files[FIRST].len());
    // The first answer has the wrong content and mark, and breaks off.
    let hub = Hub::start(&files, move |request, before, reply| {
        match request.is_cdn && request.path.ends_with(FIRST) && before == 0 {
            true => part(request, &other).cut_after(40_000),
            false => reply,
        }
    });
    assert_whole(&fetch_from(&hub, &dir, Tensors::All).unwrap().0, &files);
    // The second was the whole file, since the mark was another.
    assert_eq!(
        hub.asked(FIRST)
            .iter()
            .filter(|request| request.is_cdn)
            .count(),
        2
    );
}

#[test]
fn a_hub_that_knows_no_ranges_sends_files_whole() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let all = files.clone();
    let hub = Hub::start(&files, move |request, before, reply| {
        let Some(name) = all
            .keys()
            .find(|name| request.is_cdn && request.path.ends_with(*name))
        else {
            return reply;
        };
        match before {
            0 => Reply::ok(&all[name][..]).cut_after(40_000),
            _ => Reply::ok(&all[name][..]),
        }
    });
    let (place, _) = fetch_from(&hub, &dir, VISION).unwrap();
    assert_whole(&place, &files);
}

/// Fetching must fail; what it says. What is left under a file's name is right.
#[track_caller]
fn refused(faults: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static) -> String {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::start(&files, faults);
    let error = fetch_from(&hub, &dir, Tensors::All)
        .unwrap_err()
        .to_string();
    let place = place(&hub, &dir, &files);
    for (name, bytes) in files_of(dir.path()) {
        let name = dir.path().join(name);
        let Ok(name) = name.strip_prefix(&place) else {
            continue;
        };
        let name = name.to_str().unwrap();
        assert!(
            name.ends_with(".part") || bytes == files[name],
            "{name} is wrong and has its name"
        );
    }
    error
}

/// What is answered for one file, at its origin.
fn instead_of(
    name: &'static str,
    answer: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static {
    move |request, _, reply| match request.path.ends_with(name) && reply.status < 300 {
        true => answer(request, reply),
        false => reply,
    }
}

#[test]
fn lies_about_hashes_and_lengths_are_refused() {
    let damaged = |name: &'static str| {
        let mut bytes = model().remove(name).unwrap();
        bytes[5] ^= 1;
        bytes
    };
    let error = refused(instead_of(FIRST, move |request, _| {
        part(request, &damaged(FIRST))
    }));
    assert!(
        error.contains(FIRST) && error.contains("and it lists"),
        "{error}"
    );
    // A small file has a hash too.
    let error = refused(instead_of("config.json", move |request, _| {
        part(request, &damaged("config.json"))
    }));
    assert!(
        error.contains("config.json") && error.contains("and it lists"),
        "{error}"
    );

    let error = refused(instead_of(FIRST, |_, mut reply| {
        reply.body.push(0);
        reply
    }));
    assert!(error.contains("more than the 600"), "{error}");
    // Promised, and never sent.
    let error = refused(instead_of(FIRST, |_, reply| reply.cut_after(9)));
    assert!(error.contains("given up after 4 attempts"), "{error}");
    // Always the beginning, whatever is asked for.
    let error = refused(instead_of(FIRST, |_, reply| Reply {
        status: 200,
        ..reply.cut_after(40_000)
    }));
    assert!(error.contains("given up"), "{error}");
    // Parts of something else.
    let error = refused(instead_of(FIRST, |request, reply| match request.range(0) {
        None => reply.cut_after(999),
        Some(_) => Reply::with(206, "content-range: bytes 0-9/10"),
    }));
    assert!(error.contains("another part"), "{error}");
}

#[test]
fn a_length_that_is_told_too_short_is_not_believed() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::start(
        &files,
        instead_of(FIRST, |request, reply| match request.range(0) {
            None => Reply {
                length: Some(reply.body.len() - 9),
                ..reply
            },
            Some(_) => reply,
        }),
    );
    assert_whole(&fetch_from(&hub, &dir, Tensors::All).unwrap().0, &files);
}

#[test]
fn refusals_say_what_to_do() {
    let always = |status| move |_: &Request, _, _| Reply::status(status);
    let coded = |status, code: &'static str| {
        move |_: &Request, _, _| Reply::with(status, format!("x-error-code: {code}"))
    };
    for (error, words) in [
        (refused(always(401)), ["there is no such model", "HF_TOKEN"]),
        (refused(always(403)), ["private or gated", "HF_TOKEN"]),
        (
            refused(coded(403, "GatedRepo")),
            ["terms must be accepted", "/owner/model, then set HF_TOKEN"],
        ),
        (
            refused(always(404)),
            ["no such model, revision or file", "404"],
        ),
        (
            refused(coded(404, "RevisionNotFound")),
            ["no such revision", "404"],
        ),
        (
            refused(always(418)),
            ["an answer that a hub does not give", "418"],
        ),
        (
            refused(always(503)),
            ["busy or broken (status 503)", "given up after 4 attempts"],
        ),
        (
            refused(|_, _, _| Reply::ok("<html>")),
            ["not what a hub answers", "/api/models/"],
        ),
        (
            refused(|_, _, _| Reply::with(429, "retry-after: 3600")),
            ["429", "come back in 3600 s"],
        ),
        (
            refused(|_, _, _| Reply::with(302, "location: /again")),
            ["redirects", "more than 5"],
        ),
        (
            refused(|_, _, _| Reply::with(302, "location: file:///etc/passwd")),
            ["nowhere safe", "/api/"],
        ),
        (
            refused(|_, _, _| Reply::ok("{\"sha\": \"main\", \"siblings\": []}")),
            ["no commit", "sha"],
        ),
    ] {
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let client = client_of(&Hub::start(&files, always(401)), Some("hf_wrong"));
    let error = fetch(Some(&client), dir.path(), Tensors::All)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the token in HF_TOKEN may not read it"),
        "{error}"
    );
    assert!(!error.contains("hf_wrong"), "{error}");
}

#[test]
fn a_busy_hub_is_asked_again() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::start(&files, |request, before, reply| {
        match (before, request.is_cdn) {
            (0, false) => Reply::with(429, "retry-after: 0"),
            (0 | 1, true) => Reply::status(503),
            _ => reply,
        }
    });
    assert_whole(&fetch_from(&hub, &dir, Tensors::All).unwrap().0, &files);
}

#[test]
fn a_retry_after_is_waited_for() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::start(&files, |request, before, reply| {
        match request.path.contains("/api/") && before == 0 {
            true => Reply::with(429, "retry-after: 1"),
            false => reply,
        }
    });
    let start = std::time::Instant::now();
    fetch_from(&hub, &dir, Tensors::All).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn the_token_goes_to_the_hub_and_not_where_it_redirects() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::of(&files);
    let client = client_of(&hub, Some("hf_secret"));
    assert_whole(
        &fetch(Some(&client), dir.path(), Tensors::All).unwrap().0,
        &files,
    );
    let (cdn, origin): (Vec<Request>, Vec<Request>) = hub
        .asked("")
        .into_iter()
        .partition(|request| request.is_cdn);
    assert_eq!((cdn.len(), origin.len()), (2, 6));
    for request in origin {
        assert_eq!(request.headers["authorization"], "Bearer hf_secret");
    }
    for request in cdn {
        assert_eq!(request.headers.get("authorization"), None);
    }
}

#[test]
fn a_model_that_was_renamed_is_found() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::start(&files, |request, _, reply| {
        match request.path.split_once("/old/name/") {
            Some((start, rest)) => Reply::with(307, format!("location: {start}/{MODEL}/{rest}")),
            None => reply,
        }
    });
    let client = client_of(&hub, Some("hf_secret"));
    let (old, main) = ("old/name".parse().unwrap(), "main".parse().unwrap());
    let snapshot = Cache::new(dir.path())
        .snapshot(Some(&client), &old, &main, &SMALL)
        .unwrap();
    let weights = snapshot.weights(Tensors::All).unwrap();
    assert_whole(&weights.fetch(&|_| ()).unwrap(), &files);
    for request in hub.asked("").iter().filter(|request| !request.is_cdn) {
        assert_eq!(request.headers["authorization"], "Bearer hf_secret");
    }
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    for name in [
        "../evil.safetensors",
        "/evil.safetensors",
        "a/evil.safetensors",
        "evil.sh",
    ] {
        let mut files = model();
        let index = json!({"weight_map": {"vision_model.a": name}}).to_string();
        files.insert(INDEX.to_owned(), index.into_bytes());
        files.insert(name.to_owned(), noise(99));
        files.insert("qformer_tokenizer/../../evil".to_owned(), noise(99));
        for tensors in [Tensors::All, VISION] {
            let dir = tempfile::tempdir().unwrap();
            let hub = Hub::of(&files);
            let error = fetch_from(&hub, &dir, tensors).unwrap_err().to_string();
            assert!(
                error.contains("no plain file name") && error.contains(name),
                "{error}"
            );
            let names: Vec<String> = files_of(dir.path()).into_keys().collect();
            assert!(names.iter().all(|name| !name.contains("evil")), "{names:?}");
        }
    }
}

#[test]
fn an_index_without_its_shard_is_refused() {
    let (mut files, dir) = (model(), tempfile::tempdir().unwrap());
    files.remove(SECOND);
    let error = fetch_from(&Hub::of(&files), &dir, Tensors::All)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(SECOND) && error.contains("does not have"),
        "{error}"
    );
    files.retain(|name, _| !name.starts_with("model"));
    let error = fetch_from(&Hub::of(&files), &dir, Tensors::All)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("no checkpoint that transformers saved"),
        "{error}"
    );
}

#[test]
fn offline_takes_what_is_there_and_names_what_is_not() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let offline = |tensors| fetch(None, dir.path(), tensors);
    let error = offline(Tensors::All).unwrap_err().to_string();
    assert!(error.contains("owner/model@main: offline"), "{error}");
    assert!(!dir.path().join("owner").exists());

    let hub = Hub::of(&files);
    let (part, _) = fetch_from(&hub, &dir, VISION).unwrap();
    assert_eq!(offline(VISION).unwrap(), (part, 0));
    let error = offline(Tensors::All).unwrap_err().to_string();
    assert!(
        error.contains(&format!("not fetched before: {FIRST}, {SECOND}")),
        "{error}"
    );

    let (whole, _) = fetch_from(&hub, &dir, Tensors::All).unwrap();
    let before = hub.asked("").len();
    assert_eq!(offline(Tensors::All).unwrap(), (whole.clone(), 0));
    std::fs::remove_file(whole.join(SECOND)).unwrap();
    let error = offline(Tensors::All).unwrap_err().to_string();
    assert!(
        error.contains(&format!("not fetched before: {SECOND}")),
        "{error}"
    );
    assert_eq!(hub.asked("").len(), before);
}

#[test]
fn a_revision_is_looked_up_once_and_its_commit_is_kept_to() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::of(&files);
    let old = hub.push(&files);
    let client = client_of(&hub, None);
    let (name, main) = (MODEL.parse().unwrap(), "main".parse().unwrap());
    let cache = Cache::new(dir.path());
    let snapshot = cache.snapshot(Some(&client), &name, &main, &SMALL).unwrap();
    let weights = snapshot.weights(Tensors::All).unwrap();
    // The branch moves while the model is fetched.
    let mut newer = files.clone();
    newer.insert(
        FIRST.to_owned(),
        safetensors(&[("vision_model.a", &noise(9))]),
    );
    let new = hub.push(&newer);
    let place = weights.fetch(&|_| ()).unwrap();
    assert_whole(&place, &files);
    assert!(place.ends_with(&old));
    drop(weights);
    drop(snapshot);
    assert_whole(&fetch_from(&hub, &dir, Tensors::All).unwrap().0, &newer);
    // A commit is known by its name: nothing is asked for again.
    let before = hub.asked("").len();
    for (commit, files) in [(&old, &files), (&new, &newer)] {
        let revision = commit.parse().unwrap();
        let snapshot = cache
            .snapshot(Some(&client), &name, &revision, &SMALL)
            .unwrap();
        assert_eq!(snapshot.commit(), commit);
        assert_whole(
            &snapshot
                .weights(Tensors::All)
                .unwrap()
                .fetch(&|_| ())
                .unwrap(),
            files,
        );
    }
    assert_eq!(hub.asked("").len(), before);
}

#[test]
fn only_the_wanted_tensors_are_asked_for() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    // Every stretch of data breaks off once.
    let hub = Hub::start(&files, |request, before, reply| {
        let is_data = request.range(0).is_some_and(|(start, _)| start > 8);
        match request.is_cdn && is_data && before % 2 == 0 {
            true => reply.cut_after(5),
            false => reply,
        }
    });
    let (place, told) = fetch_from(&hub, &dir, VISION).unwrap();
    assert_vision_side(&place);
    assert_eq!(told, 100_000 + 300 + 7 + 64);
    // qformer.b and query_tokens touch, and are one range.
    let ranges: BTreeSet<usize> = hub
        .asked("")
        .iter()
        .filter(|request| request.is_cdn)
        .map(|request| request.range(0).unwrap().1)
        .collect();
    let ends = |name: &str, ends: &[usize]| {
        let header = u64::from_le_bytes(files[name][..8].try_into().unwrap()) as usize + 8;
        let ends = ends.iter().map(move |end| header + end);
        ends.chain([8, header]).collect::<Vec<_>>()
    };
    let mut expected = ends(FIRST, &[100_000, 600_307]);
    expected.extend(ends(SECOND, &[500_064]));
    assert_eq!(ranges, expected.into_iter().collect());
    // The whole of the model is taken where it is there.
    let (whole, _) = fetch_from(&hub, &dir, Tensors::All).unwrap();
    assert_eq!(fetch_from(&hub, &dir, VISION).unwrap(), (whole, 0));
}

#[test]
fn an_interrupted_fetch_of_tensors_goes_on() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let (place, _) = fetch_from(&Hub::of(&files), &dir, VISION).unwrap();
    let path = place.join("model.safetensors");
    let part = place.join("model.safetensors.part");
    let whole = std::fs::read(&path).unwrap();
    for (left, missing) in [
        (whole[..whole.len() - 200].to_vec(), 200),
        // Of another commit: the beginning tells.
        (whole[8..].to_vec(), 100_371),
        ([&whole[..], &[0]].concat(), 100_371),
        (whole[..20].to_vec(), 100_371),
        (whole.clone(), 0),
    ] {
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&part, left).unwrap();
        let hub = Hub::of(&files);
        fetch_from(&hub, &dir, VISION).unwrap();
        assert!(std::fs::read(&path).unwrap() == whole);
        assert!(!part.exists());
        let data = hub
            .asked("/blob/")
            .into_iter()
            .filter_map(|request| request.range(0));
        let headers = [FIRST, SECOND]
            .map(|name| u64::from_le_bytes(files[name][..8].try_into().unwrap()) as usize + 8);
        let asked: usize = data.map(|(start, end)| end - start).sum();
        assert_eq!(asked - headers.iter().sum::<usize>(), missing);
    }
}

#[test]
fn tensors_that_change_while_they_are_read_are_refused() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let mut other = files[FIRST].clone();
    other[50_000] ^= 1;
    let hub = Hub::start(
        &files,
        instead_of(FIRST, move |request, reply| match request.range(0) {
            Some((start, _)) if start > 8 => part(request, &other),
            _ => reply,
        }),
    );
    let error = fetch_from(&hub, &dir, VISION).unwrap_err().to_string();
    assert!(error.contains("changed while it was read"), "{error}");
    // A hub that does not heed If-Range, but tells the mark.
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(
        &files,
        instead_of(FIRST, |request, mut reply| {
            if request.range(0).is_some_and(|(start, _)| start > 8) {
                reply.headers.retain(|header| !header.starts_with("etag"));
                reply.headers.push("etag: \"another\"".to_owned());
            }
            reply
        }),
    );
    let error = fetch_from(&hub, &dir, VISION).unwrap_err().to_string();
    assert!(error.contains("changed while it was read"), "{error}");
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let shard = |header: &str, data: usize| {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), &vec![0; data]].concat()
    };
    let tensor = r#"{"qformer.x":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#;
    for (bytes, words) in [
        (u64::MAX.to_le_bytes().to_vec(), "header of"),
        (
            [&u64::MAX.to_le_bytes()[..], &[0; 99]].concat(),
            "header of",
        ),
        (shard("{not json}", 9), "safetensors header"),
        (
            shard(tensor, 8),
            "tells of 9 bytes of tensors, and 8 follow",
        ),
        (
            shard(&tensor.replace("[9]", "[10]"), 9),
            "safetensors header",
        ),
        (
            shard(&tensor.replace("qformer", "language_model"), 9),
            "none of the tensors",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("config.json", b"{}".to_vec()),
            ("model.safetensors", bytes),
        ];
        let files = files.map(|(name, bytes)| (name.to_owned(), bytes)).into();
        let error = fetch_from(&Hub::of(&files), &dir, VISION)
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let (mut files, dir) = (model(), tempfile::tempdir().unwrap());
    files.insert(
        SECOND.to_owned(),
        safetensors(&[
            ("language_projection.c", &noise(64)),
            ("qformer.b", &noise(300)),
        ]),
    );
    let error = fetch_from(&Hub::of(&files), &dir, VISION)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("qformer.b is in another shard too"),
        "{error}"
    );
}

#[test]
fn pickles_are_fetched_whole() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        ("config.json", b"{}".to_vec()),
        ("pytorch_model.bin", noise(70_000)),
    ];
    let files: Files = files.map(|(name, bytes)| (name.to_owned(), bytes)).into();
    let (place, told) = fetch_from(&Hub::of(&files), &dir, VISION).unwrap();
    assert_whole(&place, &files);
    assert_eq!(told, 70_000);
}

#[test]
fn two_at_once_fetch_each_file_once() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::start(&files, |_, _, reply| {
        std::thread::sleep(Duration::from_millis(30));
        reply
    });
    std::thread::scope(|scope| {
        let fetch = || assert_whole(&fetch_from(&hub, &dir, Tensors::All).unwrap().0, &files);
        for one in [scope.spawn(fetch), scope.spawn(fetch)] {
            one.join().unwrap();
        }
    });
    assert_eq!(hub.asked("/resolve/").len(), 5);
    assert_eq!(hub.asked("/blob/").len(), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_called_that() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::of(&files);
    let place = place(&hub, &dir, &files);
    std::fs::create_dir_all(&place).unwrap();
    let part = place.join(format!("{FIRST}.part"));
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let error = fetch_from(&hub, &dir, Tensors::All).unwrap_err();
    assert!(matches!(error, hub::Error::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    std::fs::remove_file(&part).unwrap();
    assert_whole(&fetch_from(&hub, &dir, Tensors::All).unwrap().0, &files);
}

#[test]
fn more_than_the_disk_has_room_for_is_not_begun() {
    let (files, dir) = (model(), tempfile::tempdir().unwrap());
    let hub = Hub::start(&files, |request, _, mut reply| {
        if request.path.contains("/api/") {
            let mut listing: Value = serde_json::from_slice(&reply.body).unwrap();
            for file in listing["siblings"].as_array_mut().unwrap() {
                if file["rfilename"] == FIRST {
                    file["lfs"]["size"] = json!(1_u64 << 60);
                }
            }
            reply.body = listing.to_string().into_bytes();
        }
        reply
    });
    let error = fetch_from(&hub, &dir, Tensors::All).unwrap_err();
    assert!(matches!(error, hub::Error::NoRoom { .. }), "{error}");
    assert!(hub.asked(FIRST).is_empty());
}

/// A safetensors header of tensors of so many bytes, and the size of the file
/// that it begins.
fn header_of(tensors: &[(String, u64)]) -> (Vec<u8>, u64) {
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, bytes) in tensors {
        let info =
            json!({"dtype": "F32", "shape": [bytes / 4], "data_offsets": [end, end + bytes]});
        header.insert(name.clone(), info);
        end += bytes;
    }
    let text = Value::Object(header).to_string();
    let file = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let size = file.len() as u64 + end;
    (file, size)
}

#[test]
fn of_instructblip_vicuna_7b_a_seventh_is_to_be_fetched() {
    // Bytes by the published shapes, in f32 and the published order, a layer as one.
    let mut tensors = vec![
        ("query_tokens".to_owned(), 98_304),
        ("vision_model.embeddings".to_owned(), 4_781_568),
        ("qformer.embeddings".to_owned(), 95_345_664),
        ("language_projection".to_owned(), 12_599_296),
        ("language_model.lm_head".to_owned(), 524_304_384),
        ("language_model.model.embed_tokens".to_owned(), 524_304_384),
        ("language_model.model.norm".to_owned(), 16_384),
    ];
    let layers = |name: &'static str, count, bytes: [u64; 2]| {
        (0..count).map(move |i| (format!("{name}.{i}"), bytes[i % 2]))
    };
    tensors.extend(layers("vision_model.encoder.layers", 39, [101_000_704; 2]));
    tensors.extend(layers(
        "qformer.encoder.layer",
        12,
        [60_635_136, 47_247_360],
    ));
    tensors.extend(layers("language_model.model.layers", 32, [809_533_440; 2]));
    let total: u64 = tensors.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(total, 31_652_842_496);
    tensors.sort_by_key(|(name, _)| name.starts_with("language_model"));

    // In shards of 10 GB, within which names are sorted.
    let mut shards: Vec<Vec<(String, u64)>> = vec![Vec::new()];
    let mut in_last = 0;
    for (name, bytes) in tensors {
        if in_last + bytes > 10_000_000_000 {
            shards.push(Vec::new());
            in_last = 0;
        }
        in_last += bytes;
        shards.last_mut().unwrap().push((name, bytes));
    }
    assert_eq!(shards.len(), 4);
    let mut weight_map = BTreeMap::new();
    let mut remote = BTreeMap::new();
    for (i, mut shard) in shards.into_iter().enumerate() {
        shard.sort();
        let file = format!("model-0000{}-of-00004.safetensors", i + 1);
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
        remote.insert(file, header_of(&shard));
    }
    let index = json!({"weight_map": weight_map}).to_string().into_bytes();
    let files = [
        ("config.json".to_owned(), b"{}".to_vec()),
        (INDEX.to_owned(), index),
    ]
    .into();
    let hub = Hub::start(&files, move |request, _, mut reply| {
        if request.path.contains("/api/") {
            let mut listing: Value = serde_json::from_slice(&reply.body).unwrap();
            let siblings = listing["siblings"].as_array_mut().unwrap();
            siblings.extend(remote.iter().map(|(name, (_, size))| {
                json!({"rfilename": name, "lfs": {"sha256": "0".repeat(64), "size": size}})
            }));
            reply.body = listing.to_string().into_bytes();
        }
        let shard = remote
            .iter()
            .find(|(name, _)| request.path.ends_with(*name));
        let Some((_, (header, size))) = shard else {
            return reply;
        };
        let (start, end) = request.range(0).unwrap();
        Reply {
            body: header[start..end].to_vec(),
            ..Reply::with(
                206,
                format!("content-range: bytes {start}-{}/{size}", end - 1),
            )
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let client = client_of(&hub, None);
    let (model, main) = (MODEL.parse().unwrap(), "main".parse().unwrap());
    let snapshot = Cache::new(dir.path())
        .snapshot(Some(&client), &model, &main, &SMALL)
        .unwrap();
    assert_eq!(snapshot.weights(VISION).unwrap().bytes(), 4_699_147_264);
    // Length and header of the one shard that holds any of it.
    let asked = hub.asked(".safetensors");
    let asked = asked
        .iter()
        .filter(|request| !request.path.ends_with(".json"));
    let paths: Vec<&str> = asked
        .map(|request| request.path.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(paths, ["model-00001-of-00004.safetensors"; 2]);
}
