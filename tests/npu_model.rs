//! Models compiled for an NPU, from the command line: simulate, inspect, disasm, and who refuses them.

#[path = "support/npu_artifact.rs"]
mod npu_artifact;
mod support;

use std::path::{Path, PathBuf};

use ndarray::Array2;
use ndarray_npy::NpzReader;
use npu_artifact::{MAX_TOKENS, VOCAB, next};
use serde_json::Value;
use support::{lapidary, output, root, run};

/// Exit code and stderr.
fn fails(args: &[&str]) -> (i32, String) {
    let output = output(lapidary().args(args)).unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn simulate(args: &[&str]) -> Value {
    serde_json::from_str(&run(lapidary().args(["-q", "simulate", "--format", "json"]).args(args)).unwrap()).unwrap()
}

/// The table model in a file.
fn table(folder: &Path) -> PathBuf {
    let path = folder.join("table.lapis");
    std::fs::write(&path, npu_artifact::artifact()).unwrap();
    path
}

/// An `ids.npy` or `.npz`.
fn ids(path: &Path, ids: &[u32]) -> String {
    let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
    ndarray_npy::write_npy(path, &ndarray::Array1::from(ids)).unwrap();
    format!("ids=@{}", path.display())
}

#[test]
fn prefill_in_chunks_and_greedy_decode_give_the_tokens_of_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let (artifact, out) = (table(folder.path()), folder.path().join("out.npz"));
    let artifact = artifact.to_str().unwrap();
    let sequence = [1, 2, 3, 4, 5, 6];
    let input = ids(&folder.path().join("ids.npy"), &sequence);
    let result = simulate(&[artifact, "--input", &input, "--output", out.to_str().unwrap(), "--max-new", "3"]);
    let mut wanted = vec![next(6)];
    (0..2).for_each(|i| wanted.push(next(wanted[i])));
    assert_eq!(result["sequences"][0]["generated"], Value::from(wanted.clone()));
    assert_eq!((&result["schema"], &result["machine"]), (&"lapidary.sim/1".into(), &"edge-16".into()));
    // Four tokens and two, then three calls of one.
    let [prefill, decode] = [&result["phases"][0], &result["phases"][1]];
    assert_eq!((&prefill["phase"], &prefill["runs"], &prefill["tokens"]), (&"prefill".into(), &2.into(), &6.into()));
    assert_eq!((&decode["phase"], &decode["runs"], &decode["tokens"]), (&"decode".into(), &3.into(), &3.into()));
    let cycles = |phase: &Value| phase["cycles"].as_u64().unwrap();
    assert_eq!(result["cycles"], cycles(prefill) + cycles(decode));
    assert!(decode["bound"]["share"].as_f64().unwrap() > 0.0);
    let ops: Vec<&str> = result["ops"].as_array().unwrap().iter().map(|op| op["op"].as_str().unwrap()).collect();
    assert!(ops.contains(&"layers.0.table") && ops.contains(&"logits"), "{ops:?}");
    let mut arrays = NpzReader::new(std::fs::File::open(&out).unwrap()).unwrap();
    let logits: Array2<f32> = arrays.by_name("logits").unwrap();
    assert_eq!(logits.dim(), (sequence.len(), VOCAB as usize));
    for (row, id) in sequence.iter().enumerate() {
        assert_eq!(logits[[row, next(*id) as usize]], 2.0, "row {row}");
    }
    let generated: ndarray::Array1<i64> = arrays.by_name("generated").unwrap();
    assert_eq!(generated.to_vec(), wanted.iter().map(|t| i64::from(*t)).collect::<Vec<_>>());
}

#[test]
fn made_up_ids_are_timed_with_values_and_without() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = table(folder.path());
    let artifact = artifact.to_str().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (trace, page, csv) = (file("t.json"), file("r.html"), file("c.csv"));
    let with = simulate(&[artifact, "--tokens", "5", "--trace", &trace, "--report", &page, "--csv", &csv]);
    assert_eq!((&with["phases"][0]["tokens"], &with["phases"][1]["tokens"]), (&5.into(), &1.into()));
    let trace: Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    assert!(!trace["traceEvents"].as_array().unwrap().is_empty());
    assert!(std::fs::read_to_string(page).unwrap().contains("<html"));
    let csv = std::fs::read_to_string(csv).unwrap();
    assert!(csv.starts_with("op,module,") && csv.contains("\nlayers.0.table,,"), "{csv}");
    let text = run(lapidary().args(["-q", "simulate", artifact, "--tokens", "5"])).unwrap();
    assert!(text.contains("prefill") && text.contains("bound by") && text.contains("layers.*.table"), "{text}");
    // Cycles are the same with values and without, with another machine's clock as well.
    let timed = ["--tokens", "5", "--timing-only", "--routing", "uniform"];
    let without = simulate(&[&[artifact], &timed[..]].concat());
    assert_eq!((&without["cycles"], &without["values"]), (&with["cycles"], &false.into()));
    let faster = simulate(&[&[artifact], &timed[..], &["--set", "clock_mhz=1000"]].concat());
    assert!(faster["latency_ms"].as_f64() < without["latency_ms"].as_f64());
    let ideal = simulate(&[&[artifact], &timed[..], &["--set", "dram.preset=ideal"]].concat());
    assert!(ideal["cycles"].as_u64() < without["cycles"].as_u64());
}

#[test]
fn several_inputs_have_a_median_a_p95_and_a_longest() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = table(folder.path());
    let path = folder.path().join("ids.npz");
    let mut npz = ndarray_npy::NpzWriter::new(std::fs::File::create(&path).unwrap());
    for (name, n) in [("prompt.000.ids", 1), ("prompt.001.ids", 4), ("prompt.002.ids", 9)] {
        npz.add_array(name, &ndarray::Array1::from((0..n).map(|i| i % 8).collect::<Vec<i64>>())).unwrap();
    }
    npz.finish().unwrap();
    let result = simulate(&[artifact.to_str().unwrap(), "--input", &format!("ids=@{}", path.display())]);
    let latencies: Vec<f64> =
        result["sequences"].as_array().unwrap().iter().map(|s| s["latency_ms"].as_f64().unwrap()).collect();
    assert_eq!(latencies.len(), 3);
    assert!(latencies[0] < latencies[2]);
    let inputs = &result["inputs"];
    assert_eq!((&inputs["p50_ms"], &inputs["max_ms"]), (&latencies[1].into(), &latencies[2].into()));
    assert_eq!(result["phases"].as_array().unwrap().len(), 1);
}

#[test]
fn routing_traces_are_read_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = table(folder.path());
    let artifact = artifact.to_str().unwrap();
    let path = folder.path().join("routing.jsonl");
    let head = r#"{"schema": "lapidary.routing/1", "layers": 2, "clusters": 4}"#;
    let route = |lines: &str| {
        std::fs::write(&path, lines).unwrap();
        let routing = format!("trace={}", path.display());
        fails(&["simulate", artifact, "--tokens", "3", "--timing-only", "--routing", &routing])
    };
    let token = |position: u32, modules: &str, gates: &str| {
        format!(r#"{{"position": {position}, "modules": {modules}, "gates": {gates}}}"#)
    };
    let good = format!(
        "{head}\n{}\n{}\n",
        token(0, "[[1], []]", "[[0.5], []]"),
        token(1, "[[0, 3], [2]]", "[[0.5, 0.25], [1]]")
    );
    assert_eq!(route(&good).0, 0);
    let cases = [
        (String::new(), "empty"),
        (head.replace("routing/1", "routing/2"), "schema"),
        (head.replace("\"layers\": 2", "\"layers\": 3"), "layers, wanted 2"),
        (head.to_string(), "at least one token"),
        (format!("{head}\nno json"), "line 2"),
        (format!("{head}\n{}", token(0, "[[1]]", "[[1]]")), "lists of 2 layers"),
        (format!("{head}\n{}", token(0, "[[4], []]", "[[1], []]")), "below 4"),
        (format!("{head}\n{}", token(0, "[[1], []]", "[[], []]")), "one per module"),
        (format!("{head}\n{}", token(3, "[[1], []]", "[[1], []]")), "position, wanted 0"),
    ];
    for (lines, names) in cases {
        let (code, errors) = route(&lines);
        assert!(code == 1 && errors.contains(names), "{lines}: {code} {errors}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = table(folder.path());
    let artifact = artifact.to_str().unwrap();
    let long = ids(&folder.path().join("long.npy"), &[0; MAX_TOKENS as usize + 1]);
    let high = ids(&folder.path().join("high.npy"), &[VOCAB]);
    let cases: [(&[&str], i32, &str); 17] = [
        (&["simulate", artifact], 2, "--prompt"),
        (&["simulate", artifact, "--tokens", "18446744073709551615"], 2, "--tokens: wanted 1 to 16"),
        (&["simulate", artifact, "--tokens", "0"], 2, "--tokens: wanted 1 to 16"),
        (&["simulate", artifact, "--tokens", "3", "--timing-only"], 2, "--routing"),
        (&["simulate", artifact, "--tokens", "3", "--routing", "zipf:x"], 2, "zipf:S"),
        (&["simulate", artifact, "--tokens", "3", "--routing", "uniform", "--modules-per-token", "9"], 2, "at most 4"),
        (&["simulate", artifact, "--tokens", "3", "--observe", "decode", "--max-new", "0"], 2, "--max-new"),
        (&["simulate", artifact, "--tokens", "3", "--quant", "int8"], 2, "lapidary compile"),
        (&["simulate", artifact, "--prompt", "x"], 4, "tokenizer"),
        (&["simulate", artifact, "--input", &long], 1, "wanted 1 to 16"),
        (&["simulate", artifact, "--input", &high], 1, "below 8"),
        (&["simulate", artifact, "--tokens", "3", "--machine", "mobile-64"], 1, "array, wanted 16 × 16"),
        (&["simulate", artifact, "--tokens", "3", "--set", "scratchpad.bytes=256"], 2, "scratchpad.bytes"),
        (&["run", artifact, "--prompt", "x"], 4, "lapidary simulate"),
        (&["bench", artifact], 4, "lapidary simulate"),
        (&["profile", artifact, "--prompt", "x"], 4, "lapidary simulate"),
        (&["disasm", artifact, "--entry", "train"], 2, "prefill, decode"),
    ];
    for (args, wanted, names) in cases {
        let (code, errors) = fails(args);
        assert!(code == wanted && errors.contains(names), "{args:?}: {code} {errors}");
    }
}

#[test]
fn inspect_shows_machine_programs_and_segments() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = table(folder.path());
    let text = run(lapidary().arg("inspect").arg(&artifact).arg("--check")).unwrap();
    for part in ["npu:edge-16", "16 × 16 array", "out.logits", "prefill, decode", "all checksums and bounds hold"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = run(lapidary().arg("inspect").arg(&artifact).args(["--format", "json"])).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["isa"], &json["target"]), (&"npu".into(), &"npu:edge-16".into()));
    assert_eq!(json["npu"]["machine"]["settings"]["matrix.rows"], 16);
    assert_eq!(json["npu"]["programs"].as_array().unwrap().len(), 2);
    assert_eq!(json["npu"]["segments"][0]["name"], "weights");
}

#[test]
fn one_program_of_an_artifact_assembles_to_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = table(folder.path());
    let (text, again) = (folder.path().join("decode.s"), folder.path().join("decode.npu"));
    std::fs::write(&text, run(lapidary().arg("disasm").arg(&artifact).args(["--entry", "decode"])).unwrap()).unwrap();
    run(lapidary().arg("asm").arg(&text).arg("-o").arg(&again)).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), npu_artifact::program().to_bytes().unwrap());
    let both = run(lapidary().arg("disasm").arg(&artifact)).unwrap();
    assert!(both.contains("npu:edge-16: prefill") && both.contains("npu:edge-16: decode"));
    assert_eq!(both.matches(".op \"layers.0.table\"").count(), 2, "{both}");
}

#[test]
fn the_bundled_model_gives_what_the_cpu_gives_and_a_recorded_routing_takes_its_cycles() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let model = root().join("tests/models/gem-mini");
    let compile = |target: &str, out: &str| {
        let options = ["--quant", "hybrid", "--max-tokens", "64", "--format", "json", "--target", target, "-o", out];
        let text = run(lapidary().args(["-q", "compile"]).arg(&model).args(options)).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let (npu, again, cpu) = (at("npu.lapis"), at("again.lapis"), at("cpu.lapis"));
    let summary = compile("npu:edge-32", &npu);
    assert_eq!((&summary["schema"], &summary["target"]), (&"lapidary.compile/1".into(), &"npu:edge-32".into()));
    assert!(summary["ops"]["npu"].as_u64().unwrap() > 50 && summary["instructions"]["decode"].as_u64().unwrap() > 100);
    assert_eq!((&summary["predicted"]["entry"], &summary["predicted"]["tokens"]), (&"decode".into(), &1.into()));
    assert!(summary["predicted"]["latency_ms"].as_f64().unwrap() > 0.0);
    compile("npu:edge-32", &again);
    assert!(std::fs::read(&npu).unwrap() == std::fs::read(&again).unwrap(), "equal input, other bytes");
    run(lapidary().args(["inspect", &npu, "--check"])).unwrap();
    compile("native", &cpu);
    // The beginning of a reference prompt, on which no code turns: two orders of sums differ by rounding alone (4e-6), and by what
    // quantization costs where one does (docs/quantization.md).
    let (input, out, trace) =
        (ids(&folder.path().join("ids.npy"), &[462, 321, 807, 89, 519]), at("cpu.npz"), at("trace"));
    run(lapidary().args(["run", &cpu, "--input", &input, "--output", &out, "--record-routing", &trace])).unwrap();
    run(lapidary().args(["-q", "compare", &npu, "--with", &out, "--atol", "1e-4"])).unwrap();
    // Without values but with the modules that the model chose itself: the same cycles, the same visits.
    let with = simulate(&[&npu, "--input", &input]);
    let without = simulate(&[&npu, "--input", &input, "--timing-only", "--routing", &format!("trace={trace}")]);
    assert_eq!((&with["cycles"], &with["selections"]), (&without["cycles"], &without["selections"]));
    assert!(with["routing"]["cycles_share"].as_f64().unwrap() > 0.0);
}

#[test]
fn presets_are_timed_without_being_written() {
    let timed = ["--machine", "edge-32", "--tokens", "3", "--timing-only", "--routing", "zipf:1"];
    let result = simulate(&[&["preset:gem-tiny", "--quant", "int8"], &timed[..]].concat());
    assert_eq!((&result["machine"], &result["model"]), (&"edge-32".into(), &"gem-tiny".into()));
    assert_eq!((&result["routed_by"], &result["phases"][0]["tokens"]), (&"zipf:1".into(), &3.into()));
    let few = simulate(&[&["preset:gem-tiny", "--quant", "int8", "--modules-per-token", "1"], &timed[..]].concat());
    assert!(few["bytes"]["dram_read"].as_u64() < result["bytes"]["dram_read"].as_u64());
}

/// Each policy, each head, both kinds of attention, with and without a router, at a length that is a multiple of nothing.
#[test]
fn models_of_all_kinds_give_what_the_cpu_gives_and_are_timed_without_values() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (npu, cpu, out) = (at("npu.lapis"), at("cpu.lapis"), at("cpu.npz"));
    let input = ids(&folder.path().join("ids.npy"), &[3, 11, 7, 7, 2, 13, 5]);
    for (number, machine) in [
        ("01", "edge-16"),
        ("03", "edge-32"),
        ("04", "mobile-64"),
        ("08", "edge-16"),
        ("19", "edge-32"),
        ("24", "mobile-64"),
        ("26", "mobile-64"),
        ("28", "edge-16"),
    ] {
        let mut models = std::fs::read_dir(root().join("tests/models/random")).unwrap().map(|e| e.unwrap().path());
        let starts = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(number);
        let model = models.find(starts).unwrap();
        let compile = |target: &str, recipe: &str, out: &str| {
            let mut command = lapidary();
            command.args(["-q", "compile"]).arg(&model).args(["--target", target, "--quant", recipe, "-o", out]);
            run(&mut command).unwrap_or_else(|e| panic!("{}: {e:?}", model.display()));
        };
        let target = format!("npu:{machine}");
        compile(&target, "fp32", &npu);
        compile("native", "fp32", &cpu);
        run(lapidary().args(["-q", "run", &cpu, "--input", &input, "--output", &out])).unwrap();
        let compared = run(lapidary().args(["-q", "compare", &npu, "--with", &out]));
        compared.unwrap_or_else(|e| panic!("{}: {e:?}", model.display()));
        compile(&target, "hybrid", &npu);
        let timed = ["--tokens", "5", "--max-new", "0", "--timing-only", "--routing", "uniform"];
        let result = simulate(&[&[&npu[..]], &timed[..]].concat());
        assert!(result["cycles"].as_u64().unwrap() > 0);
    }
}

/// What the passes always fuse, alone in a graph that is fused already.
#[test]
fn an_op_that_the_npu_has_not_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.lir");
    let text = "lir 1\nphase fused\nmodel {vocab_size = 9, max_position_embeddings = 8, why_no_decode = \"test\"}\n\
         symbol N <= 1\nweight @t: f32[9, 4] embedding = random(1, 1.0)\ninput \"ids\" = %ids: u32[T]\n\
         %x: f32[T, 4] = embed(%ids, @t)\n\
         %m: u8[T, 4], %g: f32[T, 4] = route.select(%x) {policy = top_k, k_min = 0, k_max = 1, p = 0.5, tau = 0.1, \
         capacity_factor = 1.0, norm_gates = false}\n\
         %o: u32[5], %l: u32[N], %lg: f32[N] = route.group(%m, %g)\n\
         %r: f32[N, 4] = route.gather(%x, %l)\n%y: f32[T, 4] = route.combine(%r, %l, %lg, _)\n\
         %z: f32[S, 4] = last_rows(%y)\noutput \"logits\" = %z\n";
    std::fs::write(&path, text).unwrap();
    let out = folder.path().join("x.lapis");
    let (code, stderr) =
        fails(&["compile", path.to_str().unwrap(), "--target", "npu:edge-16", "-o", out.to_str().unwrap()]);
    assert!(code == 4 && stderr.contains("route.gather"), "{code}: {stderr}");
    assert!(!out.exists());
}
