//! Products with a weight matrix.

use std::cell::OnceCell;

use lapidary_compiler::interp::Tensor;
use lapidary_compiler::ops::{EvalCx, Matrix};
use lapidary_compiler::quant::{QuantizedRow, quantize_row};

use super::{Results, matrix, numbers};

/// A row of activations; its codes (`v.quantize`) are made when a product with integers first needs them.
pub(super) struct Row<'a> {
    x: &'a [f32],
    codes: OnceCell<QuantizedRow>,
}

impl<'a> Row<'a> {
    pub(super) fn new(x: &'a [f32]) -> Self {
        Self { x, codes: OnceCell::new() }
    }

    /// `x · wᵀ`: of floats one `v.dot_rows` per output, of codes the sums of passes, rescaled.
    pub(super) fn times(&self, w: &Matrix) -> Vec<f32> {
        match w {
            Matrix::Floats { cols, elems } => elems.chunks_exact(*cols).map(|w| numbers::dot(self.x, w)).collect(),
            Matrix::Codes(w) => {
                let x = self.codes.get_or_init(|| quantize_row(self.x));
                (0..w.codes.len() / w.cols).map(|row| w.dot(row, x)).collect()
            }
        }
    }
}

/// `v.silu_mul`, element by element.
pub(super) fn silu_mul(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter().zip(up).map(|(g, u)| numbers::silu(*g) * u).collect()
}

/// `act(x · wᵀ)`, then plus the residual.
pub(super) fn linear(cx: &EvalCx<'_>) -> Results {
    let act: fn(f32) -> f32 = match cx.word("act") {
        "none" => |x| x,
        "silu" => numbers::silu,
        "gelu" => numbers::gelu,
        other => return Err(format!("act: wanted none, silu or gelu, found {other}")),
    };
    let (x, w, n) = (cx.value(0), cx.matrix(1)?, cx.weight_shape(1).0);
    let mut y: Vec<f32> = x.f32s().chunks_exact(x.cols()).flat_map(|row| Row::new(row).times(&w)).map(act).collect();
    if let Some(residual) = cx.optional(2).map(Tensor::f32s) {
        y.iter_mut().zip(residual).for_each(|(y, r)| *y += r);
    }
    Ok(matrix(x.rows(), n, y))
}

/// `silu(x · gateᵀ) · (x · upᵀ)`.
pub(super) fn swiglu(cx: &EvalCx<'_>) -> Results {
    let (x, gate, up, f) = (cx.value(0), cx.matrix(1)?, cx.matrix(2)?, cx.weight_shape(1).0);
    let hidden = |row| {
        let row = Row::new(row);
        silu_mul(&row.times(&gate), &row.times(&up))
    };
    let y = x.f32s().chunks_exact(x.cols()).flat_map(hidden).collect();
    Ok(matrix(x.rows(), f, y))
}
