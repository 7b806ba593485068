//! What is known of a register: a set lo, lo + stride, …, hi, perhaps added to an unknown number.

use crate::table::Op;

/// The register (of a loop depth) whose value at the head of the loop is the unknown number.
pub(super) type Symbol = (u8, u8);

/// A set of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub base: Option<Symbol>,
    pub lo: i64,
    pub hi: i64,
    /// 0 of a single number.
    pub stride: u64,
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

impl Value {
    /// Any number.
    pub(super) const ANY: Value = Value { base: None, lo: i64::MIN, hi: i64::MAX, stride: 1 };

    /// One number.
    pub(super) const fn exactly(n: i64) -> Value {
        Value { base: None, lo: n, hi: n, stride: 0 }
    }

    /// All from `lo` to `hi`.
    pub(super) const fn range(lo: i64, hi: i64) -> Value {
        Value { base: None, lo, hi, stride: if lo == hi { 0 } else { 1 } }
    }

    pub(super) const fn symbol(symbol: Symbol) -> Value {
        Value { base: Some(symbol), lo: 0, hi: 0, stride: 0 }
    }

    /// The number, if it is one.
    pub(super) fn single(&self) -> Option<i64> {
        (self.base.is_none() && self.lo == self.hi).then_some(self.lo)
    }

    /// Without an unknown number: the smallest and the largest.
    pub(super) fn bounds(&self) -> (i64, i64) {
        if self.base.is_none() { (self.lo, self.hi) } else { (i64::MIN, i64::MAX) }
    }

    /// The set as a whole, or any number if it does not fit.
    fn of(base: Option<Symbol>, lo: i128, hi: i128, stride: u64) -> Value {
        match (i64::try_from(lo), i64::try_from(hi)) {
            (Ok(lo), Ok(hi)) => Value { base, lo, hi, stride: if lo == hi { 0 } else { stride.max(1) } },
            _ => Value::ANY,
        }
    }

    /// Numbers of either.
    pub(super) fn hull(self, other: Value) -> Value {
        if self.base != other.base {
            return Value::ANY;
        }
        let stride = gcd(gcd(self.stride, other.stride), self.lo.abs_diff(other.lo));
        Value::of(self.base, self.lo.min(other.lo).into(), self.hi.max(other.hi).into(), stride)
    }

    pub(super) fn add(self, other: Value) -> Value {
        let base = match (self.base, other.base) {
            (base, None) | (None, base) => base,
            (Some(_), Some(_)) => return Value::ANY,
        };
        let lo = i128::from(self.lo) + i128::from(other.lo);
        let hi = i128::from(self.hi) + i128::from(other.hi);
        Value::of(base, lo, hi, gcd(self.stride, other.stride))
    }

    fn sub(self, other: Value) -> Value {
        if other.base.is_some() {
            return Value::ANY;
        }
        let lo = i128::from(self.lo) - i128::from(other.hi);
        let hi = i128::from(self.hi) - i128::from(other.lo);
        Value::of(self.base, lo, hi, gcd(self.stride, other.stride))
    }

    fn mul(self, other: Value) -> Value {
        if self.base.is_some() || other.base.is_some() {
            return Value::ANY;
        }
        let products = [self.lo, self.hi].map(|a| [other.lo, other.hi].map(|b| i128::from(a) * i128::from(b)));
        let all = products.as_flattened();
        let (lo, hi) = (all.iter().min().copied().unwrap_or(0), all.iter().max().copied().unwrap_or(0));
        // (a + i·s)·(b + j·t) = ab + i·s·b + j·t·a + i·j·s·t: all differences are multiples of the three.
        let times = |x: u64, y: u64| x.checked_mul(y).unwrap_or(1);
        let (s, t) = (self.stride, other.stride);
        let (a, b) = (self.lo.unsigned_abs(), other.lo.unsigned_abs());
        Value::of(None, lo, hi, gcd(gcd(times(s, b), times(t, a)), times(s, t)))
    }

    /// Sum of the increments of a loop that runs `least` to `most` times, `self` being the increment.
    pub(super) fn times(self, least: i64, most: i64) -> Value {
        self.mul(Value::range(least, most))
    }

    /// Those up to `limit`; `None` if there is none.
    pub(super) fn at_most(self, limit: i64) -> Option<Value> {
        match self.base {
            Some(_) => Some(self),
            None if self.lo > limit => None,
            None if self.hi <= limit || self.stride == 0 => Some(self),
            None => {
                let steps = self.lo.abs_diff(limit) / self.stride;
                let hi = self.lo.wrapping_add_unsigned(steps.wrapping_mul(self.stride));
                Some(Value { hi, stride: if hi == self.lo { 0 } else { self.stride }, ..self })
            }
        }
    }

    /// Those from `limit` on; `None` if there is none.
    pub(super) fn at_least(self, limit: i64) -> Option<Value> {
        match self.base {
            Some(_) => Some(self),
            None if self.hi < limit => None,
            None if self.lo >= limit || self.stride == 0 => Some(self),
            None => {
                let steps = self.lo.abs_diff(limit).div_ceil(self.stride);
                let lo = self.lo.wrapping_add_unsigned(steps.wrapping_mul(self.stride));
                (lo <= self.hi).then_some(Value { lo, stride: if lo == self.hi { 0 } else { self.stride }, ..self })
            }
        }
    }
}

/// Result of a scalar instruction on sets.
pub(super) fn arithmetic(op: &Op, a: Value, b: Value) -> Value {
    if let (Some(x), Some(y)) = (a.single(), b.single()) {
        return Value::exactly(exact(op, x, y));
    }
    let plain = a.base.is_none() && b.base.is_none();
    match op {
        Op::Add(_) => a.add(b),
        Op::Sub(_) => a.sub(b),
        Op::Mul(_) => a.mul(b),
        Op::Shl(_) => match b.single() {
            Some(n @ 0..=62) => a.mul(Value::exactly(1 << n)),
            Some(_) | None => Value::ANY,
        },
        Op::Shr(_) => match b.single() {
            Some(n @ 0..=63) if plain => Value::range(a.lo >> n, a.hi >> n),
            Some(_) | None => Value::ANY,
        },
        Op::Min(_) if plain => match b.single() {
            Some(n) if n >= a.hi => a,
            Some(_) | None => Value { lo: a.lo.min(b.lo), hi: a.hi.min(b.hi), ..a.hull(b) }.normal(),
        },
        Op::Max(_) if plain => match b.single() {
            Some(n) if n <= a.lo => a,
            Some(_) | None => Value { lo: a.lo.max(b.lo), hi: a.hi.max(b.hi), ..a.hull(b) }.normal(),
        },
        Op::And(_) if plain => match (a.single().or(b.single()), a.lo >= 0 || b.lo >= 0) {
            (Some(mask @ 1..), _) => {
                let other = if a.single() == Some(mask) { b } else { a };
                let modulus = mask.unsigned_abs() + 1;
                match i64::try_from(gcd(other.stride, modulus)) {
                    // A remainder: it keeps what the steps have in common with the modulus.
                    Ok(step) if modulus.is_power_of_two() => {
                        let first = other.lo.rem_euclid(step);
                        Value::of(None, first.into(), (mask - (mask - first) % step).into(), step.unsigned_abs())
                    }
                    // The bits below the lowest of the mask are 0.
                    Ok(_) | Err(_) => Value::of(None, 0, mask.into(), 1 << mask.trailing_zeros()),
                }
            }
            (Some(0), _) => Value::exactly(0),
            (_, true) => {
                let bound = |v: Value| if v.lo >= 0 { v.hi } else { i64::MAX };
                Value::range(0, bound(a).min(bound(b)))
            }
            (_, false) => Value::ANY,
        },
        _ => Value::ANY,
    }
}

impl Value {
    /// A stride of 0 for one number.
    fn normal(self) -> Value {
        Value { stride: if self.lo == self.hi { 0 } else { self.stride.max(1) }, ..self }
    }
}

fn exact(op: &Op, a: i64, b: i64) -> i64 {
    match op {
        Op::Add(_) => a.wrapping_add(b),
        Op::Sub(_) => a.wrapping_sub(b),
        Op::Mul(_) => a.wrapping_mul(b),
        Op::Shl(_) => a.wrapping_shl((b & 63) as u32),
        Op::Shr(_) => a >> (b & 63),
        Op::Min(_) => a.min(b),
        Op::Max(_) => a.max(b),
        Op::And(_) => a & b,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Arithmetic;
    use crate::operand::{Dest, Reg, Source, Term};
    use proptest::prelude::*;

    fn sets() -> impl Strategy<Value = (Value, i64)> {
        (-40i64..40, 0u64..9, 0u64..9, 0u64..9).prop_map(|(lo, stride, steps, at)| {
            let steps = if stride == 0 { 0 } else { steps };
            let stride = if steps == 0 { 0 } else { stride };
            let hi = lo + (stride * steps) as i64;
            (Value { base: None, lo, hi, stride }, lo + (stride * at.min(steps)) as i64)
        })
    }

    fn contains(v: Value, n: i64) -> bool {
        v.lo <= n && n <= v.hi && (v.stride == 0 || v.lo.abs_diff(n).is_multiple_of(v.stride))
    }

    proptest! {
        /// Whatever is computed from members of sets is a member of the set that is computed.
        #[test]
        fn arithmetic_is_sound((a, x) in sets(), (b, y) in sets(), shift in 0i64..5) {
            let r1 = Reg::new(1).expect("a register");
            let f = Arithmetic { rd: Dest(r1), a: Source(None), b: Term::Imm(0) };
            for op in [Op::Add(f), Op::Sub(f), Op::Mul(f), Op::Min(f), Op::Max(f), Op::And(f)] {
                prop_assert!(contains(arithmetic(&op, a, b), exact(&op, x, y)), "{:?} {:?} {:?}", op, a, b);
            }
            for op in [Op::Shl(f), Op::Shr(f)] {
                let v = arithmetic(&op, a, Value::exactly(shift));
                prop_assert!(contains(v, exact(&op, x, shift)));
            }
            let hull = a.hull(b);
            prop_assert!(contains(hull, x) && contains(hull, y));
            for limit in [y - 1, y, y + 1] {
                prop_assert_eq!(x <= limit, x <= limit && a.at_most(limit).is_some_and(|v| contains(v, x)));
                prop_assert_eq!(x >= limit, x >= limit && a.at_least(limit).is_some_and(|v| contains(v, x)));
            }
        }
    }
}
