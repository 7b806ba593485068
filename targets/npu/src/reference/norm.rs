//! Norms, softmax and means.

use lapidary_compiler::ops::EvalCx;

use super::numbers::{self, dot};
use super::{Results, each_row, matrix};

/// `v.rms_norm`: r = 1 / √(q / n + eps) of a row's sum of squares q, then `(x·r)·w`; w left out: `x·r`.
pub(super) fn rms_norm(cx: &EvalCx<'_>) -> Results {
    let (w, eps) = (cx.optional_weight(1)?, cx.float("eps"));
    each_row(cx, |row| {
        let r = 1.0 / (dot(row, row) / row.len() as f32 + eps).sqrt();
        row.iter_mut().for_each(|x| *x *= r);
        if let Some(w) = &w {
            row.iter_mut().zip(w.iter()).for_each(|(x, w)| *x *= w);
        }
    })
}

/// `v.softmax` without a scale.
pub(super) fn softmax(cx: &EvalCx<'_>) -> Results {
    each_row(cx, numbers::softmax)
}

/// n = √ of `v.row_sum_squares`, then `x / max(n, 1e-12)`.
pub(super) fn l2_normalize(cx: &EvalCx<'_>) -> Results {
    each_row(cx, |row| {
        let n = numbers::max(dot(row, row).sqrt(), 1e-12);
        row.iter_mut().for_each(|x| *x /= n);
    })
}

/// `v.column_sum`, each sum divided by the number of rows.
pub(super) fn mean_rows(cx: &EvalCx<'_>) -> Results {
    let x = cx.value(0);
    let mut t = vec![0.0f32; x.cols()];
    for row in x.f32s().chunks_exact(x.cols()) {
        t.iter_mut().zip(row).for_each(|(t, x)| *t += x);
    }
    let rows = x.rows() as f32;
    t.iter_mut().for_each(|t| *t /= rows);
    Ok(matrix(1, x.cols(), t))
}
