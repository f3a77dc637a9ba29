//! `qbridge inspect`: what a bundle holds.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use bridge::bundle::Bundle;
use qformer::blip::Task;

use crate::args::InspectArgs;
use crate::progress;

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<ExitCode> {
    let bundle = Bundle::open(&args.bundle)?;
    let manifest = bundle.manifest();
    let vision = &manifest.vision;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} ({})", manifest.name, manifest.family)?;
    writeln!(
        out,
        "  vision      {} layers, {} wide, {} heads, patch {}, {} px",
        vision.num_hidden_layers,
        vision.hidden_size,
        vision.num_attention_heads,
        vision.patch_size,
        vision.image_size
    )?;
    match &manifest.qformer {
        Some(qformer) => {
            writeln!(
                out,
                "  Q-Former    {} queries, {} layers, {} wide, {} heads, cross-attention every {}",
                manifest.num_query_tokens,
                qformer.num_hidden_layers,
                qformer.hidden_size,
                qformer.num_attention_heads,
                qformer.cross_attention_frequency
            )?;
            if qformer.use_qformer_text_input {
                writeln!(
                    out,
                    "              reads text, {} tokens of {} at most",
                    qformer.max_position_embeddings, qformer.vocab_size
                )?;
            }
        }
        None if !manifest.has_language_model() => {}
        None => writeln!(
            out,
            "  Q-Former    none: {} rows of joined patches",
            manifest.num_query_tokens
        )?,
    }
    if let Some(heads) = &manifest.heads {
        let captions = if heads.captions { ", captions" } else { "" };
        writeln!(
            out,
            "  heads       {} features of pictures and texts, matching{captions}",
            heads.image_text_hidden_size
        )?;
    }
    if let Some(clip) = &manifest.clip {
        let text = &clip.text;
        writeln!(
            out,
            "  text        {} layers, {} wide, {} heads, {} tokens of {} at most",
            text.num_hidden_layers,
            text.hidden_size,
            text.num_attention_heads,
            text.max_position_embeddings,
            text.vocab_size
        )?;
        writeln!(
            out,
            "  heads       {} features of pictures and texts",
            clip.projection_dim
        )?;
    }
    if let Some(blip) = &manifest.blip {
        let text = &blip.text;
        writeln!(
            out,
            "  text        {} layers, {} wide, {} heads, {} tokens of {} at most",
            text.num_hidden_layers,
            text.hidden_size,
            text.num_attention_heads,
            text.max_position_embeddings,
            text.vocab_size
        )?;
        let heads = match blip.task {
            Task::Captioning => "captions".to_owned(),
            Task::QuestionAnswering => "answers to questions".to_owned(),
            Task::Retrieval => format!(
                "{} features of pictures and texts, matching",
                blip.image_text_hidden_size
            ),
        };
        writeln!(out, "  heads       {heads}")?;
    }
    if let Some(llm) = bundle.llm() {
        writeln!(
            out,
            "  projection  {} to {}",
            manifest.query_width(),
            llm.n_embd
        )?;
        writeln!(
            out,
            "  LLM         {}, {} wide, {} tokens, context {} ({})",
            llm.architecture,
            llm.n_embd,
            llm.n_vocab,
            llm.n_ctx_train,
            manifest.source.llm.as_deref().unwrap_or_default()
        )?;
    }
    if let Some(prompt) = &manifest.prompt {
        writeln!(out, "  prompt      {}", prompt.name())?;
    }
    writeln!(
        out,
        "  generation  {} tokens at most, temperature {}",
        manifest.generation.max_tokens, manifest.generation.temperature
    )?;
    writeln!(
        out,
        "  source      {}, by {}",
        manifest.source.checkpoint, manifest.source.created_by
    )?;
    for (part, license) in &manifest.licenses {
        writeln!(out, "  licence     {part}: {license}")?;
    }
    for (part, entry) in manifest.files.parts() {
        writeln!(
            out,
            "  {part:<11} {} ({} bytes, sha256 {})",
            entry.path, entry.bytes, entry.sha256
        )?;
    }
    if args.verify {
        let total = manifest.files.parts().map(|(_, e)| e.bytes).sum();
        let bar = progress::bytes(total, "verifying");
        bundle.verify(&|n| bar.inc(n))?;
        bar.finish_and_clear();
        writeln!(out, "  every SHA-256 is as the manifest says")?;
    }
    Ok(ExitCode::SUCCESS)
}
