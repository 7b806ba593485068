//! What stays on chip, where it lies, how many rows at a time: chosen from all that fits, by the machine's description.
//!
//! All rows at once, if the accumulators and the scratchpad hold them. Candidates otherwise are blocks of rows (from all that the accumulators hold downwards), two orders of the loops, and whether the
//! activations stay in the scratchpad for a block or stream through it for each strip. Of those that fit the one is taken
//! that needs the fewest cycles by the formulas of `ISA.md`: the larger of what its passes (with what they wait for
//! accumulators) and what its DMA takes (whole bursts), and the last store; among equals the fewest bytes, then the most double buffering.

use lapidary_npu_isa::Machine;
use lapidary_npu_isa::address::Memory;

use super::estimate::{estimate, load_waste, matrix_cycles};
use super::summary::{Summary, summarize};
use super::tiling::{Chunks, Tiling, WeightFormat};
use super::{Activations, Destination, Matmul, Rows, Scales};
use crate::error::LowerError;

/// A chunk of weights should not be much smaller, or the DMA's setup and latency show.
const CHUNK_BYTES: u64 = 1536;

/// What a load takes at least, more or less, until its bytes are there.
const LOAD_CYCLES: u64 = 40;

/// Order of the outer loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nest {
    /// Blocks of rows, and strips within: weights are read once per block.
    Blocks,
    /// Strips, and blocks of rows within: a strip of weights stays until all rows have seen it.
    Strips,
}

/// Where activations are while they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Where the caller has them.
    Given,
    /// A block's rows are loaded with its first strip and stay; `slots` blocks at a time.
    Block {
        /// 1 or 2.
        slots: u32,
    },
    /// All rows are loaded with the first strip and stay.
    All,
    /// Loaded for every strip, chunk by chunk.
    Streamed,
}

/// Where results are on their way to DRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staging {
    /// They stay where the caller wants them.
    Given,
    /// A strip at a time.
    Strip {
        /// 1 or 2.
        slots: u32,
    },
    /// All columns of a block's rows, because rows of a strip are shorter than a burst.
    Whole {
        /// 1 or 2.
        slots: u32,
    },
}

/// Where factors of columns are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// There are none (int4).
    None,
    /// Ones.
    One,
    /// Where the caller has them.
    Given,
    /// Loaded once.
    Whole,
    /// Loaded for each strip.
    Strip,
}

/// Slots of the weight buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightSlots {
    /// One: it is not loaded while it is used.
    One,
    /// Two that take turns.
    Two,
    /// So many strips, 1 or 2, each as a whole.
    Strips(u32),
}

/// Addresses and sizes of buffers in the scratchpad, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// Activations.
    pub operand: u64,
    /// From one block (streamed: chunk) of them to the next.
    pub operand_slot: u64,
    /// Ones.
    pub ones: u64,
    /// Factors of rows.
    pub tokens: u64,
    /// Factors of columns.
    pub channels: u64,
    /// From one strip's factors to the next.
    pub channels_slot: u64,
    /// Results.
    pub staging: u64,
    /// From one staging buffer to the next.
    pub staging_slot: u64,
}

/// How a multiplication is done on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How weights are cut.
    pub tiling: Tiling,
    /// How they are loaded.
    pub chunks: Chunks,
    /// Order of the loops.
    pub nest: Nest,
    /// Rows of a block.
    pub block_rows: u32,
    /// Blocks, at most.
    pub blocks: u32,
    /// Sets of accumulators that take turns: 1 or 2.
    pub accumulators: u32,
    /// Slots of the weight buffer.
    pub weights: WeightSlots,
    /// From one of two slots to the other, in bytes.
    pub weight_slot: u64,
    /// Blocks of rows of which factors are in the scratchpad at a time.
    pub token_slots: u32,
    /// Where activations are.
    pub operand: Operand,
    /// Whether each chunk of a block of activations is loaded by an instruction of its own, and lies on its own.
    pub pieces: bool,
    /// From row to row of activations in the scratchpad.
    pub operand_stride: u64,
    /// Where results are.
    pub staging: Staging,
    /// Where factors of columns are.
    pub channels: Channels,
    /// Where all that lies.
    pub buffers: Buffers,
    /// What it costs.
    pub summary: Summary,
}

impl Plan {
    /// Rows of all blocks: M, or more if the last is not full.
    pub const fn rows_with_room(&self) -> u64 {
        self.block_rows as u64 * self.blocks as u64
    }
}

/// One way to do it, before it is known whether it fits.
#[derive(Clone, Copy, Debug)]
struct Choice {
    block_rows: u32,
    nest: Nest,
    streamed: bool,
    wanted_units: u32,
    weight_slots: u32,
    staging_slots: u32,
    block_slots: u32,
    whole_staging: bool,
    whole_channels: bool,
}

/// Chooses how to do it.
pub fn plan(machine: &Machine, op: &Matmul) -> Result<Plan, LowerError> {
    check(machine, op)?;
    let tiling = Tiling::new(machine, op.k, op.n, op.format);
    let sums = u64::from(needs_sums(&tiling));
    let rows = machine.accumulator_rows();
    if rows < 1 + sums {
        return Err(short("a row of sums", Memory::Accumulators, 1 + sums, rows));
    }
    let strip_tiles = u64::from(tiling.strips) * u64::from(tiling.tiles_of_strip());
    let mut best: Option<(_, Plan)> = None;
    let mut least: Option<LowerError> = None;
    for (penalty, choice) in choices(machine, op, &tiling, rows, sums).into_iter().enumerate() {
        match fit(machine, op, tiling, choice) {
            Ok(plan) => {
                let summary = &plan.summary;
                let waste = load_waste(machine, op, &plan);
                let cycles = estimate(machine, op, &plan);
                // Rows that fit at once are not cut at a cost to the array, whatever else that might gain: then the closed
                // form of a product holds.
                let whole = matrix_cycles(machine, std::iter::once(summary.m), strip_tiles);
                let again = plan.operand == Operand::Streamed && (plan.tiling.strips > 1 || waste > 0);
                let cut = summary.matrix_cycles > whole || again;
                let score = (cut, cycles, summary.moved_bytes(), penalty);
                if best.as_ref().is_none_or(|(other, _)| score < *other) {
                    best = Some((score, plan));
                }
            }
            Err(error) => {
                let wanted = |e: &LowerError| match e {
                    LowerError::TooSmall { wanted, .. } => *wanted,
                    _ => u64::MAX,
                };
                if least.as_ref().is_none_or(|e| wanted(&error) < wanted(e)) {
                    least = Some(error);
                }
            }
        }
    }
    match (best, least) {
        (Some((_, plan)), _) => Ok(plan),
        (None, Some(error)) => Err(error),
        (None, None) => Err(LowerError::argument("rows", "at least 1", 0)),
    }
}

fn short(what: &str, memory: Memory, wanted: u64, found: u64) -> LowerError {
    LowerError::TooSmall { what: what.into(), memory, wanted, found }
}

fn check(machine: &Machine, op: &Matmul) -> Result<(), LowerError> {
    for (what, value) in [("rows", op.rows.most()), ("inputs", op.k), ("outputs", op.n)] {
        if value == 0 || value >= 1 << 24 {
            return Err(LowerError::argument(what, "1 to 16777215", value));
        }
    }
    if let WeightFormat::Int4 { group } = op.format {
        if ![32, 64, 128].contains(&group) {
            return Err(LowerError::argument("group of int4 weights", "32, 64 or 128", group));
        }
        if op.output.channels != Scales::One {
            let found = "factors of columns";
            return Err(LowerError::argument("output of int4 weights", "factors of rows only", found));
        }
    }
    if op.scratch.begin + op.scratch.bytes > machine.scratchpad.bytes {
        let wanted = format!("within {} bytes of scratchpad", machine.scratchpad.bytes);
        return Err(LowerError::argument("scratch area", wanted, op.scratch.begin + op.scratch.bytes));
    }
    if !op.scratch.begin.is_multiple_of(32) {
        return Err(LowerError::argument("begin of the scratch area", "a multiple of 32", op.scratch.begin));
    }
    Ok(())
}

/// Whether a group of inputs takes several tiles, so that its integers add up beside the result.
pub(super) fn needs_sums(tiling: &Tiling) -> bool {
    match tiling.format {
        WeightFormat::Int8 => false,
        WeightFormat::Int4 { .. } => tiling.tiles(tiling.unit_rows.min(tiling.k)) > 1,
    }
}

/// Inputs that are whole bursts of a row of activations, in units; 1 if rows do not begin on bursts anyway.
fn burst_units(machine: &Machine, op: &Matmul, tiling: &Tiling) -> u32 {
    match op.activations {
        Activations::Dram { stride, .. } if stride.is_multiple_of(machine.dma.burst_bytes) => {
            let burst = machine.dma.burst_bytes as u32;
            (1..=burst).find(|units| (units * tiling.unit_rows).is_multiple_of(burst)).unwrap_or(burst)
        }
        Activations::Dram { .. } | Activations::Scratchpad { .. } => 1,
    }
}

/// Units of a chunk: so many that a DMA instruction is worth its setup, and that a slot is free early enough. A slot is free when
/// its last tile is in the array, which with `weight_overlap` is said R + C − 2 cycles late, when the pass before has ended. At
/// most as many as half of the MATRIX queue, so that the sequencer issues the next load while a chunk is computed.
fn wanted_units(machine: &Machine, op: &Matmul, tiling: &Tiling) -> u32 {
    let tiles = tiling.tiles(tiling.unit_rows);
    let most = (machine.queue.depth as u32 / 2 / tiles).clamp(1, tiling.units);
    let bytes = |u: u32| u64::from(u) * tiling.format.unit_bytes(tiling.unit_rows.into(), tiling.array_cols.into());
    let (r, c, rows) = (machine.matrix.rows, machine.matrix.cols, u64::from(op.rows.most()));
    let least = match machine.matrix.weight_overlap {
        // From the last preload of a chunk to the first of the chunk after the next there are as many passes as a chunk has, and one.
        true => ((rows + r + c + LOAD_CYCLES).div_ceil(rows.max(r)) - 1) as u32,
        false => 2,
    };
    let step = burst_units(machine, op, tiling);
    let good = |u: &u32| bytes(*u) >= CHUNK_BYTES && u * tiles >= least && u.is_multiple_of(step);
    (1..=most).find(good).unwrap_or(most)
}

fn choices(machine: &Machine, op: &Matmul, tiling: &Tiling, rows: u64, sums: u64) -> Vec<Choice> {
    let most = op.rows.most();
    let fixed = matches!(op.rows, Rows::Const(_));
    let mut blocks: Vec<u32> = Vec::new();
    for sets in [2, 1] {
        let cap = (rows / (sets + sums)).min(u64::from(most)) as u32;
        if cap == 0 {
            continue;
        }
        let mut count = most.div_ceil(cap);
        loop {
            // Equal blocks; of a number that a shift divides by, where the machine has to count them.
            blocks.push(match fixed || count == 1 {
                true => most.div_ceil(count),
                false => 1 << most.div_ceil(count).ilog2(),
            });
            if count >= most {
                break;
            }
            count = count.saturating_mul(2).min(most);
        }
    }
    blocks.sort_unstable_by(|a, b| b.cmp(a));
    blocks.dedup();
    let wanted = wanted_units(machine, op, tiling);
    let loads = matches!(op.activations, Activations::Dram { .. });
    let burst = machine.dma.burst_bytes;
    let whole_too = match op.output.to {
        Destination::Scratchpad { .. } => false,
        Destination::Dram { stride, .. } => {
            let width = u64::from(tiling.array_cols) * u64::from(op.output.element.bytes());
            tiling.strips > 1 && !(width.is_multiple_of(burst) && stride.is_multiple_of(burst))
        }
    };
    let mut list = Vec::new();
    for (weight_slots, staging_slots, block_slots, whole_channels) in
        [(2, 2, 2, true), (2, 2, 1, true), (2, 2, 1, false), (2, 1, 1, false), (1, 1, 1, false)]
    {
        for (nest, streamed) in [(Nest::Blocks, false), (Nest::Strips, false), (Nest::Blocks, true)] {
            if streamed && !loads || nest == Nest::Strips && !fixed {
                continue;
            }
            for whole_staging in [false, true] {
                if whole_staging && (!whole_too || nest == Nest::Strips) {
                    continue;
                }
                for wanted_units in [wanted, 1] {
                    list.extend(blocks.iter().map(|block_rows| Choice {
                        block_rows: *block_rows,
                        nest,
                        streamed,
                        wanted_units,
                        weight_slots,
                        staging_slots,
                        block_slots,
                        whole_staging,
                        whole_channels,
                    }));
                }
            }
        }
    }
    list
}

/// The weight buffer's part of a choice.
fn weight_slots(
    machine: &Machine,
    op: &Matmul,
    tiling: &Tiling,
    choice: Choice,
) -> Result<(Chunks, WeightSlots, u64), LowerError> {
    let unit = tiling.format.unit_bytes(tiling.unit_rows.min(tiling.k).into(), tiling.array_cols.min(tiling.n).into());
    let bytes = machine.weights.bytes;
    if choice.nest == Nest::Strips {
        let strip = tiling.strip_bytes(tiling.array_cols.min(tiling.n));
        if strip > bytes {
            return Err(short("a strip of weights that stays", Memory::Weights, strip, bytes));
        }
        let wanted = choice.wanted_units;
        let slots = if bytes / 2 / 32 * 32 >= strip { 2 } else { 1 };
        return Ok((Chunks::plain(tiling.units, wanted), WeightSlots::Strips(slots), bytes / 2 / 32 * 32));
    }
    let slot = match choice.weight_slots {
        2 => bytes / 2 / 32 * 32,
        _ => bytes,
    };
    let most = u32::try_from(slot / unit).unwrap_or(u32::MAX);
    if most == 0 {
        return Err(short(
            "a tile of weights with its scales",
            Memory::Weights,
            unit * u64::from(choice.weight_slots),
            bytes,
        ));
    }
    match choice.weight_slots {
        2 => {
            let chunks = Chunks::even(tiling.units, choice.wanted_units, most, burst_units(machine, op, tiling));
            let wanted = 4 * unit;
            let chunks = chunks.ok_or_else(|| short("two slots of two tiles each", Memory::Weights, wanted, bytes))?;
            Ok((chunks, WeightSlots::Two, slot))
        }
        _ => Ok((Chunks::plain(tiling.units, choice.wanted_units.min(most)), WeightSlots::One, 0)),
    }
}

fn fit(machine: &Machine, op: &Matmul, tiling: Tiling, choice: Choice) -> Result<Plan, LowerError> {
    let most = op.rows.most();
    let rows = choice.block_rows;
    let blocks = most.div_ceil(rows);
    let (chunks, weights, weight_slot) = weight_slots(machine, op, &tiling, choice)?;
    if choice.nest == Nest::Strips && blocks == 1 {
        // The same as the other order.
        return Err(short("blocks", Memory::Accumulators, u64::MAX, 0));
    }
    let sums = u64::from(needs_sums(&tiling));
    let accumulators = if (2 + sums) * u64::from(rows) <= machine.accumulator_rows() { 2 } else { 1 };
    let block_slots = if blocks > 1 { choice.block_slots } else { 1 };
    let round = |bytes: u64| bytes.next_multiple_of(32);
    let (m, k) = (u64::from(rows), u64::from(tiling.k));

    let burst = machine.dma.burst_bytes;
    let widest = k.min(u64::from(chunks.largest() * tiling.unit_rows));
    let (operand, pieces, operand_stride) = match op.activations {
        Activations::Scratchpad { stride, .. } => (Operand::Given, false, stride),
        Activations::Dram { .. } if choice.streamed => (Operand::Streamed, true, widest),
        Activations::Dram { at, stride } => {
            let on_burst = |units: u32| u64::from(units * tiling.unit_rows).is_multiple_of(burst);
            let aligned = stride.is_multiple_of(burst) && at.base.is_none() && (at.offset as u64).is_multiple_of(burst);
            let pieces = chunks.count() > 1 && aligned && on_burst(chunks.first) && on_burst(chunks.mid);
            let operand = match choice.nest {
                Nest::Blocks => Operand::Block { slots: block_slots },
                Nest::Strips => Operand::All,
            };
            (operand, pieces, if pieces { widest } else { k })
        }
    };
    let block_bytes = round(m * operand_stride * if pieces { u64::from(chunks.count()) } else { 1 });
    let (operand_slot, operand_slots) = match operand {
        Operand::Given => (0, 0),
        Operand::Block { slots } => (block_bytes, u64::from(slots)),
        Operand::All => (block_bytes, blocks.into()),
        Operand::Streamed => (round(m * operand_stride), u64::from(choice.weight_slots)),
    };

    let element = u64::from(op.output.element.bytes());
    let cols = u64::from(tiling.array_cols.min(tiling.n));
    let staging = match op.output.to {
        Destination::Scratchpad { .. } => Staging::Given,
        Destination::Dram { .. } if choice.whole_staging => {
            Staging::Whole { slots: if blocks > 1 { choice.staging_slots } else { 1 } }
        }
        Destination::Dram { .. } => Staging::Strip { slots: choice.staging_slots },
    };
    let (staging_slot, staging_slots) = match staging {
        Staging::Given => (0, 0),
        Staging::Strip { slots } => (round(m * cols * element), u64::from(slots)),
        Staging::Whole { slots } => (round(m * u64::from(tiling.n) * element), u64::from(slots)),
    };

    let (channels, channels_slot, channels_slots) = match (tiling.format, op.output.channels) {
        (WeightFormat::Int4 { .. }, _) => (Channels::None, 0, 0),
        (WeightFormat::Int8, Scales::One) => (Channels::One, 0, 0),
        (WeightFormat::Int8, Scales::Scratchpad(_)) => (Channels::Given, 0, 0),
        (WeightFormat::Int8, Scales::Dram(_)) => match choice.whole_channels {
            true => (Channels::Whole, round(4 * u64::from(tiling.n)), 1),
            false => (Channels::Strip, round(4 * cols), 2),
        },
    };
    let tokens = match (op.output.tokens, choice.nest) {
        (Scales::One | Scales::Scratchpad(_), _) => 0,
        (Scales::Dram(_), Nest::Blocks) => 4 * m * u64::from(block_slots),
        (Scales::Dram(_), Nest::Strips) => 4 * m * u64::from(blocks),
    };
    let ones = match (op.output.tokens, channels) {
        (Scales::One, Channels::One) => 4 * m.max(cols),
        (Scales::One, _) => 4 * m,
        (_, Channels::One) => 4 * cols,
        (_, _) => 0,
    };

    // The array reads activations while the vector unit is at the rest: they should not share banks.
    let first = round(operand_slot * operand_slots);
    let rest = [round(ones), round(tokens), channels_slot * channels_slots, staging_slot * staging_slots];
    let total = first + rest.iter().sum::<u64>();
    let end = op.scratch.begin + op.scratch.bytes;
    let wide = (op.scratch.begin + first).next_multiple_of(machine.bank_bytes());
    let mut at = if wide + (total - first) <= end { wide } else { op.scratch.begin + first };
    if total > op.scratch.bytes {
        return Err(short("activations, factors and results", Memory::Scratchpad, total, op.scratch.bytes));
    }
    let [ones, tokens, channels_at, staging_at] = rest.map(|bytes| {
        at += bytes;
        at - bytes
    });
    let buffers = Buffers {
        operand: op.scratch.begin,
        operand_slot,
        ones,
        tokens,
        channels: channels_at,
        channels_slot,
        staging: staging_at,
        staging_slot,
    };
    let mut plan = Plan {
        tiling,
        chunks,
        nest: choice.nest,
        block_rows: rows,
        blocks,
        accumulators,
        weights,
        weight_slot,
        token_slots: block_slots,
        operand,
        pieces,
        operand_stride,
        staging,
        channels,
        buffers,
        summary: Summary::default(),
    };
    plan.summary = summarize(machine, op, &plan);
    Ok(plan)
}
