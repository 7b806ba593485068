//! Numbers as `ISA.md` defines them: f16, integers, exp, ln, largest, sums.

use lapidary_npu_isa::choice::Type;

/// What every result that is not a number looks like.
pub const NAN_BITS: u32 = 0x7fc0_0000;
/// Adding and subtracting it rounds to an integer: 1.5·2²³.
const ROUNDER: f32 = 12_582_912.0;

/// The one pattern of "not a number", or the number itself.
#[inline]
pub fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(NAN_BITS) } else { x }
}

/// Exact.
#[inline]
pub fn f32_of_f16(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let (exponent, mantissa) = (u32::from(half >> 10 & 31), u32::from(half & 0x3ff));
    let magnitude = match exponent {
        // 2⁻²⁴ per unit.
        0 => (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        31 => 0x7f80_0000 | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// Rounded to nearest even, overflow to infinity.
#[inline]
pub fn f16_of_f32(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7e00;
    }
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let rounded = match magnitude {
        // 65520 and above.
        0x477f_f000.. => 0x7c00,
        // 2⁻¹⁴ and above: normal.
        0x3880_0000.. => (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x3800_0000) >> 13,
        // In units of 2⁻²⁴; adding and subtracting 2²³ rounds.
        _ => ((f32::from_bits(magnitude) * 16_777_216.0 + 8_388_608.0) - 8_388_608.0) as u32,
    };
    sign | rounded as u16
}

/// Half to even, held to −127…127; NaN becomes 0.
#[inline]
pub fn i8_of_f32(y: f32) -> i8 {
    // Holding first gives the same: both ends are integers.
    let held = if y.is_nan() { 0.0 } else { y.clamp(-127.0, 127.0) };
    ((held + ROUNDER) - ROUNDER) as i8
}

/// Half to even, held to −2³¹…2³¹−1; NaN becomes 0.
#[inline]
pub fn i32_of_f32(y: f32) -> i32 {
    y.round_ties_even() as i32
}

/// The larger; of one that is not a number, the other.
#[inline]
pub fn max(a: f32, b: f32) -> f32 {
    if a.is_nan() || (!b.is_nan() && b >= a) { b } else { a }
}

/// The smaller; of one that is not a number, the other.
#[inline]
pub fn min(a: f32, b: f32) -> f32 {
    if a.is_nan() || (!b.is_nan() && b <= a) { b } else { a }
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// The f32 with a pattern: constants that ISA.md gives so.
const fn bits(pattern: u32) -> f32 {
    f32::from_bits(pattern)
}

/// eˣ.
#[inline]
pub fn exp(x: f32) -> f32 {
    const TAIL: [f32; 5] = [bits(0x3ab7_43ce), bits(0x3c08_8908), bits(0x3d2a_a9c1), bits(0x3e2a_aaaa), 0.5];
    if x.is_nan() {
        return x;
    }
    let x = x.clamp(-104.0, 89.0);
    let n = x.mul_add(bits(0x3fb8_aa3b), ROUNDER) - ROUNDER;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(bits(0x395e_8083), r);
    let p = TAIL.iter().fold(bits(0x3950_6967), |p, c| p.mul_add(r, *c));
    let p = (r * r).mul_add(p, r) + 1.0;
    let n = n as i32;
    let h = n >> 1;
    (p * power_of_two(h)) * power_of_two(n - h)
}

/// Natural logarithm.
pub fn ln(x: f32) -> f32 {
    const TAIL: [f32; 8] = [
        bits(0xbdeb_d1b8),
        bits(0x3def_251a),
        bits(0xbdfe_5d4f),
        bits(0x3e11_e9bf),
        bits(0xbe2a_ae50),
        bits(0x3e4c_ceac),
        bits(0xbe7f_fffc),
        bits(0x3eaa_aaaa),
    ];
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x == f32::INFINITY {
        return x;
    }
    let (x, shift) = if x < f32::MIN_POSITIVE { (x * 8_388_608.0, -23) } else { (x, 0) };
    let pattern = x.to_bits();
    // 0.5 ≤ m < 1.
    let k = (pattern >> 23) as i32 - 126;
    let m = bits(pattern & 0x007f_ffff | 0x3f00_0000);
    let mut e = (shift + k) as f32;
    let f = if m < bits(0x3f35_04f3) {
        e -= 1.0;
        (m + m) - 1.0
    } else {
        m - 1.0
    };
    let z = f * f;
    let y = TAIL.iter().fold(bits(0x3d90_21bb), |y, c| y.mul_add(f, *c));
    let y = (y * f) * z;
    let y = e.mul_add(bits(0xb95e_8083), y);
    let y = z.mul_add(-0.5, y);
    e.mul_add(0.693_359_4, f + y)
}

/// x / (1 + exp(0 − x)).
#[inline]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(0.0 - x))
}

/// x / (1 + exp(0 − u)) with u of the tanh form.
#[inline]
pub fn gelu(x: f32) -> f32 {
    let u = x * (x * x).mul_add(bits(0x3d92_2279), bits(0x3fcc_422a));
    x / (1.0 + exp(0.0 - u))
}

/// Terms of the rule of sums that are kept apart.
const LANES: usize = 16;

fn fold(mut p: [f32; LANES]) -> f32 {
    for h in [8, 4, 2, 1] {
        for i in 0..h {
            p[i] += p[i + h];
        }
    }
    p[0]
}

/// Σ x by the rule of sums.
pub fn sum(terms: &[f32]) -> f32 {
    let mut p = [0.0f32; LANES];
    for chunk in terms.chunks(LANES) {
        for (p, x) in p.iter_mut().zip(chunk) {
            *p += x;
        }
    }
    fold(p)
}

/// Σ a·b by the rule of sums with fma.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut p = [0.0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((p, a), b) in p.iter_mut().zip(a).zip(b) {
            *p = a.mul_add(*b, *p);
        }
    }
    fold(p)
}

/// Reads `out.len()` elements that begin with `bytes`, widened.
pub fn widen(bytes: &[u8], ty: Type, out: &mut [f32]) {
    match ty {
        Type::F32 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
        Type::F16 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = f32_of_f16(u16::from_le_bytes(*b));
            }
        }
        Type::I8 => {
            for (x, b) in out.iter_mut().zip(bytes) {
                *x = f32::from(*b as i8);
            }
        }
        Type::I32 => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = i32::from_le_bytes(*b) as f32;
            }
        }
    }
}

/// Stores results as elements of a type.
pub fn narrow(values: &[f32], ty: Type, bytes: &mut [u8]) {
    match ty {
        Type::F32 => {
            for (x, b) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
                *b = canonical(*x).to_le_bytes();
            }
        }
        Type::F16 => {
            for (x, b) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
                *b = f16_of_f32(*x).to_le_bytes();
            }
        }
        Type::I8 => {
            for (x, b) in values.iter().zip(bytes) {
                *b = i8_of_f32(*x) as u8;
            }
        }
        Type::I32 => {
            for (x, b) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
                *b = i32_of_f32(*x).to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_survives_widening() {
        for half in 0..=u16::MAX {
            let wide = f32_of_f16(half);
            let expected = if wide.is_nan() { 0x7e00 } else { half };
            assert_eq!(f16_of_f32(wide), expected, "{half:#x}");
        }
    }

    #[test]
    fn f16_rounds_half_to_even() {
        // 1 + 2⁻¹¹ lies between 1 and 1 + 2⁻¹⁰; 1 + 3·2⁻¹¹ between 1 + 2⁻¹⁰ and 1 + 2⁻⁹.
        assert_eq!(f16_of_f32(1.0 + 1.0 / 2048.0), 0x3c00);
        assert_eq!(f16_of_f32(1.0 + 3.0 / 2048.0), 0x3c02);
        assert_eq!(f16_of_f32(65519.996), 0x7bff);
        assert_eq!(f16_of_f32(65520.0), 0x7c00);
        // Half of the smallest is a tie that goes to 0, three halves one that goes to 2 units.
        let unit = f32::from_bits(0x3380_0000);
        assert_eq!(f16_of_f32(unit * 0.5), 0);
        assert_eq!(f16_of_f32(-unit * 1.5), 0x8002);
        // Rounding up out of the subnormal numbers.
        assert_eq!(f16_of_f32(unit * 1023.75), 0x0400);
    }

    #[test]
    fn codes_round_half_to_even_and_hold() {
        let cases =
            [(0.5, 0), (1.5, 2), (-2.5, -2), (126.5, 126), (127.5, 127), (-127.5, -127), (1e9, 127), (-1e9, -127)];
        for (y, code) in cases {
            assert_eq!(i8_of_f32(y), code, "{y}");
        }
        assert_eq!(i8_of_f32(f32::NAN), 0);
        assert_eq!(i32_of_f32(2.5), 2);
        assert_eq!(i32_of_f32(3e9), i32::MAX);
        assert_eq!(i32_of_f32(f32::NEG_INFINITY), i32::MIN);
        assert_eq!(i32_of_f32(f32::NAN), 0);
    }

    #[test]
    fn exp_and_ln_are_within_two_units_of_f64() {
        let ulp = |y: f32| (f32::from_bits(y.abs().to_bits() + 1) - y.abs()) as f64;
        for i in -86000..88000 {
            let x = i as f32 / 1000.0;
            let (got, right) = (exp(x), f64::from(x).exp());
            assert!((f64::from(got) - right).abs() <= 2.0 * ulp(got), "exp({x}) = {got}");
        }
        for i in 1..200_000 {
            let x = i as f32 / 777.0;
            let (got, right) = (ln(x), f64::from(x).ln());
            assert!((f64::from(got) - right).abs() <= 2.0 * ulp(got).max(1e-7), "ln({x}) = {got}");
        }
        // Exact in f32, though not written with all digits.
        assert_eq!(0.693_359_4f32, 355.0 / 512.0);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-104.0), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(-0.0), f32::NEG_INFINITY);
        assert!(ln(-1.0).is_nan());
        // 2⁻¹⁴⁹: −149·ln 2.
        assert!((ln(f32::from_bits(1)) + 103.27893).abs() < 1e-4);
    }

    #[test]
    fn largest_and_smallest_skip_what_is_no_number() {
        assert_eq!(max(f32::NAN, 1.0), 1.0);
        assert_eq!(max(1.0, f32::NAN), 1.0);
        assert!(max(f32::NAN, f32::NAN).is_nan());
        // Of equal ones the second.
        assert_eq!(max(0.0, -0.0).to_bits(), (-0.0f32).to_bits());
        assert_eq!(min(-0.0, 0.0).to_bits(), 0);
    }

    #[test]
    fn sums_keep_sixteen_partial_sums() {
        // Lane 0 gets 2²⁴ and 1, which is lost; lane 1 gets 1.
        let mut terms = [0.0f32; 17];
        (terms[0], terms[1], terms[16]) = (16_777_216.0, 1.0, 1.0);
        assert_eq!(sum(&terms), 16_777_216.0);
        // Now both ones stand in lane 1 and make 2.
        (terms[16], terms[2]) = (0.0, 1.0);
        assert_eq!(sum(&terms), 16_777_216.0);
        let mut terms = [0.0f32; 18];
        (terms[0], terms[1], terms[17]) = (16_777_216.0, 1.0, 1.0);
        assert_eq!(sum(&terms), 16_777_218.0);
    }
}
