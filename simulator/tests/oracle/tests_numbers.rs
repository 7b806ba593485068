//! Functions of f32 against mathematics in f64, conversions against all patterns.

use crate::dice::Dice;
use crate::numbers::*;

/// Distance in units of the last place of f32 at the exact value.
fn ulps(found: f32, exact: f64) -> f64 {
    if f64::from(found) == exact || (found.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    let size = exact.abs().max(f64::from(f32::MIN_POSITIVE));
    let ulp = 2f64.powi(size.log2().floor() as i32 - 23);
    (f64::from(found) - exact).abs() / ulp
}

/// The worst of f over floats from `least` to `most`, spread over their patterns.
fn worst(least: f32, most: f32, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> (f64, f32) {
    let mut dice = Dice::new(7);
    let mut worst = (0.0, 0.0);
    for _ in 0..400_000 {
        let x = if dice.once_in(2) {
            least + (most - least) * (dice.bits() as u32 as f32 / u32::MAX as f32)
        } else {
            f32::from_bits(dice.bits() as u32)
        };
        if (least..=most).contains(&x) {
            let error = ulps(f(x), exact(x.into()));
            if error > worst.0 {
                worst = (error, x);
            }
        }
    }
    worst
}

#[test]
fn functions_are_near_mathematics() {
    let silu_exact = |x: f64| x / (1.0 + (-x).exp());
    let gelu_exact = |x: f64| {
        let u = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        x / (1.0 + (-u).exp())
    };
    // Relative where the result is a normal number; below, absolute in steps of the smallest normal's last place.
    let exp_error = worst(-87.3, 88.7, exp, f64::exp);
    let ln_error = worst(1e-45, 3.4e38, ln, f64::ln);
    let silu_error = worst(-80.0, 80.0, silu, silu_exact);
    let gelu_error = worst(-4.0, 10.0, gelu, gelu_exact);
    println!("exp {exp_error:?}, ln {ln_error:?}, silu {silu_error:?}, gelu {gelu_error:?}");
    assert!(exp_error.0 <= 1.0, "{exp_error:?}");
    assert!(ln_error.0 <= 1.0, "{ln_error:?}");
    assert!(silu_error.0 <= 3.0, "{silu_error:?}");
    assert!(gelu_error.0 <= 24.0, "{gelu_error:?}");
}

/// The ends of the functions' domains.
#[test]
fn functions_at_the_edges() {
    let inf = f32::INFINITY;
    assert_eq!([exp(0.0), exp(-0.0), exp(89.0), exp(inf), exp(-104.0), exp(-inf)], [1.0, 1.0, inf, inf, 0.0, 0.0]);
    assert!(exp(-103.2) > 0.0 && exp(88.7).is_finite());
    assert_eq!([ln(1.0), ln(0.0), ln(-0.0), ln(inf)], [0.0, -inf, -inf, inf]);
    assert!([exp(f32::NAN), ln(f32::NAN), ln(-1e-45), ln(-inf), silu(-inf)].iter().all(|y| y.is_nan()));
    assert_eq!([silu(0.0), gelu(0.0), silu(inf), gelu(inf), silu(-104.0)], [0.0, 0.0, inf, inf, -0.0]);
}

/// Every half is read as its value; every float becomes the nearest half, the even one of two.
#[test]
fn halves_are_the_nearest() {
    let values: Vec<f32> = (0..0x7c00).map(from_f16).collect();
    assert!(values.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!((values[1], values[0x400], values[0x7bff]), (2f32.powi(-24), 2f32.powi(-14), 65504.0));
    for bits in 0..=u16::MAX {
        let value = from_f16(bits);
        assert_eq!(to_f16(value), if value.is_nan() { 0x7e00 } else { bits });
    }
    for (at, pair) in values.windows(2).enumerate() {
        let at = at as u16;
        let middle = (pair[0] + pair[1]) / 2.0;
        let even = if at.is_multiple_of(2) { at } else { at + 1 };
        let (below, above) = (f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1));
        assert_eq!([to_f16(below), to_f16(middle), to_f16(above)], [at, even, at + 1], "{middle}");
        assert_eq!(to_f16(-middle), 0x8000 | even);
    }
    assert_eq!([to_f16(65519.996), to_f16(65520.0), to_f16(f32::INFINITY)], [0x7bff, 0x7c00, 0x7c00]);
    assert_eq!([to_f16(2f32.powi(-25)), to_f16(1e-45), to_f16(-1e-45)], [0, 0, 0x8000]);
}

/// Rounding to odd gives what the machine's or the C library's fused operation gives.
#[test]
fn fma_is_rounded_once() {
    let mut dice = Dice::new(3);
    for _ in 0..1_000_000 {
        let [a, b, mut c] = [0; 3].map(|_| f32::from_bits(dice.float()));
        if dice.once_in(3) {
            // Near cancellation, where a second rounding shows.
            c = f32::from_bits((-(a * b)).to_bits().wrapping_add(dice.below(4) as u32));
        }
        assert_eq!(pattern(fma(a, b, c)), pattern(a.mul_add(b, c)), "{a:e}·{b:e} + {c:e}");
    }
}

#[test]
fn integers_are_rounded_to_even_and_held() {
    assert_eq!(
        [0.5, 1.5, -0.5, -1.5, -2.5, 126.5, 127.5, -127.5, 300.0, f32::NAN].map(to_i8),
        [0, 2, 0, -2, -2, 126, 127, -127, 127, 0]
    );
    assert_eq!([2.5, -3.5, 2147483648.0, f32::NEG_INFINITY, f32::NAN].map(to_i32), [2, -4, i32::MAX, i32::MIN, 0]);
}

#[test]
fn sums_have_sixteen_lanes() {
    // 2^24 + 1 is not a float: what lane a term goes to shows.
    let mut terms = [0f32; 40];
    (terms[0], terms[16], terms[1], terms[9]) = (16_777_216.0, 1.0, 1.0, 1.0);
    assert_eq!(sum(terms.len(), |j, p| p + terms[j]), 16_777_218.0);
    assert_eq!(sum(0, |_, p| p), 0.0);
    assert_eq!([max(f32::NAN, 1.0), max(1.0, f32::NAN), max(1.0, 2.0), min(1.0, 2.0)], [1.0, 1.0, 2.0, 1.0]);
    assert_eq!([max(0.0, -0.0), max(-0.0, 0.0)].map(f32::to_bits), [0x8000_0000, 0]);
}
