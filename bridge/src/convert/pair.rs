//! Which language model belongs to which bridge.
//!
//! Widths alone do not tell: OPT-6.7b, Vicuna-7B and Flan-T5-XXL are all 4096
//! wide, and a projection trained for one gives the others noise.

use std::path::Path;

use super::checkpoint::Source;
use crate::language_model::GgufInfo;
use crate::{Error, Result};

/// Refuses a language model that the bridge was visibly not trained for.
///
/// # Errors
/// [`Error::Convert`] says which one to use.
pub(super) fn check_pair(source: &Source, info: &GgufInfo, llm: &Path) -> Result<()> {
    let Some(llm_type) = source.llm_type.as_deref() else {
        return Ok(());
    };
    let (architecture, wanted) = match llm_type {
        "opt" => (
            "mpt",
            "OPT, which `qbridge convert` writes as a GGUF of architecture mpt",
        ),
        "t5" => ("t5", "T5"),
        "llama" => ("llama", "Llama or Vicuna"),
        _ => return Ok(()),
    };
    if info.architecture != architecture {
        return Err(Error::Convert {
            path: llm.to_owned(),
            reason: format!(
                "a language model of architecture {}, but {} was trained for {wanted}",
                info.architecture, source.name
            ),
        });
    }
    Ok(())
}
