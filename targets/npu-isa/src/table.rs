//! The instruction table: one row per instruction.
//!
//! A row is `opcode Variant(Format) = "mnemonic", queue, cost class;` with what the instruction does as its documentation.
//! Encoder, decoder, assembler, disassembler, the verifier's fields, the cost class and the reference in `ISA.md` come from
//! the row and its format ([`crate::format`]).

use alloc::vec::Vec;

use crate::access::{Access, OperandFault};
use crate::choice::Queue;
use crate::cost::CostClass;
use crate::format::*;
use crate::operand::Registers;

/// One row, without what is typed.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Bits 0 to 6 of the word.
    pub opcode: u8,
    /// Its name in the text.
    pub mnemonic: &'static str,
    /// Name of its format.
    pub format: &'static str,
    /// Its fields, from bit 27 upwards.
    pub fields: &'static [FieldRow],
    /// Who executes it; of `sync`, which names its queue, the sequencer.
    pub queue: Queue,
    /// How its time is computed.
    pub class: CostClass,
    /// What it does, exactly: its paragraph in `ISA.md`.
    pub about: &'static str,
}

impl Row {
    /// Whether it may wait for and post tokens.
    pub const fn has_tokens(&self) -> bool {
        match self.queue {
            Queue::Sequencer => matches!(self.class, CostClass::ScalarLoad | CostClass::Sync),
            Queue::Load | Queue::Store | Queue::Matrix | Queue::Vector | Queue::Route => true,
        }
    }
}

macro_rules! instructions {
    ($($(#[doc = $doc:literal])* $code:literal $variant:ident($format:ident) = $mnemonic:literal, $queue:ident, $class:ident;)*) => {
        /// An instruction without its tokens.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Op {
            $($(#[doc = $doc])* $variant($format),)*
        }

        /// Every row.
        pub const ROWS: &[Row] = &[$(Row {
            opcode: $code,
            mnemonic: $mnemonic,
            format: <$format as Format>::NAME,
            fields: <$format as Format>::FIELDS,
            queue: Queue::$queue,
            class: CostClass::$class,
            about: concat!($($doc, "\n"),*),
        }),*];

        /// Positions in [`ROWS`].
        #[repr(usize)]
        enum Place { $($variant),* }

        impl Op {
            /// Its row of the table.
            pub const fn row(&self) -> &'static Row {
                match self {
                    $(Op::$variant(_) => &ROWS[Place::$variant as usize],)*
                }
            }

            /// Operand bits of the word.
            pub(crate) fn encode_operands(&self) -> Result<u128, BadField> {
                match self {
                    $(Op::$variant(format) => format.encode(),)*
                }
            }

            /// From a word; `None` is an opcode that no row has.
            pub(crate) fn decode_operands(opcode: u8, word: u128) -> Option<Result<Op, BadField>> {
                match opcode {
                    $($code => Some(<$format as Format>::decode(word).map(Op::$variant)),)*
                    _ => None,
                }
            }

            /// From operands; `None` is a mnemonic that no row has.
            pub fn build<S: OperandSource>(mnemonic: &str, source: &mut S) -> Option<Result<Op, S::Error>> {
                match mnemonic {
                    $($mnemonic => Some(<$format as Format>::build(source).map(Op::$variant)),)*
                    _ => None,
                }
            }

            /// Shows the operands.
            pub fn visit(&self, visitor: &mut impl OperandVisitor) {
                match self {
                    $(Op::$variant(format) => format.visit(visitor),)*
                }
            }

            /// What it reads and writes, or the operand whose value is impossible. `regs` are those of its issue.
            pub fn accesses(&self, regs: &Registers) -> Result<Vec<Access>, OperandFault> {
                match self {
                    $(Op::$variant(format) => format.accesses(regs),)*
                }
            }
        }
    };
}

instructions! {
    /// Ends the program: nothing after it is issued. The run is over when all queues are empty and idle.
    0x01 Halt(Nothing) = "halt", Sequencer, Scalar;
    /// rd = value. In text a value like `0.5f` is the pattern of that f32, zero-extended.
    0x02 Li(Constant) = "li", Sequencer, Scalar;
    /// rd = a + b.
    0x03 Add(Arithmetic) = "add", Sequencer, Scalar;
    /// rd = a − b.
    0x04 Sub(Arithmetic) = "sub", Sequencer, Scalar;
    /// rd = a · b.
    0x05 Mul(Arithmetic) = "mul", Sequencer, Scalar;
    /// rd = a · 2^(b mod 64).
    0x06 Shl(Arithmetic) = "shl", Sequencer, Scalar;
    /// rd = ⌊a / 2^(b mod 64)⌋ (arithmetic shift).
    0x07 Shr(Arithmetic) = "shr", Sequencer, Scalar;
    /// rd = the smaller of a and b, signed.
    0x08 Min(Arithmetic) = "min", Sequencer, Scalar;
    /// rd = the larger of a and b, signed.
    0x09 Max(Arithmetic) = "max", Sequencer, Scalar;
    /// rd = a AND b, bit by bit.
    0x0a And(Arithmetic) = "and", Sequencer, Scalar;
    /// Executes the `body` instructions that follow, up to the matching `end`, for rd = 0, 1, … count − 1. `count` is read once. With
    /// count ≤ 0 they are skipped, and rd = 0. count > max is a fault. The loop (rd, count) is pushed on the loop stack, which
    /// has 8 places. No instruction of the body may write rd; behind the loop rd = max(count, 0).
    0x0b Loop(LoopHead) = "loop", Sequencer, Scalar;
    /// rd = rd + 1 of the innermost loop; if rd < count, goes back to the first instruction of the body, otherwise pops the loop.
    0x0c End(LoopEnd) = "end", Sequencer, Scalar;
    /// If a `condition` b, skips `target` instructions. Branches go forward only, and not into or out of a loop.
    0x0d Branch(Branch) = "branch", Sequencer, Scalar;
    /// If a = 0, skips `target` instructions: `branch eq, a, 0` under the name that routed code reads best with.
    0x0e SkipIfZero(Skip) = "skip_if_zero", Sequencer, Scalar;
    /// rd = the u32 at src in the scratchpad, zero-extended, after its waits. A value above `max` is a fault. The sequencer
    /// goes on when the value is there.
    0x0f Lds(ScalarLoad) = "lds", Sequencer, ScalarLoad;
    /// Does nothing but wait and post, in the queue that it names; `sync sequencer` holds up the sequencer itself.
    0x10 Sync(Wait) = "sync", Sequencer, Sync;

    /// For p < planes, r < rows, b < row_bytes: `dst[p·dst_plane + r·dst_stride + b] = src[p·src_plane + r·src_stride + b]`. Left out:
    /// rows and planes are 1, a stride is the length of its row, a plane stride is rows · its stride. With `unpack` each byte of src
    /// becomes two bytes, first the low half, then the high half, each a two's complement number of 4 bits sign-extended to 8;
    /// rows of dst have 2·row_bytes bytes.
    0x14 Load(LoadBox) = "load", Load, Dma;
    /// For i < rows: row i of dst = row `index[i]` of src, u32, at src + `index[i]`·src_stride, of row_bytes bytes (unpacked as by `load`).
    /// `index[i]` ≥ bound is a fault. Left out: rows is 1, strides are the lengths of the rows.
    0x15 LoadRows(LoadIndexed) = "load.rows", Load, DmaIndexed;
    /// `load` the other way, without unpacking.
    0x18 Store(StoreBox) = "store", Store, Dma;
    /// For i < rows, ascending: row `index[i]` of dst = row i of src. `index[i]` ≥ bound is a fault; of equal indices the last row stays.
    0x19 StoreRows(StoreIndexed) = "store.rows", Store, DmaIndexed;
    /// For i < rows, ascending, j < row_bytes/4: `dst[index[i], j] = dst[index[i], j] + src[i, j]` in f32. `index[i]` ≥ bound is a fault.
    0x1a StoreAddRows(AddIndexed) = "store.add_rows", Store, DmaAdd;

    /// The array's next tile is w, k × n: `w[r, c]` at tile + r·(bytes of n codes) + column c (i4: low half of byte ⌊c/2⌋ for even
    /// c, high half for odd c, each −8 to 7). Scales are 1. k > R or n > C is a fault. It holds for all passes up to the next
    /// preload of the queue.
    0x20 Preload(Tile) = "m.preload", Matrix, Preload;
    /// As `m.preload`, with the f16 scale of column c at scales + 2·c.
    0x21 PreloadScaled(ScaledTile) = "m.preload_scaled", Matrix, Preload;
    /// For i < rows, c < n: `p = Σ_{r<k} a[i, r]·w[r, c]` in i32, i8 rows of a at a + i·a_stride (left out: k); `acc[i, c] = p`, or `acc[i, c] + p` with
    /// `accumulate`, in 32 bits with wrap-around. Words c ≥ n of a written row become 0, or stay with `accumulate`. k that is not the tile's
    /// k is a fault. rows = 0 does nothing.
    0x22 Pass(Pass) = "m.pass", Matrix, Pass;
    /// p as in `m.pass`; with `accumulate` p = `sums[i, c]` + p, in i32. Then `acc[i, c] = fma(f32(p), f32(scale[c]), t)` as f32, where t is 0, or `acc[i, c]` with
    /// `append`. `sums` is only read. Words c ≥ n of a written row become 0, or stay with `append`. So the last pass of a group of inputs folds it in;
    /// groups in ascending order give the int4 product of docs/quantization.md.
    0x23 PassScaled(ScaledPass) = "m.pass_scaled", Matrix, Pass;

    /// `y = (f32(acc[i, j]) · channels[j]) · tokens[i]` with acc as i32, f32 channels\[cols\] and tokens\[rows\]; `dst[i, j]` = y. cols > C is a fault.
    0x28 Rescale(Rescale) = "v.rescale", Vector, Rescale;
    /// `y = acc[i, j] · tokens[i]` with acc as f32; `dst[i, j]` = y. cols > C is a fault.
    0x29 RescaleFloats(RescaleFloats) = "v.rescale_floats", Vector, Rescale;

    /// `dst[i, j] = a[i, j]`: a copy, and a conversion between types.
    0x30 Copy(Unary) = "v.copy", Vector, Simple;
    /// `dst[i, j] = exp(a[i, j])`.
    0x31 Exp(Unary) = "v.exp", Vector, Exp;
    /// `dst[i, j] = ln(a[i, j])`.
    0x32 Ln(Unary) = "v.ln", Vector, Ln;
    /// `dst[i, j] = 1 / a[i, j]`.
    0x33 Reciprocal(Unary) = "v.reciprocal", Vector, Divide;
    /// `dst[i, j] = √a[i, j]`, correctly rounded.
    0x34 Sqrt(Unary) = "v.sqrt", Vector, Divide;
    /// `dst[i, j] = 1 / √a[i, j]`: a root, then a quotient, each correctly rounded.
    0x35 Rsqrt(Unary) = "v.rsqrt", Vector, Divide;
    /// `dst[i, j] = silu(a[i, j])`.
    0x36 Silu(Unary) = "v.silu", Vector, Sigmoid;
    /// `dst[i, j] = gelu(a[i, j])`.
    0x37 Gelu(Unary) = "v.gelu", Vector, Sigmoid;
    /// `dst[i, j] = a[i, j]·mul + add` with f32 patterns in the low halves of the registers: a product, then a sum if `add` is given.
    0x38 Affine(Affine) = "v.affine", Vector, Simple;
    /// `dst[i, j]` = the number whose f32 pattern is the low half of value; with type i32 the low half itself.
    0x39 Fill(Fill) = "v.fill", Vector, Simple;

    /// `dst[i, j] = a[i, j] + b[i, j]`.
    0x3c VAdd(Binary) = "v.add", Vector, Simple;
    /// `dst[i, j] = a[i, j] − b[i, j]`.
    0x3d VSub(Binary) = "v.sub", Vector, Simple;
    /// `dst[i, j] = a[i, j] · b[i, j]`.
    0x3e VMul(Binary) = "v.mul", Vector, Simple;
    /// `dst[i, j] = a[i, j] / b[i, j]`.
    0x3f VDiv(Binary) = "v.div", Vector, Divide;
    /// `dst[i, j] = max(a[i, j], b[i, j])`.
    0x40 VMax(Binary) = "v.max", Vector, Simple;
    /// `dst[i, j] = min(a[i, j], b[i, j])`.
    0x41 VMin(Binary) = "v.min", Vector, Simple;
    /// `dst[i, j] = silu(a[i, j]) · b[i, j]`.
    0x42 SiluMul(Binary) = "v.silu_mul", Vector, Sigmoid;

    /// `dst[i] = Σ_j a[i, j]`, by the rule of sums.
    0x44 RowSum(RowReduce) = "v.row_sum", Vector, Reduce;
    /// `dst[i] = Σ_j a[i, j]²`, by the rule of sums with `fma(a, a, p)`.
    0x45 RowSumSquares(RowReduce) = "v.row_sum_squares", Vector, Reduce;
    /// `dst[i] = m` with m = −∞, then for j ascending `m = max(m, a[i, j])`.
    0x46 RowMax(RowReduce) = "v.row_max", Vector, Reduce;
    /// `dst[i]`, a u32, = the lowest j with the largest `a[i, j]` (NaN counts as −∞); 0 of an empty row.
    0x47 RowArgmax(RowReduce) = "v.row_argmax", Vector, Reduce;
    /// `dst[j] = t` with t = 0, then for i ascending `t = t + a[i, j]`.
    0x48 ColumnSum(ColumnReduce) = "v.column_sum", Vector, Reduce;

    /// Row i over the columns from max(0, begin + i) to min(cols, end + i) − 1 (begin left out: from 0; end left out: to cols − 1; both
    /// signed): `z_j = a[i, j]·scale` (left out: `a[i, j]`), m = the largest by `v.row_max`, `e_j = exp(z_j − m)`, s = Σ e_j by the rule of sums with
    /// j counted from the first of these columns, `dst[i, j] = e_j / s`. Elsewhere, and in all of the row if m = −∞ or there is no column, `dst[i, j]` = 0.
    0x4a SoftmaxRows(Softmax) = "v.softmax", Vector, Softmax;
    /// q = Σ_j a\[i, j\]² as by `v.row_sum_squares`, `r = 1 / √(q / f32(cols) + eps)`, `dst[i, j] = (a[i, j]·r)·w[j]`; w is f32\[cols\].
    0x4b RmsNorm(Norm) = "v.rms_norm", Vector, Norm;
    /// For h < heads, j < half: x = `a[i, 2·half·h + j]`, y = `a[i, 2·half·h + half + j]`, c = `table[i, j]`, s = `table[i, half + j]` (f32, rows of 2·half): x' = fma(x, c, −(y·s)),
    /// y' = fma(y, c, x·s). Left out: heads is 1; strides are dense.
    0x4c Rope(Rotate) = "v.rope", Vector, Rotate;
    /// Row i of a to i8 codes in row i of dst and `scales[i]`, f32, by the rule of docs/quantization.md: m = 0, then for j ascending
    /// `m = max(m, |a[i, j]|)`; m < 2⁻¹⁰⁰: scale 0, codes 0; otherwise scale m/127, `inv = 127/m`, code = `i8(a[i, j]·inv)`.
    0x4d QuantizeRows(Quantize) = "v.quantize", Vector, Quantize;

    /// `dst[i, n] = Σ_{j<cols} a[i, j]·b[n, j]` for n < b_rows, by the rule of sums with `fma(a, b, p)`; with `accumulate` `dst[i, n]` + that. a and dst are f32.
    0x50 DotRows(Product) = "v.dot_rows", Vector, Dot;
    /// `dst[i, j] = t` with t = 0, or `dst[i, j]` with `accumulate`, then for n < b_rows ascending `t = fma(a[i, n], b[n, j], t)`. a and dst are f32, a has b_rows columns.
    0x51 MixRows(Mix) = "v.mix_rows", Vector, Mix;
    /// Row i of dst = row `index[i]` of src, row_bytes bytes each. `index[i]` ≥ bound is a fault.
    0x52 VGather(GatherRows) = "v.gather", Vector, Rows;
    /// For i < rows ascending, j < cols: `dst[index[i], j] = fma(gates[i], src[i, j], dst[index[i], j])`, all f32, dst dense. `index[i]` ≥ bound is a fault.
    0x53 VScatterAdd(ScatterRows) = "v.scatter_add", Vector, Rows;

    /// Row i takes its min(k, cols) best columns by the order of scores. `mask[i, c]` is 1 or 0 (u8, rows of cols bytes); `gates[i, c]` by
    /// the rule of gates. All three are dense.
    0x60 TopK(SelectRows) = "r.top_k", Route, SelectRows;
    /// Row i takes, best first, while it has less than k and the score is ≥ tau (f32 pattern): maybe none. Mask and gates as `r.top_k`.
    0x61 Threshold(SelectLimit) = "r.threshold", Route, SelectRows;
    /// Row i takes, best first, while it has less than k, and (it has less than k_min, or mass < p); mass is the f32 sum of the
    /// scores that it took, in that order, from 0; p an f32 pattern. Mask and gates as `r.top_k`.
    0x62 TopP(SelectMass) = "r.top_p", Route, SelectRows;
    /// Column c takes its min(cap, rows) best rows by the order of scores. Mask as `r.top_k`, gates without division.
    0x63 ExpertChoice(SelectColumns) = "r.expert_choice", Route, SelectColumns;
    /// Those of the choices of `r.top_k` that `r.expert_choice` makes as well. Mask and gates as `r.top_k`.
    0x64 Bidirectional(SelectBoth) = "r.bidirectional", Route, SelectBoth;
    /// Counting sort of the set elements of a mask: for c ascending, for i ascending with `mask[i, c]` ≠ 0, list gets i (u32). Record c of
    /// table, at table + 16·c, is {c, position of its first row in list, count, 0} as u32; record cols is {cols, N, 0, 0} with N
    /// the length of list. N > most (left out: rows·cols) is a fault. List is not written beyond N.
    0x65 Group(Group) = "r.group", Route, Group;
    /// `dst[n] = src[i, c]` (f32) of the n-th set element of the mask in the order of `r.group`. N > most is a fault.
    0x66 Compact(Compact) = "r.compact", Route, Compact;
    /// A ring has the number n of tokens appended so far (u32), then cap places (u32): place n mod cap = token, n = n + 1. Nothing
    /// happens with cap = 0, not even to n.
    0x67 Append(RingAppend) = "r.append", Route, Ring;
    /// list = all j ≤ token, ascending, each once, with token − j < window, or j < sinks, or j among the min(n, cap) places of the ring
    /// that were written last; count = how many (u32 each).
    0x68 Admit(RingAdmit) = "r.admit", Route, Admit;
    /// `dst[i] = start + i` for i < count (u32, the low half; start left out: 0).
    0x69 Iota(Count) = "r.iota", Route, Iota;
}
