//! The memory plan: where every value lives, decided at compile time.
//!
//! One arena for activations, one block of state that survives between calls (KV caches, cluster history). Offsets are
//! for the largest call (`chunk_tokens` rows); smaller calls use the front of each buffer.

use crate::ir::{NodeId, ValueId};

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
    /// Attention keys f32 `[kv_heads][positions][head_dim]`.
    Keys,
    /// Attention values, laid out as the keys.
    Values,
    /// `attn.clustered`: previous position of the same cluster, i32 `[positions]`.
    Previous,
    /// `attn.clustered`: latest position of each cluster, i32 `[num_clusters]`.
    Last,
    /// `expert.ffn`: hidden rows f32 `[N, f_m]`.
    Hidden,
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
