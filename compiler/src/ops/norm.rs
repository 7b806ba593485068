//! Ops that work row by row on a whole row: norms and softmax.

use super::{InferCx, mismatch};
use crate::ir::{DType, TensorType};

/// `x [R, n]`, `w [n]` or absent → as x.
pub(super) fn rms_norm_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (_, n) = cx.matrix(0, DType::F32)?;
    cx.positive_float("eps")?;
    if let Some(w) = cx.optional_weight(1)
        && (w.shape != [n] || !matches!(w.dtype, DType::F32 | DType::F16 | DType::BF16))
    {
        return Err(mismatch("w", format!("a float vector [{n}]"), format!("@{} {}{:?}", w.name, w.dtype, w.shape)));
    }
    Ok(vec![cx.value(0).clone()])
}

/// `[R, n]` → the same.
pub(super) fn softmax_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    cx.matrix(0, DType::F32)?;
    Ok(vec![cx.value(0).clone()])
}

/// `[R, n]` → the same.
pub(super) fn l2_normalize_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    softmax_types(cx)
}
