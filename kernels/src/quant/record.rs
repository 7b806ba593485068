//! Quantized rows of activations.
//!
//! A record of [`quantized_row_bytes`]: the codes, `i8[k]` and zeros up to a multiple of 64; then f32 scale; i32
//! −128·Σ q; i32 −8·Σ q over each 32 consecutive inputs; zeros up to a multiple of 64. Kernels whose products have an
//! unsigned factor keep weights as code + 128 (int8) or code + 8 (int4) and begin their sums with these numbers.

use crate::args::QuantizeRowsArgs;
use crate::gemm::row;
use crate::math::largest_size;
use crate::simd::Simd;

/// Records and their parts begin at multiples of this.
const ALIGN: usize = 64;

/// Inputs that have a sum of their own.
pub(crate) const BLOCK: usize = 32;

/// Bytes of the record of a quantized row of `k` inputs: a multiple of 64.
///
/// ```
/// assert_eq!(lapidary_kernels::quantized_row_bytes(768), 768 + 128);
/// ```
pub const fn quantized_row_bytes(k: usize) -> usize {
    k.next_multiple_of(ALIGN) + (4 * (2 + k.div_ceil(BLOCK))).next_multiple_of(ALIGN)
}

/// Where a record keeps its scale.
#[inline(always)]
pub(crate) fn scale(record: *const u8, k: usize) -> *const f32 {
    record.wrapping_add(k.next_multiple_of(ALIGN)).cast()
}

/// Where a record keeps −128·Σ q.
#[inline(always)]
pub(crate) fn offset(record: *const u8, k: usize) -> *const i32 {
    scale(record, k).wrapping_add(1).cast()
}

/// Bytes from a record's beginning to its −8·Σ q of each block.
#[inline(always)]
pub(crate) fn blocks_at(k: usize) -> usize {
    k.next_multiple_of(ALIGN) + 2 * size_of::<i32>()
}

/// Where a record keeps −8·Σ q of each block. Lanes reach it by [`blocks_at`].
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn blocks(record: *const u8, k: usize) -> *const i32 {
    scale(record, k).wrapping_add(2).cast()
}

/// Factors of a row with that largest size: of its values to codes, and of its codes to values.
#[inline(always)]
pub(crate) fn factors(amax: f32) -> (f32, f32) {
    /// 2⁻¹⁰⁰: below, 127 / amax is near infinity.
    const SMALLEST: f32 = f32::from_bits((127 - 100) << 23);
    if amax < SMALLEST { (0.0, 0.0) } else { (127.0 / amax, amax / 127.0) }
}

/// Codes of values, as floats: rounded to nearest even, within ±127.
#[inline(always)]
pub(crate) fn codes<S: Simd>(s: S, x: S::V, inverse: S::V) -> S::V {
    /// Adding and subtracting it rounds |x| < 2²² to an integer.
    const ROUND: f32 = 12_582_912.0;
    let round = s.splat(ROUND);
    let q = s.sub(s.add(s.mul(x, inverse), round), round);
    s.max(s.splat(-127.0), s.min(s.splat(127.0), q))
}

/// Quantizes rows.
///
/// # Safety
/// `args` is valid as [`QuantizeRowsArgs`] says.
#[inline(always)]
pub(crate) unsafe fn quantize_rows<S: Simd>(s: S, args: &QuantizeRowsArgs) {
    let k = args.k as usize;
    for i in 0..args.rows as usize {
        // SAFETY: row i has k elements, its record `quantized_row_bytes(k)`. Codes are stored by whole vectors, which end
        // at or before the next multiple of 64.
        unsafe {
            let x = args.x.add(row(args.x_rows, i) * args.ldx as usize);
            let record = args.y.add(i * args.ldy_bytes as usize);
            let numbers = scale(record, k).cast_mut();
            let sums = numbers.add(2).cast::<i32>();
            numbers.cast::<u8>().write_bytes(0, quantized_row_bytes(k) - k.next_multiple_of(ALIGN));
            let (inverse, factor) = factors(largest_size(s, x, k));
            let inverse = s.splat(inverse);
            let mut total = 0;
            let mut begin = 0;
            while begin < k {
                let end = k.min(begin + BLOCK);
                let mut sum = s.zero();
                let mut at = begin;
                while at < end {
                    let q = codes(s, s.load_up_to(x.add(at), end - at), inverse);
                    s.store_i8(record.add(at).cast(), q);
                    sum = s.add(sum, q);
                    at += S::LANES;
                }
                // At most 32·127 in size: exact in f32.
                let sum = s.sum(sum) as i32;
                sums.add(begin / BLOCK).write(-8 * sum);
                total += sum;
                begin = end;
            }
            let stored = k.next_multiple_of(S::LANES);
            record.add(stored).write_bytes(0, k.next_multiple_of(ALIGN) - stored);
            numbers.write(factor);
            numbers.add(1).cast::<i32>().write((-128i32).wrapping_mul(total));
        }
    }
}
