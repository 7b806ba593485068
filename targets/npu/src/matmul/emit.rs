//! The outer loops of a multiplication: blocks of rows and strips.

use lapidary_npu_isa::choice::Type;
use lapidary_npu_isa::format::{Fill, LoadBox, StoreBox};
use lapidary_npu_isa::operand::{Flag, Given, Maybe, Size, Source};
use lapidary_npu_isa::{Machine, Op, Queue, Reg, Token};

use super::plan::{Channels, Nest, Operand, Plan, Staging, WeightSlots, plan};
use super::strip::Strip;
use super::{Activations, Destination, Matmul, Rows, Scales};
use crate::builder::{Builder, Place, Value, dram, into_sp, maybe, sp};
use crate::error::LowerError;

/// Two counters: what is filled, what is free.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    pub full: Token,
    pub free: Token,
}

/// Tokens and registers of a multiplication.
pub(super) struct Emitter<'a> {
    pub op: &'a Matmul,
    pub plan: &'a Plan,
    /// Chunks of weights.
    pub weights: Ring,
    /// Sets of accumulators.
    pub sums: Ring,
    /// Loaded activations; `free` is used when they stream.
    pub operand: Option<Ring>,
    /// Staging buffers.
    pub results: Option<Ring>,
    /// Factors of a strip's columns; those that are loaded once only have a `full`.
    pub channels: Option<Ring>,
    /// What is loaded for a block of rows: factors of rows are there; all of it is free.
    pub block: Option<Ring>,
    /// Rows of the block.
    pub rows: Reg,
    /// From row to row of activations in the scratchpad, if that is not what a tile has.
    pub stride: Option<Reg>,
    /// Where the next chunk of weights is in DRAM.
    pub next_weights: Reg,
}

/// Weights that stream through the two halves of the weight buffer from one multiplication to the next: while the last tiles of one
/// are in the array, the first of the next are on their way.
#[derive(Debug)]
pub struct WeightStream {
    ring: Ring,
}

impl WeightStream {
    /// Both halves are free.
    pub fn open(b: &mut Builder) -> Result<WeightStream, LowerError> {
        let full = b.token("weights", Queue::Load, Queue::Matrix)?;
        let free = b.token("weights", Queue::Matrix, Queue::Load)?;
        let stream = WeightStream { ring: Ring { full, free } };
        stream.give(b);
        Ok(stream)
    }

    fn give(&self, b: &mut Builder) {
        b.sync(Queue::Matrix, &[], &[self.ring.free; 2]);
    }

    /// LOAD waits until both halves are free.
    fn take(&self, b: &mut Builder) {
        b.sync(Queue::Load, &[self.ring.free; 2], &[]);
    }

    /// Gives the counters back.
    pub fn close(self, b: &mut Builder) {
        self.take(b);
        b.release(self.ring.full);
        b.release(self.ring.free);
    }
}

/// Tokens that wait for the next use when a multiplication is over: whose queue waits for them, and how many.
type Credit = (Token, Queue, u32);

/// A multiplication in a program.
#[derive(Debug)]
pub struct Emitted {
    /// How it is done and what it costs.
    pub plan: Plan,
    credits: Vec<Credit>,
    counters: Vec<Token>,
}

impl Emitted {
    /// Takes back the tokens that are left over and gives the counters back, so that another lowering can have them. Every queue
    /// that fills a buffer waits for the last use of it.
    pub fn release(self, b: &mut Builder, stream: Option<&WeightStream>) {
        for (token, queue, count) in self.credits {
            b.sync(queue, &vec![token; count as usize], &[]);
        }
        for token in self.counters {
            b.release(token);
        }
        if let Some(stream) = stream.filter(|_| !self.plan.streams()) {
            stream.give(b);
        }
    }
}

/// Adds a multiplication to a program.
///
/// Rows at run time: with a count of 0 nothing is loaded and nothing computed. Registers are free again behind it, all
/// counters hold what they held before once [`Emitted::release`] has been called, with the same stream.
pub fn matmul(
    b: &mut Builder,
    machine: &Machine,
    op: &Matmul,
    stream: Option<&WeightStream>,
) -> Result<Emitted, LowerError> {
    let plan = plan(machine, op)?;
    let mut credits = Vec::new();
    let mut counters = Vec::new();
    let shared = stream.filter(|_| plan.streams());
    if let (Some(stream), None) = (stream, shared) {
        stream.take(b);
    }
    b.scope(|b| emit(b, op, &plan, shared, &mut credits, &mut counters))?;
    Ok(Emitted { plan, credits, counters })
}

fn emit(
    b: &mut Builder,
    op: &Matmul,
    plan: &Plan,
    stream: Option<&WeightStream>,
    credits: &mut Vec<Credit>,
    counters: &mut Vec<Token>,
) -> Result<(), LowerError> {
    let mut ring = |b: &mut Builder, what, fills: Queue, uses: Queue, slots: u32| -> Result<Ring, LowerError> {
        let (full, free) = (b.token(what, fills, uses)?, b.token(what, uses, fills)?);
        counters.extend([full, free]);
        b.sync(uses, &[], &vec![free; slots as usize]);
        if slots > 0 {
            credits.push((free, fills, slots));
        }
        Ok(Ring { full, free })
    };
    let slots = match plan.weights {
        WeightSlots::One => 1,
        WeightSlots::Two => 2,
        WeightSlots::Strips(slots) => slots,
    };
    let weights = match stream {
        Some(stream) => stream.ring,
        None => ring(b, "weights", Queue::Load, Queue::Matrix, slots)?,
    };
    let operand = match plan.operand {
        Operand::Given => None,
        Operand::Block { .. } | Operand::All => Some(ring(b, "activations", Queue::Load, Queue::Matrix, 0)?),
        Operand::Streamed => Some(ring(b, "activations", Queue::Load, Queue::Matrix, slots)?),
    };
    let sums = ring(b, "sums", Queue::Matrix, Queue::Vector, plan.accumulators)?;
    let results = match plan.staging {
        Staging::Given => None,
        Staging::Strip { slots } | Staging::Whole { slots } => {
            Some(ring(b, "results", Queue::Vector, Queue::Store, slots)?)
        }
    };
    let channels = match plan.channels {
        Channels::None | Channels::One | Channels::Given => None,
        Channels::Whole => Some(ring(b, "factors of columns", Queue::Load, Queue::Vector, 0)?),
        Channels::Strip => Some(ring(b, "factors of columns", Queue::Load, Queue::Vector, 2)?),
    };
    let loads_tokens = matches!(op.output.tokens, Scales::Dram(_));
    let block = loads_tokens || matches!(plan.operand, Operand::Block { .. });
    let block_slots = match (plan.nest, plan.blocks) {
        (Nest::Blocks, 2..) => plan.block_slots(),
        (Nest::Blocks, _) | (Nest::Strips, _) => 0,
    };
    let block = match block {
        true => Some(ring(b, "a block of rows", Queue::Load, Queue::Vector, block_slots)?),
        false => None,
    };

    let rows = b.reg("rows of a block")?;
    let next_weights = b.reg("next weights")?;
    // A stride that is left out is the inputs of a pass.
    let one_tile = u64::from(plan.tiling.k) == plan.operand_stride && plan.tiling.tiles_of_strip() == 1;
    let stride = match one_tile {
        true => None,
        false => Some(b.constant("stride of activations", plan.operand_stride as i64)?),
    };
    let emitter = Emitter { op, plan, weights, sums, operand, results, channels, block, rows, stride, next_weights };
    emitter.ones(b)?;
    if let (Channels::Whole, Scales::Dram(at), Some(ring)) = (plan.channels, op.output.channels, channels) {
        emitter.load_factors(b, at, plan.buffers.channels, Value::Const(plan.tiling.n.into()), ring.full)?;
        b.sync(Queue::Vector, &[ring.full], &[]);
    }
    match plan.nest {
        Nest::Blocks => emitter.blocks(b),
        Nest::Strips => emitter.strips(b),
    }
}

impl Plan {
    /// Whether its weights take turns in the two halves of the weight buffer and leave them as they found them.
    fn streams(&self) -> bool {
        self.weights == WeightSlots::Two && (self.chunks.count() * self.tiling.strips).is_multiple_of(2)
    }

    /// Blocks of rows that there is room for.
    pub(super) fn block_slots(&self) -> u32 {
        match self.operand {
            Operand::Block { slots } => slots,
            Operand::Given | Operand::All | Operand::Streamed => self.token_slots,
        }
    }

    /// Whether anything takes turns from strip to strip.
    fn turns(&self) -> bool {
        self.accumulators == 2
            || matches!(self.staging, Staging::Strip { slots: 2 })
            || self.channels == Channels::Strip
            || self.weights == WeightSlots::Two && self.chunks.count() == 1
    }
}

/// (index + offset + start) mod 2, in a register unless all of it is known.
fn parity(b: &mut Builder, index: Value, offset: i64, start: Value) -> Result<Value, LowerError> {
    if let (Value::Const(i), Value::Const(s)) = (index, start) {
        return Ok(Value::Const((i + offset + s) & 1));
    }
    if offset & 1 == 0 && index == Value::ZERO {
        return Ok(start);
    }
    let turn = b.reg("whose turn it is")?;
    b.sum(turn, Place::at((offset & 1) as u64), &[(index, 1), (start, 1)])?;
    b.arithmetic(Op::And, turn, turn, Value::Const(1))?;
    Ok(Value::Reg(turn))
}

impl Emitter<'_> {
    /// Fills the ones that take the place of factors.
    fn ones(&self, b: &mut Builder) -> Result<(), LowerError> {
        let plan = self.plan;
        let (tokens, channels) = (self.op.output.tokens == Scales::One, plan.channels == Channels::One);
        let count = i64::from(match (tokens, channels) {
            (true, true) => plan.block_rows.max(plan.tiling.array_cols.min(plan.tiling.n)),
            (true, false) => plan.block_rows,
            (false, true) => plan.tiling.array_cols.min(plan.tiling.n),
            (false, false) => return Ok(()),
        });
        b.scope(|b| {
            let one = b.constant("1", f32::to_bits(1.0).into())?;
            // As rows of a few elements each: the buffer's length is a multiple of 32 bytes.
            let at = b.constant("ones", plan.buffers.ones as i64)?;
            let rows = b.constant("rows of ones", (count + 7) / 8)?;
            let fill = Fill {
                dst: sp(at),
                cols: Size::Imm(8),
                value: Given(Source(Some(one))),
                rows: maybe(rows),
                dst_stride: Maybe(None),
                dst_type: Type::F32,
            };
            b.push(Op::Fill(fill));
            Ok(())
        })
    }

    /// Loads f32 factors.
    pub(super) fn load_factors(
        &self,
        b: &mut Builder,
        from: Place,
        to: u64,
        count: Value,
        full: Token,
    ) -> Result<(), LowerError> {
        b.scope(|b| {
            let src = b.reg("factors in DRAM")?;
            b.sum(src, from, &[])?;
            let dst = b.constant("factors", to as i64)?;
            let rows = b.in_register("number of factors", count)?;
            b.push_with(load_words(dst, src, rows), &[], &[full]);
            Ok(())
        })
    }

    /// Nest::Blocks.
    fn blocks(&self, b: &mut Builder) -> Result<(), LowerError> {
        let (plan, block) = (self.plan, i64::from(self.plan.block_rows));
        match self.op.rows {
            Rows::Const(m) => {
                if m % plan.block_rows == 0 {
                    b.li(self.rows, block);
                }
                b.repeat("block", Value::Const(plan.blocks.into()), 0, |b, index| {
                    if m % plan.block_rows != 0 {
                        b.sum(self.rows, Place::at(m.into()), &[(index, -block)])?;
                        b.arithmetic(Op::Min, self.rows, self.rows, Value::Const(block))?;
                    }
                    self.block(b, index)
                })
            }
            Rows::Register { reg, most } => b.scope(|b| {
                // `rows` counts what is left.
                let count = b.reg("number of blocks")?;
                b.arithmetic(Op::Min, count, reg, Value::Const(most.into()))?;
                match plan.blocks {
                    1 => b.arithmetic(Op::Min, count, count, Value::Const(1))?,
                    _ => {
                        b.increase(count, block - 1)?;
                        b.arithmetic(Op::Shr, count, count, Value::Const(block.ilog2().into()))?;
                    }
                }
                b.repeat("block", Value::Reg(count), plan.blocks, |b, index| {
                    let index = if plan.blocks == 1 { Value::ZERO } else { index };
                    b.arithmetic(Op::Min, self.rows, reg, Value::Const(most.into()))?;
                    b.scope(|b| {
                        let before = b.product("rows of the blocks before", index, -block)?;
                        b.increase(self.rows, before)
                    })?;
                    b.arithmetic(Op::Min, self.rows, self.rows, Value::Const(block))?;
                    b.arithmetic(Op::Max, self.rows, self.rows, Value::Const(0))?;
                    self.block(b, index)
                })
            }),
        }
    }

    /// A block of rows: all strips.
    fn block(&self, b: &mut Builder, index: Value) -> Result<(), LowerError> {
        let (plan, buffers, block) = (self.plan, self.plan.buffers, i64::from(self.plan.block_rows));
        let two_blocks = plan.blocks > 1 && plan.block_slots() == 2;
        let two_stages = matches!(plan.staging, Staging::Whole { slots: 2 });
        let odd = plan.turns() && plan.tiling.strips % 2 == 1 && plan.blocks > 1;
        let turn = if two_blocks || two_stages || odd { parity(b, index, 0, Value::ZERO)? } else { Value::ZERO };
        let ring = self.block.filter(|_| plan.blocks > 1);
        if let Some(ring) = ring {
            b.sync(Queue::Load, &[ring.free], &[]);
        }
        let operand = match (self.op.activations, plan.operand) {
            (Activations::Scratchpad { at, stride }, _) => {
                self.place(b, "activations", at, index, block * stride as i64)?
            }
            (_, Operand::Block { slots: 2 }) => {
                self.place(b, "activations", Place::at(buffers.operand), turn, buffers.operand_slot as i64)?
            }
            (_, _) => Place::at(buffers.operand),
        };
        let tokens = match self.op.output.tokens {
            Scales::One => Place::at(buffers.ones),
            Scales::Scratchpad(at) => self.place(b, "factors of rows", at, index, 4 * block)?,
            Scales::Dram(_) => {
                let turn = if two_blocks { turn } else { Value::ZERO };
                self.place(b, "factors of rows", Place::at(buffers.tokens), turn, 4 * block)?
            }
        };
        if let (Scales::Dram(at), Some(ring)) = (self.op.output.tokens, self.block) {
            b.scope(|b| {
                let src = b.reg("factors in DRAM")?;
                b.sum(src, at, &[(index, 4 * block)])?;
                let dst = b.reg("factors")?;
                b.sum(dst, tokens, &[])?;
                b.push_with(load_words(dst, src, self.rows), &[], &[ring.full]);
                Ok(())
            })?;
            b.sync(Queue::Vector, &[ring.full], &[]);
        }
        let staging = match plan.staging {
            Staging::Whole { slots: 2 } => {
                self.place(b, "results", Place::at(buffers.staging), turn, buffers.staging_slot as i64)?
            }
            Staging::Given | Staging::Strip { .. } | Staging::Whole { .. } => Place::at(buffers.staging),
        };
        let whole = self.results.filter(|_| matches!(plan.staging, Staging::Whole { .. }));
        if let Some(ring) = whole {
            b.sync(Queue::Vector, &[ring.free], &[]);
        }

        let strips = i64::from(plan.tiling.strips);
        let first_loads = matches!(plan.operand, Operand::Block { .. });
        let start = if odd { turn } else { Value::ZERO };
        let one = |b: &mut Builder, strip: Value, offset: i64, load_operand: bool| {
            b.scope(|b| {
                let turn = if plan.turns() { parity(b, strip, offset, start)? } else { Value::ZERO };
                let strip = Strip {
                    index: strip,
                    offset,
                    turn,
                    block: index,
                    operand,
                    tokens,
                    staging,
                    weights: Place::default(),
                    load_weights: true,
                    free_weights: true,
                    load_operand,
                };
                self.strip(b, &strip)
            })
        };
        let mut next = 0;
        if first_loads {
            one(b, Value::ZERO, 0, true)?;
            next = 1;
        }
        let streams = plan.operand == Operand::Streamed;
        if (strips - next) % 2 == 1 && plan.blocks > 1 && plan.turns() {
            one(b, Value::ZERO, next, streams)?;
            next += 1;
        }
        b.repeat("strip", Value::Const(strips - next), 0, |b, strip| one(b, strip, next, streams))?;

        if let Some(ring) = whole {
            b.sync(Queue::Vector, &[], &[ring.full]);
            let row_bytes = i64::from(plan.tiling.n * self.op.output.element.bytes());
            self.store(b, staging, index, (Value::ZERO, 0), Value::Const(row_bytes))?;
        }
        if let Some(ring) = ring {
            b.sync(Queue::Vector, &[], &[ring.free]);
        }
        Ok(())
    }

    /// Nest::Strips: M is known.
    fn strips(&self, b: &mut Builder) -> Result<(), LowerError> {
        let plan = self.plan;
        if let (Scales::Dram(at), Some(ring)) = (self.op.output.tokens, self.block) {
            let rows = Value::Const(self.op.rows.most().into());
            self.load_factors(b, at, plan.buffers.tokens, rows, ring.full)?;
            b.sync(Queue::Vector, &[ring.full], &[]);
        }
        let loads = plan.operand == Operand::All;
        let mut next = 0;
        if loads {
            self.strip_of_all_rows(b, Value::ZERO, 0, true)?;
            next = 1;
        }
        let strips = i64::from(plan.tiling.strips);
        b.repeat("strip", Value::Const(strips - next), 0, |b, strip| self.strip_of_all_rows(b, strip, next, false))
    }

    /// A strip: all blocks of rows.
    fn strip_of_all_rows(
        &self,
        b: &mut Builder,
        strip: Value,
        offset: i64,
        load_operand: bool,
    ) -> Result<(), LowerError> {
        let (plan, rows) = (self.plan, i64::from(self.plan.block_rows));
        let blocks = i64::from(plan.blocks);
        let last_rows = i64::from(self.op.rows.most()) - (blocks - 1) * rows;
        b.scope(|b| {
            let start = match plan.turns() && blocks % 2 == 1 {
                true => parity(b, strip, offset, Value::ZERO)?,
                false => Value::ZERO,
            };
            let weights = match plan.weights {
                WeightSlots::Strips(2) => {
                    let slot = parity(b, strip, offset, Value::ZERO)?;
                    self.place(b, "strip", Place::default(), slot, plan.weight_slot as i64)?
                }
                WeightSlots::One | WeightSlots::Two | WeightSlots::Strips(_) => Place::default(),
            };
            let one = |b: &mut Builder, index: Value, add: i64| {
                b.scope(|b| {
                    let turn = if plan.turns() { parity(b, index, add, start)? } else { Value::ZERO };
                    let block = match index {
                        Value::Const(i) => Value::Const(i + add),
                        Value::Reg(r) if add == 0 => Value::Reg(r),
                        Value::Reg(r) => {
                            let block = b.reg("block")?;
                            b.arithmetic(Op::Add, block, r, Value::Const(add))?;
                            Value::Reg(block)
                        }
                    };
                    let at = Place::at(plan.buffers.operand);
                    let operand = match self.op.activations {
                        Activations::Scratchpad { at, stride } => {
                            self.place(b, "activations", at, block, rows * stride as i64)?
                        }
                        Activations::Dram { .. } => {
                            self.place(b, "activations", at, block, plan.buffers.operand_slot as i64)?
                        }
                    };
                    let tokens = match self.op.output.tokens {
                        Scales::One => Place::at(plan.buffers.ones),
                        Scales::Scratchpad(at) => self.place(b, "factors of rows", at, block, 4 * rows)?,
                        Scales::Dram(_) => {
                            self.place(b, "factors of rows", Place::at(plan.buffers.tokens), block, 4 * rows)?
                        }
                    };
                    let known = block.known();
                    let strip = Strip {
                        index: strip,
                        offset,
                        turn,
                        block,
                        operand,
                        tokens,
                        staging: Place::at(plan.buffers.staging),
                        weights,
                        load_weights: known == Some(0),
                        free_weights: known == Some(blocks - 1),
                        load_operand,
                    };
                    self.strip(b, &strip)
                })
            };
            b.li(self.rows, rows);
            one(b, Value::ZERO, 0)?;
            let mut next = 1;
            if (blocks - 2) % 2 == 1 {
                one(b, Value::ZERO, 1)?;
                next = 2;
            }
            // A loop of one would look like the first or the last block: there is none, the number is even.
            b.repeat("block", Value::Const(blocks - 1 - next), 0, |b, index| one(b, index, next))?;
            b.li(self.rows, last_rows);
            one(b, Value::ZERO, blocks - 1)
        })
    }

    /// at + value·factor: as it is if that is known, else in a register of the current scope.
    pub(super) fn place(
        &self,
        b: &mut Builder,
        what: &'static str,
        at: Place,
        value: Value,
        factor: i64,
    ) -> Result<Place, LowerError> {
        match value {
            Value::Const(n) => Ok(at.plus(n * factor)),
            Value::Reg(_) => {
                let reg = b.reg(what)?;
                b.sum(reg, at, &[(value, factor)])?;
                Ok(Place { base: Some(reg), offset: 0 })
            }
        }
    }

    /// Stores columns of a block's results, from those of strip `index` + `offset` on.
    pub(super) fn store(
        &self,
        b: &mut Builder,
        staging: Place,
        block: Value,
        (index, offset): (Value, i64),
        row_bytes: Value,
    ) -> Result<(), LowerError> {
        let (Destination::Dram { at, stride }, Some(ring)) = (self.op.output.to, self.results) else { return Ok(()) };
        let t = &self.plan.tiling;
        let width = i64::from(t.array_cols * self.op.output.element.bytes());
        b.scope(|b| {
            let dst = b.reg("results in DRAM")?;
            let rows = i64::from(self.plan.block_rows) * stride as i64;
            b.sum(dst, at.plus(offset * width), &[(block, rows), (index, width)])?;
            let src = b.reg("results")?;
            b.sum(src, staging, &[])?;
            let dst_stride = match row_bytes == Value::Const(stride as i64) {
                true => Maybe(None),
                false => maybe(b.constant("stride of results", stride as i64)?),
            };
            let store = StoreBox {
                dst: dram(dst),
                src: sp(src),
                row_bytes: b.size("bytes of a row", row_bytes)?,
                rows: maybe(self.rows),
                src_stride: Maybe(None),
                dst_stride,
                planes: Maybe(None),
                src_plane: Maybe(None),
                dst_plane: Maybe(None),
            };
            b.push_with(Op::Store(store), &[ring.full], &[ring.free]);
            Ok(())
        })
    }
}

/// Loads words of 32 bits.
pub(super) fn load_words(dst: Reg, src: Reg, count: Reg) -> Op {
    Op::Load(LoadBox {
        dst: into_sp(dst),
        src: dram(src),
        row_bytes: Size::Imm(4),
        rows: maybe(count),
        src_stride: Maybe(None),
        dst_stride: Maybe(None),
        planes: Maybe(None),
        src_plane: Maybe(None),
        dst_plane: Maybe(None),
        unpack: Flag(false),
    })
}
