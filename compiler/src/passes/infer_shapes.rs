//! `infer-shapes`: computes every value's type from its node's operands, in program order.

use super::edit::title;
use super::{PassContext, PassError, PassReport};
use crate::ir::{Graph, SymbolId, TensorType};
use crate::ops::InferCx;

pub(super) fn run(graph: &mut Graph, _ctx: &PassContext) -> Result<PassReport, PassError> {
    let mut report = PassReport::default();
    let definitions = graph.definitions();
    for i in 0..graph.nodes.len() {
        let fail = |graph: &Graph, message| PassError::Failed {
            pass: "infer-shapes",
            message: format!("{}: {message}", title(&graph.nodes[i])),
        };
        let own_symbol = own_symbol(graph, i);
        let node = &graph.nodes[i];
        let mut cx = InferCx::new(graph, node.op, &node.operands, &node.attrs);
        (cx.symbol, cx.definitions) = (own_symbol, Some(definitions.as_slice()));
        let bound = node.op.row().new_symbol.map(|bound| bound(&cx)).transpose().map_err(|m| fail(graph, m))?;
        if let (Some(symbol), Some(bound)) = (own_symbol, bound) {
            let symbol = &mut graph.symbols[symbol.0 as usize];
            if std::mem::replace(&mut symbol.max_per_token, bound) != bound {
                let what = format!("{} <= {bound}", symbol.name);
                report.fire(title(&graph.nodes[i]), what);
            }
        }
        let node = &graph.nodes[i];
        let mut cx = InferCx::new(graph, node.op, &node.operands, &node.attrs);
        (cx.symbol, cx.definitions) = (own_symbol, Some(definitions.as_slice()));
        let types = (node.op.row().infer)(&cx).map_err(|m| fail(graph, m))?;
        set_types(graph, i, types, &mut report);
    }
    Ok(report)
}

/// The symbol that a node brought in.
fn own_symbol(graph: &Graph, i: usize) -> Option<SymbolId> {
    let node = &graph.nodes[i];
    node.op.row().new_symbol?;
    let own = |s: &SymbolId| *s != SymbolId::TOKENS && *s != SymbolId::OUTPUT_ROWS;
    node.results.iter().filter_map(|r| graph.ty(*r).rows().as_symbol()).find(own)
}

fn set_types(graph: &mut Graph, i: usize, types: Vec<TensorType>, report: &mut PassReport) {
    let node = &graph.nodes[i];
    for (result, ty) in node.results.iter().zip(types) {
        if *graph.ty(*result) != ty {
            let what = format!("{} -> {}", graph.show_type(graph.ty(*result)), graph.show_type(&ty));
            report.fire(title(node), what);
            graph.values[result.0 as usize].ty = ty;
        }
    }
}
