//! Pictures that were indexed, found again by their names.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use tokio::runtime::Runtime;

use crate::batch::Failure;
use crate::inputs::feed::Walk;
use crate::inputs::{Inputs, Item, Loader, Picture, Visitor};

/// Ends of the names of archives, and what stands between one and the name of a picture in it.
const ARCHIVES: [(&str, char); 4] = [
    (".tar", '/'),
    (".tar.gz", '/'),
    (".tgz", '/'),
    (".parquet", '#'),
];

/// Finds pictures and reads them.
pub struct Again {
    runtime: Runtime,
    loader: Loader,
    image_column: Option<String>,
}

impl Again {
    /// `image_column` is of Parquet files, as when they were indexed.
    ///
    /// # Errors
    /// TLS or a runtime cannot be set up.
    pub fn new(image_column: Option<&str>) -> Result<Again> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Again {
            runtime,
            loader: Loader::new()?,
            image_column: image_column.map(str::to_owned),
        })
    }

    /// Reads pictures, in whatever order they are found, and gives each with its place among `names`.
    ///
    /// # Errors
    /// Something that would fail for each of them.
    pub fn read(
        &mut self,
        names: &[&str],
        mut take: impl FnMut(usize, Result<Arc<[u8]>>),
    ) -> Result<()> {
        let origins: BTreeSet<&str> = names.iter().map(|name| origin(name)).collect();
        let origins: Vec<OsString> = origins.into_iter().map(OsString::from).collect();
        let places = names.iter().enumerate();
        let mut wanted = Wanted {
            places: places.map(|(place, name)| (*name, place)).collect(),
            found: Vec::new(),
        };
        let inputs = Inputs::new(&origins, false, self.image_column.as_deref());
        let _ = inputs.walk(&mut wanted);
        let Wanted { places, found } = wanted;
        for (place, picture) in found {
            match self.runtime.block_on(self.loader.load(picture, |_| Ok(()))) {
                Ok(file) => take(place, Ok(file)),
                Err(Failure::Picture(error)) => take(place, Err(anyhow!(error))),
                Err(Failure::Run(error)) => return Err(error),
            }
        }
        for place in places.into_values() {
            take(place, Err(anyhow!("it is no longer where it was indexed")));
        }
        Ok(())
    }
}

/// What to walk to come by a picture: its archive, or itself.
fn origin(name: &str) -> &str {
    if Path::new(name).is_file() {
        return name;
    }
    let archive = |(end, separator): (&str, char)| {
        let ends = name.match_indices(separator).map(|(at, _)| &name[..at]);
        let mut archives = ends.filter(|path| path.to_ascii_lowercase().ends_with(end));
        archives.find(|path| Path::new(path).is_file())
    };
    ARCHIVES.into_iter().find_map(archive).unwrap_or(name)
}

/// Takes what is wanted, and leaves what is not found.
struct Wanted<'a> {
    places: HashMap<&'a str, usize>,
    found: Vec<(usize, Picture)>,
}

impl Visitor for Wanted<'_> {
    fn wants(&mut self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    fn take(&mut self, item: Item) -> ControlFlow<()> {
        if let Some(place) = self.places.remove(item.name.as_str()) {
            self.found.push((place, item.picture));
        }
        match self.places.is_empty() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
