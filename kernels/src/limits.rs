//! What a core can do at most, to hold kernels against: loops that do nothing else.

use crate::features::{FeatureSet, Isa};
use crate::quant::Dots;
use crate::simd::{Simd, Token};

/// Accumulators of the multiply-add loop: enough to hide the latency of two units of four cycles and more.
const ACCUMULATORS: usize = 12;

/// How far ahead of itself the read loop asks for memory.
const AHEAD_BYTES: usize = 2048;

/// Independent multiply-adds in registers, `iterations` times; returns the multiply-adds done.
///
/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
unsafe fn multiply_add_loop<S: Simd>(iterations: u64) -> u64 {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    let factor = s.splat(core::hint::black_box(0.999_999));
    let mut acc = [s.splat(core::hint::black_box(1.0)); ACCUMULATORS];
    for _ in 0..iterations {
        for a in &mut acc {
            *a = s.fma(*a, factor, factor);
        }
    }
    let mut sum = s.zero();
    for a in acc {
        sum = s.add(sum, a);
    }
    core::hint::black_box(s.sum(sum));
    iterations * (ACCUMULATORS * S::LANES) as u64
}

/// Largest of all elements, so that every byte (up to the last few) is read once.
///
/// # Safety
/// The CPU has the instruction set of `S`.
#[inline(always)]
unsafe fn read_loop<S: Simd>(data: &[u8]) -> f32 {
    // SAFETY: the caller's promise.
    let s = unsafe { S::assume() };
    let mut acc = [s.zero(); 8];
    let step = 8 * S::LANES;
    let elements = data.len() / 4;
    let base = data.as_ptr().cast::<f32>();
    let mut at = 0;
    while at + step <= elements {
        for (i, a) in acc.iter_mut().enumerate() {
            let address = base.wrapping_add(at + i * S::LANES);
            // The hardware's own prefetch stops at every page.
            s.prefetch(address.cast::<u8>().wrapping_add(AHEAD_BYTES));
            // SAFETY: at + step ≤ elements, any bits are an f32, and the load needs no alignment.
            let v = unsafe { s.load(address) };
            *a = s.max(v, *a);
        }
        at += step;
    }
    let mut all = s.zero();
    for a in acc {
        all = s.max(a, all);
    }
    s.max_lane(all)
}

macro_rules! by_isa {
    ($features:expr, $function:ident ( $($name:ident : $ty:ty),* ) -> $ret:ty) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
            unsafe fn avx512($($name: $ty),*) -> $ret {
                // SAFETY: the caller promises the features.
                unsafe { $function::<crate::simd::Avx512>($($name),*) }
            }
            #[target_feature(enable = "avx,avx2,fma,f16c")]
            unsafe fn avx2($($name: $ty),*) -> $ret {
                // SAFETY: the caller promises the features.
                unsafe { $function::<crate::simd::Avx2>($($name),*) }
            }
            if $features.contains(Isa::Avx512.required()) {
                // SAFETY: the set says that the CPU has them.
                return unsafe { avx512($($name),*) };
            }
            if $features.contains(Isa::Avx2.required()) {
                // SAFETY: as above.
                return unsafe { avx2($($name),*) };
            }
        }
        #[cfg(target_arch = "aarch64")]
        if $features.contains(Isa::Neon.required()) {
            // SAFETY: every AArch64 target of this crate has NEON.
            return unsafe { $function::<crate::simd::Neon>($($name),*) };
        }
        // SAFETY: the scalar set needs nothing.
        unsafe { $function::<crate::simd::Scalar>($($name),*) }
    }};
}

/// Does `iterations` rounds of independent f32 multiply-adds on the widest vectors of this CPU; returns how many
/// multiply-adds that were.
pub fn multiply_adds(iterations: u64) -> u64 {
    by_isa!(FeatureSet::detect(), multiply_add_loop(iterations: u64) -> u64)
}

/// Reads all of `data` once, with the widest vectors of this CPU. The result only keeps the reads from being optimised
/// away.
pub fn read(data: &[u8]) -> f32 {
    by_isa!(FeatureSet::detect(), read_loop(data: &[u8]) -> f32)
}

/// A loop of `iterations` rounds that returns how many multiply-adds it did.
pub type MultiplyAdds = unsafe fn(iterations: u64) -> u64;

/// int8 multiply-adds by an instruction set's own way, from registers and a few cache lines; none when `features` lack the
/// instruction set, this is not its architecture, or its kernels have no products of int8.
///
/// To call it, the CPU must have the features.
pub fn int8_multiply_adds(isa: Isa, features: &FeatureSet) -> Option<MultiplyAdds> {
    /// The loop, compiled for an instruction set.
    macro_rules! compiled {
        ($token:ident $(, $features:literal)?) => {{
            $(#[target_feature(enable = $features)])?
            unsafe fn run(iterations: u64) -> u64 {
                // SAFETY: the caller promises the features.
                let token = unsafe { <crate::simd::$token as Token>::assume() };
                token.multiply_adds(iterations)
            }
            Some(run as MultiplyAdds)
        }};
    }
    if !features.contains(isa.required()) {
        return None;
    }
    match isa {
        Isa::Scalar => compiled!(Scalar),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => compiled!(Avx2, "avx,avx2,fma,f16c"),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => compiled!(AvxVnni, "avx,avx2,fma,f16c,avxvnni"),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => compiled!(Avx512Vnni, "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => None,
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => compiled!(Neon, "neon"),
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod => compiled!(Dotprod, "neon,dotprod"),
        #[cfg(target_arch = "aarch64")]
        Isa::I8mm => compiled!(I8mm, "neon,dotprod,i8mm"),
        #[cfg(not(target_arch = "aarch64"))]
        Isa::Neon | Isa::Dotprod | Isa::I8mm => None,
        Isa::Avx512 => None,
    }
}
