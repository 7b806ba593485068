//! Ops as instructions, one file per family.

pub(super) mod attention;
mod dense;
mod expert;
mod linear;
mod product;
mod route;

use lapidary_compiler::ir::{NodeId, Op};

use super::context::Context;
use super::flow::Flow;
use super::stream::Stream;
use crate::builder::Value;
use crate::error::LowerError;

/// What an op's lowering is.
type Lower = fn(&Context<'_>, &mut Flow<'_>, NodeId) -> Result<(), LowerError>;

/// How an op is lowered; `None`: it is a view, and nothing has to be done.
fn lowering(op: Op) -> Option<Lower> {
    Some(match op {
        Op::Embed => dense::embed,
        Op::Linear => linear::linear,
        Op::LinearSwiglu => linear::swiglu,
        Op::RmsNorm => dense::rms_norm,
        Op::Add | Op::Mul => dense::binary,
        Op::Scale => dense::scale,
        Op::Silu | Op::Gelu => dense::activation,
        Op::Softmax => dense::softmax,
        Op::Slice => return None,
        Op::Rope => dense::rope,
        Op::AttnRange | Op::AttnClustered => attention::attention,
        Op::RouteScores => route::scores,
        Op::RouteCluster => route::cluster,
        Op::RouteSelect => route::select,
        Op::RouteGroup => route::group,
        Op::RouteMemory => route::memory,
        Op::ExpertFfn => expert::ffn,
        Op::Fill => dense::fill,
        Op::LastRows => dense::last_rows,
        Op::MeanRows => dense::mean_rows,
        Op::L2Normalize => dense::l2_normalize,
        Op::RouteGather | Op::ExpertLinear | Op::RouteCombine | Op::ExpertApply => unfused,
    })
}

/// Parts of a module layer that the passes make one op of.
fn unfused(cx: &Context<'_>, _: &mut Flow<'_>, id: NodeId) -> Result<(), LowerError> {
    Err(cx.cannot(cx.node(id), "wanted module layers that the passes have fused to expert.ffn, found a part of one"))
}

/// Makes a node's instructions, and stores what it gives if that is a result of the graph.
pub fn lower(cx: &Context<'_>, flow: &mut Flow<'_>, id: NodeId) -> Result<(), LowerError> {
    let node = cx.node(id);
    flow.b.op_label(super::label(node), None);
    flow.scratch.begin_op(super::label(node));
    if let Some(lower) = lowering(node.op) {
        flow.scope(|flow| lower(cx, flow, id))?;
    }
    for (output, address) in cx.graph.outputs.iter().zip(&cx.layout.outputs) {
        let home = cx.value(output.value);
        if node.results.contains(&output.value) && home.on_chip() {
            // Results that the host may read are nothing that the op needs.
            flow.b.op_label(&format!("out.{}", output.name), None);
            flow.scope(|flow| dense::store_output(cx, flow, output.value, *address))?;
        }
    }
    Ok(())
}

impl Context<'_> {
    /// Rows of a value as they pass through the scratchpad.
    fn stream(&self, value: lapidary_compiler::ir::ValueId) -> Stream {
        Stream { home: self.value(value), cols: self.cols_of(value) }
    }
}

/// A known count.
fn known(n: u64) -> Value {
    Value::Const(n as i64)
}
