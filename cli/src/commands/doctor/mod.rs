//! `qbridge doctor`: what this machine can do, what is missing, and what fits into its memory.

mod advice;
mod models;
mod report;

use std::process::ExitCode;

use anyhow::Result;
use bridge::bundle::Bundle;
use bridge::engine::CacheType;
use bridge::language_model::GgufInfo;
use bridge::model::ModelOptions;
use bridge::plan::{self, Memory, Plan};
use qformer::checkpoint::Products;

use super::{model_options, print_json};
use crate::args::DoctorArgs;
use crate::machine::Machine;
use models::{MODELS, QUANTIZATIONS};
use report::{BundleReport, EngineSettings, Fit, ModelFit, Report, Settings};

const GB: f64 = 1e9;

/// Runs the command.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let machine = Machine::here();
    let memory = match args.memory {
        Some(gigabytes) => (gigabytes * GB) as u64,
        None => machine.memory_available,
    };
    let mut advice = advice::of_machine(&machine);
    let (mut bundle, mut models) = (None, None);
    match &args.bundle {
        Some(dir) => {
            let opened = Bundle::open(dir)?;
            let report = examine(&opened, args, memory)?;
            advice.extend(advice::of_bundle(opened.llm(), &report, &machine));
            bundle = Some(report);
        }
        None => models = Some(which_fit(memory)),
    }
    let fits = bundle.as_ref().is_none_or(|bundle| bundle.fits);
    let report = Report {
        machine,
        memory,
        bundle,
        models,
        advice,
    };
    match args.json {
        true => print_json(&report)?,
        false => report.print()?,
    }
    Ok(match fits {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What a bundle needs beside the memory that there is.
fn examine(bundle: &Bundle, args: &DoctorArgs, memory: u64) -> Result<BundleReport> {
    let options = ModelOptions {
        image_cache_bytes: (args.image_cache as usize) << 20,
        ..model_options(&args.engine, args.slots)
    };
    let with = |vision| {
        let options = ModelOptions {
            vision,
            ..options.clone()
        };
        needs(bundle, &options)
    };
    let (needed, f32, int8) = (
        with(options.vision)?,
        with(Products::F32)?,
        with(Products::Int8)?,
    );
    let total = needed.total();
    let fits = total <= memory;
    let way_out = match fits {
        true => None,
        false => find_way_out(bundle, &options, memory)?,
    };
    let engine = match bundle.llm() {
        Some(_) => Some(EngineSettings::of(
            &Plan::new(bundle, &options)?,
            args.slots,
        )),
        None => None,
    };
    let named = |llm: &GgufInfo| format!("{} {}", llm.architecture, llm.file_type_name());
    Ok(BundleReport {
        name: bundle.manifest().name.clone(),
        language_model: bundle.llm().map(named),
        settings: Settings {
            engine,
            vision: match plan::settled(options.vision, bundle) {
                Products::Int8 => "int8",
                Products::F32 | Products::AsStored => "f32",
            },
        },
        memory: needed,
        total,
        total_f32: f32.total(),
        total_int8: int8.total(),
        fits,
        way_out,
    })
}

/// What a bundle takes, with a language model or without.
fn needs(bundle: &Bundle, options: &ModelOptions) -> Result<Memory> {
    Ok(match bundle.llm() {
        Some(_) => Plan::new(bundle, options)?.memory,
        None => Memory::comparing(bundle, options.vision, options.image_cache_bytes),
    })
}

/// Flags, and what they change.
type Step = (&'static str, fn(&mut ModelOptions));

/// The flags that let it fit after all, those that cost least first.
fn find_way_out(bundle: &Bundle, options: &ModelOptions, memory: u64) -> Result<Option<String>> {
    let mut options = options.clone();
    let mut flags = Vec::new();
    let steps: [Step; 5] = [
        ("--image-cache 16", |options| {
            options.image_cache_bytes = 16 << 20
        }),
        ("--vision int8", |options| options.vision = Products::Int8),
        ("--cache-type q8_0", |options| {
            options.cache_type = CacheType::Q8_0;
        }),
        ("--ctx-size 1024", |options| {
            options.n_ctx = Some(options.n_ctx.unwrap_or(1024).min(1024));
        }),
        ("--slots 1", |options| options.slots = 1),
    ];
    for (flag, apply) in steps {
        // What is so already, or is not for this model, is no step.
        let before = needs(bundle, &options)?.total();
        let mut next = options.clone();
        apply(&mut next);
        if next.cache_type == CacheType::Q8_0 && !bundle.llm().is_some_and(takes_q8_0) {
            continue;
        }
        let total = needs(bundle, &next)?.total();
        if total < before {
            options = next;
            flags.push(flag);
        }
        if total <= memory {
            return Ok(Some(flags.join(" ")));
        }
    }
    Ok(None)
}

/// Whether the language model can have such a KV cache: blocks of 32 values, and fused attention.
fn takes_q8_0(llm: &GgufInfo) -> bool {
    let (keys, values) = llm.head_width;
    !llm.is_encoder_decoder() && keys % 32 == 0 && values % 32 == 0
}

/// Which published models fit.
fn which_fit(memory: u64) -> Vec<ModelFit> {
    let memory = memory as f64 / GB;
    MODELS
        .into_iter()
        .map(|model| ModelFit {
            model: model.name,
            fits: QUANTIZATIONS
                .into_iter()
                .zip(model.memory)
                .map(|(quantization, needs)| Fit {
                    quantization,
                    gigabytes: needs,
                    fits: needs <= memory,
                    fits_with_int8: needs - model.int8_saves <= memory,
                })
                .collect(),
        })
        .collect()
}
