//! Matrix products with packed weights: `gemm`, `gemv`, and both with the SwiGLU tail.
//!
//! Panels are the outer loop: a panel of weights comes from memory once and stays in cache while every row of the
//! activations passes over it. Rows go in blocks as equal as possible (13 rows are 7 + 6, not 12 + 1), because a tile of
//! one row leaves most of the multipliers idle. A tile lives in registers from the first k to the last.

// Loops over the registers of a tile index several arrays at once.
#![allow(clippy::needless_range_loop)]

use crate::args::GemmArgs;
use crate::math::silu;
use crate::simd::{Simd, Weights};

/// A tile of the result: `R` rows of `NV` vectors.
pub(crate) type Tile<S, const R: usize, const NV: usize> = [[<S as Simd>::V; NV]; R];

/// Asks for the part of a panel that is needed 2 KiB after `at`: the hardware's own prefetch stops at every page, and
/// the distance is measured (512 B and 1 KiB gain half as much).
#[inline(always)]
pub(crate) fn prefetch_ahead<S: Simd>(s: S, at: *const u8, bytes: usize) {
    const DISTANCE_BYTES: usize = 2048;
    const CACHE_LINE_BYTES: usize = 64;
    let mut line = 0;
    while line < bytes {
        s.prefetch(at.wrapping_add(DISTANCE_BYTES + line));
        line += CACHE_LINE_BYTES;
    }
}

/// One row of a panel times lane `L` of every row's next four activations.
///
/// # Safety
/// `b` has `NV` vectors.
#[inline(always)]
unsafe fn lane_step<S: Simd, W: Weights, const R: usize, const NV: usize, const L: i32>(
    s: S,
    a: &[S::V; R],
    b: *const W::Elem,
    acc: &mut Tile<S, R, NV>,
) {
    for v in 0..NV {
        // SAFETY: v < NV.
        let weights = unsafe { W::load(s, b.add(v * S::LANES)) };
        for i in 0..R {
            acc[i][v] = s.fma_lane::<L>(a[i], weights, acc[i][v]);
        }
    }
}

/// `R` rows of A times one panel.
///
/// # Safety
/// Each of `a` has `k` elements, the panel has `k · NV · LANES`.
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd, W: Weights, const R: usize, const NV: usize>(
    s: S,
    a: &[*const f32; R],
    panel: *const W::Elem,
    k: usize,
) -> Tile<S, R, NV> {
    let nr = NV * S::LANES;
    let mut acc = [[s.zero(); NV]; R];
    let mut b = panel;
    let mut p = 0;
    if S::LANE_FMA {
        while p + 4 <= k {
            // SAFETY: elements p..p+4 of each row and rows p..p+4 of the panel exist.
            unsafe {
                let mut rows = [s.zero(); R];
                for i in 0..R {
                    rows[i] = s.load(a[i].add(p));
                }
                lane_step::<S, W, R, NV, 0>(s, &rows, b, &mut acc);
                lane_step::<S, W, R, NV, 1>(s, &rows, b.add(nr), &mut acc);
                lane_step::<S, W, R, NV, 2>(s, &rows, b.add(2 * nr), &mut acc);
                lane_step::<S, W, R, NV, 3>(s, &rows, b.add(3 * nr), &mut acc);
                b = b.add(4 * nr);
            }
            p += 4;
        }
    }
    while p < k {
        // SAFETY: element p of each row and row p of the panel exist.
        unsafe {
            let mut weights = [s.zero(); NV];
            for v in 0..NV {
                weights[v] = W::load(s, b.add(v * S::LANES));
            }
            prefetch_ahead(s, b.cast(), nr * size_of::<W::Elem>());
            for i in 0..R {
                let x = s.splat(a[i].add(p).read());
                for v in 0..NV {
                    acc[i][v] = s.fma(x, weights[v], acc[i][v]);
                }
            }
            b = b.add(nr);
        }
        p += 1;
    }
    acc
}

/// One row of A times one panel, bound by how fast the panel arrives: four independent sums per vector, and the
/// panel is asked for ahead of time.
///
/// # Safety
/// `a` has `k` elements, the panel `k · NV · LANES`.
#[inline(always)]
unsafe fn row_tile<S: Simd, W: Weights, const NV: usize>(
    s: S,
    a: *const f32,
    panel: *const W::Elem,
    k: usize,
) -> [S::V; NV] {
    let nr = NV * S::LANES;
    let mut acc = [[s.zero(); NV]; 4];
    let mut b = panel;
    let mut p = 0;
    while p + 4 <= k {
        prefetch_ahead(s, b.cast(), 4 * nr * size_of::<W::Elem>());
        // SAFETY: elements p..p+4 of the row and rows p..p+4 of the panel exist.
        unsafe {
            for u in 0..4 {
                let x = s.splat(a.add(p + u).read());
                for v in 0..NV {
                    let weights = W::load(s, b.add(u * nr + v * S::LANES));
                    acc[u][v] = s.fma(x, weights, acc[u][v]);
                }
            }
            b = b.add(4 * nr);
        }
        p += 4;
    }
    while p < k {
        // SAFETY: element p of the row and row p of the panel exist.
        unsafe {
            let x = s.splat(a.add(p).read());
            for v in 0..NV {
                acc[0][v] = s.fma(x, W::load(s, b.add(v * S::LANES)), acc[0][v]);
            }
            b = b.add(nr);
        }
        p += 1;
    }
    let mut sum = acc[0];
    for v in 0..NV {
        sum[v] = s.add(s.add(acc[0][v], acc[1][v]), s.add(acc[2][v], acc[3][v]));
    }
    sum
}

/// Row `i`, through the row numbers when there are any.
///
/// # Safety
/// `rows` is null or has more than `i` elements.
#[inline(always)]
pub(crate) unsafe fn row(rows: *const u32, i: usize) -> usize {
    if rows.is_null() {
        i
    } else {
        // SAFETY: the caller's promise.
        unsafe { rows.add(i).read() as usize }
    }
}

/// Where products go: the fields of that name of the argument blocks.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) n: u64,
    pub(crate) c: *mut f32,
    pub(crate) ldc: u64,
    pub(crate) c_rows: *const u32,
    pub(crate) row_scale: *const f32,
    pub(crate) accumulate: u64,
}

impl Output {
    #[inline(always)]
    fn of(args: &GemmArgs) -> Self {
        let &GemmArgs { n, c, ldc, c_rows, row_scale, accumulate, .. } = args;
        Self { n, c, ldc, c_rows, row_scale, accumulate }
    }
}

/// What happens to one row of a tile: scaled, then stored or added.
///
/// # Safety
/// `args` is of a valid block, row `i` < m, and column `col` < n begins a panel.
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd, const NV: usize>(s: S, args: &Output, i: usize, col: usize, sums: &[S::V; NV]) {
    let valid = (args.n as usize - col).min(NV * S::LANES);
    // SAFETY: i < m, so its row number and scale exist, and so do columns col..col+valid of its row.
    unsafe {
        let c = args.c.add(row(args.c_rows, i) * args.ldc as usize + col);
        let scale = if args.row_scale.is_null() { 1.0 } else { args.row_scale.add(i).read() };
        let scale = s.splat(scale);
        for (v, &sum) in sums.iter().enumerate() {
            let at = v * S::LANES;
            let sum = s.mul(sum, scale);
            if at + S::LANES <= valid {
                let sum = if args.accumulate != 0 { s.add(s.load(c.add(at)), sum) } else { sum };
                s.store(c.add(at), sum);
            } else if at < valid {
                let rest = valid - at;
                let sum = if args.accumulate != 0 { s.add(s.load_first(c.add(at), rest), sum) } else { sum };
                s.store_first(c.add(at), sum, rest);
            }
        }
    }
}

/// Rows `first..first + R` times panel number `panel` (or, when `SWIGLU`, that pair of panels).
///
/// # Safety
/// `args` is valid, the rows are below m, and `panel` below `panel_end`.
#[inline(always)]
unsafe fn block<S: Simd, W: Weights, const R: usize, const NV: usize, const SWIGLU: bool>(
    s: S,
    args: &GemmArgs,
    first: usize,
    panel: usize,
) {
    let k = args.k as usize;
    let nr = NV * S::LANES;
    let mut a = [args.a; R];
    // SAFETY: rows and panel exist by the caller's promise.
    unsafe {
        for i in 0..R {
            a[i] = args.a.add(row(args.a_rows, first + i) * args.lda as usize);
        }
        let w = args.w.cast::<W::Elem>();
        let sums = if SWIGLU {
            let gate = w.add(2 * panel * k * nr);
            let gates = tile::<S, W, R, NV>(s, &a, gate, k);
            let mut ups = tile::<S, W, R, NV>(s, &a, gate.add(k * nr), k);
            for i in 0..R {
                for v in 0..NV {
                    ups[i][v] = s.mul(silu(s, gates[i][v]), ups[i][v]);
                }
            }
            ups
        } else {
            tile::<S, W, R, NV>(s, &a, w.add(panel * k * nr), k)
        };
        for (i, sums) in sums.iter().enumerate() {
            finish(s, &Output::of(args), first + i, panel * nr, sums);
        }
    }
}

/// `gemm` and, when `SWIGLU`, `gemm_swiglu`.
///
/// # Safety
/// `args` is valid as [`GemmArgs`] says; its weights are packed for a panel of `NV · LANES` outputs.
#[inline(always)]
unsafe fn gemm_blocks<S: Simd, W: Weights, const MR: usize, const NV: usize, const SWIGLU: bool>(
    s: S,
    args: &GemmArgs,
) {
    let (m, n) = (args.m as usize, args.n as usize);
    let nr = NV * S::LANES;
    let blocks = m.div_ceil(MR);
    let last = (args.panel_end as usize).min(n.div_ceil(nr));
    for panel in args.panel_begin as usize..last {
        let mut first = 0;
        for done in 0..blocks {
            let rows = (m - first).div_ceil(blocks - done);
            /// Calls `block` with a constant number of rows, for those up to MR.
            macro_rules! with_rows {
                ($($r:literal)*) => {
                    match rows {
                        // SAFETY: first + rows ≤ m, and the panel is in range.
                        $($r if $r <= MR => unsafe { block::<S, W, $r, NV, SWIGLU>(s, args, first, panel) },)*
                        _ => {}
                    }
                };
            }
            with_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
            first += rows;
        }
    }
}

/// `C (+)= scale · A·Wᵀ`.
///
/// # Safety
/// `args` is valid as [`GemmArgs`] says; its weights are packed for a panel of `NV · LANES` outputs.
#[inline(always)]
pub(crate) unsafe fn gemm<S: Simd, W: Weights, const MR: usize, const NV: usize>(s: S, args: &GemmArgs) {
    // SAFETY: the caller's promise.
    unsafe { gemm_blocks::<S, W, MR, NV, false>(s, args) }
}

/// `C (+)= scale · silu(A·W_gateᵀ) ⊙ (A·W_upᵀ)`.
///
/// # Safety
/// As [`gemm`], weights packed by `pack_swiglu`.
#[inline(always)]
pub(crate) unsafe fn gemm_swiglu<S: Simd, W: Weights, const MR: usize, const NV: usize>(s: S, args: &GemmArgs) {
    // SAFETY: the caller's promise.
    unsafe { gemm_blocks::<S, W, MR, NV, true>(s, args) }
}

/// [`gemm`] for one row; more rows are taken one by one.
///
/// # Safety
/// As [`gemm`].
#[inline(always)]
pub(crate) unsafe fn gemv<S: Simd, W: Weights, const NV: usize>(s: S, args: &GemmArgs) {
    let (k, n) = (args.k as usize, args.n as usize);
    let nr = NV * S::LANES;
    let last = (args.panel_end as usize).min(n.div_ceil(nr));
    for panel in args.panel_begin as usize..last {
        for i in 0..args.m as usize {
            // SAFETY: row and panel are in range.
            unsafe {
                let a = args.a.add(row(args.a_rows, i) * args.lda as usize);
                let w = args.w.cast::<W::Elem>().add(panel * k * nr);
                let sums = row_tile::<S, W, NV>(s, a, w, k);
                finish(s, &Output::of(args), i, panel * nr, &sums);
            }
        }
    }
}

/// [`gemm_swiglu`] for one row; more rows are taken one by one.
///
/// # Safety
/// As [`gemm_swiglu`].
#[inline(always)]
pub(crate) unsafe fn gemv_swiglu<S: Simd, W: Weights, const NV: usize>(s: S, args: &GemmArgs) {
    let (k, n) = (args.k as usize, args.n as usize);
    let nr = NV * S::LANES;
    let last = (args.panel_end as usize).min(n.div_ceil(nr));
    for panel in args.panel_begin as usize..last {
        for i in 0..args.m as usize {
            // SAFETY: row and panel are in range.
            unsafe {
                let a = args.a.add(row(args.a_rows, i) * args.lda as usize);
                let gate = args.w.cast::<W::Elem>().add(2 * panel * k * nr);
                let gates = row_tile::<S, W, NV>(s, a, gate, k);
                let mut ups = row_tile::<S, W, NV>(s, a, gate.add(k * nr), k);
                for v in 0..NV {
                    ups[v] = s.mul(silu(s, gates[v]), ups[v]);
                }
                finish(s, &Output::of(args), i, panel * nr, &ups);
            }
        }
    }
}
