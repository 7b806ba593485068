//! One lane: what every machine has. Doubles as the plainest reading of each kernel.

use super::{F16, Simd, Weights};

/// No instruction set beyond the baseline.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// 2ⁿ for integral n in −126..=127.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    f32::from_bits((((n as i32) + 127) as u32) << 23)
}

impl Simd for Scalar {
    type V = f32;
    const LANES: usize = 1;
    const LANE_FMA: bool = false;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self
    }

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }

    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }

    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }

    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }

    #[inline(always)]
    fn sqrt(self, a: f32) -> f32 {
        libm::sqrtf(a)
    }

    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }

    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }

    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn fma_lane<const L: i32>(self, a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, x: f32, n: f32) -> f32 {
        let half = (n as i32 >> 1) as f32;
        x * power_of_two(half) * power_of_two(n - half)
    }

    #[inline(always)]
    fn sum(self, v: f32) -> f32 {
        v
    }

    #[inline(always)]
    fn max_lane(self, v: f32) -> f32 {
        v
    }

    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> f32 {
        // SAFETY: the caller promises one readable element.
        unsafe { p.read() }
    }

    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> f32 {
        if n == 0 {
            return 0.0;
        }
        // SAFETY: n = 1, and the caller promises n readable elements.
        unsafe { p.read() }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> f32 {
        // SAFETY: the caller promises one readable element.
        F16::widen(unsafe { p.read() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32) {
        // SAFETY: the caller promises one writable element.
        unsafe { p.write(v) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: f32, n: usize) {
        if n > 0 {
            // SAFETY: n = 1, and the caller promises n writable elements.
            unsafe { p.write(v) }
        }
    }
}
