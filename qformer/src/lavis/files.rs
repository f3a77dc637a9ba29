//! Several `.pth` files as one set of tensors.

use std::path::PathBuf;

use crate::checkpoint::{Checkpoint, RawTensor};
use crate::{Error, Result};

/// More blocks than any tower has.
const MAX_COUNT: usize = 1000;

#[derive(Debug)]
pub(super) struct Files {
    paths: Vec<PathBuf>,
    checkpoints: Vec<Checkpoint>,
}

impl Files {
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        Ok(Self {
            paths: paths.to_vec(),
            checkpoints: paths
                .iter()
                .map(|path| Checkpoint::from_pth(path))
                .collect::<Result<_>>()?,
        })
    }

    /// What is wrong with the files together.
    pub fn error(&self, reason: String) -> Error {
        Error::Parts {
            files: self.names(),
            reason,
        }
    }

    fn names(&self) -> String {
        let names: Vec<String> = self
            .paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        names.join(", ")
    }

    /// The tensor `name`, if it is in one of the files.
    ///
    /// # Errors
    /// It is in two.
    pub fn find(&self, name: &str) -> Result<Option<RawTensor<'_>>> {
        let mut found = self
            .checkpoints
            .iter()
            .filter_map(|checkpoint| checkpoint.raw(name).ok());
        match (found.next(), found.next()) {
            (Some(first), Some(second)) => Err(Error::DuplicateTensor {
                tensor: name.to_owned(),
                first: first.path.to_owned(),
                second: second.path.to_owned(),
            }),
            (first, _) => Ok(first),
        }
    }

    pub fn get(&self, name: &str) -> Result<RawTensor<'_>> {
        self.find(name)?.ok_or_else(|| Error::MissingTensor {
            files: self.names(),
            tensor: name.to_owned(),
        })
    }

    /// The shape of a tensor of `N` dimensions.
    pub fn dims<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let tensor = self.get(name)?;
        tensor.shape.try_into().map_err(|_| {
            self.error(format!(
                "{name} has shape {:?}, expected {N} dimensions",
                tensor.shape
            ))
        })
    }

    /// How many of `{before}0{after}`, `{before}1{after}` and so on there are.
    pub fn count(&self, before: &str, after: &str) -> Result<usize> {
        let mut count = 0;
        while count < MAX_COUNT && self.find(&format!("{before}{count}{after}"))?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// The tensors with `part` in their names.
    pub fn names_containing<'a>(&'a self, part: &'a str) -> impl Iterator<Item = &'a str> {
        self.checkpoints
            .iter()
            .flat_map(Checkpoint::names)
            .filter(move |name| name.contains(part))
    }

    /// A tensor with `part` in its name.
    pub fn containing<'a>(&'a self, part: &'a str) -> Option<&'a str> {
        self.names_containing(part).next()
    }
}
