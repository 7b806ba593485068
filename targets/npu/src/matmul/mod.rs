//! Matrix multiplication, weight-stationary: `output[m, n] = Σ_k activations[m, k] · weights[k, n]`, rescaled on the way out.
//!
//! The array holds one tile of weights at a time and rows of activations stream through it. For each strip of C outputs
//! tiles follow each other over K and add up in the accumulators; then the vector unit rescales the strip's M × C
//! sums into the scratchpad, and they are stored from there, while the array is at the next strip.
//!
//! * [`tiling`]: how weights are cut and how they lie in DRAM; [`pack`] puts them there.
//! * [`plan`](mod@plan): rows at a time, what stays on chip, where it lies, what that moves.
//! * [`estimate`]: what that takes, by formulas.
//! * `emit`, `strip`, `drain`: the program: loops over blocks of rows, strips, chunks, units; results.
//!
//! Everything is double-buffered by tokens: LOAD fills one slot of the weight buffer while MATRIX uses the other, MATRIX
//! fills one half of the accumulators while VECTOR empties the other, VECTOR fills one staging buffer while STORE empties
//! the other. Slots take turns by the parity of loop indices alone, and loops whose end would leave the turn in
//! the air have an even number of iterations: so no register carries a turn from one loop to the next, and whoever follows the
//! program for some iterations only (the verifier) sees the same turns.

mod drain;
mod emit;
pub mod estimate;
pub mod pack;
pub mod plan;
mod strip;
mod summary;
pub mod tiling;

use lapidary_npu_isa::Reg;
use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::machine::Machine;

pub use emit::{Emitted, WeightStream, matmul};
pub use plan::{Plan, plan};
pub use summary::{Moved, Summary};
pub use tiling::{Tiling, WeightFormat};

use crate::builder::Place;

/// M.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// So many, at least 1.
    Const(u32),
    /// What a register holds, 0 included.
    Register {
        /// The register; it is only read.
        reg: Reg,
        /// It never holds more, and more is cut off.
        most: u32,
    },
}

impl Rows {
    /// The largest number that it can be.
    pub const fn most(self) -> u32 {
        match self {
            Rows::Const(n) => n,
            Rows::Register { most, .. } => most,
        }
    }
}

/// Where the rows of int8 activations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// In DRAM.
    Dram {
        /// First code.
        at: Place,
        /// Bytes from row to row.
        stride: u64,
    },
    /// In the scratchpad, where MATRIX may read them when the first instruction is issued.
    Scratchpad {
        /// First code.
        at: Place,
        /// Bytes from row to row.
        stride: u64,
    },
}

/// Factors, one f32 per row or column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// 1 everywhere.
    One,
    /// In DRAM, dense.
    Dram(Place),
    /// In the scratchpad, dense, where VECTOR may read them when the first instruction is issued.
    Scratchpad(Place),
}

/// Where results go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To DRAM, by STORE.
    Dram {
        /// First element.
        at: Place,
        /// Bytes from row to row.
        stride: u64,
    },
    /// To the scratchpad, by VECTOR.
    Scratchpad {
        /// First element.
        at: Place,
        /// Bytes from row to row.
        stride: u64,
    },
}

/// What becomes of sums: `(f32(sum) · channels[n]) · tokens[m]` for int8 weights; for int4 weights, whose groups have been
/// scaled and added up in f32 on the way, `sum · tokens[m]`. Stored as `element`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// `i32` holds f32(sum) as an integer: exact up to 2²⁴, so for K up to 1040 with codes from −127 to 127.
    pub element: Type,
    /// One per row.
    pub tokens: Scales,
    /// One per output; of int4 weights there are none.
    pub channels: Scales,
    /// Where to.
    pub to: Destination,
}

/// A part of the scratchpad that a lowering may use as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scratch {
    /// First byte, a multiple of 32.
    pub begin: u64,
    /// Length.
    pub bytes: u64,
}

impl Scratch {
    /// All of a machine's scratchpad.
    pub const fn all(machine: &Machine) -> Scratch {
        Scratch { begin: 0, bytes: machine.scratchpad.bytes }
    }
}

/// A multiplication.
///
/// What the caller has in the scratchpad (activations, factors of rows, results) needs room for whole blocks of rows,
/// [`Plan::rows_with_room`]: if there are several and the last is not full, nothing is done beyond M rows, but the verifier does not see that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matmul {
    /// M.
    pub rows: Rows,
    /// K.
    pub k: u32,
    /// N.
    pub n: u32,
    /// How weights are stored.
    pub format: WeightFormat,
    /// Where they are in DRAM, packed as [`pack`] does.
    pub weights: Place,
    /// The other operand.
    pub activations: Activations,
    /// The result.
    pub output: Output,
    /// Where buffers may be.
    pub scratch: Scratch,
}
