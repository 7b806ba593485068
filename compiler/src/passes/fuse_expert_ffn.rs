//! `fuse-expert-ffn`: the ragged products of a module layer become one `expert.ffn`, which goes module by module.

use super::edit::{Edit, Links, common_label, no_attrs, title};
use super::{PassContext, PassError, PassReport};
use crate::ir::{Graph, Node, NodeId, Op, Operand};

/// A matched module layer.
struct Parts {
    x: Operand,
    offsets: Operand,
    /// Gate, up and down weights, one after the other.
    weights: Vec<Operand>,
    /// Nodes that the fused one replaces, all but the combine, in program order.
    absorbed: Vec<NodeId>,
}

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let links = Links::new(graph);
    let mut edit = Edit::default();
    for (i, combine) in graph.nodes.iter().enumerate() {
        if combine.op != Op::RouteCombine {
            continue;
        }
        match match_parts(graph, &links, combine) {
            Ok(parts) => {
                let absorbed = parts.absorbed.iter().map(|id| graph.node(*id).label.as_str());
                let label = common_label(absorbed.chain([combine.label.as_str()]));
                report.fire(title(combine), "route.gather + expert.linear + silu + mul + route.combine -> expert.ffn");
                parts.absorbed.iter().for_each(|id| edit.remove(*id));
                let fixed = [parts.x, parts.offsets, combine.operands[1], combine.operands[2], combine.operands[3]];
                let fused = Node {
                    op: Op::ExpertFfn,
                    operands: [fixed.as_slice(), &parts.weights].concat(),
                    attrs: no_attrs(),
                    results: combine.results.clone(),
                    label,
                };
                edit.replace(NodeId(i as u32), vec![fused]);
            }
            Err(reason) => report.miss(title(combine), reason),
        }
    }
    edit.apply(graph);
    Ok(report)
}

fn match_parts(graph: &Graph, links: &Links, combine: &Node) -> Result<Parts, String> {
    let (down_id, down) = links.sole_maker(graph, combine.operands[0], Op::ExpertLinear)?;
    let (mul_id, mul) = links.sole_maker(graph, down.operands[0], Op::Mul)?;
    let is_silu = |operand| links.maker(graph, operand, Op::Silu).is_some();
    let (activated, up) = match (mul.operands[0], mul.operands[1]) {
        (a, b) if is_silu(a) => (a, b),
        (a, b) => (b, a),
    };
    let (silu_id, silu) = links.sole_maker(graph, activated, Op::Silu)?;
    let (gate_id, gate) = links.sole_maker(graph, silu.operands[0], Op::ExpertLinear)?;
    let (up_id, up) = links.sole_maker(graph, up, Op::ExpertLinear)?;
    if gate.operands[0] != up.operands[0] {
        return Err("gate and up read different rows".into());
    }
    if gate.operands[1] != up.operands[1] || gate.operands[1] != down.operands[1] {
        return Err("gate, up and down are grouped differently".into());
    }
    let rows = gate.operands[0];
    let Some((gather_id, gather)) = links.maker(graph, rows, Op::RouteGather) else {
        return Err(format!("wanted rows from route.gather, found {}", links.describe_origin(graph, rows)));
    };
    let read_by_others = links.places(gather.results[0]) - 2;
    if read_by_others > 0 {
        return Err(format!("the gathered rows are also used at {read_by_others} other places"));
    }
    check_group(graph, links, gather, gate.operands[1], combine)?;
    let weights = [&gate.operands[2..], &up.operands[2..], &down.operands[2..]].concat();
    check_formats(graph, &weights)?;
    let mut absorbed = vec![gather_id, gate_id, up_id, silu_id, mul_id, down_id];
    absorbed.sort();
    Ok(Parts { x: gather.operands[0], offsets: gate.operands[1], weights, absorbed })
}

/// Offsets, gathered tokens, combined tokens and gates must all come from one `route.group`.
fn check_group(graph: &Graph, links: &Links, gather: &Node, offsets: Operand, combine: &Node) -> Result<(), String> {
    let Some((_, group)) = links.maker(graph, offsets, Op::RouteGroup) else {
        return Err(format!("wanted offsets from route.group, found {}", links.describe_origin(graph, offsets)));
    };
    let results: Vec<Operand> = group.results.iter().map(|r| Operand::Value(*r)).collect();
    if results == [offsets, gather.operands[1], combine.operands[2]] && combine.operands[1] == gather.operands[1] {
        Ok(())
    } else {
        Err("offsets, tokens and gates do not come from the same route.group".into())
    }
}

/// A module's three weights are read by one kernel, and all modules by the same.
fn check_formats(graph: &Graph, weights: &[Operand]) -> Result<(), String> {
    let mut weights = weights.iter().map(|w| graph.weight(w.weight().expect("expert.linear has weights")));
    let first = weights.next().expect("expert.linear has a weight");
    match weights.find(|w| w.storage != first.storage) {
        Some(other) => {
            Err(format!("weight @{} is stored {}, @{} {}", first.name, first.storage, other.name, other.storage))
        }
        None => Ok(()),
    }
}
