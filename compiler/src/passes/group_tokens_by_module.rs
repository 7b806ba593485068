//! `group-tokens-by-module`: `expert.apply`, which goes token by token, becomes a counting sort of the tokens by module
//! and one ragged matrix product after the other.

use std::collections::HashMap;

use super::edit::{Edit, Links, no_attrs};
use super::{PassContext, PassError, PassReport};
use crate::ir::{DType, Dim, Graph, Node, NodeId, Op, Operand, TensorType, ValueId};

/// Results of a `route.group`.
#[derive(Clone, Copy)]
struct Group {
    offsets: Operand,
    tokens: Operand,
    token_gates: Operand,
}

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let links = Links::new(graph);
    let mut edit = Edit::default();
    let mut groups: HashMap<(Operand, Operand), Group> = HashMap::new();
    for i in 0..graph.nodes.len() {
        let node = graph.nodes[i].clone();
        if node.op == Op::RouteGroup {
            let [offsets, tokens, token_gates] = [0, 1, 2].map(|r| Operand::Value(node.results[r]));
            groups.insert((node.operands[0], node.operands[1]), Group { offsets, tokens, token_gates });
        }
        if node.op != Op::ExpertApply {
            continue;
        }
        let mut nodes = Vec::new();
        let key = (node.operands[1], node.operands[2]);
        let group = match groups.get(&key) {
            Some(group) => *group,
            None => {
                let (group_node, group) = make_group(graph, &links, &node);
                nodes.push(group_node);
                groups.insert(key, group);
                group
            }
        };
        let modules = (node.operands.len() - 3) / 3;
        nodes.extend(expand(graph, &node, group));
        report.fire(&node.label, format!("expert.apply -> route.group and {modules} modules' ragged products"));
        edit.replace(NodeId(i as u32), nodes);
    }
    edit.apply(graph);
    Ok(report)
}

/// Most modules per token, averaged over a call: what the selection promises, or all of them.
fn rows_per_token(graph: &Graph, links: &Links, mask: ValueId) -> u64 {
    let num_clusters = graph.ty(mask).cols();
    match links.maker(graph, Operand::Value(mask), Op::RouteSelect) {
        Some((_, select)) => select_bound(&select.attrs, num_clusters),
        None => num_clusters,
    }
}

/// A `route.group` for the mask and gates of an `expert.apply`, with a symbol of its own.
fn make_group(graph: &mut Graph, links: &Links, apply: &Node) -> (Node, Group) {
    let mask = apply.operands[1].value().expect("expert.apply has a mask");
    let bound = rows_per_token(graph, links, mask);
    let name = (0..).map(|n| format!("N{n}")).find(|name| graph.symbols.iter().all(|s| s.name != *name));
    let rows = Dim::Sym(graph.add_symbol(name.expect("finitely many symbols"), bound));
    let num_clusters = graph.ty(mask).cols();
    let offsets = graph.add_value(TensorType::vector(DType::U32, Dim::Const(num_clusters + 1)));
    let tokens = graph.add_value(TensorType::vector(DType::U32, rows));
    let token_gates = graph.add_value(TensorType::vector(DType::F32, rows));
    let node = Node {
        op: Op::RouteGroup,
        operands: vec![apply.operands[1], apply.operands[2]],
        attrs: no_attrs(),
        results: vec![offsets, tokens, token_gates],
        label: format!("{}.group", apply.label),
    };
    let [offsets, tokens, token_gates] = [offsets, tokens, token_gates].map(Operand::Value);
    (node, Group { offsets, tokens, token_gates })
}

/// Gather, gate, up, silu, mul, down and combine over groups; the last has `apply`'s result.
fn expand(graph: &mut Graph, apply: &Node, group: Group) -> Vec<Node> {
    let weights = &apply.operands[3..];
    let modules = weights.len() / 3;
    let (gate, rest) = weights.split_at(modules);
    let (up, down) = rest.split_at(modules);
    let x = apply.operands[0].value().expect("expert.apply has an input");
    let width = graph.ty(x).cols();
    let hidden = gate[0].weight().map(|w| graph.weight(w).rows()).expect("expert.apply has weights");
    let rows = graph.ty(group.tokens.value().expect("a result")).rows();

    let mut nodes = Vec::new();
    let mut push = |op: Op, operands: Vec<Operand>, cols: u64, part: &str| {
        let result = graph.add_value(TensorType::matrix(DType::F32, rows, cols));
        let label = format!("{}.{part}", apply.label);
        nodes.push(Node { op, operands, attrs: no_attrs(), results: vec![result], label });
        Operand::Value(result)
    };
    let per_module = |rows: Operand, weights: &[Operand]| [&[rows, group.offsets], weights].concat();
    let gathered = push(Op::RouteGather, vec![apply.operands[0], group.tokens], width, "gather");
    let gate = push(Op::ExpertLinear, per_module(gathered, gate), hidden, "gate");
    let up = push(Op::ExpertLinear, per_module(gathered, up), hidden, "up");
    let silu = push(Op::Silu, vec![gate], hidden, "silu");
    let product = push(Op::Mul, vec![silu, up], hidden, "mul");
    let down = push(Op::ExpertLinear, per_module(product, down), width, "down");
    nodes.push(Node {
        op: Op::RouteCombine,
        operands: vec![down, group.tokens, group.token_gates, Operand::None],
        attrs: no_attrs(),
        results: apply.results.clone(),
        label: format!("{}.combine", apply.label),
    });
    nodes
}
