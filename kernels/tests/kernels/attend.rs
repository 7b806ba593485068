//! Attention. The oracle takes the definition of the key set literally, from a list of clusters instead of a chain.
//!
//! Tolerance: with δ the largest error of a score (head_dim + 4 roundings of Σ|q·k|·scale, plus one of the distance to
//! the maximum; an int8 cache has a product with the scale of a key or value more than f32), each weight errs by e^2δ − 1 ≈ 2δ relatively, and the weighted sum by 2 roundings per key more.

use crate::cache::{element_bytes, row_elements, store};
use crate::memory::{Expected, Guarded, Random, UNTOUCHED};
use crate::{EPS, Kernel, property};
use lapidary_kernels::args::{AttendArgs, F32Arg};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Clone, Copy, Debug)]
struct Case {
    clustered: bool,
    rows: usize,
    first_position: usize,
    num_keys: usize,
    heads: usize,
    dim: usize,
    causal: bool,
    window: usize,
    sinks: usize,
    cluster_cap: usize,
    num_clusters: usize,
    seed: u64,
}

impl Case {
    /// Whether the query at t sees key j.
    fn admits(&self, t: usize, j: usize, cluster: &[usize]) -> bool {
        if !self.clustered {
            let in_window = self.window == 0 || j + self.window > t;
            return in_window && (!self.causal || j <= t);
        }
        let later_of_cluster = (j + 1..=t).filter(|&i| cluster[i] == cluster[t]).count();
        j <= t
            && (t - j < self.window
                || j < self.sinks
                || cluster[j] == cluster[t] && later_of_cluster < self.cluster_cap)
    }
}

fn run(kernel: &Kernel, case: Case) {
    let Case { rows, heads, dim, .. } = case;
    let cache = kernel.row.weight;
    let random = &mut Random(case.seed);
    let positions = if case.causal { case.first_position + rows } else { case.num_keys };
    let ld_kv = row_elements(cache, dim) + random.below(3);
    // The bytes of the cache, and the values in them.
    let mut stored = || {
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for position in 0..positions {
            bytes.resize(position * ld_kv * element_bytes(cache), 0xaa);
            let row: Vec<f32> = (0..dim).map(|_| random.unit() * 2.0).collect();
            let (row_bytes, row_values) = store(cache, &row);
            bytes.extend(row_bytes);
            values.extend(row_values);
        }
        (Guarded::of(&bytes), values)
    };
    let ((k, k_values), (v, v_values)) = (stored(), stored());
    let ldq = heads * dim + random.below(3);
    let ldy = heads * dim + random.below(3);
    let q = random.floats((rows * ldq).saturating_sub(ldq - heads * dim), 2.0);
    let cluster: Vec<usize> = (0..positions).map(|_| random.below(case.num_clusters)).collect();
    let previous =
        Guarded::from_fn(positions, |t| (0..t).rev().find(|&i| cluster[i] == cluster[t]).map_or(-1, |i| i as i32));
    let scale = 1.0 / (dim as f32).sqrt();

    let mut y = Guarded::filled((rows * ldy).saturating_sub(ldy - heads * dim), UNTOUCHED);
    let mut expected = Expected::untouched(y.len());
    let mut keys_read = 0;
    for r in 0..rows {
        let keys: Vec<usize> = (0..positions).filter(|&j| case.admits(case.first_position + r, j, &cluster)).collect();
        keys_read += keys.len() as u64;
        for h in 0..heads {
            let q = &q[r * ldq + h * dim..][..dim];
            let term = |j: usize, i: usize| f64::from(scale) * f64::from(q[i]) * k_values[j * dim + i];
            let scores: Vec<f64> = keys.iter().map(|&j| (0..dim).map(|i| term(j, i)).sum()).collect();
            let size = |j: usize| (0..dim).map(|i| term(j, i).abs()).sum::<f64>();
            let largest_size = keys.iter().map(|&j| size(j)).fold(0.0, f64::max);
            let error = EPS * (dim as f64 + 6.0) * largest_size;
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for i in 0..dim {
                let (mut value, mut size) = (0.0, 0.0);
                for (&j, score) in keys.iter().zip(&scores) {
                    let term = (score - max).exp() / sum * v_values[j * dim + i];
                    value += term;
                    size += term.abs();
                }
                let tolerance = size * (2.0 * error + EPS * (2.0 * keys.len() as f64 + 8.0));
                expected.set(r * ldy + h * dim + i, value, tolerance);
            }
        }
    }
    let counter = AtomicU64::new(7);
    kernel.run(&AttendArgs {
        q: q.as_ptr(),
        ldq: ldq as u64,
        k: k.as_ptr(),
        v: v.as_ptr(),
        ld_kv: ld_kv as u64,
        y: y.as_mut_ptr(),
        ldy: ldy as u64,
        rows: rows as u64,
        first_position: case.first_position as u64,
        num_keys: case.num_keys as u64,
        heads_per_group: heads as u64,
        head_dim: dim as u64,
        causal: u64::from(case.causal),
        window: case.window as u64,
        sinks: case.sinks as u64,
        cluster_cap: case.cluster_cap as u64,
        previous: if case.clustered { previous.as_ptr() } else { std::ptr::null() },
        scale: F32Arg::new(scale),
        keys_read: if case.seed.is_multiple_of(2) { &counter } else { std::ptr::null() },
    });
    expected.check(&y, || format!("{} {case:?}", kernel.row.name));
    let counted = if case.seed.is_multiple_of(2) { 7 + keys_read } else { 7 };
    assert_eq!(counter.load(Relaxed), counted, "keys read by {} {case:?}", kernel.row.name);
}

const PLAIN: Case = Case {
    clustered: false,
    rows: 1,
    first_position: 0,
    num_keys: 1,
    heads: 1,
    dim: 1,
    causal: true,
    window: 0,
    sinks: 0,
    cluster_cap: 0,
    num_clusters: 3,
    seed: 2,
};

pub fn check_range(kernels: &[Kernel]) {
    for kernel in kernels {
        // Both sides of every vector width, and of a block of 64 keys.
        for dim in [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 32, 33, 64, 65, 80, 128, 256] {
            run(kernel, Case { rows: 2, first_position: 6, heads: 2, dim, ..PLAIN });
        }
        for first_position in [0, 1, 62, 63, 64, 65, 127, 128, 200] {
            run(kernel, Case { rows: 3, first_position, heads: 3, dim: 20, ..PLAIN });
            run(kernel, Case { rows: 9, first_position, heads: 1, dim: 32, window: 5, ..PLAIN });
        }
        for heads in [31, 32, 33, 65] {
            run(kernel, Case { rows: 2, first_position: 70, heads, dim: 4, ..PLAIN });
        }
        // No key at all: every query gets zeros.
        run(kernel, Case { rows: 2, num_keys: 0, causal: false, dim: 9, ..PLAIN });
        run(kernel, Case { rows: 2, first_position: 20, num_keys: 3, causal: false, window: 4, dim: 9, ..PLAIN });
    }
    let sizes = (0usize..40, 0usize..150, 0usize..150, 1usize..4, 1usize..70);
    property((sizes, any::<bool>(), 0usize..90, any::<u64>()), |(sizes, causal, window, seed)| {
        let (rows, first_position, num_keys, heads, dim) = sizes;
        for kernel in kernels {
            run(kernel, Case { rows, first_position, num_keys, heads, dim, causal, window, seed, ..PLAIN });
        }
    });
}

pub fn check_clustered(kernels: &[Kernel]) {
    let plain = Case { clustered: true, ..PLAIN };
    for kernel in kernels {
        // A window, sinks or cap of 0 admits none; all three: zeros.
        for (window, sinks, cluster_cap) in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (4, 4, 4), (500, 0, 9)] {
            run(kernel, Case { rows: 30, dim: 20, heads: 2, window, sinks, cluster_cap, ..plain });
        }
        for cluster_cap in [62, 63, 64, 65, 1000] {
            let case = Case { rows: 3, first_position: 300, dim: 16, sinks: 3, window: 5, cluster_cap, ..plain };
            run(kernel, case);
        }
    }
    let sizes = (0usize..20, 0usize..120, 1usize..4, 1usize..70);
    let sets = (0usize..20, 0usize..10, 0usize..20, 1usize..6);
    property((sizes, sets, any::<u64>()), |(sizes, sets, seed)| {
        let (rows, first_position, heads, dim) = sizes;
        let (window, sinks, cluster_cap, num_clusters) = sets;
        for kernel in kernels {
            let case = Case { rows, first_position, heads, dim, window, sinks, ..plain };
            run(kernel, Case { cluster_cap, num_clusters, seed, ..case });
        }
    });
}
