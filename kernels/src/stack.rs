//! How much stack a kernel takes: part of what a caller must provide, so a fact that is tested, not a guess.

use crate::table::{KernelOp, KernelRow};

/// Frames that hold spilled registers, a few addresses, and what sorting needs: rows, routing, selection.
const ROWS_BYTES: u64 = 4 << 10;

/// Products: one row's address per row of the tile, and a tile of gates beside the tile of products.
const PRODUCTS_BYTES: u64 = 8 << 10;

/// Attention keeps a block of transposed keys (`64 · 128` f32, 32 KiB), the scores of a tile's rows and the softmax state of
/// its queries.
const ATTENTION_BYTES: u64 = 48 << 10;

impl KernelOp {
    /// Most bytes of stack that a call of any of its kernels takes, return address included, whatever its arguments; of
    /// kernels compiled with optimisation.
    ///
    /// Every run of a kernel in this crate's tests is on a painted stack and held to it.
    pub const fn stack_bytes(self) -> u64 {
        match self {
            KernelOp::AttendRange | KernelOp::AttendClustered => ATTENTION_BYTES,
            KernelOp::Gemm | KernelOp::Gemv | KernelOp::GemmSwiglu | KernelOp::GemvSwiglu => PRODUCTS_BYTES,
            KernelOp::QuantizeRows
            | KernelOp::RmsNorm
            | KernelOp::Softmax
            | KernelOp::Silu
            | KernelOp::Gelu
            | KernelOp::L2Normalize
            | KernelOp::SiluMul
            | KernelOp::Rope
            | KernelOp::CopyRows
            | KernelOp::ClusterAppend
            | KernelOp::RouteScores
            | KernelOp::RouteCluster
            | KernelOp::SelectTopK
            | KernelOp::SelectTopP
            | KernelOp::SelectThreshold
            | KernelOp::SelectExpertChoice
            | KernelOp::SelectBidirectional
            | KernelOp::RouteGroup
            | KernelOp::RouteMemory
            | KernelOp::GatherRows
            | KernelOp::ScatterAdd
            | KernelOp::EmbedRows
            | KernelOp::EmbedPanels
            | KernelOp::MeanRows => ROWS_BYTES,
        }
    }
}

impl KernelRow {
    /// Most bytes of stack that a call takes, see [`KernelOp::stack_bytes`].
    pub const fn stack_bytes(&self) -> u64 {
        self.op.stack_bytes()
    }
}
