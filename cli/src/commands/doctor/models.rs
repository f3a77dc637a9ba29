//! Published models, and the memory that each takes.

/// A model with memory for three types of its language model, in GB.
#[derive(Debug, Clone, Copy)]
pub struct PublishedModel {
    /// As the hub or its repository calls it.
    pub name: &'static str,
    /// While it runs, its vision side in f32: with the language model as Q4_K_M, as Q8_0 and as F16.
    pub memory: [f64; 3],
    /// What `--vision int8` takes off that: three quarters of the vision side.
    pub int8_saves: f64,
}

/// The types of `memory`.
pub const QUANTIZATIONS: [&str; 3] = ["Q4_K_M", "Q8_0", "F16"];

/// ViT-g's linear layers, and the Q-Former's, in f32 less in 8 bits.
const VIT_G: f64 = 3.3;
const VIT_L: f64 = 1.2;

/// The table of docs/models.md.
pub const MODELS: [PublishedModel; 13] = [
    model("Salesforce/blip2-opt-2.7b", [6.7, 7.9, 10.3], VIT_G),
    model("Salesforce/blip2-opt-6.7b", [9.5, 12.5, 18.8], VIT_G),
    model("Salesforce/blip2-flan-t5-xl", [6.9, 8.2, 10.9], VIT_G),
    model("Salesforce/blip2-flan-t5-xxl", [12.7, 17.8, 28.3], VIT_G),
    model(
        "Salesforce/instructblip-vicuna-7b",
        [9.9, 12.9, 19.2],
        VIT_G,
    ),
    model(
        "Salesforce/instructblip-vicuna-13b",
        [14.3, 20.2, 32.4],
        VIT_G,
    ),
    model(
        "Salesforce/instructblip-flan-t5-xl",
        [7.2, 8.5, 11.2],
        VIT_G,
    ),
    model(
        "Salesforce/instructblip-flan-t5-xxl",
        [13.1, 18.1, 28.6],
        VIT_G,
    ),
    model("blip2_pretrained_flant5xl_vitL", [4.1, 5.4, 8.1], VIT_L),
    model("MiniGPT-4, Vicuna v0 7B", [9.5, 12.6, 18.9], VIT_G),
    model("MiniGPT-4, Vicuna v0 13B", [13.9, 19.9, 32.1], VIT_G),
    model("MiniGPT-4, LLaMA-2-7B-chat", [9.2, 12.3, 18.6], VIT_G),
    model("MiniGPT-v2", [9.3, 12.4, 18.7], VIT_G),
];

const fn model(name: &'static str, memory: [f64; 3], int8_saves: f64) -> PublishedModel {
    PublishedModel {
        name,
        memory,
        int8_saves,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_documentation() {
        let page = include_str!("../../../../docs/models.md");
        let rows: Vec<Vec<&str>> = page
            .lines()
            .skip_while(|line| !line.starts_with("| model |"))
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(rows.len(), MODELS.len());
        for (row, model) in rows.iter().zip(MODELS) {
            assert!(row[1].contains(model.name), "{row:?} is not {}", model.name);
            let memory: Vec<f64> = row[5..8].iter().map(|cell| cell.parse().unwrap()).collect();
            assert_eq!(memory, model.memory, "{}", model.name);
        }
    }
}
