//! Norms, softmax, activations, rotation, copies, gather, scatter, mean.

use crate::cache::{element_bytes, row_elements, store};
use crate::memory::{Expected, Guarded, Random, UNTOUCHED};
use crate::{EPS, Kernel, property};
use lapidary_kernels::args::{
    CopyRowsArgs, F32Arg, IndexedRowsArgs, MeanRowsArgs, RmsNormArgs, RopeArgs, SiluMulArgs, UnaryArgs,
};
use proptest::prelude::*;

/// Below it results are subnormal or zero, and their relative error means nothing.
const TINY: f64 = f32::MIN_POSITIVE as f64;

/// Row lengths at both sides of every vector width and of four vectors.
const LENGTHS: [usize; 20] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 31, 32, 33, 63, 64, 65, 128, 257];

/// A matrix as rows with a stride, ending at an unreadable page.
struct Matrix {
    data: Guarded<f32>,
    ld: usize,
}

impl Matrix {
    fn random(random: &mut Random, rows: usize, n: usize, scale: f32) -> Self {
        let ld = n + random.below(4);
        Self { data: random.floats((rows * ld).saturating_sub(ld - n), scale), ld }
    }

    fn untouched(random: &mut Random, rows: usize, n: usize) -> Self {
        let ld = n + random.below(4);
        Self { data: Guarded::filled((rows * ld).saturating_sub(ld - n), UNTOUCHED), ld }
    }

    fn row(&self, r: usize, n: usize) -> Vec<f64> {
        self.data[r * self.ld..][..n].iter().map(|&x| f64::from(x)).collect()
    }
}

/// Every length with a few rows, then random ones.
fn sizes(check: impl Fn(usize, usize, &mut Random)) {
    for n in LENGTHS {
        for rows in [0, 1, 3] {
            check(rows, n, &mut Random(n as u64));
        }
    }
    property((0usize..6, 1usize..300, any::<u64>()), |(rows, n, seed)| check(rows, n, &mut Random(seed)));
}

/// Value and tolerance of a row's elements.
type RowOracle = fn(&[f64]) -> Vec<(f64, f64)>;

/// Checks a unary kernel, out of place and in place.
fn check_unary(kernels: &[Kernel], scale: f32, oracle: RowOracle) {
    sizes(|rows, n, random| {
        let x = Matrix::random(random, rows, n, scale);
        for kernel in kernels {
            let mut y = Matrix::untouched(random, rows, n);
            let mut expected = Expected::untouched(y.data.len());
            let mut in_place = Expected::untouched(x.data.len());
            let mut z = Guarded::filled(x.data.len(), UNTOUCHED);
            for r in 0..rows {
                for (i, (value, tolerance)) in oracle(&x.row(r, n)).into_iter().enumerate() {
                    expected.set(r * y.ld + i, value, tolerance);
                    in_place.set(r * x.ld + i, value, tolerance);
                    z[r * x.ld + i] = x.data[r * x.ld + i];
                }
            }
            let (rows, n) = (rows as u64, n as u64);
            let (ldx, ldy) = (x.ld as u64, y.ld as u64);
            kernel.run(&UnaryArgs { x: x.data.as_ptr(), ldx, y: y.data.as_mut_ptr(), ldy, rows, n });
            expected.check(&y.data, || format!("{} n={n}", kernel.row.name));
            let data = z.as_mut_ptr();
            kernel.run(&UnaryArgs { x: data, ldx, y: data, ldy: ldx, rows, n });
            in_place.check(&z, || format!("{} n={n} in place", kernel.row.name));
        }
    });
}

/// exp errs by 2 roundings, the division, the addition and the sum of n by one each; and x − max by one
/// of its size, which exp makes relative.
pub fn check_softmax(kernels: &[Kernel]) {
    let oracle: RowOracle = |x| {
        let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = x.iter().map(|x| (x - max).exp()).sum();
        x.iter()
            .map(|v| {
                let value = (v - max).exp() / sum;
                (value, value * EPS * (8.0 + (max - v) + 0.5 * x.len() as f64) + TINY)
            })
            .collect()
    };
    for scale in [1.0, 60.0] {
        check_unary(kernels, scale, oracle);
    }
}

/// exp, addition and division: 8 roundings are ample. Where exp(−x) overflows the result is 0, instead of x times a
/// subnormal.
fn silu(x: f64) -> (f64, f64) {
    let value = x / (1.0 + (-x).exp());
    (value, 8.0 * EPS * value.abs() + TINY * (1.0 + x.abs()))
}

pub fn check_silu(kernels: &[Kernel]) {
    for scale in [2.0, 100.0] {
        check_unary(kernels, scale, |x| x.iter().map(|&x| silu(x)).collect());
    }
}

/// As silu, and the argument 2u of exp errs by 4 roundings of its size.
pub fn check_gelu(kernels: &[Kernel]) {
    let oracle: RowOracle = |x| {
        x.iter()
            .map(|&x| {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                // ½x(1 + tanh u), without its cancellation for large negative u.
                let value = x / (1.0 + (-2.0 * u).exp());
                (value, EPS * (8.0 + 8.0 * u.abs()) * value.abs() + TINY * (1.0 + x.abs()))
            })
            .collect()
    };
    for scale in [2.0, 12.0] {
        check_unary(kernels, scale, oracle);
    }
}

/// Sum of n squares: its square root errs by half as much, the rest by a few.
pub fn check_l2_normalize(kernels: &[Kernel]) {
    check_unary(kernels, 3.0, |x| {
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        x.iter().map(|v| (v / norm, (v / norm).abs() * EPS * (4.0 + x.len() as f64 / 2.0))).collect()
    });
    for kernel in kernels {
        let x = Guarded::filled(5, 0.0);
        let mut y = Guarded::filled(5, UNTOUCHED);
        kernel.run(&UnaryArgs { x: x.as_ptr(), ldx: 5, y: y.as_mut_ptr(), ldy: 5, rows: 1, n: 5 });
        assert_eq!(&*y, &[0.0; 5], "{} of zeros", kernel.row.name);
    }
}

/// As `l2_normalize`.
pub fn check_rms_norm(kernels: &[Kernel]) {
    sizes(|rows, n, random| {
        let x = Matrix::random(random, rows, n, 3.0);
        let w = random.floats(n, 2.0);
        let eps = 1e-5f32;
        for kernel in kernels {
            for weighted in [true, false] {
                let mut y = Matrix::untouched(random, rows, n);
                let mut expected = Expected::untouched(y.data.len());
                for r in 0..rows {
                    let row = x.row(r, n);
                    let mean = row.iter().map(|x| x * x).sum::<f64>() / n as f64;
                    for (i, v) in row.iter().enumerate() {
                        let w = if weighted { f64::from(w[i]) } else { 1.0 };
                        let value = v / (mean + f64::from(eps)).sqrt() * w;
                        expected.set(r * y.ld + i, value, value.abs() * EPS * (6.0 + n as f64 / 2.0));
                    }
                }
                kernel.run(&RmsNormArgs {
                    x: x.data.as_ptr(),
                    ldx: x.ld as u64,
                    w: if weighted { w.as_ptr() } else { std::ptr::null() },
                    y: y.data.as_mut_ptr(),
                    ldy: y.ld as u64,
                    rows: rows as u64,
                    n: n as u64,
                    eps: F32Arg::new(eps),
                });
                expected.check(&y.data, || format!("{} n={n} weighted={weighted}", kernel.row.name));
            }
        }
    });
}

pub fn check_silu_mul(kernels: &[Kernel]) {
    sizes(|rows, n, random| {
        let gate = Matrix::random(random, rows, n, 20.0);
        let up = Matrix::random(random, rows, n, 3.0);
        for kernel in kernels {
            let mut y = Matrix::untouched(random, rows, n);
            let mut expected = Expected::untouched(y.data.len());
            for r in 0..rows {
                for (i, (g, u)) in gate.row(r, n).into_iter().zip(up.row(r, n)).enumerate() {
                    let (silu, error) = silu(g);
                    expected.set(r * y.ld + i, silu * u, (error + 2.0 * EPS * silu.abs()) * u.abs() + TINY);
                }
            }
            kernel.run(&SiluMulArgs {
                gate: gate.data.as_ptr(),
                ld_gate: gate.ld as u64,
                up: up.data.as_ptr(),
                ld_up: up.ld as u64,
                y: y.data.as_mut_ptr(),
                ldy: y.ld as u64,
                rows: rows as u64,
                n: n as u64,
            });
            expected.check(&y.data, || format!("{} n={n}", kernel.row.name));
        }
    });
}

/// Two products and a sum: 4 roundings of the sum of sizes.
pub fn check_rope(kernels: &[Kernel]) {
    let check = |rows: usize, heads: usize, half: usize, seed: u64| {
        let random = &mut Random(seed);
        let dim = 2 * half;
        let first_position = random.below(5);
        let row_stride = heads * dim + random.below(3);
        let len = if rows == 0 { 0 } else { (rows - 1) * row_stride + heads * dim };
        let x = random.floats(len, 3.0);
        let table = random.floats((first_position + rows) * dim, 1.0);
        for kernel in kernels {
            for in_place in [false, true] {
                let mut y = Guarded::filled(len, UNTOUCHED);
                let mut expected = Expected::untouched(len);
                for r in 0..rows {
                    for h in 0..heads {
                        for i in 0..half {
                            let at = r * row_stride + h * dim + i;
                            let (a, b) = (f64::from(x[at]), f64::from(x[at + half]));
                            let entry = (first_position + r) * dim + i;
                            let (c, s) = (f64::from(table[entry]), f64::from(table[entry + half]));
                            let tolerance = 4.0 * EPS * (a.abs() + b.abs());
                            expected.set(at, a * c - b * s, tolerance);
                            expected.set(at + half, b * c + a * s, tolerance);
                            if in_place {
                                (y[at], y[at + half]) = (x[at], x[at + half]);
                            }
                        }
                    }
                }
                kernel.run(&RopeArgs {
                    x: if in_place { y.as_ptr() } else { x.as_ptr() },
                    x_row_stride: row_stride as u64,
                    x_head_stride: dim as u64,
                    y: y.as_mut_ptr(),
                    y_row_stride: row_stride as u64,
                    y_head_stride: dim as u64,
                    rows: rows as u64,
                    heads: heads as u64,
                    head_dim: dim as u64,
                    first_position: first_position as u64,
                    cos_sin: table.as_ptr(),
                });
                expected.check(&y, || format!("{} rows={rows} heads={heads} half={half}", kernel.row.name));
            }
        }
    };
    for half in LENGTHS {
        check(2, 3, half, half as u64);
    }
    property((0usize..4, 1usize..4, 1usize..130, any::<u64>()), |(r, h, half, seed)| check(r, h, half, seed));
}

pub fn check_copy_rows(kernels: &[Kernel]) {
    property((0usize..4, 1usize..4, 1usize..70, -30i32..10, any::<u64>()), |(rows, heads, n, exponent, seed)| {
        for kernel in kernels {
            let cache = kernel.row.weight;
            let random = &mut Random(seed);
            let mut strides = |run: usize| {
                let head = run + random.below(3);
                let row = heads * head + random.below(3);
                (row, head, if rows == 0 { 0 } else { (rows - 1) * row + (heads - 1) * head + run })
            };
            let (x_row_stride, x_head_stride, x_len) = strides(n);
            let (y_row_stride, y_head_stride, y_len) = strides(row_elements(cache, n));
            let x = random.floats(x_len, 2.0f32.powi(exponent));
            let mut y = Guarded::filled(y_len * element_bytes(cache), 0xaau8);
            let mut expected = vec![0xaau8; y.len()];
            for r in 0..rows {
                for h in 0..heads {
                    let (bytes, _) = store(cache, &x[r * x_row_stride + h * x_head_stride..][..n]);
                    let at = (r * y_row_stride + h * y_head_stride) * element_bytes(cache);
                    expected[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            kernel.run(&CopyRowsArgs {
                x: x.as_ptr(),
                x_row_stride: x_row_stride as u64,
                x_head_stride: x_head_stride as u64,
                y: y.as_mut_ptr(),
                y_row_stride: y_row_stride as u64,
                y_head_stride: y_head_stride as u64,
                rows: rows as u64,
                heads: heads as u64,
                n: n as u64,
            });
            assert_eq!(&*y, expected, "{} rows={rows} heads={heads} n={n}", kernel.row.name);
        }
    });
}

pub fn check_gather(kernels: &[Kernel]) {
    sizes(|rows, n, random| {
        let sources = rows + 2;
        let x = Matrix::random(random, sources, n, 1.0);
        let index = Guarded::from_fn(rows, |_| random.below(sources) as u32);
        for kernel in kernels {
            let mut y = Matrix::untouched(random, rows, n);
            let mut expected = Expected::untouched(y.data.len());
            for r in 0..rows {
                for (i, value) in x.row(index[r] as usize, n).into_iter().enumerate() {
                    expected.set(r * y.ld + i, value, 0.0);
                }
            }
            kernel.run(&IndexedRowsArgs {
                x: x.data.as_ptr(),
                ldx: x.ld as u64,
                y: y.data.as_mut_ptr(),
                ldy: y.ld as u64,
                index: index.as_ptr(),
                gate: std::ptr::null(),
                rows: rows as u64,
                n: n as u64,
            });
            expected.check(&y.data, || format!("{} rows={rows} n={n}", kernel.row.name));
        }
    });
}

/// A row may be added to several times: two roundings of the sum of sizes each.
pub fn check_scatter(kernels: &[Kernel]) {
    sizes(|rows, n, random| {
        let targets = rows + 2;
        let x = Matrix::random(random, rows, n, 1.0);
        let index = Guarded::from_fn(rows, |_| random.below(targets) as u32);
        let gate = random.floats(rows, 2.0);
        for kernel in kernels {
            for gated in [true, false] {
                let mut y = Matrix::untouched(random, targets, n);
                let mut expected = Expected::untouched(y.data.len());
                for target in 0..targets {
                    for i in 0..n {
                        let at = target * y.ld + i;
                        y.data[at] = random.unit();
                        let (mut value, mut size) = (f64::from(y.data[at]), f64::from(y.data[at]).abs());
                        for r in (0..rows).filter(|&r| index[r] as usize == target) {
                            let gate = if gated { f64::from(gate[r]) } else { 1.0 };
                            let term = gate * f64::from(x.data[r * x.ld + i]);
                            value += term;
                            size += term.abs();
                        }
                        expected.set(at, value, 2.0 * EPS * rows as f64 * size);
                    }
                }
                kernel.run(&IndexedRowsArgs {
                    x: x.data.as_ptr(),
                    ldx: x.ld as u64,
                    y: y.data.as_mut_ptr(),
                    ldy: y.ld as u64,
                    index: index.as_ptr(),
                    gate: if gated { gate.as_ptr() } else { std::ptr::null() },
                    rows: rows as u64,
                    n: n as u64,
                });
                expected.check(&y.data, || format!("{} rows={rows} n={n} gated={gated}", kernel.row.name));
            }
        }
    });
}

pub fn check_mean(kernels: &[Kernel]) {
    sizes(|rows, n, random| {
        let rows = rows + 1;
        let x = Matrix::random(random, rows, n, 1.0);
        for kernel in kernels {
            let mut y = Guarded::filled(n, UNTOUCHED);
            let mut expected = Expected::untouched(n);
            for i in 0..n {
                let column = (0..rows).map(|r| f64::from(x.data[r * x.ld + i]));
                let (sum, size) = column.fold((0.0, 0.0), |(sum, size), v| (sum + v, size + v.abs()));
                let rows = rows as f64;
                expected.set(i, sum / rows, EPS * (rows + 2.0) * size / rows);
            }
            kernel.run(&MeanRowsArgs {
                x: x.data.as_ptr(),
                ldx: x.ld as u64,
                y: y.as_mut_ptr(),
                rows: rows as u64,
                n: n as u64,
            });
            expected.check(&y, || format!("{} rows={rows} n={n}", kernel.row.name));
        }
    });
}
