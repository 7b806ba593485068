//! ISA.md's "Numbers", each by its written steps: conversions through exact f64, `fma` through rounding to odd.

#![allow(clippy::excessive_precision, reason = "0.693359375 stands in the text, and is a float")]

/// Round to nearest, half to even, of a number that f64 holds exactly.
pub fn round_half_even(x: f64) -> f64 {
    if !x.is_finite() || x.abs() >= 4_503_599_627_370_496.0 {
        return x;
    }
    let below = x.floor();
    let rest = x - below;
    let odd = below.rem_euclid(2.0) == 1.0;
    if rest > 0.5 || (rest == 0.5 && odd) { below + 1.0 } else { below }
}

/// The pattern of a result: one for all that is not a number.
pub fn pattern(x: f32) -> u32 {
    if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }
}

/// Value of a binary16.
pub fn from_f16(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 31);
    let fraction = f64::from(bits & 0x3ff);
    let size = match exponent {
        31 if fraction != 0.0 => f64::NAN,
        31 => f64::INFINITY,
        0 => fraction * 2f64.powi(-24),
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    (sign * size) as f32
}

/// Nearest binary16, overflow to infinity.
pub fn to_f16(x: f32) -> u16 {
    if x.is_nan() {
        return 0x7e00;
    }
    let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
    let size = f64::from(x).abs();
    if size >= 65520.0 {
        return sign | 0x7c00;
    }
    // The spacing of binary16 at `size`: 2^-24 below the smallest normal, doubling with every binade.
    let mut spacing = 2f64.powi(-24);
    while size >= 2048.0 * spacing {
        spacing *= 2.0;
    }
    let mut steps = round_half_even(size / spacing) as u16;
    let mut binade = 0;
    while spacing > 2f64.powi(-24) {
        spacing /= 2.0;
        binade += 1;
    }
    // A number that rounds up to the next binade carries into the exponent by itself.
    if binade > 0 {
        steps += (binade as u16) << 10;
    }
    sign | steps
}

/// `a·b + c`, rounded once.
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let addend = f64::from(c);
    let sum = product + addend;
    if !sum.is_finite() || sum == 0.0 {
        return sum as f32;
    }
    // What the sum lost, exactly; if anything, the last bit becomes odd, so that the second rounding sees it.
    let back = sum - product;
    let error = (product - (sum - back)) + (addend - back);
    let bits = sum.to_bits();
    if error == 0.0 || bits & 1 == 1 {
        return sum as f32;
    }
    let outwards = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if outwards { bits + 1 } else { bits - 1 }) as f32
}

/// ISA.md's max.
pub fn max(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a > b {
        a
    } else {
        b
    }
}

/// ISA.md's min.
pub fn min(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b {
        a
    } else {
        b
    }
}

/// The rule of sums over `n` terms; `step(j, p)` adds term j to p.
pub fn sum(n: usize, step: impl Fn(usize, f32) -> f32) -> f32 {
    let mut p = [0f32; 16];
    for j in 0..n {
        p[j % 16] = step(j, p[j % 16]);
    }
    for h in [8, 4, 2, 1] {
        for i in 0..h {
            p[i] += p[i + h];
        }
    }
    p[0]
}

/// 2^e, a normal number.
fn power_of_two(e: i32) -> f32 {
    assert!((-126..=127).contains(&e), "2^{e} is no normal number");
    f32::from_bits(((e + 127) as u32) << 23)
}

/// exp by ISA.md's steps.
pub fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let x = min(max(x, -104.0), 89.0);
    let n = fma(x, f32::from_bits(0x3fb8_aa3b), 12_582_912.0) - 12_582_912.0;
    let mut r = fma(n, -0.693_359_375, x);
    r = fma(n, f32::from_bits(0x395e_8083), r);
    let mut p = f32::from_bits(0x3950_6967);
    for c in [0x3ab7_43ce, 0x3c08_8908, 0x3d2a_a9c1, 0x3e2a_aaaa, 0x3f00_0000] {
        p = fma(p, r, f32::from_bits(c));
    }
    p = fma(r * r, p, r) + 1.0;
    let whole = n as i32;
    let h = whole.div_euclid(2);
    (p * power_of_two(h)) * power_of_two(whole - h)
}

/// ln by ISA.md's steps.
pub fn ln(x: f32) -> f32 {
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x == f32::INFINITY {
        return x;
    }
    let (mut x, mut shift) = (x, 0);
    if x < power_of_two(-126) {
        x *= 8_388_608.0;
        shift = -23;
    }
    // x = m·2^k, 0.5 ≤ m < 1.
    let (mut m, mut k) = (f64::from(x), 0);
    while m >= 1.0 {
        m /= 2.0;
        k += 1;
    }
    while m < 0.5 {
        m *= 2.0;
        k -= 1;
    }
    let m = m as f32;
    let mut e = (shift + k) as f32;
    let f = if m < f32::from_bits(0x3f35_04f3) {
        e -= 1.0;
        (m + m) - 1.0
    } else {
        m - 1.0
    };
    let z = f * f;
    let mut y = f32::from_bits(0x3d90_21bb);
    for c in [0xbdeb_d1b8, 0x3def_251a, 0xbdfe_5d4f, 0x3e11_e9bf, 0xbe2a_ae50, 0x3e4c_ceac, 0xbe7f_fffc, 0x3eaa_aaaa] {
        y = fma(y, f, f32::from_bits(c));
    }
    y = (y * f) * z;
    y = fma(e, f32::from_bits(0xb95e_8083), y);
    y = fma(z, -0.5, y);
    fma(e, 0.693_359_375, f + y)
}

/// silu.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(0.0 - x))
}

/// gelu, the tanh form.
pub fn gelu(x: f32) -> f32 {
    let u = x * fma(x * x, f32::from_bits(0x3d92_2279), f32::from_bits(0x3fcc_422a));
    x / (1.0 + exp(0.0 - u))
}

/// A result as an i8 code.
pub fn to_i8(y: f32) -> i8 {
    if y.is_nan() {
        return 0;
    }
    round_half_even(f64::from(y)).clamp(-127.0, 127.0) as i8
}

/// A result as an i32.
pub fn to_i32(y: f32) -> i32 {
    if y.is_nan() {
        return 0;
    }
    round_half_even(f64::from(y)).clamp(-2_147_483_648.0, 2_147_483_647.0) as i32
}
