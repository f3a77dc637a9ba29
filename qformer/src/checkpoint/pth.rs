//! `.pth` and `.bin` files as `torch.save` writes them: a zip archive of a
//! pickle, `data.pkl`, and one uncompressed entry for each storage.
//!
//! Nothing is unpacked. The pickle says where each tensor lies in its storage,
//! the archive where the storage lies in the file, and so a tensor is a range
//! of the file's bytes. Reference: `torch/serialization.py` and
//! `torch/_utils.py`, `_rebuild_tensor_v2`.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;

use safetensors::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Pickle, Value};
use super::read_at;

/// Published checkpoints' pickles are below 1 MB.
const MAX_PICKLE: u64 = 64 << 20;

/// Where training programs put the weights beside the optimizer's state.
const MODEL_KEY: &str = "model";

/// A tensor in the file.
#[derive(Debug)]
pub(super) struct PthTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of the file.
    pub range: Range<u64>,
}

/// The tensors of a state dictionary: the whole file, or its `model`. What is
/// no tensor is left out; the error says what is wrong.
pub(super) fn tensors(file: &File) -> Result<Vec<PthTensor>, String> {
    let mut magic = [0; 4];
    if read_at(file, &mut magic, 0).is_err() || &magic != b"PK\x03\x04" {
        return Err(
            "not a zip archive, which torch.save writes since PyTorch 1.6: load it and save it again"
                .to_owned(),
        );
    }
    let entries = entries(file)?;
    let mut pickles = entries
        .iter()
        .filter(|(name, _)| name.as_str() == "data.pkl" || name.ends_with("/data.pkl"));
    let (Some((name, range)), None) = (pickles.next(), pickles.next()) else {
        return Err("not a file of torch.save: it has no single data.pkl".to_owned());
    };
    let folder = name.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(order) = entries.get(&format!("{folder}byteorder"))
        && read(file, order)? == b"big"
    {
        return Err("its numbers are big-endian, which is not read".to_owned());
    }
    let pickle = Pickle::read(&read(file, range)?).map_err(|reason| format!("{name}: {reason}"))?;
    let reader = Reader {
        pickle: &pickle,
        entries: &entries,
        folder,
    };
    reader.state_dict()
}

/// A small entry's bytes.
fn read(file: &File, range: &Range<u64>) -> Result<Vec<u8>, String> {
    let n = range.end - range.start;
    if n > MAX_PICKLE {
        return Err(format!(
            "its pickle has {n} bytes, more than any checkpoint's (limit {MAX_PICKLE})"
        ));
    }
    let mut bytes = vec![0; n as usize];
    read_at(file, &mut bytes, range.start).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Names of the archive's entries, with their bytes of the file.
fn entries(file: &File) -> Result<HashMap<String, Range<u64>>, String> {
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
        format!("the archive has no end, as after a download that was cut short ({error}): fetch it again")
    })?;
    let mut entries = HashMap::new();
    for index in 0..archive.len() {
        let damaged = |error: zip::result::ZipError| format!("damaged archive: {error}");
        let entry = archive.by_index_raw(index).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(format!("{name} is compressed, which torch.save never does"));
        }
        let range = entry
            .data_start()
            .and_then(|start| Some(start..start.checked_add(entry.size())?))
            .filter(|range| range.end <= size)
            .ok_or_else(|| format!("damaged archive: {name} ends after the file"))?;
        if entries.insert(name.clone(), range).is_some() {
            return Err(format!("damaged archive: {name} is in it twice"));
        }
    }
    Ok(entries)
}

struct Reader<'a> {
    pickle: &'a Pickle,
    entries: &'a HashMap<String, Range<u64>>,
    folder: &'a str,
}

impl Reader<'_> {
    fn state_dict(&self) -> Result<Vec<PthTensor>, String> {
        let root = self.pickle.root();
        let pairs = self
            .pickle
            .dict(root)
            .ok_or("it holds no state dictionary")?;
        let model = pairs
            .iter()
            .find(|(key, _)| self.pickle.text(*key) == Some(MODEL_KEY))
            .and_then(|(_, model)| self.pickle.dict(*model));
        let mut tensors = Vec::new();
        for (key, value) in model.unwrap_or(pairs) {
            let (Some(name), Some(args)) = (self.pickle.text(*key), self.tensor_args(*value))
            else {
                continue;
            };
            tensors.push(
                self.tensor(name, args)
                    .map_err(|reason| format!("tensor {name}: {reason}"))?,
            );
        }
        if tensors.is_empty() {
            return Err("its state dictionary holds no tensors".to_owned());
        }
        Ok(tensors)
    }

    /// The arguments of `_rebuild_tensor_v2`, where the value is its call.
    fn tensor_args(&self, value: Id) -> Option<&[Id]> {
        let call = |value| match self.pickle.get(value) {
            Value::Call { function, args } => {
                Some((self.pickle.global(*function)?, self.pickle.tuple(*args)?))
            }
            _ => None,
        };
        match call(value)? {
            ("torch._utils._rebuild_parameter", [data, ..]) => match call(*data)? {
                ("torch._utils._rebuild_tensor_v2", args) => Some(args),
                _ => None,
            },
            ("torch._utils._rebuild_tensor_v2", args) => Some(args),
            _ => None,
        }
    }

    /// `args`: storage, offset in elements, size, stride, and what does not
    /// matter here.
    fn tensor(&self, name: &str, args: &[Id]) -> Result<PthTensor, String> {
        let [storage, offset, shape, strides, ..] = args else {
            return Err("its call lacks arguments".to_owned());
        };
        let (dtype, entry) = self.storage(*storage)?;
        let sizes = |id: Id| -> Option<Vec<usize>> {
            let items = self.pickle.tuple(id)?;
            items.iter().map(|item| self.pickle.size(*item)).collect()
        };
        let shape = sizes(*shape).ok_or("its shape is no list of sizes")?;
        let strides = sizes(*strides).ok_or("its strides are no list of sizes")?;
        let offset = self.pickle.size(*offset).ok_or("its offset is no size")?;
        let overflow = "its size is beyond any file's";
        let mut count: usize = 1;
        if shape.len() != strides.len() {
            return Err(format!("shape {shape:?} has strides {strides:?}"));
        }
        for (size, stride) in shape.iter().zip(&strides).rev() {
            if *size > 1 && *stride != count {
                return Err(format!(
                    "shape {shape:?} has strides {strides:?}; save a contiguous copy of it"
                ));
            }
            count = count.checked_mul(*size).ok_or(overflow)?;
        }
        let width = dtype.bitsize() / 8;
        let start = offset.checked_mul(width).ok_or(overflow)?;
        let end = count
            .checked_mul(width)
            .and_then(|bytes| bytes.checked_add(start))
            .ok_or(overflow)?;
        let (start, end) = (start as u64, end as u64);
        let stored = entry.end - entry.start;
        if end > stored {
            return Err(format!(
                "it needs {end} bytes of a storage that has {stored}"
            ));
        }
        Ok(PthTensor {
            name: name.to_owned(),
            dtype,
            shape,
            range: entry.start + start..entry.start + end,
        })
    }

    /// A storage, `("storage", type, key, location, elements)`.
    fn storage(&self, id: Id) -> Result<(Dtype, Range<u64>), String> {
        let parts = match self.pickle.get(id) {
            Value::Persistent(parts) => self.pickle.tuple(*parts),
            _ => None,
        };
        let Some([_, class, key, ..]) = parts else {
            return Err("it has no storage".to_owned());
        };
        let class = self.pickle.global(*class).unwrap_or_default();
        let dtype = match class {
            "torch.FloatStorage" => Dtype::F32,
            "torch.HalfStorage" => Dtype::F16,
            "torch.BFloat16Storage" => Dtype::BF16,
            "torch.DoubleStorage" => Dtype::F64,
            "torch.LongStorage" => Dtype::I64,
            "torch.IntStorage" => Dtype::I32,
            "torch.ShortStorage" => Dtype::I16,
            "torch.CharStorage" => Dtype::I8,
            "torch.ByteStorage" => Dtype::U8,
            "torch.BoolStorage" => Dtype::BOOL,
            _ => return Err(format!("its storage is a {class:?}, which is not known")),
        };
        let key = self.pickle.text(*key).ok_or("its storage has no name")?;
        let name = format!("{}data/{key}", self.folder);
        match self.entries.get(&name) {
            Some(entry) => Ok((dtype, entry.clone())),
            None => Err(format!("its storage {name} is not in the archive")),
        }
    }
}
