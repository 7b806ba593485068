//! `fold-constants`: algebra that needs no data: factors of 1, scales of scales, weights that are one repeated value.

use super::edit::{Edit, Links, title};
use super::{PassContext, PassError, PassReport};
use crate::ir::{AttrValue, Graph, NodeId, Op, Operand, Storage, ValueId, WeightDef, WeightId};

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    fold_weights(graph, &mut report);
    fold_nodes(graph, &mut report);
    Ok(report)
}

/// What a weight's definition comes down to.
enum Simpler {
    /// The same numbers, said more directly.
    Def(WeightDef),
    /// Another weight.
    Same(WeightId),
}

/// Simplifies definitions until none can be; a weight never refers to a later form of itself, so this ends.
fn fold_weights(graph: &mut Graph, report: &mut PassReport) {
    let mut changed = true;
    let mut same: Vec<WeightId> = (0..graph.weights.len() as u32).map(WeightId).collect();
    while std::mem::take(&mut changed) {
        for i in 0..graph.weights.len() {
            let id = WeightId(i as u32);
            if same[i] != id {
                continue;
            }
            let mut def = graph.weights[i].def.clone();
            map_bases(&mut def, |w| same[w.0 as usize]);
            graph.weights[i].def = def;
            let label = format!("@{}", graph.weight(id).name);
            match simplify(graph, id) {
                Some(Simpler::Def(def)) => {
                    report.fire(label, "its definition is simpler");
                    graph.weights[i].def = def;
                    changed = true;
                }
                Some(Simpler::Same(other)) => {
                    report.fire(label, format!("equals @{}", graph.weight(other).name));
                    for target in same.iter_mut().filter(|t| **t == id) {
                        *target = other;
                    }
                    changed = true;
                }
                None => {}
            }
        }
    }
    for operand in graph.nodes.iter_mut().flat_map(|n| n.operands.iter_mut()) {
        if let Operand::Weight(w) = operand {
            *w = same[w.0 as usize];
        }
    }
}

/// Makes a definition refer to other weights.
fn map_bases(def: &mut WeightDef, map: impl Fn(WeightId) -> WeightId) {
    match def {
        WeightDef::Stored | WeightDef::Splat(_) | WeightDef::Random { .. } => {}
        WeightDef::Concat(parts) => parts.iter_mut().for_each(|p| *p = map(*p)),
        WeightDef::ScaleColumns { base, columns } => (*base, *columns) = (map(*base), map(*columns)),
        WeightDef::Scale { base, .. } => *base = map(*base),
    }
}

/// One step. A base that is stored narrower than f32 rounds its numbers, so nothing is pulled through it.
fn simplify(graph: &Graph, id: WeightId) -> Option<Simpler> {
    let weight = graph.weight(id);
    let wide = |w: WeightId| graph.weight(w).storage == Storage::F32;
    let interchangeable =
        |w: WeightId| graph.weight(w).storage == weight.storage && graph.weight(w).shape == weight.shape;
    match &weight.def {
        WeightDef::Stored | WeightDef::Splat(_) | WeightDef::Random { .. } => None,
        WeightDef::Scale { base, factor } => {
            if *factor == 1.0 && interchangeable(*base) {
                return Some(Simpler::Same(*base));
            }
            match &graph.weight(*base).def {
                WeightDef::Splat(x) if wide(*base) => finite(x * factor).map(|x| Simpler::Def(WeightDef::Splat(x))),
                WeightDef::Scale { base: inner, factor: first } if wide(*base) => {
                    finite(first * factor).map(|factor| Simpler::Def(WeightDef::Scale { base: *inner, factor }))
                }
                WeightDef::Stored
                | WeightDef::Splat(_)
                | WeightDef::Random { .. }
                | WeightDef::Concat(_)
                | WeightDef::ScaleColumns { .. }
                | WeightDef::Scale { .. } => None,
            }
        }
        WeightDef::ScaleColumns { base, columns } => match graph.weight(*columns).def {
            WeightDef::Splat(factor) if wide(*columns) => Some(Simpler::Def(WeightDef::Scale { base: *base, factor })),
            WeightDef::Stored
            | WeightDef::Splat(_)
            | WeightDef::Random { .. }
            | WeightDef::Concat(_)
            | WeightDef::ScaleColumns { .. }
            | WeightDef::Scale { .. } => None,
        },
        WeightDef::Concat(parts) => {
            if let [only] = parts.as_slice() {
                return interchangeable(*only).then_some(Simpler::Same(*only));
            }
            let splat = |w: &WeightId| match graph.weight(*w).def {
                WeightDef::Splat(x) if wide(*w) => Some(x),
                WeightDef::Stored
                | WeightDef::Splat(_)
                | WeightDef::Random { .. }
                | WeightDef::Concat(_)
                | WeightDef::ScaleColumns { .. }
                | WeightDef::Scale { .. } => None,
            };
            let first = splat(parts.first()?)?;
            let all = parts.iter().all(|p| splat(p).is_some_and(|x| x.to_bits() == first.to_bits()));
            all.then_some(Simpler::Def(WeightDef::Splat(first)))
        }
    }
}

fn finite(x: f32) -> Option<f32> {
    x.is_finite().then_some(x)
}

/// Simplifies nodes in program order: operands are in their simplest form when a node is looked at.
fn fold_nodes(graph: &mut Graph, report: &mut PassReport) {
    let links = Links::new(graph);
    let mut edit = Edit::default();
    for i in 0..graph.nodes.len() {
        let at = NodeId(i as u32);
        let node = &graph.nodes[i];
        let row = node.op.row();
        let label = title(node).to_owned();
        if node.op == Op::RmsNorm && is_ones(graph, node.operands[1]) {
            report.fire(label, format!("{}: a weight of ones is none", row.name));
            graph.nodes[i].operands[1] = Operand::None;
        } else if node.op == Op::Scale {
            if let Some(bypass) = fold_scale_node(graph, &links, at, report) {
                let result = graph.nodes[i].results[0];
                graph.replace_uses(result, bypass);
                edit.remove(at);
            }
        } else if node.op == Op::Slice
            && let Some(bypass) = fold_slice_node(graph, &links, at, report)
        {
            let result = graph.nodes[i].results[0];
            graph.replace_uses(result, bypass);
            edit.remove(at);
        }
    }
    edit.apply(graph);
}

fn is_ones(graph: &Graph, operand: Operand) -> bool {
    operand.weight().is_some_and(|w| graph.weight(w).def == WeightDef::Splat(1.0))
}

/// A scale of 1 is its operand (returned); a scale of a scale is one scale.
fn fold_scale_node(graph: &mut Graph, links: &Links, at: NodeId, report: &mut PassReport) -> Option<ValueId> {
    let node = graph.node(at);
    let (label, mut x, mut factor) = (title(node).to_owned(), node.operands[0], node.attrs.float("factor"));
    if let Some((_, inner)) = links.maker(graph, x, Op::Scale) {
        let product = inner.attrs.float("factor") * factor;
        if !product.is_finite() {
            report.miss(label, "the product of both factors is not finite");
            return None;
        }
        (x, factor) = (inner.operands[0], product);
        report.fire(&label, "scale + scale -> scale");
    }
    if factor == 1.0 {
        report.fire(label, "scale by 1 is its operand");
        return x.value();
    }
    let node = &mut graph.nodes[at.0 as usize];
    node.operands[0] = x;
    node.attrs.set("factor", AttrValue::Float(factor));
    None
}

/// A slice of all columns is its operand (returned); a slice of a slice is one slice.
fn fold_slice_node(graph: &mut Graph, links: &Links, at: NodeId, report: &mut PassReport) -> Option<ValueId> {
    let node = graph.node(at);
    let label = title(node).to_owned();
    let (mut x, mut begin, mut end) = (node.operands[0], node.attrs.int("begin"), node.attrs.int("end"));
    if let Some((_, inner)) = links.maker(graph, x, Op::Slice) {
        let shift = inner.attrs.int("begin");
        (x, begin, end) = (inner.operands[0], begin + shift, end + shift);
        report.fire(&label, "slice + slice -> slice");
    }
    let source = x.value().expect("a slice has an operand");
    if begin == 0 && end == graph.ty(source).cols() {
        report.fire(label, "slice of all columns is its operand");
        return Some(source);
    }
    let node = &mut graph.nodes[at.0 as usize];
    node.operands[0] = x;
    node.attrs.set("begin", AttrValue::Int(begin));
    node.attrs.set("end", AttrValue::Int(end));
    None
}
