//! One vector type per instruction set, behind one trait, so that every kernel is written once.
//!
//! A token such as [`Avx2`] is a proof: it can only be made by the unsafe [`Token::assume`], inside a function
//! compiled for the instruction set, and every arithmetic method takes the token. So the arithmetic is safe to call,
//! and only loads and stores, which take pointers, are not.
//!
//! Everything here and everything generic over [`Simd`] is `#[inline(always)]`: the code must end up inside the
//! `#[target_feature]` function of the kernel table, or it is compiled without the instructions.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod dotprod;
#[cfg(target_arch = "aarch64")]
mod i8mm;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_codes;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use dotprod::Dotprod;
#[cfg(target_arch = "aarch64")]
pub(crate) use i8mm::I8mm;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use vnni::{Avx512Vnni, AvxVnni};

/// The proof that an instruction set is there.
pub(crate) trait Token: Copy {
    /// # Safety
    /// The CPU has the instruction set, and the caller is compiled for it.
    unsafe fn assume() -> Self;
}

/// Vectors of `LANES` f32 and what the kernels do with them.
pub(crate) trait Simd: Token {
    /// A vector register of f32.
    type V: Copy;
    /// f32 lanes of a vector.
    const LANES: usize;
    /// Whether a vector can be multiplied by one lane of another at no cost (AArch64). Then GEMM reads
    /// activations four at a time instead of broadcasting each from memory.
    const LANE_FMA: bool;

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn sqrt(self, a: Self::V) -> Self::V;
    /// Larger of the lanes; `b` when one of them is not a number (`a` or `b` on AArch64: not a number).
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// Smaller of the lanes; not-a-number as in `max`.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a·b + c`, rounded once (twice on [`Scalar`]).
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a·b + c`, rounded once on every instruction set.
    #[inline(always)]
    fn fused(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.fma(a, b, c)
    }
    /// `a[L]·b + c`. Only called when `LANE_FMA`.
    fn fma_lane<const L: i32>(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `x · 2ⁿ` for integral n in −150..=129, right also where the result is subnormal or infinite.
    fn scale_by_power_of_two(self, x: Self::V, n: Self::V) -> Self::V;
    /// Sum of the lanes.
    fn sum(self, v: Self::V) -> f32;
    /// Largest of the lanes.
    fn max_lane(self, v: Self::V) -> f32;

    /// Sums of the lanes of four vectors.
    #[inline(always)]
    fn sum4(self, v: [Self::V; 4]) -> [f32; 4] {
        v.map(
            #[inline(always)]
            |v| self.sum(v),
        )
    }

    /// Asks for the cache line at `p`, which need not be readable.
    fn prefetch(self, p: *const u8);

    /// # Safety
    /// `p..p+LANES` is readable.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// First `n ≤ LANES` lanes from memory, the others 0.
    ///
    /// # Safety
    /// `p..p+n` is readable.
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::V;
    /// `LANES` IEEE binary16 values, widened.
    ///
    /// # Safety
    /// `p..p+LANES` is readable.
    unsafe fn load_f16(self, p: *const u16) -> Self::V;
    /// `LANES` i8 values.
    ///
    /// # Safety
    /// `p..p+LANES` is readable.
    unsafe fn load_i8(self, p: *const i8) -> Self::V;
    /// # Safety
    /// `p..p+LANES` is writable.
    unsafe fn store(self, p: *mut f32, v: Self::V);
    /// Stores `LANES` values as IEEE binary16, rounded to nearest even.
    ///
    /// # Safety
    /// `p..p+LANES` is writable.
    unsafe fn store_f16(self, p: *mut u16, v: Self::V);
    /// Stores `LANES` integral values in −127..=127 as i8; of not-a-number, any value.
    ///
    /// # Safety
    /// `p..p+LANES` is writable.
    unsafe fn store_i8(self, p: *mut i8, v: Self::V);
    /// Stores the first `n ≤ LANES` lanes.
    ///
    /// # Safety
    /// `p..p+n` is writable.
    unsafe fn store_first(self, p: *mut f32, v: Self::V, n: usize);

    /// The first lanes, up to n; the others 0.
    ///
    /// # Safety
    /// `p..p+min(n, LANES)` is readable.
    #[inline(always)]
    unsafe fn load_up_to(self, p: *const f32, n: usize) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { if n >= Self::LANES { self.load(p) } else { self.load_first(p, n) } }
    }

    /// Stores the first lanes, up to n.
    ///
    /// # Safety
    /// `p..p+min(n, LANES)` is writable.
    #[inline(always)]
    unsafe fn store_up_to(self, p: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { if n >= Self::LANES { self.store(p, v) } else { self.store_first(p, v, n) } }
    }

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }
}

/// How packed weights and embedding tables are stored.
pub(crate) trait Weights {
    /// One stored weight.
    type Elem: Copy;

    /// # Safety
    /// `p..p+LANES` is readable.
    unsafe fn load<S: Simd>(s: S, p: *const Self::Elem) -> S::V;

    fn widen(x: Self::Elem) -> f32;

    /// The first lanes, up to n; the others 0.
    ///
    /// # Safety
    /// `p..p+min(n, LANES)` is readable.
    #[inline(always)]
    unsafe fn load_up_to<S: Simd>(s: S, p: *const Self::Elem, n: usize) -> S::V {
        if n >= S::LANES {
            // SAFETY: LANES elements are readable.
            return unsafe { Self::load(s, p) };
        }
        let mut lanes = [0.0; MOST_LANES];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: i < n.
            *lane = Self::widen(unsafe { p.add(i).read() });
        }
        // SAFETY: no vector has more than MOST_LANES lanes.
        unsafe { s.load(lanes.as_ptr()) }
    }
}

/// Lanes of the widest vector.
pub(crate) const MOST_LANES: usize = 16;

/// f32 weights.
pub(crate) struct F32;

impl Weights for F32 {
    type Elem = f32;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const f32) -> S::V {
        // SAFETY: the caller's promise is `load`'s.
        unsafe { s.load(p) }
    }

    #[inline(always)]
    fn widen(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    unsafe fn load_up_to<S: Simd>(s: S, p: *const f32, n: usize) -> S::V {
        // SAFETY: the caller's promise is `load_up_to`'s.
        unsafe { s.load_up_to(p, n) }
    }
}

/// IEEE binary16 weights, widened in registers.
pub(crate) struct F16;

impl Weights for F16 {
    type Elem = u16;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const u16) -> S::V {
        // SAFETY: the caller's promise is `load_f16`'s.
        unsafe { s.load_f16(p) }
    }

    #[inline(always)]
    fn widen(x: u16) -> f32 {
        half::f16::from_bits(x).to_f32_const()
    }
}

/// int8 codes, without their scale.
pub(crate) struct Codes;

impl Weights for Codes {
    type Elem = i8;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const i8) -> S::V {
        // SAFETY: the caller's promise is `load_i8`'s.
        unsafe { s.load_i8(p) }
    }

    #[inline(always)]
    fn widen(x: i8) -> f32 {
        f32::from(x)
    }
}

/// Methods that are one safe-to-call intrinsic, given the token.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! by_token {
    ($vector:ty: $($name:ident($($arg:ident),*) = $call:expr;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: $vector),*) -> $vector {
                // SAFETY: register arithmetic; the token proves the instruction set.
                unsafe { $call }
            }
        )*
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use by_token;
