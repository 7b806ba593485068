//! The memory plan: where every value lives, decided at compile time.
//!
//! One arena for activations, one block of state that survives between calls (KV caches, cluster history). Offsets are
//! for the largest call (`chunk_tokens` rows); smaller calls use the front of each buffer.
//!
//! [`plan_memory`] decides: slices are views, sums accumulate where their residual was, element-wise ops overwrite an
//! operand that nobody needs any more, and what is not needed at the same time shares memory. [`check`] holds a plan to
//! that, without knowing how it came about. [`render`] draws it, [`cost`] says what a call moves and multiplies.

mod assign;
mod check;
mod chunk;
pub mod cost;
mod pack;
mod render;
mod scratch;
mod views;

pub use assign::plan_memory;
pub use check::check;
pub use chunk::{DEFAULT_CHUNK_TOKENS, default_chunk, why_whole_sequence};
pub use render::render;
pub use views::{Views, reads_dense};

use crate::ir::{Node, NodeId, ValueId};

/// What listings and reports call a node: its label, or its op if it has none.
pub(crate) fn title(node: &Node) -> &str {
    if node.label.is_empty() { node.op.row().name } else { &node.label }
}

/// Alignment of buffers and state, in bytes.
pub const ALIGN_BYTES: u64 = 64;

/// Why there is no plan, or what is wrong with one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A size does not fit 64 bits.
    #[error("{what}: wanted a size below 2^63 bytes, found more")]
    Overflow {
        /// What the size is of.
        what: String,
    },
    /// The requested lengths make no sense for this graph.
    #[error("{what}: wanted {wanted}, found {found}")]
    Tokens {
        /// `max_tokens` or `chunk_tokens`.
        what: &'static str,
        /// The rule.
        wanted: String,
        /// The request.
        found: u64,
    },
    /// A node reads something in a way that memory cannot offer.
    #[error("{node}: {message}")]
    Unplaceable {
        /// Label of the node.
        node: String,
        /// What stands in the way.
        message: String,
    },
    /// A plan breaks a rule.
    #[error("the memory plan is broken: {0}")]
    Broken(String),
}

/// Index into [`Plan::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// A piece of the arena with a lifetime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// For listings: the label of the node that made it.
    pub name: String,
    /// Offset in the arena, a multiple of 64.
    pub offset_bytes: u64,
    /// Size for `chunk_tokens` rows.
    pub size_bytes: u64,
    /// First node that uses it.
    pub first: NodeId,
    /// Last node that uses it.
    pub last: NodeId,
}

/// Where a value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its buffer; views and values computed in place share one.
    pub buffer: BufferId,
    /// Offset of row 0 in the arena.
    pub offset_bytes: u64,
    /// Elements from row to row.
    pub row_stride: u64,
}

/// What a node's working memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScratchRole {
    /// Attention keys `[kv_heads][positions]` of rows as `kv_cache` says ([`KvStorage`](crate::ir::KvStorage)).
    Keys,
    /// Attention values, laid out as the keys.
    Values,
    /// `attn.clustered`: previous position of the same cluster, i32 `[positions]`.
    Previous,
    /// `attn.clustered`: latest position of each cluster, i32 `[num_clusters]`.
    Last,
    /// `expert.ffn`: hidden rows f32 `[N, f_m]`.
    Hidden,
    /// Activation rows as int8, `[R]` records of [`quantized_row_bytes`](crate::quant::quantized_row_bytes)`(k)`, of
    /// products whose weights are stored in integers. `expert.ffn` has the rows of its x here, one per token.
    QuantizedRows,
    /// `expert.ffn` whose down projections are stored in integers: hidden rows as int8, N records for f_m inputs.
    QuantizedHidden,
    /// `route.select` of the policies that look across tokens: u32 `[T]`.
    Ranking,
}

/// Which block of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Region {
    /// Lives during one call.
    Arena,
    /// Lives as long as the sequence.
    State,
}

/// Working memory of a node beyond its operands and results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// Whose.
    pub node: NodeId,
    /// What for.
    pub role: ScratchRole,
    /// Where: causal attention keeps keys, values and history in the state, all else is in the arena.
    pub region: Region,
    /// Offset in the region, a multiple of 64.
    pub offset_bytes: u64,
    /// Size.
    pub size_bytes: u64,
}

/// The plan of a fused graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Longest sequence (positions in caches).
    pub max_tokens: u64,
    /// Most tokens of one call.
    pub chunk_tokens: u64,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Size of the state.
    pub state_bytes: u64,
    /// Pieces of the arena, scratch included.
    pub buffers: Vec<Buffer>,
    /// Place of each value, by id; `None` for graph inputs and values that nothing defines.
    pub places: Vec<Option<Place>>,
    /// Working memory, by node.
    pub scratch: Vec<Scratch>,
}

impl Plan {
    /// Place of a value.
    ///
    /// # Panics
    /// If the value has none: graph inputs are reached through the execution context.
    pub fn place(&self, value: ValueId) -> Place {
        self.places[value.0 as usize].expect("a planned value")
    }

    /// Working memory of a node.
    pub fn scratch(&self, node: NodeId, role: ScratchRole) -> Option<&Scratch> {
        self.scratch.iter().find(|s| s.node == node && s.role == role)
    }
}
