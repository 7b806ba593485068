//! `choose-formats`: gives every weight, and the keys and values of causal attention, the storage that the recipe says.

use std::collections::BTreeMap;

use super::edit::title;
use super::{PassContext, PassError, PassReport};
use crate::ir::{AttrValue, Component, Graph, Op, Storage};
use crate::quant::RecipeError;

pub(super) fn run(graph: &mut Graph, ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let mut changes: BTreeMap<(Component, Storage, Storage), u64> = BTreeMap::new();
    let failed = |e: RecipeError| PassError::Failed { pass: "choose-formats", message: e.to_string() };
    for choice in ctx.recipe.choices(graph).map_err(failed)? {
        let weight = &mut graph.weights[choice.weight.0 as usize];
        if weight.storage != choice.storage {
            *changes.entry((weight.component, weight.storage, choice.storage)).or_default() += 1;
            weight.storage = choice.storage;
        }
        if let Some(reason) = choice.why_not {
            report.miss(weight.component.name(), reason);
        }
    }
    for ((component, from, to), weights) in changes {
        let unit = if weights == 1 { "weight" } else { "weights" };
        report.fire(component.name(), format!("{weights} {unit} {from} -> {to}"));
    }
    choose_kv_cache(graph, ctx, &mut report);
    Ok(report)
}

fn choose_kv_cache(graph: &mut Graph, ctx: &PassContext, report: &mut PassReport) {
    let storage = ctx.recipe.kv_cache().name();
    for node in &mut graph.nodes {
        if !matches!(node.op, Op::AttnRange | Op::AttnClustered) {
            continue;
        }
        let own = node.attrs.word("kv_cache");
        if own == storage {
            continue;
        }
        if !node.keeps_keys() {
            report.miss(title(node), format!("it is not causal and keeps no keys and values: not {storage}"));
            continue;
        }
        report.fire(title(node), format!("keys and values {own} -> {storage}"));
        node.attrs.set("kv_cache", AttrValue::Word(storage));
    }
}
