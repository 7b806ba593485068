//! Domain modules.

use lapidary_compiler::interp::Tensor;
use lapidary_compiler::ops::EvalCx;

use super::product::{Row, silu_mul};
use super::{Results, matrix, numbers};

/// For each module, for each token of its group: `y[token] = fma(gate, down(silu(gate·x) · up·x), y[token])`, y being the
/// residual, or 0, before the first. A token's row is quantized once for all modules, each hidden row on its own.
pub(super) fn ffn(cx: &EvalCx<'_>) -> Results {
    let (x, offsets, tokens, gates) = (cx.value(0), cx.value(1).u32s(), cx.value(2).u32s(), cx.value(3).f32s());
    let d = x.cols();
    let rows: Vec<Row<'_>> = x.f32s().chunks_exact(d).map(Row::new).collect();
    let mut y = cx.optional(4).map_or_else(|| vec![0.0; x.elems()], |residual: &Tensor| residual.f32s().to_vec());
    for c in 0..cx.num_modules() {
        let group = offsets[c] as usize..offsets[c + 1] as usize;
        if group.is_empty() {
            continue;
        }
        let [gate, up, down] = [0, 1, 2].map(|which| cx.matrix(cx.module_operand(which, c)));
        let (gate, up, down) = (gate?, up?, down?);
        for i in group {
            let token = tokens[i] as usize;
            let hidden = silu_mul(&rows[token].times(&gate), &rows[token].times(&up));
            let result = Row::new(&hidden).times(&down);
            let y = &mut y[token * d..(token + 1) * d];
            y.iter_mut().zip(result).for_each(|(y, r)| *y = numbers::fma(gates[i], r, *y));
        }
    }
    Ok(matrix(x.rows(), d, y))
}
