//! JSON lines.

use std::io::BufRead;

use anyhow::{Context, Result, bail};

use super::super::rows::Row;

/// A row's line.
pub(super) fn line(row: &Row) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(row)?;
    line.push(b'\n');
    Ok(line)
}

/// How every line begins.
const BEGINNING: &[u8] = b"{\"image\":\"";

/// Reads rows up to the last whole line, and tells how many bytes they are.
pub(super) fn recover(mut reader: impl BufRead, mut add: impl FnMut(Row)) -> Result<u64> {
    let mut length = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            let common = line.len().min(BEGINNING.len());
            if line[..common] != BEGINNING[..common] {
                bail!("line {number} is none of `qbridge caption`");
            }
            break;
        }
        let row = serde_json::from_slice(&line);
        add(row.with_context(|| format!("line {number} is none of `qbridge caption`"))?);
        length += line.len() as u64;
    }
    Ok(length)
}
