//! `qbridge classify` on the small CLIPs of `golden/make_clip.py`.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use candle_core::Device;
use qbridge_tests::{golden, one_line_error, qbridge, repository, stdout};
use serde_json::Value;

struct Golden {
    pictures: Vec<PathBuf>,
    labels: Vec<String>,
    templates: Vec<String>,
}

fn read() -> Golden {
    let text = std::fs::read_to_string(golden("clip/golden.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let list = |key: &str| serde_json::from_value::<Vec<String>>(json[key].clone()).unwrap();
    let pictures = list("pictures").into_iter();
    Golden {
        pictures: pictures.map(|path| repository().join(path)).collect(),
        labels: list("labels"),
        templates: list("templates"),
    }
}

/// A file of labels, with blank lines and spaces around.
fn label_file(labels: &[String]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("labels.txt");
    std::fs::write(&path, format!("\n{} \r\n\n", labels.join("\n"))).unwrap();
    (dir, path)
}

#[test]
fn probabilities_are_those_of_transformers() {
    let read = read();
    let (_dir, labels) = label_file(&read.labels);
    for name in ["openai", "gelu"] {
        let outputs = golden(&format!("clip/{name}.safetensors"));
        let outputs = candle_core::safetensors::load(outputs, &Device::Cpu).unwrap();
        let expected = outputs["probabilities"].to_vec2::<f32>().unwrap();
        let mut classify = qbridge(["classify", "--json", "--top", "9", "--vision", "f32"]);
        for template in &read.templates {
            classify.args(["--template", template]);
        }
        classify.arg("--labels").arg(&labels);
        classify
            .arg(golden(&format!("clip/{name}")))
            .args(&read.pictures);
        let lines = stdout(&mut classify);
        assert_eq!(lines.lines().count(), 20);
        for (line, (expected, picture)) in lines.lines().zip(expected.iter().zip(&read.pictures)) {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["image"], picture.to_str().unwrap());
            let found = line["labels"].as_array().unwrap();
            assert_eq!(found.len(), read.labels.len());
            let probability = |label: &Value| label["probability"].as_f64().unwrap() as f32;
            assert!(found.is_sorted_by(|a, b| probability(a) >= probability(b)));
            for label in found {
                let place = read
                    .labels
                    .iter()
                    .position(|l| label["label"] == **l)
                    .unwrap();
                assert!(
                    (probability(label) - expected[place]).abs() < 1e-4,
                    "{line}"
                );
            }
        }
    }
}

#[test]
fn a_table_names_pictures_and_labels() {
    let read = read();
    let (_dir, labels) = label_file(&read.labels);
    let mut classify = qbridge(["classify", "--top", "2", "--labels"]);
    classify
        .arg(labels)
        .arg(golden("clip/openai"))
        .args(&read.pictures[..2]);
    let table = stdout(&mut classify);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 1 + 2 * 2, "{table}");
    assert_eq!(lines[0], "probability  image  label");
    assert!(
        lines[3].contains(read.pictures[1].to_str().unwrap()),
        "{table}"
    );
}

#[test]
fn what_cannot_be_classified_is_named() {
    let read = read();
    let (dir, labels) = label_file(&read.labels);
    let run = |labels: &PathBuf, checkpoint: PathBuf, image: &PathBuf, args: &[&str]| {
        let mut classify = qbridge(["classify", "--labels"]);
        one_line_error(classify.arg(labels).arg(checkpoint).arg(image).args(args))
    };
    let clip = || golden("clip/openai");
    let picture = &read.pictures[0];
    let none = dir.path().join("none.txt");
    assert!(run(&none, clip(), picture, &[]).contains("none.txt"));
    std::fs::write(&none, "\n \n").unwrap();
    assert!(run(&none, clip(), picture, &[]).contains("none.txt: no labels"));
    assert!(run(&labels, clip(), &none, &[]).contains("none.txt"));
    let error = run(&labels, clip(), picture, &["--template", "a photo"]);
    assert!(error.contains("\"a photo\" has no {}"), "{error}");
    let error = run(&labels, golden("blip/captioning"), picture, &[]);
    assert!(error.contains("\"blip\" is not \"clip\""), "{error}");
    let both = run(&"-".into(), clip(), &"-".into(), &[]);
    assert!(both.contains("not both"), "{both}");
}
