//! Ops that choose, make or reduce rows and columns. What is only moved keeps its bits.

use lapidary_compiler::interp::Tensor;
use lapidary_compiler::ops::{EvalCx, mismatch};

use super::{Results, matrix};

/// Rows of the table as they are stored: floats widened, or f32(code)·f32(scale).
pub(super) fn embed(cx: &EvalCx<'_>) -> Results {
    let ids = cx.value(0).u32s();
    let (vocab, d) = cx.weight_shape(1);
    let mut y = vec![0.0; ids.len() * d];
    for (id, row) in ids.iter().zip(y.chunks_exact_mut(d)) {
        if *id as usize >= vocab {
            return Err(mismatch("ids", format!("less than {vocab}"), id));
        }
        cx.weight_row(1, *id as usize, row)?;
    }
    Ok(vec![Tensor::matrix(ids.len(), d, y)])
}

/// Columns `begin` to `end` − 1.
pub(super) fn slice(cx: &EvalCx<'_>) -> Results {
    let (x, begin, end) = (cx.value(0), cx.size("begin"), cx.size("end"));
    let y = x.f32s().chunks_exact(x.cols()).flat_map(|row| &row[begin..end]).copied().collect();
    Ok(vec![Tensor::matrix(x.rows(), end - begin, y)])
}

/// `v.fill`.
pub(super) fn fill(cx: &EvalCx<'_>) -> Results {
    let (rows, cols) = (cx.value(0).rows(), cx.size("cols"));
    Ok(vec![Tensor::matrix(rows, cols, vec![cx.float("value"); rows * cols])])
}

/// The last S rows.
pub(super) fn last_rows(cx: &EvalCx<'_>) -> Results {
    let (x, rows) = (cx.value(0), cx.output_rows());
    let y = x.f32s()[(x.rows() - rows) * x.cols()..].to_vec();
    Ok(vec![Tensor::matrix(rows, x.cols(), y)])
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
