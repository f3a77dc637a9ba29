//! ViT, Q-Former and projection against transformers' outputs
//! (`tests/golden/make_vision.py`), and what a checkpoint may and may not be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use qbridge_tests::golden_model::{GoldenModel as Golden, Stored, max_difference, project, write};
use qformer::checkpoint::{Checkpoint, Values, Weight, WeightType, write_weights};
use qformer::config::Blip2Config;
use qformer::{Encoding, Error};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// What the project promises of every stage, in f32 on a CPU.
const TOLERANCE: f32 = 1e-4;

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/vision")
}

fn read(name: &str) -> Golden {
    Golden::read(&golden_dir(), name)
}

/// Compares every stage with the stored outputs.
#[track_caller]
fn check(golden: &Golden, checkpoint: &Checkpoint, dtype: DType, tolerance: f32) {
    let encoding = golden
        .load(checkpoint, dtype)
        .unwrap()
        .encode(&golden.pixels())
        .unwrap();
    let soft_prompt = project(checkpoint, &encoding.queries, golden.n_embd);
    let stages = [
        ("vision", golden.rows(&encoding.vision, "rows_vision")),
        ("queries", encoding.queries),
        ("soft_prompt", golden.rows(&soft_prompt, "rows_soft_prompt")),
    ];
    for (name, found) in stages {
        let difference = max_difference(&found, &golden.output(name));
        println!("{name}: {difference:.1e}");
        assert!(difference < tolerance, "{name} differs by {difference}");
    }
}

fn equals_transformers(name: &str) {
    let golden = read(name);
    let dir = golden.checkpoint_dir();
    check(
        &golden,
        &Checkpoint::open(dir.path()).unwrap(),
        DType::F32,
        TOLERANCE,
    );
}

#[test]
fn a_block_refuses_rows_of_another_width() {
    let golden = read("shallow");
    let dir = golden.checkpoint_dir();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let encoder = golden.load(&checkpoint, DType::F32).unwrap();
    let vision = encoder.encode(&golden.pixels()).unwrap().vision;
    let width = vision.dims()[2];
    let block = |rows, width| {
        let hidden = Tensor::zeros((1, rows, width), DType::F32, &Device::Cpu).unwrap();
        encoder.vision().block(0, &hidden)
    };
    assert!(block(3, width).is_ok());
    for (rows, width) in [(3, width + 1), (3, 1), (0, width)] {
        assert!(block(rows, width).is_err(), "{rows} {width}");
    }
    assert!(
        encoder
            .vision()
            .block(
                1000,
                &Tensor::zeros((1, 3, width), DType::F32, &Device::Cpu).unwrap()
            )
            .is_err()
    );
}

#[test]
fn a_shallow_model_equals_transformers() {
    equals_transformers("shallow");
}

#[test]
fn candles_operations_alone_equal_transformers() {
    // What runs on a GPU, as far as a CPU can tell.
    for name in ["shallow", "rest", "deep", "full_width"] {
        qformer::by_candle(|| equals_transformers(name));
    }
}

#[test]
fn a_model_with_a_rest_beside_its_patches_equals_transformers() {
    equals_transformers("rest");
}

#[test]
fn a_deep_model_without_qkv_bias_equals_transformers() {
    equals_transformers("deep");
}

#[test]
fn three_layers_of_full_width_equal_transformers() {
    equals_transformers("full_width");
}

#[test]
fn shards_that_transformers_saved_load_as_they_are() {
    let saved = golden_dir().join("saved");
    let golden = Golden {
        config: Blip2Config::read(&saved).unwrap(),
        ..read("shallow")
    };
    check(
        &golden,
        &Checkpoint::open(&saved).unwrap(),
        DType::F32,
        TOLERANCE,
    );
}

/// The golden outputs would be no proof if a part of the model could be left
/// out, or a setting misread, without their telling.
#[test]
fn golden_outputs_tell_when_any_part_is_wrong() {
    let golden = read("shallow");
    let dir = golden.checkpoint_dir();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let differs = |golden: &Golden, checkpoint: &Checkpoint| {
        let queries = golden
            .load(checkpoint, DType::F32)
            .unwrap()
            .encode(&golden.pixels())
            .unwrap()
            .queries;
        let soft_prompt = project(checkpoint, &queries, golden.n_embd);
        max_difference(&soft_prompt, &golden.output("soft_prompt"))
    };
    assert!(differs(&golden, &checkpoint) < TOLERANCE);

    let names: Vec<&str> = checkpoint.names().collect();
    assert_eq!(names.len(), 113);
    for name in names {
        let mut weights = golden.weights();
        weights.get_mut(name).unwrap().bytes.fill(0);
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("model.safetensors"), weights);
        let difference = differs(&golden, &Checkpoint::open(dir.path()).unwrap());
        // A bias of the keys shifts all scores of a query alike.
        if !name.ends_with("key.bias") {
            assert!(
                difference > 10.0 * TOLERANCE,
                "without {name}: {difference}"
            );
        }
    }

    let changes: [fn(&mut Blip2Config); 5] = [
        |config| config.vision_config.layer_norm_eps = 1e-6,
        |config| config.qformer_config.layer_norm_eps = 1e-12,
        |config| config.vision_config.num_attention_heads = 2,
        |config| config.qformer_config.num_attention_heads = 4,
        |config| config.qformer_config.cross_attention_frequency = 2,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut golden = read("shallow");
        change(&mut golden.config);
        let difference = differs(&golden, &checkpoint);
        assert!(
            difference > 10.0 * TOLERANCE,
            "with change {i}: {difference}"
        );
    }
}

/// The weights with every value rounded to a half type, as f32 and as that type.
fn halved(golden: &Golden, half: DType) -> [TempDir; 2] {
    let stored = if half == DType::F16 {
        Dtype::F16
    } else {
        Dtype::BF16
    };
    let [rounded, halved] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut weights = [BTreeMap::new(), BTreeMap::new()];
    for (name, weight) in golden.weights() {
        let tensor =
            Tensor::from_raw_buffer(&weight.bytes, DType::F32, &weight.shape, &Device::Cpu)
                .unwrap();
        let tensor = tensor.to_dtype(half).unwrap().flatten_all().unwrap();
        let floats = tensor
            .to_dtype(DType::F32)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        // Through a file in memory, since candle gives out no bytes.
        let bytes = safetensors::serialize([("x", &tensor)], None).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let half_bytes = file.tensor("x").unwrap().data().to_vec();
        let shape = weight.shape;
        weights[0].insert(
            name.clone(),
            Stored {
                dtype: Dtype::F32,
                shape: shape.clone(),
                bytes: floats.into_iter().flat_map(f32::to_le_bytes).collect(),
            },
        );
        weights[1].insert(
            name,
            Stored {
                dtype: stored,
                shape,
                bytes: half_bytes,
            },
        );
    }
    let [first, second] = weights;
    write(&rounded.path().join("model.safetensors"), first);
    write(&halved.path().join("model.safetensors"), second);
    [rounded, halved]
}

#[test]
fn half_weights_are_computed_in_f32_without_loss() {
    let golden = read("shallow");
    for (half, tolerance) in [(DType::F16, 0.02), (DType::BF16, 0.15)] {
        let [rounded, halved] = halved(&golden, half);
        let [rounded, halved] =
            [&rounded, &halved].map(|dir| Checkpoint::open(dir.path()).unwrap());
        let encode = |checkpoint| {
            golden
                .load(checkpoint, DType::F32)
                .unwrap()
                .encode(&golden.pixels())
                .unwrap()
        };
        let (one, other) = (encode(&rounded), encode(&halved));
        assert_eq!(max_difference(&one.vision, &other.vision), 0.0);
        assert_eq!(max_difference(&one.queries, &other.queries), 0.0);
        check(&golden, &halved, DType::F32, tolerance);
    }
}

/// Not exact, but what a device without f32 to spare is asked for, and the
/// only run of the portable operations on a machine without one.
#[test]
fn computing_in_f16_stays_close() {
    let golden = read("shallow");
    let dir = golden.checkpoint_dir();
    check(
        &golden,
        &Checkpoint::open(dir.path()).unwrap(),
        DType::F16,
        0.05,
    );
}

#[test]
fn a_batch_equals_its_pictures_one_by_one() {
    let golden = read("rest");
    let dir = golden.checkpoint_dir();
    let encoder = golden
        .load(&Checkpoint::open(dir.path()).unwrap(), DType::F32)
        .unwrap();
    let pixels = golden.pixels();
    let together = encoder.encode(&pixels).unwrap();
    for picture in 0..golden.batch() {
        let alone: Encoding = encoder
            .encode(&pixels.narrow(0, picture, 1).unwrap())
            .unwrap();
        for (together, alone) in [
            (&together.vision, &alone.vision),
            (&together.queries, &alone.queries),
        ] {
            let difference = max_difference(&together.narrow(0, picture, 1).unwrap(), alone);
            assert!(difference < 1e-5, "{difference}");
        }
    }
}

#[test]
fn pixels_of_another_shape_are_refused() {
    let golden = read("shallow");
    let dir = golden.checkpoint_dir();
    let encoder = golden
        .load(&Checkpoint::open(dir.path()).unwrap(), DType::F32)
        .unwrap();
    for shape in [
        vec![1, 3, 40, 41],
        vec![1, 1, 40, 40],
        vec![3, 40, 40],
        vec![0, 3, 40, 40],
        vec![],
    ] {
        let pixels = Tensor::zeros(shape.as_slice(), DType::F32, &Device::Cpu).unwrap();
        let error = encoder.encode(&pixels).unwrap_err();
        assert!(
            matches!(&error, Error::Pixels { size: 40, found } if *found == shape),
            "{error}"
        );
    }
}

/// Tampers with a good checkpoint and asserts what the refusal says.
#[track_caller]
fn refused(tamper: impl FnOnce(&Path, BTreeMap<String, Stored>), expected: &[&str]) -> Error {
    let golden = read("shallow");
    let dir = tempfile::tempdir().unwrap();
    tamper(dir.path(), golden.weights());
    let error = Checkpoint::open(dir.path())
        .and_then(|checkpoint| golden.load(&checkpoint, DType::F32))
        .expect_err("this checkpoint must be refused");
    let text = error.to_string();
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    error
}

const QKV: &str = "vision_model.encoder.layers.1.self_attn.qkv.bias";

#[test]
fn a_missing_tensor_is_named() {
    let error = refused(
        |dir, mut weights| {
            weights.remove(QKV);
            write(&dir.join("model.safetensors"), weights);
        },
        &["model.safetensors", QKV],
    );
    assert!(matches!(error, Error::MissingTensor { .. }));
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let tamper = |shape: Vec<usize>| {
        move |dir: &Path, mut weights: BTreeMap<String, Stored>| {
            let weight = weights.get_mut(QKV).unwrap();
            weight.bytes.resize(4 * shape.iter().product::<usize>(), 0);
            weight.shape = shape;
            write(&dir.join("model.safetensors"), weights);
        }
    };
    refused(
        tamper(vec![143]),
        &["model.safetensors", QKV, "[143]", "[144]"],
    );
    // The same number of values, and none at all, are no excuse.
    refused(tamper(vec![12, 12]), &["[12, 12]", "[144]"]);
    refused(tamper(vec![0]), &["[0]", "[144]"]);
    refused(tamper(vec![]), &["[]", "[144]"]);
}

#[test]
fn a_dtype_that_no_weight_has_is_named() {
    for (dtype, name) in [(Dtype::F64, "F64"), (Dtype::I64, "I64"), (Dtype::U8, "U8")] {
        let error = refused(
            |dir, mut weights| {
                let weight = weights.get_mut(QKV).unwrap();
                weight.dtype = dtype;
                weight.bytes.resize(144 * dtype.bitsize() / 8, 0);
                write(&dir.join("model.safetensors"), weights);
            },
            &["model.safetensors", QKV, name, "BF16"],
        );
        assert!(matches!(error, Error::DType { .. }));
    }
}

#[test]
fn files_cut_short_or_damaged_are_refused() {
    let full = {
        let dir = read("shallow").checkpoint_dir();
        std::fs::read(dir.path().join("model.safetensors")).unwrap()
    };
    let refuse = |bytes: Vec<u8>| {
        let error = refused(
            |dir, _| std::fs::write(dir.join("model.safetensors"), bytes).unwrap(),
            &["model.safetensors"],
        );
        assert!(matches!(error, Error::Safetensors { .. }), "{error}");
    };
    for length in [0, 1, 7, 8, 9, 100, full.len() / 2, full.len() - 1] {
        refuse(full[..length].to_vec());
    }
    let longer = [full.as_slice(), &[0]].concat();
    refuse(longer);
    for (at, byte) in [(0, 0xFF), (7, 0x7F), (8, b'x'), (20, 0xFF)] {
        let mut damaged = full.clone();
        damaged[at] = byte;
        refuse(damaged);
    }
    let header = |text: &str, data: usize| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };
    refuse(header(
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,99]}}"#,
        16,
    ));
    refuse(header(
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#,
        16,
    ));
    refuse(header(
        r#"{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}"#,
        16,
    ));
    refuse(header(
        r#"{"a":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}"#,
        16,
    ));
    refuse(header(
        r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}"#,
        16,
    ));
    refuse(header("[]", 0));
}

/// Splits the weights into two shards with an index.
fn write_shards(
    dir: &Path,
    weights: BTreeMap<String, Stored>,
    edit: impl FnOnce(&mut serde_json::Value),
) {
    let mut shards = [BTreeMap::new(), BTreeMap::new()];
    let mut map = serde_json::Map::new();
    for (i, (name, weight)) in weights.into_iter().enumerate() {
        map.insert(
            name.clone(),
            format!("model-{}-of-2.safetensors", i % 2 + 1).into(),
        );
        shards[i % 2].insert(name, weight);
    }
    for (i, shard) in shards.into_iter().enumerate() {
        write(
            &dir.join(format!("model-{}-of-2.safetensors", i + 1)),
            shard,
        );
    }
    let mut index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    edit(&mut index);
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn a_missing_or_damaged_shard_is_named() {
    let shard = "model-2-of-2.safetensors";
    refused(
        |dir, weights| {
            write_shards(dir, weights, |_| ());
            std::fs::remove_file(dir.join(shard)).unwrap();
        },
        &["model.safetensors.index.json", shard, "missing"],
    );
    refused(
        |dir, weights| {
            write_shards(dir, weights, |_| ());
            std::fs::write(dir.join(shard), "").unwrap();
        },
        &[shard],
    );
}

#[test]
fn an_index_that_cannot_be_true_is_refused() {
    let index = "model.safetensors.index.json";
    let edited = |edit: fn(&mut serde_json::Value), expected: &[&str]| {
        let error = refused(|dir, weights| write_shards(dir, weights, edit), expected);
        assert!(matches!(error, Error::Index { .. }), "{error}");
    };
    // A tensor in another shard than said, and one that is nowhere.
    edited(
        |index| {
            let shard = &mut index["weight_map"]["query_tokens"];
            let other = if shard == "model-1-of-2.safetensors" {
                2
            } else {
                1
            };
            *shard = format!("model-{other}-of-2.safetensors").into();
        },
        &[index, "query_tokens", "does not hold"],
    );
    edited(
        |index| index["weight_map"]["nowhere"] = "model-1-of-2.safetensors".into(),
        &[index, "nowhere"],
    );
    // Files outside the directory are none of its shards.
    for path in [
        "/etc/passwd",
        "../model.safetensors",
        "a/b.safetensors",
        "",
        ".",
    ] {
        let error = refused(
            |dir, weights| {
                write_shards(dir, weights, |index| index["weight_map"]["x"] = path.into())
            },
            &[index, "beside the index"],
        );
        assert!(matches!(error, Error::Index { .. }), "{error}");
    }
    edited(
        |index| *index = serde_json::json!({"metadata": {}}),
        &[index, "weight_map"],
    );
    edited(|index| *index = serde_json::json!([1, 2]), &[index]);
}

#[test]
fn a_directory_without_weights_says_what_it_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("index.json"),
        "{error}"
    );
    let bin = dir.path().join("pytorch_model.bin");
    std::fs::write(&bin, b"\x80\x02}.").unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Torch { .. }), "{error}");
    assert!(
        error.to_string().starts_with(bin.to_str().unwrap()),
        "{error}"
    );
    let missing = dir.path().join("nowhere");
    assert!(matches!(Checkpoint::open(&missing), Err(Error::Io { path, .. }) if path == missing));
    assert!(Checkpoint::from_files(&[dir.path()]).is_err());
}

#[test]
fn a_subset_keeps_names_shapes_dtypes_and_bytes() {
    let golden = read("shallow");
    let [_, halved] = halved(&golden, DType::F16);
    let whole = Checkpoint::open(halved.path()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let parts = [
        ("vision.safetensors", vec!["vision_model."]),
        ("qformer.safetensors", vec!["query_tokens", "qformer."]),
        ("projection.safetensors", vec!["language_projection."]),
    ];
    let mut paths = Vec::new();
    for (file, prefixes) in parts {
        let path = dir.path().join(file);
        let weights: Vec<Weight> = whole.iter().map(Weight::from).collect();
        let part: Vec<&Weight> = weights
            .iter()
            .filter(|weight| {
                prefixes
                    .iter()
                    .any(|prefix| weight.name.starts_with(prefix))
            })
            .collect();
        let kept = write_weights(&part, None, &path, &|_| ()).unwrap();
        assert!(kept.is_empty());
        paths.push(path);
    }
    let bundle = Checkpoint::from_files(&paths).unwrap();
    assert!(whole.names().eq(bundle.names()));
    for (one, other) in whole.iter().zip(bundle.iter()) {
        assert_eq!(
            (one.dtype, one.shape, one.read().unwrap()),
            (other.dtype, other.shape, other.read().unwrap())
        );
    }
    assert_eq!(bundle.raw("query_tokens").unwrap().path, paths[1]);
    golden.load(&bundle, DType::F32).unwrap();

    let twice = Checkpoint::from_files(&[&paths[2], &paths[2]]).unwrap_err();
    assert!(matches!(twice, Error::DuplicateTensor { .. }), "{twice}");
}

/// A weight that is in no file.
fn weight(name: &str, values: &[f32]) -> Weight<'static> {
    Weight {
        name: name.to_owned(),
        shape: vec![values.len()],
        values: Values::Computed(values.to_vec()),
        path: "memory".into(),
    }
}

#[test]
fn what_f16_cannot_hold_is_written_as_f32() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let weights = [
        weight("within", &[65504.0, -1.5, 2e-8]),
        weight("beyond", &[65536.0, -1.5, 0.1]),
    ];
    let weights: Vec<&Weight> = weights.iter().collect();
    let kept = write_weights(&weights, Some(WeightType::F16), &path, &|_| ()).unwrap();
    assert_eq!(kept, ["beyond"]);
    let written = Checkpoint::from_files(&[&path]).unwrap();
    assert_eq!(written.dtype("within").unwrap(), Dtype::F16);
    assert_eq!(
        written.raw("within").unwrap().to_f32().unwrap(),
        [65504.0, -1.5, 0.0]
    );
    assert_eq!(written.dtype("beyond").unwrap(), Dtype::F32);
    assert_eq!(
        written.raw("beyond").unwrap().to_f32().unwrap(),
        [65536.0, -1.5, 0.1]
    );

    let kept = write_weights(&weights, Some(WeightType::Bf16), &path, &|_| ()).unwrap();
    assert!(kept.is_empty());
    let written = Checkpoint::from_files(&[&path]).unwrap();
    assert_eq!(
        written.raw("beyond").unwrap().to_f32().unwrap(),
        [65536.0, -1.5, 0.100_097_656]
    );
}

#[test]
fn matrices_in_8_bits_have_a_scale_for_each_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weights.safetensors");
    let values = [127.0, -63.6, 0.4, 0.0, 0.0, 0.0, -2.54, 1.27, 0.013];
    let matrix = |name: &str| Weight {
        shape: vec![3, 3],
        ..weight(name, &values)
    };
    let weights = [
        matrix("a.weight"),
        matrix("embeddings.weight"),
        weight("a.bias", &[0.1, 0.2, 70000.0]),
    ];
    let weights: Vec<&Weight> = weights.iter().collect();
    let told = std::cell::Cell::new(0);
    let progress = |n| told.set(told.get() + n);
    let kept = write_weights(&weights, Some(WeightType::Int8), &path, &progress).unwrap();
    assert_eq!(kept, ["a.bias"]);
    let written = Checkpoint::from_files(&[&path]).unwrap();
    assert_eq!(written.dtype("a.weight").unwrap(), Dtype::I8);
    assert_eq!(written.dtype("embeddings.weight").unwrap(), Dtype::F16);
    let read =
        |checkpoint: &Checkpoint| checkpoint.tensor("a.weight", &[3, 3], DType::F32, &Device::Cpu);
    let found: Vec<f32> = read(&written)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    let expected = [127.0, -64.0, 0.0, 0.0, 0.0, 0.0, -2.54, 1.28, 0.02];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
    // Nine numbers and three scales, nine halves, three values.
    assert_eq!(told.get(), 9 + 3 * 4 + 9 * 2 + 3 * 4);

    // Without its scales, and with too few.
    let bytes = std::fs::read(&path).unwrap();
    let numbers = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = numbers.tensor("a.weight").unwrap();
    for scales in [None, Some([0; 8])] {
        let mut tensors = vec![("a.weight", numbers.clone())];
        if let Some(scales) = &scales {
            let scales = TensorView::new(Dtype::F32, vec![2], scales).unwrap();
            tensors.push(("a.weight_scale", scales));
        }
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        let error = read(&Checkpoint::from_files(&[&path]).unwrap()).unwrap_err();
        assert!(error.to_string().contains("a.weight_scale"), "{error}");
    }
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        let broken = weight("broken", &[1.0, value]);
        let path = dir.path().join("weights.safetensors");
        for weight_type in [None, Some(WeightType::F16), Some(WeightType::Int8)] {
            let error = write_weights(&[&broken], weight_type, &path, &|_| ()).unwrap_err();
            assert!(matches!(error, Error::NotFinite { .. }), "{error}");
        }
    }
}
