//! placeholder
use super::super::{context::Context, flow::Flow};
use crate::error::LowerError;
use lapidary_compiler::ir::NodeId;
pub(super) fn scores(cx: &Context<'_>, _: &mut Flow<'_>, id: NodeId) -> Result<(), LowerError> {
    Err(cx.cannot(cx.node(id), "not yet"))
}
pub(super) fn cluster(cx: &Context<'_>, _: &mut Flow<'_>, id: NodeId) -> Result<(), LowerError> {
    Err(cx.cannot(cx.node(id), "not yet"))
}
pub(super) fn select(cx: &Context<'_>, _: &mut Flow<'_>, id: NodeId) -> Result<(), LowerError> {
    Err(cx.cannot(cx.node(id), "not yet"))
}
pub(super) fn group(cx: &Context<'_>, _: &mut Flow<'_>, id: NodeId) -> Result<(), LowerError> {
    Err(cx.cannot(cx.node(id), "not yet"))
}
pub(super) fn memory(cx: &Context<'_>, _: &mut Flow<'_>, id: NodeId) -> Result<(), LowerError> {
    Err(cx.cannot(cx.node(id), "not yet"))
}
