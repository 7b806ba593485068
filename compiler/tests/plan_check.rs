//! `plan::check` finds what is wrong with a plan: each test breaks one rule of a good one.

use lapidary_compiler::ir::{Graph, NodeId, parse};
use lapidary_compiler::plan::{BufferId, Plan, PlanError, Region, ScratchRole, check, plan_memory};

const GRAPH: &str = r#"lir 1
phase imported
weight @qkv: f32[16, 4] attention = stored
weight @o: f32[4, 8] attention = stored
input "x" = %x: f32[T, 4]
%h = scale(%x) {factor = 2.0} "start"
%n = rms_norm(%h, _) {eps = 1e-6} "norm"
%p = linear(%n, @qkv, _) {act = none} "qkv"
%q = slice(%p) {begin = 0, end = 8} "q"
%k = slice(%p) {begin = 8, end = 12} "k"
%v = slice(%p) {begin = 12, end = 16} "v"
%r = rope(%q) {heads = 2, head_dim = 4, theta = 10000.0} "q.rope"
%a = attn.range(%r, %k, %v) {heads = 2, kv_heads = 1, head_dim = 4, scale = 0.5, causal = true, window = 0, kv_cache = f32} "attn"
%y = linear(%a, @o, %h) {act = none} "o"
output "y" = %y
"#;

fn planned() -> (Graph, Plan) {
    let graph = parse(GRAPH).unwrap();
    graph.verify().unwrap();
    let plan = plan_memory(&graph, 64, 8).unwrap();
    check(&plan, &graph).unwrap();
    (graph, plan)
}

/// The message about a plan that was changed.
fn complaint(change: impl FnOnce(&Graph, &mut Plan)) -> String {
    let (graph, mut plan) = planned();
    change(&graph, &mut plan);
    match check(&plan, &graph) {
        Err(PlanError::Broken(message)) => message,
        other => panic!("wanted a broken plan, found {other:?}"),
    }
}

/// Buffer of the value that the node of that label makes.
fn buffer(graph: &Graph, plan: &Plan, label: &str) -> usize {
    let node = graph.nodes.iter().find(|n| n.label == label).unwrap();
    plan.place(node.results[0]).buffer.0 as usize
}

#[test]
fn the_plan_is_as_tight_as_it_can_be() {
    let (graph, plan) = planned();
    assert_eq!(buffer(&graph, &plan, "start"), buffer(&graph, &plan, "o"), "the residual is accumulated into");
    assert_eq!(buffer(&graph, &plan, "qkv"), buffer(&graph, &plan, "q.rope"), "rope stays in the view");
    // start (128) lives throughout; at the attention qkv (512) and its result (256) come on top.
    assert_eq!(plan.arena_bytes, 128 + 512 + 256);
    assert_eq!(plan.state_bytes, 2 * 64 * 4 * 4);
}

#[test]
fn overlapping_buffers() {
    let message = complaint(|graph, plan| {
        let (a, b) = (buffer(graph, plan, "start"), buffer(graph, plan, "qkv"));
        plan.buffers[a].offset_bytes = plan.buffers[b].offset_bytes;
    });
    assert!(message.contains("overlap"), "{message}");
}

#[test]
fn unaligned_buffer() {
    let message = complaint(|graph, plan| {
        let a = buffer(graph, plan, "attn");
        plan.buffers[a].offset_bytes = plan.arena_bytes + 4;
        plan.arena_bytes += 1024;
    });
    assert!(message.contains("not aligned"), "{message}");
}

#[test]
fn buffer_beyond_the_arena() {
    assert!(complaint(|_, plan| plan.arena_bytes -= 64).contains("beyond the arena"));
    let message = complaint(|_, plan| plan.buffers[0].size_bytes = u64::MAX);
    assert!(message.contains("beyond the arena"), "{message}");
}

#[test]
fn read_after_the_buffers_lifetime() {
    let message = complaint(|graph, plan| {
        let a = buffer(graph, plan, "qkv");
        plan.buffers[a].last = NodeId(6);
    });
    assert!(message.contains("outside the lifetime"), "{message}");
}

#[test]
fn output_that_dies() {
    let message = complaint(|graph, plan| {
        let a = buffer(graph, plan, "start");
        plan.buffers[a].last = NodeId(7);
    });
    assert!(message.contains("does not live to the end"), "{message}");
}

#[test]
fn value_outside_its_buffer() {
    let message = complaint(|graph, plan| {
        let v = graph.nodes[2].results[0].0 as usize;
        plan.places[v].as_mut().unwrap().row_stride = 32;
    });
    assert!(message.contains("outside its buffer"), "{message}");
}

#[test]
fn rows_that_overlap() {
    let message = complaint(|graph, plan| {
        let v = graph.nodes[2].results[0].0 as usize;
        plan.places[v].as_mut().unwrap().row_stride = 8;
    });
    assert!(message.contains("rows of %"), "{message}");
}

#[test]
fn value_without_a_place() {
    let message = complaint(|graph, plan| plan.places[graph.nodes[1].results[0].0 as usize] = None);
    assert!(message.contains("has no place"), "{message}");
}

#[test]
fn overwritten_before_its_last_read() {
    // The norm written over the residual that is added at the end.
    let message = complaint(|graph, plan| {
        let (h, n) = (graph.nodes[0].results[0].0 as usize, graph.nodes[1].results[0].0 as usize);
        plan.places[n] = plan.places[h];
    });
    assert!(message.contains("read later"), "{message}");
}

#[test]
fn overwritten_while_it_is_read() {
    // Attention writes its result over the query that it still reads.
    let message = complaint(|graph, plan| {
        let (r, a) = (graph.nodes[6].results[0].0 as usize, graph.nodes[7].results[0].0 as usize);
        plan.places[a] = plan.places[r];
        let query = buffer(graph, plan, "q.rope");
        plan.buffers[query].last = NodeId(8);
    });
    assert!(message.contains("while it reads"), "{message}");
}

#[test]
fn rope_over_the_keys() {
    // A result as wide as the query, but where the keys are.
    let message = complaint(|graph, plan| {
        let r = graph.nodes[6].results[0].0 as usize;
        plan.places[r].as_mut().unwrap().offset_bytes += 8 * 4;
    });
    assert!(message.contains("read later"), "{message}");
}

#[test]
fn state_that_overlaps_or_is_missing() {
    let overlap = complaint(|_, plan| plan.scratch[1].offset_bytes = plan.scratch[0].offset_bytes);
    assert!(overlap.contains("state overlap"), "{overlap}");
    let missing = complaint(|_, plan| plan.scratch.truncate(1));
    assert!(missing.contains("no room for its Values"), "{missing}");
    let outside = complaint(|_, plan| plan.state_bytes -= 64);
    assert!(outside.contains("outside its region"), "{outside}");
    let small = complaint(|_, plan| plan.scratch[0].size_bytes -= 4);
    assert!(small.contains("no room for its Keys"), "{small}");
}

#[test]
fn scratch_inside_an_operand() {
    let graph = parse(&GRAPH.replace("causal = true", "causal = false")).unwrap();
    let mut plan = plan_memory(&graph, 8, 8).unwrap();
    check(&plan, &graph).unwrap();
    let keys = plan.scratch.iter_mut().find(|s| s.role == ScratchRole::Keys).unwrap();
    assert_eq!(keys.region, Region::Arena);
    keys.offset_bytes = plan.buffers[2].offset_bytes;
    assert!(matches!(check(&plan, &graph), Err(PlanError::Broken(_))));
}

#[test]
fn buffer_that_is_not_there() {
    let message = complaint(|graph, plan| {
        let v = graph.nodes[1].results[0].0 as usize;
        plan.places[v].as_mut().unwrap().buffer = BufferId(99);
    });
    assert!(message.contains("in no buffer"), "{message}");
}
