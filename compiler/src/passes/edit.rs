//! Reading and changing a graph: who defines and uses a value, replacing nodes, fresh names.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::ir::{AttrValue, Attrs, Graph, Node, NodeId, Op, Operand, ValueId, Weight, WeightDef, WeightId, limits};
pub(super) use crate::plan::title;

/// Definitions and uses of a graph as it was when this was made.
pub(super) struct Links {
    definitions: Vec<Option<NodeId>>,
    users: Vec<Vec<NodeId>>,
    places: Vec<u32>,
}

impl Links {
    /// Looks at every node once.
    pub(super) fn new(graph: &Graph) -> Self {
        let mut places = vec![0; graph.values.len()];
        for v in graph.nodes.iter().flat_map(|n| n.operands.iter()).filter_map(|o| o.value()) {
            places[v.0 as usize] += 1;
        }
        for output in &graph.outputs {
            places[output.value.0 as usize] += 1;
        }
        Self { definitions: graph.definitions(), users: graph.users(), places }
    }

    /// The node that defines a value.
    pub(super) fn definition(&self, value: ValueId) -> Option<NodeId> {
        self.definitions[value.0 as usize]
    }

    /// The nodes that use a value, once each.
    pub(super) fn users(&self, value: ValueId) -> &[NodeId] {
        &self.users[value.0 as usize]
    }

    /// Operand places and graph outputs that a value stands at.
    pub(super) fn places(&self, value: ValueId) -> u32 {
        self.places[value.0 as usize]
    }

    /// The node that defines a value, if it is an `op`.
    pub(super) fn maker<'g>(&self, graph: &'g Graph, operand: Operand, op: Op) -> Option<(NodeId, &'g Node)> {
        let id = self.definition(operand.value()?)?;
        let node = graph.node(id);
        (node.op == op).then_some((id, node))
    }

    /// Like [`Self::maker`], for a value that stands at one place only; otherwise the reason why it cannot be absorbed.
    pub(super) fn sole_maker<'g>(
        &self,
        graph: &'g Graph,
        operand: Operand,
        op: Op,
    ) -> Result<(NodeId, &'g Node), String> {
        let (id, node) = self.maker(graph, operand, op).ok_or_else(|| {
            format!("wanted a result of {}, found {}", op.row().name, self.describe_origin(graph, operand))
        })?;
        let value = operand.value().expect("a maker has a value");
        match self.places(value) {
            1 => Ok((id, node)),
            n => Err(format!("the result of {} is used {n} times", op.row().name)),
        }
    }

    /// Where an operand comes from, for messages.
    pub(super) fn describe_origin(&self, graph: &Graph, operand: Operand) -> String {
        match operand {
            Operand::Value(v) => match self.definition(v) {
                Some(id) => format!("a result of {}", graph.node(id).op.row().name),
                None => "a graph input".into(),
            },
            Operand::Weight(w) => format!("@{}", graph.weight(w).name),
            Operand::None => "nothing".into(),
        }
    }
}

/// Operand places of nodes at which each weight stands, by weight id. Uses by other weights' definitions do not count:
/// only weights that nodes read are stored.
pub(super) fn weight_readers(graph: &Graph) -> Vec<Vec<(NodeId, usize)>> {
    let mut out = vec![Vec::new(); graph.weights.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for (place, w) in node.operands.iter().enumerate().filter_map(|(p, o)| Some((p, o.weight()?))) {
            out[w.0 as usize].push((NodeId(i as u32), place));
        }
    }
    out
}

/// Replacements of nodes by lists of nodes, made while the graph's ids hold still, and applied at once.
#[derive(Default)]
pub(super) struct Edit {
    replaced: BTreeMap<NodeId, Vec<Node>>,
}

impl Edit {
    /// Puts `nodes` where `at` was.
    pub(super) fn replace(&mut self, at: NodeId, nodes: Vec<Node>) {
        self.replaced.insert(at, nodes);
    }

    /// Takes a node out.
    pub(super) fn remove(&mut self, at: NodeId) {
        self.replaced.insert(at, Vec::new());
    }

    /// Changes the graph.
    pub(super) fn apply(mut self, graph: &mut Graph) {
        let nodes = std::mem::take(&mut graph.nodes);
        for (i, node) in nodes.into_iter().enumerate() {
            match self.replaced.remove(&NodeId(i as u32)) {
                Some(list) => graph.nodes.extend(list),
                None => graph.nodes.push(node),
            }
        }
    }
}

/// The attributes of a node without any.
pub(super) fn no_attrs() -> Attrs {
    Attrs(Vec::new())
}

/// The attributes of a `linear`.
pub(super) fn linear_attrs(act: &'static str) -> Attrs {
    Attrs(vec![("act", AttrValue::Word(act))])
}

/// Whether a node is a `linear` that only multiplies: no activation, no residual.
pub(super) fn is_plain_linear(node: &Node) -> bool {
    node.op == Op::Linear && node.operands[2] == Operand::None && node.attrs.word("act") == "none"
}

/// The label of a node made of others: what their labels have in common, in whole dotted parts; the first if nothing.
pub(super) fn common_label<'a>(labels: impl IntoIterator<Item = &'a str>) -> String {
    let mut labels = labels.into_iter();
    let Some(first) = labels.next() else { return String::new() };
    let mut parts: Vec<&str> = first.split('.').collect();
    for label in labels {
        let same = parts.iter().zip(label.split('.')).take_while(|(a, b)| *a == b).count();
        parts.truncate(same);
    }
    if parts.is_empty() { first.into() } else { parts.join(".") }
}

/// A weight name that is not taken: `wanted`, or `wanted.2`, `wanted.3`, …
pub(super) fn fresh_weight_name(graph: &Graph, wanted: &str) -> String {
    if graph.is_free_weight_name(wanted) {
        return wanted.into();
    }
    let mut numbered = (2u64..).map(|n| format!("{wanted}.{n}"));
    numbered.find(|name| graph.is_free_weight_name(name)).expect("finitely many weights")
}

/// A weight computed from `base` with its type, shape and component.
pub(super) fn derive_weight(graph: &mut Graph, base: WeightId, suffix: &str, def: WeightDef) -> WeightId {
    let name = fresh_weight_name(graph, &format!("{}.{suffix}", graph.weight(base).name));
    let weight = Weight { name, def, ..graph.weight(base).clone() };
    graph.add_weight(weight)
}

/// Why no weight can be derived from this one: definitions are only so deep.
pub(super) fn why_not_derive(graph: &Graph, id: WeightId) -> Option<String> {
    fn depth(graph: &Graph, id: WeightId) -> u32 {
        graph.weight(id).def.bases().into_iter().map(|base| depth(graph, base) + 1).max().unwrap_or(0)
    }
    let max = limits::MAX_WEIGHT_DEPTH;
    (depth(graph, id) >= max).then(|| format!("weight @{} is already {max} derivations deep", graph.weight(id).name))
}

/// Sorts nodes so that every value is defined before its use, as close to their present order as that allows.
///
/// # Errors
/// If values depend on each other in a circle: the label of a node that does.
pub(super) fn sort_by_dependencies(graph: &mut Graph) -> Result<(), String> {
    let definitions = graph.definitions();
    let mut waits = vec![0u32; graph.nodes.len()];
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        for made_by in node.operands.iter().filter_map(|o| definitions[o.value()?.0 as usize]) {
            waits[i] += 1;
            followers[made_by.0 as usize].push(i);
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..waits.len()).filter(|i| waits[*i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(waits.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &j in &followers[i] {
            waits[j] -= 1;
            if waits[j] == 0 {
                ready.push(Reverse(j));
            }
        }
    }
    if let Some(i) = waits.iter().position(|w| *w > 0) {
        return Err(format!("{}: depends on its own result", graph.nodes[i].label));
    }
    reorder(graph, &order);
    Ok(())
}

/// Puts node `order[i]` at place i; `order` is a permutation.
pub(super) fn reorder(graph: &mut Graph, order: &[usize]) {
    let mut nodes: Vec<Option<Node>> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    graph.nodes = order.iter().map(|i| nodes[*i].take().expect("a permutation")).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::parse;

    #[test]
    fn labels_have_whole_parts_in_common() {
        let label = |labels: &[&str]| common_label(labels.iter().copied());
        assert_eq!(label(&["layers.0.general.gate", "layers.0.general.up"]), "layers.0.general");
        assert_eq!(label(&["layers.1.attn", "layers.10.attn"]), "layers");
        assert_eq!(label(&["layers.0.attn", "layers.0.attn.q"]), "layers.0.attn");
        assert_eq!(label(&["embed", "norm"]), "embed");
        assert_eq!(label(&[]), "");
    }

    #[test]
    fn sorting_keeps_program_order_where_it_can() {
        let text = "lir 1\nphase imported\ninput \"x\" = %x: f32[T, 4]\n%a = silu(%x) \"a\"\n%b = gelu(%a) \"b\"\n\
                    %c = silu(%x) \"c\"\n%d = add(%b, %c) \"d\"\noutput \"d\" = %d\n";
        let mut graph = parse(text).unwrap();
        let sorted = graph.clone();
        reorder(&mut graph, &[3, 1, 0, 2]);
        sort_by_dependencies(&mut graph).unwrap();
        graph.verify().unwrap();
        let labels: Vec<&str> = graph.nodes.iter().map(|n| n.label.as_str()).collect();
        assert_eq!(labels, ["a", "b", "c", "d"]);
        assert_eq!(graph, sorted);
    }

    #[test]
    fn sorting_a_circle_names_a_node_of_it() {
        let text = "lir 1\nphase imported\ninput \"x\" = %x: f32[T, 4]\n%a = silu(%x) \"a\"\n%b = add(%a, %x) \"b\"\n\
                    output \"b\" = %b\n";
        let mut graph = parse(text).unwrap();
        graph.nodes[0].operands[0] = Operand::Value(graph.nodes[1].results[0]);
        assert_eq!(sort_by_dependencies(&mut graph).unwrap_err(), "a: depends on its own result");
    }
}
