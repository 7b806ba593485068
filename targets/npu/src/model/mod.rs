//! Whole models: from a fused graph to programs for prefill and decode, and the image of weights that they read.

use std::io::Write;

use lapidary_compiler::ir::{DType, Graph, WeightReader};
use lapidary_npu_isa::{Machine, Program};

use crate::error::LowerError;

/// How long sequences and calls may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelOptions {
    /// Longest sequence.
    pub max_tokens: u64,
    /// Most tokens of one call.
    pub chunk_tokens: u64,
}

/// How many rows an output has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputRows {
    /// One per token of the call.
    Tokens,
    /// As many as the call asks for.
    OutputRows,
    /// One.
    One,
}

/// A result that the host may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOutput {
    /// The graph's name for it: `logits`.
    pub name: String,
    /// The segment in which it lies, rows dense: `out.logits`.
    pub segment: String,
    /// F32 or U8.
    pub element: DType,
    /// How many rows it has.
    pub rows: OutputRows,
    /// Elements of a row.
    pub cols: u64,
}

/// What a model takes on a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelSummary {
    /// Largest use of the scratchpad, in bytes.
    pub scratchpad_bytes: u64,
    /// Values that do not stay in the scratchpad between ops, in DRAM.
    pub arena_bytes: u64,
    /// State that survives between calls.
    pub state_bytes: u64,
    /// What is moved more often than once, and why.
    pub reread: Vec<String>,
}

/// A model as programs.
#[derive(Clone, Debug)]
pub struct NpuModel {
    /// What it is for.
    pub machine: Machine,
    /// Longest sequence.
    pub max_tokens: u64,
    /// Most tokens of one call.
    pub chunk_tokens: u64,
    /// Any number of tokens up to the chunk.
    pub prefill: Program,
    /// One token; `None`: the model cannot generate.
    pub decode: Option<Program>,
    /// What calls give.
    pub outputs: Vec<ModelOutput>,
    /// Length of the image of weights, which begins at DRAM address 0.
    pub weight_bytes: u64,
    /// What it takes.
    pub summary: ModelSummary,
}

impl NpuModel {
    /// Writes the image of weights; `progress` is told how many bytes are written.
    ///
    /// # Errors
    /// A weight that cannot be read, or `out` that cannot be written.
    pub fn write_weights(
        &self,
        reader: &WeightReader<'_>,
        out: &mut dyn Write,
        progress: &dyn Fn(u64),
    ) -> Result<(), LowerError> {
        let _ = (reader, out, progress);
        Err(LowerError::Op { label: String::new(), op: "", message: "not yet".into() })
    }
}

/// Lowers a graph that all passes have been through.
///
/// # Errors
/// An op that the NPU cannot do, a memory of the machine that is too small.
pub fn lower_model(graph: &Graph, machine: &Machine, options: &ModelOptions) -> Result<NpuModel, LowerError> {
    let _ = (graph, machine, options);
    Err(LowerError::Op { label: String::new(), op: "", message: "not yet".into() })
}
