//! 100,000 stored vectors of 256 numbers: how long an index takes to build and to open, how large it is, and what a search
//! takes and finds beside a look at every picture.
//!
//!     cargo bench -p qbridge-search
//!
//! Vectors are drawn around 2,000 centres, with as much noise as centre, all of length 1; what is searched for is drawn
//! around the same centres anew. Once each vector is a picture of its own, as CLIP's are, once 32 are one, as BLIP-2's.

use std::path::Path;
use std::time::Instant;

use search::{About, Index};

const VECTORS: usize = 100_000;
const DIMENSIONS: usize = 256;
const CENTRES: usize = 2_000;
const QUERIES: usize = 1_000;
const TOP: usize = 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // As `cargo test --benches` calls it, which only asks whether it runs.
    let is_test = std::env::args().any(|arg| arg == "--test");
    let n = if is_test { 2_000 } else { VECTORS };
    println!(
        "rows a picture | build s | file MB | open ms | search p50 ms, p95 | exact p50 ms | recall@{TOP}"
    );
    for rows in [1, 32] {
        measure(n, rows, if is_test { 20 } else { QUERIES })?;
    }
    Ok(())
}

fn measure(n: usize, rows: usize, n_queries: usize) -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("qbridge-vectors-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let done = measure_in(&dir, n, rows, n_queries);
    std::fs::remove_dir_all(&dir)?;
    done
}

fn measure_in(
    dir: &Path,
    n: usize,
    rows: usize,
    n_queries: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut source = Source::new(7);
    let pictures: Vec<(String, Vec<f32>)> = (0..n / rows)
        .map(|i| (format!("{i}.jpg"), source.picture(rows)))
        .collect();
    let queries: Vec<Vec<f32>> = (0..n_queries).map(|_| source.picture(1)).collect();

    let started = Instant::now();
    let mut index = Index::new(About {
        bundle: "random".to_owned(),
        bundle_hash: "0".to_owned(),
        bundle_dir: dir.to_owned(),
        dimensions: DIMENSIONS,
        rows,
        image_column: None,
    })?;
    index.add(pictures)?;
    let path = dir.join("random.index");
    index.save(&path)?;
    let build = started.elapsed().as_secs_f64();
    drop(index);

    let megabytes = path.metadata()?.len() as f64 / 1e6;
    let started = Instant::now();
    let index = Index::open(&path)?;
    let open = started.elapsed().as_secs_f64() * 1e3;

    // Pages of the file are read by then, as they are in a program that searches more than once.
    for query in &queries {
        index.search(query, TOP)?;
    }
    let (mut times, mut exact_times, mut found) = (Vec::new(), Vec::new(), 0);
    for (i, query) in queries.iter().enumerate() {
        let started = Instant::now();
        let hits = index.search(query, TOP)?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
        if i % 10 != 0 {
            continue;
        }
        let started = Instant::now();
        let exact = index.search_exact(query, TOP)?;
        exact_times.push(started.elapsed().as_secs_f64() * 1e3);
        found += exact.iter().filter(|hit| hits.contains(hit)).count();
    }
    let recall = found as f64 / (exact_times.len() * TOP) as f64;
    println!(
        "{rows:14} | {build:7.1} | {megabytes:7.1} | {open:7.1} | {:13.2}, {:4.2} | {:12.1} | {recall:.4}",
        quantile(&mut times, 0.5),
        quantile(&mut times, 0.95),
        quantile(&mut exact_times, 0.5),
    );
    Ok(())
}

/// Vectors around centres.
struct Source {
    random: fastrand::Rng,
    centres: Vec<Vec<f32>>,
}

impl Source {
    fn new(seed: u64) -> Source {
        let mut source = Source {
            random: fastrand::Rng::with_seed(seed),
            centres: Vec::new(),
        };
        source.centres = (0..CENTRES).map(|_| source.noise()).collect();
        source
    }

    /// Rows of a picture: each around a centre of its own, as queries look at different things.
    fn picture(&mut self, rows: usize) -> Vec<f32> {
        let mut picture = Vec::with_capacity(rows * DIMENSIONS);
        for _ in 0..rows {
            let centre = self.random.usize(..self.centres.len());
            let noise = self.noise();
            let sum: Vec<f32> = self.centres[centre]
                .iter()
                .zip(&noise)
                .map(|(x, y)| x + y)
                .collect();
            picture.extend(normalized(sum));
        }
        picture
    }

    /// Of length 1, in any direction: sums of uniform numbers are near enough to normal ones.
    fn noise(&mut self) -> Vec<f32> {
        let mut number = || (0..4).map(|_| self.random.f32() - 0.5).sum();
        normalized((0..DIMENSIONS).map(|_| number()).collect())
    }
}

fn normalized(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

fn quantile(times: &mut [f64], q: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let place = (q * (times.len() as f64 - 1.0)).round() as usize;
    times.get(place).copied().unwrap_or_default()
}
