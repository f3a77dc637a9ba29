//! Sentences that a label is put into before CLIP reads it.

use crate::{Error, Result};

/// What stands for the label in a template.
pub const PLACEHOLDER: &str = "{}";

/// Seven of OpenAI's eighty templates for ImageNet that together do about as well
/// (`Prompt_Engineering_for_ImageNet.ipynb`, the subset at its end).
pub const IMAGENET_TEMPLATES: [&str; 7] = [
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
];

/// The template with the label in the place of every [`PLACEHOLDER`].
///
/// # Errors
/// [`Error::Text`] where it has none.
pub fn fill(template: &str, label: &str) -> Result<String> {
    if !template.contains(PLACEHOLDER) {
        return Err(Error::Text {
            reason: format!("the template {template:?} has no {PLACEHOLDER} for the label"),
        });
    }
    Ok(template.replace(PLACEHOLDER, label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_where_the_template_says() {
        assert_eq!(
            fill("a photo of a {}.", "cat").unwrap(),
            "a photo of a cat."
        );
        assert_eq!(fill("{} or {}", "{}").unwrap(), "{} or {}");
        assert!(fill("a photo", "cat").is_err());
        for template in IMAGENET_TEMPLATES {
            assert_eq!(template.matches(PLACEHOLDER).count(), 1, "{template}");
        }
    }
}
