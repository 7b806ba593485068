//! A picture of the arena: buffers over time.

use std::fmt::Write;

use super::{Plan, Region, title};
use crate::ir::Graph;

/// Most characters of the time axis.
const WIDTH: usize = 64;

/// The plan as text: sizes, then one line per buffer in the order of the arena, with `#` while it is in use (one column
/// stands for one node, or for several when there are many), then the state.
pub fn render(plan: &Plan, graph: &Graph) -> String {
    let mut out = String::new();
    let nodes = graph.nodes.len().max(1);
    let width = nodes.min(WIDTH);
    let sum: u64 = plan.buffers.iter().map(|b| b.size_bytes).sum();
    line(&mut out, format_args!("calls of {} tokens, sequences of {}", plan.chunk_tokens, plan.max_tokens));
    let shared = format_args!("arena {} bytes for {} buffers of {sum} bytes", plan.arena_bytes, plan.buffers.len());
    line(&mut out, shared);
    let mut order: Vec<usize> = (0..plan.buffers.len()).collect();
    order.sort_by_key(|i| (plan.buffers[*i].offset_bytes, plan.buffers[*i].first, *i));
    for i in order {
        let buffer = &plan.buffers[i];
        let column = |node: u32| node as usize * width / nodes;
        let (first, last) = (column(buffer.first.0), column(buffer.last.0));
        let axis: String = (0..width).map(|at| if (first..=last).contains(&at) { '#' } else { '.' }).collect();
        let (offset, size, name) = (buffer.offset_bytes, buffer.size_bytes, &buffer.name);
        line(&mut out, format_args!("{offset:>12} {size:>12} {axis} {name}"));
    }
    line(&mut out, format_args!("state {} bytes", plan.state_bytes));
    for piece in plan.scratch.iter().filter(|s| s.region == Region::State) {
        let (offset, size, label) = (piece.offset_bytes, piece.size_bytes, title(graph.node(piece.node)));
        line(&mut out, format_args!("{offset:>12} {size:>12} {label} ({:?})", piece.role));
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a string");
}
