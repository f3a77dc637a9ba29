//! Preprocessing, a ViT's block, whole ViTs and Q-Formers, with random weights of the demo's and of BLIP-2's shapes, in
//! f32 and in 8 bits, and in f32 by candle's operations alone, which is where this crate began; at the end, where a block
//! of each spends its time.
//!
//!     cargo bench --bench vision
//!     cargo bench --bench vision -- "ViT block" --quick
//!     cargo bench --bench vision -- operations
//!     QBRIDGE_BENCH_BLOCKS=39 cargo bench --bench vision -- "ViT-g"
//!
//! Of ViT-g's 39 blocks, which are all alike, the whole ViT has two here unless `QBRIDGE_BENCH_BLOCKS` says otherwise: all of
//! them take 4 GB and some seconds a picture. `qbridge bench` measures the same parts of a bundle.
#![allow(clippy::expect_used)]

use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput};
use mozjpeg::{ColorSpace, Compress};
use qformer::Encoder;
use qformer::checkpoint::{Checkpoint, Compute, Products};
use qformer::config::{QFormerConfig, VisionConfig};
use qformer::image::{ImageLimits, RgbImage, decode};
use qformer::operations::record;
use qformer::preprocess::Preprocessing;

/// How a model computes: with this crate's own CPU code, or by candle's operations alone.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    products: Products,
    by_candle: bool,
}

impl Way {
    fn run<T>(self, work: impl FnOnce() -> T) -> T {
        match self.by_candle {
            true => qformer::by_candle(work),
            false => work(),
        }
    }
}

const WAYS: [Way; 3] = [
    Way {
        name: "candle f32",
        products: Products::F32,
        by_candle: true,
    },
    Way {
        name: "f32",
        products: Products::F32,
        by_candle: false,
    },
    Way {
        name: "int8",
        products: Products::Int8,
        by_candle: false,
    },
];

/// A ViT and the Q-Former that reads it.
struct Shape {
    /// Of the ViT and of the Q-Former.
    names: [&'static str; 2],
    vision: VisionConfig,
    qformer: QFormerConfig,
}

fn demo() -> Shape {
    Shape {
        names: ["demo's ViT-S", "demo's"],
        vision: VisionConfig {
            hidden_size: 384,
            intermediate_size: 1536,
            num_hidden_layers: 10,
            num_attention_heads: 6,
            ..VisionConfig::default()
        },
        qformer: QFormerConfig {
            hidden_size: 384,
            intermediate_size: 1536,
            num_hidden_layers: 2,
            num_attention_heads: 6,
            cross_attention_frequency: 1,
            encoder_hidden_size: 384,
            ..QFormerConfig::default()
        },
    }
}

fn blip2() -> Shape {
    let blocks = std::env::var("QBRIDGE_BENCH_BLOCKS").ok();
    Shape {
        names: ["ViT-g", "BLIP-2's"],
        vision: VisionConfig {
            num_hidden_layers: blocks.map_or(2, |blocks| {
                blocks.parse().expect("QBRIDGE_BENCH_BLOCKS: a number")
            }),
            ..VisionConfig::default()
        },
        qformer: QFormerConfig::default(),
    }
}

/// Weights that keep activations finite over any number of layers.
#[derive(Default)]
struct Weights(HashMap<String, Tensor>);

impl Weights {
    fn random(&mut self, name: impl Into<String>, shape: &[usize]) {
        let tensor = Tensor::randn(0f32, 0.02, shape, &Device::Cpu).expect("random numbers");
        self.0.insert(name.into(), tensor);
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.random(format!("{name}.weight"), &[outputs, inputs]);
        self.random(format!("{name}.bias"), &[outputs]);
    }

    fn norm(&mut self, name: &str, width: usize) {
        let ones = Tensor::ones(width, DType::F32, &Device::Cpu).expect("ones");
        self.0.insert(format!("{name}.weight"), ones);
        self.random(format!("{name}.bias"), &[width]);
    }

    fn vision(&mut self, config: &VisionConfig) {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let embeddings = "vision_model.embeddings";
        let patch = config.patch_size;
        self.random(
            format!("{embeddings}.patch_embedding.weight"),
            &[width, 3, patch, patch],
        );
        self.random(format!("{embeddings}.patch_embedding.bias"), &[width]);
        self.random(format!("{embeddings}.class_embedding"), &[1, 1, width]);
        self.random(
            format!("{embeddings}.position_embedding"),
            &[1, config.positions(), width],
        );
        for layer in 0..config.num_hidden_layers {
            let layer = format!("vision_model.encoder.layers.{layer}");
            self.norm(&format!("{layer}.layer_norm1"), width);
            self.linear(&format!("{layer}.self_attn.qkv"), width, 3 * width);
            self.linear(&format!("{layer}.self_attn.projection"), width, width);
            self.norm(&format!("{layer}.layer_norm2"), width);
            self.linear(&format!("{layer}.mlp.fc1"), width, inner);
            self.linear(&format!("{layer}.mlp.fc2"), inner, width);
        }
        self.norm("vision_model.post_layernorm", width);
    }

    fn qformer(&mut self, config: &QFormerConfig, queries: usize) {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        self.random("query_tokens", &[1, queries, width]);
        self.norm("qformer.layernorm", width);
        for index in 0..config.num_hidden_layers {
            let layer = format!("qformer.encoder.layer.{index}");
            let mut attentions = vec![("attention", width)];
            if index.is_multiple_of(config.cross_attention_frequency) {
                attentions.push(("crossattention", config.encoder_hidden_size));
            }
            for (attention, keys) in attentions {
                let attention = format!("{layer}.{attention}");
                self.linear(&format!("{attention}.attention.query"), width, width);
                self.linear(&format!("{attention}.attention.key"), keys, width);
                self.linear(&format!("{attention}.attention.value"), keys, width);
                self.linear(&format!("{attention}.output.dense"), width, width);
                self.norm(&format!("{attention}.output.LayerNorm"), width);
            }
            self.linear(&format!("{layer}.intermediate_query.dense"), width, inner);
            self.linear(&format!("{layer}.output_query.dense"), inner, width);
            self.norm(&format!("{layer}.output_query.LayerNorm"), width);
        }
    }
}

/// Random weights of `shape`, in a file of `dir`.
fn checkpoint(dir: &Path, shape: &Shape) -> Checkpoint {
    let mut weights = Weights::default();
    weights.vision(&shape.vision);
    weights.qformer(&shape.qformer, QUERIES);
    let path = dir.join("model.safetensors");
    candle_core::safetensors::save(&weights.0, &path).expect("room for the weights");
    Checkpoint::open(dir).expect("what was just written")
}

const QUERIES: usize = 32;

fn encoder(checkpoint: &Checkpoint, shape: &Shape, products: Products) -> Encoder {
    let compute = Compute {
        products,
        ..Compute::on(&Device::Cpu)
    };
    Encoder::load(checkpoint, &shape.vision, &shape.qformer, QUERIES, &compute)
        .expect("weights of these shapes")
}

/// A picture of COCO's usual size, with a gradient and a fine pattern.
fn picture() -> RgbImage {
    RgbImage::from_fn(640, 480, |x, y| {
        let pattern = (x * 7 + y * 13) % 16;
        [x * 240 / 640, y * 240 / 480, (x + y) * 240 / 1120]
            .map(|value| (value + pattern) as u8)
            .into()
    })
}

fn jpeg(picture: &RgbImage) -> Vec<u8> {
    let mut compress = Compress::new(ColorSpace::JCS_RGB);
    compress.set_size(picture.width() as usize, picture.height() as usize);
    let mut compress = compress.start_compress(Vec::new()).expect("a JPEG");
    compress.write_scanlines(picture).expect("its rows");
    compress.finish().expect("its end")
}

fn preprocess(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("preprocess");
    let picture = picture();
    let file = jpeg(&picture);
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode a JPEG of 640 x 480", |bencher| {
        bencher.iter(|| decode(black_box(&file), &ImageLimits::default()).expect("a picture"));
    });
    for size in [224, 364] {
        let preprocessing = Preprocessing::clip(size);
        group.bench_function(BenchmarkId::new("640 x 480 to", size), |bencher| {
            bencher.iter(|| preprocessing.pixels(black_box(&picture)));
        });
    }
}

fn encoders(criterion: &mut Criterion) {
    for shape in [demo(), blip2()] {
        let dir = tempfile::tempdir().expect("a directory");
        let checkpoint = checkpoint(dir.path(), &shape);
        let [vit, qformer] = shape.names;
        let whole = match shape.vision.num_hidden_layers {
            n if vit == "ViT-g" && n < 39 => format!("{vit}, {n} of 39 blocks"),
            _ => vit.to_owned(),
        };
        for way in WAYS {
            let encoder = way.run(|| encoder(&checkpoint, &shape, way.products));
            let kind = way.name;
            let size = shape.vision.image_size;
            let rows = (shape.vision.positions(), shape.vision.hidden_size);
            let random = |shape: &[usize]| {
                Tensor::randn(0f32, 1.0, shape, &Device::Cpu).expect("random numbers")
            };
            for batch in [1, 4] {
                let (pixels, hidden) = (
                    random(&[batch, 3, size, size]),
                    random(&[batch, rows.0, rows.1]),
                );
                let id = |name: &str| BenchmarkId::new(format!("{name}, {kind}"), batch);
                let mut group = criterion.benchmark_group("ViT block");
                group.throughput(Throughput::Elements(batch as u64));
                group.bench_function(id(vit), |bencher| {
                    way.run(|| bencher.iter(|| encoder.vision().block(0, &hidden).expect("rows")));
                });
                group.finish();
                let mut group = criterion.benchmark_group("ViT");
                group.sample_size(10);
                group.throughput(Throughput::Elements(batch as u64));
                group.bench_function(id(&whole), |bencher| {
                    way.run(|| bencher.iter(|| encoder.vision().forward(&pixels).expect("rows")));
                });
                group.finish();
                let mut group = criterion.benchmark_group("Q-Former");
                group.sample_size(20);
                group.throughput(Throughput::Elements(batch as u64));
                let model = encoder.qformer().expect("a Q-Former");
                group.bench_function(id(qformer), |bencher| {
                    way.run(|| bencher.iter(|| model.forward(&hidden).expect("queries")));
                });
                group.finish();
            }
        }
    }
}

/// Prints what each operation of a ViT takes, the median of some passes, by way.
fn operations() {
    const PASSES: usize = 15;
    for shape in [demo(), blip2()] {
        let dir = tempfile::tempdir().expect("a directory");
        let checkpoint = checkpoint(dir.path(), &shape);
        let size = shape.vision.image_size;
        let pixels = Tensor::randn(0f32, 1.0, (1, 3, size, size), &Device::Cpu);
        let pixels = pixels.expect("random numbers");
        let blocks = shape.vision.num_hidden_layers;
        println!("\n{}, {blocks} blocks, one picture", shape.names[0]);
        println!("| operation | way | calls | ms | GFLOP/s |\n|---|---|---|---|---|");
        for way in WAYS {
            way.run(|| {
                let encoder = encoder(&checkpoint, &shape, way.products);
                let forward = || encoder.vision().forward(&pixels).expect("rows");
                forward();
                let passes: Vec<_> = (0..PASSES).map(|_| record(forward).1).collect();
                for (index, first) in passes[0].iter().enumerate() {
                    let mut times: Vec<_> = passes.iter().map(|p| p[index].duration).collect();
                    times.sort();
                    let seconds = times[PASSES / 2].as_secs_f64();
                    let rate = match first.flops {
                        0 => String::new(),
                        flops => format!("{:.0}", flops as f64 / seconds / 1e9),
                    };
                    println!(
                        "| {} | {} | {} | {:.1} | {rate} |",
                        first.name,
                        way.name,
                        first.calls,
                        seconds * 1e3
                    );
                }
            });
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    preprocess(&mut criterion);
    encoders(&mut criterion);
    criterion.final_summary();
    // Neither where it is asked whether all of it runs, nor where something else is asked for.
    if std::env::args()
        .skip(1)
        .all(|arg| ["--bench", "operations"].contains(&arg.as_str()))
    {
        operations();
    }
}
