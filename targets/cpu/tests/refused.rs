//! Graphs that no code can be made for, and what the error says.

use lapidary_compiler::ir::parse;
use lapidary_compiler::plan::plan_memory;
use lapidary_target_cpu::{About, CpuTarget, lower};

/// The error about a graph with these inputs, whose only node reads `%x`.
fn complaint(inputs: &str, node: &str) -> String {
    let text =
        format!("lir 1\nphase fused\nweight @w: f32[7, 4] embedding = splat(1.0)\n{inputs}{node}output \"y\" = %y\n");
    let graph = parse(&text).unwrap();
    graph.verify().unwrap();
    let plan = plan_memory(&graph, 8, 8).unwrap();
    let target = CpuTarget::by_name("x86-64-v3").unwrap();
    let lowered = lower(&graph, &plan, &target, &About::default());
    lowered.err().expect("a graph that is refused").to_string()
}

#[test]
fn inputs_other_than_token_ids() {
    let wanted = "inputs: wanted one input u32[T], the token ids, found";
    assert_eq!(complaint("input \"x\" = %x: f32[T, 4]\n", "%y = silu(%x)\n"), format!("{wanted} x: f32[T, 4]"));
    let two = "input \"x\" = %x: u32[T]\ninput \"z\" = %z: u32[T]\n";
    assert_eq!(complaint(two, "%y = embed(%x, @w)\n"), format!("{wanted} x: u32[T], z: u32[T]"));
}
