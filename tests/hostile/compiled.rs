//! What the compiler makes of the tiny models, and reading `.lir` down to machine code.

use std::path::Path;

use lapidary_compiler::import::{ImportOptions, load_gem};
use lapidary_compiler::ir::{Storage, WeightDef, WeightReader};
use lapidary_compiler::passes::{PassContext, Recipe, StopAfter, run_pipeline};
use lapidary_target_cpu::{About, CpuTarget, lower};

use crate::consume::{Outcome, lir_graph, refused};
use crate::fixtures::{MAX_TOKENS, tokenizers};

/// The artifact of the model in a folder, for this machine.
pub fn artifact(folder: &Path) -> Vec<u8> {
    let model = load_gem(folder, &ImportOptions::default()).expect("a good model");
    let mut graph = model.graph.clone();
    let context = PassContext::new(&graph, Recipe::default(), MAX_TOKENS as u64);
    let plan = run_pipeline(&mut graph, &context, None, &mut |_, _, _| ()).expect("a good graph").expect("a plan");
    let target = CpuTarget::by_name("native").expect("a target");
    let tokenizer = Some(tokenizers()[0].clone().into_bytes());
    let lowered = lower(&graph, &plan, &target, &About { tokenizer, ..About::default() }).expect("code");
    let reader = WeightReader::new(&graph, &*model.source);
    lowered.to_vec(&reader).expect("an artifact")
}

/// The `.lir` texts of a folder's model as imported and fused, with pseudo-random weights; and a small one by hand.
pub fn lir(folder: &Path) -> Vec<String> {
    let mut graph = load_gem(folder, &ImportOptions::default()).expect("a good model").graph;
    graph.info.config_json.clear();
    for (seed, weight) in graph.weights.iter_mut().enumerate() {
        (weight.storage, weight.def) = (Storage::F32, WeightDef::Random { seed: seed as u64, std: 0.5 });
    }
    let imported = graph.to_string();
    let context = PassContext::new(&graph, Recipe::default(), MAX_TOKENS as u64);
    let stop = StopAfter::parse("fused");
    run_pipeline(&mut graph, &context, stop, &mut |_, _, _| ()).expect("a good graph");
    let small = "lir 1\nphase imported\nmodel {\n  name = \"small\", vocab_size = 11, hidden_size = 4,\n  \
                 max_position_embeddings = 12\n}\nweight @e: f32[11, 4] embedding = random(1, 0.5)\n\
                 weight @n: f32[4] norm = splat(1.0)\nweight @a: f32[3, 4] head = splat(-0.25)\n\
                 weight @b: f16[8, 4] head = random(2, 1e-3)\nweight @c: f32[11, 4] head = concat(@a, @b)\n\
                 input \"ids\" = %ids: u32[T]\n%x = embed(%ids, @e)\n%n = rms_norm(%x, @n) {eps = 1e-5}\n\
                 %l = linear(%n, @c, _) {act = none}\noutput \"logits\" = %l\n";
    vec![small.into(), imported, graph.to_string()]
}

/// `.lir` text to code, which may be refused.
pub fn lir_code(bytes: &[u8]) -> Outcome {
    lir_graph(bytes, |graph, plan| {
        let target = CpuTarget::by_name("x86-64-v3").expect("a target");
        match lower(graph, plan, &target, &About::default()) {
            Ok(lowered) => {
                std::hint::black_box(lowered.layout().size_bytes());
                Ok(true)
            }
            Err(error) => refused(&error),
        }
    })
}
