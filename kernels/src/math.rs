//! Elementary functions on vectors, and reductions of rows.

// Loops over registers index several arrays at once.
#![allow(clippy::needless_range_loop)]

use crate::simd::{Simd, Weights};

/// exp to about 2 ulp; 0 below −104, ∞ above 89, subnormal results included; not-a-number stays.
///
/// exp(x) = 2ⁿ·exp(r), n = round(x/ln 2), r = x − n·ln 2 in two steps (Cody and Waite); exp(r) on ±ln 2/2 by the
/// polynomial of Cephes' `expf` (Moshier).
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    /// Adding and subtracting it rounds |x| < 2²² to an integer.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // The operand order of max and min keeps a not-a-number.
    let x = s.max(s.splat(-104.0), x);
    let x = s.min(s.splat(89.0), x);
    let round = s.splat(ROUND);
    let n = s.sub(s.fma(x, s.splat(core::f32::consts::LOG2_E), round), round);
    let r = s.fma(n, s.splat(-LN_2_HIGH), x);
    let r = s.fma(n, s.splat(-LN_2_LOW), r);
    let mut p = s.splat(POLYNOMIAL[0]);
    for &c in &POLYNOMIAL[1..] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    s.scale_by_power_of_two(p, n)
}

/// x·sigmoid(z) = x / (1 + exp(−z)).
#[inline(always)]
fn times_sigmoid<S: Simd>(s: S, x: S::V, z: S::V) -> S::V {
    let e = exp(s, s.sub(s.zero(), z));
    s.div(x, s.add(s.splat(1.0), e))
}

/// silu(x) = x·sigmoid(x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    times_sigmoid(s, x, x)
}

/// gelu in its tanh form, ½x(1 + tanh u) with u = √(2/π)·(x + 0.044715x³), as x·sigmoid(2u).
#[inline(always)]
pub(crate) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    const TWO_ROOT_2_OVER_PI: f32 = 1.595_769;
    let inner = s.fma(s.mul(x, x), s.splat(0.044_715 * TWO_ROOT_2_OVER_PI), s.splat(TWO_ROOT_2_OVER_PI));
    times_sigmoid(s, x, s.mul(x, inner))
}

/// Sum of squares of a row, in four independent sums.
///
/// # Safety
/// `x..x+n` is readable.
#[inline(always)]
pub(crate) unsafe fn sum_of_squares<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let mut acc = [s.zero(); 4];
    let mut i = 0;
    while i + 4 * S::LANES <= n {
        for (u, acc) in acc.iter_mut().enumerate() {
            // SAFETY: i + 4·LANES ≤ n.
            let v = unsafe { s.load(x.add(i + u * S::LANES)) };
            *acc = s.fma(v, v, *acc);
        }
        i += 4 * S::LANES;
    }
    while i < n {
        // SAFETY: n − i elements are left.
        let v = unsafe { s.load_up_to(x.add(i), n - i) };
        acc[0] = s.fma(v, v, acc[0]);
        i += S::LANES;
    }
    s.sum(s.add(s.add(acc[0], acc[1]), s.add(acc[2], acc[3])))
}

/// Largest element of a row, −∞ of an empty one; not-a-number never wins on x86-64 and always on AArch64.
///
/// # Safety
/// `x..x+n` is readable.
#[inline(always)]
pub(crate) unsafe fn largest<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let mut acc = s.splat(f32::NEG_INFINITY);
    let mut i = 0;
    while i + S::LANES <= n {
        // SAFETY: i + LANES ≤ n.
        acc = s.max(unsafe { s.load(x.add(i)) }, acc);
        i += S::LANES;
    }
    let mut max = s.max_lane(acc);
    while i < n {
        // SAFETY: i < n.
        let v = unsafe { x.add(i).read() };
        max = if v > max { v } else { max };
        i += 1;
    }
    max
}

/// Largest |x| of a row, 0 of an empty one. With not-a-number in the row, any number.
///
/// # Safety
/// `x..x+n` is readable.
#[inline(always)]
pub(crate) unsafe fn largest_size<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let mut acc = [s.zero(); 4];
    let mut i = 0;
    while i + 4 * S::LANES <= n {
        for (u, acc) in acc.iter_mut().enumerate() {
            // SAFETY: i + 4·LANES ≤ n.
            let v = unsafe { s.load(x.add(i + u * S::LANES)) };
            *acc = s.max(s.max(v, s.sub(s.zero(), v)), *acc);
        }
        i += 4 * S::LANES;
    }
    while i < n {
        // SAFETY: n − i elements are left.
        let v = unsafe { s.load_up_to(x.add(i), n - i) };
        acc[0] = s.max(s.max(v, s.sub(s.zero(), v)), acc[0]);
        i += S::LANES;
    }
    s.max_lane(s.max(s.max(acc[0], acc[1]), s.max(acc[2], acc[3])))
}

/// Dot product of two rows, the second as it is stored.
///
/// # Safety
/// `x..x+n` and `y..y+n` are readable.
#[inline(always)]
pub(crate) unsafe fn dot<S: Simd, W: Weights>(s: S, x: *const f32, y: *const W::Elem, n: usize) -> f32 {
    let mut acc = [s.zero(); 2];
    let mut i = 0;
    while i + 2 * S::LANES <= n {
        for u in 0..2 {
            let at = i + u * S::LANES;
            // SAFETY: i + 2·LANES ≤ n.
            acc[u] = unsafe { s.fma(s.load(x.add(at)), W::load(s, y.add(at)), acc[u]) };
        }
        i += 2 * S::LANES;
    }
    while i < n {
        // SAFETY: n − i elements are left.
        acc[0] = unsafe { s.fma(s.load_up_to(x.add(i), n - i), W::load_up_to(s, y.add(i), n - i), acc[0]) };
        i += S::LANES;
    }
    s.sum(s.add(acc[0], acc[1]))
}

/// Dot products of one row with four, which are read as they are stored.
///
/// # Safety
/// `x..x+n` and each `y..y+n` are readable.
#[inline(always)]
pub(crate) unsafe fn dot4<S: Simd, W: Weights>(s: S, x: *const f32, y: [*const W::Elem; 4], n: usize) -> [f32; 4] {
    let mut acc = [s.zero(); 4];
    let mut i = 0;
    while i + S::LANES <= n {
        // SAFETY: i + LANES ≤ n.
        let v = unsafe { s.load(x.add(i)) };
        for u in 0..4 {
            // SAFETY: i + LANES ≤ n.
            acc[u] = s.fma(v, unsafe { W::load(s, y[u].add(i)) }, acc[u]);
        }
        i += S::LANES;
    }
    if i < n {
        // SAFETY: n − i elements are left.
        let v = unsafe { s.load_first(x.add(i), n - i) };
        for u in 0..4 {
            // SAFETY: n − i elements are left.
            acc[u] = s.fma(v, unsafe { W::load_up_to(s, y[u].add(i), n - i) }, acc[u]);
        }
    }
    s.sum4(acc)
}

/// `x[i] = exp(x[i] − shift)`, and the sum of the results.
///
/// # Safety
/// `x..x+n` is readable, `y..y+n` writable; they are the same or do not overlap.
#[inline(always)]
pub(crate) unsafe fn exp_row<S: Simd>(s: S, x: *const f32, y: *mut f32, n: usize, shift: f32) -> f32 {
    let shift = s.splat(shift);
    let mut acc = s.zero();
    let mut i = 0;
    while i + S::LANES <= n {
        // SAFETY: i + LANES ≤ n.
        unsafe {
            let e = exp(s, s.sub(s.load(x.add(i)), shift));
            s.store(y.add(i), e);
            acc = s.add(acc, e);
        }
        i += S::LANES;
    }
    let mut sum = s.sum(acc);
    if i < n {
        // SAFETY: n − i elements are left.
        unsafe {
            let e = exp(s, s.sub(s.load_first(x.add(i), n - i), shift));
            s.store_first(y.add(i), e, n - i);
            for j in i..n {
                sum += y.add(j).read();
            }
        }
    }
    sum
}

/// `y[i] = f(x[i])`, rows of a matrix.
///
/// # Safety
/// `x..x+n` is readable, `y..y+n` writable; they are the same or do not overlap.
#[inline(always)]
pub(crate) unsafe fn map_row<S: Simd>(s: S, x: *const f32, y: *mut f32, n: usize, f: impl Fn(S::V) -> S::V) {
    let mut i = 0;
    while i + S::LANES <= n {
        // SAFETY: i + LANES ≤ n.
        unsafe { s.store(y.add(i), f(s.load(x.add(i)))) };
        i += S::LANES;
    }
    if i < n {
        // SAFETY: n − i elements are left.
        unsafe { s.store_first(y.add(i), f(s.load_first(x.add(i), n - i)), n - i) };
    }
}

/// `y[i] = f(a[i], b[i])`.
///
/// # Safety
/// `a..a+n` and `b..b+n` are readable, `y..y+n` writable; each is `y` or does not overlap it.
#[inline(always)]
pub(crate) unsafe fn zip_row<S: Simd>(
    s: S,
    a: *const f32,
    b: *const f32,
    y: *mut f32,
    n: usize,
    f: impl Fn(S::V, S::V) -> S::V,
) {
    let mut i = 0;
    while i + S::LANES <= n {
        // SAFETY: i + LANES ≤ n.
        unsafe { s.store(y.add(i), f(s.load(a.add(i)), s.load(b.add(i)))) };
        i += S::LANES;
    }
    if i < n {
        // SAFETY: n − i elements are left.
        unsafe {
            let v = f(s.load_first(a.add(i), n - i), s.load_first(b.add(i), n - i));
            s.store_first(y.add(i), v, n - i);
        }
    }
}
