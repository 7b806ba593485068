//! AVX2 with FMA and F16C: 8 lanes, 16 registers.

use super::{Simd, Token, by_token};
use core::arch::x86_64::*;

/// Proof of AVX, AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

/// `MASKS[8 − n..]` selects the first n lanes.
static MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

impl Avx2 {
    /// Mask of the first `n ≤ 8` lanes.
    #[inline(always)]
    fn first(self, n: usize) -> __m256i {
        debug_assert!(n <= 8);
        // SAFETY: n ≤ 8, so the 8 loaded values lie within the 16; the token proves AVX.
        unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(8 - n).cast()) }
    }

    /// 2ⁿ for integral n in −126..=127.
    #[inline(always)]
    fn power_of_two(self, n: __m256) -> __m256 {
        // SAFETY: register arithmetic; the token proves AVX2.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
}

impl Token for Avx2 {
    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    const LANE_FMA: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_set1_ps(x) }
    }

    by_token! { __m256:
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        sqrt(a) = _mm256_sqrt_ps(a);
        max(a, b) = _mm256_max_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        fma(a, b, c) = _mm256_fmadd_ps(a, b, c);
    }

    #[inline(always)]
    fn fma_lane<const L: i32>(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: register arithmetic; the token proves AVX2.
        let lane = unsafe { _mm256_permutevar8x32_ps(a, _mm256_set1_epi32(L)) };
        self.fma(lane, b, c)
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, x: __m256, n: __m256) -> __m256 {
        // SAFETY: register arithmetic; the token proves AVX.
        let half = unsafe { _mm256_floor_ps(_mm256_mul_ps(n, _mm256_set1_ps(0.5))) };
        let low = self.power_of_two(half);
        let high = self.power_of_two(self.sub(n, half));
        self.mul(self.mul(x, low), high)
    }

    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        // SAFETY: register arithmetic; the token proves AVX.
        unsafe {
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn max_lane(self, v: __m256) -> f32 {
        // SAFETY: register arithmetic; the token proves AVX.
        unsafe {
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }

    #[inline(always)]
    fn sum4(self, v: [__m256; 4]) -> [f32; 4] {
        // SAFETY: register arithmetic; the token proves AVX; the array holds four f32.
        unsafe {
            let low = _mm256_hadd_ps(v[0], v[1]);
            let high = _mm256_hadd_ps(v[2], v[3]);
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
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: the caller promises 8 readable elements; the token proves AVX.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> __m256 {
        // SAFETY: lanes that the mask leaves out are not read; the caller promises the others.
        unsafe { _mm256_maskload_ps(p, self.first(n)) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m256 {
        // SAFETY: the caller promises 8 readable elements; the token proves F16C.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m256 {
        // SAFETY: the caller promises 8 readable elements; the token proves AVX2.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m256) {
        // SAFETY: the caller promises 8 writable elements; the token proves AVX.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: __m256) {
        // SAFETY: the caller promises 8 writable elements; the token proves F16C.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: __m256) {
        // SAFETY: the caller promises 8 writable elements; the token proves AVX2.
        unsafe {
            let v = _mm256_cvtps_epi32(v);
            let v = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(v, v));
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: __m256, n: usize) {
        // SAFETY: lanes that the mask leaves out are not written; the caller promises the others.
        unsafe { _mm256_maskstore_ps(p, self.first(n), v) }
    }
}
