//! Models of the sizes that are really used, and odd ones between: lowered and held to the verifier, which sees every race, every
//! address and every token of the programs; and calls are timed, with routing from outside. Nothing is computed, so no
//! weights are needed.

#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use lapidary_compiler::import::{self, GemConfig, ImportOptions};
use lapidary_compiler::ir::Graph;
use lapidary_compiler::ops::Policy;
use lapidary_compiler::passes::{PassContext, run_pipeline};
use lapidary_compiler::plan::{default_chunk, why_whole_sequence};
use lapidary_compiler::quant::Builtin;
use lapidary_npu_isa::verify::verify;
use lapidary_npu_isa::{Machine, Program};
use lapidary_simulator::Options;
use lapidary_simulator::device::Device;
use lapidary_simulator::routing::{Drawn, ModulesPerToken, Popularity, Routed};
use lapidary_target_npu::model::{ModelOptions, lower_model};
use support::model::{Model, Numbers, Random, full, odd_config};

/// Lowers for a preset machine; what went wrong, if anything.
fn check(graph: &Graph, machine: &str, max_tokens: u64, chunk_tokens: u64) -> Result<(), String> {
    let machine = Machine::preset(machine).expect("a preset");
    let options = ModelOptions { max_tokens, chunk_tokens };
    let model = lower_model(graph, &machine, &options).map_err(|e| format!("lowering: {e}"))?;
    for (name, program) in [("prefill", Some(&model.prefill)), ("decode", model.decode.as_ref())] {
        if let Some(program) = program {
            verify(program, &machine).map_err(|e| format!("{name}: {e}"))?;
        }
    }
    let tokens = chunk_tokens.min(3);
    timed(&model.prefill, &machine, tokens as u32, 0).map_err(|e| format!("prefill: {e}"))?;
    model.decode.as_ref().map_or(Ok(()), |decode| timed(decode, &machine, 1, 5).map_err(|e| format!("decode: {e}")))
}

/// Times a call whose course depends on routing alone: whatever else it depends on would be an error.
fn timed(program: &Program, machine: &Machine, tokens: u32, first: u32) -> Result<(), String> {
    let mut device = Device::new(machine, Options::timing_only());
    let popularity: Popularity = "uniform".parse().expect("a popularity");
    let mut routing = Drawn::new(popularity, ModulesPerToken::Exactly(1), 1);
    let mut run = || {
        device.forget(program, "weights")?;
        device.write(program, "call", &[tokens, 1, first, 0].map(u32::to_le_bytes).concat())?;
        device.run_routed(program, Routed { routing: &mut routing, first_token: first.into() }, &mut ())
    };
    let report = run().map_err(|e| e.to_string())?;
    if report.cycles == 0 { Err("no cycles".into()) } else { Ok(()) }
}

/// Sizes from small to those of models that fill a phone.
fn config(random: &mut Random) -> GemConfig {
    let (policy, clustered) = (random.pick(&Policy::ALL), random.below(2) == 0);
    let (memory, router) = (random.below(2) == 0, random.below(2) == 0);
    let mut config = odd_config(policy, clustered, memory, router);
    config.num_hidden_layers = 1;
    config.vocab_size = random.pick(&[61, 1000, 5001]);
    config.hidden_size = random.pick(&[40, 64, 192, 330, 1024]);
    config.head_dim = random.pick(&[16, 20, 64, 128]);
    config.intermediate_size = random.pick(&[48, 384, 1500, 6144]);
    config.module_intermediate_size = random.pick(&[32, 100, 512, 1408]);
    config.scar.num_clusters = random.pick(&[3, 8, 33]);
    config.scar.k_max = 1 + random.below(config.scar.num_clusters);
    config.scar.dim = random.pick(&[9, 32, 64]);
    // Whole sequences at once, with lists of all of it, do not go beyond what a scratchpad holds.
    let lengths = if policy.looks_across_tokens() { [5, 64, 130] } else { [64, 513, 2048] };
    config.max_position_embeddings = random.pick(&lengths);
    config.attention.window = random.pick(&[3, 64, 256]);
    config.attention.sinks = random.below(5);
    config.attention.cluster_cap = random.pick(&[0, 2, 64]);
    config
}

#[test]
fn many_sizes_on_the_preset_machines() {
    let count = if full() { 48 } else { 9 };
    for i in 0..count {
        let mut random = Random::new(1000 + i);
        let config = config(&mut random);
        let model = Model::made_up(&config, Numbers::default());
        let recipe = random.pick(&[Builtin::Hybrid, Builtin::Hybrid, Builtin::Int8, Builtin::Int4]);
        let machine = ["edge-16", "edge-32", "mobile-64"][i as usize % 3];
        let max_tokens = config.max_position_embeddings;
        let graph = model.fused(recipe, max_tokens);
        let chunk = match why_whole_sequence(&graph) {
            Some(_) => max_tokens,
            None => default_chunk(&graph, max_tokens).min(random.pick(&[1, 7, 128])),
        };
        if let Err(message) = check(&graph, machine, max_tokens, chunk) {
            panic!("{machine}, chunks of {chunk}, {config:#?}: {message}");
        }
    }
}

#[test]
fn presets_of_models() {
    let all =
        [("gem-tiny", "edge-16"), ("gem-small", "edge-32"), ("gem-50ms", "mobile-64"), ("gem-paper", "mobile-64")];
    let chosen = if full() { &all[..] } else { &all[..1] };
    for (name, machine) in chosen {
        let imported = import::load(&format!("preset:{name}"), &ImportOptions::default()).expect("a preset");
        let mut graph = imported.graph.clone();
        let max_tokens = graph.info.max_position_embeddings;
        let ctx = PassContext::new(&graph, Builtin::Hybrid, max_tokens);
        run_pipeline(&mut graph, &ctx, None, &mut |_, _, _| {}).expect("passes");
        if let Err(message) = check(&graph, machine, max_tokens, ctx.chunk_tokens) {
            panic!("{name} on {machine}: {message}");
        }
    }
    if !full() {
        println!("skipped (LAPIDARY_TEST=full): the presets beyond gem-tiny, 39 of 48 sizes");
    }
}

/// What is moved more than once stands in the summary with its reason; of a model that fits nothing does.
#[test]
fn what_does_not_fit_is_said() {
    let config = odd_config(Policy::TopK, true, true, true);
    let graph = Model::made_up(&config, Numbers::default()).fused(Builtin::Hybrid, 64);
    let options = ModelOptions { max_tokens: 64, chunk_tokens: 64 };
    let summary = |machine: &Machine| lower_model(&graph, machine, &options).expect("it fits").summary;
    let fits = summary(&Machine::preset("mobile-64").expect("a preset"));
    assert_eq!((fits.reread, fits.arena_bytes < 1 << 14), (vec![], true));
    assert!(fits.idle.expect("groups of 32 on 64 rows").contains("50 %"));
    let mut small = Machine::preset("edge-16").expect("a preset");
    small.set("scratchpad.bytes", "24576").expect("a size");
    let summary = summary(&small);
    assert_eq!(summary.idle, None);
    let says = |what: &str| summary.reread.iter().any(|line| line.contains(what));
    assert!(says("layers.*.mlp_norm") || says("layers.*.attn_norm"), "{:#?}", summary.reread);
    assert!(says("layers.*.modules: weights of a module"), "{:#?}", summary.reread);
}
