//! int8 matrix products of ARMv8.6: `smmla` multiplies two rows of eight inputs by two outputs of eight inputs.

// Loops over registers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::dotprod::scale_i8;
use super::{Dotprod, Neon, Simd, Token};
use crate::gemm::{Tile, prefetch_ahead};
use crate::quant::record::{self, BLOCK};
use crate::quant::{Dots, group_bytes};
use core::arch::aarch64::*;

/// Proof of NEON with dot and matrix products.
#[derive(Clone, Copy)]
pub(crate) struct I8mm(Dotprod);

impl Token for I8mm {
    #[inline(always)]
    unsafe fn assume() -> Self {
        // SAFETY: the caller's promise includes that of the dot products.
        Self(unsafe { Dotprod::assume() })
    }
}

/// Inputs of one output that lie together.
const KR: usize = 8;
/// Most pairs of rows of a tile.
const PAIRS: usize = 4;

/// The second row of a pair; of the last of an odd number, the first once more.
#[inline(always)]
fn partner<const R: usize>(rows: &[*const u8; R], pair: usize) -> *const u8 {
    rows[(2 * pair + 1).min(R - 1)]
}

/// Halves of two vectors: (lows, highs).
#[inline(always)]
fn transpose(_: Neon, a: int8x16_t, b: int8x16_t) -> (int8x16_t, int8x16_t) {
    // SAFETY: register arithmetic; the token proves NEON.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
        (vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b)))
    }
}

impl I8mm {
    /// `sums + rows·outputsᵀ`, lanes (row 0, output 0), (0, 1), (1, 0), (1, 1) (`vmmlaq_s32`, whose intrinsic is not
    /// stable).
    #[inline(always)]
    fn products(self, sums: int32x4_t, rows: int8x16_t, outputs: int8x16_t) -> int32x4_t {
        let mut sums = sums;
        // SAFETY: register arithmetic; the token proves the instruction.
        unsafe {
            core::arch::asm!(
                "smmla {sums:v}.4s, {rows:v}.16b, {outputs:v}.16b",
                sums = inout(vreg) sums,
                rows = in(vreg) rows,
                outputs = in(vreg) outputs,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }

    #[inline(always)]
    fn neon(self) -> Neon {
        self.0.0
    }

    /// Vector `vector` of the results of an int4 panel of `NV`.
    ///
    /// # Safety
    /// As [`Dots::tile_i4`].
    #[inline(always)]
    unsafe fn vector_i4<const R: usize, const NV: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        vector: usize,
        k: usize,
        group: usize,
    ) -> [float32x4_t; R] {
        let s = self.neon();
        let nr = NV * 4;
        let whole = group_bytes(group, nr, KR);
        let pairs = R.div_ceil(2);
        // SAFETY: groups follow each other, each with its scales and its codes, up to a multiple of 2·KR inputs; records have
        // inputs up to a multiple of 64, and an offset for each block.
        unsafe {
            // Of a pair of rows and a pair of outputs each, as `products` gives them.
            let mut t = [[s.zero(); 2]; PAIRS];
            let mut at = panel;
            let mut begin = 0;
            while begin < k {
                let len = group.min(k - begin);
                let mut sums = [[vdupq_n_s32(0); 2]; PAIRS];
                let mut done = 0;
                while done < len {
                    let from = begin + done;
                    let codes = at.add(2 * nr + done / 2 * nr + vector * 4 * KR);
                    for pair in 0..pairs {
                        let block = from / BLOCK;
                        let even = vld1_dup_s32(record::blocks(rows[2 * pair], k).add(block));
                        let odd = vld1_dup_s32(record::blocks(partner(rows, pair), k).add(block));
                        let offset = vcombine_s32(even, odd);
                        for j in 0..2 {
                            sums[pair][j] = if done == 0 { offset } else { vaddq_s32(sums[pair][j], offset) };
                        }
                    }
                    for step in 0..(len - done).min(BLOCK).div_ceil(2 * KR) {
                        let codes = codes.add(step * nr * KR);
                        prefetch_ahead(s, codes, 2 * 16);
                        let (low0, high0) = s.halves(codes);
                        let (low1, high1) = s.halves(codes.add(16));
                        for pair in 0..pairs {
                            let from = from + step * 2 * KR;
                            let (low, high) =
                                transpose(s, s.codes(rows[2 * pair].add(from)), s.codes(partner(rows, pair).add(from)));
                            sums[pair][0] = self.products(sums[pair][0], low, low0);
                            sums[pair][1] = self.products(sums[pair][1], low, low1);
                            sums[pair][0] = self.products(sums[pair][0], high, high0);
                            sums[pair][1] = self.products(sums[pair][1], high, high1);
                        }
                    }
                    done += BLOCK;
                }
                let scale = vreinterpretq_f64_f32(s.load_f16(at.cast::<u16>().add(vector * 4)));
                let scales = [vdupq_laneq_f64::<0>(scale), vdupq_laneq_f64::<1>(scale)];
                for pair in 0..pairs {
                    for j in 0..2 {
                        let sum = vcvtq_f32_s32(sums[pair][j]);
                        t[pair][j] = s.fused(sum, vreinterpretq_f32_f64(scales[j]), t[pair][j]);
                    }
                }
                at = at.add(whole);
                begin += len;
            }
            let mut y = [s.zero(); R];
            for i in 0..R {
                let [a, b] = t[i / 2].map(
                    #[inline(always)]
                    |t| vreinterpretq_f64_f32(t),
                );
                y[i] = vreinterpretq_f32_f64(if i % 2 == 0 { vzip1q_f64(a, b) } else { vzip2q_f64(a, b) });
            }
            y
        }
    }
}

impl Dots for I8mm {
    type Float = Neon;
    const KR: usize = KR;

    #[inline(always)]
    fn float(self) -> Neon {
        self.neon()
    }

    #[inline(always)]
    unsafe fn tile_i8<const R: usize, const NV: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
    ) -> Tile<Neon, R, NV> {
        let s = self.neon();
        let (nr, pairs) = (NV * 4, R.div_ceil(2));
        let steps = k.div_ceil(KR);
        // SAFETY: records have inputs up to a multiple of 64, the panel up to one of KR; then come its scales.
        unsafe {
            let mut sums = [[[vdupq_n_s32(0); 2]; NV]; PAIRS];
            let mut step = 0;
            while step < steps {
                let at = panel.add(step * nr * KR);
                prefetch_ahead(s, at, 2 * nr * KR);
                let mut x = [[vdupq_n_s8(0); 2]; PAIRS];
                for pair in 0..pairs {
                    let (even, odd) = (rows[2 * pair].add(step * KR), partner(rows, pair).add(step * KR));
                    (x[pair][0], x[pair][1]) = transpose(s, s.codes(even), s.codes(odd));
                }
                let halves = if step + 2 <= steps { 2 } else { 1 };
                for half in 0..halves {
                    for v in 0..NV {
                        for j in 0..2 {
                            let w = s.codes(at.add((half * nr + v * 4 + j * 2) * KR));
                            for pair in 0..pairs {
                                sums[pair][v][j] = self.products(sums[pair][v][j], x[pair][half], w);
                            }
                        }
                    }
                }
                step += 2;
            }
            let mut by_row = [[vdupq_n_s32(0); NV]; R];
            for i in 0..R {
                for v in 0..NV {
                    let [a, b] = sums[i / 2][v].map(
                        #[inline(always)]
                        |sum| vreinterpretq_s64_s32(sum),
                    );
                    by_row[i][v] = vreinterpretq_s32_s64(if i % 2 == 0 { vzip1q_s64(a, b) } else { vzip2q_s64(a, b) });
                }
            }
            scale_i8(s, &by_row, panel.add(steps * nr * KR).cast())
        }
    }

    /// By dot products: the second row of a matrix product would be wasted.
    #[inline(always)]
    unsafe fn row_i8<const NV: usize>(self, row: *const u8, panel: *const u8, k: usize) -> Tile<Neon, 1, NV> {
        let s = self.neon();
        let nr = NV * 4;
        let steps = k.div_ceil(KR);
        // SAFETY: as in `tile_i8`.
        unsafe {
            // Of two outputs each, in two parts.
            let mut sums = [[vdupq_n_s32(0); 2]; NV];
            for step in 0..steps {
                let at = panel.add(step * nr * KR);
                prefetch_ahead(s, at, nr * KR);
                let x = vreinterpretq_s8_s64(vdupq_n_s64(row.add(step * KR).cast::<i64>().read()));
                for v in 0..NV {
                    for j in 0..2 {
                        sums[v][j] = self.0.dot(sums[v][j], s.codes(at.add((v * 4 + j * 2) * KR)), x);
                    }
                }
            }
            let sums = sums.map(
                #[inline(always)]
                |[a, b]| vpaddq_s32(a, b),
            );
            scale_i8(s, &[sums], panel.add(steps * nr * KR).cast())
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
        let mut tile = [[self.neon().zero(); NV]; R];
        for v in 0..NV {
            // SAFETY: the caller's promise, and v < NV.
            let part = unsafe { self.vector_i4::<R, NV>(rows, panel, v, k, group) };
            for i in 0..R {
                tile[i][v] = part[i];
            }
        }
        tile
    }

    /// By dot products, as `row_i8`.
    #[inline(always)]
    unsafe fn row_i4<const NV: usize>(
        self,
        row: *const u8,
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<Neon, 1, NV> {
        let s = self.neon();
        let nr = NV * 4;
        let whole = group_bytes(group, nr, KR);
        let mut t = [s.zero(); NV];
        let mut at = panel;
        let mut begin = 0;
        // SAFETY: as in `vector_i4`.
        unsafe {
            while begin < k {
                let len = group.min(k - begin);
                // Of two outputs each, in two parts; the offsets of the row's blocks apart.
                let mut sums = [[vdupq_n_s32(0); 2]; NV];
                let mut offset = 0;
                for block in 0..len.div_ceil(BLOCK) {
                    offset += record::blocks(row, k).add(begin / BLOCK + block).read();
                }
                for step in 0..len.div_ceil(2 * KR) {
                    let codes = at.add(2 * nr + step * nr * KR);
                    prefetch_ahead(s, codes, nr * KR);
                    let x = vreinterpretq_s64_s8(s.codes(row.add(begin + step * 2 * KR)));
                    let low_inputs = vreinterpretq_s8_s64(vdupq_laneq_s64::<0>(x));
                    let high_inputs = vreinterpretq_s8_s64(vdupq_laneq_s64::<1>(x));
                    for v in 0..NV {
                        for j in 0..2 {
                            let (low, high) = s.halves(codes.add((v * 4 + j * 2) * KR));
                            sums[v][j] = self.0.dot(sums[v][j], low, low_inputs);
                            sums[v][j] = self.0.dot(sums[v][j], high, high_inputs);
                        }
                    }
                }
                let offset = vdupq_n_s32(offset);
                for v in 0..NV {
                    let sum = vaddq_s32(vpaddq_s32(sums[v][0], sums[v][1]), offset);
                    t[v] = s.fused(vcvtq_f32_s32(sum), s.load_f16(at.cast::<u16>().add(v * 4)), t[v]);
                }
                at = at.add(whole);
                begin += len;
            }
        }
        [t]
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
                    *sum = self.products(*sum, w, x);
                }
            }
            let mut sum = vdupq_n_s32(0);
            for part in sums {
                sum = vaddq_s32(sum, part);
            }
            core::hint::black_box(vaddvq_s32(sum));
        }
        iterations * (SUMS * 32) as u64
    }
}
