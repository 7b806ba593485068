//! Routing: scores of the clusters, a token's cluster, grouping tokens by module, cluster memory, cluster chains.

use crate::args::{ClusterAppendArgs, RouteClusterArgs, RouteGroupArgs, RouteMemoryArgs, RouteScoresArgs};
use crate::math::{dot, dot4};
use crate::rows::softmax_row;
use crate::simd::{F32, Scalar, Simd};
use core::sync::atomic::Ordering::Relaxed;

/// `a = softmax_c(scale·q·keys[c] + lambda·ln(domains[c mod D] + 1e-6))`.
///
/// # Safety
/// `args` is valid as [`RouteScoresArgs`] says.
#[inline(always)]
pub(crate) unsafe fn route_scores<S: Simd>(s: S, args: &RouteScoresArgs) {
    const FLOOR: f32 = 1e-6;
    let (dim, clusters) = (args.dim as usize, args.num_clusters as usize);
    let domains = (args.num_domains as usize).max(1);
    for r in 0..args.rows as usize {
        // SAFETY: row r of q and a, every key and every domain of the row exist.
        unsafe {
            let q = args.q.add(r * args.ldq as usize);
            let a = args.a.add(r * clusters);
            let mut c = 0;
            while c + 4 <= clusters {
                let keys = [c, c + 1, c + 2, c + 3].map(
                    #[inline(always)]
                    |c| args.keys.add(c * dim),
                );
                for (u, score) in dot4::<S, F32>(s, q, keys, dim).into_iter().enumerate() {
                    a.add(c + u).write(args.scale.value * score);
                }
                c += 4;
            }
            while c < clusters {
                a.add(c).write(args.scale.value * dot::<S, F32>(s, q, args.keys.add(c * dim), dim));
                c += 1;
            }
            for domain in 0..domains.min(clusters) {
                let probability = if args.domains.is_null() {
                    1.0 / domains as f32
                } else {
                    args.domains.add(r * domains + domain).read()
                };
                let prior = args.lambda.value * libm::logf(probability + FLOOR);
                for c in (domain..clusters).step_by(domains) {
                    *a.add(c) += prior;
                }
            }
            softmax_row(s, a, a, clusters);
        }
    }
}

/// `cluster[r] = argmax_c a[r, c]`, the lowest index winning a tie. Not-a-number never wins.
///
/// # Safety
/// `args` is valid as [`RouteClusterArgs`] says.
#[inline(always)]
pub(crate) unsafe fn route_cluster(_: Scalar, args: &RouteClusterArgs) {
    let clusters = args.num_clusters as usize;
    for r in 0..args.rows as usize {
        let (mut best, mut best_score) = (0, f32::NEG_INFINITY);
        for c in 0..clusters {
            // SAFETY: row r of a exists.
            let score = unsafe { args.a.add(r * clusters + c).read() };
            if score > best_score {
                (best, best_score) = (c as u32, score);
            }
        }
        // SAFETY: r < rows.
        unsafe { args.cluster.add(r).write(best) };
    }
}

/// Counting sort of the (token, module) pairs by module; tokens ascend within a module.
///
/// # Safety
/// `args` is valid as [`RouteGroupArgs`] says.
#[inline(always)]
pub(crate) unsafe fn route_group(_: Scalar, args: &RouteGroupArgs) {
    let (rows, modules) = (args.rows as usize, args.num_modules as usize);
    let mut entries = 0;
    for module in 0..modules {
        // SAFETY: module < num_modules, and there are never more than rows × num_modules entries.
        unsafe {
            args.offsets.add(module).write(entries as u32);
            for r in 0..rows {
                let at = r * modules + module;
                if args.mask.add(at).read() != 0 {
                    args.tokens.add(entries).write(r as u32);
                    args.token_gates.add(entries).write(args.gates.add(at).read());
                    entries += 1;
                }
            }
        }
    }
    // SAFETY: offsets has num_modules + 1 elements; the counter is null or live.
    unsafe {
        args.offsets.add(modules).write(entries as u32);
        if let Some(counter) = args.rows_routed.as_ref() {
            counter.fetch_add(entries as u64, Relaxed);
        }
    }
}

/// `y[r, :] = Σ gates[r, c]·values[c, :]` over the selected c, ascending.
///
/// # Safety
/// `args` is valid as [`RouteMemoryArgs`] says.
#[inline(always)]
pub(crate) unsafe fn route_memory<S: Simd>(s: S, args: &RouteMemoryArgs) {
    let (clusters, dim) = (args.num_clusters as usize, args.dim as usize);
    for r in 0..args.rows as usize {
        // SAFETY: row r of mask, gates and y, and every row of the values exist.
        unsafe {
            let y = args.y.add(r * args.ldy as usize);
            y.write_bytes(0, dim);
            for c in 0..clusters {
                if args.mask.add(r * clusters + c).read() != 0 {
                    let gate = s.splat(args.gates.add(r * clusters + c).read());
                    crate::math::zip_row(
                        s,
                        args.values.add(c * dim),
                        y,
                        y,
                        dim,
                        #[inline(always)]
                        |value, y| s.fma(gate, value, y),
                    );
                }
            }
        }
    }
}

/// Chains the positions of each cluster. A cluster number out of range is left out (its `previous` is −1).
///
/// # Safety
/// `args` is valid as [`ClusterAppendArgs`] says.
#[inline(always)]
pub(crate) unsafe fn cluster_append(_: Scalar, args: &ClusterAppendArgs) {
    let clusters = args.num_clusters as usize;
    if args.first_position == 0 {
        for c in 0..clusters {
            // SAFETY: c < num_clusters.
            unsafe { args.last.add(c).write(-1) };
        }
    }
    for r in 0..args.rows as usize {
        let position = args.first_position as usize + r;
        // SAFETY: r < rows, its position exists, and `last` is only used below num_clusters.
        unsafe {
            let cluster = args.cluster.add(r).read() as usize;
            let previous = args.previous.add(position);
            if cluster < clusters {
                let last = args.last.add(cluster);
                previous.write(last.read());
                last.write(position as i32);
            } else {
                previous.write(-1);
            }
        }
    }
}
