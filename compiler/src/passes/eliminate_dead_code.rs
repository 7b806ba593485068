//! `eliminate-dead-code`: drops nodes, weights and symbols that no output needs, and numbers what is left anew.

use super::{PassContext, PassError, PassReport};
use crate::ir::{Dim, Graph, Operand, SymbolId, ValueId, WeightDef, WeightId};

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    for label in drop_dead_nodes(graph) {
        report.fire(label, "nothing uses its results");
    }
    for name in drop_dead_weights(graph) {
        report.fire(format!("@{name}"), "nothing reads it");
    }
    renumber_values(graph);
    renumber_symbols(graph);
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
            dead.push(node.label.clone());
        }
        kept
    });
    dead
}

/// The weights that a weight's definition refers to.
pub(super) fn bases(def: &WeightDef) -> Vec<WeightId> {
    match def {
        WeightDef::Stored | WeightDef::Splat(_) | WeightDef::Random { .. } => Vec::new(),
        WeightDef::Concat(parts) => parts.clone(),
        WeightDef::ScaleColumns { base, columns } => vec![*base, *columns],
        WeightDef::Scale { base, .. } => vec![*base],
    }
}

/// Makes a definition refer to other weights.
pub(super) fn map_bases(def: &mut WeightDef, map: impl Fn(WeightId) -> WeightId) {
    match def {
        WeightDef::Stored | WeightDef::Splat(_) | WeightDef::Random { .. } => {}
        WeightDef::Concat(parts) => parts.iter_mut().for_each(|p| *p = map(*p)),
        WeightDef::ScaleColumns { base, columns } => (*base, *columns) = (map(*base), map(*columns)),
        WeightDef::Scale { base, .. } => *base = map(*base),
    }
}

/// Removes weights that neither a node nor the definition of a needed weight reads; returns their names.
fn drop_dead_weights(graph: &mut Graph) -> Vec<String> {
    let mut needed = vec![false; graph.weights.len()];
    let mut open: Vec<WeightId> =
        graph.nodes.iter().flat_map(|n| n.operands.iter()).filter_map(|o| o.weight()).collect();
    while let Some(id) = open.pop() {
        if !std::mem::replace(&mut needed[id.0 as usize], true) {
            open.extend(bases(&graph.weight(id).def));
        }
    }
    let new_ids = new_ids(&needed);
    let mut dead = Vec::new();
    let mut keep = needed.into_iter();
    graph.weights.retain(|weight| {
        let kept = keep.next().expect("one per weight");
        if !kept {
            dead.push(weight.name.clone());
        }
        kept
    });
    let map = |id: WeightId| WeightId(new_ids[id.0 as usize]);
    graph.weights.iter_mut().for_each(|w| map_bases(&mut w.def, map));
    for operand in graph.nodes.iter_mut().flat_map(|n| n.operands.iter_mut()) {
        if let Operand::Weight(id) = operand {
            *id = map(*id);
        }
    }
    dead
}

/// For each kept index, how many kept ones stand before it.
fn new_ids(keep: &[bool]) -> Vec<u32> {
    let mut next = 0;
    keep.iter().map(|kept| std::mem::replace(&mut next, next + u32::from(*kept))).collect()
}

/// Numbers values in the order of their definition, inputs first; values that nothing defines are gone afterwards.
pub(super) fn renumber_values(graph: &mut Graph) {
    let inputs = graph.inputs.iter().map(|(_, v)| *v);
    let order: Vec<ValueId> = inputs.chain(graph.nodes.iter().flat_map(|n| n.results.iter().copied())).collect();
    let mut new_ids = vec![None; graph.values.len()];
    for (i, old) in order.iter().enumerate() {
        new_ids[old.0 as usize] = Some(ValueId(i as u32));
    }
    let map = |id: &mut ValueId| *id = new_ids[id.0 as usize].expect("a used value is defined");
    graph.inputs.iter_mut().for_each(|(_, v)| map(v));
    graph.outputs.iter_mut().for_each(|o| map(&mut o.value));
    for node in &mut graph.nodes {
        node.results.iter_mut().for_each(map);
        for operand in &mut node.operands {
            if let Operand::Value(v) = operand {
                map(v);
            }
        }
    }
    graph.values = order.iter().map(|old| graph.values[old.0 as usize].clone()).collect();
}

/// Drops symbols that no value has; T and S stay.
fn renumber_symbols(graph: &mut Graph) {
    let mut used = vec![false; graph.symbols.len()];
    used[SymbolId::TOKENS.0 as usize] = true;
    used[SymbolId::OUTPUT_ROWS.0 as usize] = true;
    for dim in graph.values.iter().flat_map(|v| v.ty.shape.iter()) {
        if let Dim::Sym(s) = dim {
            used[s.0 as usize] = true;
        }
    }
    let new_ids = new_ids(&used);
    let mut keep = used.into_iter();
    graph.symbols.retain(|_| keep.next().expect("one per symbol"));
    for dim in graph.values.iter_mut().flat_map(|v| v.ty.shape.iter_mut()) {
        if let Dim::Sym(s) = dim {
            *s = SymbolId(new_ids[s.0 as usize]);
        }
    }
}
