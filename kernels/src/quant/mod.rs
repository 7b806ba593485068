//! Quantized products: int8 activations with int8 or int4 weights.
//!
//! Activations become records of codes with one scale per row ([`record`]), weights panels of codes and scales
//! ([`layout`]). What differs between instruction sets, the sums of integer products, is behind [`Dots`]; everything else
//! is here, once. The integer sums are exact, and the float operations of a result are the same in the same order
//! everywhere, so that results are the same bits on every instruction set up to the row scale's product and addition, which
//! are too; only `silu` differs in its last bits.

// Loops over the registers of a tile index several arrays at once.
#![allow(clippy::needless_range_loop)]

mod embed;
pub(crate) mod lanes;
mod layout;
pub(crate) mod record;

pub(crate) use embed::{embed_i4, embed_i8};
#[cfg(target_arch = "aarch64")]
pub(crate) use layout::group_bytes;
pub use layout::{QuantLayout, QuantPackError, QuantSource, pack_quantized, pack_quantized_swiglu};
pub(crate) use record::quantize_rows;
pub use record::quantized_row_bytes;

use crate::args::QGemmArgs;
use crate::gemm::{Output, Tile, finish, row};
use crate::math::silu;
use crate::simd::{Simd, Token};

/// An instruction set's way to sum products of codes.
///
/// Rows are records, a panel is laid out as [`layout`] says with the constants here. Results are those of `QGemmArgs`
/// without the row's own scale `s`.
pub(crate) trait Dots: Token {
    /// The float side.
    type Float: Simd;
    /// Inputs of one output that lie together.
    const KR: usize;

    fn float(self) -> Self::Float;

    /// Multiply-adds of int8 codes as fast as they go, from registers and a few cache lines; returns how many.
    fn multiply_adds(self, iterations: u64) -> u64;

    /// `R` rows times one int8 panel.
    ///
    /// # Safety
    /// Each record is of k inputs, the panel of k inputs and `NV · LANES` outputs.
    unsafe fn tile_i8<const R: usize, const NV: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
    ) -> Tile<Self::Float, R, NV>;

    /// One row times one int8 panel, bound by how fast the panel arrives.
    ///
    /// # Safety
    /// As `tile_i8`.
    unsafe fn row_i8<const NV: usize>(self, row: *const u8, panel: *const u8, k: usize) -> Tile<Self::Float, 1, NV>;

    /// `R` rows times one int4 panel.
    ///
    /// # Safety
    /// As `tile_i8`; `group` is 32, 64 or 128.
    unsafe fn tile_i4<const R: usize, const NV: usize>(
        self,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<Self::Float, R, NV>;

    /// One row times one int4 panel.
    ///
    /// # Safety
    /// As `tile_i4`.
    unsafe fn row_i4<const NV: usize>(
        self,
        row: *const u8,
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<Self::Float, 1, NV>;
}

/// How weights are quantized.
pub(crate) trait Codes {
    /// Inputs that share a scale, 0 if all do.
    fn group(args: &QGemmArgs) -> usize;

    /// `R` rows times one panel.
    ///
    /// # Safety
    /// As [`Dots::tile_i4`].
    unsafe fn tile<D: Dots, const R: usize, const NV: usize>(
        d: D,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<D::Float, R, NV>;

    /// One row times one panel.
    ///
    /// # Safety
    /// As [`Dots::tile_i4`].
    unsafe fn row<D: Dots, const NV: usize>(
        d: D,
        row: *const u8,
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<D::Float, 1, NV>;
}

/// int8 weights.
pub(crate) struct I8;

impl Codes for I8 {
    #[inline(always)]
    fn group(_: &QGemmArgs) -> usize {
        0
    }

    #[inline(always)]
    unsafe fn tile<D: Dots, const R: usize, const NV: usize>(
        d: D,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
        _group: usize,
    ) -> Tile<D::Float, R, NV> {
        // SAFETY: the caller's promise.
        unsafe { d.tile_i8::<R, NV>(rows, panel, k) }
    }

    #[inline(always)]
    unsafe fn row<D: Dots, const NV: usize>(
        d: D,
        row: *const u8,
        panel: *const u8,
        k: usize,
        _group: usize,
    ) -> Tile<D::Float, 1, NV> {
        // SAFETY: the caller's promise.
        unsafe { d.row_i8::<NV>(row, panel, k) }
    }
}

/// int4 weights.
pub(crate) struct I4;

impl Codes for I4 {
    #[inline(always)]
    fn group(args: &QGemmArgs) -> usize {
        args.group as usize
    }

    #[inline(always)]
    unsafe fn tile<D: Dots, const R: usize, const NV: usize>(
        d: D,
        rows: &[*const u8; R],
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<D::Float, R, NV> {
        // SAFETY: the caller's promise.
        unsafe { d.tile_i4::<R, NV>(rows, panel, k, group) }
    }

    #[inline(always)]
    unsafe fn row<D: Dots, const NV: usize>(
        d: D,
        row: *const u8,
        panel: *const u8,
        k: usize,
        group: usize,
    ) -> Tile<D::Float, 1, NV> {
        // SAFETY: the caller's promise.
        unsafe { d.row_i4::<NV>(row, panel, k, group) }
    }
}

/// What a product reads and where it goes.
struct Product<'a> {
    args: &'a QGemmArgs,
    output: Output,
    /// Bytes of a panel; of one of a pair.
    panel_bytes: usize,
    /// First and one past the last panel.
    panels: (usize, usize),
}

impl<'a> Product<'a> {
    #[inline(always)]
    fn of<D: Dots, Q: Codes, const NV: usize>(args: &'a QGemmArgs) -> Self {
        let nr = NV * D::Float::LANES;
        let &QGemmArgs { n, c, ldc, c_rows, row_scale, accumulate, .. } = args;
        Self {
            args,
            output: Output { n, c, ldc, c_rows, row_scale, accumulate },
            panel_bytes: layout::panel_bytes(Q::group(args), nr, D::KR, args.k as usize),
            panels: (args.panel_begin as usize, (args.panel_end as usize).min((n as usize).div_ceil(nr))),
        }
    }

    /// Record of row `i`.
    ///
    /// # Safety
    /// The block is valid and i < m.
    #[inline(always)]
    unsafe fn record(&self, i: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { self.args.a.add(row(self.args.a_rows, i) * self.args.lda_bytes as usize) }
    }

    /// The rows' own scales, silu when `SWIGLU`, and out.
    ///
    /// # Safety
    /// The block is valid; `first + R` ≤ m; the panel is in range.
    #[inline(always)]
    unsafe fn store<S: Simd, const R: usize, const NV: usize>(
        &self,
        s: S,
        rows: &[*const u8; R],
        first: usize,
        panel: usize,
        gates: Option<&Tile<S, R, NV>>,
        sums: &Tile<S, R, NV>,
    ) {
        for i in 0..R {
            let mut y = sums[i];
            // SAFETY: the record has a scale; row and panel are in range.
            unsafe {
                let scale = s.splat(record::scale(rows[i], self.args.k as usize).read());
                for v in 0..NV {
                    y[v] = s.mul(y[v], scale);
                    if let Some(gates) = gates {
                        y[v] = s.mul(silu(s, s.mul(gates[i][v], scale)), y[v]);
                    }
                }
                finish(s, &self.output, first + i, panel * NV * S::LANES, &y);
            }
        }
    }

    /// Rows `first..first + R` times panel number `panel` (or, when `SWIGLU`, that pair of panels).
    ///
    /// # Safety
    /// The block is valid, the rows are below m, and `panel` in range.
    #[inline(always)]
    unsafe fn block<D: Dots, Q: Codes, const R: usize, const NV: usize, const SWIGLU: bool>(
        &self,
        d: D,
        first: usize,
        panel: usize,
    ) {
        let s = d.float();
        let (k, group) = (self.args.k as usize, Q::group(self.args));
        let mut rows = [self.args.a; R];
        // SAFETY: rows and panel exist by the caller's promise.
        unsafe {
            for i in 0..R {
                rows[i] = self.record(first + i);
            }
            if SWIGLU {
                let gate = self.args.w.add(2 * panel * self.panel_bytes);
                let gates = Q::tile::<D, R, NV>(d, &rows, gate, k, group);
                let ups = Q::tile::<D, R, NV>(d, &rows, gate.add(self.panel_bytes), k, group);
                self.store(s, &rows, first, panel, Some(&gates), &ups);
            } else {
                let sums = Q::tile::<D, R, NV>(d, &rows, self.args.w.add(panel * self.panel_bytes), k, group);
                self.store(s, &rows, first, panel, None, &sums);
            }
        }
    }

    /// As [`Product::block`] for one row, bound by how fast the weights arrive.
    ///
    /// # Safety
    /// As `block`.
    #[inline(always)]
    unsafe fn one<D: Dots, Q: Codes, const NV: usize, const SWIGLU: bool>(&self, d: D, i: usize, panel: usize) {
        let s = d.float();
        let (k, group) = (self.args.k as usize, Q::group(self.args));
        // SAFETY: row and panel exist by the caller's promise.
        unsafe {
            let rows = [self.record(i)];
            if SWIGLU {
                let gate = self.args.w.add(2 * panel * self.panel_bytes);
                let gates = Q::row::<D, NV>(d, rows[0], gate, k, group);
                let ups = Q::row::<D, NV>(d, rows[0], gate.add(self.panel_bytes), k, group);
                self.store(s, &rows, i, panel, Some(&gates), &ups);
            } else {
                let sums = Q::row::<D, NV>(d, rows[0], self.args.w.add(panel * self.panel_bytes), k, group);
                self.store(s, &rows, i, panel, None, &sums);
            }
        }
    }
}

/// `gemm` and, when `SWIGLU`, `gemm_swiglu`: panels outside, blocks of rows inside, as for floats.
///
/// # Safety
/// `args` is valid as [`QGemmArgs`] says; its weights are packed for a panel of `NV · LANES` outputs and `D::KR`.
#[inline(always)]
unsafe fn gemm_blocks<D: Dots, Q: Codes, const MR: usize, const NV: usize, const SWIGLU: bool>(d: D, args: &QGemmArgs) {
    let product = Product::of::<D, Q, NV>(args);
    let m = args.m as usize;
    let blocks = m.div_ceil(MR);
    for panel in product.panels.0..product.panels.1 {
        let mut first = 0;
        for done in 0..blocks {
            let rows = (m - first).div_ceil(blocks - done);
            /// Calls `block` with a constant number of rows, for those up to MR.
            macro_rules! with_rows {
                ($($r:literal)*) => {
                    match rows {
                        // SAFETY: first + rows ≤ m, and the panel is in range.
                        $($r if $r <= MR => unsafe { product.block::<D, Q, $r, NV, SWIGLU>(d, first, panel) },)*
                        _ => {}
                    }
                };
            }
            with_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
            first += rows;
        }
    }
}

/// `gemv` and, when `SWIGLU`, `gemv_swiglu`: rows one by one.
///
/// # Safety
/// As `gemm_blocks`.
#[inline(always)]
unsafe fn gemv_rows<D: Dots, Q: Codes, const NV: usize, const SWIGLU: bool>(d: D, args: &QGemmArgs) {
    let product = Product::of::<D, Q, NV>(args);
    for panel in product.panels.0..product.panels.1 {
        for i in 0..args.m as usize {
            // SAFETY: row and panel are in range.
            unsafe { product.one::<D, Q, NV, SWIGLU>(d, i, panel) }
        }
    }
}

/// `C (+)= scale · A·Wᵀ`.
///
/// # Safety
/// `args` is valid as [`QGemmArgs`] says; its weights are packed for a panel of `NV · LANES` outputs and `D::KR`.
#[inline(always)]
pub(crate) unsafe fn gemm<D: Dots, Q: Codes, const MR: usize, const NV: usize>(d: D, args: &QGemmArgs) {
    // SAFETY: the caller's promise.
    unsafe { gemm_blocks::<D, Q, MR, NV, false>(d, args) }
}

/// `C (+)= scale · silu(A·W_gateᵀ) ⊙ (A·W_upᵀ)`.
///
/// # Safety
/// As [`gemm`], weights packed by `pack_quantized_swiglu`.
#[inline(always)]
pub(crate) unsafe fn gemm_swiglu<D: Dots, Q: Codes, const MR: usize, const NV: usize>(d: D, args: &QGemmArgs) {
    // SAFETY: the caller's promise.
    unsafe { gemm_blocks::<D, Q, MR, NV, true>(d, args) }
}

/// [`gemm`] for one row; more rows are taken one by one.
///
/// # Safety
/// As [`gemm`].
#[inline(always)]
pub(crate) unsafe fn gemv<D: Dots, Q: Codes, const NV: usize>(d: D, args: &QGemmArgs) {
    // SAFETY: the caller's promise.
    unsafe { gemv_rows::<D, Q, NV, false>(d, args) }
}

/// [`gemm_swiglu`] for one row; more rows are taken one by one.
///
/// # Safety
/// As [`gemm_swiglu`].
#[inline(always)]
pub(crate) unsafe fn gemv_swiglu<D: Dots, Q: Codes, const NV: usize>(d: D, args: &QGemmArgs) {
    // SAFETY: the caller's promise.
    unsafe { gemv_rows::<D, Q, NV, true>(d, args) }
}
