//! Kernels over rows of a matrix: norms, softmax, activations, rotation, copies, gather and scatter, mean.

use crate::args::{CopyRowsArgs, IndexedRowsArgs, MeanRowsArgs, RmsNormArgs, RopeArgs, SiluMulArgs, UnaryArgs};
use crate::attend::scale_at;
use crate::math::{exp_row, gelu as gelu_of, largest, largest_size, map_row, silu as silu_of, sum_of_squares, zip_row};
use crate::quant::record::{codes, factors};
use crate::simd::{MOST_LANES, Simd};

/// `y = x / sqrt(mean(x²) + eps) · w`.
///
/// # Safety
/// `args` is valid as [`RmsNormArgs`] says.
#[inline(always)]
pub(crate) unsafe fn rms_norm<S: Simd>(s: S, args: &RmsNormArgs) {
    let n = args.n as usize;
    for r in 0..args.rows as usize {
        // SAFETY: row r of x and y and the n weights exist.
        unsafe {
            let x = args.x.add(r * args.ldx as usize);
            let y = args.y.add(r * args.ldy as usize);
            let mean = sum_of_squares(s, x, n) / n as f32;
            let factor = s.div(s.splat(1.0), s.sqrt(s.splat(mean + args.eps.value)));
            if args.w.is_null() {
                map_row(
                    s,
                    x,
                    y,
                    n,
                    #[inline(always)]
                    |v| s.mul(v, factor),
                );
            } else {
                zip_row(
                    s,
                    x,
                    args.w,
                    y,
                    n,
                    #[inline(always)]
                    |v, w| s.mul(s.mul(v, factor), w),
                );
            }
        }
    }
}

/// Softmax of one row.
///
/// # Safety
/// `x..x+n` is readable, `y..y+n` writable; they are the same or do not overlap.
#[inline(always)]
pub(crate) unsafe fn softmax_row<S: Simd>(s: S, x: *const f32, y: *mut f32, n: usize) {
    // SAFETY: the caller's promise; y holds the exponentials when it is read.
    unsafe {
        let shift = largest(s, x, n);
        let sum = exp_row(s, x, y, n, shift);
        let sum = s.splat(sum);
        map_row(
            s,
            y,
            y,
            n,
            #[inline(always)]
            |v| s.div(v, sum),
        );
    }
}

/// Calls `f(x, y)` with the start of every row.
///
/// # Safety
/// `args` is valid as [`UnaryArgs`] says.
#[inline(always)]
unsafe fn each_row(args: &UnaryArgs, f: impl Fn(*const f32, *mut f32)) {
    for r in 0..args.rows as usize {
        // SAFETY: row r of x and y exists.
        unsafe { f(args.x.add(r * args.ldx as usize), args.y.add(r * args.ldy as usize)) }
    }
}

/// `y = softmax(x)`, row by row.
///
/// # Safety
/// `args` is valid as [`UnaryArgs`] says.
#[inline(always)]
pub(crate) unsafe fn softmax<S: Simd>(s: S, args: &UnaryArgs) {
    // SAFETY: `each_row` gives rows of n elements.
    unsafe {
        each_row(
            args,
            #[inline(always)]
            |x, y| softmax_row(s, x, y, args.n as usize),
        )
    }
}

/// `y = x·sigmoid(x)`.
///
/// # Safety
/// `args` is valid as [`UnaryArgs`] says.
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(s: S, args: &UnaryArgs) {
    // SAFETY: `each_row` gives rows of n elements.
    unsafe {
        each_row(
            args,
            #[inline(always)]
            |x, y| {
                map_row(
                    s,
                    x,
                    y,
                    args.n as usize,
                    #[inline(always)]
                    |v| silu_of(s, v),
                )
            },
        )
    }
}

/// gelu in its tanh form.
///
/// # Safety
/// `args` is valid as [`UnaryArgs`] says.
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(s: S, args: &UnaryArgs) {
    // SAFETY: `each_row` gives rows of n elements.
    unsafe {
        each_row(
            args,
            #[inline(always)]
            |x, y| {
                map_row(
                    s,
                    x,
                    y,
                    args.n as usize,
                    #[inline(always)]
                    |v| gelu_of(s, v),
                )
            },
        )
    }
}

/// `y = x / max(‖x‖₂, 1e-12)`, as PyTorch's `normalize`.
///
/// # Safety
/// `args` is valid as [`UnaryArgs`] says.
#[inline(always)]
pub(crate) unsafe fn l2_normalize<S: Simd>(s: S, args: &UnaryArgs) {
    const SMALLEST_NORM: f32 = 1e-12;
    let n = args.n as usize;
    // SAFETY: `each_row` gives rows of n elements.
    unsafe {
        each_row(
            args,
            #[inline(always)]
            |x, y| {
                let norm = s.sqrt(s.splat(sum_of_squares(s, x, n)));
                let norm = s.max(norm, s.splat(SMALLEST_NORM));
                map_row(
                    s,
                    x,
                    y,
                    n,
                    #[inline(always)]
                    |v| s.div(v, norm),
                );
            },
        )
    }
}

/// `y = silu(gate) ⊙ up`.
///
/// # Safety
/// `args` is valid as [`SiluMulArgs`] says.
#[inline(always)]
pub(crate) unsafe fn silu_mul<S: Simd>(s: S, args: &SiluMulArgs) {
    for r in 0..args.rows as usize {
        // SAFETY: row r of gate, up and y exists.
        unsafe {
            zip_row(
                s,
                args.gate.add(r * args.ld_gate as usize),
                args.up.add(r * args.ld_up as usize),
                args.y.add(r * args.ldy as usize),
                args.n as usize,
                #[inline(always)]
                |gate, up| s.mul(silu_of(s, gate), up),
            );
        }
    }
}

/// Llama's half rotation.
///
/// # Safety
/// `args` is valid as [`RopeArgs`] says.
#[inline(always)]
pub(crate) unsafe fn rope<S: Simd>(s: S, args: &RopeArgs) {
    let half = args.head_dim as usize / 2;
    for r in 0..args.rows as usize {
        // SAFETY: the table has a row for every position.
        let (cos, sin) = unsafe {
            let cos = args.cos_sin.add((args.first_position as usize + r) * args.head_dim as usize);
            (cos, cos.add(half))
        };
        for h in 0..args.heads as usize {
            // SAFETY: head h of row r exists in x and y.
            let (x, y) = unsafe {
                (
                    args.x.add(r * args.x_row_stride as usize + h * args.x_head_stride as usize),
                    args.y.add(r * args.y_row_stride as usize + h * args.y_head_stride as usize),
                )
            };
            let mut i = 0;
            while i < half {
                let left = half - i;
                // SAFETY: `left` elements are left of both halves of x and y and of the table.
                unsafe {
                    let (low, high) = (s.load_up_to(x.add(i), left), s.load_up_to(x.add(half + i), left));
                    let (c, d) = (s.load_up_to(cos.add(i), left), s.load_up_to(sin.add(i), left));
                    s.store_up_to(y.add(i), s.sub(s.mul(low, c), s.mul(high, d)), left);
                    s.store_up_to(y.add(half + i), s.add(s.mul(high, c), s.mul(low, d)), left);
                }
                i += S::LANES;
            }
        }
    }
}

/// Calls `f(x, y)` with the start of every run, y by its offset in stored elements.
///
/// # Safety
/// `args` is valid as [`CopyRowsArgs`] says.
#[inline(always)]
unsafe fn each_run(args: &CopyRowsArgs, f: impl Fn(*const f32, usize)) {
    for r in 0..args.rows as usize {
        for h in 0..args.heads as usize {
            // SAFETY: run h of row r exists in x and y.
            unsafe {
                let x = args.x.add(r * args.x_row_stride as usize + h * args.x_head_stride as usize);
                f(x, r * args.y_row_stride as usize + h * args.y_head_stride as usize);
            }
        }
    }
}

/// Copies `rows × heads` runs.
///
/// # Safety
/// `args` is valid as [`CopyRowsArgs`] says; x and y do not overlap.
#[inline(always)]
pub(crate) unsafe fn copy_rows<S: Simd>(_: S, args: &CopyRowsArgs) {
    // SAFETY: `each_run` gives runs of n elements.
    unsafe {
        each_run(
            args,
            #[inline(always)]
            |x, at| x.copy_to_nonoverlapping(args.y.cast::<f32>().add(at), args.n as usize),
        )
    }
}

/// Copies runs, rounding them to binary16.
///
/// # Safety
/// As [`copy_rows`].
#[inline(always)]
pub(crate) unsafe fn copy_rows_f16<S: Simd>(s: S, args: &CopyRowsArgs) {
    let n = args.n as usize;
    let run = |x: *const f32, at: usize| {
        let mut i = 0;
        // SAFETY: runs have n elements; a vector that would end past its run goes through memory of its own.
        unsafe {
            let y = args.y.cast::<u16>().add(at);
            while i + S::LANES <= n {
                s.store_f16(y.add(i), s.load(x.add(i)));
                i += S::LANES;
            }
            if i < n {
                let mut last = [0u16; MOST_LANES];
                s.store_f16(last.as_mut_ptr(), s.load_first(x.add(i), n - i));
                last.as_ptr().copy_to_nonoverlapping(y.add(i), n - i);
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { each_run(args, run) }
}

/// Copies runs, quantizing each to a record of int8 codes and a scale.
///
/// # Safety
/// As [`copy_rows`].
#[inline(always)]
pub(crate) unsafe fn copy_rows_i8<S: Simd>(s: S, args: &CopyRowsArgs) {
    let n = args.n as usize;
    let run = |x: *const f32, at: usize| {
        let mut i = 0;
        // SAFETY: runs have n elements, records `kv_row_bytes(n)`; a vector that would end past the codes goes through memory
        // of its own.
        unsafe {
            let y = args.y.cast::<i8>().add(at);
            let (inverse, scale) = factors(largest_size(s, x, n));
            let inverse = s.splat(inverse);
            while i + S::LANES <= n {
                s.store_i8(y.add(i), codes(s, s.load(x.add(i)), inverse));
                i += S::LANES;
            }
            if i < n {
                let mut last = [0i8; MOST_LANES];
                s.store_i8(last.as_mut_ptr(), codes(s, s.load_first(x.add(i), n - i), inverse));
                last.as_ptr().copy_to_nonoverlapping(y.add(i), n - i);
            }
            y.add(n).write_bytes(0, scale_at(n) - n);
            y.add(scale_at(n)).cast::<f32>().write_unaligned(scale);
        }
    };
    // SAFETY: the caller's promise.
    unsafe { each_run(args, run) }
}

/// `y[i, :] = x[index[i], :]`.
///
/// # Safety
/// `args` is valid as [`IndexedRowsArgs`] says; x and y do not overlap.
#[inline(always)]
pub(crate) unsafe fn gather_rows<S: Simd>(_: S, args: &IndexedRowsArgs) {
    for i in 0..args.rows as usize {
        // SAFETY: index[i] is a row of x, and i a row of y.
        unsafe {
            let x = args.x.add(args.index.add(i).read() as usize * args.ldx as usize);
            x.copy_to_nonoverlapping(args.y.add(i * args.ldy as usize), args.n as usize);
        }
    }
}

/// `y[index[i], :] += gate[i]·x[i, :]`.
///
/// # Safety
/// `args` is valid as [`IndexedRowsArgs`] says; x and y do not overlap.
#[inline(always)]
pub(crate) unsafe fn scatter_add<S: Simd>(s: S, args: &IndexedRowsArgs) {
    for i in 0..args.rows as usize {
        // SAFETY: index[i] is a row of y, and i a row of x and of the gates.
        unsafe {
            let y = args.y.add(args.index.add(i).read() as usize * args.ldy as usize);
            let gate = if args.gate.is_null() { 1.0 } else { args.gate.add(i).read() };
            let gate = s.splat(gate);
            zip_row(
                s,
                args.x.add(i * args.ldx as usize),
                y,
                y,
                args.n as usize,
                #[inline(always)]
                |x, y| s.fma(gate, x, y),
            );
        }
    }
}

/// `y = mean over the rows of x`, added in row order.
///
/// # Safety
/// `args` is valid as [`MeanRowsArgs`] says.
#[inline(always)]
pub(crate) unsafe fn mean_rows<S: Simd>(s: S, args: &MeanRowsArgs) {
    let (rows, n) = (args.rows as usize, args.n as usize);
    let count = s.splat(rows as f32);
    let mut i = 0;
    while i < n {
        let mut sum = s.zero();
        // SAFETY: n − i columns are left of every row.
        unsafe {
            for r in 0..rows {
                sum = s.add(sum, s.load_up_to(args.x.add(r * args.ldx as usize + i), n - i));
            }
            s.store_up_to(args.y.add(i), s.div(sum, count), n - i);
        }
        i += S::LANES;
    }
}
