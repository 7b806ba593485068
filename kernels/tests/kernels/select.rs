//! Selection policies, bit for bit: the oracle sorts, the kernels don't.

use crate::memory::{Guarded, Random, UNTOUCHED};
use crate::route::tied_scores;
use crate::{Kernel, property};
use lapidary_kernels::{KernelOp, args::F32Arg, args::RouteSelectArgs};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    clusters: usize,
    k_min: usize,
    k_max: usize,
    p: f32,
    tau: f32,
    capacity_factor: f32,
    norm_gates: bool,
}

/// Indices of the scores, best first, lower index first among equals.
fn ranking(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // A stable sort keeps the lower index first.
    order.sort_by(|&x, &y| scores[y].total_cmp(&scores[x]));
    order
}

/// Modules of one token by a policy that looks at one token, in the order of choice.
fn choose(op: KernelOp, case: &Case, scores: &[f32]) -> Vec<usize> {
    let order = ranking(scores);
    let most = case.k_max.min(scores.len());
    let count = match op {
        KernelOp::SelectTopP => {
            let mass = |count: usize| order[..count].iter().fold(0.0, |mass, &c| mass + scores[c]);
            let enough = (0..=scores.len()).find(|&count| mass(count) >= case.p).unwrap_or(scores.len());
            enough.max(case.k_min).min(most)
        }
        KernelOp::SelectThreshold => scores.iter().filter(|&&score| score >= case.tau).count().min(most),
        _ => most,
    };
    order[..count].to_vec()
}

fn run(kernel: &Kernel, case: Case, a: &Guarded<f32>) {
    let Case { rows, clusters, .. } = case;
    let op = kernel.row.op;
    let share = f64::from(case.capacity_factor) * rows as f64 * case.k_max as f64 / clusters as f64;
    let cap = (share.ceil() as usize).min(rows);
    let column = |c: usize| (0..rows).map(|r| a[r * clusters + c]).collect::<Vec<_>>();
    let takes: Vec<Vec<usize>> = (0..clusters).map(|c| ranking(&column(c))[..cap].to_vec()).collect();

    let mut mask = Guarded::filled(rows * clusters, 9u8);
    let mut gates = Guarded::filled(rows * clusters, UNTOUCHED);
    let mut scratch = Guarded::filled(rows, u32::MAX);
    kernel.run(&RouteSelectArgs {
        a: a.as_ptr(),
        rows: rows as u64,
        num_clusters: clusters as u64,
        mask: mask.as_mut_ptr(),
        gates: gates.as_mut_ptr(),
        k_min: case.k_min as u64,
        k_max: case.k_max as u64,
        p: F32Arg::new(case.p),
        tau: F32Arg::new(case.tau),
        capacity_factor: F32Arg::new(case.capacity_factor),
        norm_gates: u64::from(case.norm_gates),
        scratch: match op {
            KernelOp::SelectExpertChoice | KernelOp::SelectBidirectional => scratch.as_mut_ptr(),
            _ => std::ptr::null_mut(),
        },
    });
    for r in 0..rows {
        let scores = &a[r * clusters..][..clusters];
        let selected: Vec<bool> = match op {
            KernelOp::SelectExpertChoice => (0..clusters).map(|c| takes[c].contains(&r)).collect(),
            KernelOp::SelectBidirectional => {
                let chosen = choose(op, &case, scores);
                (0..clusters).map(|c| chosen.contains(&c) && takes[c].contains(&r)).collect()
            }
            _ => {
                let chosen = choose(op, &case, scores);
                (0..clusters).map(|c| chosen.contains(&c)).collect()
            }
        };
        let sum = (0..clusters).filter(|&c| selected[c]).fold(0.0, |sum, c| sum + scores[c]);
        let norm = if case.norm_gates && op != KernelOp::SelectExpertChoice && sum > 0.0 { sum } else { 1.0 };
        for c in 0..clusters {
            let what = || format!("{} token {r} module {c} {scores:?} {case:?}", kernel.row.name);
            assert_eq!(mask[r * clusters + c], u8::from(selected[c]), "{}", what());
            let gate = if selected[c] { scores[c] / norm } else { 0.0 };
            assert_eq!(gates[r * clusters + c], gate, "gate: {}", what());
        }
    }
}

pub fn check(kernels: &[Kernel]) {
    let sizes = (0usize..12, 1usize..10, 0usize..5, 0usize..7);
    let levels = (0u8..12, 0u8..12, 0u8..20);
    property((sizes, levels, any::<bool>(), any::<bool>(), any::<u64>()), |case| {
        let ((rows, clusters, k_min, k_max), (p, tau, capacity), norm_gates, tied, seed) = case;
        let random = &mut Random(seed);
        let a = if tied {
            tied_scores(random, rows * clusters)
        } else {
            Guarded::from_fn(rows * clusters, |_| random.unit().abs())
        };
        // Levels in eighths meet the tied scores exactly.
        let case = Case {
            rows,
            clusters,
            k_min,
            k_max,
            p: f32::from(p) / 8.0,
            tau: f32::from(tau) / 8.0,
            capacity_factor: f32::from(capacity) / 8.0,
            norm_gates,
        };
        for kernel in kernels {
            run(kernel, case, &a);
        }
    });
    // The mass reaches p exactly at the second module, one f32 below p, and one above.
    let a = Guarded::of(&[0.25, 0.5, 0.125, 0.125]);
    for p in [0.75f32, 0.75f32.next_up(), 0.75f32.next_down()] {
        let case =
            Case { rows: 1, clusters: 4, k_min: 1, k_max: 4, p, tau: p / 3.0, capacity_factor: 1.0, norm_gates: true };
        for kernel in kernels {
            run(kernel, case, &a);
        }
    }
    // Capacities at both sides of a whole number: 3·1·7/3 = 7 exactly; a hair more asks for 8 of 9 tokens.
    let mut random = Random(4);
    let a = Guarded::from_fn(9 * 3, |_| random.unit().abs());
    for capacity_factor in [7.0 / 3.0f32, (7.0f32 / 3.0).next_up(), (7.0f32 / 3.0).next_down(), 0.0, 100.0] {
        let case =
            Case { rows: 9, clusters: 3, k_min: 1, k_max: 1, p: 1.0, tau: 0.5, capacity_factor, norm_gates: true };
        for kernel in kernels {
            run(kernel, case, &a);
        }
    }
}
