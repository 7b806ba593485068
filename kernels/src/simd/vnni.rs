//! Sums of four int8 products per lane on x86-64: AVX2 by `vpmaddubsw`, AVX-VNNI and AVX-512 VNNI by `vpdpbusd`.
//!
//! Both multiply unsigned by signed. `vpdpbusd` is exact, so weights are stored plus 128 and sums begin with −128·Σ x.
//! `vpmaddubsw` adds two products in i16 and saturates: it gets |w| and x with w's sign, at most 2·127·127.

use super::{Avx2, Avx512, Token};
use crate::quant::lanes::{Lanes, dots_by_lanes};
use core::arch::x86_64::*;

/// Proof of AVX-VNNI and of what [`Avx2`] proves.
#[derive(Clone, Copy)]
pub(crate) struct AvxVnni(Avx2);

/// Proof of AVX-512 VNNI and of what [`Avx512`] proves.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni(Avx512);

impl Token for AvxVnni {
    #[inline(always)]
    unsafe fn assume() -> Self {
        // SAFETY: the caller's promise includes AVX2's.
        Self(unsafe { Avx2::assume() })
    }
}

impl Token for Avx512Vnni {
    #[inline(always)]
    unsafe fn assume() -> Self {
        // SAFETY: the caller's promise includes AVX-512's.
        Self(unsafe { Avx512::assume() })
    }
}

impl From<AvxVnni> for Avx2 {
    #[inline(always)]
    fn from(token: AvxVnni) -> Self {
        token.0
    }
}

impl From<Avx512Vnni> for Avx512 {
    #[inline(always)]
    fn from(token: Avx512Vnni) -> Self {
        token.0
    }
}

dots_by_lanes!(Avx2: Self, int4 vectors 1);
dots_by_lanes!(AvxVnni: Avx2, int4 vectors 1);
dots_by_lanes!(Avx512Vnni: Avx512, int4 vectors 2);

/// What all three have in common.
macro_rules! lanes {
    (
        zero = $zero:ident, add = $add:ident, to_float = $to_float:ident, splat = $splat:ident, load = $load:ident,
        splat8 = $splat8:ident, and = $and:ident, shift = $shift:ident
    ) => {
        #[inline(always)]
        fn zero(self) -> Self::I {
            // SAFETY: register arithmetic; the token proves the instruction set.
            unsafe { $zero() }
        }

        #[inline(always)]
        fn add(self, a: Self::I, b: Self::I) -> Self::I {
            // SAFETY: register arithmetic; the token proves the instruction set.
            unsafe { $add(a, b) }
        }

        #[inline(always)]
        fn to_float(self, sums: Self::I) -> <Self::Float as super::Simd>::V {
            // SAFETY: register arithmetic; the token proves the instruction set.
            unsafe { $to_float(sums) }
        }

        #[inline(always)]
        unsafe fn weights(self, p: *const u8) -> Self::W {
            // SAFETY: the caller promises a readable vector; the token proves the instruction set.
            unsafe { $load(p.cast()) }
        }

        #[inline(always)]
        unsafe fn inputs(self, p: *const u8) -> Self::W {
            // SAFETY: the caller promises 4 readable bytes; the token proves the instruction set.
            unsafe { $splat(p.cast::<i32>().read_unaligned()) }
        }

        #[inline(always)]
        fn halves(self, w: Self::W) -> (Self::W, Self::W) {
            // SAFETY: register arithmetic; the token proves the instruction set.
            unsafe {
                let low = $splat8(0x0f);
                ($and(w, low), $and($shift::<4>(w), low))
            }
        }
    };
}

/// What the two with `vpdpbusd` have in common.
macro_rules! vnni {
    ($splat:ident, $add:ident, $dot:ident) => {
        #[inline(always)]
        unsafe fn start(self, offset: *const i32) -> Self::I {
            // SAFETY: the caller promises a readable element; the token proves the instruction set.
            unsafe { $splat(offset.read()) }
        }

        #[inline(always)]
        fn dot(self, sums: Self::I, w: Self::W, x: Self::W) -> Self::I {
            // SAFETY: register arithmetic; the token proves the instruction set.
            unsafe { $dot(sums, w, x) }
        }

        /// One instruction takes the products and adds them: there is nothing to take once.
        #[inline(always)]
        fn unknown(self, x: Self::W) -> Self::W {
            x
        }

        #[inline(always)]
        unsafe fn begin(self, before: Option<Self::I>, offset: *const i32) -> Self::N {
            // SAFETY: the caller promises a readable element; the token proves the instruction set.
            unsafe {
                let offset = $splat(offset.read());
                match before {
                    Some(before) => $add(before, offset),
                    None => offset,
                }
            }
        }

        #[inline(always)]
        fn dot_half(self, sums: Self::N, w: Self::W, x: Self::W) -> Self::N {
            self.dot(sums, w, x)
        }

        #[inline(always)]
        unsafe fn end(self, _before: Option<Self::I>, _offset: *const i32, sums: Self::N) -> Self::I {
            sums
        }
    };
}

impl Lanes for Avx2 {
    type I = __m256i;
    type W = __m256i;
    /// Pairs in i16: 8 times 2·15·127 is 30 480.
    type N = __m256i;

    lanes! {
        zero = _mm256_setzero_si256, add = _mm256_add_epi32, to_float = _mm256_cvtepi32_ps,
        splat = _mm256_set1_epi32, load = _mm256_loadu_si256, splat8 = _mm256_set1_epi8,
        and = _mm256_and_si256, shift = _mm256_srli_epi16
    }

    #[inline(always)]
    unsafe fn start(self, _offset: *const i32) -> __m256i {
        self.zero()
    }

    #[inline(always)]
    fn dot(self, sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: register arithmetic; the token proves AVX2.
        unsafe {
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    fn unknown(self, x: __m256i) -> __m256i {
        core::hint::black_box(x)
    }

    #[inline(always)]
    unsafe fn begin(self, _before: Option<__m256i>, _offset: *const i32) -> __m256i {
        self.zero()
    }

    #[inline(always)]
    fn dot_half(self, sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: register arithmetic; the token proves AVX2.
        unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x)) }
    }

    #[inline(always)]
    unsafe fn end(self, before: Option<__m256i>, offset: *const i32, sums: __m256i) -> __m256i {
        // SAFETY: the caller promises a readable element; the token proves AVX2.
        unsafe {
            let sums = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
            let sums = _mm256_add_epi32(sums, _mm256_set1_epi32(offset.read()));
            match before {
                Some(before) => _mm256_add_epi32(before, sums),
                None => sums,
            }
        }
    }
}

impl Lanes for AvxVnni {
    type I = __m256i;
    type W = __m256i;
    type N = __m256i;

    lanes! {
        zero = _mm256_setzero_si256, add = _mm256_add_epi32, to_float = _mm256_cvtepi32_ps,
        splat = _mm256_set1_epi32, load = _mm256_loadu_si256, splat8 = _mm256_set1_epi8,
        and = _mm256_and_si256, shift = _mm256_srli_epi16
    }
    vnni!(_mm256_set1_epi32, _mm256_add_epi32, _mm256_dpbusd_avx_epi32);
}

impl Lanes for Avx512Vnni {
    type I = __m512i;
    type W = __m512i;
    type N = __m512i;

    lanes! {
        zero = _mm512_setzero_si512, add = _mm512_add_epi32, to_float = _mm512_cvtepi32_ps,
        splat = _mm512_set1_epi32, load = _mm512_loadu_si512, splat8 = _mm512_set1_epi8,
        and = _mm512_and_si512, shift = _mm512_srli_epi16
    }
    vnni!(_mm512_set1_epi32, _mm512_add_epi32, _mm512_dpbusd_epi32);
}
