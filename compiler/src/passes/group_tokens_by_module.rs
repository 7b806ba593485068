//! `group-tokens-by-module`: `expert.apply`, which goes token by token, becomes a counting sort of the tokens by module
//! and one ragged matrix product after the other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::edit::{Edit, no_attrs, title};
use super::{PassContext, PassError, PassReport};
use crate::ir::{Graph, Node, NodeId, Op, Operand};

/// Results of a `route.group`.
#[derive(Clone, Copy)]
struct Group {
    offsets: Operand,
    tokens: Operand,
    token_gates: Operand,
}

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let mut edit = Edit::default();
    let mut groups: HashMap<(Operand, Operand), Group> = HashMap::new();
    for i in 0..graph.nodes.len() {
        let node = graph.nodes[i].clone();
        if node.op == Op::RouteGroup {
            groups.entry((node.operands[0], node.operands[1])).or_insert(Group::of(&node));
        }
        if node.op != Op::ExpertApply {
            continue;
        }
        let failed = |message| PassError::Failed { pass: "group-tokens-by-module", message };
        let mut nodes = Vec::new();
        let key = (node.operands[1], node.operands[2]);
        if let Entry::Vacant(slot) = groups.entry(key) {
            let group = graph.make_node(Op::RouteGroup, vec![key.0, key.1], no_attrs(), part(&node, "group"));
            let group = group.map_err(failed)?;
            slot.insert(Group::of(&group));
            nodes.push(group);
        }
        expand(graph, &node, groups[&key], &mut nodes).map_err(failed)?;
        let modules = (node.operands.len() - 3) / 3;
        report.fire(title(&node), format!("expert.apply -> ragged products of {modules} modules"));
        edit.replace(NodeId(i as u32), nodes);
    }
    edit.apply(graph);
    Ok(report)
}

impl Group {
    fn of(node: &Node) -> Self {
        let [offsets, tokens, token_gates] = [0, 1, 2].map(|r| Operand::Value(node.results[r]));
        Self { offsets, tokens, token_gates }
    }
}

/// Label of a part of an `expert.apply`.
fn part(apply: &Node, part: &str) -> String {
    if apply.label.is_empty() { part.into() } else { format!("{}.{part}", apply.label) }
}

/// Gather, gate, up, silu, mul, down and combine over groups; the last has `apply`'s result.
fn expand(graph: &mut Graph, apply: &Node, group: Group, nodes: &mut Vec<Node>) -> Result<(), String> {
    let weights = &apply.operands[3..];
    let (gate, rest) = weights.split_at(weights.len() / 3);
    let (up, down) = rest.split_at(weights.len() / 3);
    let mut push = |op: Op, operands: Vec<Operand>, name: &str| -> Result<Operand, String> {
        let node = graph.make_node(op, operands, no_attrs(), part(apply, name))?;
        let result = Operand::Value(node.results[0]);
        nodes.push(node);
        Ok(result)
    };
    let per_module = |rows: Operand, weights: &[Operand]| [&[rows, group.offsets], weights].concat();
    let rows = push(Op::RouteGather, vec![apply.operands[0], group.tokens], "gather")?;
    let gate = push(Op::ExpertLinear, per_module(rows, gate), "gate")?;
    let up = push(Op::ExpertLinear, per_module(rows, up), "up")?;
    let silu = push(Op::Silu, vec![gate], "silu")?;
    let product = push(Op::Mul, vec![silu, up], "mul")?;
    let down = push(Op::ExpertLinear, per_module(product, down), "down")?;
    push(Op::RouteCombine, vec![down, group.tokens, group.token_gates, Operand::None], "combine")?;
    nodes.last_mut().expect("pushed").results = apply.results.clone();
    Ok(())
}
