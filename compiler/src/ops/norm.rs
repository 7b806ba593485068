//! Ops that work row by row on a whole row: norms and softmax.

use super::eval::{dot, softmax};
use super::{EvalCx, InferCx, mismatch};
use crate::interp::Tensor;
use crate::ir::{DType, TensorType};

/// `x [R, n]`, `w [n]` or absent → as x.
pub(super) fn rms_norm_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    let (_, n) = cx.matrix(0, DType::F32)?;
    cx.positive_float("eps")?;
    if let Some(w) = cx.optional_weight(1)
        && (w.shape != [n] || w.storage.is_integer())
    {
        return Err(mismatch("w", format!("a float vector [{n}]"), format!("@{} {}{:?}", w.name, w.storage, w.shape)));
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

/// `x / √(mean(x²) + eps) · w`.
pub(super) fn rms_norm_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, w, eps) = (cx.value(0), cx.optional_weight(1)?, f64::from(cx.float("eps")));
    let mut y = Vec::with_capacity(x.elems());
    for row in x.f32s().chunks_exact(x.cols()) {
        let scale = 1.0 / (dot(row, row) / row.len() as f64 + eps).sqrt();
        let w = |j: usize| w.as_ref().map_or(1.0, |w| f64::from(w[j]));
        y.extend(row.iter().enumerate().map(|(j, x)| (f64::from(*x) * scale * w(j)) as f32));
    }
    Ok(vec![Tensor::matrix(x.rows(), x.cols(), y)])
}

/// `exp(x) / Σ exp(x)` over each row.
pub(super) fn softmax_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let x = cx.value(0);
    let mut y = Vec::with_capacity(x.elems());
    for row in x.f32s().chunks_exact(x.cols()) {
        let mut row: Vec<f64> = row.iter().copied().map(f64::from).collect();
        softmax(&mut row);
        y.extend(row.into_iter().map(|v| v as f32));
    }
    Ok(vec![Tensor::matrix(x.rows(), x.cols(), y)])
}

/// `x / max(‖x‖₂, 1e-12)` per row.
pub(super) fn l2_normalize_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let x = cx.value(0);
    let mut y = Vec::with_capacity(x.elems());
    for row in x.f32s().chunks_exact(x.cols()) {
        let norm = dot(row, row).sqrt().max(1e-12);
        y.extend(row.iter().map(|x| (f64::from(*x) / norm) as f32));
    }
    Ok(vec![Tensor::matrix(x.rows(), x.cols(), y)])
}
