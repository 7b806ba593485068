//! A strip of C outputs for a block of rows: chunks of weights, units of a chunk, tiles of a unit.

use lapidary_npu_isa::address::{Acc, Address};
use lapidary_npu_isa::choice::Codes;
use lapidary_npu_isa::format::{LoadBox, Pass, ScaledPass, ScaledTile, Tile};
use lapidary_npu_isa::operand::{Flag, Maybe, Size};
use lapidary_npu_isa::{Op, Reg, Token};

use super::Activations;
use super::emit::Emitter;
use super::plan::{Channels, Operand, WeightSlots, needs_sums};
use super::tiling::WeightFormat;
use crate::builder::{Builder, Place, Value, acc, dram, into_sp, into_w, maybe, sp, w};
use crate::error::LowerError;

/// Iterations of a loop after which registers are known for certain to whoever follows the program for two iterations.
const FOLLOWED: i64 = 2;

/// Which strip of which rows, and what is done besides computing.
pub(super) struct Strip {
    /// The strip is `index` + `offset`.
    pub index: Value,
    pub offset: i64,
    /// Which of two slots, where two take turns from strip to strip.
    pub turn: Value,
    /// Index of the block of rows.
    pub block: Value,
    /// The block's activations in the scratchpad.
    pub operand: Place,
    /// Factors of the block's rows.
    pub tokens: Place,
    /// The block's results, if they are staged as a whole.
    pub staging: Place,
    /// The strip's weights in the weight buffer, if they stay.
    pub weights: Place,
    pub load_weights: bool,
    pub free_weights: bool,
    pub load_operand: bool,
}

/// Sizes that depend on the number of columns.
pub(super) struct Columns {
    pub n: Value,
    /// Bytes of a row of codes.
    row: Value,
    /// Bytes of a full unit.
    unit: Value,
    /// Bytes of a tile of R rows.
    tile: Value,
    /// Bytes of a unit's scales.
    scales: Value,
}

/// A chunk of a strip.
struct Chunk {
    units: u32,
    first: bool,
    last: bool,
    /// Its weights in the weight buffer: a place and an index with a factor.
    weights: (Place, (Value, i64)),
    /// Its activations in the scratchpad.
    operand: (Place, (Value, i64)),
}

/// Waits and posts of a unit.
#[derive(Clone, Default)]
struct UnitTokens {
    preload_waits: Vec<Token>,
    preload_posts: Vec<Token>,
    pass_waits: Vec<Token>,
    pass_posts: Vec<Token>,
}

/// Registers that move through a chunk.
struct Cursor {
    weights: Reg,
    operand: Reg,
    sums: Acc,
}

impl Emitter<'_> {
    pub(super) fn strip(&self, b: &mut Builder, s: &Strip) -> Result<(), LowerError> {
        b.scope(|b| {
            let plan = self.plan;
            let columns = self.columns(b, s)?;
            if plan.channels == Channels::Strip {
                self.load_channels(b, s, columns.n)?;
            }
            let acc_at = match plan.accumulators {
                2 => b.product("accumulators", s.turn, plan.block_rows.into())?,
                _ => Value::ZERO,
            };
            let sums = accumulators(b, acc_at)?;
            let next_operand = match (self.op.activations, s.load_operand) {
                (Activations::Dram { at, stride }, true) => {
                    let next = b.reg("next activations")?;
                    b.sum(next, at, &[(s.block, i64::from(plan.block_rows) * stride as i64)])?;
                    Some(next)
                }
                _ => None,
            };
            let chunks = plan.chunks;
            let single = chunks.count() == 1;
            let stride = plan.tiling.strip_stride() as i64;
            let begin = self.op.weights.plus(s.offset * stride);
            if s.load_weights {
                b.sum(self.next_weights, begin, &[(s.index, stride)])?;
            }
            let chunk = |b: &mut Builder, units, first, last, index: Value, add: i64| {
                b.scope(|b| {
                    let chunk = self.chunk_places(b, s, (units, first, last), index, add)?;
                    self.chunk(b, s, &columns, &chunk, sums, next_operand)
                })
            };
            chunk(b, chunks.first, true, single, Value::ZERO, 0)?;
            b.repeat("chunk", Value::Const(chunks.mids.into()), 0, |b, i| chunk(b, chunks.mid, false, false, i, 1))?;
            if s.load_weights && i64::from(chunks.mids) > FOLLOWED {
                let units = i64::from(plan.tiling.units - chunks.last);
                b.sum(self.next_weights, begin, &[(s.index, stride), (columns.unit, units)])?;
            }
            if !single {
                chunk(b, chunks.last, false, true, Value::ZERO, i64::from(chunks.mids) + 1)?;
            }
            self.drain(b, s, &columns, sums)
        })
    }

    /// Columns of the strip and what follows from their number.
    fn columns(&self, b: &mut Builder, s: &Strip) -> Result<Columns, LowerError> {
        let t = &self.plan.tiling;
        let c = i64::from(t.array_cols);
        let n = match (s.index, t.n % t.array_cols) {
            (_, 0) => Value::Const(c),
            (Value::Const(i), _) => Value::Const(c.min(i64::from(t.n) - (i + s.offset) * c)),
            (Value::Reg(_), _) => {
                let n = b.reg("columns")?;
                b.sum(n, Place::of(Value::Const(i64::from(t.n) - s.offset * c)), &[(s.index, -c)])?;
                b.arithmetic(Op::Min, n, n, Value::Const(c))?;
                Value::Reg(n)
            }
        };
        let int4 = matches!(t.format, WeightFormat::Int4 { .. });
        if let Value::Const(n) = n {
            let n = n as u64;
            let row = t.format.row_bytes(n);
            return Ok(Columns {
                n: Value::Const(n as i64),
                row: Value::Const(row as i64),
                unit: Value::Const(t.format.unit_bytes(t.unit_rows.into(), n) as i64),
                tile: Value::Const((row * u64::from(t.array_rows)) as i64),
                scales: Value::Const(t.format.scale_bytes(n) as i64),
            });
        }
        let (row, scales) = match (int4, n) {
            (true, Value::Reg(n)) => {
                let (row, scales) = (b.reg("bytes of a row of codes")?, b.reg("bytes of scales")?);
                b.arithmetic(Op::Add, row, n, Value::Const(1))?;
                b.arithmetic(Op::Shr, row, row, Value::Const(1))?;
                b.arithmetic(Op::Mul, scales, n, Value::Const(2))?;
                (Value::Reg(row), Value::Reg(scales))
            }
            _ => (n, Value::ZERO),
        };
        let unit = b.reg("bytes of a unit")?;
        b.sum(unit, Place::default(), &[(row, t.unit_rows.into()), (scales, 1)])?;
        let tile = match needs_sums(t) {
            true => b.product("bytes of a tile", row, t.array_rows.into())?,
            false => Value::Reg(unit),
        };
        Ok(Columns { n, row, unit: Value::Reg(unit), tile, scales })
    }

    /// Where chunk `index` + `add` of a strip lies on chip.
    fn chunk_places(
        &self,
        b: &mut Builder,
        s: &Strip,
        (units, first, last): (u32, bool, bool),
        index: Value,
        add: i64,
    ) -> Result<Chunk, LowerError> {
        let (plan, t) = (self.plan, &self.plan.tiling);
        let streamed = plan.operand == Operand::Streamed;
        // Of two slots: of the first chunk the first, then in turn; of a single chunk as the strip's turn is.
        let two = plan.weights == WeightSlots::Two;
        let turn = match (two, first && last, index) {
            (false, _, _) => Value::ZERO,
            (true, true, _) => s.turn,
            (true, false, Value::Const(i)) => Value::Const((i + add) & 1),
            (true, false, Value::Reg(i)) => {
                let turn = b.reg("whose turn it is")?;
                b.arithmetic(Op::And, turn, i, Value::Const(1))?;
                Value::Reg(turn)
            }
        };
        // The slot is base + turn·factor; the index of a loop is one behind the chunk's.
        let slot = |base: Place, bytes: u64| match (turn, index) {
            (Value::Reg(_), Value::Reg(_)) if add & 1 == 1 => (base.plus(bytes as i64), (turn, -(bytes as i64))),
            (_, _) => (base, (turn, bytes as i64)),
        };
        let before = |c: i64| match c {
            0 => 0,
            c => i64::from(plan.chunks.first) + (c - 1) * i64::from(plan.chunks.mid.max(1)),
        };
        // Units before the chunk: a loop's index counts middle chunks, all others are known.
        let (units_before, per_index) = match (index, last && !first) {
            (Value::Reg(_), _) => (before(add), i64::from(plan.chunks.mid)),
            (Value::Const(_), true) => (i64::from(t.units - units), 0),
            (Value::Const(i), false) => (before(i + add), 0),
        };
        let unit = t.format.unit_bytes(t.unit_rows.into(), t.array_cols.min(t.n).into()) as i64;
        let weights = match plan.weights {
            WeightSlots::Strips(_) => (s.weights.plus(units_before * unit), (index, per_index * unit)),
            WeightSlots::One | WeightSlots::Two => slot(Place::default(), plan.weight_slot),
        };
        let operand = match (streamed, plan.pieces) {
            (true, _) => slot(s.operand, plan.buffers.operand_slot),
            (false, true) => {
                let piece = i64::from(plan.block_rows) * plan.operand_stride as i64;
                (s.operand.plus(add * piece), (index, piece))
            }
            (false, false) => {
                let width = i64::from(t.unit_rows);
                (s.operand.plus(units_before * width), (index, per_index * width))
            }
        };
        Ok(Chunk { units, first, last, weights, operand })
    }

    /// Loads of a chunk, and its units.
    fn chunk(
        &self,
        b: &mut Builder,
        s: &Strip,
        columns: &Columns,
        chunk: &Chunk,
        sums: Acc,
        next_operand: Option<Reg>,
    ) -> Result<(), LowerError> {
        let t = &self.plan.tiling;
        // A strip that stays is loaded chunk by chunk, but its place is free as a whole.
        let stays = matches!(self.plan.weights, WeightSlots::Strips(_));
        let cursor = Cursor { weights: b.reg("weights")?, operand: b.reg("activations")?, sums };
        b.sum(cursor.weights, chunk.weights.0, &[chunk.weights.1])?;
        if s.load_weights {
            b.scope(|b| {
                let bytes = self.chunk_bytes(b, columns, chunk)?;
                let load = LoadBox {
                    dst: into_w(cursor.weights),
                    src: dram(self.next_weights),
                    row_bytes: b.size("bytes of a chunk", bytes)?,
                    rows: Maybe(None),
                    src_stride: Maybe(None),
                    dst_stride: Maybe(None),
                    planes: Maybe(None),
                    src_plane: Maybe(None),
                    dst_plane: Maybe(None),
                    unpack: Flag(false),
                };
                let waits: &[Token] = if stays && !chunk.first { &[] } else { &[self.weights.free] };
                b.push_with(Op::Load(load), waits, &[self.weights.full]);
                b.increase(self.next_weights, bytes)
            })?;
        }
        b.sum(cursor.operand, chunk.operand.0, &[chunk.operand.1])?;
        let mut tokens = UnitTokens::default();
        if s.load_weights {
            tokens.preload_waits.push(self.weights.full);
        }
        if let (Some(next), Some(ring)) = (next_operand, self.operand)
            && (chunk.first || self.plan.pieces)
        {
            let streamed = self.plan.operand == Operand::Streamed;
            self.load_operand(b, chunk, cursor.operand, next, streamed)?;
            tokens.pass_waits.push(ring.full);
        }
        if chunk.first {
            tokens.pass_waits.push(self.sums.free);
        }
        let mut ends = UnitTokens::default();
        if s.free_weights && (chunk.last || !stays) {
            ends.preload_posts.push(self.weights.free);
        }
        if let (Operand::Streamed, Some(ring)) = (self.plan.operand, self.operand) {
            ends.pass_posts.push(ring.free);
        }
        if chunk.last {
            ends.pass_posts.push(self.sums.full);
        }

        let last_rows = if chunk.last { t.last_rows } else { t.unit_rows };
        if chunk.units == 1 {
            let all = UnitTokens { preload_posts: ends.preload_posts, pass_posts: ends.pass_posts, ..tokens };
            return self.unit(b, columns, &cursor, last_rows, chunk.first, &all);
        }
        let advance = |b: &mut Builder| {
            b.increase(cursor.weights, columns.unit)?;
            b.increase(cursor.operand, i64::from(t.unit_rows))
        };
        self.unit(b, columns, &cursor, t.unit_rows, chunk.first, &tokens)?;
        advance(b)?;
        let middle = i64::from(chunk.units) - 2;
        b.repeat("unit", Value::Const(middle), 0, |b, _| {
            self.unit(b, columns, &cursor, t.unit_rows, false, &UnitTokens::default())?;
            advance(b)
        })?;
        if middle > FOLLOWED {
            let (place, term) = chunk.weights;
            b.sum(cursor.weights, place, &[term, (columns.unit, middle + 1)])?;
            let (place, term) = chunk.operand;
            b.sum(cursor.operand, place.plus((middle + 1) * i64::from(t.unit_rows)), &[term])?;
        }
        self.unit(b, columns, &cursor, last_rows, false, &ends)
    }

    fn chunk_bytes(&self, b: &mut Builder, columns: &Columns, chunk: &Chunk) -> Result<Value, LowerError> {
        let t = &self.plan.tiling;
        let full = i64::from(if chunk.last { chunk.units - 1 } else { chunk.units });
        let rest = i64::from(if chunk.last { t.last_rows } else { 0 });
        let has_scales = i64::from(chunk.last);
        let terms = [(columns.unit, full), (columns.row, rest), (columns.scales, has_scales)];
        if let (Value::Const(unit), Value::Const(row), Value::Const(scales)) =
            (columns.unit, columns.row, columns.scales)
        {
            return Ok(Value::Const(unit * full + row * rest + scales * has_scales));
        }
        let bytes = b.reg("bytes of a chunk")?;
        b.sum(bytes, Place::default(), &terms)?;
        Ok(Value::Reg(bytes))
    }

    /// Loads the block's activations, all of them or those of the chunk.
    fn load_operand(
        &self,
        b: &mut Builder,
        chunk: &Chunk,
        to: Reg,
        next: Reg,
        streamed: bool,
    ) -> Result<(), LowerError> {
        let (Activations::Dram { stride, .. }, Some(ring)) = (self.op.activations, self.operand) else { return Ok(()) };
        let (plan, t) = (self.plan, &self.plan.tiling);
        let width = match (plan.pieces, chunk.last) {
            (false, _) => t.k,
            (true, true) => (chunk.units - 1) * t.unit_rows + t.last_rows,
            (true, false) => chunk.units * t.unit_rows,
        };
        b.scope(|b| {
            let src_stride = match stride == u64::from(width) {
                true => Maybe(None),
                false => maybe(b.constant("stride of activations in DRAM", stride as i64)?),
            };
            let dst_stride = if plan.operand_stride == u64::from(width) { Maybe(None) } else { Maybe(self.stride) };
            let load = LoadBox {
                dst: into_sp(to),
                src: dram(next),
                row_bytes: b.size("bytes of a row", Value::Const(width.into()))?,
                rows: maybe(self.rows),
                src_stride,
                dst_stride,
                planes: Maybe(None),
                src_plane: Maybe(None),
                dst_plane: Maybe(None),
                unpack: Flag(false),
            };
            let waits: &[Token] = if streamed { &[ring.free] } else { &[] };
            b.push_with(Op::Load(load), waits, &[ring.full]);
            if plan.pieces && !chunk.last { b.increase(next, i64::from(width)) } else { Ok(()) }
        })
    }

    /// A unit of `rows` inputs: a tile, or the tiles of a group.
    fn unit(
        &self,
        b: &mut Builder,
        columns: &Columns,
        cursor: &Cursor,
        rows: u32,
        overwrite: bool,
        tokens: &UnitTokens,
    ) -> Result<(), LowerError> {
        match self.plan.tiling.format {
            WeightFormat::Int8 => {
                self.preload(b, Codes::I8, columns, cursor.weights, rows, tokens)?;
                self.pass(b, cursor.operand, cursor.sums, rows, !overwrite, &tokens.pass_waits, &tokens.pass_posts);
                Ok(())
            }
            WeightFormat::Int4 { .. } => b.scope(|b| self.group(b, columns, cursor, rows, overwrite, tokens)),
        }
    }

    /// A group of int4 weights.
    fn group(
        &self,
        b: &mut Builder,
        columns: &Columns,
        cursor: &Cursor,
        rows: u32,
        overwrite: bool,
        tokens: &UnitTokens,
    ) -> Result<(), LowerError> {
        let t = &self.plan.tiling;
        let codes = b.reg("codes")?;
        b.sum(codes, Place { base: Some(cursor.weights), offset: 0 }, &[(columns.scales, 1)])?;
        let tiles = t.tiles(rows);
        if tiles == 1 {
            self.preload_scaled(
                b,
                columns,
                (codes, cursor.weights),
                rows,
                &tokens.preload_waits,
                &tokens.preload_posts,
            )?;
            return self.pass_scaled(
                b,
                cursor,
                cursor.operand,
                rows,
                (false, !overwrite),
                &tokens.pass_waits,
                &tokens.pass_posts,
            );
        }
        let operand = b.reg("activations of a tile")?;
        b.sum(operand, Place { base: Some(cursor.operand), offset: 0 }, &[])?;
        let sums = self.group_sums(b)?;
        let height = i64::from(t.array_rows);
        let advance = |b: &mut Builder| {
            b.increase(codes, columns.tile)?;
            b.increase(operand, height)
        };
        let begin = UnitTokens { preload_posts: Vec::new(), ..tokens.clone() };
        self.preload(b, Codes::I4, columns, codes, t.array_rows, &begin)?;
        self.pass(b, operand, sums, t.array_rows, false, &tokens.pass_waits, &[]);
        advance(b)?;
        let middle = i64::from(tiles) - 2;
        b.repeat("tile", Value::Const(middle), 0, |b, _| {
            self.preload(b, Codes::I4, columns, codes, t.array_rows, &UnitTokens::default())?;
            self.pass(b, operand, sums, t.array_rows, true, &[], &[]);
            advance(b)
        })?;
        if middle > FOLLOWED {
            let begin = Place { base: Some(cursor.weights), offset: 0 };
            b.sum(codes, begin, &[(columns.scales, 1), (columns.tile, middle + 1)])?;
            b.sum(operand, Place { base: Some(cursor.operand), offset: (middle + 1) * height }, &[])?;
        }
        let rest = rows - (tiles - 1) * t.array_rows;
        self.preload_scaled(b, columns, (codes, cursor.weights), rest, &[], &tokens.preload_posts)?;
        self.pass_scaled(b, cursor, operand, rest, (true, !overwrite), &[], &tokens.pass_posts)
    }

    /// Accumulators behind all others, for the integers of a group.
    fn group_sums(&self, b: &mut Builder) -> Result<Acc, LowerError> {
        accumulators(b, Value::Const((self.plan.accumulators * self.plan.block_rows).into()))
    }

    fn preload(
        &self,
        b: &mut Builder,
        codes: Codes,
        columns: &Columns,
        tile: Reg,
        k: u32,
        tokens: &UnitTokens,
    ) -> Result<(), LowerError> {
        let tile = Tile { codes, tile: w(tile), k: Size::Imm(k), n: b.size("columns", columns.n)? };
        b.push_with(Op::Preload(tile), &tokens.preload_waits, &tokens.preload_posts);
        Ok(())
    }

    fn preload_scaled(
        &self,
        b: &mut Builder,
        columns: &Columns,
        (tile, scales): (Reg, Reg),
        k: u32,
        waits: &[Token],
        posts: &[Token],
    ) -> Result<(), LowerError> {
        let n = b.size("columns", columns.n)?;
        let tile = ScaledTile { codes: Codes::I4, tile: w(tile), scales: w(scales), k: Size::Imm(k), n };
        b.push_with(Op::PreloadScaled(tile), waits, posts);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn pass(&self, b: &mut Builder, a: Reg, acc: Acc, k: u32, accumulate: bool, waits: &[Token], posts: &[Token]) {
        let pass = Pass {
            a: sp(a),
            acc,
            rows: Size::Reg(self.rows),
            k: Size::Imm(k),
            a_stride: Maybe(self.stride),
            accumulate: Flag(accumulate),
        };
        b.push_with(Op::Pass(pass), waits, posts);
    }

    #[allow(clippy::too_many_arguments)]
    fn pass_scaled(
        &self,
        b: &mut Builder,
        cursor: &Cursor,
        a: Reg,
        k: u32,
        (accumulate, append): (bool, bool),
        waits: &[Token],
        posts: &[Token],
    ) -> Result<(), LowerError> {
        let sums = if accumulate { self.group_sums(b)? } else { cursor.sums };
        let pass = ScaledPass {
            a: sp(a),
            sums,
            acc: cursor.sums,
            rows: Size::Reg(self.rows),
            k: Size::Imm(k),
            a_stride: Maybe(self.stride),
            accumulate: Flag(accumulate),
            append: Flag(append),
        };
        b.push_with(Op::PassScaled(pass), waits, posts);
        Ok(())
    }
}

/// Rows of accumulators from `at` on.
fn accumulators(b: &mut Builder, at: Value) -> Result<Acc, LowerError> {
    match at {
        Value::Const(n) if n < 1 << 12 => Ok(Acc(Address { base: None, offset: n as u32 })),
        at => Ok(acc(b.in_register("accumulators", at)?)),
    }
}
