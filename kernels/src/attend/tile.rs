//! Attention of a tile of query rows over keys that most of its rows see.

// Loops over registers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::cache::Cache;
use super::keys::BLOCK_KEYS;
use super::{Queries, exp_of};
use crate::gemm;
use crate::math::{exp_row, largest};
use crate::simd::{F32, Simd};
use core::mem::MaybeUninit;
use core::ops::Range;

/// Largest head whose transposed keys fit the scratch.
pub(super) const MOST_DIM: usize = 128;

/// Keys of a block, transposed: panels of `[dim][NV · LANES]` keys, the layout of packed weights.
struct Panels([MaybeUninit<f32>; BLOCK_KEYS * MOST_DIM]);

impl Panels {
    /// Transposes `len` keys; the last panel is filled up with zeros.
    ///
    /// # Safety
    /// `len` ≤ BLOCK_KEYS keys of `dim` ≤ MOST_DIM elements in rows of `ld`, and `nr` divides BLOCK_KEYS.
    #[inline(always)]
    unsafe fn fill<C: Cache>(&mut self, keys: *const C::Elem, ld: usize, dim: usize, len: usize, nr: usize) {
        let scratch = self.0.as_mut_ptr().cast::<f32>();
        for key in 0..len.next_multiple_of(nr) {
            // SAFETY: key < BLOCK_KEYS, so its panel of dim · nr elements lies in the scratch; keys from `len` on are
            // not read.
            unsafe {
                let to = scratch.add(key / nr * dim * nr + key % nr);
                if key >= len {
                    for i in 0..dim {
                        to.add(i * nr).write(0.0);
                    }
                    continue;
                }
                let row = keys.add(key * ld);
                let scale = if C::SCALED { C::scale(row, dim) } else { 1.0 };
                for i in 0..dim {
                    let x = C::widen(row.add(i).read());
                    to.add(i * nr).write(if C::SCALED { x * scale } else { x });
                }
            }
        }
    }
}

impl Queries<'_> {
    /// Takes in a range of keys per row, which `range` gives for a position; returns how many.
    ///
    /// # Safety
    /// The arguments are valid, the ranges exist, neither end of them ever moves back from one row to the
    /// next, and `head_dim` ≤ [`MOST_DIM`].
    #[inline(always)]
    pub(super) unsafe fn take_ranges<S: Simd, C: Cache, const R: usize, const NV: usize>(
        &mut self,
        s: S,
        range: impl Fn(usize) -> Range<usize>,
    ) -> usize {
        let (args, dim, ld) = (self.args, self.args.head_dim as usize, self.args.ld_kv as usize);
        let total: usize = (0..self.rows).map(|row| range(self.position(row)).len()).sum();
        if total == 0 {
            return 0;
        }
        let mut panels = Panels([MaybeUninit::uninit(); BLOCK_KEYS * MOST_DIM]);
        let (first, last) = (range(self.position(0)), range(self.position(self.rows - 1)));
        let mut begin = first.start;
        while begin < last.end {
            let len = BLOCK_KEYS.min(last.end - begin);
            // SAFETY: the first range begins where all of them begin at the earliest, the last ends where all of
            // them have ended, and they touch, or the keys in between belong to a row in between.
            unsafe {
                panels.fill::<C>(args.k.cast::<C::Elem>().add(begin * ld), ld, dim, len, NV * S::LANES);
                self.take_keys::<S, C, R, NV>(s, &panels, begin, len, &range);
            }
            begin += len;
        }
        total
    }

    /// Takes in the keys `begin..begin + len`, transposed in `panels`.
    ///
    /// # Safety
    /// As `take_ranges`; the keys exist.
    #[inline(always)]
    unsafe fn take_keys<S: Simd, C: Cache, const R: usize, const NV: usize>(
        &mut self,
        s: S,
        panels: &Panels,
        begin: usize,
        len: usize,
        range: &impl Fn(usize) -> Range<usize>,
    ) {
        let (args, dim) = (self.args, self.args.head_dim as usize);
        let nr = NV * S::LANES;
        let queries = self.rows * self.heads;
        // Factors of the values: weights take them, once their sum is known.
        let mut factors = [1.0f32; BLOCK_KEYS];
        if C::SCALED {
            for (j, factor) in factors.iter_mut().enumerate().take(len) {
                // SAFETY: the values begin..begin + len exist.
                *factor = unsafe { C::scale(args.v.cast::<C::Elem>().add((begin + j) * args.ld_kv as usize), dim) };
            }
        }
        let mut scores = [[0.0f32; BLOCK_KEYS]; R];
        let mut first = 0;
        while first < queries {
            // Too few queries for a tile: the last one is computed again, and dropped.
            let query = |i: usize| (first + i).min(queries - 1);
            let real = R.min(queries - first);
            let mut keep = [1.0f32; R];
            let mut touched = [false; R];
            // SAFETY: the queries are in the tile, `panels` holds the keys, and a row of scores holds a block.
            unsafe {
                let mut q = [args.q; R];
                for i in 0..R {
                    q[i] = self.q(query(i));
                }
                for panel in 0..len.div_ceil(nr) {
                    let keys = panels.0.as_ptr().cast::<f32>().add(panel * dim * nr);
                    let tile = gemm::tile::<S, F32, R, NV>(s, &q, keys, dim);
                    for i in 0..R {
                        for v in 0..NV {
                            let at = panel * nr + v * S::LANES;
                            s.store(scores[i].as_mut_ptr().add(at), s.mul(tile[i][v], s.splat(args.scale.value)));
                        }
                    }
                }
                for i in 0..real {
                    let keys = range(self.position(query(i) / self.heads));
                    let from = keys.start.clamp(begin, begin + len) - begin;
                    let to = keys.end.clamp(begin + from, begin + len) - begin;
                    scores[i][..from].fill(0.0);
                    scores[i][to..len].fill(0.0);
                    if from == to {
                        continue;
                    }
                    touched[i] = true;
                    let row = scores[i].as_mut_ptr().add(from);
                    let state = &mut self.state[query(i)];
                    let max = state.max.max(largest(s, row, to - from));
                    keep[i] = if state.started { exp_of(s, state.max - max) } else { 0.0 };
                    state.sum = state.sum * keep[i] + exp_row(s, row, row, to - from, max);
                    state.max = max;
                    if C::SCALED {
                        for (weight, factor) in scores[i][from..to].iter_mut().zip(&factors[from..to]) {
                            *weight *= factor;
                        }
                    }
                }
                if touched.contains(&true) {
                    self.add_values::<S, C, R, NV>(s, &scores, &keep, begin, len, first, real);
                }
                for i in 0..real {
                    self.state[query(i)].started |= touched[i];
                }
            }
            first += R;
        }
    }

    /// `y = keep·y + Σ weight·v` of queries `first..first + real`; y is not read before a query has started.
    ///
    /// # Safety
    /// The queries are in the tile, and the values `begin..begin + len` exist.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn add_values<S: Simd, C: Cache, const R: usize, const NV: usize>(
        &self,
        s: S,
        weights: &[[f32; BLOCK_KEYS]; R],
        keep: &[f32; R],
        begin: usize,
        len: usize,
        first: usize,
        real: usize,
    ) {
        let (dim, ld) = (self.args.head_dim as usize, self.args.ld_kv as usize);
        let nr = NV * S::LANES;
        let mut column = 0;
        while column < dim {
            let left = dim - column;
            let mut acc = [[s.zero(); NV]; R];
            // SAFETY: `left` columns are left of every value and result.
            unsafe {
                let values = self.args.v.cast::<C::Elem>().add(begin * ld + column);
                if left >= nr {
                    products::<S, C, R, NV, true>(s, weights, values, ld, len, left, &mut acc);
                } else {
                    products::<S, C, R, NV, false>(s, weights, values, ld, len, left, &mut acc);
                }
                for i in 0..real {
                    let y = self.y(first + i).add(column);
                    let started = self.state[first + i].started;
                    for v in 0..NV {
                        let at = v * S::LANES;
                        if at < left {
                            let mut sum = acc[i][v];
                            if started {
                                sum = s.fma(s.load_up_to(y.add(at), left - at), s.splat(keep[i]), sum);
                            }
                            s.store_up_to(y.add(at), sum, left - at);
                        }
                    }
                }
            }
            column += nr;
        }
    }
}

/// `acc += weights[:, j] · values[j, :]` over `len` rows of values; unless `FULL`, only `columns` of them exist.
///
/// # Safety
/// The values exist.
#[inline(always)]
unsafe fn products<S: Simd, C: Cache, const R: usize, const NV: usize, const FULL: bool>(
    s: S,
    weights: &[[f32; BLOCK_KEYS]; R],
    values: *const C::Elem,
    ld: usize,
    len: usize,
    columns: usize,
    acc: &mut [[S::V; NV]; R],
) {
    let mut sums = *acc;
    for j in 0..len.min(BLOCK_KEYS) {
        let mut row = [s.zero(); NV];
        // SAFETY: row j of the values exists, and vectors that begin beyond its columns are left out.
        unsafe {
            let value = values.add(j * ld);
            for v in 0..NV {
                let at = v * S::LANES;
                if FULL {
                    row[v] = C::load(s, value.add(at));
                } else if at < columns {
                    row[v] = C::load_up_to(s, value.add(at), columns - at);
                }
            }
        }
        for i in 0..R {
            let weight = s.splat(weights[i][j]);
            for v in 0..NV {
                sums[i][v] = s.fma(weight, row[v], sums[i][v]);
            }
        }
    }
    *acc = sums;
}
