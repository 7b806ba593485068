//! Ops that work element by element.

use super::eval::{gelu, silu};
use super::{EvalCx, InferCx};
use crate::interp::Tensor;
use crate::ir::{DType, TensorType};

/// One float matrix → the same type.
pub(super) fn unary_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    cx.matrix(0, DType::F32)?;
    Ok(vec![cx.value(0).clone()])
}

/// Two float matrices of one type → that type.
pub(super) fn binary_types(cx: &InferCx<'_>) -> Result<Vec<TensorType>, String> {
    cx.matrix(0, DType::F32)?;
    cx.want(1, cx.value(0))?;
    Ok(vec![cx.value(0).clone()])
}

fn unary(cx: &EvalCx<'_>, f: impl Fn(f64) -> f64) -> Result<Vec<Tensor>, String> {
    let x = cx.value(0);
    let y = x.f32s().iter().map(|x| f(f64::from(*x)) as f32).collect();
    Ok(vec![Tensor::matrix(x.rows(), x.cols(), y)])
}

fn binary(cx: &EvalCx<'_>, f: impl Fn(f32, f32) -> f32) -> Result<Vec<Tensor>, String> {
    let (a, b) = (cx.value(0), cx.value(1));
    let y = a.f32s().iter().zip(b.f32s()).map(|(a, b)| f(*a, *b)).collect();
    Ok(vec![Tensor::matrix(a.rows(), a.cols(), y)])
}

/// `a + b`.
pub(super) fn add_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    binary(cx, |a, b| a + b)
}

/// `a ⊙ b`.
pub(super) fn mul_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    binary(cx, |a, b| a * b)
}

/// `factor · x`.
pub(super) fn scale_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    let factor = f64::from(cx.float("factor"));
    unary(cx, |x| x * factor)
}

/// See [`silu`].
pub(super) fn silu_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    unary(cx, silu)
}

/// See [`gelu`].
pub(super) fn gelu_eval(cx: &EvalCx<'_>) -> Result<Vec<Tensor>, String> {
    unary(cx, gelu)
}
