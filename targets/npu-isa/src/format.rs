//! Instruction formats: which operands an instruction has, in which bits, and what they touch.
//!
//! A format is a struct with the operands as fields. Fields are packed in their order from bit 27 of the word upwards;
//! bits above the last field are zero. The block behind the fields says what the instruction reads and writes.
//! What an instruction computes stands in its row of [`crate::table`].

use alloc::vec::Vec;

use crate::access::{Access, OperandFault, Shape, Touches};
use crate::address::{Acc, Dram, Memory, OnChip, Sp, W};
use crate::choice::{Broadcast, Codes, Condition, Queue, Type};
use crate::operand::{
    BadBits, Body, Bound, Dest, Distance, Flag, Given, Maybe, Operand, Position, Reg, Registers, Size, Source, Term,
    Wide,
};

/// Bits of opcode and tokens: where operands begin.
pub const OPERANDS_AT: u32 = 27;

/// A field of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldRow {
    /// Its name, also in the text.
    pub name: &'static str,
    /// Width.
    pub bits: u32,
    /// What it can hold.
    pub kind: &'static str,
    /// Its place in the text.
    pub position: Position,
}

/// A field whose bits or value are not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadField {
    /// The field.
    pub field: &'static str,
    /// What would be right.
    pub wanted: &'static str,
    /// Its bits; of a value that has none, 0.
    pub found: u64,
}

/// Sees every operand of an instruction in order.
pub trait OperandVisitor {
    /// One operand.
    fn operand<T: Operand>(&mut self, name: &'static str, value: &T);
}

/// Gives the operands of an instruction one by one, from their text for instance.
pub trait OperandSource {
    /// Why it cannot.
    type Error;
    /// The next operand.
    fn operand<T: Operand>(&mut self, name: &'static str) -> Result<T, Self::Error>;
}

/// What all formats can do.
pub trait Format: Sized + Copy {
    /// Its name in `ISA.md`.
    const NAME: &'static str;
    /// Its fields in the order of their bits.
    const FIELDS: &'static [FieldRow];

    /// Shows the operands.
    fn visit(&self, visitor: &mut impl OperandVisitor);
    /// Makes the operands.
    fn build<S: OperandSource>(source: &mut S) -> Result<Self, S::Error>;
    /// What it reads and writes, or the operand whose value is impossible.
    fn accesses(&self, regs: &Registers) -> Result<Vec<Access>, OperandFault>;

    /// Its bits of the word.
    fn encode(&self) -> Result<u128, BadField> {
        struct Encoder(u128, u32, Option<BadField>);
        impl OperandVisitor for Encoder {
            fn operand<T: Operand>(&mut self, name: &'static str, value: &T) {
                match value.encode() {
                    Ok(bits) => self.0 |= u128::from(bits) << self.1,
                    Err(wanted) => self.2 = self.2.or(Some(BadField { field: name, wanted, found: 0 })),
                }
                self.1 += T::BITS;
            }
        }
        let mut encoder = Encoder(0, OPERANDS_AT, None);
        self.visit(&mut encoder);
        match encoder.2 {
            Some(bad) => Err(bad),
            None => Ok(encoder.0),
        }
    }

    /// From a word, the bits beyond the last field included.
    fn decode(word: u128) -> Result<Self, BadField> {
        struct Decoder(u128);
        impl OperandSource for Decoder {
            type Error = BadField;
            fn operand<T: Operand>(&mut self, name: &'static str) -> Result<T, BadField> {
                let bits = (self.0 & ((1 << T::BITS) - 1)) as u64;
                self.0 >>= T::BITS;
                T::decode(bits).map_err(|BadBits { wanted, found }| BadField { field: name, wanted, found })
            }
        }
        let mut decoder = Decoder(word >> OPERANDS_AT);
        let format = Self::build(&mut decoder)?;
        match decoder.0 {
            0 => Ok(format),
            rest => Err(BadField { field: "reserved bits", wanted: "zeros", found: rest as u64 }),
        }
    }
}

macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? } touches($t:ident, $regs:ident) $body:block)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub struct $name {
                $(#[doc = concat!("Operand `", stringify!($field), "`.")] pub $field: $ty,)*
            }

            impl Format for $name {
                const NAME: &'static str = stringify!($name);
                const FIELDS: &'static [FieldRow] = &[$(FieldRow {
                    name: stringify!($field),
                    bits: <$ty as Operand>::BITS,
                    kind: <$ty as Operand>::KIND,
                    position: <$ty as Operand>::POSITION,
                }),*];

                #[allow(unused_variables)]
                fn visit(&self, visitor: &mut impl OperandVisitor) {
                    $(visitor.operand(stringify!($field), &self.$field);)*
                }

                #[allow(unused_variables)]
                fn build<S: OperandSource>(source: &mut S) -> Result<Self, S::Error> {
                    Ok($name { $($field: source.operand(stringify!($field))?,)* })
                }

                #[allow(unused_variables, unused_mut)]
                fn accesses(&self, $regs: &Registers) -> Result<Vec<Access>, OperandFault> {
                    let mut touches = Touches::default();
                    let $t = &mut touches;
                    let $name { $($field),* } = *self;
                    $body
                    touches.finish()
                }
            }

            const _: () = assert!(OPERANDS_AT $(+ <$ty as Operand>::BITS)* <= 128, "a format has 101 bits");
        )*
    };
}

/// Any size at all.
const NO_BOUND: u64 = u64::MAX;
/// What a word of a list can hold.
const U32: u64 = 0xffff_ffff;
const SP: Memory = Memory::Scratchpad;

/// `rows` × `cols` elements with an optional stride, in the scratchpad.
fn elems(regs: &Registers, rows: i64, cols: i64, stride: Maybe, ty: Type) -> Shape {
    let row_bytes = cols.saturating_mul(i64::from(ty.bytes()));
    Shape::rows(rows, row_bytes, stride.value_or(regs, row_bytes), u64::from(ty.bytes()))
}

/// A box of bytes: rows and planes with optional counts and strides.
fn boxed(regs: &Registers, row_bytes: i64, rows: Maybe, stride: Maybe, planes: Maybe, plane: Maybe) -> Shape {
    let rows = rows.value_or(regs, 1);
    let stride = stride.value_or(regs, row_bytes);
    let plane_stride = plane.value_or(regs, rows.saturating_mul(stride));
    Shape {
        rows,
        row_units: row_bytes,
        stride,
        planes: planes.value_or(regs, 1),
        plane_stride,
        align: 1,
        streams: false,
    }
}

/// Bytes of a row after the DMA: twice as many when it unpacks int4.
fn unpacked(row_bytes: i64, unpack: Flag) -> i64 {
    if unpack.0 { row_bytes.saturating_mul(2) } else { row_bytes }
}

formats! {
    /// No operands.
    Nothing {} touches(t, regs) {}

    /// A register and a constant.
    Constant { rd: Dest, value: Wide } touches(t, regs) {}

    /// Three-operand arithmetic.
    Arithmetic { rd: Dest, a: Source, b: Term } touches(t, regs) {}

    /// Head of a loop.
    LoopHead { rd: Dest, count: Size<24>, max: Bound, body: Body } touches(t, regs) {}

    /// End of a loop.
    LoopEnd { body: Body } touches(t, regs) {}

    /// Two values compared, and instructions to skip.
    Branch { condition: Condition, a: Source, b: Term, target: Distance } touches(t, regs) {}

    /// A value compared with zero, and instructions to skip.
    Skip { a: Source, target: Distance } touches(t, regs) {}

    /// A word of the scratchpad into a register.
    ScalarLoad { rd: Dest, src: Sp, max: Bound } touches(t, regs) {
        t.read("src", SP, src.value(regs), Shape::flat(4, 4));
    }

    /// A queue.
    Wait { queue: Queue } touches(t, regs) {}

    /// 3-D DMA from DRAM.
    LoadBox {
        dst: OnChip, src: Dram, row_bytes: Size<14>, rows: Maybe, src_stride: Maybe, dst_stride: Maybe, planes: Maybe,
        src_plane: Maybe, dst_plane: Maybe, unpack: Flag,
    } touches(t, regs) {
        let bytes = row_bytes.value(regs);
        t.read("src", Memory::Dram, src.value(regs), boxed(regs, bytes, rows, src_stride, planes, src_plane));
        let shape = boxed(regs, unpacked(bytes, unpack), rows, dst_stride, planes, dst_plane);
        t.write("dst", dst.memory(), dst.value(regs), shape);
    }

    /// 3-D DMA to DRAM.
    StoreBox {
        dst: Dram, src: Sp, row_bytes: Size<14>, rows: Maybe, src_stride: Maybe, dst_stride: Maybe, planes: Maybe,
        src_plane: Maybe, dst_plane: Maybe,
    } touches(t, regs) {
        let bytes = row_bytes.value(regs);
        t.read("src", SP, src.value(regs), boxed(regs, bytes, rows, src_stride, planes, src_plane));
        t.write("dst", Memory::Dram, dst.value(regs), boxed(regs, bytes, rows, dst_stride, planes, dst_plane));
    }

    /// DMA of rows of a table in DRAM, chosen by a list.
    LoadIndexed {
        dst: OnChip, src: Dram, index: Sp, bound: Given, row_bytes: Size<14>, rows: Maybe, src_stride: Maybe,
        dst_stride: Maybe, unpack: Flag,
    } touches(t, regs) {
        let (bytes, rows) = (row_bytes.value(regs), rows.value_or(regs, 1));
        t.read("index", SP, index.value(regs), Shape::flat(rows.saturating_mul(4), 4));
        let table = Shape::rows(bound.value(regs), bytes, src_stride.value_or(regs, bytes), 1);
        t.read("src", Memory::Dram, src.value(regs), table);
        let wide = unpacked(bytes, unpack);
        t.write("dst", dst.memory(), dst.value(regs), Shape::rows(rows, wide, dst_stride.value_or(regs, wide), 1));
    }

    /// DMA to rows of a table in DRAM, chosen by a list.
    StoreIndexed {
        dst: Dram, src: Sp, index: Sp, bound: Given, row_bytes: Size<14>, rows: Maybe, src_stride: Maybe, dst_stride: Maybe,
    } touches(t, regs) {
        let (bytes, rows) = (row_bytes.value(regs), rows.value_or(regs, 1));
        t.read("index", SP, index.value(regs), Shape::flat(rows.saturating_mul(4), 4));
        t.read("src", SP, src.value(regs), Shape::rows(rows, bytes, src_stride.value_or(regs, bytes), 1));
        let table = Shape::rows(bound.value(regs), bytes, dst_stride.value_or(regs, bytes), 1);
        t.write("dst", Memory::Dram, dst.value(regs), table);
    }

    /// As `StoreIndexed`, of f32 that are added to what is there.
    AddIndexed {
        dst: Dram, src: Sp, index: Sp, bound: Given, row_bytes: Size<14>, rows: Maybe, src_stride: Maybe, dst_stride: Maybe,
    } touches(t, regs) {
        let (bytes, rows) = (row_bytes.value(regs), rows.value_or(regs, 1));
        t.read("index", SP, index.value(regs), Shape::flat(rows.saturating_mul(4), 4));
        t.multiple("row_bytes", bytes, 4);
        t.read("src", SP, src.value(regs), Shape::rows(rows, bytes, src_stride.value_or(regs, bytes), 4));
        let table = Shape::rows(bound.value(regs), bytes, dst_stride.value_or(regs, bytes), 4);
        t.update("dst", Memory::Dram, dst.value(regs), table);
    }

    /// A tile of weights.
    Tile { codes: Codes, tile: W, k: Size<9>, n: Size<9> } touches(t, regs) {
        let row = codes.row_bytes(n.value(regs));
        t.read("tile", Memory::Weights, tile.value(regs), Shape::rows(k.value(regs), row, row, 1));
    }

    /// A tile of weights, and a scale per column.
    ScaledTile { codes: Codes, tile: W, scales: W, k: Size<9>, n: Size<9> } touches(t, regs) {
        let (n, row) = (n.value(regs), codes.row_bytes(n.value(regs)));
        t.read("tile", Memory::Weights, tile.value(regs), Shape::rows(k.value(regs), row, row, 1));
        t.read("scales", Memory::Weights, scales.value(regs), Shape::flat(n.saturating_mul(2), 2));
    }

    /// Rows of activations through the array into integer sums.
    Pass { a: Sp, acc: Acc, rows: Size<13>, k: Size<9>, a_stride: Maybe, accumulate: Flag } touches(t, regs) {
        let (rows, k) = (rows.value(regs), k.value(regs));
        t.read("a", SP, a.value(regs), Shape::rows(rows, k, a_stride.value_or(regs, k), 1));
        let sums = Shape::flat(rows, 1);
        match accumulate.0 {
            true => t.update("acc", Memory::Accumulators, acc.value(regs), sums),
            false => t.write("acc", Memory::Accumulators, acc.value(regs), sums),
        }
    }

    /// Rows of activations through the array, and on through the scales into float sums.
    ScaledPass {
        a: Sp, sums: Acc, acc: Acc, rows: Size<13>, k: Size<9>, a_stride: Maybe, accumulate: Flag, append: Flag,
    } touches(t, regs) {
        let (rows, k) = (rows.value(regs), k.value(regs));
        t.read("a", SP, a.value(regs), Shape::rows(rows, k, a_stride.value_or(regs, k), 1));
        let shape = Shape::flat(rows, 1);
        if accumulate.0 {
            t.read("sums", Memory::Accumulators, sums.value(regs), shape);
        }
        match append.0 {
            true => t.update("acc", Memory::Accumulators, acc.value(regs), shape),
            false => t.write("acc", Memory::Accumulators, acc.value(regs), shape),
        }
    }

    /// Integer sums to numbers.
    Rescale {
        dst: Sp, acc: Acc, channels: Sp, tokens: Sp, cols: Size<9>, rows: Maybe, dst_stride: Maybe, dst_type: Type,
    } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("acc", Memory::Accumulators, acc.value(regs), Shape::flat(rows, 1));
        t.read("channels", SP, channels.value(regs), Shape::flat(cols.saturating_mul(4), 4));
        t.read("tokens", SP, tokens.value(regs), Shape::flat(rows.saturating_mul(4), 4));
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, dst_type).streamed());
    }

    /// Float sums to numbers.
    RescaleFloats {
        dst: Sp, acc: Acc, tokens: Sp, cols: Size<9>, rows: Maybe, dst_stride: Maybe, dst_type: Type,
    } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("acc", Memory::Accumulators, acc.value(regs), Shape::flat(rows, 1));
        t.read("tokens", SP, tokens.value(regs), Shape::flat(rows.saturating_mul(4), 4));
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, dst_type).streamed());
    }

    /// One matrix to one of the same size.
    Unary {
        dst: Sp, a: Sp, cols: Size<12>, rows: Maybe, dst_stride: Maybe, a_stride: Maybe, dst_type: Type, a_type: Type,
    } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, a_type).streamed());
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, dst_type).streamed());
    }

    /// One matrix and two numbers in registers.
    Affine {
        dst: Sp, a: Sp, cols: Size<12>, mul: Given, add: Maybe, rows: Maybe, dst_stride: Maybe, a_stride: Maybe,
        dst_type: Type, a_type: Type,
    } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, a_type).streamed());
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, dst_type).streamed());
    }

    /// Two matrices to one.
    Binary {
        dst: Sp, a: Sp, b: Sp, cols: Size<12>, rows: Maybe, dst_stride: Maybe, a_stride: Maybe, b_stride: Maybe,
        dst_type: Type, a_type: Type, b_type: Type, broadcast: Broadcast,
    } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, a_type).streamed());
        let b_shape = |rows, cols| elems(regs, rows, cols, b_stride, b_type);
        t.read("b", SP, b.value(regs), match broadcast {
            Broadcast::Full => b_shape(rows, cols).streamed(),
            Broadcast::Row => b_shape(1, cols).streamed(),
            Broadcast::Column => b_shape(rows, 1),
            Broadcast::Scalar => b_shape(1, 1),
        });
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, dst_type).streamed());
    }

    /// A number everywhere.
    Fill { dst: Sp, cols: Size<12>, value: Given, rows: Maybe, dst_stride: Maybe, dst_type: Type } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, dst_type).streamed());
    }

    /// One number of each row.
    RowReduce { dst: Sp, a: Sp, cols: Size<12>, rows: Maybe, dst_stride: Maybe, a_stride: Maybe, a_type: Type } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, a_type).streamed());
        t.write("dst", SP, dst.value(regs), elems(regs, rows, 1, dst_stride, Type::F32));
    }

    /// One number of each column.
    ColumnReduce { dst: Sp, a: Sp, cols: Size<12>, rows: Maybe, a_stride: Maybe, a_type: Type } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, a_type).streamed());
        t.write("dst", SP, dst.value(regs), elems(regs, 1, cols, Maybe(None), Type::F32));
    }

    /// Rows of scores to rows of weights, of a range of columns that moves with the row.
    Softmax {
        dst: Sp, a: Sp, cols: Size<12>, scale: Maybe, begin: Maybe, end: Maybe, rows: Maybe, dst_stride: Maybe,
        a_stride: Maybe, dst_type: Type, a_type: Type,
    } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, a_type).streamed());
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, dst_type).streamed());
    }

    /// Rows, a row of weights and a number in a register.
    Norm {
        dst: Sp, a: Sp, w: Sp, cols: Size<12>, eps: Given, rows: Maybe, dst_stride: Maybe, a_stride: Maybe, dst_type: Type,
        a_type: Type,
    } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, a_type).streamed());
        t.read("w", SP, w.value(regs), elems(regs, 1, cols, Maybe(None), Type::F32).streamed());
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, dst_type).streamed());
    }

    /// Rows of heads, and rows of cosines and sines.
    Rotate {
        dst: Sp, a: Sp, table: Sp, half: Size<9>, heads: Maybe, rows: Maybe, dst_stride: Maybe, a_stride: Maybe,
        table_stride: Maybe, dst_type: Type, a_type: Type,
    } touches(t, regs) {
        let (rows, head) = (rows.value_or(regs, 1), half.value(regs).saturating_mul(2));
        t.count("half", half.value(regs));
        t.count("heads", heads.value_or(regs, 1));
        let cols = heads.value_or(regs, 1).saturating_mul(head);
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, a_type).streamed());
        t.read("table", SP, table.value(regs), elems(regs, rows, head, table_stride, Type::F32));
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, dst_type).streamed());
    }

    /// Rows to codes and a scale per row.
    Quantize {
        dst: Sp, a: Sp, scales: Sp, cols: Size<12>, rows: Maybe, dst_stride: Maybe, a_stride: Maybe, a_type: Type,
    } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, a_type).streamed());
        t.write("dst", SP, dst.value(regs), elems(regs, rows, cols, dst_stride, Type::I8).streamed());
        t.write("scales", SP, scales.value(regs), elems(regs, rows, 1, Maybe(None), Type::F32));
    }

    /// Rows of one matrix with rows of another.
    Product {
        dst: Sp, a: Sp, b: Sp, cols: Size<12>, rows: Maybe, b_rows: Maybe, dst_stride: Maybe, a_stride: Maybe,
        b_stride: Maybe, b_type: Type, accumulate: Flag,
    } touches(t, regs) {
        let (rows, b_rows, cols) = (rows.value_or(regs, 1), b_rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, cols, a_stride, Type::F32).streamed());
        t.read("b", SP, b.value(regs), elems(regs, b_rows, cols, b_stride, b_type).streamed());
        let out = elems(regs, rows, b_rows, dst_stride, Type::F32);
        match accumulate.0 {
            true => t.update("dst", SP, dst.value(regs), out),
            false => t.write("dst", SP, dst.value(regs), out),
        }
    }

    /// Rows of weights with the rows that they weigh.
    Mix {
        dst: Sp, a: Sp, b: Sp, cols: Size<12>, rows: Maybe, b_rows: Maybe, dst_stride: Maybe, a_stride: Maybe,
        b_stride: Maybe, b_type: Type, accumulate: Flag,
    } touches(t, regs) {
        let (rows, b_rows, cols) = (rows.value_or(regs, 1), b_rows.value_or(regs, 1), cols.value(regs));
        t.read("a", SP, a.value(regs), elems(regs, rows, b_rows, a_stride, Type::F32));
        t.read("b", SP, b.value(regs), elems(regs, b_rows, cols, b_stride, b_type).streamed());
        let out = elems(regs, rows, cols, dst_stride, Type::F32).streamed();
        match accumulate.0 {
            true => t.update("dst", SP, dst.value(regs), out),
            false => t.write("dst", SP, dst.value(regs), out),
        }
    }

    /// Rows of the scratchpad chosen by a list.
    GatherRows {
        dst: Sp, src: Sp, index: Sp, bound: Given, row_bytes: Size<14>, rows: Maybe, dst_stride: Maybe, src_stride: Maybe,
    } touches(t, regs) {
        let (bytes, rows) = (row_bytes.value(regs), rows.value_or(regs, 1));
        t.read("index", SP, index.value(regs), Shape::flat(rows.saturating_mul(4), 4));
        let table = Shape::rows(bound.value(regs), bytes, src_stride.value_or(regs, bytes), 1);
        t.read("src", SP, src.value(regs), table.streamed());
        let out = Shape::rows(rows, bytes, dst_stride.value_or(regs, bytes), 1);
        t.write("dst", SP, dst.value(regs), out.streamed());
    }

    /// Weighted rows added to rows chosen by a list.
    ScatterRows {
        dst: Sp, src: Sp, index: Sp, gates: Sp, bound: Given, cols: Given, rows: Maybe, src_stride: Maybe,
    } touches(t, regs) {
        let (cols, rows) = (cols.value(regs), rows.value_or(regs, 1));
        t.read("index", SP, index.value(regs), Shape::flat(rows.saturating_mul(4), 4));
        t.read("gates", SP, gates.value(regs), Shape::flat(rows.saturating_mul(4), 4));
        t.read("src", SP, src.value(regs), elems(regs, rows, cols, src_stride, Type::F32).streamed());
        let table = elems(regs, bound.value(regs), cols, Maybe(None), Type::F32);
        t.update("dst", SP, dst.value(regs), table.streamed());
    }

    /// Rows of scores to a selection of at most `k` per row.
    SelectRows { mask: Sp, gates: Sp, scores: Sp, cols: Size<12>, k: Given, rows: Maybe, norm: Flag } touches(t, regs) {
        select_touches(t, regs, mask, gates, scores, rows.value_or(regs, 1), cols.value(regs));
        t.at_most("k", k.value(regs), NO_BOUND);
    }

    /// As `SelectRows`, with a number in a register.
    SelectLimit {
        mask: Sp, gates: Sp, scores: Sp, cols: Size<12>, k: Given, tau: Given, rows: Maybe, norm: Flag,
    } touches(t, regs) {
        select_touches(t, regs, mask, gates, scores, rows.value_or(regs, 1), cols.value(regs));
        t.at_most("k", k.value(regs), NO_BOUND);
    }

    /// As `SelectRows`, with a least count and a number in a register.
    SelectMass {
        mask: Sp, gates: Sp, scores: Sp, cols: Size<12>, k_min: Given, k: Given, p: Given, rows: Maybe, norm: Flag,
    } touches(t, regs) {
        select_touches(t, regs, mask, gates, scores, rows.value_or(regs, 1), cols.value(regs));
        t.at_most("k_min", k_min.value(regs), NO_BOUND);
        t.at_most("k", k.value(regs), NO_BOUND);
    }

    /// Columns of scores to a selection of at most `cap` per column.
    SelectColumns { mask: Sp, gates: Sp, scores: Sp, cols: Size<12>, cap: Given, rows: Maybe } touches(t, regs) {
        select_touches(t, regs, mask, gates, scores, rows.value_or(regs, 1), cols.value(regs));
        t.at_most("cap", cap.value(regs), NO_BOUND);
    }

    /// A selection of at most `k` per row and `cap` per column.
    SelectBoth {
        mask: Sp, gates: Sp, scores: Sp, cols: Size<12>, k: Given, cap: Given, rows: Maybe, norm: Flag,
    } touches(t, regs) {
        select_touches(t, regs, mask, gates, scores, rows.value_or(regs, 1), cols.value(regs));
        t.at_most("k", k.value(regs), NO_BOUND);
        t.at_most("cap", cap.value(regs), NO_BOUND);
    }

    /// A selection to a table and a list.
    Group { table: Sp, list: Sp, mask: Sp, cols: Size<12>, most: Maybe, rows: Maybe } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.count("rows", rows);
        t.count("cols", cols);
        let most = most.value_or(regs, rows.saturating_mul(cols));
        t.read("mask", SP, mask.value(regs), Shape::flat(rows.saturating_mul(cols), 1));
        t.write("table", SP, table.value(regs), Shape::flat(cols.saturating_add(1).saturating_mul(16), 4));
        t.write("list", SP, list.value(regs), Shape::flat(most.saturating_mul(4), 4));
    }

    /// A selection and a matrix to a list.
    Compact { dst: Sp, mask: Sp, src: Sp, cols: Size<12>, most: Maybe, rows: Maybe } touches(t, regs) {
        let (rows, cols) = (rows.value_or(regs, 1), cols.value(regs));
        t.count("rows", rows);
        t.count("cols", cols);
        let most = most.value_or(regs, rows.saturating_mul(cols));
        t.read("mask", SP, mask.value(regs), Shape::flat(rows.saturating_mul(cols), 1));
        t.read("src", SP, src.value(regs), elems(regs, rows, cols, Maybe(None), Type::F32));
        t.write("dst", SP, dst.value(regs), Shape::flat(most.saturating_mul(4), 4));
    }

    /// A ring of the latest tokens, and a token.
    RingAppend { ring: Sp, token: Given, cap: Given } touches(t, regs) {
        t.at_most("token", token.value(regs), U32);
        t.count("cap", cap.value(regs));
        t.update("ring", SP, ring.value(regs), Shape::flat(cap.value(regs).saturating_add(1).saturating_mul(4), 4));
    }

    /// A ring of the latest tokens, and who else is seen.
    RingAdmit { list: Sp, count: Sp, ring: Sp, token: Given, window: Given, sinks: Given, cap: Given } touches(t, regs) {
        let (cap, window, sinks) = (cap.value(regs), window.value(regs), sinks.value(regs));
        t.at_most("token", token.value(regs), U32);
        t.at_most("window", window, U32);
        t.at_most("sinks", sinks, U32);
        t.count("cap", cap);
        t.read("ring", SP, ring.value(regs), Shape::flat(cap.saturating_add(1).saturating_mul(4), 4));
        let most = cap.saturating_add(window).saturating_add(sinks).min(token.value(regs).saturating_add(1));
        t.write("list", SP, list.value(regs), Shape::flat(most.saturating_mul(4), 4));
        t.write("count", SP, count.value(regs), Shape::flat(4, 4));
    }

    /// Consecutive numbers.
    Count { dst: Sp, count: Given, start: Maybe } touches(t, regs) {
        t.write("dst", SP, dst.value(regs), Shape::flat(count.value(regs).saturating_mul(4), 4));
    }
}

fn select_touches(t: &mut Touches, regs: &Registers, mask: Sp, gates: Sp, scores: Sp, rows: i64, cols: i64) {
    t.read("scores", SP, scores.value(regs), elems(regs, rows, cols, Maybe(None), Type::F32));
    t.write("mask", SP, mask.value(regs), elems(regs, rows, cols, Maybe(None), Type::I8));
    t.write("gates", SP, gates.value(regs), elems(regs, rows, cols, Maybe(None), Type::F32));
}

/// Registers that an instruction reads and the one that it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterUse {
    /// Read, with the operands' names.
    pub reads: Vec<(&'static str, Reg)>,
    /// Written.
    pub writes: Option<Reg>,
}

impl OperandVisitor for RegisterUse {
    fn operand<T: Operand>(&mut self, name: &'static str, value: &T) {
        self.reads.extend(value.register().map(|r| (name, r)));
        self.writes = self.writes.or(value.destination());
    }
}
