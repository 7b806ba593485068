//! Ops that choose, make or reduce rows and columns.

use super::{EvalCx, InferCx, mismatch};
use crate::interp::Tensor;
use crate::ir::{DType, Dim, SymbolId, TensorType};

/// ids `[T]`, table `[V, d]` → `[T, d]`.
pub(super) fn embed_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let rows = cx.vector(0, DType::U32)?;
    let (_, d) = cx.weight_matrix(1)?;
    Ok(vec![TensorType::matrix(DType::F32, rows, d)])
}

/// `[R, n]` → `[R, end − begin]`.
pub(super) fn slice_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, n) = cx.matrix(0, DType::F32)?;
    let (begin, end) = (cx.attrs.int("begin"), cx.attrs.int("end"));
    if begin >= end || end > n {
        return Err(mismatch("columns", format!("a range within 0..{n}"), format!("{begin}..{end}")));
    }
    Ok(vec![TensorType::matrix(DType::F32, rows, end - begin)])
}

/// Any `[R, …]` → `[R, cols]`.
pub(super) fn fill_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    Ok(vec![TensorType::matrix(DType::F32, cx.value(0).rows(), cx.positive("cols")?)])
}

/// `[T, d]` → `[S, d]`.
pub(super) fn last_rows_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, d) = cx.matrix(0, DType::F32)?;
    cx.want_tokens(0, rows)?;
    Ok(vec![TensorType::matrix(DType::F32, Dim::Sym(SymbolId::OUTPUT_ROWS), d)])
}

/// `[R, d]` → `[1, d]`.
pub(super) fn mean_rows_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (_, d) = cx.matrix(0, DType::F32)?;
    Ok(vec![TensorType::matrix(DType::F32, Dim::Const(1), d)])
}

/// Rows of the table.
pub(super) fn embed_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let ids = cx.value(0).u32s();
    let (vocab, d) = cx.weight_shape(1);
    let mut y = vec![0.0; ids.len() * d];
    for (id, row) in ids.iter().zip(y.chunks_exact_mut(d)) {
        if *id as usize >= vocab {
            return Err(mismatch("ids", format!("less than {vocab}"), id));
        }
        cx.weight_row(1, *id as usize, row)?;
    }
    Ok(vec![Tensor::matrix(ids.len(), d, y)])
}

/// Columns `begin..end`.
pub(super) fn slice_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, begin, end) = (cx.value(0), cx.size("begin"), cx.size("end"));
    let y = x.f32s().chunks_exact(x.cols()).flat_map(|row| row[begin..end].iter().copied()).collect();
    Ok(vec![Tensor::matrix(x.rows(), end - begin, y)])
}

/// The same value everywhere.
pub(super) fn fill_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (rows, cols) = (cx.value(0).rows(), cx.size("cols"));
    Ok(vec![Tensor::matrix(rows, cols, vec![cx.float("value"); rows * cols])])
}

/// The last S rows.
pub(super) fn last_rows_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, rows) = (cx.value(0), cx.output_rows());
    let y = x.f32s()[(x.rows() - rows) * x.cols()..].to_vec();
    Ok(vec![Tensor::matrix(rows, x.cols(), y)])
}

/// Mean over rows.
pub(super) fn mean_rows_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let x = cx.value(0);
    let mut sums = vec![0.0f64; x.cols()];
    for row in x.f32s().chunks_exact(x.cols()) {
        sums.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x));
    }
    let y = sums.into_iter().map(|s| (s / x.rows() as f64) as f32).collect();
    Ok(vec![Tensor::matrix(1, x.cols(), y)])
}
