//! Products of a quantized activation row with a quantized weight row.

use half::f16;

use super::QuantizedRow;

/// `(f32(acc) · s_w) · s_x`, acc = Σ qx_i · qw_i exact in i32 (at most [`MAX_QUANTIZED_COLS`] inputs).
///
/// [`MAX_QUANTIZED_COLS`]: crate::ir::limits::MAX_QUANTIZED_COLS
pub fn int8_dot(x: &QuantizedRow, codes: &[i8], scale: f32) -> f32 {
    (dot(&x.codes, codes) as f32 * scale) * x.scale
}

/// `t · s_x` with t = 0 and, group after group, t = fma(f32(acc_g), f32(s_g), t), acc_g = Σ qx_i · qw_i over the group,
/// exact in i32. `scales` has one element for each `group` consecutive inputs, the last group may be short.
pub fn int4_dot(x: &QuantizedRow, codes: &[i8], scales: &[f16], group: usize) -> f32 {
    let groups = x.codes.chunks(group).zip(codes.chunks(group));
    let t = groups.zip(scales).fold(0f32, |t, ((x, w), s)| (dot(x, w) as f32).mul_add(s.to_f32(), t));
    t * x.scale
}

fn dot(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}
