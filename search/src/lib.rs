//! Pictures by their features: one file that holds them, and what is nearest to a text or a picture.
//!
//! A picture has one or several rows of features, each of length 1: BLIP-2's Q-Former gives 32, CLIP one. How near
//! something is to a picture is the mean, over its own rows, of the largest cosine with any row of the picture. For a
//! text, which has one row, that is BLIP-2's ITC: the largest of 32 cosines.
//!
//! Every row of every picture is a vector of a graph (HNSW, Malkov and Yashunin 2016, arXiv:1603.09320, by usearch), so
//! the graph finds pictures by their nearest row, and what it finds is scored anew from all the rows that are stored.
//!
//! ```
//! use search::{About, Index};
//!
//! # fn main() -> search::Result<()> {
//! let about = About {
//!     bundle: "blip2-itm".to_owned(),
//!     bundle_hash: "a41f".to_owned(),
//!     bundle_dir: "bundles/blip2-itm".into(),
//!     dimensions: 2,
//!     rows: 2,
//!     image_column: None,
//! };
//! let mut index = Index::new(about)?;
//! index.add(vec![
//!     ("cat.png".to_owned(), vec![1.0, 0.0, 0.6, 0.8]),
//!     ("dog.png".to_owned(), vec![0.0, 1.0, 0.0, 1.0]),
//! ])?;
//! let nearest = index.search(&[0.6, 0.8], 1)?;
//! assert_eq!(index.name(nearest[0].picture), "cat.png");
//! assert!((nearest[0].similarity - 1.0).abs() < 1e-3);
//! # Ok(()) }
//! ```

mod error;
mod file;
mod index;

pub use error::{Error, Result};
pub use file::About;
pub use index::{Hit, Index};
