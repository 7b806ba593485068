//! Domain modules.

use super::eval::{Row, silu};
use super::{EvalCx, InferCx, mismatch};
use crate::interp::Tensor;
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

/// Rows `offsets[c]..offsets[c+1]` times w_cᵀ.
pub(super) fn linear_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, offsets) = (cx.value(0), cx.value(1).u32s());
    let n = cx.weight_shape(cx.module_operand(0, 0)).0;
    let mut y = Vec::with_capacity(x.rows() * n);
    for c in 0..cx.num_modules() {
        let rows = offsets[c] as usize..offsets[c + 1] as usize;
        if rows.is_empty() {
            continue;
        }
        let w = cx.matrix(cx.module_operand(0, c))?;
        for row in x.f32s()[rows.start * x.cols()..rows.end * x.cols()].chunks_exact(x.cols()) {
            y.extend(w.times(&Row::new(row)).map(|v| v as f32));
        }
    }
    Ok(vec![Tensor::matrix(x.rows(), n, y)])
}

/// Adds `gate_c · FFN_c(x[t])` to `y[t]` for each (token, gate) of module c. Hidden values are rounded to f32.
fn add_module(cx: &EvalCx<'_>, c: usize, x: &Tensor, visits: &[(usize, f32)], y: &mut [f64]) -> Result<(), String> {
    if visits.is_empty() {
        return Ok(());
    }
    let gate = cx.matrix(cx.module_operand(0, c))?;
    let up = cx.matrix(cx.module_operand(1, c))?;
    let down = cx.matrix(cx.module_operand(2, c))?;
    let d = x.cols();
    for (t, g) in visits {
        let row = Row::new(&x.f32s()[t * d..(t + 1) * d]);
        let hidden: Vec<f32> = gate.times(&row).zip(up.times(&row)).map(|(g, u)| (silu(g) * u) as f32).collect();
        for (y, w) in y[t * d..(t + 1) * d].iter_mut().zip(down.times(&Row::new(&hidden))) {
            *y += f64::from(*g) * w;
        }
    }
    Ok(())
}

/// Each token through its own modules, ascending.
pub(super) fn apply_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, mask, gates) = (cx.value(0), cx.value(1).u8s(), cx.value(2).f32s());
    let c_all = cx.num_modules();
    let mut y = vec![0.0; x.elems()];
    for c in 0..c_all {
        let chosen = (0..x.rows()).filter(|t| mask[t * c_all + c] != 0);
        let visits: Vec<(usize, f32)> = chosen.map(|t| (t, gates[t * c_all + c])).collect();
        add_module(cx, c, x, &visits, &mut y)?;
    }
    Ok(vec![Tensor::matrix(x.rows(), x.cols(), y.into_iter().map(|v| v as f32).collect())])
}

/// Each module over the tokens of its group, plus residual.
pub(super) fn ffn_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let (x, offsets, tokens, gates) = (cx.value(0), cx.value(1).u32s(), cx.value(2).u32s(), cx.value(3).f32s());
    let mut y = match cx.optional(4) {
        Some(residual) => residual.f32s().iter().copied().map(f64::from).collect(),
        None => vec![0.0; x.elems()],
    };
    for c in 0..cx.num_modules() {
        let group = offsets[c] as usize..offsets[c + 1] as usize;
        let visits: Vec<(usize, f32)> = group.map(|i| (tokens[i] as usize, gates[i])).collect();
        add_module(cx, c, x, &visits, &mut y)?;
    }
    Ok(vec![Tensor::matrix(x.rows(), x.cols(), y.into_iter().map(|v| v as f32).collect())])
}
