//! Why there is no program.

use lapidary_npu_isa::address::Memory;
use lapidary_npu_isa::instruction::EncodeError;
use lapidary_npu_isa::program::StructureError;

/// An error of lowering.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// A memory of the machine is too small.
    #[error("{what}: wanted {wanted} {}s of the {} at least, found {found}: {} too few", .memory.unit(), memory_name(*.memory), .wanted - .found)]
    TooSmall {
        /// What has to lie there.
        what: String,
        /// The memory.
        memory: Memory,
        /// Least units that would do.
        wanted: u64,
        /// Units there are.
        found: u64,
    },
    /// More registers at a time than there are.
    #[error("registers: wanted one more for {what}, found all 31 in use: {}", .used.join(", "))]
    Registers {
        /// What it is for.
        what: &'static str,
        /// What the others are for.
        used: Vec<&'static str>,
    },
    /// More token counters than there are.
    #[error("token counters: wanted one more for {what}, found all 31 given to other pairs of queues")]
    Tokens {
        /// What it is for.
        what: &'static str,
    },
    /// What was asked for makes no sense.
    #[error("{what}: wanted {wanted}, found {found}")]
    Argument {
        /// Which part of it.
        what: &'static str,
        /// What would be right.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// An op that the NPU cannot do.
    #[error("{label} ({op}): {message}")]
    Op {
        /// Which node.
        label: String,
        /// Its op.
        op: &'static str,
        /// Why.
        message: String,
    },
    /// A weight that cannot be read.
    #[error("weights: {0}")]
    Weights(String),
    /// The image of weights cannot be written.
    #[error("image of weights: {0}")]
    Write(String),
    /// An instruction that was built has no word.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The instructions are no program.
    #[error(transparent)]
    Structure(#[from] StructureError),
}

fn memory_name(memory: Memory) -> &'static str {
    match memory {
        Memory::Dram => "DRAM",
        Memory::Scratchpad => "scratchpad",
        Memory::Weights => "weight buffer",
        Memory::Accumulators => "accumulators",
    }
}

impl LowerError {
    pub(crate) fn argument(what: &'static str, wanted: impl Into<String>, found: impl ToString) -> Self {
        LowerError::Argument { what, wanted: wanted.into(), found: found.to_string() }
    }
}
