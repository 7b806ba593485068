//! Tiles of instruction sets whose lanes are outputs: each lane of a vector of weights holds four inputs of one output, and
//! is multiplied by four inputs of a row that all lanes share.

use super::Dots;
use super::layout::group_bytes;
use super::record::{self, BLOCK};
use crate::gemm::{Tile, prefetch_ahead};
use crate::simd::Simd;

/// Inputs of a lane.
pub(crate) const KR: usize = 4;

/// Sums of four products per lane.
pub(crate) trait Lanes: Dots {
    /// `LANES` sums in i32.
    type I: Copy;
    /// Four codes per lane.
    type W: Copy;
    /// Sums of int4 products within a block of 32 inputs.
    type N: Copy;
    /// All lanes 0.
    fn zero(self) -> Self::I;
    fn add(self, a: Self::I, b: Self::I) -> Self::I;
    /// Nearest f32, ties to even.
    fn to_float(self, sums: Self::I) -> <Self::Float as Simd>::V;

    /// What int8 sums begin with: what the offset of the weights' codes adds to them, negative.
    ///
    /// # Safety
    /// `offset` is that of the row's record.
    unsafe fn start(self, offset: *const i32) -> Self::I;

    /// # Safety
    /// `p..p+4·LANES` is readable.
    unsafe fn weights(self, p: *const u8) -> Self::W;

    /// The same four inputs of a row in all lanes.
    ///
    /// # Safety
    /// `p..p+4` is readable.
    unsafe fn inputs(self, p: *const u8) -> Self::W;

    /// `sums + Σ w·x`, w of an int8 panel.
    fn dot(self, sums: Self::I, w: Self::W, x: Self::W) -> Self::I;

    /// The same codes, but the compiler does not know that.
    fn unknown(self, x: Self::W) -> Self::W;

    /// Low and high halves of each byte.
    fn halves(self, w: Self::W) -> (Self::W, Self::W);

    /// Sums of a block, to which the sums before it, or the block's own offset, may be added at its beginning or its end.
    ///
    /// # Safety
    /// `offset` is readable.
    unsafe fn begin(self, before: Option<Self::I>, offset: *const i32) -> Self::N;

    /// `sums + Σ w·x`, w in 0..=15, at most 8 times.
    fn dot_half(self, sums: Self::N, w: Self::W, x: Self::W) -> Self::N;

    /// Sums of a block as i32, with what `begin` was given.
    ///
    /// # Safety
    /// `offset` is readable.
    unsafe fn end(self, before: Option<Self::I>, offset: *const i32, sums: Self::N) -> Self::I;
}

/// See [`Dots::tile_i8`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn tile_i8<D: Lanes, const R: usize, const NV: usize>(
    d: D,
    rows: &[*const u8; R],
    panel: *const u8,
    k: usize,
) -> Tile<D::Float, R, NV> {
    let s = d.float();
    let lanes = D::Float::LANES;
    let steps = k.div_ceil(KR);
    // SAFETY: records have inputs up to a multiple of 64, the panel up to one of KR; then come its scales.
    unsafe {
        let mut sums = [[d.zero(); NV]; R];
        for i in 0..R {
            sums[i] = [d.start(record::offset(rows[i], k)); NV];
        }
        for step in 0..steps {
            let at = panel.add(step * NV * lanes * KR);
            let mut weights = [d.weights(at); NV];
            for v in 1..NV {
                weights[v] = d.weights(at.add(v * lanes * KR));
            }
            prefetch_ahead(s, at, NV * lanes * KR);
            for i in 0..R {
                let x = d.inputs(rows[i].add(step * KR));
                for v in 0..NV {
                    sums[i][v] = d.dot(sums[i][v], weights[v], x);
                }
            }
        }
        scale_i8(d, &sums, panel.add(steps * NV * lanes * KR).cast())
    }
}

/// Sums times the scales of their outputs.
///
/// # Safety
/// There are `NV · LANES` scales.
#[inline(always)]
unsafe fn scale_i8<D: Lanes, const R: usize, const NV: usize>(
    d: D,
    sums: &[[D::I; NV]; R],
    scales: *const f32,
) -> Tile<D::Float, R, NV> {
    let s = d.float();
    let mut y = [[s.zero(); NV]; R];
    for v in 0..NV {
        // SAFETY: v < NV.
        let scale = unsafe { s.load(scales.add(v * D::Float::LANES)) };
        for i in 0..R {
            y[i][v] = s.mul(d.to_float(sums[i][v]), scale);
        }
    }
    y
}

/// See [`Dots::row_i8`]: four independent sums per vector.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn row_i8<D: Lanes, const NV: usize>(
    d: D,
    row: *const u8,
    panel: *const u8,
    k: usize,
) -> Tile<D::Float, 1, NV> {
    const UNROLL: usize = 4;
    let s = d.float();
    let bytes = D::Float::LANES * KR;
    let steps = k.div_ceil(KR);
    // SAFETY: as in `tile_i8`.
    unsafe {
        let mut sums = [[d.zero(); NV]; UNROLL];
        sums[0] = [d.start(record::offset(row, k)); NV];
        let mut step = 0;
        while step + UNROLL <= steps {
            let at = panel.add(step * NV * bytes);
            prefetch_ahead(s, at, UNROLL * NV * bytes);
            for u in 0..UNROLL {
                let x = d.inputs(row.add((step + u) * KR));
                for v in 0..NV {
                    sums[u][v] = d.dot(sums[u][v], d.weights(at.add((u * NV + v) * bytes)), x);
                }
            }
            step += UNROLL;
        }
        while step < steps {
            let at = panel.add(step * NV * bytes);
            let x = d.inputs(row.add(step * KR));
            for v in 0..NV {
                sums[0][v] = d.dot(sums[0][v], d.weights(at.add(v * bytes)), x);
            }
            step += 1;
        }
        for v in 0..NV {
            sums[0][v] = d.add(d.add(sums[0][v], sums[1][v]), d.add(sums[2][v], sums[3][v]));
        }
        scale_i8(d, &[sums[0]], panel.add(steps * NV * bytes).cast())
    }
}

/// See [`Dots::multiply_adds`].
#[inline(always)]
pub(crate) fn multiply_adds<D: Lanes>(d: D, iterations: u64) -> u64 {
    const SUMS: usize = 12;
    let data = core::hint::black_box([1u8; 64]);
    // SAFETY: a vector of weights has at most 64 bytes.
    let (w, x) = unsafe { (d.weights(data.as_ptr()), d.inputs(data.as_ptr())) };
    let mut sums = [d.zero(); SUMS];
    for _ in 0..iterations {
        for sum in &mut sums {
            // Or an instruction set whose products and sums are separate would take the product once.
            *sum = d.dot(*sum, w, d.unknown(x));
        }
    }
    let s = d.float();
    let mut sum = s.zero();
    for lanes in sums {
        sum = s.add(sum, d.to_float(lanes));
    }
    core::hint::black_box(s.sum(sum));
    iterations * (SUMS * D::Float::LANES * KR) as u64
}

/// Where a block of 32 inputs lies.
#[derive(Clone, Copy)]
struct Block {
    /// Codes of the weights.
    codes: *const u8,
    /// Bytes from the beginning of a record to its inputs.
    inputs_at: usize,
    /// Bytes from the beginning of a record to its offset of the block. Rows are reached by these two from pointers that do
    /// not move: two for each row would not fit the registers.
    offset_at: usize,
}

/// 2·KR inputs of a block.
///
/// # Safety
/// Step `step` of the block exists.
#[inline(always)]
unsafe fn step_i4<D: Lanes, const R: usize, const NV: usize, const V: usize>(
    d: D,
    rows: &[*const u8; R],
    block: Block,
    step: usize,
    sums: &mut [[D::N; V]; R],
) {
    let bytes = D::Float::LANES * KR;
    // SAFETY: the caller's promise.
    unsafe {
        let codes = |v: usize| block.codes.add((step * NV + v) * bytes);
        let mut halves = [d.halves(d.weights(codes(0))); V];
        for v in 0..V {
            prefetch_ahead(d.float(), codes(v), bytes);
            halves[v] = d.halves(d.weights(codes(v)));
        }
        let x = |i: usize| rows[i].add(block.inputs_at + step * 2 * KR);
        // All low halves before all high ones: a sum waits for its last product, and R · V others come in between.
        for i in 0..R {
            let x = d.inputs(x(i));
            for v in 0..V {
                sums[i][v] = d.dot_half(sums[i][v], halves[v].0, x);
            }
        }
        for i in 0..R {
            let x = d.inputs(x(i).add(KR));
            for v in 0..V {
                sums[i][v] = d.dot_half(sums[i][v], halves[v].1, x);
            }
        }
    }
}

/// Sums of a block of up to 32 inputs, `V` vectors of a panel of `NV`, added to the sums `before` it.
///
/// # Safety
/// The block has `inputs` inputs (codes up to a multiple of 8) or 32, and each row an offset of it.
#[inline(always)]
unsafe fn block_i4<D: Lanes, const R: usize, const NV: usize, const V: usize>(
    d: D,
    before: Option<&[[D::I; V]; R]>,
    rows: &[*const u8; R],
    block: Block,
    inputs: usize,
) -> [[D::I; V]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let offset = |i: usize| rows[i].add(block.offset_at).cast::<i32>();
        let mut sums = [[d.begin(None, offset(0)); V]; R];
        for i in 0..R {
            for v in 0..V {
                let before = before.map(
                    #[inline(always)]
                    |before| before[i][v],
                );
                sums[i][v] = d.begin(before, offset(i));
            }
        }
        if inputs >= BLOCK {
            for step in 0..BLOCK / (2 * KR) {
                step_i4::<D, R, NV, V>(d, rows, block, step, &mut sums);
            }
        } else {
            for step in 0..inputs.div_ceil(2 * KR) {
                step_i4::<D, R, NV, V>(d, rows, block, step, &mut sums);
            }
        }
        let mut out = [[d.zero(); V]; R];
        for i in 0..R {
            for v in 0..V {
                let before = before.map(
                    #[inline(always)]
                    |before| before[i][v],
                );
                out[i][v] = d.end(before, offset(i), sums[i][v]);
            }
        }
        out
    }
}

/// `V` vectors of results from `first` on, of a panel of `NV`.
///
/// # Safety
/// As [`Dots::tile_i4`].
#[inline(always)]
unsafe fn vectors_i4<D: Lanes, const R: usize, const NV: usize, const V: usize>(
    d: D,
    rows: &[*const u8; R],
    panel: *const u8,
    first: usize,
    k: usize,
    group: usize,
) -> [[<D::Float as Simd>::V; V]; R] {
    let s = d.float();
    let lanes = D::Float::LANES;
    let nr = NV * lanes;
    let whole = group_bytes(group, nr, KR);
    let offsets_at = record::blocks_at(k);
    let mut t = [[s.zero(); V]; R];
    let mut at = panel;
    let mut begin = 0;
    // SAFETY: groups follow each other, each with its scales and its codes; records have inputs up to a multiple of 64, and an
    // offset for each block.
    unsafe {
        while begin < k {
            let len = group.min(k - begin);
            let codes = at.add(2 * nr + first * lanes * KR);
            let block = |done: usize| Block {
                codes: codes.add(done / 2 * nr),
                inputs_at: begin + done,
                offset_at: offsets_at + (begin + done) / BLOCK * size_of::<i32>(),
            };
            let mut sums = block_i4::<D, R, NV, V>(d, None, rows, block(0), len);
            let mut done = BLOCK;
            while done < len {
                sums = block_i4::<D, R, NV, V>(d, Some(&sums), rows, block(done), len - done);
                done += BLOCK;
            }
            for v in 0..V {
                let scale = s.load_f16(at.cast::<u16>().add((first + v) * lanes));
                for i in 0..R {
                    t[i][v] = s.fused(d.to_float(sums[i][v]), scale, t[i][v]);
                }
            }
            at = at.add(whole);
            begin += len;
        }
    }
    t
}

/// See [`Dots::tile_i4`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn tile_i4<D: Lanes, const R: usize, const NV: usize, const V: usize>(
    d: D,
    rows: &[*const u8; R],
    panel: *const u8,
    k: usize,
    group: usize,
) -> Tile<D::Float, R, NV> {
    let mut tile = [[d.float().zero(); NV]; R];
    let mut first = 0;
    while first < NV {
        // SAFETY: the caller's promise; V divides NV.
        let part = unsafe { vectors_i4::<D, R, NV, V>(d, rows, panel, first, k, group) };
        for i in 0..R {
            tile[i][first..first + V].copy_from_slice(&part[i]);
        }
        first += V;
    }
    tile
}

/// [`Dots`] of an instruction set by its [`Lanes`]; a tile takes `$vectors` of an int4 panel's vectors at once, since their
/// integer and float sums must fit the registers together.
macro_rules! dots_by_lanes {
    ($isa:ident: $float:ty, int4 vectors $vectors:literal) => {
        impl crate::quant::Dots for $isa {
            type Float = $float;
            const KR: usize = crate::quant::lanes::KR;

            #[inline(always)]
            fn float(self) -> $float {
                self.into()
            }

            #[inline(always)]
            fn multiply_adds(self, iterations: u64) -> u64 {
                crate::quant::lanes::multiply_adds(self, iterations)
            }

            #[inline(always)]
            unsafe fn tile_i8<const R: usize, const NV: usize>(
                self,
                rows: &[*const u8; R],
                panel: *const u8,
                k: usize,
            ) -> crate::gemm::Tile<$float, R, NV> {
                // SAFETY: the caller's promise.
                unsafe { crate::quant::lanes::tile_i8(self, rows, panel, k) }
            }

            #[inline(always)]
            unsafe fn row_i8<const NV: usize>(
                self,
                row: *const u8,
                panel: *const u8,
                k: usize,
            ) -> crate::gemm::Tile<$float, 1, NV> {
                // SAFETY: the caller's promise.
                unsafe { crate::quant::lanes::row_i8(self, row, panel, k) }
            }

            #[inline(always)]
            unsafe fn tile_i4<const R: usize, const NV: usize>(
                self,
                rows: &[*const u8; R],
                panel: *const u8,
                k: usize,
                group: usize,
            ) -> crate::gemm::Tile<$float, R, NV> {
                // SAFETY: the caller's promise.
                unsafe { crate::quant::lanes::tile_i4::<_, R, NV, $vectors>(self, rows, panel, k, group) }
            }

            #[inline(always)]
            unsafe fn row_i4<const NV: usize>(
                self,
                row: *const u8,
                panel: *const u8,
                k: usize,
                group: usize,
            ) -> crate::gemm::Tile<$float, 1, NV> {
                // SAFETY: the caller's promise.
                unsafe { crate::quant::lanes::tile_i4::<_, 1, NV, NV>(self, &[row], panel, k, group) }
            }
        }
    };
}
pub(crate) use dots_by_lanes;
