//! Products with a weight matrix.

use super::eval::{Row, gelu, silu};
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
    let (x, w) = (cx.value(0), cx.matrix(1)?);
    let rows: Vec<Row<'_>> = x.f32s().chunks_exact(x.cols()).map(Row::new).collect();
    let n = w.rows();
    let mut y = vec![0.0f64; x.rows() * n];
    // Each weight row is read once for all rows of x.
    for o in 0..n {
        for (r, x) in rows.iter().enumerate() {
            y[r * n + o] = w.output(o, x);
        }
    }
    let residual = cx.optional(2).map(Tensor::f32s);
    let at = |(i, y): (usize, f64)| (act(y) + residual.map_or(0.0, |r| f64::from(r[i]))) as f32;
    let y = y.into_iter().enumerate().map(at).collect();
    Ok(vec![Tensor::matrix(x.rows(), n, y)])
}

/// `silu(x · gateᵀ) ⊙ (x · upᵀ)`.
pub(super) fn swiglu_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, gate, up) = (cx.value(0), cx.matrix(1)?, cx.matrix(2)?);
    let rows = x.f32s().chunks_exact(x.cols()).map(Row::new);
    let hidden = |x: Row<'_>| gate.times(&x).zip(up.times(&x)).map(|(g, u)| (silu(g) * u) as f32).collect::<Vec<_>>();
    let y: Vec<f32> = rows.flat_map(hidden).collect();
    Ok(vec![Tensor::matrix(x.rows(), gate.rows(), y)])
}
