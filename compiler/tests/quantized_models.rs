//! Whole models in integer recipes: passes keep what the recipe made of them, and the bundled model stays near itself.

mod support;

use lapidary_compiler::import::{ImportOptions, ImportedModel, load, load_gem};
use lapidary_compiler::interp::{Data, Interpreter, Outputs};
use lapidary_compiler::ir::Graph;
use lapidary_compiler::passes::{PassContext, by_name, run_pass, run_pipeline};
use lapidary_compiler::quant::{Builtin, Recipe};
use support::{Npz, models_dir};

const INTEGERS: [Builtin; 3] = [Builtin::Int8, Builtin::Int4, Builtin::Hybrid];

fn run(graph: &Graph, model: &ImportedModel, ids: &[u32]) -> Outputs {
    Interpreter::new(graph, &*model.source).run(ids, ids.len().min(3)).expect("a verified graph runs")
}

/// Largest difference of floats relative to the largest of them; infinite when something else differs.
fn difference(a: &Outputs, b: &Outputs) -> f32 {
    let pairs = a.0.iter().zip(&b.0).map(|((name, a), (other, b))| {
        assert_eq!((name, &a.shape), (other, &b.shape));
        match (&a.data, &b.data) {
            (Data::F32(a), Data::F32(b)) => {
                let size = a.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / size
            }
            (a, b) if a == b => 0.0,
            _ => f32::INFINITY,
        }
    });
    pairs.fold(0.0, f32::max)
}

#[test]
fn passes_keep_quantized_results() {
    // Passes reassociate sums, which moves an f32 by a rounding; where that turns the rounding of a code, results differ
    // by a step of the int8 grid. That is rare: in most runs every code is the same, and so every pass is exact.
    let model = load("preset:gem-tiny", &ImportOptions::default()).expect("a preset");
    let (mut same, mut turned) = (0, 0);
    for recipe in INTEGERS {
        for seed in 0..6u32 {
            let ids: Vec<u32> = (0..7).map(|i| (i * 37 + seed * 101) % 256).collect();
            let ctx = PassContext::new(&model.graph, recipe, 16);
            let mut wanted = None;
            let mut graph = model.graph.clone();
            run_pipeline(&mut graph, &ctx, None, &mut |row, graph, _| {
                if row.name == "choose-formats" {
                    wanted = Some(run(graph, &model, &ids));
                }
            })
            .expect("a model");
            let wanted = wanted.expect("the pass ran");
            let off = difference(&wanted, &run(&graph, &model, &ids));
            match off <= 1e-5 {
                true => same += 1,
                false => turned += 1,
            }
            assert!(off < 0.1, "{recipe:?} {seed}: off by {off}");
        }
    }
    assert!(same >= 4 * turned, "{same} runs the same, {turned} not");
}

#[test]
fn fused_quantized_ops_compute_what_their_parts_do() {
    // Where nothing is rounded less often and no sum is in another order there is no difference at all.
    let model = load("preset:gem-tiny", &ImportOptions::default()).expect("a preset");
    let ids = [3, 200, 77, 5, 5, 91];
    for recipe in INTEGERS {
        let ctx = PassContext::new(&model.graph, recipe, 16);
        let mut graph = model.graph.clone();
        let pass = |graph: &mut Graph, name: &str| run_pass(by_name(name).unwrap(), graph, &ctx).unwrap();
        pass(&mut graph, "choose-formats");
        let wanted = run(&graph, &model, &ids);
        for name in ["fuse-activation", "merge-projections"] {
            let report = pass(&mut graph, name);
            assert!(!report.fired.is_empty(), "{name} fires");
            assert_eq!(difference(&wanted, &run(&graph, &model, &ids)), 0.0, "{recipe:?} after {name}");
        }
    }
}

/// Mean KL divergence of the next token's distribution, in nats, and the share of equal best tokens.
fn divergence(reference: &[f32], found: &[f32], vocab: usize) -> (f64, f64) {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let max = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
        let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
        row.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
    };
    let best = |row: &[f32]| (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b });
    let (mut kl, mut agree, mut rows) = (0.0, 0.0, 0.0);
    for (p, q) in reference.chunks(vocab).zip(found.chunks(vocab)) {
        let (lp, lq) = (log_softmax(p), log_softmax(q));
        kl += lp.iter().zip(&lq).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        agree += f64::from(u8::from(best(p) == best(q)));
        rows += 1.0;
    }
    (kl / rows, agree / rows)
}

#[test]
fn the_bundled_model_stays_near_itself() {
    let folder = models_dir().join("gem-mini");
    let model = load_gem(&folder, &ImportOptions::default()).expect("the bundled model");
    let mut reference = Npz::open(&folder.join("reference.npz"));
    let prompts = reference.prompts();
    // Real text: there are eight lengths for each of eight domains, so every ninth meets each length and each domain once.
    let ids: Vec<Vec<u32>> = prompts.iter().step_by(9).map(|p| reference.ids(p)).collect();
    let tokens = ids.iter().map(Vec::len).sum::<usize>() as f64;
    let logits = |graph: &Graph, ids: &[u32]| -> Vec<f32> {
        let outputs = Interpreter::new(graph, &*model.source).run(ids, ids.len()).expect("runs");
        outputs.get("logits").expect("a language model").f32s().to_vec()
    };
    let vocab = model.graph.info.vocab_size as usize;
    let wanted: Vec<Vec<f32>> = ids.iter().map(|ids| logits(&model.graph, ids)).collect();
    println!("{tokens} tokens");
    let mut found = Vec::new();
    for builtin in [Builtin::Fp16, Builtin::Int8, Builtin::Hybrid, Builtin::Int4] {
        let mut graph = model.graph.clone();
        let recipe = Recipe::from(builtin);
        let bytes = recipe.weight_bytes(&graph).expect("a recipe for the model");
        let ctx = PassContext::new(&graph, recipe, 64);
        run_pass(by_name("choose-formats").unwrap(), &mut graph, &ctx).expect("a model");
        let (mut kl, mut agree) = (0.0, 0.0);
        for (ids, row) in ids.iter().zip(&wanted) {
            let (k, a) = divergence(row, &logits(&graph, ids), vocab);
            let share = ids.len() as f64 / tokens;
            (kl, agree) = (kl + k * share, agree + a * share);
        }
        println!(
            "{:8} {bytes:>10} bytes, KL {kl:.3e} nats per token, same best token {:.1} %",
            builtin.name(),
            100.0 * agree
        );
        found.push((kl, agree));
    }
    let [fp16, int8, hybrid, int4] = found[..] else { unreachable!("four recipes") };
    assert_eq!(fp16, (0.0, 1.0), "the checkpoint is f16 itself");
    assert!(int8.0 < hybrid.0 && hybrid.0 < int4.0, "fewer bits lose more: {found:?}");
    // The interpreter gives the same on every machine, a code turned by its libm apart. A definition that is wrong misses these.
    for (found, measured) in [(int8.0, 1.706e-3), (hybrid.0, 6.053e-3), (int4.0, 4.322e-2)] {
        assert!((found / measured - 1.0).abs() < 0.05, "wanted about {measured:e} nats per token, found {found:e}");
    }
    assert!(int8.1 > 0.9 && hybrid.1 > 0.9 && int4.1 > 0.8, "{found:?}");
}
