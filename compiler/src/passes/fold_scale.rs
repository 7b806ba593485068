//! `fold-scale`: takes an explicit `scale` into the scale of the attention or routing scores after it, which costs and
//! rounds nothing, or else into the weight of the `linear` before it.

use super::edit::{Edit, Links, derive_weight, is_plain_linear, title, weight_readers, why_not_derive};
use super::{PassContext, PassError, PassReport};
use crate::ir::{AttrValue, Graph, NodeId, Op, Operand, Storage, ValueId, WeightDef, WeightId};

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let links = Links::new(graph);
    let readers = weight_readers(graph);
    let mut edit = Edit::default();
    for i in 0..graph.nodes.len() {
        let at = NodeId(i as u32);
        let node = graph.node(at);
        if node.op != Op::Scale {
            continue;
        }
        let (label, x, result) = (title(node).to_owned(), node.operands[0], node.results[0]);
        let factor = node.attrs.float("factor");
        let after = match scores_after(graph, &links, result, factor) {
            Ok(scores) => {
                for (node, scale) in scores {
                    let node = &mut graph.nodes[node.0 as usize];
                    report.fire(&label, format!("scale {factor} into {} of {}", node.op.row().name, title(node)));
                    node.attrs.set("scale", AttrValue::Float(scale));
                }
                graph.replace_uses(result, x.value().expect("a scale has an operand"));
                edit.remove(at);
                continue;
            }
            Err(reason) => reason,
        };
        match weight_to_scale(graph, &links, &readers, x, factor) {
            Ok((linear, base)) => {
                let weight = derive_weight(graph, base, "scaled", WeightDef::Scale { base, factor });
                report.fire(label, format!("linear + scale {factor} -> linear @{}", graph.weight(weight).name));
                let mut folded = graph.node(linear).clone();
                folded.operands[1] = Operand::Weight(weight);
                folded.results = vec![result];
                edit.remove(linear);
                edit.replace(at, vec![folded]);
            }
            Err(before) => report.miss(label, format!("after it: {after}; before it: {before}")),
        }
    }
    edit.apply(graph);
    Ok(report)
}

/// The linear before a scale and the weight that can take the factor without a second rounding.
fn weight_to_scale(
    graph: &Graph,
    links: &Links,
    readers: &[Vec<(NodeId, usize)>],
    x: Operand,
    factor: f32,
) -> Result<(NodeId, WeightId), String> {
    let (at, linear) = links.sole_maker(graph, x, Op::Linear)?;
    if !is_plain_linear(linear) {
        return Err("the linear has an activation or a residual".into());
    }
    let id = linear.operands[1].weight().expect("a linear has a weight");
    let weight = graph.weight(id);
    if weight.storage != Storage::F32 {
        return Err(format!(
            "weight @{} is stored {}: folding {factor} would round it again",
            weight.name, weight.storage
        ));
    }
    if let Some(reason) = why_not_derive(graph, id) {
        return Err(reason);
    }
    match readers[id.0 as usize].len() {
        1 => Ok((at, id)),
        n => Err(format!("weight @{} is read at {n} places: a scaled copy would be stored as well", weight.name)),
    }
}

/// New scales of the nodes that read a scaled value, if all of them are scores linear in it.
fn scores_after(graph: &Graph, links: &Links, value: ValueId, factor: f32) -> Result<Vec<(NodeId, f32)>, String> {
    if graph.is_output(value) {
        return Err("it is a graph output".into());
    }
    let mut scores = Vec::new();
    for &user in links.users(value) {
        let node = graph.node(user);
        let here = |place: usize| node.operands[place] == Operand::Value(value);
        let times = match node.op {
            Op::RouteScores if !(1..node.operands.len()).any(here) => 1,
            Op::AttnRange | Op::AttnClustered if !(2..node.operands.len()).any(here) => {
                i32::from(here(0)) + i32::from(here(1))
            }
            op => return Err(format!("{} does not take a factor here", op.row().name)),
        };
        let scale = node.attrs.float("scale") * factor.powi(times);
        if !scale.is_finite() || scale <= 0.0 {
            return Err(format!("the scale of {} would be {scale}", title(node)));
        }
        scores.push((user, scale));
    }
    if scores.is_empty() { Err("nothing uses it".into()) } else { Ok(scores) }
}
