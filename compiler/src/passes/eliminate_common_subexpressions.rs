//! `eliminate-common-subexpressions`: of nodes that compute the same, one is left.

use std::collections::HashMap;

use super::edit::{Edit, title};
use super::{PassContext, PassError, PassReport};
use crate::ir::{AttrValue, Dim, Graph, Node, NodeId, Op, Operand, SymbolId, ValueId};

/// What makes two nodes the same: op, operands, attributes (numbers by their bits).
type Key = (Op, Vec<Operand>, Vec<(&'static str, u64, &'static str)>);

fn key(node: &Node, operands: Vec<Operand>) -> Key {
    let attr = |(name, value): &(&'static str, AttrValue)| match value {
        AttrValue::Int(n) => (*name, *n, ""),
        AttrValue::Float(x) => (*name, u64::from(x.to_bits()), ""),
        AttrValue::Bool(b) => (*name, u64::from(*b), ""),
        AttrValue::Word(w) => (*name, 0, *w),
    };
    (node.op, operands, node.attrs.0.iter().map(attr).collect())
}

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let mut seen: HashMap<Key, NodeId> = HashMap::new();
    let mut same: HashMap<ValueId, ValueId> = HashMap::new();
    let mut edit = Edit::default();
    for (i, node) in graph.nodes.iter().enumerate() {
        let first_of = |operand: &Operand| match operand {
            Operand::Value(v) => Operand::Value(same.get(v).copied().unwrap_or(*v)),
            Operand::Weight(_) | Operand::None => *operand,
        };
        let key = key(node, node.operands.iter().map(first_of).collect());
        let Some(earlier) = seen.get(&key) else {
            seen.insert(key, NodeId(i as u32));
            continue;
        };
        let earlier = graph.node(*earlier);
        same.extend(node.results.iter().copied().zip(earlier.results.iter().copied()));
        edit.remove(NodeId(i as u32));
        report.fire(title(node), format!("{} is that of {}", node.op.row().name, title(earlier)));
    }
    edit.apply(graph);
    unite_symbols(graph, &same);
    let first_of = |v: ValueId| same.get(&v).copied().unwrap_or(v);
    for operand in graph.nodes.iter_mut().flat_map(|n| n.operands.iter_mut()) {
        if let Operand::Value(v) = operand {
            *v = first_of(*v);
        }
    }
    graph.outputs.iter_mut().for_each(|o| o.value = first_of(o.value));
    Ok(report)
}

/// Row counts of equal `route.group`s are one: everything downstream of the later one is typed by the earlier's symbol.
fn unite_symbols(graph: &mut Graph, same: &HashMap<ValueId, ValueId>) {
    let rows = |v: &ValueId| graph.ty(*v).rows().as_symbol();
    let pairs = same.iter().filter_map(|(mine, theirs)| Some((rows(mine)?, rows(theirs)?)));
    let united: HashMap<SymbolId, SymbolId> = pairs.filter(|(mine, theirs)| mine != theirs).collect();
    for dim in graph.values.iter_mut().flat_map(|v| v.ty.shape.iter_mut()) {
        if let Dim::Sym(s) = dim {
            *s = united.get(s).copied().unwrap_or(*s);
        }
    }
}
