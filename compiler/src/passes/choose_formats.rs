//! `choose-formats`: gives every weight the element type that the recipe stores it in.

use std::collections::BTreeMap;

use super::edit::weight_readers;
use super::{PassContext, PassError, PassReport, Recipe};
use crate::ir::{Component, DType, Graph, NodeId, Op, WeightId};

pub(super) fn run(graph: &mut Graph, ctx: &PassContext) -> Result<PassReport, PassError> {
    let readers = weight_readers(graph);
    let mut changes: BTreeMap<(Component, &str, &str), u64> = BTreeMap::new();
    for (i, readers) in readers.iter().enumerate() {
        let id = WeightId(i as u32);
        if readers.is_empty() {
            continue;
        }
        let to = format_of(graph, ctx.recipe, id, readers);
        let weight = &mut graph.weights[i];
        if weight.dtype != to {
            *changes.entry((weight.component, weight.dtype.name(), to.name())).or_default() += 1;
            weight.dtype = to;
        }
    }
    let mut report = PassReport::default();
    for ((component, from, to), weights) in changes {
        let unit = if weights == 1 { "weight" } else { "weights" };
        report.fire(component.name(), format!("{weights} {unit} {from} -> {to}"));
    }
    Ok(report)
}

/// Storage of one weight. What is not a matrix product is read element by element by kernels that know f32 only.
fn format_of(graph: &Graph, recipe: Recipe, id: WeightId, readers: &[(NodeId, usize)]) -> DType {
    let weight = graph.weight(id);
    if !readers.iter().all(|(node, _)| is_matrix_reader(graph.node(*node).op)) {
        return DType::F32;
    }
    match (recipe, weight.dtype) {
        (Recipe::Fp32, _) | (Recipe::None, DType::BF16) => DType::F32,
        (Recipe::None, own) => own,
        // The token router's head decides on domains: its few rows stay exact.
        (Recipe::Fp16, _) if weight.component == Component::Routing => DType::F32,
        (Recipe::Fp16, _) => DType::F16,
    }
}

/// Whether an op multiplies by its weights as matrices or looks up their rows.
fn is_matrix_reader(op: Op) -> bool {
    matches!(op, Op::Embed | Op::Linear | Op::LinearSwiglu | Op::ExpertLinear | Op::ExpertApply | Op::ExpertFfn)
}
