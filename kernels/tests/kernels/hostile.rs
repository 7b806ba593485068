//! Values and chains that should not occur: wrong answers are allowed, crashes and endless loops are not. Buffers end
//! at unreadable pages, so an index out of bounds is a crash.

use crate::memory::{Guarded, Random};
use crate::runnable;
use lapidary_kernels::args::{AttendArgs, F32Arg, RouteClusterArgs, RouteSelectArgs, UnaryArgs};
use lapidary_kernels::{KernelOp, WeightType};

const VALUES: [f32; 8] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0e-45, f32::MAX, f32::MIN];

#[test]
fn selection_survives_any_scores() {
    let policies = [
        KernelOp::SelectTopK,
        KernelOp::SelectTopP,
        KernelOp::SelectThreshold,
        KernelOp::SelectExpertChoice,
        KernelOp::SelectBidirectional,
    ];
    let (rows, clusters) = (7, 6);
    let random = &mut Random(1);
    for op in policies {
        for kernel in runnable(op) {
            for round in 0..50 {
                let only_nan = round == 0;
                let a = Guarded::from_fn(rows * clusters, |_| {
                    if only_nan { f32::NAN } else { VALUES[random.below(VALUES.len())] }
                });
                let mut mask = Guarded::filled(rows * clusters, 9u8);
                let mut gates = Guarded::filled(rows * clusters, 0.0);
                let mut scratch = Guarded::filled(rows, 0u32);
                let odd = || F32Arg::new(VALUES[round % VALUES.len()]);
                kernel.run(&RouteSelectArgs {
                    a: a.as_ptr(),
                    rows: rows as u64,
                    num_clusters: clusters as u64,
                    mask: mask.as_mut_ptr(),
                    gates: gates.as_mut_ptr(),
                    k_min: if round % 3 == 0 { u64::MAX } else { 1 },
                    k_max: if round % 5 == 0 { u64::MAX } else { 2 },
                    p: odd(),
                    tau: odd(),
                    capacity_factor: odd(),
                    norm_gates: 1,
                    scratch: scratch.as_mut_ptr(),
                });
                assert!(mask.iter().all(|&m| m <= 1));
                if op == KernelOp::SelectTopK {
                    let wanted = if round % 5 == 0 { clusters } else { 2 };
                    for row in mask.chunks(clusters) {
                        assert_eq!(
                            row.iter().filter(|&&m| m == 1).count(),
                            wanted,
                            "top-k takes k whatever the scores"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn clusters_stay_in_range() {
    for kernel in runnable(KernelOp::RouteCluster) {
        let a = Guarded::of(&[f32::NAN, f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0]);
        let mut cluster = Guarded::filled(3, u32::MAX);
        kernel.run(&RouteClusterArgs { a: a.as_ptr(), rows: 3, num_clusters: 2, cluster: cluster.as_mut_ptr() });
        assert_eq!(&*cluster, [0, 0, 1]);
    }
}

#[test]
fn a_broken_chain_ends() {
    for kernel in runnable(KernelOp::AttendClustered).iter().filter(|kernel| kernel.row.weight == WeightType::None) {
        for link in [9, 4, i32::MAX, i32::MIN, -2] {
            let (k, v, q) = (Guarded::filled(10, 1.0f32), Guarded::filled(10, 2.0f32), Guarded::filled(1, 1.0));
            // Position 9 leads to 4, and 4 to nowhere good.
            let previous = Guarded::from_fn(10, |t| if t == 9 { 4 } else { link });
            let mut y = Guarded::filled(1, 0.0);
            kernel.run(&AttendArgs {
                q: q.as_ptr(),
                ldq: 1,
                k: k.as_ptr().cast(),
                v: v.as_ptr().cast(),
                ld_kv: 1,
                y: y.as_mut_ptr(),
                ldy: 1,
                rows: 1,
                first_position: 9,
                num_keys: 10,
                heads_per_group: 1,
                head_dim: 1,
                causal: 1,
                window: 0,
                sinks: 0,
                cluster_cap: u64::MAX,
                previous: previous.as_ptr(),
                scale: F32Arg::new(1.0),
                keys_read: std::ptr::null(),
            });
            assert_eq!(y[0], 2.0);
        }
    }
}

#[test]
fn element_wise_kernels_survive_any_values() {
    for op in [KernelOp::Softmax, KernelOp::Silu, KernelOp::Gelu, KernelOp::L2Normalize] {
        for kernel in runnable(op) {
            let x = Guarded::from_fn(67, |i| VALUES[i % VALUES.len()]);
            let mut y = Guarded::filled(67, 0.0);
            kernel.run(&UnaryArgs { x: x.as_ptr(), ldx: 67, y: y.as_mut_ptr(), ldy: 67, rows: 1, n: 67 });
            if op == KernelOp::Silu {
                for (&x, &y) in x.iter().zip(&*y).filter(|(x, _)| x.is_nan() || x.is_finite()) {
                    assert_eq!(x.is_nan(), y.is_nan(), "{} of {x} is {y}", kernel.row.name);
                }
            }
        }
    }
}
