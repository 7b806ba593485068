//! Routing scores, clusters, groups, memory, chains.

use crate::memory::{Expected, Guarded, Random, UNTOUCHED};
use crate::{EPS, Kernel, property};
use lapidary_kernels::args::{
    ClusterAppendArgs, F32Arg, RouteClusterArgs, RouteGroupArgs, RouteMemoryArgs, RouteScoresArgs,
};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The score errs by dim + 6 roundings of the sizes of its terms; softmax makes that relative.
pub fn check_scores(kernels: &[Kernel]) {
    let sizes = (0usize..5, 1usize..70, 1usize..40, 1usize..12);
    property((sizes, any::<bool>(), any::<u64>()), |((rows, dim, clusters, domains), uniform, seed)| {
        let random = &mut Random(seed);
        let ldq = dim + random.below(3);
        let q = random.floats((rows * ldq).saturating_sub(ldq - dim), 1.5);
        let keys = random.floats(clusters * dim, 1.5);
        // Some domains are impossible: their prior is ln(1e-6).
        let pi = Guarded::from_fn(rows * domains, |_| if random.flag() { random.unit().abs() } else { 0.0 });
        let (scale, lambda) = (1.0 / (dim as f32).sqrt(), random.unit());
        for kernel in kernels {
            let mut a = Guarded::filled(rows * clusters, UNTOUCHED);
            let mut expected = Expected::untouched(a.len());
            for r in 0..rows {
                let mut largest = 0.0f64;
                let scores: Vec<f64> = (0..clusters)
                    .map(|c| {
                        let terms = (0..dim)
                            .map(|i| f64::from(q[r * ldq + i]) * f64::from(keys[c * dim + i]) * f64::from(scale));
                        let (score, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                        let pi = if uniform { 1.0 / domains as f64 } else { f64::from(pi[r * domains + c % domains]) };
                        let prior = f64::from(lambda) * (pi + f64::from(1e-6f32)).ln();
                        // The argument of ln errs by one rounding, which ln makes absolute.
                        largest = largest.max((dim as f64 + 6.0) * (size + prior.abs()) + lambda.abs() as f64);
                        score + prior
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for (c, score) in scores.iter().enumerate() {
                    let value = (score - max).exp() / sum;
                    let tolerance = value * EPS * (2.0 * largest + (max - score) + 8.0 + clusters as f64);
                    expected.set(r * clusters + c, value, tolerance + f64::from(f32::MIN_POSITIVE));
                }
            }
            kernel.run(&RouteScoresArgs {
                q: q.as_ptr(),
                ldq: ldq as u64,
                keys: keys.as_ptr(),
                domains: if uniform { std::ptr::null() } else { pi.as_ptr() },
                a: a.as_mut_ptr(),
                rows: rows as u64,
                dim: dim as u64,
                num_clusters: clusters as u64,
                num_domains: domains as u64,
                scale: F32Arg::new(scale),
                lambda: F32Arg::new(lambda),
            });
            expected.check(&a, || format!("{} dim={dim} C={clusters} D={domains}", kernel.row.name));
        }
    });
}

/// Few distinct scores, so that ties are common.
pub fn tied_scores(random: &mut Random, n: usize) -> Guarded<f32> {
    Guarded::from_fn(n, |_| random.below(5) as f32 / 8.0)
}

pub fn check_cluster(kernels: &[Kernel]) {
    property((0usize..8, 1usize..20, any::<u64>()), |(rows, clusters, seed)| {
        let a = tied_scores(&mut Random(seed), rows * clusters);
        for kernel in kernels {
            let mut cluster = Guarded::filled(rows, u32::MAX);
            kernel.run(&RouteClusterArgs {
                a: a.as_ptr(),
                rows: rows as u64,
                num_clusters: clusters as u64,
                cluster: cluster.as_mut_ptr(),
            });
            for r in 0..rows {
                let row = &a[r * clusters..][..clusters];
                let best = (0..clusters).find(|&c| row.iter().all(|&other| row[c] >= other));
                assert_eq!(Some(cluster[r] as usize), best, "{} {row:?}", kernel.row.name);
            }
        }
    });
}

pub fn check_group(kernels: &[Kernel]) {
    property((0usize..12, 1usize..12, any::<u64>()), |(rows, modules, seed)| {
        let random = &mut Random(seed);
        let mask = Guarded::from_fn(rows * modules, |_| u8::from(random.below(3) == 0));
        let gates = random.floats(rows * modules, 1.0);
        // Sorting pairs is the definition of the counting sort.
        let mut pairs: Vec<(usize, usize)> =
            (0..rows * modules).filter(|&at| mask[at] != 0).map(|at| (at % modules, at / modules)).collect();
        pairs.sort_unstable();
        for kernel in kernels {
            let mut offsets = Guarded::filled(modules + 1, u32::MAX);
            let mut tokens = Guarded::filled(rows * modules, u32::MAX);
            let mut token_gates = Guarded::filled(rows * modules, UNTOUCHED);
            let counter = AtomicU64::new(3);
            kernel.run(&RouteGroupArgs {
                mask: mask.as_ptr(),
                gates: gates.as_ptr(),
                rows: rows as u64,
                num_modules: modules as u64,
                offsets: offsets.as_mut_ptr(),
                tokens: tokens.as_mut_ptr(),
                token_gates: token_gates.as_mut_ptr(),
                rows_routed: &counter,
            });
            assert_eq!(counter.load(Relaxed), 3 + pairs.len() as u64);
            for module in 0..=modules {
                let before = pairs.iter().filter(|&&(m, _)| m < module).count();
                assert_eq!(offsets[module] as usize, before, "{} offset {module}", kernel.row.name);
            }
            for (i, &(module, row)) in pairs.iter().enumerate() {
                assert_eq!(tokens[i] as usize, row, "{} entry {i}", kernel.row.name);
                assert_eq!(token_gates[i].to_bits(), gates[row * modules + module].to_bits());
            }
            assert!(tokens[pairs.len()..].iter().all(|&t| t == u32::MAX), "{} wrote too much", kernel.row.name);
        }
    });
}

/// Two roundings per selected cluster.
pub fn check_memory(kernels: &[Kernel]) {
    property((0usize..5, 1usize..10, 1usize..70, any::<u64>()), |(rows, clusters, dim, seed)| {
        let random = &mut Random(seed);
        let mask = Guarded::from_fn(rows * clusters, |_| u8::from(random.flag()));
        let gates = random.floats(rows * clusters, 1.0);
        let values = random.floats(clusters * dim, 1.0);
        let ldy = dim + random.below(3);
        for kernel in kernels {
            let mut y = Guarded::filled((rows * ldy).saturating_sub(ldy - dim), UNTOUCHED);
            let mut expected = Expected::untouched(y.len());
            for r in 0..rows {
                for i in 0..dim {
                    let (mut value, mut size) = (0.0, 0.0f64);
                    for c in (0..clusters).filter(|&c| mask[r * clusters + c] != 0) {
                        let term = f64::from(gates[r * clusters + c]) * f64::from(values[c * dim + i]);
                        value += term;
                        size += term.abs();
                    }
                    expected.set(r * ldy + i, value, 2.0 * EPS * clusters as f64 * size);
                }
            }
            kernel.run(&RouteMemoryArgs {
                mask: mask.as_ptr(),
                gates: gates.as_ptr(),
                values: values.as_ptr(),
                y: y.as_mut_ptr(),
                ldy: ldy as u64,
                rows: rows as u64,
                num_clusters: clusters as u64,
                dim: dim as u64,
            });
            expected.check(&y, || format!("{} C={clusters} dim={dim}", kernel.row.name));
        }
    });
}

pub fn check_cluster_append(kernels: &[Kernel]) {
    property((1usize..30, 1usize..5, any::<u64>()), |(positions, clusters, seed)| {
        let random = &mut Random(seed);
        let cluster: Vec<u32> = (0..positions).map(|_| random.below(clusters) as u32).collect();
        for kernel in kernels {
            // A sequence in two calls; what `last` and `previous` held before the first must not matter.
            let split = random.below(positions);
            let mut last = Guarded::filled(clusters, 77);
            let mut previous = Guarded::filled(positions, 77);
            for (first, part) in [(0, &cluster[..split]), (split, &cluster[split..])] {
                let part = Guarded::of(part);
                kernel.run(&ClusterAppendArgs {
                    cluster: part.as_ptr(),
                    rows: part.len() as u64,
                    first_position: first as u64,
                    num_clusters: clusters as u64,
                    previous: previous.as_mut_ptr(),
                    last: last.as_mut_ptr(),
                });
            }
            let latest = |end: usize, c: u32| (0..end).rev().find(|&i| cluster[i] == c).map_or(-1, |i| i as i32);
            for t in 0..positions {
                assert_eq!(previous[t], latest(t, cluster[t]), "{} previous[{t}]", kernel.row.name);
            }
            for c in 0..clusters {
                assert_eq!(last[c], latest(positions, c as u32), "{} last[{c}]", kernel.row.name);
            }
        }
    });
}
