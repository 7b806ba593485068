//! Ops that work element by element.

use lapidary_compiler::ops::EvalCx;

use super::{Results, each_row, matrix, numbers};

fn unary(cx: &EvalCx<'_>, f: impl Fn(f32) -> f32) -> Results {
    each_row(cx, |row| row.iter_mut().for_each(|x| *x = f(*x)))
}

fn binary(cx: &EvalCx<'_>, f: fn(f32, f32) -> f32) -> Results {
    let (a, b) = (cx.value(0), cx.value(1));
    let y = a.f32s().iter().zip(b.f32s()).map(|(a, b)| f(*a, *b)).collect();
    Ok(matrix(a.rows(), a.cols(), y))
}

/// `v.add`.
pub(super) fn add(cx: &EvalCx<'_>) -> Results {
    binary(cx, |a, b| a + b)
}

/// `v.mul`.
pub(super) fn mul(cx: &EvalCx<'_>) -> Results {
    binary(cx, |a, b| a * b)
}

/// `v.affine` without a sum.
pub(super) fn scale(cx: &EvalCx<'_>) -> Results {
    let factor = cx.float("factor");
    unary(cx, |x| x * factor)
}

/// `v.silu`.
pub(super) fn silu(cx: &EvalCx<'_>) -> Results {
    unary(cx, numbers::silu)
}

/// `v.gelu`.
pub(super) fn gelu(cx: &EvalCx<'_>) -> Results {
    unary(cx, numbers::gelu)
}
