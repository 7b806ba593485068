//! `eliminate-dead-code`: drops nodes that no output needs; [`super::run_pass`] then drops their weights and symbols.

use super::edit::title;
use super::{PassContext, PassError, PassReport};
use crate::ir::Graph;

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    for label in drop_dead_nodes(graph) {
        report.fire(label, "nothing uses its results");
    }
    Ok(report)
}

/// Removes nodes without a path to an output; returns their labels.
fn drop_dead_nodes(graph: &mut Graph) -> Vec<String> {
    let mut live = vec![false; graph.values.len()];
    for output in &graph.outputs {
        live[output.value.0 as usize] = true;
    }
    let mut keep = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        keep[i] = node.results.iter().any(|r| live[r.0 as usize]);
        if keep[i] {
            for v in node.operands.iter().filter_map(|o| o.value()) {
                live[v.0 as usize] = true;
            }
        }
    }
    let mut dead = Vec::new();
    let mut keep = keep.into_iter();
    graph.nodes.retain(|node| {
        let kept = keep.next().expect("one per node");
        if !kept {
            dead.push(title(node).to_owned());
        }
        kept
    });
    dead
}
