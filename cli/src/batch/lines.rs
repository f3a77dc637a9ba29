//! Rows as JSON lines.

use std::io::BufRead;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A row's line.
pub fn line(row: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(row)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads rows up to the last whole line, and tells how many bytes they are. What is not whole must begin as one of
/// `beginnings` at least: what is cut off is no file of somebody else's. `command` is whose rows they are.
pub fn recover<Row: DeserializeOwned>(
    mut reader: impl BufRead,
    command: &str,
    beginnings: &[&str],
    mut add: impl FnMut(Row) -> Result<()>,
) -> Result<u64> {
    let mut length = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            let begins = |beginning: &&str| {
                let common = line.len().min(beginning.len());
                line[..common] == beginning.as_bytes()[..common]
            };
            if !beginnings.iter().any(begins) {
                bail!("line {number} is none of `qbridge {command}`");
            }
            break;
        }
        let row = serde_json::from_slice(&line);
        add(row.with_context(|| format!("line {number} is none of `qbridge {command}`"))?)?;
        length += line.len() as u64;
    }
    Ok(length)
}
