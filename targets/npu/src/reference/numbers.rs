//! `ISA.md`, "Numbers", and the definitions of the instructions that work on a whole row.

/// The pattern of every result that is not a number.
pub const NAN: f32 = f32::from_bits(0x7fc0_0000);

/// `a·b + c`, rounded once.
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// The larger; of a number and a NaN the number. Of equal ones b.
pub fn max(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a > b {
        a
    } else {
        b
    }
}

/// The smaller; of a number and a NaN the number. Of equal ones b.
pub fn min(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b {
        a
    } else {
        b
    }
}

/// The rule of sums: term j goes into one of 16 partial sums, j mod 16, by `step(p, j)`; these are added in halves.
fn sum_by(terms: usize, step: impl Fn(f32, usize) -> f32) -> f32 {
    let mut p = [0f32; 16];
    for j in 0..terms {
        p[j % 16] = step(p[j % 16], j);
    }
    for h in [8, 4, 2, 1] {
        for i in 0..h {
            p[i] += p[i + h];
        }
    }
    p[0]
}

/// `Σ x_j` by the rule of sums.
pub fn sum(x: &[f32]) -> f32 {
    sum_by(x.len(), |p, j| p + x[j])
}

/// `Σ a_j·b_j` by the rule of sums with `fma(a_j, b_j, p)`; as many terms as the shorter has.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_by(a.len().min(b.len()), |p, j| fma(a[j], b[j], p))
}

/// eˣ: n = x/ln 2 rounded, then `2ⁿ·e^r` with a polynomial of the rest r; 0 from −104 down, ∞ from 89 up.
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = f32::from_bits(0x3fb8_aa3b);
    /// Adding and subtracting it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = -355.0 / 512.0;
    const LN_2_LOW: f32 = f32::from_bits(0x395e_8083);
    const POLYNOMIAL: [u32; 6] = [0x3950_6967, 0x3ab7_43ce, 0x3c08_8908, 0x3d2a_a9c1, 0x3e2a_aaaa, 0x3f00_0000];
    if x.is_nan() {
        return NAN;
    }
    let x = min(max(x, -104.0), 89.0);
    let n = fma(x, LOG2_E, ROUND) - ROUND;
    let r = fma(n, LN_2_LOW, fma(n, LN_2_HIGH, x));
    let p = polynomial(&POLYNOMIAL, r);
    let p = fma(r * r, p, r) + 1.0;
    let n = n as i32;
    let half = n.div_euclid(2);
    (p * power_of_two(half)) * power_of_two(n - half)
}

/// The natural logarithm: of −0 and 0 −∞, of what is less not a number.
pub fn ln(x: f32) -> f32 {
    const SQRT_HALF: f32 = f32::from_bits(0x3f35_04f3);
    const LN_2_LOW: f32 = f32::from_bits(0xb95e_8083);
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const POLYNOMIAL: [u32; 9] = [
        0x3d90_21bb,
        0xbdeb_d1b8,
        0x3def_251a,
        0xbdfe_5d4f,
        0x3e11_e9bf,
        0xbe2a_ae50,
        0x3e4c_ceac,
        0xbe7f_fffc,
        0x3eaa_aaaa,
    ];
    if x.is_nan() || x < 0.0 {
        return NAN;
    }
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x == f32::INFINITY {
        return x;
    }
    let (x, from_subnormal) = if x < f32::MIN_POSITIVE { (x * 8_388_608.0, -23) } else { (x, 0) };
    // x = m·2^k, 0.5 ≤ m < 1: the exponent's field is 126 of m.
    let k = (x.to_bits() >> 23) as i32 - 126;
    let m = f32::from_bits(x.to_bits() & 0x007f_ffff | 126 << 23);
    let e = (from_subnormal + k) as f32;
    let (e, f) = if m < SQRT_HALF { (e - 1.0, (m + m) - 1.0) } else { (e, m - 1.0) };
    let z = f * f;
    let y = polynomial(&POLYNOMIAL, f);
    let y = (y * f) * z;
    let y = fma(z, -0.5, fma(e, LN_2_LOW, y));
    fma(e, LN_2_HIGH, f + y)
}

/// By Horner's rule with `fma`, the coefficient of the highest power first.
fn polynomial(patterns: &[u32], x: f32) -> f32 {
    let mut coefficients = patterns.iter().map(|pattern| f32::from_bits(*pattern));
    let first = coefficients.next().unwrap_or(0.0);
    coefficients.fold(first, |p, c| fma(p, x, c))
}

/// 2ⁿ, a normal number.
fn power_of_two(n: i32) -> f32 {
    debug_assert!((-126..=127).contains(&n), "2^{n} is not normal");
    f32::from_bits(((n + 127) as u32) << 23)
}

/// `x / (1 + exp(0 − x))`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(0.0 - x))
}

/// `x / (1 + exp(0 − u))`, u = x·fma(x·x, 2√(2/π)·0.044715, 2√(2/π)): the tanh form.
pub fn gelu(x: f32) -> f32 {
    let u = x * fma(x * x, f32::from_bits(0x3d92_2279), f32::from_bits(0x3fcc_422a));
    x / (1.0 + exp(0.0 - u))
}

/// `v.row_max`; −∞ of an empty row.
pub fn row_max(x: &[f32]) -> f32 {
    x.iter().fold(f32::NEG_INFINITY, |m, x| max(m, *x))
}

/// `v.softmax` over all of a row, in place: exponentials of what is left of the largest, divided by their sum. All are 0 if
/// the largest is −∞.
pub fn softmax(row: &mut [f32]) {
    let m = row_max(row);
    if m == f32::NEG_INFINITY {
        return row.fill(0.0);
    }
    row.iter_mut().for_each(|z| *z = exp(*z - m));
    let s = sum(row);
    row.iter_mut().for_each(|e| *e /= s);
}

/// Whether one score comes before another in the order of scores, apart from their indices: NaN counts as −∞.
pub fn is_better(a: f32, b: f32) -> bool {
    let value = |x: f32| if x.is_nan() { f32::NEG_INFINITY } else { x };
    value(a) > value(b)
}

/// Indices of `count` scores by the order of scores: the larger first, of equal ones the lower index.
pub fn order_of_scores(count: usize, score: impl Fn(usize) -> f32) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::with_capacity(count);
    for i in 0..count {
        let place = order.iter().position(|other| is_better(score(i), score(*other)));
        order.insert(place.unwrap_or(order.len()), i);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance from the exact number in units of the last place that the nearest f32 has.
    fn ulps(found: f32, exact: f64) -> f64 {
        let nearest = exact as f32;
        if nearest.is_infinite() || found == nearest {
            return if found == nearest { 0.0 } else { f64::INFINITY };
        }
        let up = f32::from_bits(nearest.abs().to_bits() + 1);
        (f64::from(found) - exact).abs() / (f64::from(up) - f64::from(nearest.abs()))
    }

    /// Every `step`-th pattern of the floats that are not negative.
    fn patterns(step: usize) -> impl Iterator<Item = f32> {
        (0..0x7f80_0000u32).step_by(step).map(f32::from_bits)
    }

    #[test]
    fn exp_is_near_the_exponential() {
        let mut worst = (0.0, 0.0);
        let mut check = |x: f32| {
            // Below, results are 0 or the smallest subnormals, above infinite.
            if (-103.9..88.7).contains(&x) {
                let off = ulps(exp(x), f64::from(x).exp());
                if off > worst.0 {
                    worst = (off, x);
                }
            }
        };
        patterns(4001).flat_map(|x| [x, -x]).for_each(&mut check);
        (-104_000..89_000).map(|i| i as f32 * 1e-3).for_each(&mut check);
        println!("exp: {} ulp at {}", worst.0, worst.1);
        assert!(worst.0 <= 2.0, "{worst:?}");
        for (x, wanted) in [
            (0.0, 1.0),
            (-0.0, 1.0),
            (89.0, f32::INFINITY),
            (f32::INFINITY, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
            (-104.0, 0.0),
            (f32::NEG_INFINITY, 0.0),
            (f32::MIN, 0.0),
        ] {
            assert_eq!(exp(x), wanted, "exp({x})");
        }
        assert_eq!(exp(f32::NAN).to_bits(), NAN.to_bits());
        // Subnormal results are made, not flushed.
        assert!(exp(-100.0) > 0.0 && exp(-100.0) < f32::MIN_POSITIVE);
    }

    #[test]
    fn ln_is_near_the_logarithm() {
        let mut worst = (0.0, 0.0);
        let mut check = |x: f32| {
            let off = ulps(ln(x), f64::from(x).ln());
            if x > 0.0 && x != 1.0 && off > worst.0 {
                worst = (off, x);
            }
        };
        patterns(1009).for_each(&mut check);
        // Around 1, and from the smallest subnormal number on.
        (0x3f70_0000..0x3f90_0000u32).step_by(3).map(f32::from_bits).for_each(&mut check);
        (1..5000u32).map(f32::from_bits).for_each(&mut check);
        check(f32::MAX);
        check(f32::MIN_POSITIVE);
        println!("ln: {} ulp at {}", worst.0, worst.1);
        assert!(worst.0 <= 2.0, "{worst:?}");
        assert_eq!(ln(1.0).to_bits(), 0);
        assert_eq!([ln(0.0), ln(-0.0)], [f32::NEG_INFINITY; 2]);
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        for x in [-1.0, f32::NEG_INFINITY, f32::NAN, -f32::from_bits(1)] {
            assert_eq!(ln(x).to_bits(), NAN.to_bits(), "ln({x})");
        }
    }

    #[test]
    fn activations_are_near_their_formulas() {
        for i in -4000..=4000 {
            let x = f64::from(i) / 100.0;
            let silu_exact = x / (1.0 + (-x).exp());
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            let gelu_exact = x / (1.0 + (-2.0 * u).exp());
            for (found, exact) in [(silu(x as f32), silu_exact), (gelu(x as f32), gelu_exact)] {
                // The argument of exp is rounded, which its result feels with the argument's size.
                let bound = 4e-7 * (1.0 + x.abs() + u.abs().min(90.0)) * exact.abs() + 1e-37;
                assert!((f64::from(found) - exact).abs() <= bound, "{x}: wanted {exact}, found {found}");
            }
        }
    }

    /// The rule of sums written anew: a list of partial sums that is folded in the middle.
    fn naive_sum(terms: &[(f32, f32)], is_product: bool) -> f32 {
        let mut partial = vec![0.0f32; 16];
        for (j, (a, b)) in terms.iter().enumerate() {
            let p = partial[j & 15];
            partial[j & 15] = if is_product { f32::mul_add(*a, *b, p) } else { p + a };
        }
        while partial.len() > 1 {
            let upper = partial.split_off(partial.len() / 2);
            partial = partial.iter().zip(&upper).map(|(low, high)| low + high).collect();
        }
        partial[0]
    }

    #[test]
    fn sums_follow_the_rule() {
        let number = |i: usize| ((i * 7919 + 13) % 1000) as f32 / 37.0 - 11.0 + (i as f32).powi(3);
        for n in [0, 1, 15, 16, 17, 33, 100] {
            let a: Vec<f32> = (0..n).map(number).collect();
            let b: Vec<f32> = (0..n).map(|i| number(i + 57) * 1e-3).collect();
            let terms: Vec<(f32, f32)> = a.iter().copied().zip(b.iter().copied()).collect();
            assert_eq!(sum(&a).to_bits(), naive_sum(&terms, false).to_bits(), "{n} terms");
            assert_eq!(dot(&a, &b).to_bits(), naive_sum(&terms, true).to_bits(), "{n} products");
        }
        // Two terms in one partial sum meet first, two in neighbours last.
        let mut x = [0.0; 17];
        (x[0], x[16], x[1]) = (1.0, 2f32.powi(-24), 2f32.powi(-24));
        assert_eq!(sum(&x), 1.0);
        (x[0], x[16], x[1], x[9]) = (1.0, 0.0, 2f32.powi(-24), 2f32.powi(-24));
        assert_eq!(sum(&x), 1.0 + f32::EPSILON);
    }

    #[test]
    fn one_product_is_rounded_once() {
        let a = 1.0 + f32::EPSILON;
        assert_eq!(dot(&[-1.0, 0.0], &[1.0, 0.0]), -1.0);
        let mut x = [0.0; 17];
        let mut y = [0.0; 17];
        (x[0], y[0], x[16], y[16]) = (-1.0, 1.0 + 2.0 * f32::EPSILON, a, a);
        assert_eq!(dot(&x, &y), f32::EPSILON * f32::EPSILON);
    }

    #[test]
    fn larger_and_smaller_leave_nan_out() {
        assert_eq!((max(f32::NAN, 1.0), max(1.0, f32::NAN), max(1.0, 2.0), max(2.0, 1.0)), (1.0, 1.0, 2.0, 2.0));
        assert_eq!((min(f32::NAN, 1.0), min(1.0, f32::NAN), min(1.0, 2.0), min(2.0, 1.0)), (1.0, 1.0, 1.0, 1.0));
        // Of equal ones the second, which only zeros can tell.
        assert!(max(0.0, -0.0).is_sign_negative() && min(-0.0, 0.0).is_sign_positive());
    }

    #[test]
    fn softmax_of_edges() {
        let mut row = [f32::NEG_INFINITY; 3];
        softmax(&mut row);
        assert_eq!(row, [0.0; 3]);
        softmax(&mut []);
        let mut row = [1e30, -1e30, 1e30];
        softmax(&mut row);
        assert_eq!(row, [0.5, 0.0, 0.5]);
        let mut row = [0.25];
        softmax(&mut row);
        assert_eq!(row, [1.0]);
    }

    #[test]
    fn scores_have_an_order() {
        let scores = [0.5, f32::NAN, 0.75, -0.0, 0.0, f32::NEG_INFINITY, 0.75];
        assert_eq!(order_of_scores(7, |i| scores[i]), [2, 6, 0, 3, 4, 1, 5]);
    }
}
