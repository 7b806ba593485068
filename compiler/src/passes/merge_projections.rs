//! `merge-projections`: linears that read the same input become one linear and views of its columns.

use super::edit::{
    Edit, Links, common_label, fresh_weight_name, is_plain_linear, linear_attrs, title, weight_readers, why_not_derive,
};
use super::{PassContext, PassError, PassReport};
use crate::ir::{
    AttrValue, Attrs, DType, Graph, Node, NodeId, Op, Operand, Storage, TensorType, ValueId, Weight, WeightDef,
    WeightId, limits,
};
use crate::plan::reads_dense;

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let links = Links::new(graph);
    let readers = weight_readers(graph);
    let mut edit = Edit::default();
    for value in 0..graph.values.len() as u32 {
        let x = ValueId(value);
        let multiplies = |id: &NodeId| {
            let node = graph.node(*id);
            node.op == Op::Linear && node.operands[0] == Operand::Value(x)
        };
        let linears: Vec<NodeId> = links.users(x).iter().copied().filter(multiplies).collect();
        if linears.len() < 2 {
            continue;
        }
        let mut mergeable = Vec::new();
        for id in linears {
            match why_not(graph, &links, &readers, id) {
                None => mergeable.push(id),
                Some(reason) => report.miss(title(graph.node(id)), reason),
            }
        }
        for group in by_format(graph, &mergeable, &mut report) {
            let weights = group.iter().map(|id| graph.weight(weight_of(graph.node(*id))));
            let (rows, elems) = weights.fold((0, 0), |(rows, elems), w| (rows + w.rows(), elems + w.elems()));
            if rows > limits::MAX_COLS || elems > limits::MAX_WEIGHT_ELEMS {
                report.miss(title(graph.node(group[0])), format!("together they have {rows} rows, {elems} elements"));
                continue;
            }
            merge(graph, x, &group, &mut edit, &mut report);
        }
    }
    edit.apply(graph);
    Ok(report)
}

fn weight_of(node: &Node) -> WeightId {
    node.operands[1].weight().expect("a linear has a weight")
}

/// What keeps one linear from being a part of a bigger one.
fn why_not(graph: &Graph, links: &Links, readers: &[Vec<(NodeId, usize)>], id: NodeId) -> Option<String> {
    let node = graph.node(id);
    if !is_plain_linear(node) {
        return Some("it has an activation or a residual".into());
    }
    let result = node.results[0];
    if graph.is_output(result) {
        return Some("its result is a graph output, which has no gaps between rows".into());
    }
    for user in links.users(result).iter().map(|id| graph.node(*id)) {
        if user.operands.iter().enumerate().any(|(i, o)| *o == Operand::Value(result) && reads_dense(user.op, i)) {
            return Some(format!("{} of {} reads rows without gaps", user.op.row().name, title(user)));
        }
    }
    let weight = weight_of(node);
    match readers[weight.0 as usize].len() {
        1 => why_not_derive(graph, weight),
        n => Some(format!(
            "weight @{} is read at {n} places: a merged copy would be stored as well",
            graph.weight(weight).name
        )),
    }
}

/// Linears of the same storage, in program order; a group of one is a miss.
fn by_format(graph: &Graph, linears: &[NodeId], report: &mut PassReport) -> Vec<Vec<NodeId>> {
    let weight = |id: &NodeId| graph.weight(weight_of(graph.node(*id)));
    let mut groups = Vec::new();
    for storage in Storage::ALL {
        let group: Vec<NodeId> = linears.iter().copied().filter(|id| weight(id).storage == storage).collect();
        if group.len() > 1 {
            groups.push(group);
        } else if let (Some(only), Some(other)) =
            (group.first(), linears.iter().find(|id| weight(id).storage != storage))
        {
            let (own, other) = (weight(only), weight(other));
            let reason = format!("weight @{} is stored {storage}, @{} {}", own.name, other.name, other.storage);
            report.miss(title(graph.node(*only)), reason);
        }
    }
    groups
}

/// One linear before the first of the group, a slice in the place of each.
fn merge(graph: &mut Graph, x: ValueId, group: &[NodeId], edit: &mut Edit, report: &mut PassReport) {
    let parts: Vec<WeightId> = group.iter().map(|id| weight_of(graph.node(*id))).collect();
    let label = match common_label(group.iter().map(|id| graph.node(*id).label.as_str())) {
        common if common.is_empty() => "projections".into(),
        common => format!("{common}.projections"),
    };
    let largest =
        parts.iter().copied().reduce(|a, b| if graph.weight(b).elems() > graph.weight(a).elems() { b } else { a });
    let largest = graph.weight(largest.expect("a group has parts")).clone();
    let rows: u64 = parts.iter().map(|w| graph.weight(*w).rows()).sum();
    let name = fresh_weight_name(graph, &format!("{}.merged", graph.weight(parts[0]).name));
    let shape = vec![rows, largest.cols()];
    let weight = graph.add_weight(Weight { name, shape, def: WeightDef::Concat(parts.clone()), ..largest });
    let merged = graph.add_value(TensorType::matrix(DType::F32, graph.ty(x).rows(), rows));
    report.fire(&label, format!("{} linears -> linear @{}", group.len(), graph.weight(weight).name));

    let mut nodes = vec![Node {
        op: Op::Linear,
        operands: vec![Operand::Value(x), Operand::Weight(weight), Operand::None],
        attrs: linear_attrs("none"),
        results: vec![merged],
        label,
    }];
    let mut begin = 0;
    for (id, part) in group.iter().zip(&parts) {
        let end = begin + graph.weight(*part).rows();
        let linear = graph.node(*id);
        nodes.push(Node {
            op: Op::Slice,
            operands: vec![Operand::Value(merged)],
            attrs: Attrs(vec![("begin", AttrValue::Int(begin)), ("end", AttrValue::Int(end))]),
            results: linear.results.clone(),
            label: linear.label.clone(),
        });
        edit.replace(*id, std::mem::take(&mut nodes));
        begin = end;
    }
}
