//! Products with a weight matrix.

use super::eval::{dot, gelu, row_times, silu};
use super::{EvalCx, InferCx, mismatch};
use crate::interp::Tensor;
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

/// `act(x · wᵀ) + residual`.
pub(super) fn linear_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let act: fn(f64) -> f64 = match cx.word("act") {
        "silu" => silu,
        "gelu" => gelu,
        _ => |x| x,
    };
    let (x, w) = (cx.value(0), cx.weight(1)?);
    let mut y = vec![0.0f64; x.rows() * cx.weight_shape(1).0];
    product(x.f32s(), &w, x.cols(), &mut y);
    let residual = cx.optional(2).map(Tensor::f32s);
    let at = |(i, y): (usize, f64)| (act(y) + residual.map_or(0.0, |r| f64::from(r[i]))) as f32;
    let y = y.into_iter().enumerate().map(at).collect();
    Ok(vec![Tensor::matrix(x.rows(), cx.weight_shape(1).0, y)])
}

/// `y[r, o] = Σ x[r, :]·w[o, :]`, each weight row read once for all rows of x.
fn product(x: &[f32], w: &[f32], k: usize, y: &mut [f64]) {
    let n = w.len() / k;
    for (o, w) in w.chunks_exact(k).enumerate() {
        for (r, x) in x.chunks_exact(k).enumerate() {
            y[r * n + o] = dot(x, w);
        }
    }
}

/// `silu(x · gateᵀ) ⊙ (x · upᵀ)`.
pub(super) fn swiglu_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, gate, up) = (cx.value(0), cx.weight(1)?, cx.weight(2)?);
    let rows = x.f32s().chunks_exact(x.cols());
    let y = rows.flat_map(|x| row_times(x, &gate).zip(row_times(x, &up))).map(|(g, u)| (silu(g) * u) as f32);
    Ok(vec![Tensor::matrix(x.rows(), cx.weight_shape(1).0, y.collect())])
}
