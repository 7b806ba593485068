//! Matrix products.
//!
//! Tolerance: a sum of k products in any order errs by at most about k roundings of Σ|a·w| (Higham, Accuracy and
//! Stability, §3.1); 8 more cover scale, addition to C and silu.

use crate::memory::{Expected, Guarded, Random, UNTOUCHED};
use crate::{EPS, Kernel, property};
use half::f16;
use lapidary_kernels::{KernelOp, WeightType, args::GemmArgs};
use proptest::prelude::*;

/// A product and how it is asked for.
#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    /// Row numbers for A and C, row scales, accumulation.
    indirect_a: bool,
    indirect_c: bool,
    scaled: bool,
    accumulate: bool,
    /// Only panels begin..end.
    panels: Option<(usize, usize)>,
    seed: u64,
}

/// Weights `[n, k]` as the kernel sees them.
fn weights(random: &mut Random, n: usize, k: usize, weight: WeightType) -> Vec<f32> {
    (0..n * k)
        .map(|_| match weight {
            WeightType::F16 => f16::from_f32(random.unit()).to_f32(),
            _ => random.unit(),
        })
        .collect()
}

/// Panels of one matrix, each `[k][nr]`, by the definition.
fn panels(w: &[f32], n: usize, k: usize, nr: usize, weight: WeightType) -> Vec<Vec<u8>> {
    (0..n.div_ceil(nr))
        .map(|panel| {
            let mut bytes = Vec::new();
            for input in 0..k {
                for output in panel * nr..(panel + 1) * nr {
                    let value = if output < n { w[output * k + input] } else { 0.0 };
                    match weight {
                        WeightType::F16 => bytes.extend(f16::from_f32(value).to_bits().to_le_bytes()),
                        _ => bytes.extend(value.to_le_bytes()),
                    }
                }
            }
            bytes
        })
        .collect()
}

fn run(kernel: &Kernel, case: Case) {
    let Case { m, n, k, .. } = case;
    let nr = kernel.row.tile.nr;
    let swiglu = matches!(kernel.row.op, KernelOp::GemmSwiglu | KernelOp::GemvSwiglu);
    let random = &mut Random(case.seed);
    let gate = weights(random, n, k, kernel.row.weight);
    let up = weights(random, n, k, kernel.row.weight);
    let gate_panels = panels(&gate, n, k, nr, kernel.row.weight);
    let packed = if swiglu {
        let up_panels = panels(&up, n, k, nr, kernel.row.weight);
        gate_panels.into_iter().zip(up_panels).flat_map(|(gate, up)| [gate, up]).collect::<Vec<_>>().concat()
    } else {
        gate_panels.concat()
    };
    let packed = Guarded::of(&packed);

    let (lda, ldc) = (k + random.below(3), n + random.below(3));
    let a_total = if case.indirect_a { m + 3 } else { m };
    let c_total = if case.indirect_c { m + 3 } else { m };
    let a = random.floats((a_total * lda).saturating_sub(lda - k), 1.0);
    let a_rows = Guarded::from_fn(m, |_| random.below(a_total) as u32);
    let mut free: Vec<u32> = (0..c_total as u32).collect();
    let c_rows = Guarded::from_fn(m, |_| free.swap_remove(random.below(free.len())));
    let scale = random.floats(m, 2.0);
    let (begin, end) = case.panels.unwrap_or((0, n.div_ceil(nr)));

    let mut c = Guarded::filled((c_total * ldc).saturating_sub(ldc - n), UNTOUCHED);
    let mut expected = Expected::untouched(c.len());
    for i in 0..m {
        let a_row = if case.indirect_a { a_rows[i] as usize } else { i };
        let c_row = if case.indirect_c { c_rows[i] as usize } else { i };
        let scale = if case.scaled { f64::from(scale[i]) } else { 1.0 };
        for j in begin * nr..(end * nr).min(n) {
            let at = c_row * ldc + j;
            let product = |w: &[f32]| {
                let terms = (0..k).map(|p| f64::from(a[a_row * lda + p]) * f64::from(w[j * k + p]));
                terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()))
            };
            let (g, size) = product(&gate);
            let roundings = k as f64 * EPS;
            let (value, error) = if swiglu {
                let (u, up_size) = product(&up);
                let silu = g / (1.0 + (-g).exp());
                // |silu'| ≤ 1.1.
                let error = 1.1 * roundings * size * u.abs() + silu.abs() * roundings * up_size;
                (silu * u, error + 1.1 * roundings * roundings * size * up_size)
            } else {
                (g, roundings * size)
            };
            let start = if case.accumulate { random.unit() } else { f32::NAN };
            c[at] = start;
            let start = if case.accumulate { f64::from(start) } else { 0.0 };
            let value = start + scale * value;
            let tolerance = scale.abs() * error + 8.0 * EPS * (value.abs() + start.abs() + scale.abs() * size);
            expected.set(at, value, tolerance);
        }
    }
    kernel.run(&GemmArgs {
        a: a.as_ptr(),
        lda: lda as u64,
        a_rows: if case.indirect_a { a_rows.as_ptr() } else { std::ptr::null() },
        m: m as u64,
        k: k as u64,
        w: packed.as_ptr(),
        n: n as u64,
        panel_begin: begin as u64,
        panel_end: end as u64,
        c: c.as_mut_ptr(),
        ldc: ldc as u64,
        c_rows: if case.indirect_c { c_rows.as_ptr() } else { std::ptr::null() },
        row_scale: if case.scaled { scale.as_ptr() } else { std::ptr::null() },
        accumulate: u64::from(case.accumulate),
    });
    expected.check(&c, || format!("{} {case:?}", kernel.row.name));
}

/// 1, t−1, t, t+1 of a tile dimension, and more than two tiles.
pub fn around(t: usize) -> Vec<usize> {
    let mut sizes = vec![1, t.max(2) - 1, t, t + 1, 2 * t + 1];
    sizes.dedup();
    sizes
}

pub fn check(kernels: &[Kernel]) {
    for kernel in kernels {
        let tile = kernel.row.tile;
        let plain = Case {
            m: 0,
            n: tile.nr,
            k: 1,
            indirect_a: false,
            indirect_c: false,
            scaled: false,
            accumulate: false,
            panels: None,
            seed: 1,
        };
        run(kernel, plain);
        for m in (1..=tile.mr + 1).chain([2 * tile.mr + 1]) {
            for n in around(tile.nr).into_iter().chain(around(tile.nr / 2)) {
                for k in [1, 3, 4, 5, 20, 33] {
                    run(kernel, Case { m, n, k, seed: (m * 31 + n * 7 + k) as u64, ..plain });
                }
            }
        }
    }
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let sizes = (0usize..30, 1usize..100, 1usize..140);
    property((sizes, flags, any::<u64>(), any::<u64>()), |((m, n, k), flags, range, seed)| {
        for kernel in kernels {
            let count = n.div_ceil(kernel.row.tile.nr);
            let begin = range as usize % count;
            let end = begin + (range >> 32) as usize % (count - begin + 1);
            let (indirect_a, indirect_c, scaled, accumulate) = flags;
            run(kernel, Case { m, n, k, indirect_a, indirect_c, scaled, accumulate, panels: Some((begin, end)), seed });
        }
    });
    for kernel in kernels {
        let case = Case {
            m: 2,
            n: kernel.row.tile.nr + 1,
            k: 3000,
            indirect_a: false,
            indirect_c: false,
            scaled: true,
            accumulate: true,
            panels: None,
            seed: 5,
        };
        run(kernel, case);
    }
}
