//! Attention: keys and values kept in DRAM, read for each query or block of queries.

use lapidary_compiler::ir::{Node, NodeId};

use super::super::context::Context;
use super::super::flow::Flow;
use super::super::homes::Room;
use crate::error::LowerError;

/// Bytes of DRAM that a node keeps between calls; 0 for ops that keep nothing.
pub fn state_bytes(node: &Node, max_tokens: u64, room: Room) -> u64 {
    let _ = (node, max_tokens, room);
    0
}

/// Each token's attention to the keys that it sees.
pub(super) fn attention(cx: &Context<'_>, _: &mut Flow<'_>, id: NodeId) -> Result<(), LowerError> {
    Err(cx.cannot(cx.node(id), "not yet"))
}
