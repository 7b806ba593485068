//! Model folders whose tensors are not what config.json promises. Every error names the tensor or the file.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use lapidary_compiler::import::{ImportOptions, load_gem, source_digest};
use lapidary_compiler::ir::Storage;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A small model with every kind of tensor.
fn original() -> (String, Tensors) {
    let folder = support::models_dir().join("random/15-top_p-clustered-windowed-router-lm-bf16");
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
    (config, tensors.collect())
}

fn bytes_of(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(n, (d, s, b))| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn folder(config: &str, files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn error_of(dir: &Path) -> String {
    match load_gem(dir, &ImportOptions::default()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("no error"),
    }
}

fn assert_error(files: &[(&str, &[u8])], parts: &[&str]) {
    let dir = folder(&original().0, files);
    let error = error_of(dir.path());
    assert!(parts.iter().all(|p| error.contains(p)), "wanted {parts:?} in: {error}");
}

#[test]
fn missing_unknown_and_misshaped_tensors_are_named() {
    let (_, tensors) = original();
    for name in tensors.keys() {
        let mut some = tensors.clone();
        some.remove(name);
        assert_error(&[("model.safetensors", &bytes_of(&some))], &[name, "wanted a tensor of shape", "found none"]);
    }
    let mut more = tensors.clone();
    more.insert("model.extra.weight".into(), (Dtype::F32, vec![1], vec![0; 4]));
    let wanted = ["tensor model.extra.weight: wanted no such tensor for this config.json", "f32[1]"];
    assert_error(&[("model.safetensors", &bytes_of(&more))], &wanted);
    let mut other = tensors.clone();
    let norm = other.get_mut("model.norm.weight").unwrap();
    norm.1 = vec![1, norm.1[0]];
    assert_error(&[("model.safetensors", &bytes_of(&other))], &["tensor model.norm.weight: wanted shape"]);
}

#[test]
fn other_element_types_are_named() {
    let (_, mut tensors) = original();
    let entry = tensors.get_mut("model.norm.weight").unwrap();
    *entry = (Dtype::F64, entry.1.clone(), vec![0; entry.1[0] * 8]);
    let wanted = ["model.norm.weight", "wanted F32, F16 or BF16", "F64"];
    assert_error(&[("model.safetensors", &bytes_of(&tensors))], &wanted);
}

#[test]
fn lying_files_are_errors() {
    let whole = bytes_of(&original().1);
    let cut = &whole[..whole.len() - 3];
    let mut long_header = whole.clone();
    long_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let header = br#"{"model.norm.weight":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#;
    let overflow = [&(header.len() as u64).to_le_bytes()[..], header].concat();
    let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let twice = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    let extra = [whole.clone(), vec![0; 5]].concat();
    for bytes in [&b""[..], b"\0\0\0", cut, &long_header, &overflow, &twice, &extra, &whole[..100]] {
        assert_error(&[("model.safetensors", bytes)], &["model.safetensors: safetensors header: wanted a valid one"]);
    }
    assert_error(&[], &["weights: wanted *.safetensors, found none"]);
}

#[test]
fn truncated_and_flipped_files_never_panic() {
    let (config, tensors) = original();
    let whole = bytes_of(&tensors);
    for at in (0..2000.min(whole.len())).step_by(7) {
        let mut broken = whole.clone();
        broken[at] ^= 0x15;
        let dir = folder(&config, &[("model.safetensors", &broken)]);
        // Most flips are errors; some only rename metadata or change a number.
        let _ = load_gem(dir.path(), &ImportOptions::default());
    }
}

/// Splits the tensors over two files.
fn shards() -> (Vec<u8>, Vec<u8>, serde_json::Value) {
    let (_, tensors) = original();
    let half = tensors.len() / 2;
    let first: Tensors = tensors.clone().into_iter().take(half).collect();
    let second: Tensors = tensors.into_iter().skip(half).collect();
    let lines = first.keys().map(|n| (n.clone(), "a.safetensors".into()));
    let lines = lines.chain(second.keys().map(|n| (n.clone(), "b.safetensors".into())));
    let map: serde_json::Map<String, serde_json::Value> = lines.collect();
    (bytes_of(&first), bytes_of(&second), serde_json::json!({ "metadata": {}, "weight_map": map }))
}

#[test]
fn shards_load_with_and_without_an_index() {
    let (config, tensors) = original();
    let (a, b, index) = shards();
    let index = index.to_string();
    let without = folder(&config, &[("a.safetensors", &a), ("b.safetensors", &b)]);
    // With an index, files that it does not name are none of the model's.
    let with = folder(
        &config,
        &[
            ("a.safetensors", &a),
            ("b.safetensors", &b),
            ("other.safetensors", b"no tensors"),
            ("model.safetensors.index.json", index.as_bytes()),
        ],
    );
    for dir in [without.path(), with.path()] {
        let model = load_gem(dir, &ImportOptions::default()).unwrap();
        assert_eq!(model.graph.weights.len(), tensors.len());
        assert_eq!(model.graph.info.source_digest, source_digest(dir).unwrap());
    }
}

#[test]
fn wrong_indices_are_errors() {
    let (a, b, index) = shards();
    let with = |index: &serde_json::Value, parts: &[&str]| {
        let index = index.to_string();
        let files: [(&str, &[u8]); 3] =
            [("a.safetensors", &a), ("b.safetensors", &b), ("model.safetensors.index.json", index.as_bytes())];
        assert_error(&files, parts);
    };
    let mut moved = index.clone();
    moved["weight_map"]["model.norm.weight"] = "a.safetensors".into();
    with(&moved, &["tensor model.norm.weight: wanted in a.safetensors", "b.safetensors"]);
    let mut missing = index.clone();
    missing["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
    with(&missing, &["tensor model.norm.weight: wanted a line for each tensor"]);
    let mut outside = index.clone();
    outside["weight_map"]["model.norm.weight"] = "../a.safetensors".into();
    with(&outside, &["weight_map: wanted names of safetensors files in the folder"]);
    let mut absent = index.clone();
    absent["weight_map"]["model.norm.weight"] = "c.safetensors".into();
    with(&absent, &["c.safetensors"]);
    with(&serde_json::json!({ "weight_map": 3 }), &["index: wanted a weight_map"]);
    let whole = bytes_of(&original().1);
    assert_error(
        &[("a.safetensors", &whole), ("b.safetensors", &b)],
        &["wanted each tensor once", "a.safetensors too"],
    );
}

#[test]
fn matrices_keep_the_checkpoints_type_and_small_parts_are_f32() {
    let (config, tensors) = original();
    let dir = folder(&config, &[("model.safetensors", &bytes_of(&tensors))]);
    let model = load_gem(dir.path(), &ImportOptions::default()).unwrap();
    for w in &model.graph.weights {
        let small = ["norm.weight", "scar.keys", "scar.values", "token_router.head.weight"];
        let wanted = if small.iter().any(|s| w.name.ends_with(s)) { Storage::F32 } else { Storage::Bf16 };
        assert_eq!(w.storage, wanted, "{}", w.name);
    }
}
