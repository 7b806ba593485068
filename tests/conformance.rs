//! Every op, lowered alone, against the reference interpreter: sizes on both sides of tile boundaries, every storage of weights,
//! prefill in chunks and token by token, on this machine and (`LAPIDARY_TEST=full`) under qemu-user.
//!
//! A case is a little graph in text form: `%x` embeds the ids in random rows, the case's ops follow, and a tied head makes
//! it a model that generates. Tolerance: inputs and sums are of order 1 and k ≤ 130 terms are added in f32, so that rounding
//! stays below k·2⁻²⁴·Σ|terms| < 2e-5 · (1 + |value|); routing decisions must be equal.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use lapidary_compiler::interp::{Data, Interpreter, Outputs};
use lapidary_compiler::ir::{Graph, NoSource, Op, WeightReader, parse};
use lapidary_compiler::ops::OPS;
use lapidary_compiler::plan::{plan_memory, why_whole_sequence};
use lapidary_runtime::{Model, ParallelFor, Session, TensorData, ThreadPool};
use lapidary_target_cpu::{About, CpuTarget, lower};
use libtest_mimic::{Arguments, Failed, Trial};
use ndarray::{Array1, Array2};
use ndarray_npy::NpzWriter;
use support::{Reference, TARGETS, Target, full};

const VOCAB: u32 = 61;
const MAX_TOKENS: u64 = 40;
const CHUNK_TOKENS: u64 = 8;
const TOLERANCE: f32 = 2e-5;
/// Around the chunk, and around the row tiles of the kernels (4, 6, 8, 12).
const LENGTHS: &[usize] = &[1, 2, 7, 8, 9, 33];

/// One graph.
struct Case {
    name: String,
    text: String,
}

/// A case: `weights` are declarations, `ops` nodes that read `%x` (`f32[T, d]`) and may use `%10` and up, `outputs` names and
/// values.
fn case(name: impl Into<String>, d: u64, weights: &str, ops: &str, outputs: &[(&str, &str)]) -> Case {
    let outputs: String = outputs.iter().map(|(n, v)| format!("output \"{n}\" = {v}\n")).collect();
    let symbol = if ops.contains("[N0") { "symbol N0 <= 5\n\n" } else { "" };
    let text = format!(
        "lir 1\n\nmodel {{\n  name = \"case\",\n  vocab_size = {VOCAB},\n  hidden_size = {d},\n  num_layers = 1,\n  num_clusters = 5,\n  \
         max_position_embeddings = {MAX_TOKENS},\n  is_causal = true,\n}}\n\nphase fused\n\n{symbol}\
         weight @table: f32[{VOCAB}, {d}] embedding = random(1, 1.0)\n{weights}\n\
         input \"ids\" = %0: u32[T]\n\n%1: f32[T, {d}] = embed(%0, @table)\n{}\n\
         %2: f32[S, {d}] = last_rows(%1)\n%3: f32[S, {VOCAB}] = linear(%2, @table, _) {{act = none}}\n\n\
         {outputs}output \"logits\" = %3\n",
        ops.replace("%x", "%1")
    );
    Case { name: name.into(), text }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in ["f32", "f16", "int8", "int4:32", "int4:64", "int4:128"] {
        for (k, n) in [(1, 1), (7, 8), (16, 15), (33, 31), (32, 32), (130, 33), (20, 65)] {
            let std = 1.0 / (k as f32).sqrt();
            let size = format!("{dtype}-{k}x{n}");
            let w = format!("weight @w: {dtype}[{n}, {k}] attention = random(2, {std:?})\n");
            for act in ["none", "silu", "gelu"] {
                let ops = format!("%10: f32[T, {n}] = linear(%x, @w, _) {{act = {act}}}\n");
                cases.push(case(format!("linear-{act}-{size}"), k, &w, &ops, &[("y", "%10")]));
            }
            // The first sum starts from a value that lives on, the second may take its operand's place.
            let residual = format!(
                "%10: f32[T, {n}] = linear(%x, @w, _) {{act = none}}\n%11: f32[T, {n}] = linear(%x, @w, %10) {{act = none}}\n\
                 %12: f32[T, {n}] = linear(%x, @w, %11) {{act = none}}\n%13: f32[T, {n}] = linear(%x, @w, %12) {{act = gelu}}\n"
            );
            cases.push(case(format!("linear-residual-{size}"), k, &w, &residual, &[("a", "%10"), ("y", "%13")]));
            let two = format!("{w}weight @u: {dtype}[{n}, {k}] general = random(3, {std:?})\n");
            let ops = format!("%10: f32[T, {n}] = linear.swiglu(%x, @w, @u)\n");
            cases.push(case(format!("swiglu-{size}"), k, &two, &ops, &[("y", "%10")]));
            cases.extend(modules(dtype, k, n));
        }
        let rows = format!("weight @rows: {dtype}[{VOCAB}, 13] embedding = random(9, 1.0)\n");
        let ops = "%10: f32[T, 13] = embed(%0, @rows)\n";
        cases.push(case(format!("embed-rows-{dtype}"), 8, &rows, ops, &[("y", "%10")]));
        // The head's panels serve as the embedding table.
        for d in [8, 35, 64] {
            let mut tied = case(format!("embed-panels-{dtype}-{d}"), d, "", "", &[("y", "%1")]);
            tied.text = tied.text.replace("@table: f32", &format!("@table: {dtype}"));
            cases.push(tied);
        }
    }
    cases.extend(element_wise());
    cases.extend(attention());
    cases.extend(routing());
    cases
}

/// Scores, selection and grouping that the module cases share: `%20` scores, `%21` mask, `%22` gates, `%23`–`%25` groups.
const ROUTE: &str = "%20: f32[T, 5] = route.scores(%x, _, @keys) {scale = 0.7, lambda = 0.5, num_domains = 3}\n\
    %21: u8[T, 5], %22: f32[T, 5] = route.select(%20) {policy = threshold, k_min = 0, k_max = 5, p = 1.0, tau = 0.3, \
    capacity_factor = 1.0, norm_gates = false}\n\
    %23: u32[6], %24: u32[N0], %25: f32[N0] = route.group(%21, %22)\n";

/// The FFN of modules, fused and as its parts; tau leaves some tokens without a module, and some modules without a token.
fn modules(dtype: &str, d: u64, f: u64) -> Vec<Case> {
    let mut weights = format!("weight @keys: f32[5, {d}] routing = random(4, {:?})\n", 2.0 / (d as f32).sqrt());
    let names = |kind: &str| (0..5).map(|c| format!("@{kind}{c}")).collect::<Vec<_>>().join(", ");
    for c in 0..5 {
        for (kind, rows, cols, seed) in [("g", f, d, 10), ("u", f, d, 20), ("d", d, f, 30)] {
            let std = 1.0 / (cols as f32).sqrt();
            let seed = seed + c;
            weights += &format!("weight @{kind}{c}: {dtype}[{rows}, {cols}] modules = random({seed}, {std:?})\n");
        }
    }
    let (g, u, down) = (names("g"), names("u"), names("d"));
    let fused = format!("{ROUTE}%30: f32[T, {d}] = expert.ffn(%x, %23, %24, %25, %x, {g}, {u}, {down})\n");
    let no_residual = format!("{ROUTE}%30: f32[T, {d}] = expert.ffn(%x, %23, %24, %25, _, {g}, {u}, {down})\n");
    let parts = format!(
        "{ROUTE}%30: f32[N0, {d}] = route.gather(%x, %24)\n%31: f32[N0, {f}] = expert.linear(%30, %23, {g})\n\
         %32: f32[N0, {f}] = expert.linear(%30, %23, {u})\n%33: f32[N0, {f}] = silu(%31)\n%34: f32[N0, {f}] = mul(%33, %32)\n\
         %35: f32[N0, {d}] = expert.linear(%34, %23, {down})\n%36: f32[T, {d}] = route.combine(%35, %24, %25, %x)\n\
         %37: f32[T, {d}] = route.combine(%35, %24, %25, _)\n"
    );
    let size = format!("{dtype}-{d}x{f}");
    let routing = [("modules.0", "%21"), ("gates.0", "%22")];
    vec![
        case(format!("expert-ffn-{size}"), d, &weights, &fused, &[routing[0], routing[1], ("y", "%30")]),
        case(format!("expert-ffn-alone-{size}"), d, &weights, &no_residual, &[("y", "%30")]),
        case(format!("expert-parts-{size}"), d, &weights, &parts, &[("y", "%36"), ("z", "%37")]),
    ]
}

fn element_wise() -> Vec<Case> {
    let mut cases = Vec::new();
    for d in [1_u64, 4, 7, 16, 33] {
        let mut one = |name: &str, weights: &str, op: &str| {
            let ops = format!("%10: f32[T, {d}] = {op}\n");
            cases.push(case(format!("{name}-{d}"), d, weights, &ops, &[("y", "%10")]));
        };
        let w = format!("weight @w: f32[{d}] norm = random(2, 1.0)\n");
        one("rms_norm", &w, "rms_norm(%x, @w) {eps = 1e-5}");
        one("rms_norm-unit", "", "rms_norm(%x, _) {eps = 1e-5}");
        one("add", "", "add(%x, %x)");
        one("mul", "", "mul(%x, %x)");
        one("scale", "", "scale(%x) {factor = -0.3}");
        one("silu", "", "silu(%x)");
        one("gelu", "", "gelu(%x)");
        one("softmax", "", "softmax(%x)");
        one("l2_normalize", "", "l2_normalize(%x)");
        one("fill", "", &format!("fill(%x) {{cols = {d}, value = 0.25}}"));
    }
    // A view in the middle of a row, read by ops that overwrite and ops that do not.
    let ops =
        "%10: f32[T, 5] = slice(%x) {begin = 3, end = 8}\n%11: f32[T, 5] = silu(%10)\n%12: f32[T, 5] = add(%10, %11)\n";
    cases.push(case("slice", 11, "", ops, &[("y", "%12"), ("z", "%11")]));
    let ops = "%10: f32[1, 9] = mean_rows(%x)\n%11: f32[1, 9] = l2_normalize(%10)\n";
    let mut pooled = case("mean_rows", 9, "", ops, &[("output", "%11")]);
    pooled.text = pooled.text.replace("is_causal = true", "is_causal = false,\n  why_no_decode = \"pools\"");
    cases.push(pooled);
    cases
}

/// Keys that a cache keeps: turned by their position, or, where the cache rounds them, as they are; the last bit of a sine
/// could put them on the other side of a rounding boundary.
fn cached_keys(kv_cache: &str) -> &'static str {
    if kv_cache == "f32" { "%14" } else { "%11" }
}

fn attention() -> Vec<Case> {
    let mut cases = Vec::new();
    for (heads, kv_heads, head_dim) in [(1_u64, 1_u64, 2_u64), (4, 2, 8), (6, 2, 20), (3, 3, 34)] {
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let d = q + 2 * kv;
        let views = format!(
            "%10: f32[T, {q}] = slice(%x) {{begin = 0, end = {q}}}\n\
             %11: f32[T, {kv}] = slice(%x) {{begin = {q}, end = {}}}\n\
             %12: f32[T, {kv}] = slice(%x) {{begin = {}, end = {d}}}\n\
             %13: f32[T, {q}] = rope(%10) {{heads = {heads}, head_dim = {head_dim}, theta = 500.0}}\n\
             %14: f32[T, {kv}] = rope(%11) {{heads = {kv_heads}, head_dim = {head_dim}, theta = 500.0}}\n",
            q + kv,
            q + kv
        );
        let shape = format!("heads = {heads}, kv_heads = {kv_heads}, head_dim = {head_dim}, scale = 0.4");
        for (causal, window, kv_cache) in [
            (true, 0, "f32"),
            (true, 0, "f16"),
            (true, 0, "int8"),
            (true, 1, "f32"),
            (true, 6, "f16"),
            (true, 6, "int8"),
            (false, 0, "f32"),
        ] {
            let keys = cached_keys(kv_cache);
            let ops = format!(
                "{views}%15: f32[T, {q}] = attn.range(%13, {keys}, %12) {{{shape}, causal = {causal}, window = {window}, \
                 kv_cache = {kv_cache}}}\n"
            );
            let name = format!("attn.range-{heads}x{kv_heads}x{head_dim}-{causal}-{window}-{kv_cache}");
            let mut made = case(name, d, "", &ops, &[("y", "%15")]);
            if !causal {
                made.text =
                    made.text.replace("is_causal = true", "is_causal = false,\n  why_no_decode = \"looks ahead\"");
            }
            cases.push(made);
        }
        for (window, sinks, cap, kv_cache) in [
            (1, 0, 1, "f32"),
            (4, 2, 3, "f32"),
            (4, 2, 3, "f16"),
            (4, 2, 3, "int8"),
            (1, 1, 5, "int8"),
            (9, 9, 40, "f32"),
            (9, 9, 40, "f16"),
        ] {
            let keys = format!("weight @keys: f32[5, {d}] routing = random(4, 0.5)\n");
            let cached = cached_keys(kv_cache);
            let ops = format!(
                "{views}%16: f32[T, 5] = route.scores(%x, _, @keys) {{scale = 1.0, lambda = 0.0, num_domains = 1}}\n\
                 %17: u32[T] = route.cluster(%16)\n\
                 %18: f32[T, {q}] = attn.clustered(%13, {cached}, %12, %17) {{{shape}, window = {window}, sinks = {sinks}, \
                 cluster_cap = {cap}, num_clusters = 5, kv_cache = {kv_cache}}}\n"
            );
            let name = format!("attn.clustered-{heads}x{kv_heads}x{head_dim}-{window}-{sinks}-{cap}-{kv_cache}");
            cases.push(case(name, d, &keys, &ops, &[("cluster", "%17"), ("y", "%18")]));
        }
    }
    cases
}

fn routing() -> Vec<Case> {
    let mut cases = Vec::new();
    for d in [1_u64, 9, 16] {
        let weights = format!(
            "weight @keys: f32[5, {d}] routing = random(4, 1.0)\nweight @values: f32[5, {d}] routing = random(5, 1.0)\n\
             weight @p: f32[3, {d}] routing = random(6, 1.0)\n"
        );
        for (policy, k_min, k_max, norm) in [
            ("top_k", 2, 2, true),
            ("top_k", 5, 5, false),
            ("top_p", 1, 3, true),
            ("top_p", 0, 5, false),
            ("threshold", 0, 2, true),
            ("threshold", 0, 5, false),
            ("expert_choice", 1, 2, false),
            ("bidirectional", 1, 2, true),
        ] {
            let ops = format!(
                "%10: f32[T, 3] = linear(%x, @p, _) {{act = none}}\n%11: f32[T, 3] = softmax(%10)\n\
                 %12: f32[T, 5] = route.scores(%x, %11, @keys) {{scale = 0.6, lambda = 0.8, num_domains = 3}}\n\
                 %13: u32[T] = route.cluster(%12)\n\
                 %14: u8[T, 5], %15: f32[T, 5] = route.select(%12) {{policy = {policy}, k_min = {k_min}, k_max = {k_max}, \
                 p = 0.7, tau = 0.25, capacity_factor = 1.2, norm_gates = {norm}}}\n\
                 %16: f32[T, {d}] = route.memory(%14, %15, @values)\n"
            );
            let outputs = [
                ("domains", "%11"),
                ("scores.0", "%12"),
                ("cluster", "%13"),
                ("modules.0", "%14"),
                ("gates.0", "%15"),
                ("y", "%16"),
            ];
            let mut made = case(format!("route-{policy}-{k_min}-{k_max}-{d}"), d, &weights, &ops, &outputs);
            if matches!(policy, "expert_choice" | "bidirectional") {
                made.text =
                    made.text.replace("is_causal = true", "is_causal = true,\n  why_no_decode = \"ranks tokens\"");
            }
            cases.push(made);
        }
    }
    cases
}

/// A lowered case in a file.
struct Compiled {
    graph: Graph,
    artifact: tempfile::TempPath,
}

fn compile(text: &str, target: &str) -> Result<Compiled, Failed> {
    let graph = parse(text).map_err(|e| format!("{e}\n{text}"))?;
    graph.verify().map_err(|e| format!("{e}\n{text}"))?;
    let chunk = if why_whole_sequence(&graph).is_some() { MAX_TOKENS } else { CHUNK_TOKENS };
    let plan = plan_memory(&graph, MAX_TOKENS, chunk)?;
    let target = CpuTarget::by_name(target).ok_or("a target")?;
    let about = About { quantization: "fp32".into(), ..About::default() };
    let lowered = lower(&graph, &plan, &target, &about)?;
    let artifact = tempfile::Builder::new().suffix(".lapis").tempfile()?.into_temp_path();
    let reader = WeightReader::new(&graph, &NoSource);
    lowered.write_file(&artifact, &reader, &|_| ())?;
    Ok(Compiled { graph, artifact })
}

fn ids(length: usize) -> Vec<u32> {
    let mut state = 12345_u32 + length as u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % VOCAB
    };
    (0..length).map(next).collect()
}

fn interpret(graph: &Graph, ids: &[u32]) -> Result<Outputs, Failed> {
    Ok(Interpreter::new(graph, &NoSource).run(ids, ids.len())?)
}

/// Elements of a value as f32 (indices are far below 2²⁴).
fn floats(data: &Data) -> Vec<f32> {
    match data {
        Data::F32(x) => x.clone(),
        Data::U32(x) => x.iter().map(|x| *x as f32).collect(),
        Data::U8(x) => x.iter().map(|x| f32::from(*x)).collect(),
    }
}

fn is_close(name: &str, wanted: &[f32], found: &[f32]) -> Result<(), Failed> {
    if wanted.len() != found.len() {
        return Err(format!("{name}: wanted {} elements, found {}", wanted.len(), found.len()).into());
    }
    let discrete = name == "cluster" || name.starts_with("modules");
    for (i, (w, f)) in wanted.iter().zip(found).enumerate() {
        let tolerance = if discrete { 0.0 } else { TOLERANCE * (1.0 + w.abs()) };
        let difference = (w - f).abs();
        if difference.is_nan() || difference > tolerance {
            return Err(format!("{name}: element {i}: wanted {w}, found {f}").into());
        }
    }
    Ok(())
}

/// In this process: every length in chunks, then the last half token by token.
fn runs_natively(case: &Case, target: &'static Target) -> Result<(), Failed> {
    let compiled = compile(&case.text, target.name)?;
    let model = Arc::new(Model::open(&compiled.artifact)?);
    let threads: [Arc<dyn ParallelFor + Send>; 3] = [
        Arc::new(ThreadPool::new(2)?),
        Arc::new(OneByOne { backwards: false }),
        Arc::new(OneByOne { backwards: true }),
    ];
    for threads in threads {
        let mut session = Session::new(Arc::clone(&model), threads)?;
        runs(&compiled, &mut session)?;
    }
    Ok(())
}

/// The worst that threads may do: every unit alone, all steps of one before any of the next.
struct OneByOne {
    backwards: bool,
}

// SAFETY: each unit once, and all have returned when `run` does.
unsafe impl ParallelFor for OneByOne {
    fn run(&self, units: u64, task: &(dyn Fn(u64, u64) + Sync)) {
        for i in 0..units {
            let unit = if self.backwards { units - 1 - i } else { i };
            task(unit, unit + 1);
        }
    }

    fn threads(&self) -> usize {
        1
    }
}

fn runs(compiled: &Compiled, session: &mut Session) -> Result<(), Failed> {
    for length in LENGTHS {
        let ids = ids(*length);
        let wanted = interpret(&compiled.graph, &ids)?;
        for tensor in session.forward_all(&ids)? {
            let found = match tensor.data {
                TensorData::F32(x) => x,
                TensorData::U8(x) => x.into_iter().map(f32::from).collect(),
                TensorData::U32(x) => x.into_iter().map(|x| x as f32).collect(),
            };
            let wanted = wanted.get(&tensor.name).ok_or("the interpreter gives every output")?;
            is_close(&tensor.name, &floats(&wanted.data), &found).map_err(|e| at(*length, "prefill", e))?;
        }
        if compiled.graph.info.why_no_decode.is_none() {
            decodes(session, &ids, &wanted).map_err(|e| at(*length, "decode", e))?;
        }
    }
    Ok(())
}

fn at(length: usize, what: &str, error: Failed) -> Failed {
    format!("{what} of {length} tokens: {}", error.message().unwrap_or("")).into()
}

fn decodes(session: &mut Session, ids: &[u32], wanted: &Outputs) -> Result<(), Failed> {
    let (front, back) = ids.split_at(ids.len() / 2);
    session.reset();
    if !front.is_empty() {
        session.prefill(front)?;
    }
    for (i, id) in back.iter().enumerate() {
        session.decode(*id)?;
        for (name, value) in &wanted.0 {
            let all = floats(&value.data);
            let cols = all.len() / ids.len();
            let row = front.len() + i;
            let view = session.output(name).ok_or("an output")?;
            let found: Vec<f32> = match (view.row_f32(0), view.row_u8(0), view.row_u32(0)) {
                (Some(x), ..) => x.to_vec(),
                (_, Some(x), _) => x.iter().map(|x| f32::from(*x)).collect(),
                (.., Some(x)) => x.iter().map(|x| *x as f32).collect(),
                (None, None, None) => Vec::new(),
            };
            is_close(name, &all[row * cols..(row + 1) * cols], &found)?;
        }
    }
    Ok(())
}

/// Under the emulator: the interpreter's outputs go into a file, and those of the emulated command are compared with them.
fn runs_emulated(case: &Case, target: &'static Target) -> Result<(), Failed> {
    let compiled = compile(&case.text, target.name)?;
    let reference = tempfile::Builder::new().suffix(".npz").tempfile()?;
    let mut npz = NpzWriter::new(reference.as_file());
    for length in LENGTHS {
        let ids = ids(*length);
        let prompt = format!("prompt.{length:03}");
        let as_i64: Array1<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        npz.add_array(format!("{prompt}.ids"), &as_i64)?;
        for (name, value) in interpret(&compiled.graph, &ids)?.0 {
            let data = floats(&value.data);
            let rows = value.shape[0];
            let array = Array2::from_shape_vec((rows, data.len() / rows), data)?;
            npz.add_array(format!("{prompt}.{name}"), &array)?;
        }
    }
    npz.finish()?;
    let tolerance = TOLERANCE.to_string();
    let artifact: &Path = compiled.artifact.as_ref();
    target.compare(artifact, Reference::File(reference.path()), &["--atol", &tolerance, "--rtol", &tolerance])?;
    Ok(())
}

/// A suite that forgets an op proves less than it says.
fn every_op_has_a_case() -> Result<(), Failed> {
    let mut covered = BTreeMap::new();
    for case in cases() {
        let graph = parse(&case.text).map_err(|e| format!("{}: {e}", case.name))?;
        for node in &graph.nodes {
            *covered.entry(node.op.row().name).or_insert(0) += 1;
        }
    }
    // Only its grouped form is lowered.
    let wanted: BTreeSet<&str> = OPS.iter().filter(|r| r.op != Op::ExpertApply).map(|r| r.name).collect();
    let found: BTreeSet<&str> = covered.keys().copied().collect();
    if wanted == found { Ok(()) } else { Err(format!("wanted {wanted:?}, found {found:?}").into()) }
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = vec![Trial::test("every_op_has_a_case", every_op_has_a_case)];
    for target in TARGETS {
        let why_not = target.why_not();
        for (i, case) in cases().into_iter().enumerate() {
            // Emulation costs a process per case; a plain run takes a sample.
            if target.name != "native" && !full() && i % 24 != 0 {
                continue;
            }
            let skipped = why_not.as_ref().map(|why| format!(" (skipped: {why})")).unwrap_or_default();
            let name = format!("{}::{}{skipped}", target.name, case.name);
            let test =
                move || if target.cpu.is_some() { runs_emulated(&case, target) } else { runs_natively(&case, target) };
            trials.push(Trial::test(name, test).with_ignored_flag(why_not.is_some()));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}
