//! What a plan moves and how long the array is at it.

use lapidary_npu_isa::Machine;

use super::estimate::matrix_cycles;
use super::plan::{Channels, Nest, Operand, Plan};
use super::{Destination, Matmul, Scales};

/// What crosses the DRAM's pins for one operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Which operand.
    pub what: &'static str,
    /// Its bytes, once.
    pub compulsory: u64,
    /// Bytes that DMA instructions move.
    pub moved: u64,
    /// Why that is more, or nothing.
    pub why: String,
}

/// What a plan costs; of rows that are known at run time only, for the largest number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// M.
    pub m: u64,
    /// N.
    pub n: u64,
    /// K.
    pub k: u64,
    /// Tiles that go through the array: preloads, and passes.
    pub passes: u64,
    /// Cycles of the array if it never waits: rule M3 or M4 of `ISA.md`.
    pub matrix_cycles: u64,
    /// M·N·K/(R·C), rounded up.
    pub ideal_cycles: u64,
    /// Operand by operand.
    pub moved: Vec<Moved>,
}

impl Summary {
    /// Of all operands.
    pub fn compulsory_bytes(&self) -> u64 {
        self.moved.iter().map(|m| m.compulsory).sum()
    }

    /// Of all operands.
    pub fn moved_bytes(&self) -> u64 {
        self.moved.iter().map(|m| m.moved).sum()
    }
}

/// Of all operands of a plan.
pub(super) fn summarize(machine: &Machine, op: &Matmul, plan: &Plan) -> Summary {
    let t = &plan.tiling;
    let (m, n, k) = (u64::from(op.rows.most()), u64::from(t.n), u64::from(t.k));
    let (blocks, strips) = (u64::from(plan.blocks), u64::from(t.strips));
    let tiles = strips * u64::from(t.tiles_of_strip());
    let block = u64::from(plan.block_rows);
    let last = m - (blocks - 1) * block;
    let each = (0..blocks).map(|i| if i + 1 == blocks { last } else { block });
    let mut moved = Vec::new();
    let mut add = |what, compulsory, times: u64, why: String| {
        let why = if times > 1 { why } else { String::new() };
        moved.push(Moved { what, compulsory, moved: compulsory * times, why });
    };
    let rows = machine.accumulator_rows();
    match plan.operand {
        Operand::Given => (),
        Operand::Block { .. } | Operand::All => add("activations", m * k, 1, String::new()),
        Operand::Streamed => add(
            "activations",
            m * k,
            strips,
            format!(
                "read for each of {strips} strips: {block} rows of {k} bytes do not stay in the scratchpad beside the rest"
            ),
        ),
    }
    let times = match plan.nest {
        Nest::Blocks => blocks,
        Nest::Strips => 1,
    };
    let why = format!(
        "read for each of {blocks} blocks of {block} rows: {m} rows do not stay in {rows} rows of accumulators and the scratchpad"
    );
    add("weights", t.compulsory_bytes(), times, why);
    match op.output.tokens {
        Scales::Dram(_) => add("factors of rows", 4 * m, 1, String::new()),
        Scales::One | Scales::Scratchpad(_) => (),
    }
    match plan.channels {
        Channels::None | Channels::One | Channels::Given => (),
        Channels::Whole => add("factors of columns", 4 * n, 1, String::new()),
        Channels::Strip => {
            let why =
                format!("read for each of {blocks} blocks of rows: they do not stay in the scratchpad beside the rest");
            add("factors of columns", 4 * n, blocks, why);
        }
    }
    match op.output.to {
        Destination::Dram { .. } => add("results", m * n * u64::from(op.output.element.bytes()), 1, String::new()),
        Destination::Scratchpad { .. } => (),
    }
    Summary {
        m,
        n,
        k,
        passes: blocks * tiles,
        matrix_cycles: matrix_cycles(machine, each, tiles),
        ideal_cycles: (m * n * k).div_ceil(u64::from(t.array_rows) * u64::from(t.array_cols)),
        moved,
    }
}
