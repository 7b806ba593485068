//! `fuse-swiglu`: `silu(x·gateᵀ) ⊙ (x·upᵀ)` becomes one `linear.swiglu`.

use super::edit::{Edit, Links, common_label, is_plain_linear, no_attrs, title};
use super::{PassContext, PassError, PassReport};
use crate::ir::{Graph, Node, NodeId, Op, Operand};

/// The parts of a match: node and weight of gate and up, and the `silu` if it is a node of its own.
struct Parts {
    x: Operand,
    gate: (NodeId, Operand),
    up: (NodeId, Operand),
    silu: Option<NodeId>,
}

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let links = Links::new(graph);
    let mut edit = Edit::default();
    for (i, node) in graph.nodes.iter().enumerate() {
        if node.op != Op::Mul {
            continue;
        }
        let Some((gate, up)) = gate_and_up(graph, &links, node) else { continue };
        match match_parts(graph, &links, gate, up) {
            Ok(parts) => {
                let labels = [parts.gate.0, parts.up.0, NodeId(i as u32)].map(|id| graph.node(id).label.as_str());
                let label = common_label(labels);
                report.fire(title(node), "linear + linear + silu + mul -> linear.swiglu");
                edit.remove(parts.gate.0);
                edit.remove(parts.up.0);
                parts.silu.into_iter().for_each(|silu| edit.remove(silu));
                let fused = Node {
                    op: Op::LinearSwiglu,
                    operands: vec![parts.x, parts.gate.1, parts.up.1],
                    attrs: no_attrs(),
                    results: node.results.clone(),
                    label,
                };
                edit.replace(NodeId(i as u32), vec![fused]);
            }
            Err(reason) => report.miss(title(node), reason),
        }
    }
    edit.apply(graph);
    Ok(report)
}

/// The operands of a `mul` of which one, the gate, went through a silu; `None` when neither did.
fn gate_and_up(graph: &Graph, links: &Links, mul: &Node) -> Option<(Operand, Operand)> {
    let activated = |operand: Operand| {
        links.maker(graph, operand, Op::Silu).is_some()
            || links.maker(graph, operand, Op::Linear).is_some_and(|(_, n)| n.attrs.word("act") == "silu")
    };
    let (a, b) = (mul.operands[0], mul.operands[1]);
    if activated(a) { Some((a, b)) } else { activated(b).then_some((b, a)) }
}

fn match_parts(graph: &Graph, links: &Links, gate: Operand, up: Operand) -> Result<Parts, String> {
    let silu = links.maker(graph, gate, Op::Silu);
    let (gate_id, gate_node) = match silu {
        Some((_, node)) => {
            links.sole_maker(graph, gate, Op::Silu)?;
            let (id, linear) = links.sole_maker(graph, node.operands[0], Op::Linear)?;
            if !is_plain_linear(linear) {
                return Err("the gate's linear has an activation or a residual".into());
            }
            (id, linear)
        }
        None => {
            let (id, linear) = links.sole_maker(graph, gate, Op::Linear)?;
            if linear.operands[2] != Operand::None {
                return Err("the gate's linear has a residual".into());
            }
            (id, linear)
        }
    };
    let (up_id, up_node) = links.sole_maker(graph, up, Op::Linear)?;
    if !is_plain_linear(up_node) {
        return Err("the linear of up has an activation or a residual".into());
    }
    if gate_node.operands[0] != up_node.operands[0] {
        return Err("gate and up read different inputs".into());
    }
    let weights = (gate_node.operands[1], up_node.operands[1]);
    let weight = |w: Operand| graph.weight(w.weight().expect("a linear has a weight"));
    let (gate_weight, up_weight) = (weight(weights.0), weight(weights.1));
    if gate_weight.storage != up_weight.storage {
        let (gate, up) = (gate_weight.storage, up_weight.storage);
        return Err(format!("weight @{} is stored {gate}, @{} {up}", gate_weight.name, up_weight.name));
    }
    Ok(Parts {
        x: gate_node.operands[0],
        gate: (gate_id, weights.0),
        up: (up_id, weights.1),
        silu: silu.map(|(id, _)| id),
    })
}
