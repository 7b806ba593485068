//! Passes change how a model is computed, never what: random GEMs through every pass, against the interpreter.

use lapidary_compiler::import::{
    AttentionConfig, GemConfig, ImportOptions, ScarConfig, TokenRouterConfig, emit, load, tensors,
};
use lapidary_compiler::interp::{Data, Interpreter, Outputs};
use lapidary_compiler::ir::{Graph, HeadKind, NoSource, Op, Phase, Storage, WeightDef, parse};
use lapidary_compiler::ops::Policy;
use lapidary_compiler::passes::{self, PassContext, run_pass, run_pipeline};
use lapidary_compiler::plan::{check, cost};
use lapidary_compiler::quant::Builtin;
use proptest::prelude::*;

/// Sizes and choices of a small GEM.
fn configs() -> impl Strategy<Value = GemConfig> {
    let head = prop_oneof![
        3 => Just(HeadKind::CausalLm),
        1 => Just(HeadKind::SequenceClassification),
        1 => Just(HeadKind::Embedding)
    ];
    let sizes = (1u64..=2, 1u64..=2, 1u64..=2, 1u64..=3, 5u64..=12, 1u64..=9);
    let scar = (2u64..=5, 1u64..=4, 0usize..5, any::<(bool, bool)>(), 0.3f32..0.95, 0.05f32..0.5, 0.5f32..1.5);
    let attention = (any::<(bool, bool)>(), 1u64..=4, 0u64..=2, 0u64..=3);
    let router = proptest::option::of((1u64..=2, 1u64..=2, any::<bool>(), 0u64..=3));
    (head, sizes, scar, attention, router, any::<bool>()).prop_map(|(head, sizes, scar, attention, router, tied)| {
        let (num_hidden_layers, num_key_value_heads, group, half, vocab_size, inner) = sizes;
        let (clusters, k_max, policy, (norm_gates, memory), p, tau, capacity_factor) = scar;
        let ((is_causal, clustered), window, sinks, cluster_cap) = attention;
        let (k_max, head_dim) = (k_max.min(clusters), 2 * half);
        let token_router = router.map(|(num_heads, num_layers, causal, window)| TokenRouterConfig {
            hidden_size: 4 * num_heads,
            num_layers,
            num_heads,
            intermediate_size: 6,
            causal,
            window: if causal { window } else { 0 },
        });
        GemConfig {
            head,
            is_causal,
            vocab_size,
            hidden_size: 8,
            num_hidden_layers,
            num_attention_heads: num_key_value_heads * group,
            num_key_value_heads,
            head_dim,
            intermediate_size: inner,
            module_intermediate_size: inner + 1,
            domain_names: vec!["code".into(), "law".into()],
            rms_norm_eps: 1e-5,
            rope_theta: 10000.0,
            max_position_embeddings: 16,
            tie_word_embeddings: tied,
            num_labels: 3,
            scar: ScarConfig {
                num_clusters: clusters,
                dim: 6,
                lambda: 0.7,
                policy: Policy::ALL[policy],
                k_min: 1,
                k_max,
                p,
                tau,
                capacity_factor,
                norm_gates,
                memory,
            },
            attention: AttentionConfig { clustered: clustered && is_causal, window, sinks, cluster_cap },
            token_router,
        }
    })
}

/// A GEM with seeded random weights; every third weight of a matrix is f16 when `mixed`.
fn model(config: &GemConfig, seed: u64, mixed: bool) -> Graph {
    let specs = tensors(config).expect("a possible config");
    emit(config, &specs, "random", &ImportOptions { scores: true }, |i, spec| {
        let storage = if mixed && i % 3 == 0 { Storage::F16 } else { Storage::F32 };
        // Norm weights are near nothing special, so that folding them shows.
        let std = if spec.shape.len() == 1 { 1.0 } else { 0.5 };
        (storage, WeightDef::Random { seed: seed.wrapping_mul(1000).wrapping_add(i as u64), std })
    })
    .expect("a possible config")
}

fn run(graph: &Graph, ids: &[u32]) -> Outputs {
    Interpreter::new(graph, &NoSource).run(ids, ids.len().min(2)).expect("a verified graph runs")
}

/// Largest difference that rounding explains, relative to the largest element.
const TOLERANCE: f32 = 1e-5;

/// Whether a routing decision was so near to another one that rounding may turn it.
fn near_tie(config: &GemConfig, outputs: &Outputs) -> bool {
    let margin = 1e-4;
    let scores = outputs.0.iter().filter(|(name, _)| name.starts_with("scores."));
    scores.flat_map(|(_, t)| t.f32s().chunks(t.cols()).map(|row| (t, row)).collect::<Vec<_>>()).any(|(t, row)| {
        let mut sorted = row.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let close = |a: f32, b: f32| (a - b).abs() < margin;
        let rows = sorted.windows(2).any(|pair| close(pair[0], pair[1]));
        let mass = sorted.iter().scan(0.0, |sum, x| {
            *sum += x;
            Some(*sum)
        });
        let mass = mass.into_iter().any(|sum| close(sum, config.scar.p));
        let columns = config.scar.policy.looks_across_tokens()
            && (0..t.cols()).any(|c| {
                let mut column: Vec<f32> = t.f32s().chunks(t.cols()).map(|row| row[c]).collect();
                column.sort_by(f32::total_cmp);
                column.windows(2).any(|pair| close(pair[0], pair[1]))
            });
        rows || mass || columns || row.iter().any(|a| close(*a, config.scar.tau))
    })
}

fn assert_same(wanted: &Outputs, found: &Outputs, after: &str) {
    assert_eq!(wanted.0.len(), found.0.len(), "after {after}");
    for ((name, a), (other, b)) in wanted.0.iter().zip(&found.0) {
        assert_eq!((name, &a.shape), (other, &b.shape), "after {after}");
        match (&a.data, &b.data) {
            (Data::F32(a), Data::F32(b)) => {
                let size = a.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(off <= TOLERANCE * size, "after {after}: {name} is off by {off} of {size}");
            }
            // Masks: the same modules for the same tokens, hence as many routed rows.
            (a, b) => assert_eq!(a, b, "after {after}: {name}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_pass_keeps_the_results(
        config in configs(),
        seed in 0u64..1 << 20,
        recipe in 0usize..3,
        mixed in any::<bool>(),
        ids in proptest::collection::vec(0u32..5, 1..9),
    ) {
        let imported = model(&config, seed, mixed);
        let wanted = run(&imported, &ids);
        prop_assume!(!near_tie(&config, &wanted));
        let ctx = PassContext::new(&imported, Builtin::ALL[recipe], 16);

        // What the recipe rounds is another model, whose results the passes after it keep.
        let mut graph = imported.clone();
        let mut expected = wanted.clone();
        let plan = run_pipeline(&mut graph, &ctx, None, &mut |row, graph, _| {
            graph.verify().unwrap_or_else(|e| panic!("after {}: {e}", row.name));
            let found = run(graph, &ids);
            match row.name {
                "choose-formats" => expected = found,
                _ => assert_same(&expected, &found, row.name),
            }
        });
        let plan = plan.expect("every GEM has a plan").expect("the pipeline ends with the plan");
        check(&plan, &graph).expect("a plan that was just made");
        prop_assert_eq!(graph.phase, Phase::Planned);
        prop_assert_eq!(parse(&graph.to_string()).expect("printed text parses"), graph.clone());

        // Each pass alone, on the graph as it was imported.
        for row in passes::passes() {
            let mut alone = imported.clone();
            run_pass(row, &mut alone, &ctx).unwrap_or_else(|e| panic!("{}: {e}", row.name));
            if row.name != "choose-formats" || Builtin::ALL[recipe] != Builtin::Fp16 {
                assert_same(&wanted, &run(&alone, &ids), row.name);
            }
        }
    }

    #[test]
    fn passes_are_deterministic_and_settle(config in configs(), seed in 0u64..1 << 20, recipe in 0usize..Builtin::ALL.len()) {
        let imported = model(&config, seed, false);
        let ctx = PassContext::new(&imported, Builtin::ALL[recipe], 16);
        let compile = || {
            let mut graph = imported.clone();
            let plan = run_pipeline(&mut graph, &ctx, None, &mut |_, _, _| {}).expect("every GEM has a plan");
            (graph, plan)
        };
        let (graph, plan) = compile();
        prop_assert_eq!(&(graph.clone(), plan), &compile());
        // What one run left, a second one leaves alone.
        for row in passes::passes().iter().filter(|row| row.phase != Phase::Planned) {
            let mut again = graph.clone();
            let report = run_pass(row, &mut again, &ctx).expect("a fused graph");
            prop_assert!(report.fired.is_empty(), "{} fires again: {:?}", row.name, report.fired);
            prop_assert_eq!(&again, &graph);
        }
    }
}

#[test]
fn presets_compile_and_their_figures_add_up() {
    for name in ["gem-tiny", "gem-small", "gem-paper", "gem-50ms"] {
        let model = load(&format!("preset:{name}"), &ImportOptions::default()).expect("a preset");
        let mut graph = Graph::clone(&model.graph);
        let max_tokens = graph.info.max_position_embeddings;
        let ctx = PassContext::new(&graph, Builtin::None, max_tokens);
        let before: u64 = cost::weight_bytes(&graph).iter().map(|c| c.elems).sum();
        let plan = run_pipeline(&mut graph, &ctx, None, &mut |_, _, _| {}).expect("a preset").expect("a plan");
        check(&plan, &graph).expect("a plan that was just made");
        let after: u64 = cost::weight_bytes(&graph).iter().map(|c| c.elems).sum();
        assert!(after <= before, "{name}: {before} parameters became {after}");
        let decode = cost::decode_work(&graph, 100).expect("presets decode");
        let stored: u64 = cost::weight_bytes(&graph).iter().map(|c| c.bytes).sum();
        assert!(decode.weight_bytes.min < decode.weight_bytes.max && decode.weight_bytes.max < stored, "{name}");
        let accumulated = graph.nodes.iter().filter(|n| n.op == Op::ExpertFfn);
        for node in accumulated {
            let residual = node.operands[4].value().expect("modules accumulate");
            assert_eq!(plan.place(residual), plan.place(node.results[0]), "{name}: {} copies", node.label);
        }
    }
}
