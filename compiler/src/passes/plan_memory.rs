//! `plan-memory`: gives every value its place; see [`crate::plan`].

use super::{PassContext, PassError, PassReport};
use crate::ir::Graph;
use crate::plan;

pub(super) fn run(graph: &mut Graph, ctx: &PassContext) -> Result<PassReport, PassError> {
    let plan = plan::plan_memory(graph, ctx.max_tokens, ctx.chunk_tokens)?;
    plan::check(&plan, graph)?;
    let mut report = PassReport::default();
    let (arena, state) = (plan.arena_bytes, plan.state_bytes);
    report.fire("memory", format!("{} buffers, arena {arena} bytes, state {state} bytes", plan.buffers.len()));
    report.plan = Some(plan);
    Ok(report)
}
