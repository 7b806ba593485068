//! How the KV cache stores keys and values: as f32, as binary16, or as records of int8 codes with a scale.

use crate::simd::{Codes, F16, F32, Weights};

/// Where a record of `head_dim` codes keeps its scale: after the codes, at a multiple of 4.
pub(crate) const fn scale_at(head_dim: usize) -> usize {
    head_dim.next_multiple_of(size_of::<f32>())
}

/// Bytes of the record of one token and key/value head in an int8 cache: `i8[head_dim]`, zeros up to a multiple of 4, f32
/// scale.
///
/// ```
/// assert_eq!(lapidary_kernels::kv_row_bytes(64), 68);
/// assert_eq!(lapidary_kernels::kv_row_bytes(33), 40);
/// ```
pub const fn kv_row_bytes(head_dim: usize) -> usize {
    scale_at(head_dim) + size_of::<f32>()
}

/// A way to store rows of keys and values.
pub(crate) trait Cache: Weights {
    /// Whether rows have a scale of their own.
    const SCALED: bool;

    /// Factor of a row's elements.
    ///
    /// # Safety
    /// `row` has `head_dim` elements, and a scale if `SCALED`.
    unsafe fn scale(row: *const Self::Elem, head_dim: usize) -> f32;
}

impl Cache for F32 {
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn scale(_row: *const f32, _head_dim: usize) -> f32 {
        1.0
    }
}

impl Cache for F16 {
    const SCALED: bool = false;

    #[inline(always)]
    unsafe fn scale(_row: *const u16, _head_dim: usize) -> f32 {
        1.0
    }
}

impl Cache for Codes {
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn scale(row: *const i8, head_dim: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { row.add(scale_at(head_dim)).cast::<f32>().read_unaligned() }
    }
}
