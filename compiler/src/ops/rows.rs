//! Ops that choose, make or reduce rows and columns.

use super::{InferCx, mismatch};
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
