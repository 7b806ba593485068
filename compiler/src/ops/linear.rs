//! Products with a weight matrix.

use super::{InferCx, mismatch};
use crate::ir::{DType, TensorType};

/// `x [R, k]`, `w [n, k]` → `[R, n]`, the residual alike.
pub(super) fn linear_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, k) = cx.matrix(0, DType::F32)?;
    let (n, wk) = cx.weight_matrix(1)?;
    if k != wk {
        return Err(mismatch("w", format!("{k} columns as x has"), format!("[{n}, {wk}]")));
    }
    let y = TensorType::matrix(DType::F32, rows, n);
    cx.want(2, &y)?;
    Ok(vec![y])
}

/// `x [R, k]`, `gate` and `up` `[f, k]` → `[R, f]`.
pub(super) fn swiglu_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (rows, k) = cx.matrix(0, DType::F32)?;
    let (gate, up) = (cx.weight_matrix(1)?, cx.weight_matrix(2)?);
    if gate.1 != k {
        return Err(mismatch("gate", format!("{k} columns as x has"), format!("{gate:?}")));
    }
    if up != gate {
        return Err(mismatch("up", format!("{gate:?} as gate is"), format!("{up:?}")));
    }
    Ok(vec![TensorType::matrix(DType::F32, rows, gate.0)])
}
