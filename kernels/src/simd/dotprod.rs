//! int8 dot products of ARMv8.2 (Cortex-A76): each lane sums four products of an output; the four inputs of a row are one
//! lane of a vector of 16, so that a tile reads a row's inputs once per 16.

// Loops over registers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::{Neon, Simd, Token};
use crate::gemm::{Tile, prefetch_ahead};
use crate::quant::record::{self, BLOCK};
use crate::quant::{Dots, group_bytes};
use core::arch::aarch64::*;

/// Proof of NEON with dot products.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod(pub(super) Neon);

impl Token for Dotprod {
    #[inline(always)]
    unsafe fn assume() -> Self {
        // SAFETY: the caller's promise includes NEON's.
        Self(unsafe { Neon::assume() })
    }
}

/// Inputs of one output that lie together.
const KR: usize = 4;
/// Inputs of a vector.
const INPUTS: usize = 16;

impl Dotprod {
    /// `sums + Σ w·x` of four products per lane (`vdotq_s32`, whose intrinsic is not stable).
    #[inline(always)]
    pub(super) fn dot(self, sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        let mut sums = sums;
        // SAFETY: register arithmetic; the token proves the instruction.
        unsafe {
            core::arch::asm!(
                "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
                sums = inout(vreg) sums,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }

    /// `dot` with lane `lane` of x (`vdotq_laneq_s32`).
    #[inline(always)]
    fn dot_lane(self, sums: int32x4_t, w: int8x16_t, x: int8x16_t, lane: usize) -> int32x4_t {
        /// The instruction, whose lane is part of its encoding.
        macro_rules! sdot {
            ($lane:literal) => {{
                let mut sums = sums;
                // SAFETY: register arithmetic; the token proves the instruction.
                unsafe {
                    core::arch::asm!(
                        concat!("sdot {sums:v}.4s, {w:v}.16b, {x:v}.4b[", $lane, "]"),
                        sums = inout(vreg) sums,
                        w = in(vreg) w,
                        x = in(vreg) x,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
                sums
            }};
        }
        match lane {
            0 => sdot!(0),
            1 => sdot!(1),
            2 => sdot!(2),
            _ => sdot!(3),
        }
    }

    /// Four inputs in all lanes.
    ///
    /// # Safety
    /// `p..p+4` is readable.
    #[inline(always)]
    unsafe fn four(self, p: *const u8) -> int8x16_t {
        // SAFETY: the caller's promise; the token proves NEON.
        unsafe { vreinterpretq_s8_s32(vdupq_n_s32(p.cast::<i32>().read_unaligned())) }
    }

    /// Sums of `R` rows and an int8 panel of `NV` vectors; `SUMS` (1 or 4) independent ones, which the caller adds.
    ///
    /// # Safety
    /// As [`Dots::tile_i8`].
    #[inline(always)]
    unsafe fn sums_i8<const R: usize, const NV: usize, const SUMS: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
    ) -> [[[int32x4_t; NV]; R]; SUMS] {
        let steps = k.div_ceil(KR);
        // SAFETY: records have inputs up to a multiple of 64, the panel up to one of KR.
        unsafe {
            let mut sums = [[[vdupq_n_s32(0); NV]; R]; SUMS];
            let mut at = panel;
            let mut step = 0;
            while step + INPUTS / KR <= steps {
                prefetch_ahead(self.0, at, 4 * NV * 16);
                let mut x = [vdupq_n_s8(0); R];
                for i in 0..R {
                    x[i] = self.0.codes(rows[i].add(step * KR));
                }
                for lane in 0..4 {
                    for v in 0..NV {
                        let w = self.0.codes(at.add((lane * NV + v) * 16));
                        for i in 0..R {
                            let sum = &mut sums[lane % SUMS][i][v];
                            *sum = self.dot_lane(*sum, w, x[i], lane);
                        }
                    }
                }
                at = at.add(4 * NV * 16);
                step += INPUTS / KR;
            }
            while step < steps {
                for v in 0..NV {
                    let w = self.0.codes(at.add(v * 16));
                    for i in 0..R {
                        sums[0][i][v] = self.dot(sums[0][i][v], w, self.four(rows[i].add(step * KR)));
                    }
                }
                at = at.add(NV * 16);
                step += 1;
            }
            sums
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
        let s = self.0;
        let nr = NV * 4;
        let whole = group_bytes(group, nr, KR);
        let mut t = [[s.zero(); V]; R];
        let mut at = panel;
        let mut begin = 0;
        // SAFETY: groups follow each other, each with its scales and its codes, up to a multiple of 2·KR inputs; records have
        // inputs up to a multiple of 64, and an offset for each block.
        unsafe {
            while begin < k {
                let len = group.min(k - begin);
                let mut sums = [[vdupq_n_s32(0); V]; R];
                let mut done = 0;
                while done < len {
                    let from = begin + done;
                    let codes = at.add(2 * nr + done / 2 * nr + first * 4 * KR);
                    for i in 0..R {
                        let offset = vld1q_dup_s32(record::blocks(rows[i], k).add(from / BLOCK));
                        for v in 0..V {
                            sums[i][v] = if done == 0 { offset } else { vaddq_s32(sums[i][v], offset) };
                        }
                    }
                    if len - done >= BLOCK {
                        for half in 0..BLOCK / INPUTS {
                            let codes = codes.add(half * 2 * nr * KR);
                            prefetch_ahead(s, codes, 2 * V * 4 * KR);
                            let mut x = [vdupq_n_s8(0); R];
                            for i in 0..R {
                                x[i] = s.codes(rows[i].add(from + half * INPUTS));
                            }
                            for step in 0..2 {
                                for v in 0..V {
                                    let (low, high) = s.halves(codes.add((step * nr + v * 4) * KR));
                                    for i in 0..R {
                                        sums[i][v] = self.dot_lane(sums[i][v], low, x[i], 2 * step);
                                    }
                                    for i in 0..R {
                                        sums[i][v] = self.dot_lane(sums[i][v], high, x[i], 2 * step + 1);
                                    }
                                }
                            }
                        }
                    } else {
                        for step in 0..(len - done).div_ceil(2 * KR) {
                            for v in 0..V {
                                let (low, high) = s.halves(codes.add((step * nr + v * 4) * KR));
                                for i in 0..R {
                                    let x = rows[i].add(from + step * 2 * KR);
                                    let sum = self.dot(sums[i][v], low, self.four(x));
                                    sums[i][v] = self.dot(sum, high, self.four(x.add(KR)));
                                }
                            }
                        }
                    }
                    done += BLOCK;
                }
                for v in 0..V {
                    let scale = s.load_f16(at.cast::<u16>().add((first + v) * 4));
                    for i in 0..R {
                        t[i][v] = s.fused(vcvtq_f32_s32(sums[i][v]), scale, t[i][v]);
                    }
                }
                at = at.add(whole);
                begin += len;
            }
        }
        t
    }
}

/// Sums times the scales that follow an int8 panel's codes.
///
/// # Safety
/// There are `4 · NV` scales.
#[inline(always)]
pub(super) unsafe fn scale_i8<const R: usize, const NV: usize>(
    s: Neon,
    sums: &[[int32x4_t; NV]; R],
    scales: *const f32,
) -> Tile<Neon, R, NV> {
    let mut y = [[s.zero(); NV]; R];
    for v in 0..NV {
        // SAFETY: v < NV; the token proves NEON.
        unsafe {
            let scale = s.load(scales.add(v * 4));
            for i in 0..R {
                y[i][v] = s.mul(vcvtq_f32_s32(sums[i][v]), scale);
            }
        }
    }
    y
}

impl Dots for Dotprod {
    type Float = Neon;
    const KR: usize = KR;

    #[inline(always)]
    fn float(self) -> Neon {
        self.0
    }

    #[inline(always)]
    unsafe fn tile_i8<const R: usize, const NV: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
    ) -> Tile<Neon, R, NV> {
        // SAFETY: the caller's promise; the scales follow the codes.
        unsafe {
            let [sums] = self.sums_i8::<R, NV, 1>(rows, panel, k);
            scale_i8(self.0, &sums, panel.add(k.next_multiple_of(KR) * NV * 4).cast())
        }
    }

    #[inline(always)]
    unsafe fn row_i8<const NV: usize>(self, row: *const u8, panel: *const u8, k: usize) -> Tile<Neon, 1, NV> {
        // SAFETY: the caller's promise; the scales follow the codes; the token proves NEON.
        unsafe {
            let [[a], [b], [c], [d]] = self.sums_i8::<1, NV, 4>(&[row], panel, k);
            let mut sums = a;
            for v in 0..NV {
                sums[v] = vaddq_s32(vaddq_s32(a[v], b[v]), vaddq_s32(c[v], d[v]));
            }
            scale_i8(self.0, &[sums], panel.add(k.next_multiple_of(KR) * NV * 4).cast())
        }
    }

    #[inline(always)]
    unsafe fn tile_i4<const R: usize, const NV: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<Neon, R, NV> {
        let mut tile = [[self.0.zero(); NV]; R];
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
    ) -> Tile<Neon, 1, NV> {
        // SAFETY: the caller's promise.
        unsafe { self.vectors_i4::<1, NV, NV>(&[row], panel, 0, k, group) }
    }

    #[inline(always)]
    fn multiply_adds(self, iterations: u64) -> u64 {
        const SUMS: usize = 16;
        // SAFETY: register arithmetic; the token proves NEON.
        unsafe {
            let mut sums = [vdupq_n_s32(0); SUMS];
            let (w, x) = (vdupq_n_s8(1), vdupq_n_s8(2));
            for _ in 0..iterations {
                for sum in &mut sums {
                    *sum = self.dot(*sum, w, x);
                }
            }
            let sum = sums.into_iter().fold(
                vdupq_n_s32(0),
                #[inline(always)]
                |a, b| vaddq_s32(a, b),
            );
            core::hint::black_box(vaddvq_s32(sum));
        }
        iterations * (SUMS * 16) as u64
    }
}
