//! AVX-512 F, BW, DQ and VL: 16 lanes, 32 registers.

use super::{Simd, Token, by_token};
use core::arch::x86_64::*;

/// Proof of AVX-512 F, BW, DQ and VL, and of what [`super::Avx2`] proves.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Mask of the first `n ≤ 16` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    debug_assert!(n <= 16);
    ((1u32 << n) - 1) as __mmask16
}

impl Token for Avx512 {
    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    const LANE_FMA: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_set1_ps(x) }
    }

    by_token! { __m512:
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        sqrt(a) = _mm512_sqrt_ps(a);
        max(a, b) = _mm512_max_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        fma(a, b, c) = _mm512_fmadd_ps(a, b, c);
        scale_by_power_of_two(x, n) = _mm512_scalef_ps(x, n);
    }

    #[inline(always)]
    fn fma_lane<const L: i32>(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: register arithmetic; the token proves AVX-512F.
        let lane = unsafe { _mm512_permutexvar_ps(_mm512_set1_epi32(L), a) };
        self.fma(lane, b, c)
    }

    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: register arithmetic; the token proves AVX-512DQ and AVX.
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn max_lane(self, v: __m512) -> f32 {
        // SAFETY: register arithmetic; the token proves AVX-512DQ and AVX.
        unsafe {
            let v = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn sum4(self, v: [__m512; 4]) -> [f32; 4] {
        // SAFETY: register arithmetic; the token proves AVX-512DQ and AVX; the array holds four f32.
        unsafe {
            let halves = v.map(
                #[inline(always)]
                |v| _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)),
            );
            let low = _mm256_hadd_ps(halves[0], halves[1]);
            let high = _mm256_hadd_ps(halves[2], halves[3]);
            let all = _mm256_hadd_ps(low, high);
            let all = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), all);
            sums
        }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller promises 16 readable elements; the token proves AVX-512F.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: lanes that the mask leaves out are not read; the caller promises the others.
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        // SAFETY: the caller promises 16 readable elements; the token proves AVX-512F.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m512 {
        // SAFETY: the caller promises 16 readable elements; the token proves AVX-512F.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller promises 16 writable elements; the token proves AVX-512F.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: __m512) {
        // SAFETY: the caller promises 16 writable elements; the token proves AVX-512F.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: __m512) {
        // SAFETY: the caller promises 16 writable elements; the token proves AVX-512F.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v))) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: __m512, n: usize) {
        // SAFETY: lanes that the mask leaves out are not written; the caller promises the others.
        unsafe { _mm512_mask_storeu_ps(p, first(n), v) }
    }
}
