//! Attention of one key/value head's group of query heads: over a range of keys, or over GEM's clustered set.
//!
//! Softmax is online: keys come in blocks, a running maximum and sum per head rescale what was summed before. The
//! weighted values are summed in the result itself, so scratch is a block of scores and two numbers per head.

use crate::args::AttendArgs;
use crate::math::{dot, dot4, exp_row, largest};
use crate::simd::Simd;
use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

/// Keys of a block: with heads of 64 elements their keys and values fill 32 KiB.
const BLOCK_KEYS: usize = 64;

/// Heads that go over the keys together.
const HEADS: usize = 32;

/// Positions of the keys of one block.
struct Block {
    position: [usize; BLOCK_KEYS],
    len: usize,
}

/// Running softmax of up to [`HEADS`] heads of one query row.
struct Query<'a> {
    args: &'a AttendArgs,
    /// Query of the first head.
    q: *const f32,
    /// Result of the first head.
    y: *mut f32,
    heads: usize,
    max: [f32; HEADS],
    sum: [f32; HEADS],
    /// Whether a block has been taken in: before, y holds nothing.
    started: bool,
}

impl<'a> Query<'a> {
    #[inline(always)]
    fn new(args: &'a AttendArgs, q: *const f32, y: *mut f32, heads: usize) -> Self {
        Self {
            args,
            q,
            y,
            heads,
            max: [f32::NEG_INFINITY; HEADS],
            sum: [0.0; HEADS],
            started: false,
        }
    }

    /// Takes in a block of keys.
    ///
    /// # Safety
    /// The arguments are valid, and the positions of the block exist.
    #[inline(always)]
    unsafe fn take<S: Simd>(&mut self, s: S, block: &Block) {
        let (dim, ld) = (self.args.head_dim as usize, self.args.ld_kv as usize);
        let positions = &block.position[..block.len];
        let mut scores = [0.0f32; BLOCK_KEYS];
        for h in 0..self.heads {
            // SAFETY: head h < heads of the row and every position of the block exist; `scores` holds a block.
            unsafe {
                let q = self.q.add(h * dim);
                score(
                    s,
                    q,
                    self.args.k,
                    ld,
                    dim,
                    positions,
                    self.args.scale.value,
                    &mut scores,
                );
                let max = self.max[h].max(largest(s, scores.as_ptr(), positions.len()));
                let keep = if self.started {
                    exp_of(s, self.max[h] - max)
                } else {
                    0.0
                };
                let sum = exp_row(
                    s,
                    scores.as_ptr(),
                    scores.as_mut_ptr(),
                    positions.len(),
                    max,
                );
                self.sum[h] = self.sum[h] * keep + sum;
                self.max[h] = max;
                let keep = self.started.then_some(keep);
                let y = self.y.add(h * dim);
                let mut column = 0;
                while column + 4 * S::LANES <= dim {
                    add_values::<S, 4>(s, self.args.v, ld, positions, &scores, y, column, keep);
                    column += 4 * S::LANES;
                }
                while column + S::LANES <= dim {
                    add_values::<S, 1>(s, self.args.v, ld, positions, &scores, y, column, keep);
                    column += S::LANES;
                }
                if column < dim {
                    add_last_values(s, self.args.v, ld, positions, &scores, y, column, dim, keep);
                }
            }
        }
        self.started = true;
    }

    /// Divides by the sums; zeros when there was no key.
    ///
    /// # Safety
    /// The arguments are valid.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S) {
        let dim = self.args.head_dim as usize;
        for h in 0..self.heads {
            // SAFETY: head h of the row exists.
            unsafe {
                let y = self.y.add(h * dim);
                if !self.started {
                    y.write_bytes(0, dim);
                    continue;
                }
                let sum = s.splat(self.sum[h]);
                crate::math::map_row(
                    s,
                    y,
                    y,
                    dim,
                    #[inline(always)]
                    |v| s.div(v, sum),
                );
            }
        }
    }
}

/// exp of one number, by the same code as the rows.
#[inline(always)]
fn exp_of<S: Simd>(s: S, x: f32) -> f32 {
    s.max_lane(crate::math::exp(s, s.splat(x)))
}

/// `scores[j] = scale · q·k[positions[j]]`.
///
/// # Safety
/// q and every key have `dim` elements.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn score<S: Simd>(
    s: S,
    q: *const f32,
    k: *const f32,
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
            let keys = [
                k.add(four[0] * ld),
                k.add(four[1] * ld),
                k.add(four[2] * ld),
                k.add(four[3] * ld),
            ];
            for (score, out) in dot4(s, q, keys, dim).into_iter().zip(&mut out) {
                *out = score * scale;
            }
        }
        for (&position, out) in fours.remainder().iter().zip(&mut out) {
            *out = dot(s, q, k.add(position * ld), dim) * scale;
        }
    }
}

/// `y = keep·y + Σ weight·v` for `NV` vectors of columns; without `keep`, y is not read.
///
/// # Safety
/// `column + NV·LANES` columns of y and of every value exist.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn add_values<S: Simd, const NV: usize>(
    s: S,
    v: *const f32,
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
                even[u] = s.fma(w0, s.load(v0.add(u * S::LANES)), even[u]);
                odd[u] = s.fma(w1, s.load(v1.add(u * S::LANES)), odd[u]);
            }
        }
        for &position in last {
            let v = v.add(position * ld + column);
            let weight = s.splat(weights[positions.len() - 1]);
            for u in 0..NV {
                even[u] = s.fma(weight, s.load(v.add(u * S::LANES)), even[u]);
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
unsafe fn add_last_values<S: Simd>(
    s: S,
    v: *const f32,
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
            acc = s.fma(
                s.splat(weight),
                s.load_first(v.add(position * ld + column), lanes),
                acc,
            );
        }
        s.store_first(y.add(column), acc, lanes);
    }
}

/// The keys that one query sees, each once: the sinks, the window, then its cluster's chain outside of both.
struct Keys {
    sinks: Range<usize>,
    window: Range<usize>,
    /// Positions of the chain that are not in the other two.
    between: Range<usize>,
    previous: *const i32,
    /// Next position of the chain, negative at its end.
    next: i64,
    /// How many positions of the chain may still count.
    left: u64,
}

impl Keys {
    /// Keys of `attend_range`.
    #[inline(always)]
    fn in_range(args: &AttendArgs, position: usize) -> Self {
        let end = if args.causal != 0 {
            position + 1
        } else {
            args.num_keys as usize
        };
        let begin = if args.window > 0 {
            (position + 1).saturating_sub(args.window as usize)
        } else {
            0
        };
        Self {
            sinks: 0..0,
            window: begin..end,
            between: 0..0,
            previous: args.previous,
            next: -1,
            left: 0,
        }
    }

    /// Keys of `attend_clustered`.
    #[inline(always)]
    fn clustered(args: &AttendArgs, position: usize) -> Self {
        let end = position + 1;
        let sinks = end.min(args.sinks as usize);
        let window = end.saturating_sub(args.window as usize).max(sinks);
        Self {
            sinks: 0..sinks,
            window: window..end,
            between: sinks..window,
            previous: args.previous,
            next: position as i64,
            left: args.cluster_cap,
        }
    }

    /// Fills a block with the next keys.
    ///
    /// # Safety
    /// The chain is empty, or `previous` has an element for its first position and every earlier one.
    #[inline(always)]
    unsafe fn fill(&mut self, block: &mut Block) {
        block.len = 0;
        for range in [&mut self.sinks, &mut self.window] {
            let taken = range.len().min(BLOCK_KEYS - block.len);
            for position in &mut block.position[block.len..block.len + taken] {
                *position = range.start;
                range.start += 1;
            }
            block.len += taken;
        }
        while block.len < BLOCK_KEYS && self.left > 0 && self.next >= 0 {
            let key = self.next as usize;
            self.left -= 1;
            // SAFETY: the chain only descends from its first position.
            let previous = i64::from(unsafe { self.previous.add(key).read() });
            // A chain that does not descend is broken: it ends, instead of running in circles.
            self.next = if previous < self.next { previous } else { -1 };
            if self.between.contains(&key) {
                block.position[block.len] = key;
                block.len += 1;
            }
        }
    }
}

/// Goes over every row and chunk of heads.
///
/// # Safety
/// `args` is valid as [`AttendArgs`] says, and `keys` gives keys that exist.
#[inline(always)]
unsafe fn attend<S: Simd>(s: S, args: &AttendArgs, keys: impl Fn(&AttendArgs, usize) -> Keys) {
    let (heads, dim) = (args.heads_per_group as usize, args.head_dim as usize);
    let mut keys_read = 0;
    let mut block = Block {
        position: [0; BLOCK_KEYS],
        len: 0,
    };
    for r in 0..args.rows as usize {
        let mut head = 0;
        while head < heads {
            let together = HEADS.min(heads - head);
            let mut keys = keys(args, args.first_position as usize + r);
            // SAFETY: heads head..head + together of row r exist, and so do the keys.
            unsafe {
                let q = args.q.add(r * args.ldq as usize + head * dim);
                let y = args.y.add(r * args.ldy as usize + head * dim);
                let mut query = Query::new(args, q, y, together);
                loop {
                    keys.fill(&mut block);
                    if block.len == 0 {
                        break;
                    }
                    query.take(s, &block);
                    keys_read += if head == 0 { block.len as u64 } else { 0 };
                }
                query.finish(s);
            }
            head += together;
        }
    }
    // SAFETY: null or a live counter.
    if let Some(counter) = unsafe { args.keys_read.as_ref() } {
        counter.fetch_add(keys_read, Relaxed);
    }
}

/// Attention over a range of keys.
///
/// # Safety
/// `args` is valid as [`AttendArgs`] says.
#[inline(always)]
pub(crate) unsafe fn attend_range<S: Simd>(s: S, args: &AttendArgs) {
    // SAFETY: the caller's promise covers the keys of the range.
    unsafe {
        attend(
            s,
            args,
            #[inline(always)]
            |args, position| Keys::in_range(args, position),
        )
    }
}

/// Attention over window, sinks and the query's own cluster.
///
/// # Safety
/// `args` is valid as [`AttendArgs`] says.
#[inline(always)]
pub(crate) unsafe fn attend_clustered<S: Simd>(s: S, args: &AttendArgs) {
    // SAFETY: the caller's promise covers every position up to the query's.
    unsafe {
        attend(
            s,
            args,
            #[inline(always)]
            |args, position| Keys::clustered(args, position),
        )
    }
}
