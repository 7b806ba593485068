//! Calls of the matrix kernels, and the element-wise tails around them.

use cranelift_codegen::ir::{InstBuilder, Type, Value};
use lapidary_compiler::ir::ValueId;
use lapidary_kernels::KernelOp;

use super::{Entry, Lowering};
use crate::LowerError;
use crate::args;
use crate::emit::{Arg, Emit};
use crate::layout::Format;

/// A row count, and whether it is known to be 1.
#[derive(Clone, Copy, Debug)]
pub(super) enum RowCount {
    /// One row: a matrix-vector product.
    One,
    /// Known when the code runs.
    Runtime(Value),
}

impl RowCount {
    pub(super) fn of(constant: Option<u64>, rows: Value) -> Self {
        if constant == Some(1) { RowCount::One } else { RowCount::Runtime(rows) }
    }
}

/// One call of a matrix kernel; fields as in `GemmArgs` and `QGemmArgs`.
pub(super) struct GemmCall {
    pub swiglu: bool,
    pub format: Format,
    pub a: Operand,
    pub a_rows: Option<Value>,
    pub m: RowCount,
    pub k: u64,
    pub w: Value,
    pub n: u64,
    pub begin: Value,
    pub end: Value,
    pub c: Value,
    pub ldc: u64,
    pub c_rows: Option<Value>,
    pub row_scale: Option<Value>,
    pub accumulate: bool,
}

/// The rows that weights are multiplied with: row 0, and elements (floats) or bytes (quantized rows) from row to row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operand {
    pub base: Value,
    pub stride: u64,
}

impl GemmCall {
    /// Emits the call. One row, and every row count of the decode entry point (a module has one token or none), goes to
    /// the matrix-vector kernel; otherwise the code looks at the row count.
    pub(super) fn emit(self, e: &mut Emit, entry: Entry) -> Result<(), LowerError> {
        let (vector, matrix) =
            if self.swiglu { (KernelOp::GemvSwiglu, KernelOp::GemmSwiglu) } else { (KernelOp::Gemv, KernelOp::Gemm) };
        match (self.m, entry) {
            (RowCount::One, _) => self.call(e, vector, Arg::Int(1)),
            (RowCount::Runtime(m), Entry::Decode) => self.call(e, vector, Arg::Value(m)),
            (RowCount::Runtime(m), Entry::Prefill) => {
                let one = e.equals(m, 1);
                e.if_else(one, |e| self.call(e, vector, Arg::Int(1)), |e| self.call(e, matrix, Arg::Value(m)))
            }
        }
    }

    fn call(&self, e: &mut Emit, op: KernelOp, m: Arg) -> Result<(), LowerError> {
        let kernel = e.select(op, self.format.weight)?;
        let pointer = |v: Option<Value>| v.map_or(Arg::Int(0), Arg::Value);
        let (a, stride) = (Arg::Value(self.a.base), Arg::Int(self.a.stride));
        let block = if self.format.quant.is_some() {
            args!(QGemmArgs {
                a: a,
                lda_bytes: stride,
                a_rows: pointer(self.a_rows),
                m: m,
                k: Arg::Int(self.k),
                w: Arg::Value(self.w),
                group: Arg::Int(self.format.group()),
                n: Arg::Int(self.n),
                panel_begin: Arg::Value(self.begin),
                panel_end: Arg::Value(self.end),
                c: Arg::Value(self.c),
                ldc: Arg::Int(self.ldc),
                c_rows: pointer(self.c_rows),
                row_scale: pointer(self.row_scale),
                accumulate: Arg::Int(u64::from(self.accumulate)),
            })
        } else {
            args!(GemmArgs {
                a: a,
                lda: stride,
                a_rows: pointer(self.a_rows),
                m: m,
                k: Arg::Int(self.k),
                w: Arg::Value(self.w),
                n: Arg::Int(self.n),
                panel_begin: Arg::Value(self.begin),
                panel_end: Arg::Value(self.end),
                c: Arg::Value(self.c),
                ldc: Arg::Int(self.ldc),
                c_rows: pointer(self.c_rows),
                row_scale: pointer(self.row_scale),
                accumulate: Arg::Int(u64::from(self.accumulate)),
            })
        };
        e.kernel(kernel, block);
        Ok(())
    }
}

/// The columns that a range of panels covers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    /// First column.
    pub first: Value,
    /// How many.
    pub count: Value,
}

impl Lowering<'_> {
    /// Columns of panels `begin..end` of width `nr`, of `n` in all.
    pub(super) fn columns(&self, e: &mut Emit, begin: Value, end: Value, nr: u64, n: u64) -> Columns {
        let first = e.times(begin, nr);
        let end = e.times(end, nr);
        let n = e.int(n);
        let end = e.min(end, n);
        Columns { first, count: e.b.ins().isub(end, first) }
    }

    /// An element-wise tail over a block of columns of the first `rows` rows, as loops in the generated code.
    pub(super) fn tail(
        &self,
        e: &mut Emit,
        inputs: &[ValueId],
        y: ValueId,
        rows: Value,
        columns: Columns,
        mut body: impl FnMut(&mut Emit, Type, &[Value]) -> Value,
    ) -> Result<(), LowerError> {
        let zero = e.int(0);
        e.for_range(zero, rows, 1, |e, row| {
            let at = |e: &mut Emit, value: ValueId| {
                let base = self.row_address(e, value, row);
                e.index(base, columns.first, 4)
            };
            let bases: Vec<Value> = inputs.iter().map(|v| at(e, *v)).collect();
            let out = at(e, y);
            e.elementwise(&bases, out, columns.count, &mut body)
        })
    }
}
