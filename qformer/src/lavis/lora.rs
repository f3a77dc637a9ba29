//! MiniGPT-v2's change of its language model (LoRA; Hu et al. 2021,
//! arXiv:2106.09685), as the `peft` library names it.

use std::collections::BTreeMap;

use super::files::Files;
use crate::{Error, Result};

/// In the name of every half.
pub(super) const MARK: &str = "lora_";
/// MiniGPT-v2's `lora_alpha` (`minigpt4/models/minigpt_v2.py`).
const ALPHA: f32 = 16.0;
/// Where the language model's names begin under `peft`.
const PREFIX: &str = "llama_model.base_model.model.";

/// A matrix `[rows, cols]` that is a product of two of `rank`, the scale
/// `alpha / rank` in it.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    rows: usize,
    cols: usize,
    rank: usize,
    /// `[rows, rank]`, scaled.
    up: Vec<f32>,
    /// `[rank, cols]`.
    down: Vec<f32>,
}

impl LowRank {
    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Adds the elements from number `start` on, in rows one after the other,
    /// to `values`. What lies beyond the last is left alone.
    pub fn add_to(&self, start: usize, values: &mut [f32]) {
        let mut rest = values;
        let mut at = start;
        while !rest.is_empty() && at < self.rows * self.cols {
            let (row, col) = (at / self.cols, at % self.cols);
            let n = (self.cols - col).min(rest.len());
            let (part, after) = rest.split_at_mut(n);
            let factors = &self.up[row * self.rank..][..self.rank];
            for (factor, down) in factors.iter().zip(self.down.chunks_exact(self.cols)) {
                for (value, down) in part.iter_mut().zip(&down[col..]) {
                    *value += factor * down;
                }
            }
            at += n;
            rest = after;
        }
    }
}

/// The half's target, and whether it is the second one.
fn target(name: &str) -> Option<(&str, bool)> {
    let (target, half) = name.strip_prefix(PREFIX)?.rsplit_once(".lora_")?;
    match half {
        "A.weight" | "A.default.weight" => Some((target, false)),
        "B.weight" | "B.default.weight" => Some((target, true)),
        _ => None,
    }
}

pub(super) fn read(files: &Files) -> Result<BTreeMap<String, LowRank>> {
    let mut pairs: BTreeMap<&str, [Option<&str>; 2]> = BTreeMap::new();
    for name in files.names_containing(MARK) {
        let (target, second) = target(name).ok_or_else(|| {
            files.error(format!(
                "{name} is not a name that MiniGPT-v2 has; its LoRA is in {PREFIX}*.lora_A and .lora_B"
            ))
        })?;
        pairs.entry(target).or_default()[usize::from(second)] = Some(name);
    }
    let mut changes = BTreeMap::new();
    for (target, halves) in pairs {
        let [Some(a), Some(b)] = halves else {
            return Err(files.error(format!("only one half of the LoRA of {target} is here")));
        };
        let [rank, cols] = files.dims(a)?;
        let [rows, inner] = files.dims(b)?;
        if rank != inner || rank == 0 {
            return Err(Error::Shape {
                path: files.get(b)?.path.to_owned(),
                tensor: b.to_owned(),
                expected: vec![rows, rank],
                found: vec![rows, inner],
            });
        }
        let scale = ALPHA / rank as f32;
        let up = files.get(b)?.to_f32()?;
        let change = LowRank {
            rows,
            cols,
            rank,
            up: up.iter().map(|value| scale * value).collect(),
            down: files.get(a)?.to_f32()?,
        };
        changes.insert(format!("{target}.weight"), change);
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_product_is_added_in_its_place() {
        let change = LowRank {
            rows: 2,
            cols: 3,
            rank: 2,
            up: vec![1.0, 2.0, 3.0, 4.0],
            down: vec![1.0, 0.0, 2.0, 0.0, 1.0, 1.0],
        };
        // [[1, 2, 4], [3, 4, 10]]
        let mut values = [0.5; 4];
        change.add_to(1, &mut values);
        assert_eq!(values, [2.5, 4.5, 3.5, 4.5]);
        let mut end = [0.0; 3];
        change.add_to(5, &mut end);
        assert_eq!(end, [10.0, 0.0, 0.0]);
    }

    #[test]
    fn names_of_halves() {
        let name =
            "llama_model.base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight";
        assert_eq!(
            target(name),
            Some(("model.layers.3.self_attn.q_proj", false))
        );
        assert_eq!(target("llama_proj.lora_A.weight"), None);
        assert_eq!(target("llama_model.base_model.model.x.lora_C.weight"), None);
    }
}
