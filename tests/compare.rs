//! `lapidary compare` of quantized artifacts: what it accepts, and that it finds what is wrong.

mod support;

use std::path::{Path, PathBuf};

use lapidary_format::Packing;
use lapidary_runtime::ArtifactFile;
use serde_json::Value;
use support::{lapidary, output, root, run};

fn model() -> PathBuf {
    root().join("tests/models/random/30-generate-top_k")
}

/// The model in a recipe, for this machine.
fn compiled(folder: &Path, recipe: &str) -> PathBuf {
    let artifact = folder.join("model.lapis");
    run(lapidary().args(["-q", "compile"]).arg(model()).args(["--quant", recipe, "-o"]).arg(&artifact)).unwrap();
    artifact
}

/// Exit code and result of `compare --with reference`.
fn compare(artifact: &Path, more: &[&str]) -> (i32, Value) {
    let mut command = lapidary();
    command.args(["-q", "compare", "--format", "json"]).arg(artifact).args(["--with", "reference", "--model"]);
    let output = output(command.arg(model()).args(more)).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let result = serde_json::from_str(&text).unwrap_or_else(|_| String::from_utf8_lossy(&output.stderr).into());
    (output.status.code().unwrap(), result)
}

/// Ops with a wrong element.
fn wrong(result: &Value) -> Vec<&str> {
    let ops = result["ops"].as_array().unwrap();
    ops.iter().filter(|op| op["wrong"] != 0).map(|op| op["op"].as_str().unwrap()).collect()
}

#[test]
fn every_node_of_a_quantized_artifact_is_held_to_its_definition() {
    let folder = tempfile::tempdir().unwrap();
    let (code, result) = compare(&compiled(folder.path(), "int4"), &[]);
    assert_eq!((code, &result["agrees"]), (0, &Value::Bool(true)), "{result:#}");
    assert_eq!(result["schema"], "lapidary.compare-quantized/1");
    assert_eq!(result["with"], "the reference interpreter in recipe int4");
    let ops: Vec<_> = result["ops"].as_array().unwrap().iter().map(|op| op["op"].as_str().unwrap()).collect();
    for op in ["embed", "linear", "linear.swiglu", "expert.ffn", "route.select", "route.group", "rope", "rms_norm"] {
        assert!(ops.contains(&op), "{op} is not among {ops:?}");
    }
    // What int4 costs a random model is far more than what rounding turns.
    let nats = |what: &str| result[what]["nats_per_token"].as_f64().unwrap();
    assert!(nats("recipe_cost") > 10.0 * nats("drift"), "{result:#}");
    assert!(result["generated"].as_u64().unwrap() > 0);
}

#[test]
fn one_changed_weight_is_found_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), "hybrid");
    let bytes = std::fs::read(&artifact).unwrap();
    let file = ArtifactFile::open(&artifact).unwrap();
    let weights = file.artifact().weights_range().start as usize;
    for (component, op) in [("attention", "linear"), ("general", "linear.swiglu")] {
        let mut tensors = file.artifact().tensors().iter().filter(|t| t.component == component);
        let tensor = tensors.find(|t| t.packing == Packing::Panels).unwrap();
        let mut damaged = bytes.clone();
        // The sign of a code.
        damaged[weights + tensor.offset as usize] ^= 0x80;
        let path = folder.path().join("damaged.lapis");
        std::fs::write(&path, damaged).unwrap();
        let (code, result) = compare(&path, &[]);
        assert_eq!(code, 3, "{component}: {result:#}");
        assert_eq!(wrong(&result), [op], "{component}: {result:#}");
    }
}

#[test]
fn outputs_of_another_machine_are_held_end_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), "hybrid");
    let (ids, outputs) = (folder.path().join("ids.npz"), folder.path().join("outputs.npz"));
    support::copy_ids(&model().join("reference.npz"), &ids);
    let input = format!("ids=@{}", ids.display());
    let run_on = |artifact: &Path| {
        run(lapidary().args(["-q", "run"]).arg(artifact).args(["--input", &input, "--output"]).arg(&outputs)).unwrap();
    };
    run_on(&artifact);
    let elsewhere = ["--outputs", outputs.to_str().unwrap()];
    let (code, result) = compare(&artifact, &elsewhere);
    assert_eq!((code, wrong(&result).len()), (0, 0), "{result:#}");
    // Those of the model in four bits are further away than those of hybrid may be.
    let other = tempfile::tempdir().unwrap();
    run_on(&compiled(other.path(), "int4"));
    let (code, result) = compare(&artifact, &elsewhere);
    assert_eq!((code, &result["agrees"]), (3, &Value::Bool(false)), "{result:#}");
}

#[test]
fn bounds_of_floats_are_none_of_codes() {
    let folder = tempfile::tempdir().unwrap();
    let (code, message) = compare(&compiled(folder.path(), "hybrid"), &["--atol", "0.5"]);
    assert_eq!(code, 2);
    assert!(message.as_str().unwrap().contains("--atol"), "{message}");
}
