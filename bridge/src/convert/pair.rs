//! Which language model belongs to which bridge.
//!
//! Widths alone do not tell: OPT-6.7b, Vicuna-7B and Flan-T5-XXL are all 4096
//! wide, and a projection trained for one gives the others noise.

use std::path::Path;

use super::checkpoint::Source;
use crate::bundle::{INSTRUCT_BLIP, MINIGPT4};
use crate::gguf::{GgufInfo, MODEL_TYPE};
use crate::{Error, Result};

/// Refuses a language model that the bridge was visibly not trained for, and warns of
/// one that will hardly answer.
///
/// # Errors
/// [`Error::Convert`] says which one to use.
pub(super) fn check_pair(source: &Source, info: &GgufInfo, llm: &Path) -> Result<()> {
    let refuse = |found: String, wanted: &str| {
        Err(Error::Convert {
            path: llm.to_owned(),
            reason: format!("{found}, but {} was trained for {wanted}", source.name),
        })
    };
    if info.architecture == "t5" && info.has_f16_ffn_down {
        tracing::warn!(
            "{}: ffn_down is stored in f16, and Flan-T5 goes beyond its range there: answers may \
             fail; take a file of bf16, f32 or quantized weights",
            llm.display()
        );
    }
    let found = format!("a language model of architecture {}", info.architecture);
    match source.llm_type.as_deref() {
        Some("opt") if info.architecture != "mpt" => refuse(
            found,
            "OPT; give a GGUF that qbridge made of one (architecture mpt)",
        ),
        Some("opt") if !info.has_activation_scales => refuse(
            "a language model without ffn.act.scales, which no OPT is".to_owned(),
            "OPT; give a GGUF that qbridge made of one",
        ),
        Some("opt") if info.model_type.as_deref() != Some("opt") => refuse(
            format!("a language model of architecture mpt without {MODEL_TYPE}, an MPT"),
            "OPT; give a GGUF that qbridge made of one",
        ),
        Some("t5") if info.architecture != "t5" => refuse(found, "Flan-T5"),
        Some("llama") if info.architecture != "llama" => refuse(found, "Llama or Vicuna"),
        _ => check_vicuna(source, info, llm),
    }
}

/// Vicuna's first version and the later ones end their turns by different
/// marks; the wrong one babbles or is silent.
fn check_vicuna(source: &Source, info: &GgufInfo, llm: &Path) -> Result<()> {
    let Some(version) = info.name.as_deref().and_then(vicuna_version) else {
        return Ok(());
    };
    let wanted = match source.family {
        // Its model without a Q-Former is LLaMA-2's.
        MINIGPT4 if source.qformer.is_none() => return Ok(()),
        MINIGPT4 if version != "v0" => "Vicuna v0",
        INSTRUCT_BLIP if version != "v1.1" => "Vicuna v1.1",
        _ => return Ok(()),
    };
    Err(Error::Convert {
        path: llm.to_owned(),
        reason: format!(
            "its name says Vicuna {version}, but {} was trained for {wanted}",
            source.name
        ),
    })
}

/// The version in the name of a Vicuna, such as `v1.1` in `Vicuna 7B v1.1`.
fn vicuna_version(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    if !name.contains("vicuna") {
        return None;
    }
    name.split(|c: char| !c.is_ascii_alphanumeric() && c != '.')
        .find(|word| {
            word.strip_prefix('v')
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::vicuna_version;

    #[test]
    fn versions_of_vicuna() {
        for (name, version) in [
            ("vicuna-7b-v0", Some("v0")),
            ("Vicuna 13B v1.1", Some("v1.1")),
            ("lmsys_vicuna_7b_v1.5", Some("v1.5")),
            ("vicuna-7b", None),
            ("Llama v2", None),
        ] {
            assert_eq!(vicuna_version(name).as_deref(), version, "{name}");
        }
    }
}
