//! An index finds what a look at every picture finds, keeps what it holds, and refuses what is none.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::Path;

use search::{About, Error, Hit, Index};

const DIMENSIONS: usize = 24;

fn about(rows: usize) -> About {
    About {
        bundle: "tiny".to_owned(),
        bundle_hash: "a41f".to_owned(),
        bundle_dir: "bundles/tiny".into(),
        dimensions: DIMENSIONS,
        rows,
        image_column: None,
    }
}

fn row(random: &mut fastrand::Rng) -> Vec<f32> {
    let row: Vec<f32> = (0..DIMENSIONS).map(|_| random.f32() - 0.5).collect();
    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
    row.into_iter().map(|x| x / length).collect()
}

fn pictures(n: usize, rows: usize, seed: u64) -> Vec<(String, Vec<f32>)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut features = || (0..rows).flat_map(|_| row(&mut random)).collect();
    (0..n)
        .map(|i| (format!("{seed}/{i}"), features()))
        .collect()
}

/// The mean, over the rows of `query`, of the largest cosine, in f64.
fn expected(pictures: &[(String, Vec<f32>)], query: &[f32], k: usize) -> Vec<(usize, f64)> {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    let similarity = |features: &[f32]| {
        let rows = query.chunks(DIMENSIONS);
        let n = rows.len() as f64;
        let largest = |row: &[f32]| {
            features
                .chunks(DIMENSIONS)
                .map(|other| dot(row, other))
                .fold(-1.0, f64::max)
        };
        rows.map(largest).sum::<f64>() / n
    };
    let mut scored: Vec<(usize, f64)> = pictures
        .iter()
        .map(|(_, features)| similarity(features))
        .enumerate()
        .collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1));
    scored.truncate(k);
    scored
}

#[test]
fn all_is_found_that_a_look_at_everything_finds() {
    for rows in [1, 7] {
        let pictures = pictures(500, rows, 3);
        let mut index = Index::new(about(rows)).unwrap();
        index.add(pictures.clone()).unwrap();
        let mut random = fastrand::Rng::with_seed(9);
        let (mut found, mut n) = (0, 0);
        for i in 0..50 {
            let query: Vec<f32> = (0..1 + i % 3).flat_map(|_| row(&mut random)).collect();
            let expected = expected(&pictures, &query, 10);
            let exact = index.search_exact(&query, 10).unwrap();
            for (hit, (_, similarity)) in exact.iter().zip(&expected) {
                assert!((f64::from(hit.similarity) - similarity).abs() < 3e-4);
            }
            let hits = index.search(&query, 10).unwrap();
            assert_eq!(hits.len(), 10);
            found += hits.iter().filter(|hit| exact.contains(hit)).count();
            n += 10;
        }
        let recall = found as f64 / n as f64;
        assert!(recall > 0.9, "{recall} of {rows} rows");
    }
}

#[test]
fn what_is_written_is_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.index");
    let (first, second) = (pictures(80, 3, 1), pictures(40, 3, 2));
    let query = row(&mut fastrand::Rng::with_seed(5));
    let search = |index: &Index| -> Vec<(String, f32)> {
        let hits = index.search_exact(&query, 200).unwrap();
        let named = |hit: &Hit| (index.name(hit.picture).to_owned(), hit.similarity);
        hits.iter().map(named).collect()
    };
    let mut index = Index::new(about(3)).unwrap();
    assert!(index.is_empty() && search(&index).is_empty());
    index.add(first.clone()).unwrap();
    index.save(&path).unwrap();
    let found = search(&index);
    assert_eq!(found.len(), 80);
    let opened = Index::open(&path).unwrap();
    assert_eq!((opened.about(), opened.len()), (&about(3), 80));
    assert_eq!(search(&opened), found);
    // More is added to what was read, and written over it while it is open elsewhere.
    let mut loaded = Index::load(&path).unwrap();
    loaded.add(second.clone()).unwrap();
    loaded.save(&path).unwrap();
    assert_eq!(search(&opened), found);
    let more = Index::open(&path).unwrap();
    assert_eq!(more.len(), 120);
    let mut all: Vec<String> = search(&more).into_iter().map(|(name, _)| name).collect();
    let mut names: Vec<String> = first
        .into_iter()
        .chain(second)
        .map(|(name, _)| name)
        .collect();
    all.sort();
    names.sort();
    assert_eq!(all, names);
    assert!(!dir.path().join("a.index.new").exists());
    // An index without pictures is one, too.
    Index::new(about(1)).unwrap().save(&path).unwrap();
    assert!(Index::open(&path).unwrap().is_empty());
}

#[test]
fn features_of_another_shape_are_refused() {
    let mut index = Index::new(about(2)).unwrap();
    let wrong = vec![("a.png".to_owned(), vec![0.5; DIMENSIONS])];
    let error = index.add(wrong).unwrap_err().to_string();
    assert_eq!(
        error,
        "a.png: 24 numbers, and the index holds rows of 24, 2 of each picture"
    );
    assert!(index.is_empty());
    for query in [&[][..], &[0.1; DIMENSIONS + 1]] {
        assert!(matches!(index.search(query, 3), Err(Error::Shape { .. })));
    }
    assert!(
        Index::new(About {
            dimensions: 0,
            ..about(1)
        })
        .is_err()
    );
}

#[test]
fn damage_is_told_and_never_searched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.index");
    let mut index = Index::new(about(2)).unwrap();
    index.add(pictures(30, 2, 1)).unwrap();
    index.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Index::open(&path).unwrap_err()
    };
    for at in (0..whole.len()).step_by(101) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        assert!(matches!(
            open(&bytes),
            Error::Damaged { .. } | Error::NotAnIndex { .. } | Error::Format { .. }
        ));
    }
    for length in [0, 31, 32, whole.len() - 1] {
        assert!(matches!(open(&whole[..length]), Error::NotAnIndex { .. }));
    }
    // Cut in the middle, with the end as it was.
    let cut = [&whole[..200], &whole[300..]].concat();
    let told = open(&cut).to_string();
    assert!(told.contains("the index is damaged: parts of"), "{told}");
    let later = {
        let mut bytes = whole.clone();
        let format = bytes.len() - 24;
        bytes[format] = 9;
        bytes
    };
    assert!(open(&later).to_string().contains("format 9"));
    let absent = Index::open(Path::new("/nowhere/a.index")).unwrap_err();
    assert!(matches!(absent, Error::Io { .. }));
}
