//! Instructions of VECTOR and of the DMA on matrices: addresses, strides and order from where the matrices lie.

use lapidary_npu_isa::choice::{Broadcast, Type};
use lapidary_npu_isa::format::{
    Affine, Binary, ColumnReduce, Fill, GatherRows, LoadBox, LoadIndexed, Mix, Norm, Product, Quantize, Rotate,
    RowReduce, ScatterRows, Softmax, StoreBox, StoreIndexed, Unary,
};
use lapidary_npu_isa::operand::{Flag, Maybe};
use lapidary_npu_isa::{Op, address::OnChip};

use super::flow::{Flow, Matrix};
use crate::builder::Value;
use crate::error::LowerError;

/// A row of `cols` elements in bytes, if it is known.
fn row_bytes(cols: Value, element: Type) -> Value {
    match cols {
        Value::Const(n) => Value::Const(n * i64::from(element.bytes())),
        Value::Reg(_) => Value::Const(-1),
    }
}

type Done = Result<(), LowerError>;

impl Flow<'_> {
    fn dense_or(&mut self, m: &Matrix, cols: Value, rows: Value) -> Result<Maybe, LowerError> {
        match rows {
            Value::Const(1) => Ok(Maybe(None)),
            _ => self.stride(m.stride, row_bytes(cols, m.element)),
        }
    }

    /// dst = f(a).
    pub fn unary(&mut self, f: fn(Unary) -> Op, dst: &Matrix, a: &Matrix, cols: impl Into<Value>, rows: Value) -> Done {
        let cols = cols.into();
        self.scope(|this| {
            let unary = Unary {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                cols: this.size(cols)?,
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                dst_type: dst.element,
                a_type: a.element,
            };
            this.issue(f(unary), &[a.area], &[dst.area])
        })
    }

    /// dst = a·mul + add.
    pub fn affine(&mut self, dst: &Matrix, a: &Matrix, cols: u64, rows: Value, mul: f32, add: Option<f32>) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let affine = Affine {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                cols: this.size(cols)?,
                mul: this.float(mul)?,
                add: match add {
                    None => Maybe(None),
                    Some(add) => Maybe(Some(this.b.constant("what is added", add.to_bits().into())?)),
                },
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                dst_type: dst.element,
                a_type: a.element,
            };
            this.issue(Op::Affine(affine), &[a.area], &[dst.area])
        })
    }

    /// dst = f(a, b).
    #[expect(clippy::too_many_arguments, reason = "operands of the instruction")]
    pub fn binary(
        &mut self,
        f: fn(Binary) -> Op,
        dst: &Matrix,
        a: &Matrix,
        b: &Matrix,
        broadcast: Broadcast,
        cols: impl Into<Value>,
        rows: Value,
    ) -> Done {
        let cols = cols.into();
        self.scope(|this| {
            let b_cols = if broadcast == Broadcast::Column { Value::Const(1) } else { cols };
            let binary = Binary {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                b: this.sp(b.at)?,
                cols: this.size(cols)?,
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                b_stride: match broadcast {
                    Broadcast::Full | Broadcast::Column => this.dense_or(b, b_cols, rows)?,
                    Broadcast::Row | Broadcast::Scalar => Maybe(None),
                },
                dst_type: dst.element,
                a_type: a.element,
                b_type: b.element,
                broadcast,
            };
            this.issue(f(binary), &[a.area, b.area], &[dst.area])
        })
    }

    /// dst = value everywhere; of i32 the number itself, else an f32's pattern.
    pub fn fill(&mut self, dst: &Matrix, cols: u64, rows: Value, value: Value) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let fill = Fill {
                dst: this.sp(dst.at)?,
                cols: this.size(cols)?,
                value: this.given(value)?,
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                dst_type: dst.element,
            };
            this.issue(Op::Fill(fill), &[], &[dst.area])
        })
    }

    /// dst\[i\] = f(row i of a).
    pub fn row_reduce(&mut self, f: fn(RowReduce) -> Op, dst: &Matrix, a: &Matrix, cols: u64, rows: Value) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let reduce = RowReduce {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                cols: this.size(cols)?,
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, Value::Const(1), rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                a_type: a.element,
            };
            this.issue(f(reduce), &[a.area], &[dst.area])
        })
    }

    /// dst\[j\] = Σ_i a\[i, j\].
    pub fn column_sum(&mut self, dst: &Matrix, a: &Matrix, cols: u64, rows: Value) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let reduce = ColumnReduce {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                cols: this.size(cols)?,
                rows: this.count(rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                a_type: a.element,
            };
            this.issue(Op::ColumnSum(reduce), &[a.area], &[dst.area])
        })
    }

    /// dst = softmax of rows of a, of all columns or of those from `begin` + i to `end` + i − 1.
    pub fn softmax(
        &mut self,
        dst: &Matrix,
        a: &Matrix,
        cols: impl Into<Value>,
        rows: Value,
        scale: Option<f32>,
        range: Option<(Value, Value)>,
    ) -> Done {
        let cols = cols.into();
        self.scope(|this| {
            let (begin, end) = match range {
                None => (Maybe(None), Maybe(None)),
                Some((begin, end)) => (
                    Maybe(Some(this.b.in_register("first column", begin)?)),
                    Maybe(Some(this.b.in_register("end of columns", end)?)),
                ),
            };
            let softmax = Softmax {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                cols: this.size(cols)?,
                scale: match scale {
                    None => Maybe(None),
                    Some(scale) => Maybe(Some(this.b.constant("scale", scale.to_bits().into())?)),
                },
                begin,
                end,
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                dst_type: dst.element,
                a_type: a.element,
            };
            this.issue(Op::SoftmaxRows(softmax), &[a.area], &[dst.area])
        })
    }

    /// dst = a / √(mean(a²) + eps) · w.
    pub fn rms_norm(&mut self, dst: &Matrix, a: &Matrix, w: &Matrix, cols: u64, rows: Value, eps: f32) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let norm = Norm {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                w: this.sp(w.at)?,
                cols: this.size(cols)?,
                eps: this.float(eps)?,
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                dst_type: dst.element,
                a_type: a.element,
            };
            this.issue(Op::RmsNorm(norm), &[a.area, w.area], &[dst.area])
        })
    }

    /// dst = rows of `heads` heads of a, rotated by rows of a table.
    pub fn rope(
        &mut self,
        dst: &Matrix,
        a: &Matrix,
        table: &Matrix,
        (heads, head_dim): (u64, u64),
        rows: Value,
    ) -> Done {
        let cols = Value::Const((heads * head_dim) as i64);
        self.scope(|this| {
            let rope = Rotate {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                table: this.sp(table.at)?,
                half: this.size(Value::Const((head_dim / 2) as i64))?,
                heads: this.count(Value::Const(heads as i64))?,
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                table_stride: this.dense_or(table, Value::Const(head_dim as i64), rows)?,
                dst_type: dst.element,
                a_type: a.element,
            };
            this.issue(Op::Rope(rope), &[a.area, table.area], &[dst.area])
        })
    }

    /// dst = codes of rows of a, scales\[i\] their scale.
    pub fn quantize(&mut self, dst: &Matrix, scales: &Matrix, a: &Matrix, cols: u64, rows: Value) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let quantize = Quantize {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                scales: this.sp(scales.at)?,
                cols: this.size(cols)?,
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                a_type: a.element,
            };
            this.issue(Op::QuantizeRows(quantize), &[a.area], &[dst.area, scales.area])
        })
    }

    /// dst\[i, n\] = Σ_j a\[i, j\]·b\[n, j\].
    pub fn dot_rows(&mut self, dst: &Matrix, a: &Matrix, b: &Matrix, cols: u64, rows: Value, b_rows: Value) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let product = Product {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                b: this.sp(b.at)?,
                cols: this.size(cols)?,
                rows: this.count(rows)?,
                b_rows: this.count(b_rows)?,
                dst_stride: this.dense_or(dst, b_rows, rows)?,
                a_stride: this.dense_or(a, cols, rows)?,
                b_stride: this.dense_or(b, cols, b_rows)?,
                b_type: b.element,
                accumulate: Flag(false),
            };
            this.issue(Op::DotRows(product), &[a.area, b.area], &[dst.area])
        })
    }

    /// dst\[i, j\] = (dst\[i, j\] +) Σ_n a\[i, n\]·b\[n, j\].
    #[expect(clippy::too_many_arguments, reason = "operands of the instruction")]
    pub fn mix_rows(
        &mut self,
        dst: &Matrix,
        a: &Matrix,
        b: &Matrix,
        cols: u64,
        rows: Value,
        b_rows: Value,
        accumulate: bool,
    ) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let mix = Mix {
                dst: this.sp(dst.at)?,
                a: this.sp(a.at)?,
                b: this.sp(b.at)?,
                cols: this.size(cols)?,
                rows: this.count(rows)?,
                b_rows: this.count(b_rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                a_stride: this.dense_or(a, b_rows, rows)?,
                b_stride: this.dense_or(b, cols, b_rows)?,
                b_type: b.element,
                accumulate: Flag(accumulate),
            };
            this.issue(Op::MixRows(mix), &[a.area, b.area], &[dst.area])
        })
    }

    /// dst\[i\] = row index\[i\] < `bound` of src, `cols` elements of it.
    pub fn gather(&mut self, dst: &Matrix, src: &Matrix, index: &Matrix, bound: Value, cols: u64, rows: Value) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let gather = GatherRows {
                dst: this.sp(dst.at)?,
                src: this.sp(src.at)?,
                index: this.sp(index.at)?,
                bound: this.given(bound)?,
                row_bytes: this.size(row_bytes(cols, src.element))?,
                rows: this.count(rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                // Rows of src are many, however few are gathered.
                src_stride: this.stride(src.stride, row_bytes(cols, src.element))?,
            };
            this.issue(Op::VGather(gather), &[src.area, index.area], &[dst.area])
        })
    }

    /// Row index\[i\] of dst (dense rows of `cols`) += gates\[i\] · row i of src.
    #[expect(clippy::too_many_arguments, reason = "operands of the instruction")]
    pub fn scatter_add(
        &mut self,
        dst: &Matrix,
        src: &Matrix,
        index: &Matrix,
        gates: &Matrix,
        bound: Value,
        cols: u64,
        rows: Value,
    ) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let scatter = ScatterRows {
                dst: this.sp(dst.at)?,
                src: this.sp(src.at)?,
                index: this.sp(index.at)?,
                gates: this.sp(gates.at)?,
                bound: this.given(bound)?,
                cols: this.given(cols)?,
                rows: this.count(rows)?,
                src_stride: this.dense_or(src, cols, rows)?,
            };
            this.issue(Op::VScatterAdd(scatter), &[src.area, index.area, gates.area, dst.area], &[dst.area])
        })
    }

    /// Rows from DRAM to the scratchpad, `cols` elements of the same size each.
    pub fn load(&mut self, dst: &Matrix, src: &Matrix, cols: impl Into<Value>, rows: Value) -> Done {
        let cols = cols.into();
        self.scope(|this| {
            let bytes = this.bytes_of(cols, src.element)?;
            let load = LoadBox {
                dst: OnChip::Scratchpad(this.sp(dst.at)?),
                src: this.dram(src.at)?,
                row_bytes: this.size(bytes)?,
                rows: this.count(rows)?,
                src_stride: this.dense_or(src, cols, rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                planes: Maybe(None),
                src_plane: Maybe(None),
                dst_plane: Maybe(None),
                unpack: Flag(false),
            };
            this.issue(Op::Load(load), &[src.area], &[dst.area])
        })
    }

    /// Rows of DRAM chosen by a list; with `unpack` every byte of src is two codes.
    #[expect(clippy::too_many_arguments, reason = "operands of the instruction")]
    pub fn load_rows(
        &mut self,
        dst: &Matrix,
        src: &Matrix,
        index: &Matrix,
        bound: Value,
        row_bytes: u64,
        rows: Value,
        unpack: bool,
    ) -> Done {
        let bytes = Value::Const(row_bytes as i64);
        self.scope(|this| {
            let load = LoadIndexed {
                dst: OnChip::Scratchpad(this.sp(dst.at)?),
                src: this.dram(src.at)?,
                index: this.sp(index.at)?,
                bound: this.given(bound)?,
                row_bytes: this.size(bytes)?,
                rows: this.count(rows)?,
                src_stride: this.stride(src.stride, bytes)?,
                dst_stride: this.stride(dst.stride, Value::Const((row_bytes << u64::from(unpack)) as i64))?,
                unpack: Flag(unpack),
            };
            this.issue(Op::LoadRows(load), &[src.area, index.area], &[dst.area])
        })
    }

    /// Rows from the scratchpad to DRAM.
    pub fn store(&mut self, dst: &Matrix, src: &Matrix, cols: impl Into<Value>, rows: Value) -> Done {
        let cols = cols.into();
        self.scope(|this| {
            let bytes = this.bytes_of(cols, src.element)?;
            let store = StoreBox {
                dst: this.dram(dst.at)?,
                src: this.sp(src.at)?,
                row_bytes: this.size(bytes)?,
                rows: this.count(rows)?,
                src_stride: this.dense_or(src, cols, rows)?,
                dst_stride: this.dense_or(dst, cols, rows)?,
                planes: Maybe(None),
                src_plane: Maybe(None),
                dst_plane: Maybe(None),
            };
            this.issue(Op::Store(store), &[src.area], &[dst.area])
        })
    }

    /// Rows to rows of DRAM chosen by a list.
    pub fn store_rows(
        &mut self,
        dst: &Matrix,
        src: &Matrix,
        index: &Matrix,
        bound: Value,
        cols: u64,
        rows: Value,
    ) -> Done {
        let cols = Value::Const(cols as i64);
        self.scope(|this| {
            let bytes = row_bytes(cols, src.element);
            let store = StoreIndexed {
                dst: this.dram(dst.at)?,
                src: this.sp(src.at)?,
                index: this.sp(index.at)?,
                bound: this.given(bound)?,
                row_bytes: this.size(bytes)?,
                rows: this.count(rows)?,
                src_stride: this.dense_or(src, cols, rows)?,
                dst_stride: this.stride(dst.stride, bytes)?,
            };
            this.issue(Op::StoreRows(store), &[src.area, index.area], &[dst.area])
        })
    }

    fn bytes_of(&mut self, cols: Value, element: Type) -> Result<Value, LowerError> {
        self.b.product("bytes of a row", cols, element.bytes().into())
    }
}
