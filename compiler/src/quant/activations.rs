//! Activation rows: dynamic, symmetric, one scale per row.

/// Rows whose largest magnitude is below this become zeros: the inverse of their scale would not be an f32.
pub const SMALLEST_AMAX: f32 = f32::from_bits((127 - 100) << 23);

/// Inputs that share a block sum in a row's record.
const BLOCK_ELEMS: usize = 32;

/// A row of activations as int8 codes.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedRow {
    /// `[k]`, each in −127..=127.
    pub codes: Vec<i8>,
    /// x_i ≈ codes_i · scale.
    pub scale: f32,
}

/// Rounds a row of finite floats: with amax = max |x_i|, scale = amax / 127, inv = 127 / amax and
/// q_i = clamp(round_half_to_even(x_i · inv), −127, 127). Where amax < [`SMALLEST_AMAX`], scale and codes are 0.
/// What a row with an infinity or a NaN gives is not specified.
pub fn quantize_row(x: &[f32]) -> QuantizedRow {
    let amax = x.iter().fold(0f32, |max, x| max.max(x.abs()));
    if amax < SMALLEST_AMAX {
        return QuantizedRow { codes: vec![0; x.len()], scale: 0.0 };
    }
    let inv = 127.0 / amax;
    let code = |x: &f32| (x * inv).round_ties_even().clamp(-127.0, 127.0) as i8;
    QuantizedRow { codes: x.iter().map(code).collect(), scale: amax / 127.0 }
}

/// Bytes of a quantized row of `k` inputs in working memory: the codes, padded to a multiple of 64; then the scale (f32)
/// and what kernels derive from the sum of all codes and from those of each 32 consecutive ones (i32 each), padded likewise.
/// Saturates.
pub const fn quantized_row_bytes(k: u64) -> u64 {
    let sums = k.div_ceil(BLOCK_ELEMS as u64).saturating_add(2).saturating_mul(4);
    align64(k).saturating_add(align64(sums))
}

const fn align64(n: u64) -> u64 {
    match n.checked_next_multiple_of(64) {
        Some(n) => n,
        None => u64::MAX,
    }
}
