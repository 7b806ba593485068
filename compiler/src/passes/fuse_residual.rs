//! `fuse-residual`: sums of products become products that start from the sum so far.
//!
//! `h + general(m) + modules(m) + memory` is a tree of `add`s. Its leaves that can start from a residual (`linear`,
//! `expert.ffn`, `route.combine`) form a chain in program order that begins with the sum of the other leaves, so that
//! the memory plan can let all of them accumulate into one buffer.

use super::edit::{Edit, Links, sort_by_dependencies, title};
use super::{PassContext, PassError, PassReport};
use crate::ir::{Graph, Node, NodeId, Op, Operand, ValueId};

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let links = Links::new(graph);
    let mut edit = Edit::default();
    for i in 0..graph.nodes.len() {
        let root = NodeId(i as u32);
        if graph.node(root).op == Op::Add && !is_inner(graph, &links, graph.node(root).results[0]) {
            fuse_tree(graph, &links, root, &mut edit, &mut report);
        }
    }
    edit.apply(graph);
    sort_by_dependencies(graph).map_err(|message| PassError::Failed { pass: "fuse-residual", message })?;
    Ok(report)
}

/// Whether a sum is only there to be added to something else.
fn is_inner(graph: &Graph, links: &Links, sum: ValueId) -> bool {
    links.places(sum) == 1 && links.users(sum).iter().any(|user| graph.node(*user).op == Op::Add)
}

/// Leaves of the tree of adds under `add`, left to right, and its adds, the root last.
fn flatten(graph: &Graph, links: &Links, add: NodeId, leaves: &mut Vec<ValueId>, adds: &mut Vec<NodeId>) {
    for operand in &graph.node(add).operands {
        let value = operand.value().expect("add has values");
        match links.maker(graph, *operand, Op::Add) {
            Some((inner, _)) if links.places(value) == 1 => flatten(graph, links, inner, leaves, adds),
            Some(_) | None => leaves.push(value),
        }
    }
    adds.push(add);
}

/// Place of the residual among the operands of the ops that have one.
fn residual_place(op: Op) -> Option<usize> {
    [(Op::Linear, 2), (Op::RouteCombine, 3), (Op::ExpertFfn, 4)].into_iter().find(|(o, _)| *o == op).map(|(_, p)| p)
}

/// The node that makes a leaf, if it can start from a residual instead.
fn accumulator(graph: &Graph, links: &Links, leaf: ValueId) -> Result<(NodeId, usize), String> {
    let origin = || links.describe_origin(graph, Operand::Value(leaf));
    let Some(id) = links.definition(leaf) else { return Err(origin()) };
    let node = graph.node(id);
    let Some(place) = residual_place(node.op) else { return Err(origin()) };
    if node.op == Op::Linear && node.attrs.word("act") != "none" {
        return Err(format!("{} that has an activation", origin()));
    }
    if links.places(leaf) != 1 {
        return Err(format!("{} that is used {} times", origin(), links.places(leaf)));
    }
    if node.operands[place] != Operand::None {
        return Err(format!("{} that has a residual", origin()));
    }
    Ok((id, place))
}

fn fuse_tree(graph: &Graph, links: &Links, root: NodeId, edit: &mut Edit, report: &mut PassReport) {
    let (mut leaves, mut adds) = (Vec::new(), Vec::new());
    flatten(graph, links, root, &mut leaves, &mut adds);
    let (mut chain, mut others, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
    for leaf in leaves {
        match accumulator(graph, links, leaf) {
            Ok(link) => chain.push(link),
            Err(reason) => {
                others.push(leaf);
                reasons.push(reason);
            }
        }
    }
    let label = title(graph.node(root));
    if chain.is_empty() {
        report.miss(label, format!("nothing to add into: it adds {}", reasons.join(" and ")));
        return;
    }
    chain.sort();
    if others.is_empty() {
        let (first, _) = chain.remove(0);
        others.push(graph.node(first).results[0]);
    }

    // The sum of what cannot accumulate comes first. It takes the places of the first adds, the others go.
    let mut others = others.into_iter();
    let mut sum = others.next().expect("a tree has leaves");
    let mut free = adds.iter();
    for other in others {
        let at = *free.next().expect("one add less than leaves");
        let add = Node { operands: vec![Operand::Value(sum), Operand::Value(other)], ..graph.node(at).clone() };
        sum = add.results[0];
        edit.replace(at, vec![add]);
    }
    free.for_each(|at| edit.remove(*at));

    let (last, _) = *chain.last().expect("not empty");
    for (id, place) in chain {
        let mut node = graph.node(id).clone();
        node.operands[place] = Operand::Value(sum);
        if id == last {
            node.results = graph.node(root).results.clone();
        }
        sum = node.results[0];
        report.fire(title(&node), format!("{} + add -> {} with residual", node.op.row().name, node.op.row().name));
        edit.replace(id, vec![node]);
    }
}
