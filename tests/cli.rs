//! The command as a user meets it: exit codes, errors, files.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ndarray::{Array1, Array2};
use ndarray_npy::{NpzReader, WriteNpyExt};
use support::{lapidary, root, run};

fn model(name: &str) -> PathBuf {
    root().join("tests/models/random").join(name)
}

/// A model that generates; `top_p`, causal router.
const GENERATES: &str = "29-generate-top_p";

fn compiled(folder: &Path, model: &Path, more: &[&str]) -> PathBuf {
    let artifact = folder.join("model.lapis");
    run(lapidary().arg("-q").arg("compile").arg(model).arg("-o").arg(&artifact).args(more)).unwrap();
    artifact
}

fn output(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

/// A wrong call ends with this code and an error that names what is wrong; never with a panic.
fn fails(args: &[&str], code: i32, names: &str) {
    let (found, _, stderr) = output(lapidary().args(args));
    assert_eq!(found, code, "{args:?}: {stderr}");
    assert!(stderr.contains(names), "{args:?}: wanted `{names}` in {stderr}");
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
}

#[test]
fn errors_name_what_is_wrong_and_exit_with_their_code() {
    let tiny = model(GENERATES);
    let tiny = tiny.to_str().unwrap();
    fails(&[], 2, "Usage");
    fails(&["compile", tiny, "--target", "vax"], 2, "vax");
    fails(&["compile", tiny, "--target", "npu"], 2, "edge-16");
    fails(&["compile", tiny, "--target", "npu:edge-32", "--emit", "image"], 4, "NPU");
    fails(&["compile", tiny, "--target", "npu:edge-32", "--set", "matrix.rows=0"], 2, "matrix.rows");
    fails(&["compile", tiny, "--set", "matrix.rows=8"], 2, "npu:MACHINE");
    fails(&["compile", tiny, "--quant", "fp31"], 2, "fp31");
    fails(&["compile", tiny, "--budget", "much"], 2, "900MB");
    fails(&["compile", tiny, "--budget", "1kB", "--dump-ir", "quantized"], 3, "the smallest that the weights of");
    fails(&["compile", tiny, "--quant", "/nowhere.toml"], 1, "/nowhere.toml");
    fails(&["compile", tiny, "--emit", "object"], 4, "object");
    fails(&["compile", tiny, "--emit", "nonsense"], 2, "nonsense");
    fails(&["compile", tiny, "--max-tokens", "1000000"], 2, "max-tokens");
    fails(&["compile", tiny, "--dump-ir", "nonsense"], 2, "nonsense");
    fails(&["compile", "preset:gem-huge", "--dry-run"], 1, "gem-huge");
    fails(&["compile", "/nowhere/at/all", "--dry-run"], 1, "/nowhere/at/all");
    fails(&["compile", "preset:gem-paper", "--target", "rpi4", "-o", "/tmp/never.lapis"], 4, "--dry-run");
    fails(&["run", "/nowhere.lapis", "--prompt", "x"], 1, "/nowhere.lapis");
    fails(&["inspect", "Cargo.toml"], 1, "Cargo.toml");
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), Path::new(tiny), &[]);
    let artifact = artifact.to_str().unwrap();
    fails(&["run", artifact], 2, "--prompt");
    fails(&["run", artifact, "--prompt", "x"], 1, "tokenizer");
    fails(&["run", artifact, "--prompt", "x", "--top-p", "0"], 2, "--top-p");
    fails(&["bench", artifact, "--routing", "uniform"], 4, "--routing");
    fails(&["bench", artifact, "--tokens", "0"], 2, "--tokens");
    fails(&["bench", artifact, "--tokens", "9999"], 2, "9999");
    fails(&["compare", artifact, "--with", "nothing"], 2, "nothing");
}

#[test]
fn recipes_come_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = model(GENERATES);
    let tiny = tiny.to_str().unwrap();
    let recipe = folder.path().join("mine.toml");
    let path = recipe.to_str().unwrap();
    let write = |text: &str| std::fs::write(&recipe, text).unwrap();
    write("base = \"fp32\"\nkv_cache = \"int8\"\n[weights]\n\"layers.0.attention\" = \"int4:64\"\n");
    let text = run(lapidary().args(["compile", tiny, "--quant", path, "--dump-ir", "quantized"])).unwrap();
    assert!(text.contains("weight @model.layers.0.attn.q_proj.weight: int4:64["), "{text}");
    assert!(text.contains("weight @model.layers.0.general.up_proj.weight: f32["), "{text}");
    assert!(text.contains("kv_cache = int8}"), "{text}");
    write("[weights]\nmodulse = \"int8\"\n");
    fails(&["compile", tiny, "--quant", path, "--dry-run"], 2, "pattern `modulse`");
    fails(&["compile", tiny, "--quant", path, "--dry-run"], 2, "did you mean `modules`?");
    write("[weights]\nnorm = \"int8\"\n");
    fails(&["compile", tiny, "--quant", path, "--dry-run"], 2, "recipe mine: `norm` = int8: wanted fp32, fp16");
    write("base = hybrid");
    fails(&["compile", tiny, "--quant", path, "--dry-run"], 2, "recipe mine: TOML parse error at line 1");
    write(&" ".repeat((1 << 20) + 1));
    fails(&["compile", tiny, "--quant", path, "--dry-run"], 2, "1048576 bytes");
    // A budget starts from hybrid and lowers.
    let text =
        run(lapidary().args(["compile", "preset:gem-tiny", "--budget", "260kB", "--dump-ir", "quantized"])).unwrap();
    assert!(text.contains("weight @model.layers.0.general.up_proj.weight: int4:32["), "{text}");
}

#[test]
fn a_comparison_that_misses_exits_with_3() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), &model(GENERATES), &[]);
    let with = model("28-generate-threshold").join("reference.npz");
    let (code, stdout, stderr) = output(lapidary().arg("compare").arg(&artifact).arg("--with").arg(with));
    assert_eq!(code, 3, "{stdout}{stderr}");
    assert!(stdout.contains("DIFFERS"));
}

#[test]
fn equal_input_gives_equal_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for target in ["x86-64-v3", "rpi4"] {
        let artifacts = [&one, &two].map(|folder| compiled(folder.path(), &model(GENERATES), &["--target", target]));
        let [a, b] = artifacts.map(|path| std::fs::read(path).unwrap());
        assert!(a == b, "{target}: two compilations differ");
    }
}

#[test]
fn only_the_finished_artifact_is_left() {
    let folder = tempfile::tempdir().unwrap();
    compiled(folder.path(), &model(GENERATES), &[]);
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["model.lapis"]);
    // A model that cannot be read leaves the artifact of before.
    let before = std::fs::read(folder.path().join("model.lapis")).unwrap();
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for file in ["config.json", "model.safetensors"] {
        let bytes = std::fs::read(model(GENERATES).join(file)).unwrap();
        std::fs::write(broken.join(file), &bytes[..bytes.len() / 2]).unwrap();
    }
    let (code, ..) = output(lapidary().arg("compile").arg(&broken).arg("-o").arg(folder.path().join("model.lapis")));
    assert_eq!(code, 1);
    assert!(std::fs::read(folder.path().join("model.lapis")).unwrap() == before);
}

#[test]
fn plain_tensors_go_in_and_out() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), &model(GENERATES), &[]);
    let (ids, out) = (folder.path().join("ids.npy"), folder.path().join("out.npz"));
    let write = |ids_: &[i64]| {
        Array1::from(ids_.to_vec()).write_npy(std::fs::File::create(&ids).unwrap()).unwrap();
    };
    let call = || {
        let mut command = lapidary();
        command
            .arg("run")
            .arg(&artifact)
            .arg("--input")
            .arg(format!("ids=@{}", ids.display()))
            .arg("--output")
            .arg(&out);
        command
    };
    write(&[5, 1, 96, 0, 7]);
    run(&mut call()).unwrap();
    let mut npz = NpzReader::new(std::fs::File::open(&out).unwrap()).unwrap();
    let logits: Array2<f32> = npz.by_name("logits").unwrap();
    let domains: Array2<f32> = npz.by_name("domains").unwrap();
    let modules: Array2<u8> = npz.by_name("modules.0").unwrap();
    let gates: Array2<f32> = npz.by_name("gates.0").unwrap();
    assert_eq!(logits.shape(), [5, 97]);
    assert_eq!(domains.nrows(), 5);
    assert!(domains.rows().into_iter().all(|row| (row.sum() - 1.0).abs() < 1e-5));
    assert_eq!(modules.shape(), gates.shape());
    assert!(modules.iter().zip(&gates).all(|(m, g)| *m <= 1 && (*m == 1 || *g == 0.0)));
    for (wrong, names) in [(&[5, -1][..], "element 1"), (&[97][..], "97"), (&[][..], "")] {
        write(wrong);
        let (code, _, stderr) = output(&mut call());
        assert_eq!(code, 1, "{wrong:?}");
        assert!(stderr.contains(names) && !stderr.contains("panicked"), "{wrong:?}: {stderr}");
    }
}

#[test]
fn a_context_that_is_too_long_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), &model(GENERATES), &["--max-tokens", "8"]);
    let ids = folder.path().join("ids.npy");
    Array1::from(vec![1_i64; 9]).write_npy(std::fs::File::create(&ids).unwrap()).unwrap();
    let (code, _, stderr) = output(
        lapidary()
            .arg("run")
            .arg(artifact)
            .arg("--input")
            .arg(format!("ids=@{}", ids.display()))
            .arg("--output")
            .arg(folder.path().join("out.npz")),
    );
    assert_eq!(code, 1);
    assert!(stderr.contains('8') && stderr.contains('9'), "{stderr}");
}

#[test]
fn text_comes_out_the_same_for_a_seed_and_stops_at_the_context() {
    let folder = tempfile::tempdir().unwrap();
    let mini = root().join("tests/models/gem-mini");
    let artifact = compiled(folder.path(), &mini, &["--max-tokens", "24"]);
    let say = |more: &[&str]| {
        let (code, stdout, stderr) =
            output(lapidary().arg("run").arg(&artifact).args(["--prompt", "The patient should"]).args(more));
        assert_eq!(code, 0, "{stderr}");
        assert!(stdout.starts_with("The patient should"), "{stdout}");
        (stdout, stderr)
    };
    let greedy = say(&["--max-new", "6"]).0;
    assert_eq!(greedy, say(&["--max-new", "6", "--threads", "2"]).0);
    let sampled = ["--temperature", "2", "--max-new", "12", "--ignore-eos"];
    let seeds: Vec<String> =
        ["1", "2", "3", "1"].map(|seed| say(&[&sampled[..], &["--seed", seed]].concat()).0).to_vec();
    assert_eq!(seeds[0], seeds[3]);
    assert!(seeds[0] != seeds[1] || seeds[0] != seeds[2], "three seeds, one text");
    assert!(say(&["--max-new", "500", "--ignore-eos"]).1.contains("the context is full"));
}

/// A tokenizer of four words, for models that have none.
const WORDS: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 96, "[UNK]": 3}, "unk_token": "[UNK]"}}"#;

#[test]
fn text_is_classified_and_embedded_as_its_tokens_are() {
    for name in ["02-threshold-clustered-causal-router-embed-fp16", "06-top_p-full-null-router-classify-fp16"] {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("model");
        std::fs::create_dir(&copy).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(model(name).join(file), copy.join(file)).unwrap();
        }
        std::fs::write(copy.join("tokenizer.json"), WORDS).unwrap();
        let artifact = compiled(folder.path(), &copy, &[]);
        let said = run(lapidary().arg("run").arg(&artifact).args(["--text", "a c b a"])).unwrap();
        let (ids, out) = (folder.path().join("ids.npy"), folder.path().join("out.npz"));
        Array1::from(vec![0_i64, 96, 1, 0]).write_npy(std::fs::File::create(&ids).unwrap()).unwrap();
        let input = format!("ids=@{}", ids.display());
        run(lapidary().arg("run").arg(&artifact).args(["--input", &input]).arg("--output").arg(&out)).unwrap();
        let wanted: Array2<f32> =
            NpzReader::new(std::fs::File::open(&out).unwrap()).unwrap().by_name("output").unwrap();
        let found: Vec<f32> = if name.contains("embed") {
            serde_json::from_str(&said).unwrap()
        } else {
            said.lines().map(|line| line.split_once('\t').unwrap().1.parse().unwrap()).collect()
        };
        assert_eq!(found, wanted.iter().copied().collect::<Vec<_>>(), "{name}");
        let (code, _, stderr) = output(lapidary().arg("run").arg(&artifact).args(["--prompt", "a"]));
        assert_eq!(code, 4, "{stderr}");
    }
}

#[test]
fn lists_are_json_with_a_schema() {
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&run(lapidary().args(args).args(["--format", "json"])).unwrap()).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let artifact = compiled(folder.path(), &model(GENERATES), &[]);
    let artifact = artifact.to_str().unwrap();
    let targets = json(&["targets"]);
    assert_eq!(targets["schema"], "lapidary.targets/1");
    let names: Vec<_> = targets["targets"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["native", "x86-64-v3", "x86-64-v4", "rpi4", "rpi5"]);
    assert_eq!(json(&["kernels"])["schema"], "lapidary.kernels/1");
    assert_eq!(json(&["passes"])["schema"], "lapidary.passes/1");
    assert_eq!(json(&["inspect", artifact, "--check"])["checked"], true);
    assert_eq!(json(&["inspect", "preset:gem-tiny"])["schema"], "lapidary.inspect-model/1");
    let bench = json(&["bench", artifact, "--reps", "3", "--tokens", "1,4", "--threads", "1"]);
    let results = bench["results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for result in results {
        for key in ["tokens_per_s", "min_ms", "median_ms", "p99_ms", "peak_rss_bytes", "bytes_per_token", "limit_ratio"]
        {
            assert!(result[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {result}");
        }
    }
}

#[test]
fn the_graph_can_be_printed_after_every_phase_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for stop in ["imported", "canonical", "quantized", "fused", "planned", "merge-projections"] {
        let text = run(lapidary().args(["compile", "preset:gem-tiny", "--dump-ir", stop])).unwrap();
        assert!(text.starts_with("lir 1"), "{stop}");
        let file = folder.path().join("graph.lir");
        std::fs::write(&file, &text).unwrap();
        if stop != "planned" {
            run(lapidary().arg("compile").arg(&file).args(["--dry-run", "--target", "rpi4"])).unwrap();
        }
    }
    let alone = run(lapidary().args(["compile", "preset:gem-tiny", "--passes", "fuse-swiglu"])).unwrap();
    assert!(alone.contains("linear.swiglu") && alone.contains("expert.apply"), "{alone}");
    let why = run(lapidary().args(["compile", "preset:gem-small", "--why-not", "fold-scale"])).unwrap();
    assert!(why.contains("fired"), "{why}");
}
