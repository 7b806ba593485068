//! What a plan takes, by the formulas of `ISA.md`: cycles of the array, of the DRAM's bus, of the vector unit.

use lapidary_npu_isa::Machine;
use lapidary_npu_isa::machine::DramPreset;

use super::plan::{Operand, Plan, Staging};
use super::{Activations, Destination, Matmul};

/// Cycles of the array for blocks of so many rows, `tiles` tiles each, by rules M3 and M4.
pub fn matrix_cycles(machine: &Machine, blocks: impl Iterator<Item = u64>, tiles: u64) -> u64 {
    let (r, c) = (machine.matrix.rows, machine.matrix.cols);
    match machine.matrix.weight_overlap {
        false => blocks.map(|m| tiles * (2 * r + c + m - 2)).sum(),
        true => {
            let (mut total, mut last) = (0, None);
            for m in blocks {
                total += tiles * m.max(r);
                last = Some(m);
            }
            last.map_or(0, |m| total - m.max(r) + r + m + r + c - 2)
        }
    }
}

/// Cycles in which the DRAM's bus can move so many bytes.
fn bus_cycles(machine: &Machine, bytes: u64) -> u64 {
    if machine.dram.preset == DramPreset::Ideal {
        return 0;
    }
    let ps = u128::from(bytes) * u128::from(machine.burst_ps());
    let per = u128::from(machine.dma.burst_bytes) * u128::from(machine.dram.channels) * 1_000_000;
    (ps * u128::from(machine.clock_mhz)).div_ceil(per) as u64
}

/// Cycles that a plan takes, more or less: what the array, the DRAM's bus or a staging buffer takes, whichever is longest, and what
/// comes before and after that.
pub(super) fn estimate(machine: &Machine, op: &Matmul, plan: &Plan) -> u64 {
    let summary = &plan.summary;
    let bytes_of = |what: &str| summary.moved.iter().filter(|m| m.what == what).map(|m| m.moved).sum::<u64>();
    let blocks = u64::from(plan.blocks);
    let stores = bus_cycles(machine, bytes_of("results") + store_waste(machine, op, plan));
    let operand = bus_cycles(machine, bytes_of("activations") + load_waste(machine, op, plan));
    let bus =
        bus_cycles(machine, summary.moved_bytes() + store_waste(machine, op, plan) + load_waste(machine, op, plan));
    let mut array = summary.matrix_cycles + drain_stalls(machine, plan);
    let drains = blocks * u64::from(plan.tiling.strips) * drain_cycles(machine, plan);
    // With one buffer for a block of rows the next block waits for the DMA.
    let others = |cycles: u64| cycles - cycles / blocks;
    if plan.operand == (Operand::Block { slots: 1 }) {
        array += others(operand);
    }
    if plan.staging == (Staging::Whole { slots: 1 }) {
        array += others(stores);
    }
    let chain = drains + if plan.staging == (Staging::Strip { slots: 1 }) { stores } else { 0 };
    // What streams comes in smaller parts, but the array waits for many of them.
    let first = match plan.operand {
        Operand::Given => 0,
        Operand::Block { .. } | Operand::All if plan.pieces => operand / blocks / u64::from(plan.chunks.count()),
        Operand::Block { .. } | Operand::All => operand / blocks,
        Operand::Streamed => bus_cycles(machine, summary.m * summary.k) / blocks,
    };
    let last = match plan.staging {
        Staging::Given => 0,
        Staging::Strip { .. } => stores / blocks / u64::from(plan.tiling.strips),
        Staging::Whole { .. } => stores / blocks,
    };
    first + array.max(bus.saturating_sub(first + last)).max(chain) + last
}

/// Bytes that bursts of results move beyond the results: rows of a strip that begin or end within a burst.
fn store_waste(machine: &Machine, op: &Matmul, plan: &Plan) -> u64 {
    let Destination::Dram { stride, .. } = op.output.to else { return 0 };
    let element = u64::from(op.output.element.bytes());
    let bursts = |bytes: u64| bytes + partial_bursts(machine, stride, bytes);
    let n = u64::from(plan.tiling.n);
    let row = match plan.staging {
        Staging::Given => return 0,
        Staging::Whole { .. } if stride == n * element => return 0,
        Staging::Whole { .. } => bursts(n * element),
        Staging::Strip { .. } => {
            u64::from(plan.tiling.strips) * bursts(element * n.min(u64::from(plan.tiling.array_cols)))
        }
    };
    u64::from(op.rows.most()) * row.saturating_sub(n * element)
}

/// Bytes that bursts of streamed activations move beyond those: pieces of rows that begin or end within a burst.
pub(super) fn load_waste(machine: &Machine, op: &Matmul, plan: &Plan) -> u64 {
    match (op.activations, plan.operand) {
        (Activations::Dram { stride, .. }, Operand::Streamed) if plan.chunks.count() > 1 => {
            let pieces = u64::from(op.rows.most()) * u64::from(plan.chunks.count() * plan.tiling.strips);
            pieces * partial_bursts(machine, stride, plan.operand_stride)
        }
        (_, _) => 0,
    }
}

/// Bytes of bursts that a run of bytes does not need, on average: it begins at any multiple of what stride, length and burst
/// have in common.
fn partial_bursts(machine: &Machine, stride: u64, bytes: u64) -> u64 {
    let gcd = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let burst = machine.dma.burst_bytes;
    burst - gcd(burst, gcd(stride, bytes))
}

/// Cycles of the vector unit for a strip of a block of rows.
fn drain_cycles(machine: &Machine, plan: &Plan) -> u64 {
    let steps = machine.matrix.cols.div_ceil(machine.vector.lanes);
    machine.vector.startup_cycles + steps * u64::from(plan.block_rows)
}

/// Cycles in which the array waits for accumulators: a set is needed again when the other sets have had a strip each, and it is
/// empty when the last pass has come through and the vector unit has taken all rows.
fn drain_stalls(machine: &Machine, plan: &Plan) -> u64 {
    let (r, c, m) = (machine.matrix.rows, machine.matrix.cols, u64::from(plan.block_rows));
    let tiles = u64::from(plan.tiling.tiles_of_strip()) * u64::from(plan.accumulators - 1);
    let drain = drain_cycles(machine, plan);
    let each = match machine.matrix.weight_overlap {
        true => (m + r + c - 2 + drain).saturating_sub((tiles + 1) * m.max(r)),
        false => drain.saturating_sub(tiles * (2 * r + c + m - 2) + r),
    };
    u64::from(plan.blocks) * u64::from(plan.tiling.strips) * each
}
