//! Limits of the machine, measured: multiply-adds per second of one core, and bytes per second read from memory.

use crate::seconds;
use lapidary_kernels::Isa;
use std::hint::black_box;

/// Multiply-adds per accumulator and call.
const STEPS: usize = 10_000;
/// Independent sums: more than latency × units of any core.
const SUMS: usize = 12;

macro_rules! peak {
    ($name:ident, $features:literal, $vector:ty, $splat:expr, $fma:expr, $store:expr) => {
        #[target_feature(enable = $features)]
        fn $name(x: f32) -> f32 {
            let (a, b) = ($splat(x), $splat(x * 0.5));
            let mut sums: [$vector; SUMS] = std::array::from_fn(|i| $splat(i as f32));
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = $fma(a, b, *sum);
                }
            }
            let mut total = 0.0;
            for sum in sums {
                let mut lanes = [0.0f32; size_of::<$vector>() / 4];
                // SAFETY: `lanes` has as many elements as the vector.
                unsafe { $store(lanes.as_mut_ptr(), sum) };
                total += lanes.iter().sum::<f32>();
            }
            total
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use super::{STEPS, SUMS};
    use std::arch::x86_64::*;
    peak!(avx2, "avx,avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_storeu_ps);
    peak!(avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_storeu_ps);

    /// Sums a buffer, a cache line at a time.
    #[target_feature(enable = "avx2")]
    pub fn sum(values: &[u64]) -> u64 {
        values.iter().fold(0, |sum, x| sum.wrapping_add(*x))
    }

    pub fn run_avx2() -> f32 {
        // SAFETY: only called when the instruction set was detected.
        unsafe { avx2(std::hint::black_box(0.5)) }
    }

    pub fn run_avx512() -> f32 {
        // SAFETY: only called when the instruction set was detected.
        unsafe { avx512(std::hint::black_box(0.5)) }
    }
}

#[cfg(target_arch = "aarch64")]
mod vectors {
    use super::{STEPS, SUMS};
    use std::arch::aarch64::*;
    peak!(neon, "neon", float32x4_t, |x| vdupq_n_f32(x), |a, b, c| vfmaq_f32(c, a, b), vst1q_f32);

    pub fn run_neon() -> f32 {
        // SAFETY: AArch64 Linux has NEON.
        unsafe { neon(std::hint::black_box(0.5)) }
    }
}

/// One lane, as the scalar kernels compute.
fn scalar() -> f32 {
    let x = black_box(0.5f32);
    let mut sums: [f32; SUMS] = std::array::from_fn(|i| i as f32);
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum += x * black_box(x);
        }
    }
    sums.iter().sum()
}

/// Floating-point operations per second of one core with an instruction set (a multiply-add is two).
pub fn flops_per_second(isa: Isa) -> f64 {
    let (run, lanes): (fn() -> f32, usize) = match isa {
        Isa::Scalar => (scalar, 1),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::AvxVnni => (vectors::run_avx2, 8),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni => (vectors::run_avx512, 16),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon | Isa::Dotprod | Isa::I8mm => (vectors::run_neon, 4),
        #[cfg(not(target_arch = "aarch64"))]
        Isa::Neon | Isa::Dotprod | Isa::I8mm => return 0.0,
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 | Isa::Avx512Vnni => return 0.0,
    };
    let mut call = || {
        black_box(run());
    };
    (2 * lanes * SUMS * STEPS) as f64 / seconds(&mut call)
}

/// Operations per second on int8 codes of one core with an instruction set (a multiply-add is two); 0 when it has none.
pub fn int8_ops_per_second(isa: Isa) -> f64 {
    let Some(run) = lapidary_kernels::limits::int8_multiply_adds(isa, &crate::here()) else { return 0.0 };
    let mut done = 0;
    // SAFETY: `here` are this machine's features.
    let mut call = || done = unsafe { run(STEPS as u64) };
    let seconds = seconds(&mut call);
    2.0 * done as f64 / seconds
}

/// Bytes per second of one core reading a buffer that no cache keeps.
pub fn memory_bytes_per_second() -> f64 {
    let values = vec![1u64; 64 << 20];
    let mut call = || {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: just detected.
            black_box(unsafe { vectors::sum(&values) });
            return;
        }
        black_box(values.iter().fold(0u64, |sum, x| sum.wrapping_add(*x)));
    };
    size_of_val(values.as_slice()) as f64 / seconds(&mut call)
}
