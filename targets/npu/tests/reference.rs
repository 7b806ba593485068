//! The NPU's arithmetic against the op table's evaluations, which sum in f64: from equal operands each op gives nearly equal
//! results, and the same choices. It shows that both compute the same thing, not that the NPU's bits are right: those are
//! `ISA.md`'s, and the tests of `reference::numbers` hold them to it.

mod support;

use std::collections::BTreeMap;

use lapidary_compiler::interp::{Data, Interpreter, Tensor};
use lapidary_compiler::ir::{Graph, NodeId, WeightSource, parse};
use lapidary_compiler::ops::{OPS, Op};
use lapidary_compiler::quant::Builtin;
use lapidary_target_npu::reference;
use support::model::{Model, Numbers, Random, full, models_dir, odd_config, random_models};

/// Largest difference relative to the largest number of the row: the rounding of f32 sums of a few hundred terms.
const TOLERANCE: f32 = 4e-6;
/// The same of a row of an `expert.ffn` in which a hidden number is rounded to another code.
const TURNED: f32 = 2e-2;

/// Per op: rows, rows with a turned code, largest difference.
#[derive(Default)]
struct Seen(BTreeMap<&'static str, (usize, usize, f32)>);

impl Seen {
    /// Runs a graph in the NPU's arithmetic, and each of its nodes in the table's on the same operands.
    fn compare(
        &mut self,
        what: &str,
        graph: &Graph,
        source: &dyn WeightSource,
        inputs: &[(&str, Tensor)],
        rows: usize,
    ) {
        let mut results: Vec<Vec<Tensor>> = Vec::new();
        let npu = reference::interpreter(graph, source);
        let ran = npu.run_observed(inputs, rows, &mut |_, tensors| {
            results.push(tensors.iter().map(|t| (*t).clone()).collect());
        });
        ran.unwrap_or_else(|e| panic!("{what}: {e}"));
        let table = Interpreter::new(graph, source);
        let mut values: Vec<Option<Tensor>> = vec![None; graph.values.len()];
        for ((_, value), (_, tensor)) in graph.inputs.iter().zip(inputs) {
            values[value.0 as usize] = Some(tensor.clone());
        }
        let tokens = inputs[0].1.rows();
        for (i, (node, found)) in graph.nodes.iter().zip(results).enumerate() {
            let wanted = table.node(NodeId(i as u32), &values, tokens, rows).expect("a verified graph runs");
            for (result, (wanted, found)) in node.results.iter().zip(wanted.iter().zip(found)) {
                let title = format!("{what}: node {i} ({}, {})", node.op.row().name, node.label);
                self.compare_tensors(&title, node.op, wanted, &found);
                values[result.0 as usize] = Some(found);
            }
        }
    }

    fn compare_tensors(&mut self, title: &str, op: Op, wanted: &Tensor, found: &Tensor) {
        assert_eq!(wanted.shape, found.shape, "{title}");
        let seen = self.0.entry(op.row().name).or_default();
        let (Data::F32(w), Data::F32(f)) = (&wanted.data, &found.data) else {
            assert_eq!(wanted, found, "{title}");
            seen.0 += found.rows();
            return;
        };
        for (row, (w, f)) in w.chunks(wanted.cols().max(1)).zip(f.chunks(wanted.cols().max(1))).enumerate() {
            let size = w.iter().fold(1e-20f32, |m, x| m.max(x.abs()));
            let off = w.iter().zip(f).map(|(w, f)| (w - f).abs()).fold(0f32, f32::max) / size;
            seen.0 += 1;
            if op == Op::ExpertFfn && off > TOLERANCE {
                assert!(off <= TURNED, "{title}: row {row} is off by {off}");
                seen.1 += 1;
            } else {
                assert!(off <= TOLERANCE, "{title}: row {row} is off by {off}");
                seen.2 = seen.2.max(off);
            }
        }
    }
}

fn model(seen: &mut Seen, name: &str, model: &Model, recipe: Builtin, tokens: usize, seed: u64) {
    let graph = model.fused(recipe, 64);
    let ids = Random::new(seed).ids(tokens, graph.info.vocab_size);
    let inputs = [("ids", Tensor::indices(ids))];
    seen.compare(&format!("{name} {}", recipe.name()), &graph, &*model.source, &inputs, tokens.div_ceil(2));
}

/// Ops that fusing leaves none of, on inputs of odd sizes.
fn ops_alone(seen: &mut Seen) {
    for cols in [1, 2, 15, 16, 17, 33] {
        let text = format!(
            "lir 1\nphase imported\ninput \"x\" = %x: f32[T, {cols}]\ninput \"z\" = %z: f32[T, {cols}]\n\
             %a = add(%x, %z)\n%b = mul(%a, %z)\n%c = scale(%b) {{factor = -0.7}}\n%d = silu(%c)\n%e = gelu(%c)\n\
             %f = softmax(%a)\n%g = rms_norm(%b, _) {{eps = 0.001}}\n%h = l2_normalize(%g)\n%i = mean_rows(%x)\n\
             %j = last_rows(%x)\n%k = fill(%x) {{cols = 3, value = 0.25}}\n%l = slice(%x) {{begin = 0, end = 1}}\n\
             %m = route.cluster(%x)\noutput \"d\" = %d\noutput \"e\" = %e\noutput \"f\" = %f\noutput \"h\" = %h\n\
             output \"i\" = %i\noutput \"j\" = %j\noutput \"k\" = %k\noutput \"l\" = %l\noutput \"m\" = %m\n"
        );
        let graph = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        graph.verify().expect("a graph");
        for seed in 0..8 {
            let mut random = Random::new(seed);
            let mut input = |size: f32| {
                let elems = (0..5 * cols).map(|_| size * (random.below(20_001) as f32 / 10_000.0 - 1.0)).collect();
                Tensor::matrix(5, cols, elems)
            };
            let inputs = [("x", input(4.0)), ("z", input(0.5))];
            seen.compare(&format!("{cols} columns"), &graph, &Numbers::default(), &inputs, 2);
        }
    }
}

#[test]
fn every_op_computes_nearly_what_the_table_does() {
    let mut seen = Seen::default();
    ops_alone(&mut seen);
    let recipes = [Builtin::None, Builtin::Fp16, Builtin::Int8, Builtin::Int4, Builtin::Hybrid];
    let folders = random_models();
    assert!(folders.len() >= 31, "found {} models", folders.len());
    for (i, folder) in folders.iter().enumerate().filter(|(i, _)| full() || i % 3 == 0) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let one = Model::of_folder(folder);
        for (j, recipe) in recipes.into_iter().enumerate().filter(|(j, _)| full() || (i + j) % 5 < 2) {
            model(&mut seen, &name, &one, recipe, 19, (i * 5 + j) as u64);
        }
    }
    let config = odd_config(lapidary_compiler::ops::Policy::TopP, true, true, true);
    for seed in 0..5u64 {
        let one = Model::made_up(&config, Numbers::random(&config, seed));
        model(&mut seen, "odd sizes", &one, recipes[seed as usize], 33, seed);
    }
    let mini = Model::of_folder(&models_dir().join("gem-mini"));
    model(&mut seen, "gem-mini", &mini, Builtin::Hybrid, 21, 11);
    if full() {
        model(&mut seen, "gem-mini", &mini, Builtin::None, 21, 12);
    }
    for (op, (rows, turned, off)) in &seen.0 {
        println!("{op:14} {rows:6} rows, {turned:3} with a turned code, off by {off:.1e}");
    }
    let absent = ["route.gather", "expert.linear", "route.combine", "expert.apply"];
    let wanted: Vec<&str> = OPS.iter().map(|row| row.name).filter(|name| !absent.contains(name)).collect();
    let missing: Vec<&&str> = wanted.iter().filter(|name| !seen.0.contains_key(*name)).collect();
    assert!(missing.is_empty(), "never evaluated: {missing:?}");
    let (rows, turned, _) = seen.0["expert.ffn"];
    assert!(turned * 20 <= rows, "{turned} of {rows} rows of expert.ffn have a turned code");
}

#[test]
fn ops_that_the_npu_has_not_are_named() {
    let model = Model::of_folder(&random_models()[0]);
    let error = reference::interpreter(&model.graph, &*model.source).run(&[1, 2, 3], 1).unwrap_err();
    assert!(error.to_string().contains("found expert.apply"), "{error}");
}
