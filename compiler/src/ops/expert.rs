//! Domain modules.

use super::{InferCx, mismatch};
use crate::ir::{DType, Dim, TensorType};

/// Holds gate, up and down of every module to `[f, d]`, `[f, d]`, `[d, f]`; f is the first module's.
fn want_ffn(cx: &InferCx<'_>, d: u64) -> Result<(), String> {
    let (f, _) = cx.weight_matrix(cx.op.num_fixed_operands())?;
    cx.want_modules(0, f, d)?;
    cx.want_modules(1, f, d)?;
    cx.want_modules(2, d, f)
}

/// Offsets `[C+1]` for C modules.
fn want_offsets(cx: &InferCx<'_>, i: usize) -> Result<(), String> {
    cx.want(i, &TensorType::vector(DType::U32, Dim::Const(cx.num_modules() + 1)))
}

/// rows `[N, k]`, offsets `[C+1]`, C weights `[n, k]` → `[N, n]`.
pub(super) fn linear_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, k) = cx.matrix(0, DType::F32)?;
    want_offsets(cx, 1)?;
    let (n, _) = cx.weight_matrix(cx.op.num_fixed_operands())?;
    cx.want_modules(0, n, k)?;
    Ok(vec![TensorType::matrix(DType::F32, rows, n)])
}

/// x `[T, d]`, mask and gates `[T, C]` → `[T, d]`.
pub(super) fn apply_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, d) = cx.matrix(0, DType::F32)?;
    cx.want(1, &TensorType::matrix(DType::U8, rows, cx.num_modules()))?;
    cx.want(2, &TensorType::matrix(DType::F32, rows, cx.num_modules()))?;
    want_ffn(cx, d)?;
    Ok(vec![cx.value(0).clone()])
}

/// x `[T, d]`, offsets `[C+1]`, tokens and gates `[N]`, residual `[T, d]` → `[T, d]`.
pub(super) fn ffn_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (_, d) = cx.matrix(0, DType::F32)?;
    want_offsets(cx, 1)?;
    let n = cx.vector(2, DType::U32)?;
    if n.as_const().is_some() {
        return Err(mismatch("tokens", "the rows of a route.group", cx.graph.show_type(cx.value(2))));
    }
    cx.want(3, &TensorType::vector(DType::F32, n))?;
    cx.want(4, cx.value(0))?;
    want_ffn(cx, d)?;
    Ok(vec![cx.value(0).clone()])
}
