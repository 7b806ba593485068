//! `fold-norm-into-projection`: multiplies an rms_norm's weight into the columns of every matrix that reads the result.

use std::collections::BTreeMap;
use std::ops::Range;

use super::edit::{Links, derive_weight, title, weight_readers, why_not_derive};
use super::{PassContext, PassError, PassReport};
use crate::ir::{Graph, Node, NodeId, Op, Operand, Storage, ValueId, WeightDef, WeightId};

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    for i in 0..graph.nodes.len() {
        let node = &graph.nodes[i];
        if node.op != Op::RmsNorm {
            continue;
        }
        let Operand::Weight(columns) = node.operands[1] else { continue };
        let (label, result) = (title(node).to_owned(), node.results[0]);
        let users = match foldable_users(graph, result) {
            Ok(users) => users,
            Err(reason) => {
                report.miss(label, reason);
                continue;
            }
        };
        let mut folded: BTreeMap<WeightId, WeightId> = BTreeMap::new();
        for &(user, place) in &users {
            let base = graph.node(user).operands[place].weight().expect("a place of a weight");
            let weight = match folded.get(&base) {
                Some(weight) => *weight,
                None => derive_weight(graph, base, "normed", WeightDef::ScaleColumns { base, columns }),
            };
            folded.insert(base, weight);
            graph.nodes[user.0 as usize].operands[place] = Operand::Weight(weight);
        }
        graph.nodes[i].operands[1] = Operand::None;
        report.fire(label, format!("@{} into the columns of {} weights", graph.weight(columns).name, folded.len()));
    }
    Ok(report)
}

/// The places of the weights that a node multiplies by its first operand, if that is all it does with it.
fn multiplied(node: &Node) -> Option<Range<usize>> {
    let fixed = node.op.num_fixed_operands();
    match node.op {
        Op::Linear => Some(1..2),
        Op::LinearSwiglu => Some(1..3),
        // Of a module's three weights the last, down, reads the hidden rows.
        Op::ExpertApply | Op::ExpertFfn => Some(fixed..fixed + (node.operands.len() - fixed) / 3 * 2),
        Op::Embed
        | Op::RmsNorm
        | Op::Add
        | Op::Mul
        | Op::Scale
        | Op::Silu
        | Op::Gelu
        | Op::Softmax
        | Op::Slice
        | Op::Rope
        | Op::AttnRange
        | Op::AttnClustered
        | Op::RouteScores
        | Op::RouteCluster
        | Op::RouteSelect
        | Op::RouteGroup
        | Op::RouteGather
        | Op::ExpertLinear
        | Op::RouteCombine
        | Op::RouteMemory
        | Op::Fill
        | Op::LastRows
        | Op::MeanRows
        | Op::L2Normalize => None,
    }
}

/// Every place of a weight that is multiplied by `value`, if nothing else uses the value and all can take the factors.
fn foldable_users(graph: &Graph, value: ValueId) -> Result<Vec<(NodeId, usize)>, String> {
    if graph.is_output(value) {
        return Err("its result is a graph output".into());
    }
    let mut places = Vec::new();
    for &user in Links::new(graph).users(value) {
        let node = graph.node(user);
        let name = node.op.row().name;
        let Some(weights) = multiplied(node) else {
            return Err(format!("its result goes to {name} of {}", title(node)));
        };
        if node.operands.iter().skip(1).any(|o| *o == Operand::Value(value)) {
            return Err(format!("its result is also another operand of {name} of {}", title(node)));
        }
        places.extend(weights.map(|place| (user, place)));
    }
    let readers = weight_readers(graph);
    for &(user, place) in &places {
        let id = graph.node(user).operands[place].weight().expect("a place of a weight");
        let weight = graph.weight(id);
        if weight.storage != Storage::F32 {
            return Err(format!("weight @{} is stored {}: folding would round it again", weight.name, weight.storage));
        }
        if let Some(reason) = why_not_derive(graph, id) {
            return Err(reason);
        }
        if let Some((other, _)) = readers[id.0 as usize].iter().find(|reader| !places.contains(reader)) {
            let other = graph.node(*other);
            let reader = format!("{} of {}", other.op.row().name, title(other));
            return Err(format!(
                "weight @{} is also read by {reader}: a folded copy would be stored as well",
                weight.name
            ));
        }
    }
    if places.is_empty() { Err("nothing uses its result".into()) } else { Ok(places) }
}
