//! How many tokens one call may have.

use crate::ir::{Graph, HeadKind, Op};
use crate::ops::Policy;

use super::title;

/// Tokens of a chunk when nothing needs the whole sequence.
pub const DEFAULT_CHUNK_TOKENS: u64 = 128;

/// Why every call must hold its whole sequence; `None` if a sequence may come in pieces.
pub fn why_whole_sequence(graph: &Graph) -> Option<String> {
    if !graph.info.is_causal {
        return Some("the model is not causal".into());
    }
    if graph.info.head != HeadKind::CausalLm {
        return Some("the head pools over all tokens".into());
    }
    graph.nodes.iter().find_map(|node| {
        if node.op == Op::RouteSelect && Policy::of(&node.attrs).looks_across_tokens() {
            return Some(format!("{}: policy {} looks across tokens", title(node), node.attrs.word("policy")));
        }
        (node.op == Op::AttnRange && !node.attrs.flag("causal"))
            .then(|| format!("{}: attention is not causal", title(node)))
    })
}

/// Most tokens of one call, unless the user says otherwise: all of them when the graph needs whole sequences, else 128.
pub fn default_chunk(graph: &Graph, max_tokens: u64) -> u64 {
    match why_whole_sequence(graph) {
        Some(_) => max_tokens,
        None => max_tokens.min(DEFAULT_CHUNK_TOKENS),
    }
}
