//! Vectors of pictures in a graph, and what is nearest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use usearch::{IndexOptions, MetricKind, ScalarKind};

use crate::file::{self, About, Contents};
use crate::{Error, Result};

/// Neighbours of a vector in the graph, and vectors that are looked at for one that is added: measured in
/// `benches/vectors.rs`.
const CONNECTIVITY: usize = 16;
const EXPANSION_ADD: usize = 128;

/// Vectors that are looked at in a search, at least.
const EXPANSION_SEARCH: usize = 128;

/// Pictures, in memory or mapped from a file.
pub struct Index {
    vectors: usearch::Index,
    contents: Contents,
}

/// A picture that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Its place in the index, for [`Index::name`].
    pub picture: usize,
    /// The mean, over the rows that were asked for, of the largest cosine with any row of the picture, from -1 to 1.
    pub similarity: f32,
}

impl Index {
    /// An index without pictures.
    ///
    /// # Errors
    /// The sizes are none.
    pub fn new(about: About) -> Result<Index> {
        let vectors = vectors(&about)?;
        let names = Vec::new();
        Ok(Index {
            vectors,
            contents: Contents { about, names },
        })
    }

    /// Opens an index to search it: it is mapped into memory, and nothing can be added.
    ///
    /// # Errors
    /// The file cannot be read, is no index, or is damaged.
    pub fn open(path: &Path) -> Result<Index> {
        Self::read(path, usearch::Index::view)
    }

    /// Reads an index to add to it.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn load(path: &Path) -> Result<Index> {
        Self::read(path, usearch::Index::load)
    }

    fn read<E: std::fmt::Display>(
        path: &Path,
        read: impl FnOnce(&usearch::Index, &str) -> Result<(), E>,
    ) -> Result<Index> {
        let contents = file::read(path)?;
        let About {
            dimensions, rows, ..
        } = contents.about;
        let vectors = vectors(&contents.about)?;
        read(&vectors, utf8(path)?)
            .map_err(|error| Error::damaged(path, format!("usearch: {error}")))?;
        let n_vectors = contents.names.len().checked_mul(rows);
        if vectors.dimensions() != dimensions || Some(vectors.size()) != n_vectors {
            let reason = format!(
                "{} vectors of {} numbers, and {} pictures have {rows} each of {dimensions}",
                vectors.size(),
                vectors.dimensions(),
                contents.names.len()
            );
            return Err(Error::damaged(path, reason));
        }
        Ok(Index { vectors, contents })
    }

    /// What the index is of.
    pub fn about(&self) -> &About {
        &self.contents.about
    }

    /// How many pictures are in it.
    pub fn len(&self) -> usize {
        self.contents.names.len()
    }

    /// Whether no picture is in it.
    pub fn is_empty(&self) -> bool {
        self.contents.names.is_empty()
    }

    /// What a picture is called; nothing where there is no such picture.
    pub fn name(&self, picture: usize) -> &str {
        self.contents.names.get(picture).map_or("", String::as_str)
    }

    /// What all pictures are called, in their order.
    pub fn names(&self) -> &[String] {
        &self.contents.names
    }

    /// Adds pictures by name with their features `[rows, dimensions]`, row after row, on all threads.
    ///
    /// # Errors
    /// Features have another shape, and nothing is added; or memory is short, after which the index is of no use.
    pub fn add(&mut self, pictures: Vec<(String, Vec<f32>)>) -> Result<()> {
        let (rows, dimensions) = (self.about().rows, self.about().dimensions);
        for (name, features) in &pictures {
            self.check(name, features, rows)?;
        }
        let first = self.len();
        let n_vectors = (first + pictures.len()) * rows;
        if n_vectors > self.vectors.capacity() {
            // Room for twice as many, so that adding a few at a time copies little.
            let capacity = n_vectors.next_power_of_two();
            (self.vectors)
                .reserve_capacity_and_threads(capacity, rayon::current_num_threads())
                .map_err(Error::library)?;
        }
        let add = |(picture, (_, features)): (usize, &(String, Vec<f32>))| {
            let keys = (first + picture) * rows..;
            let mut rows = keys.zip(features.chunks_exact(dimensions));
            rows.try_for_each(|(key, row)| self.vectors.add(key as u64, row))
        };
        // The first vectors one after the other: added at the same time they do not see each other, and the graph may never
        // lead to one of them.
        let alone = EXPANSION_ADD.saturating_sub(first * rows).div_ceil(rows);
        let (alone, others) = pictures.split_at(alone.min(pictures.len()));
        (alone.iter().enumerate().try_for_each(add))
            .and_then(|()| {
                let others = others.par_iter().enumerate();
                others
                    .map(|(n, picture)| (alone.len() + n, picture))
                    .try_for_each(add)
            })
            .map_err(Error::library)?;
        let names = pictures.into_iter().map(|(name, _)| name);
        self.contents.names.extend(names);
        Ok(())
    }

    /// Writes the index at once in place of what was at `path`.
    ///
    /// # Errors
    /// It cannot be written; what was there is as it was.
    pub fn save(&self, path: &Path) -> Result<()> {
        let new = beside(path, ".new");
        let written = (self.vectors.save(utf8(&new)?))
            .map_err(Error::library)
            .and_then(|()| file::finish(&new, &self.contents))
            .and_then(|()| std::fs::rename(&new, path).map_err(Error::io(path)));
        if written.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        written
    }

    /// The `k` pictures that are nearest to `query` `[any number of rows, dimensions]`, best first, as far as the graph
    /// finds them.
    ///
    /// # Errors
    /// `query` has another shape, or memory is short.
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        self.check_query(query)?;
        // Of so few a search may look at all, whether the graph leads to them or not.
        if self.vectors.size() <= EXPANSION_SEARCH {
            return self.best(query, 0..self.len(), k);
        }
        let mut found = BTreeSet::new();
        for row in query.chunks_exact(self.about().dimensions) {
            found.extend(self.nearest(row, k)?);
        }
        self.best(query, found.into_iter(), k)
    }

    /// The same by a look at every picture.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn search_exact(&self, query: &[f32], k: usize) -> Result<Vec<Hit>> {
        self.check_query(query)?;
        self.best(query, 0..self.len(), k)
    }

    /// At least `k` pictures, where there are as many, by their nearest row.
    fn nearest(&self, row: &[f32], k: usize) -> Result<BTreeSet<usize>> {
        let (rows, size) = (self.about().rows, self.vectors.size());
        if size == 0 || k == 0 {
            return Ok(BTreeSet::new());
        }
        // Rows of one picture are near each other, and so found together.
        let mut n_vectors = k.saturating_mul(4).min(size);
        loop {
            let matches = (self.vectors)
                .search(row, n_vectors)
                .map_err(Error::library)?;
            let pictures = matches.keys.iter().map(|&key| key as usize / rows);
            let pictures: BTreeSet<usize> = pictures.filter(|&p| p < self.len()).collect();
            if pictures.len() >= k || n_vectors >= size {
                return Ok(pictures);
            }
            n_vectors = n_vectors.saturating_mul(2).min(size);
        }
    }

    fn best(
        &self,
        query: &[f32],
        pictures: impl Iterator<Item = usize>,
        k: usize,
    ) -> Result<Vec<Hit>> {
        let About {
            dimensions, rows, ..
        } = self.contents.about;
        let mut features = vec![0.0; rows * dimensions];
        let mut hits = Vec::new();
        for picture in pictures {
            for (key, row) in (picture * rows..).zip(features.chunks_exact_mut(dimensions)) {
                let n = self.vectors.get(key as u64, row).map_err(Error::library)?;
                if n != 1 {
                    return Err(Error::Library(format!("vector {key} is there {n} times")));
                }
            }
            hits.push(Hit {
                picture,
                similarity: similarity(query, &features, dimensions),
            });
        }
        let order = |a: &Hit, b: &Hit| {
            let by_similarity = b.similarity.total_cmp(&a.similarity);
            by_similarity.then(a.picture.cmp(&b.picture))
        };
        hits.sort_by(order);
        hits.truncate(k);
        Ok(hits)
    }

    fn check_query(&self, query: &[f32]) -> Result<()> {
        let n_rows = query.len() / self.about().dimensions;
        self.check("what is searched for", query, n_rows.max(1))
    }

    fn check(&self, what: &str, features: &[f32], n_rows: usize) -> Result<()> {
        let About {
            dimensions, rows, ..
        } = self.contents.about;
        match features.len() == n_rows * dimensions && features.iter().all(|x| x.is_finite()) {
            true => Ok(()),
            false => Err(Error::Shape {
                what: what.to_owned(),
                found: features.len(),
                dimensions,
                rows,
            }),
        }
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("about", self.about())
            .field("pictures", &self.len())
            .finish_non_exhaustive()
    }
}

/// The mean, over the rows of `query`, of the largest cosine with any row of `features`.
fn similarity(query: &[f32], features: &[f32], dimensions: usize) -> f32 {
    let rows = query.chunks_exact(dimensions);
    let n = rows.len().max(1) as f32;
    let largest = |row: &[f32]| {
        let cosines = features
            .chunks_exact(dimensions)
            .map(|other| dot(row, other));
        cosines.fold(f32::NEG_INFINITY, f32::max)
    };
    rows.map(largest).sum::<f32>() / n
}

/// In eight sums, which a compiler puts side by side.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        for (sum, (x, y)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += x * y;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

/// Vectors of an index, none yet. Rows have length 1, so inner products are cosines; in f16 they are off by 1e-4 at most.
fn vectors(about: &About) -> Result<usearch::Index> {
    if about.dimensions == 0 || about.rows == 0 {
        return Err(Error::Shape {
            what: "a new index".to_owned(),
            found: 0,
            dimensions: about.dimensions,
            rows: about.rows,
        });
    }
    usearch::Index::new(&IndexOptions {
        dimensions: about.dimensions,
        metric: MetricKind::IP,
        quantization: ScalarKind::F16,
        connectivity: CONNECTIVITY,
        expansion_add: EXPANSION_ADD,
        expansion_search: EXPANSION_SEARCH,
        multi: false,
    })
    .map_err(Error::library)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        let error = std::io::Error::other("the name of an index must be UTF-8");
        Error::io(path)(error)
    })
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}
