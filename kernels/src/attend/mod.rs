//! Attention of one key/value head's group of query heads: over a range of keys, or over GEM's clustered set.
//!
//! Softmax is online: keys come in blocks, a running maximum and sum per query rescale what was summed before. The
//! weighted values are summed in the result itself.
//!
//! Queries go in tiles of rows. What all rows of a tile see (most of a causal range or a window) is two small matrix
//! products per block of keys (`tile`); what only one row sees (its cluster), and everything when there are few queries,
//! is read key by key (`row`). Keys and values are read as the cache stores them (`cache`).

mod cache;
mod keys;
mod row;
mod tile;

pub use cache::kv_row_bytes;
pub(crate) use cache::scale_at;

use crate::args::AttendArgs;
use crate::math::{exp, map_row};
use crate::simd::Simd;
use cache::Cache;
use core::sync::atomic::Ordering::Relaxed;
use keys::{BLOCK_KEYS, Block, Keys};

/// Queries (rows × heads) of a tile.
const QUERIES: usize = 64;

/// Fewer queries than these are taken row by row: transposing the keys would cost more than it saves.
const FEW_QUERIES: usize = 16;

/// Running softmax of one query.
#[derive(Clone, Copy)]
struct State {
    max: f32,
    sum: f32,
    /// Whether a key has been taken in: before, y holds nothing.
    started: bool,
}

/// A tile: `rows` consecutive query rows of `heads` heads.
struct Queries<'a> {
    args: &'a AttendArgs,
    first_row: usize,
    rows: usize,
    first_head: usize,
    heads: usize,
    /// Of query `row · heads + head`.
    state: [State; QUERIES],
}

impl Queries<'_> {
    /// Elements from the first query or result to that of `query`, in rows of `ld` elements.
    #[inline(always)]
    fn offset(&self, query: usize, ld: u64) -> usize {
        let (row, head) = (self.first_row + query / self.heads, self.first_head + query % self.heads);
        row * ld as usize + head * self.args.head_dim as usize
    }

    /// # Safety
    /// The arguments are valid and `query` is in the tile.
    #[inline(always)]
    unsafe fn q(&self, query: usize) -> *const f32 {
        // SAFETY: the caller's promise.
        unsafe { self.args.q.add(self.offset(query, self.args.ldq)) }
    }

    /// # Safety
    /// The arguments are valid and `query` is in the tile.
    #[inline(always)]
    unsafe fn y(&self, query: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.args.y.add(self.offset(query, self.args.ldy)) }
    }

    /// Position of a row of the tile.
    #[inline(always)]
    fn position(&self, row: usize) -> usize {
        self.args.first_position as usize + self.first_row + row
    }

    /// Divides by the sums; zeros when there was no key.
    ///
    /// # Safety
    /// The arguments are valid.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S) {
        let dim = self.args.head_dim as usize;
        for query in 0..self.rows * self.heads {
            let state = self.state[query];
            let sum = s.splat(state.sum);
            // SAFETY: the query is in the tile.
            unsafe {
                let y = self.y(query);
                if state.started {
                    map_row(
                        s,
                        y,
                        y,
                        dim,
                        #[inline(always)]
                        |v| s.div(v, sum),
                    );
                } else {
                    y.write_bytes(0, dim);
                }
            }
        }
    }
}

/// exp of one number, by the same code as the rows.
#[inline(always)]
fn exp_of<S: Simd>(s: S, x: f32) -> f32 {
    s.max_lane(exp(s, s.splat(x)))
}

/// Goes over every tile of queries.
///
/// # Safety
/// `args` is valid as [`AttendArgs`] says, and `keys` gives keys that exist.
#[inline(always)]
unsafe fn attend<S: Simd, C: Cache, const R: usize, const NV: usize>(
    s: S,
    args: &AttendArgs,
    keys: impl Fn(&AttendArgs, usize) -> Keys,
) {
    let (rows, heads) = (args.rows as usize, args.heads_per_group as usize);
    let mut keys_read = 0;
    let mut first_head = 0;
    while first_head < heads {
        let heads = QUERIES.min(heads - first_head);
        let mut first_row = 0;
        while first_row < rows {
            let mut queries = Queries {
                args,
                first_row,
                rows: (QUERIES / heads).min(rows - first_row),
                first_head,
                heads,
                state: [State { max: f32::NEG_INFINITY, sum: 0.0, started: false }; QUERIES],
            };
            let together = queries.rows * heads >= FEW_QUERIES && args.head_dim as usize <= tile::MOST_DIM;
            let mut read = 0;
            // SAFETY: the tile's rows and heads exist, and so do its keys.
            unsafe {
                if together {
                    read += queries.take_ranges::<S, C, R, NV>(
                        s,
                        #[inline(always)]
                        |position| keys(args, position).sinks,
                    );
                    read += queries.take_ranges::<S, C, R, NV>(
                        s,
                        #[inline(always)]
                        |position| keys(args, position).window,
                    );
                }
                let mut block = Block { position: [0; BLOCK_KEYS], len: 0 };
                for row in 0..queries.rows {
                    let mut keys = keys(args, queries.position(row));
                    if together {
                        keys.skip_ranges();
                    }
                    loop {
                        keys.fill(&mut block);
                        if block.len == 0 {
                            break;
                        }
                        queries.take_block::<S, C>(s, row, &block);
                        read += block.len;
                    }
                }
                queries.finish(s);
            }
            keys_read += if first_head == 0 { read as u64 } else { 0 };
            first_row += queries.rows;
        }
        first_head += heads;
    }
    // SAFETY: null or a live counter.
    if let Some(counter) = unsafe { args.keys_read.as_ref() } {
        counter.fetch_add(keys_read, Relaxed);
    }
}

/// Attention over a range of keys, `R` queries by `NV` vectors at a time.
///
/// # Safety
/// `args` is valid as [`AttendArgs`] says.
#[inline(always)]
pub(crate) unsafe fn attend_range<S: Simd, C: Cache, const R: usize, const NV: usize>(s: S, args: &AttendArgs) {
    // SAFETY: the caller's promise covers the keys of the range.
    unsafe { attend::<S, C, R, NV>(s, args, Keys::in_range) }
}

/// Attention over window, sinks and the query's own cluster, `R` queries by `NV` vectors at a time.
///
/// # Safety
/// `args` is valid as [`AttendArgs`] says.
#[inline(always)]
pub(crate) unsafe fn attend_clustered<S: Simd, C: Cache, const R: usize, const NV: usize>(s: S, args: &AttendArgs) {
    // SAFETY: the caller's promise covers every position up to the query's.
    unsafe { attend::<S, C, R, NV>(s, args, Keys::clustered) }
}
