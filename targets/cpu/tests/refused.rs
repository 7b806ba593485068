//! Graphs that no code can be made for, and what the error says.

use lapidary_compiler::ir::parse;
use lapidary_compiler::plan::plan_memory;
use lapidary_target_cpu::{About, CpuTarget, lower};

/// The error about a graph with these inputs, whose last node makes `%y`, the output of that name.
fn complaint(inputs: &str, nodes: &str, output: &str) -> String {
    let text = format!(
        "lir 1\nmodel {{\n  vocab_size = 7, hidden_size = 4, max_position_embeddings = 8\n}}\nphase fused\n\
         weight @w: f32[7, 4] embedding = splat(1.0)\n{inputs}{nodes}output \"{output}\" = %y\n"
    );
    let graph = parse(&text).unwrap();
    graph.verify().unwrap();
    let plan = plan_memory(&graph, 8, 8).unwrap();
    let target = CpuTarget::by_name("x86-64-v3").unwrap();
    let lowered = lower(&graph, &plan, &target, &About::default());
    lowered.err().expect("a graph that is refused").to_string()
}

const IDS: &str = "input \"ids\" = %x: u32[T]\n";

#[test]
fn inputs_other_than_token_ids() {
    let wanted = "inputs: wanted one input u32[T], the token ids, found";
    let floats = complaint("input \"x\" = %x: f32[T, 4]\n", "%y = silu(%x)\n", "y");
    assert_eq!(floats, format!("{wanted} x: f32[T, 4]"));
    let two = complaint(&format!("{IDS}input \"z\" = %z: u32[T]\n"), "%y = embed(%x, @w)\n", "y");
    assert_eq!(two, format!("{wanted} ids: u32[T], z: u32[T]"));
}

#[test]
fn a_head_without_its_output() {
    let wanted = "output logits: wanted f32[S, 7], which models with head causal_lm end in, found";
    assert_eq!(complaint(IDS, "%y = embed(%x, @w)\n", "y"), format!("{wanted} none"));
    assert_eq!(complaint(IDS, "%y = embed(%x, @w)\n", "logits"), format!("{wanted} f32[T, 4]"));
}
