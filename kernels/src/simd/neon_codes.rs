//! Products of codes on NEON without dot products (Cortex-A72).
//!
//! 16 consecutive inputs of one output lie together, and are multiplied by the same 16 inputs of a row: `smull` and
//! `smlal2` give eight sums of two products in i16 (at most 2·127·127), `sadalp` adds their pairs to four sums in i32. Codes of
//! int4 (0..=15) are small enough for sums of four in i16, and for adding neighbours there before they are widened.

// Loops over registers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::{Neon, Simd};
use crate::gemm::{Tile, prefetch_ahead};
use crate::quant::record::{self, BLOCK};
use crate::quant::{Dots, group_bytes};
use core::arch::aarch64::*;

/// Inputs of one output that lie together.
const KR: usize = 16;

impl Neon {
    /// Sums of the lanes of four vectors, one lane each.
    #[inline(always)]
    fn sums4(self, v: [int32x4_t; 4]) -> int32x4_t {
        // SAFETY: register arithmetic; the token proves NEON.
        unsafe { vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3])) }
    }

    /// `sums + Σ w·x` in four parts.
    #[inline(always)]
    fn dot(self, sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: register arithmetic; the token proves NEON.
        unsafe { vpadalq_s16(sums, vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x)) }
    }

    /// Products of 32 codes of one output, in eight parts of four.
    #[inline(always)]
    fn dot_halves(self, low: int8x16_t, high: int8x16_t, x: [int8x16_t; 2]) -> int16x8_t {
        // SAFETY: register arithmetic; the token proves NEON.
        unsafe {
            let sums = vmlal_high_s8(vmull_s8(vget_low_s8(low), vget_low_s8(x[0])), low, x[0]);
            vmlal_high_s8(vmlal_s8(sums, vget_low_s8(high), vget_low_s8(x[1])), high, x[1])
        }
    }

    /// # Safety
    /// `p..p+16` is readable.
    #[inline(always)]
    pub(super) unsafe fn codes(self, p: *const u8) -> int8x16_t {
        // SAFETY: the caller's promise; the token proves NEON.
        unsafe { vld1q_s8(p.cast()) }
    }

    /// Low and high halves of 16 bytes.
    ///
    /// # Safety
    /// `p..p+16` is readable.
    #[inline(always)]
    pub(super) unsafe fn halves(self, p: *const u8) -> (int8x16_t, int8x16_t) {
        // SAFETY: the caller's promise; the token proves NEON.
        unsafe {
            let w = vld1q_u8(p);
            (vreinterpretq_s8_u8(vandq_u8(w, vdupq_n_u8(0x0f))), vreinterpretq_s8_u8(vshrq_n_u8::<4>(w)))
        }
    }

    /// `V` vectors of results from `first` on, of an int8 panel of `NV`.
    ///
    /// # Safety
    /// As [`Dots::tile_i8`].
    #[inline(always)]
    unsafe fn vectors_i8<const R: usize, const NV: usize, const V: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        first: usize,
        k: usize,
    ) -> [[float32x4_t; V]; R] {
        let nr = NV * 4;
        let steps = k.div_ceil(KR);
        // SAFETY: records have inputs up to a multiple of 64, the panel up to one of KR; then come its scales.
        unsafe {
            let mut sums = [[[vdupq_n_s32(0); 4]; V]; R];
            for step in 0..steps {
                let at = panel.add((step * nr + first * 4) * KR);
                prefetch_ahead(self, at, V * 4 * KR);
                let mut x = [self.codes(rows[0].add(step * KR)); R];
                for i in 1..R {
                    x[i] = self.codes(rows[i].add(step * KR));
                }
                for v in 0..V {
                    for j in 0..4 {
                        let w = self.codes(at.add((v * 4 + j) * KR));
                        for i in 0..R {
                            sums[i][v][j] = self.dot(sums[i][v][j], w, x[i]);
                        }
                    }
                }
            }
            let scales = panel.add(steps * nr * KR).cast::<f32>().add(first * 4);
            let mut y = [[self.zero(); V]; R];
            for v in 0..V {
                let scale = self.load(scales.add(v * 4));
                for i in 0..R {
                    y[i][v] = self.mul(vcvtq_f32_s32(self.sums4(sums[i][v])), scale);
                }
            }
            y
        }
    }

    /// `V` vectors of results from `first` on, of an int4 panel of `NV`.
    ///
    /// # Safety
    /// As [`Dots::tile_i4`].
    #[inline(always)]
    unsafe fn vectors_i4<const R: usize, const NV: usize, const V: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        first: usize,
        k: usize,
        group: usize,
    ) -> [[float32x4_t; V]; R] {
        let nr = NV * 4;
        let whole = group_bytes(group, nr, KR);
        let mut t = [[self.zero(); V]; R];
        let mut at = panel;
        let mut begin = 0;
        // SAFETY: groups follow each other, each with its scales and its codes, which are whole blocks; records have inputs
        // up to a multiple of 64, and an offset for each block.
        unsafe {
            while begin < k {
                let len = group.min(k - begin);
                let mut sums = [[vdupq_n_s32(0); V]; R];
                for block in 0..len.div_ceil(BLOCK) {
                    let from = begin + block * BLOCK;
                    let codes = at.add(2 * nr + (block * nr + first * 4) * KR);
                    prefetch_ahead(self, codes, V * 4 * KR);
                    let mut x = [[vdupq_n_s8(0); 2]; R];
                    for i in 0..R {
                        x[i] = [self.codes(rows[i].add(from)), self.codes(rows[i].add(from + KR))];
                    }
                    for v in 0..V {
                        let mut pairs = [[vdupq_n_s16(0); 2]; R];
                        for pair in 0..2 {
                            let codes = codes.add((v * 4 + pair * 2) * KR);
                            let (low, high) = self.halves(codes);
                            let mut even = [vdupq_n_s16(0); R];
                            for i in 0..R {
                                even[i] = self.dot_halves(low, high, x[i]);
                            }
                            let (low, high) = self.halves(codes.add(KR));
                            for i in 0..R {
                                pairs[i][pair] = vpaddq_s16(even[i], self.dot_halves(low, high, x[i]));
                            }
                        }
                        for i in 0..R {
                            let offset = vld1q_dup_s32(record::blocks(rows[i], k).add(from / BLOCK));
                            let offset = if block == 0 { offset } else { vaddq_s32(sums[i][v], offset) };
                            sums[i][v] = vpadalq_s16(offset, vpaddq_s16(pairs[i][0], pairs[i][1]));
                        }
                    }
                }
                for v in 0..V {
                    let scale = self.load_f16(at.cast::<u16>().add((first + v) * 4));
                    for i in 0..R {
                        t[i][v] = self.fused(vcvtq_f32_s32(sums[i][v]), scale, t[i][v]);
                    }
                }
                at = at.add(whole);
                begin += len;
            }
        }
        t
    }
}

impl Dots for Neon {
    type Float = Self;
    const KR: usize = KR;

    #[inline(always)]
    fn float(self) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn tile_i8<const R: usize, const NV: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
    ) -> Tile<Self, R, NV> {
        let mut tile = [[self.zero(); NV]; R];
        for v in 0..NV {
            // SAFETY: the caller's promise, and v < NV.
            let part = unsafe { self.vectors_i8::<R, NV, 1>(rows, panel, v, k) };
            for i in 0..R {
                tile[i][v] = part[i][0];
            }
        }
        tile
    }

    #[inline(always)]
    unsafe fn row_i8<const NV: usize>(self, row: *const u8, panel: *const u8, k: usize) -> Tile<Self, 1, NV> {
        // SAFETY: the caller's promise.
        unsafe { self.vectors_i8::<1, NV, NV>(&[row], panel, 0, k) }
    }

    #[inline(always)]
    unsafe fn tile_i4<const R: usize, const NV: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<Self, R, NV> {
        let mut tile = [[self.zero(); NV]; R];
        for v in 0..NV {
            // SAFETY: the caller's promise, and v < NV.
            let part = unsafe { self.vectors_i4::<R, NV, 1>(rows, panel, v, k, group) };
            for i in 0..R {
                tile[i][v] = part[i][0];
            }
        }
        tile
    }

    #[inline(always)]
    unsafe fn row_i4<const NV: usize>(
        self,
        row: *const u8,
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<Self, 1, NV> {
        // SAFETY: the caller's promise.
        unsafe { self.vectors_i4::<1, NV, NV>(&[row], panel, 0, k, group) }
    }

    #[inline(always)]
    fn multiply_adds(self, iterations: u64) -> u64 {
        const SUMS: usize = 16;
        // SAFETY: register arithmetic; the token proves NEON.
        unsafe {
            let mut sums = [vdupq_n_s32(0); SUMS];
            let (w, mut x) = (vdupq_n_s8(1), vdupq_n_s8(2));
            for _ in 0..iterations {
                for sum in &mut sums {
                    // Not known to be the same as before, or the products would be taken once.
                    core::arch::asm!("/* {0:v} */", inout(vreg) x, options(pure, nomem, nostack, preserves_flags));
                    *sum = self.dot(*sum, w, x);
                }
            }
            let sum = sums.into_iter().fold(vdupq_n_s32(0), |a, b| vaddq_s32(a, b));
            core::hint::black_box(vaddvq_s32(sum));
        }
        iterations * (SUMS * KR) as u64
    }
}
