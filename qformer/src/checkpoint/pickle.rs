//! The data in a pickle, and nothing else.
//!
//! A pickle is a program for a stack machine, and Python's runs whatever
//! functions it names. Here a call is a value like any other, which nobody
//! makes, and a function that no tensor file has is refused by name. Values lie
//! in one arena and refer to each other by index: copies cost nothing, nesting
//! needs no stack, and there are never more values than bytes in the file.
//!
//! Opcodes: CPython, `Lib/pickletools.py`; those that PyTorch writes, and their
//! like in newer protocols.

use std::collections::HashMap;

/// Place of a value in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(usize);

#[derive(Debug)]
pub(super) enum Value {
    /// What no tensor needs: `None`, floats, booleans, bytes.
    Other,
    Int(i64),
    Text(String),
    /// A class or function: `module.name`.
    Global(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What the pickle's reader is to find: a storage.
    Persistent(Id),
    /// A call that is not made.
    Call {
        function: Id,
        args: Id,
    },
}

/// Functions and classes of tensor files. None is ever called; the list keeps
/// apart what is a checkpoint and what is not.
const KNOWN: [&str; 12] = [
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
    "__builtin__.set",
];

fn is_known(global: &str) -> bool {
    KNOWN.contains(&global) || global.starts_with("torch.") && global.ends_with("Storage")
}

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// Reads a pickle; the error says what is wrong with it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut machine = Machine {
            rest: bytes,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        Ok(Self {
            values: machine.values,
            root,
        })
    }

    pub fn root(&self) -> Id {
        self.root
    }

    pub fn get(&self, id: Id) -> &Value {
        &self.values[id.0]
    }

    /// The pairs of a dictionary.
    pub fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn global(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Global(name) => Some(name),
            _ => None,
        }
    }

    pub fn size(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }
}

struct Machine<'a> {
    rest: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Id, String> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                opcode => self.step(opcode)?,
            }
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            0x80 => self.skip(1)?,
            0x95 => self.skip(8)?,
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b'G' => {
                self.skip(8)?;
                self.push(Value::Other);
            }
            b'K' => self.int::<1>()?,
            b'M' => self.int::<2>()?,
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(value.into()));
            }
            0x8a => {
                let n = usize::from(self.byte()?);
                let bytes = self.take(n)?;
                let value = long(bytes).map_or(Value::Other, Value::Int);
                self.push(value);
            }
            b'X' => {
                let n = u32::from_le_bytes(self.array()?);
                self.text(n as usize)?;
            }
            0x8c => {
                let n = self.byte()?;
                self.text(n.into())?;
            }
            b'B' | b'T' => {
                let n = u32::from_le_bytes(self.array()?);
                self.skip(n as usize)?;
                self.push(Value::Other);
            }
            b'C' | b'U' => {
                let n = self.byte()?;
                self.skip(n.into())?;
                self.push(Value::Other);
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.push_global(format!("{module}.{name}"))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module.0], &self.values[name.0]) {
                    (Value::Text(module), Value::Text(name)) => {
                        let global = format!("{module}.{name}");
                        self.push_global(global)?;
                    }
                    _ => return Err("a name that is no text".to_owned()),
                }
            }
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(n).ok_or(EMPTY)?;
                let items = self.stack.split_off(start);
                self.push(Value::Tuple(items));
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items));
            }
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items));
            }
            b'd' => {
                let pairs = pairs(&self.pop_to_mark()?)?;
                self.push(Value::Dict(pairs));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.extend_list(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(vec![(key, value)])?;
            }
            b'u' => {
                let pairs = pairs(&self.pop_to_mark()?)?;
                self.extend_dict(pairs)?;
            }
            b'q' => {
                let key = self.byte()?;
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let key = self.byte()?;
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            b'R' | 0x81 => {
                let (args, function) = (self.pop()?, self.pop()?);
                let value = match &self.values[function.0] {
                    // Its items come afterwards, as those of a dictionary do.
                    Value::Global(name) if name.starts_with("collections.") => {
                        Value::Dict(Vec::new())
                    }
                    _ => Value::Call { function, args },
                };
                self.push(value);
            }
            // State of an object, such as a dictionary's attributes.
            b'b' => drop(self.pop()?),
            other => return Err(format!("an opcode that no tensor file has ({other:#04x})")),
        }
        Ok(())
    }

    fn take(&mut self, n: usize) -> Result<&[u8], String> {
        let (bytes, rest) = self.rest.split_at_checked(n).ok_or("it ends early")?;
        self.rest = rest;
        Ok(bytes)
    }

    fn skip(&mut self, n: usize) -> Result<(), String> {
        self.take(n).map(|_| ())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn line(&mut self) -> Result<String, String> {
        let n = self.rest.iter().position(|byte| *byte == b'\n');
        let line = self.take(n.ok_or("it ends early")?)?;
        let text = String::from_utf8_lossy(line).into_owned();
        self.skip(1)?;
        Ok(text)
    }

    /// An unsigned integer of `N` bytes.
    fn int<const N: usize>(&mut self) -> Result<(), String> {
        let bytes: [u8; N] = self.array()?;
        let value = bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | i64::from(*byte));
        self.push(Value::Int(value));
        Ok(())
    }

    fn text(&mut self, n: usize) -> Result<(), String> {
        let text = String::from_utf8_lossy(self.take(n)?).into_owned();
        self.push(Value::Text(text));
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(Id(self.values.len()));
        self.values.push(value);
    }

    fn push_global(&mut self, name: String) -> Result<(), String> {
        if !is_known(&name) {
            return Err(format!(
                "it calls {name}, which no tensor file does; nothing in it was run, and nothing should be"
            ));
        }
        self.push(Value::Global(name));
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(EMPTY.to_owned());
        }
        self.stack.pop().ok_or_else(|| EMPTY.to_owned())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or(EMPTY)?;
        if mark > self.stack.len() {
            return Err(EMPTY.to_owned());
        }
        Ok(self.stack.split_off(mark))
    }

    fn extend_list(&mut self, new: &[Id]) -> Result<(), String> {
        let last = *self.stack.last().ok_or(EMPTY)?;
        match &mut self.values[last.0] {
            Value::List(items) => items.extend(new),
            // Of no interest: what a call that is not made would have made.
            Value::Call { .. } => {}
            _ => return Err("items for what is no list".to_owned()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, new: Vec<(Id, Id)>) -> Result<(), String> {
        let last = *self.stack.last().ok_or(EMPTY)?;
        match &mut self.values[last.0] {
            Value::Dict(pairs) => pairs.extend(new),
            Value::Call { .. } => {}
            _ => return Err("items for what is no dictionary".to_owned()),
        }
        Ok(())
    }

    fn remember(&mut self, key: u32) -> Result<(), String> {
        let last = *self.stack.last().ok_or(EMPTY)?;
        self.memo.insert(key, last);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let id = *self.memo.get(&key).ok_or("a value that was never made")?;
        self.stack.push(id);
        Ok(())
    }
}

const EMPTY: &str = "it takes values that were never made";

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    if !items.len().is_multiple_of(2) {
        return Err("a key without a value".to_owned());
    }
    Ok(items
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect())
}

/// A little-endian integer in two's complement, where it fits.
fn long(bytes: &[u8]) -> Option<i64> {
    let mut value = [if bytes.last()? & 0x80 == 0 { 0 } else { 0xff }; 8];
    value.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_is_read_and_never_made() {
        // pickle.dumps of a class whose __reduce__ gives (os.system, ("touch x",)).
        for code in [
            &b"\x80\x02cposix\nsystem\nq\x00X\x07\x00\x00\x00touch xq\x01\x85q\x02Rq\x03."[..],
            b"\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x07touch x\x94\x85\x94R\x94.",
        ] {
            let error = Pickle::read(code).unwrap_err();
            assert!(error.contains("posix.system"), "{error}");
        }
    }

    #[test]
    fn longs_are_of_two_s_complement() {
        assert_eq!(long(&[0xff, 0x7f]), Some(0x7fff));
        assert_eq!(long(&[0xff]), Some(-1));
        assert_eq!(long(&[0; 9]), None);
    }

    #[test]
    fn nesting_and_copies_need_no_room() {
        let mut deep = vec![b')'];
        deep.extend(std::iter::repeat_n(0x85, 1_000_000));
        deep.push(b'.');
        Pickle::read(&deep).unwrap();
        // Each round doubles what the one before it holds, were it copied.
        let mut doubling = b")q\0".to_vec();
        for _ in 0..64 {
            doubling.extend(b"h\0h\0\x86q\0");
        }
        doubling.push(b'.');
        assert!(Pickle::read(&doubling).unwrap().values.len() < 100);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pickle::read(&bytes);
        }

        #[test]
        fn no_opcodes_make_it_panic(
            bytes in proptest::collection::vec(
                proptest::sample::select(b"(.KNt)]}aeuslqhRbQ\x81\x85\x86\x94\x93\0\x01".to_vec()), 0..60)
        ) {
            let _ = Pickle::read(&bytes);
        }
    }
}
