//! What a pass may know besides the graph.

use crate::ir::Graph;
use crate::plan::default_chunk;
use crate::quant::Recipe;

/// Parameters of a compilation that passes read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassContext {
    /// Storage of weights, keys and values.
    pub recipe: Recipe,
    /// Longest sequence.
    pub max_tokens: u64,
    /// Most tokens of one call.
    pub chunk_tokens: u64,
}

impl PassContext {
    /// With the default chunk of this graph.
    pub fn new(graph: &Graph, recipe: impl Into<Recipe>, max_tokens: u64) -> Self {
        Self { recipe: recipe.into(), max_tokens, chunk_tokens: default_chunk(graph, max_tokens) }
    }
}
