//! placeholder
use super::super::{context::Context, flow::Flow};
use crate::error::LowerError;
use lapidary_compiler::ir::NodeId;
pub(super) fn ffn(cx: &Context<'_>, _: &mut Flow<'_>, id: NodeId) -> Result<(), LowerError> {
    Err(cx.cannot(cx.node(id), "not yet"))
}
