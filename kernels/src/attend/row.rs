//! Attention of one query row: its keys may lie anywhere.

// Loops over registers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::cache::Cache;
use super::keys::{BLOCK_KEYS, Block};
use super::{Queries, exp_of};
use crate::math::{dot, dot4, exp_row, largest};
use crate::simd::Simd;

impl Queries<'_> {
    /// Takes in a block of keys for all heads of row `row` of the tile.
    ///
    /// # Safety
    /// The arguments are valid, and the positions of the block exist.
    #[inline(always)]
    pub(super) unsafe fn take_block<S: Simd, C: Cache>(&mut self, s: S, row: usize, block: &Block) {
        let (args, dim, ld) = (self.args, self.args.head_dim as usize, self.args.ld_kv as usize);
        let positions = &block.position[..block.len.min(BLOCK_KEYS)];
        let mut scores = [0.0f32; BLOCK_KEYS];
        for query in row * self.heads..(row + 1) * self.heads {
            // SAFETY: the query and every position of the block exist; `scores` holds a block.
            unsafe {
                let (q, y) = (self.q(query), self.y(query));
                let (k, v) = (args.k.cast::<C::Elem>(), args.v.cast::<C::Elem>());
                score::<S, C>(s, q, k, ld, dim, positions, args.scale.value, &mut scores);
                let state = &mut self.state[query];
                let max = state.max.max(largest(s, scores.as_ptr(), positions.len()));
                let keep = state.started.then(
                    #[inline(always)]
                    || exp_of(s, state.max - max),
                );
                let sum = exp_row(s, scores.as_ptr(), scores.as_mut_ptr(), positions.len(), max);
                state.sum = state.sum * keep.unwrap_or(0.0) + sum;
                state.max = max;
                state.started = true;
                if C::SCALED {
                    for (weight, &position) in scores.iter_mut().zip(positions) {
                        *weight *= C::scale(v.add(position * ld), dim);
                    }
                }
                let mut column = 0;
                while column + 4 * S::LANES <= dim {
                    add_values::<S, C, 4>(s, v, ld, positions, &scores, y, column, keep);
                    column += 4 * S::LANES;
                }
                while column + S::LANES <= dim {
                    add_values::<S, C, 1>(s, v, ld, positions, &scores, y, column, keep);
                    column += S::LANES;
                }
                if column < dim {
                    add_last_values::<S, C>(s, v, ld, positions, &scores, y, column, dim, keep);
                }
            }
        }
    }
}

/// `scores[j] = scale · q·k[positions[j]]`.
///
/// # Safety
/// q and every key have `dim` elements.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn score<S: Simd, C: Cache>(
    s: S,
    q: *const f32,
    k: *const C::Elem,
    ld: usize,
    dim: usize,
    positions: &[usize],
    scale: f32,
    scores: &mut [f32; BLOCK_KEYS],
) {
    let mut fours = positions.chunks_exact(4);
    let mut out = scores.iter_mut();
    // SAFETY: the keys at the positions exist.
    unsafe {
        for four in &mut fours {
            let keys = [k.add(four[0] * ld), k.add(four[1] * ld), k.add(four[2] * ld), k.add(four[3] * ld)];
            for ((score, key), out) in dot4::<S, C>(s, q, keys, dim).into_iter().zip(keys).zip(&mut out) {
                *out = score * scale;
                if C::SCALED {
                    *out *= C::scale(key, dim);
                }
            }
        }
        for (&position, out) in fours.remainder().iter().zip(&mut out) {
            let key = k.add(position * ld);
            *out = dot::<S, C>(s, q, key, dim) * scale;
            if C::SCALED {
                *out *= C::scale(key, dim);
            }
        }
    }
}

/// `y = keep·y + Σ weight·v` for `NV` vectors of columns; without `keep`, y is not read.
///
/// # Safety
/// `column + NV·LANES` columns of y and of every value exist.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn add_values<S: Simd, C: Cache, const NV: usize>(
    s: S,
    v: *const C::Elem,
    ld: usize,
    positions: &[usize],
    weights: &[f32; BLOCK_KEYS],
    y: *mut f32,
    column: usize,
    keep: Option<f32>,
) {
    let mut even = [s.zero(); NV];
    let mut odd = [s.zero(); NV];
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(keep) = keep {
            for (u, acc) in even.iter_mut().enumerate() {
                *acc = s.mul(s.load(y.add(column + u * S::LANES)), s.splat(keep));
            }
        }
        let pairs = positions.chunks_exact(2);
        let last = pairs.remainder();
        for (pair, weight) in pairs.zip(weights.chunks_exact(2)) {
            let (v0, v1) = (v.add(pair[0] * ld + column), v.add(pair[1] * ld + column));
            let (w0, w1) = (s.splat(weight[0]), s.splat(weight[1]));
            for u in 0..NV {
                even[u] = s.fma(w0, C::load(s, v0.add(u * S::LANES)), even[u]);
                odd[u] = s.fma(w1, C::load(s, v1.add(u * S::LANES)), odd[u]);
            }
        }
        for &position in last {
            let v = v.add(position * ld + column);
            let weight = s.splat(weights[positions.len() - 1]);
            for u in 0..NV {
                even[u] = s.fma(weight, C::load(s, v.add(u * S::LANES)), even[u]);
            }
        }
        for u in 0..NV {
            s.store(y.add(column + u * S::LANES), s.add(even[u], odd[u]));
        }
    }
}

/// [`add_values`] for the last columns, fewer than a vector.
///
/// # Safety
/// Columns `column..dim` of y and of every value exist.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn add_last_values<S: Simd, C: Cache>(
    s: S,
    v: *const C::Elem,
    ld: usize,
    positions: &[usize],
    weights: &[f32; BLOCK_KEYS],
    y: *mut f32,
    column: usize,
    dim: usize,
    keep: Option<f32>,
) {
    let lanes = dim - column;
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = s.zero();
        if let Some(keep) = keep {
            acc = s.mul(s.load_first(y.add(column), lanes), s.splat(keep));
        }
        for (&position, &weight) in positions.iter().zip(weights) {
            acc = s.fma(s.splat(weight), C::load_up_to(s, v.add(position * ld + column), lanes), acc);
        }
        s.store_first(y.add(column), acc, lanes);
    }
}
