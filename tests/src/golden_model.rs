//! Models of the golden files: their weights, made from the tensors' names as
//! `tests/golden/make_vision.py` makes them, and what the reference computed.

use std::collections::BTreeMap;
use std::path::Path;

use bridge::projection::Projection;
use candle_core::{DType, Device, Tensor};
use qformer::Encoder;
use qformer::checkpoint::{Checkpoint, Compute};
use qformer::config::Blip2Config;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// `uniform` of `make_vision.py`.
pub fn uniform(name: &str, count: usize) -> impl Iterator<Item = f32> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    (1..=count as u64).map(move |i| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let z = z ^ (z >> 31);
        (z >> 40) as f32 * 2f32.powi(-23) - 1.0
    })
}

/// `values` of `make_vision.py`.
pub fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let (mut scale, mut offset) = (1.0, 0.0);
    let norms = [
        "norm.weight",
        "norm1.weight",
        "norm2.weight",
        "LayerNorm.weight",
    ];
    if norms.iter().any(|end| name.ends_with(end)) {
        (scale, offset) = (0.5, 1.0);
    } else if name.ends_with(".bias") {
        scale = 0.3;
    } else if name.ends_with(".weight") {
        let sharp = ["qkv", "query.", "key."]
            .iter()
            .any(|part| name.contains(part));
        let inputs: usize = shape[1..].iter().product();
        scale = (if sharp { 1.5 } else { 1.0 }) * (3.0 / inputs as f64).sqrt();
    } else if name == "pixels" {
        scale = 2.0;
    }
    uniform(name, shape.iter().product())
        .map(|x| x * scale as f32 + offset)
        .collect()
}

/// Names and shapes of a model's tensors, as `Blip2ForConditionalGeneration`,
/// `InstructBlipForConditionalGeneration` or `Blip2ForImageTextRetrieval` has them, without
/// the language model.
pub fn tensor_shapes(config: &Blip2Config, n_embd: usize) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        shapes.insert(name, shape.to_vec());
    };
    let (vision, qformer) = (&config.vision_config, &config.qformer_config);
    let (width, inner, patch) = (
        vision.hidden_size,
        vision.intermediate_size,
        vision.patch_size,
    );
    add(
        "vision_model.embeddings.class_embedding".into(),
        &[1, 1, width],
    );
    add(
        "vision_model.embeddings.position_embedding".into(),
        &[1, vision.positions(), width],
    );
    add(
        "vision_model.embeddings.patch_embedding.weight".into(),
        &[width, 3, patch, patch],
    );
    add(
        "vision_model.embeddings.patch_embedding.bias".into(),
        &[width],
    );
    for layer in 0..vision.num_hidden_layers {
        let at = |name: &str| format!("vision_model.encoder.layers.{layer}.{name}");
        for norm in ["layer_norm1", "layer_norm2"] {
            add(at(&format!("{norm}.weight")), &[width]);
            add(at(&format!("{norm}.bias")), &[width]);
        }
        add(at("self_attn.qkv.weight"), &[3 * width, width]);
        if vision.qkv_bias {
            add(at("self_attn.qkv.bias"), &[3 * width]);
        }
        for (name, outputs, inputs) in [
            ("self_attn.projection", width, width),
            ("mlp.fc1", inner, width),
            ("mlp.fc2", width, inner),
        ] {
            add(at(&format!("{name}.weight")), &[outputs, inputs]);
            add(at(&format!("{name}.bias")), &[outputs]);
        }
    }
    add("vision_model.post_layernorm.weight".into(), &[width]);
    add("vision_model.post_layernorm.bias".into(), &[width]);

    let (encoder, width, inner) = (width, qformer.hidden_size, qformer.intermediate_size);
    add("query_tokens".into(), &[1, config.num_query_tokens, width]);
    if qformer.use_qformer_text_input {
        for (name, rows) in [
            ("word", qformer.vocab_size),
            ("position", qformer.max_position_embeddings),
        ] {
            let place = if config.is_retrieval() {
                ""
            } else {
                "qformer."
            };
            let name = format!("{place}embeddings.{name}_embeddings.weight");
            add(name, &[rows, width]);
        }
    }
    let layernorm = if qformer.use_qformer_text_input && !config.is_retrieval() {
        "qformer.embeddings.layernorm"
    } else {
        "qformer.layernorm"
    };
    add(format!("{layernorm}.weight"), &[width]);
    add(format!("{layernorm}.bias"), &[width]);
    for layer in 0..qformer.num_hidden_layers {
        let at = |name: &str| format!("qformer.encoder.layer.{layer}.{name}");
        let mut linears = vec![
            ("intermediate_query.dense".to_owned(), inner, width),
            ("output_query.dense".to_owned(), width, inner),
        ];
        let mut norms = vec!["output_query.LayerNorm".to_owned()];
        if qformer.use_qformer_text_input {
            linears.push(("intermediate.dense".to_owned(), inner, width));
            linears.push(("output.dense".to_owned(), width, inner));
            norms.push("output.LayerNorm".to_owned());
        }
        let mut attention = |name: &str, keys: usize| {
            linears.push((format!("{name}.attention.query"), width, width));
            linears.push((format!("{name}.attention.key"), width, keys));
            linears.push((format!("{name}.attention.value"), width, keys));
            linears.push((format!("{name}.output.dense"), width, width));
            norms.push(format!("{name}.output.LayerNorm"));
        };
        attention("attention", width);
        if layer % qformer.cross_attention_frequency == 0 {
            attention("crossattention", encoder);
        }
        for (name, outputs, inputs) in linears {
            add(at(&format!("{name}.weight")), &[outputs, inputs]);
            add(at(&format!("{name}.bias")), &[outputs]);
        }
        for name in norms {
            add(at(&format!("{name}.weight")), &[width]);
            add(at(&format!("{name}.bias")), &[width]);
        }
    }
    let features = config.image_text_hidden_size;
    let heads = match config.is_retrieval() {
        true => vec![
            ("vision_projection", features),
            ("text_projection", features),
            ("itm_head", 2),
        ],
        false => vec![("language_projection", n_embd)],
    };
    for (name, outputs) in heads {
        add(format!("{name}.weight"), &[outputs, width]);
        add(format!("{name}.bias"), &[outputs]);
    }
    shapes
}

/// One tensor to be written.
pub struct Stored {
    /// Element type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements, little-endian.
    pub bytes: Vec<u8>,
}

impl safetensors::View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.bytes.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a safetensors file.
pub fn write(path: &Path, tensors: BTreeMap<String, Stored>) {
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

/// A model of the golden files with its outputs.
pub struct GoldenModel {
    /// The model.
    pub config: Blip2Config,
    /// Width of a soft-prompt row.
    pub n_embd: usize,
    /// The golden file.
    pub bytes: Vec<u8>,
}

impl GoldenModel {
    /// Reads `dir/NAME/config.json` and `dir/NAME.safetensors`.
    ///
    /// # Panics
    /// They are not there, as every function here does that cannot go on.
    pub fn read(dir: &Path, name: &str) -> Self {
        let config = Blip2Config::read(&dir.join(name)).unwrap();
        let n_embd = config.text_config.hidden_size.unwrap();
        let bytes = std::fs::read(dir.join(format!("{name}.safetensors"))).unwrap();
        Self {
            config,
            n_embd,
            bytes,
        }
    }

    /// A stored output, f32.
    pub fn output(&self, name: &str) -> Tensor {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        Tensor::from_raw_buffer(view.data(), DType::F32, view.shape(), &Device::Cpu).unwrap()
    }

    /// A stored list of numbers.
    pub fn numbers<const N: usize>(&self, name: &str, parse: fn([u8; N]) -> u64) -> Vec<u64> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let (chunks, rest) = view.data().as_chunks::<N>();
        assert!(rest.is_empty());
        chunks.iter().map(|chunk| parse(*chunk)).collect()
    }

    /// The rows of `tensor` that the golden file keeps.
    pub fn rows(&self, tensor: &Tensor, list: &str) -> Tensor {
        let rows: Vec<u32> = self
            .numbers(list, |bytes| u32::from_le_bytes(bytes).into())
            .into_iter()
            .map(|row| row as u32)
            .collect();
        let rows = Tensor::new(rows, &Device::Cpu).unwrap();
        tensor.index_select(&rows, 1).unwrap()
    }

    /// Batch of the stored outputs.
    pub fn batch(&self) -> usize {
        self.output("queries").dim(0).unwrap()
    }

    /// Pixels `[batch, 3, side, side]`.
    pub fn pixels(&self) -> Tensor {
        let side = self.config.vision_config.image_size;
        let shape = [self.batch(), 3, side, side];
        Tensor::from_vec(values("pixels", &shape), &shape, &Device::Cpu).unwrap()
    }

    /// The weights, after making sure that they are those of the generator.
    pub fn weights(&self) -> BTreeMap<String, Stored> {
        let mut checksum = 0_u64;
        let mut weights = BTreeMap::new();
        for (name, shape) in tensor_shapes(&self.config, self.n_embd) {
            let values = values(&name, &shape);
            for (place, value) in (1_u64..).zip(&values) {
                checksum = checksum.wrapping_add(u64::from(value.to_bits()).wrapping_mul(place));
            }
            let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
            let dtype = Dtype::F32;
            weights.insert(
                name,
                Stored {
                    dtype,
                    shape,
                    bytes,
                },
            );
        }
        assert_eq!(
            vec![checksum],
            self.numbers("checksum", u64::from_le_bytes),
            "the generators of the weights differ: this says nothing of the model"
        );
        weights
    }

    /// A directory with the weights in one file.
    pub fn checkpoint_dir(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("model.safetensors"), self.weights());
        dir
    }

    /// ViT and Q-Former.
    ///
    /// # Errors
    /// The checkpoint is not this model's.
    pub fn load(&self, checkpoint: &Checkpoint, dtype: DType) -> qformer::Result<Encoder> {
        Encoder::load(
            checkpoint,
            &self.config.vision_config,
            &self.config.qformer_config,
            self.config.num_query_tokens,
            &Compute {
                dtype,
                ..Compute::on(&Device::Cpu)
            },
        )
    }
}

/// Query embeddings to soft prompt.
pub fn project(checkpoint: &Checkpoint, queries: &Tensor, n_embd: usize) -> Tensor {
    let width = queries.dim(2).unwrap();
    let projection = Projection::load(checkpoint, width, &Device::Cpu).unwrap();
    assert_eq!(projection.n_embd(), n_embd);
    projection.forward(queries).unwrap()
}

/// Largest absolute difference; NaN where there is one.
#[track_caller]
pub fn max_difference(left: &Tensor, right: &Tensor) -> f32 {
    assert_eq!(left.dims(), right.dims());
    let difference = (left - right).unwrap().abs().unwrap();
    let values = difference.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values
        .into_iter()
        .fold(0.0, |max, x| if x > max || x.is_nan() { x } else { max })
}

/// A checkpoint of zeros with the names and shapes of `layout["tensors"]`, which has one layer
/// where the model has several; and `layout["config"]`, of whose `towers` each has one.
///
/// # Panics
/// The layout has another form, or the file cannot be written.
pub fn one_layer(layout: &Value, towers: &[&str]) -> (TempDir, Value) {
    let mut config = layout["config"].clone();
    for tower in towers {
        config[tower]["num_hidden_layers"] = 1.into();
    }
    let shapes: BTreeMap<String, Vec<usize>> =
        serde_json::from_value(layout["tensors"].clone()).unwrap();
    let mut end = 0;
    let mut header = serde_json::Map::new();
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F16", "shape": shape, "data_offsets": [start, end]});
        header.insert(name, entry);
    }
    let header = Value::Object(header).to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(&path, [&length, header.as_bytes()].concat()).unwrap();
    // What is behind the header is a hole, which reads as zeros.
    let file = std::fs::OpenOptions::new().write(true).open(&path);
    let size = (length.len() + header.len() + end) as u64;
    file.and_then(|file| file.set_len(size)).unwrap();
    (dir, config)
}

/// The checkpoint in `dir`, with zeros in the place of one tensor.
pub fn without(dir: &Path, tensor: &str) -> Checkpoint {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = file.iter().map(|(name, view)| {
        let mut bytes = view.data().to_vec();
        if name == tensor {
            bytes.fill(0);
        }
        let (dtype, shape) = (view.dtype(), view.shape().to_vec());
        let stored = Stored {
            dtype,
            shape,
            bytes,
        };
        (name.to_owned(), stored)
    });
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("model.safetensors"), stored.collect());
    // The file stays open, and so readable.
    Checkpoint::open(dir.path()).unwrap()
}
