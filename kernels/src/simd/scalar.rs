//! One lane: what every machine has. Doubles as the plainest reading of each kernel.

// Loops over lanes index several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::{F16, Simd, Token, Weights};
use crate::quant::lanes::{Lanes, dots_by_lanes};

/// No instruction set beyond the baseline.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// 2ⁿ for integral n in −126..=127.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    f32::from_bits((((n as i32) + 127) as u32) << 23)
}

impl Token for Scalar {
    #[inline(always)]
    unsafe fn assume() -> Self {
        Self
    }
}

impl Simd for Scalar {
    type V = f32;
    const LANES: usize = 1;
    const LANE_FMA: bool = false;

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
    fn fused(self, a: f32, b: f32, c: f32) -> f32 {
        libm::fmaf(a, b, c)
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
    unsafe fn load_i8(self, p: *const i8) -> f32 {
        // SAFETY: the caller promises one readable element.
        f32::from(unsafe { p.read() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: f32) {
        // SAFETY: the caller promises one writable element.
        unsafe { p.write(v) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: f32) {
        // SAFETY: the caller promises one writable element.
        unsafe { p.write(half::f16::from_f32_const(v).to_bits()) }
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: f32) {
        // SAFETY: the caller promises one writable element.
        unsafe { p.write(v as i8) }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: f32, n: usize) {
        if n > 0 {
            // SAFETY: n = 1, and the caller promises n writable elements.
            unsafe { p.write(v) }
        }
    }
}

dots_by_lanes!(Scalar: Self, int4 vectors 1);

impl Lanes for Scalar {
    type I = i32;
    type W = [u8; 4];
    type N = i32;

    #[inline(always)]
    fn zero(self) -> i32 {
        0
    }

    #[inline(always)]
    fn add(self, a: i32, b: i32) -> i32 {
        a.wrapping_add(b)
    }

    #[inline(always)]
    fn to_float(self, sums: i32) -> f32 {
        sums as f32
    }

    #[inline(always)]
    unsafe fn start(self, _offset: *const i32) -> i32 {
        0
    }

    #[inline(always)]
    unsafe fn weights(self, p: *const u8) -> [u8; 4] {
        // SAFETY: the caller promises 4 readable bytes.
        unsafe { p.cast::<[u8; 4]>().read() }
    }

    #[inline(always)]
    unsafe fn inputs(self, p: *const u8) -> [u8; 4] {
        // SAFETY: the caller promises 4 readable bytes.
        unsafe { p.cast::<[u8; 4]>().read() }
    }

    #[inline(always)]
    fn dot(self, sums: i32, w: [u8; 4], x: [u8; 4]) -> i32 {
        let mut sums = sums;
        for i in 0..4 {
            sums = sums.wrapping_add(i32::from(w[i] as i8) * i32::from(x[i] as i8));
        }
        sums
    }

    #[inline(always)]
    fn unknown(self, x: [u8; 4]) -> [u8; 4] {
        core::hint::black_box(x)
    }

    #[inline(always)]
    fn halves(self, w: [u8; 4]) -> ([u8; 4], [u8; 4]) {
        let word = u32::from_ne_bytes(w);
        ((word & 0x0f0f_0f0f).to_ne_bytes(), (word >> 4 & 0x0f0f_0f0f).to_ne_bytes())
    }

    #[inline(always)]
    unsafe fn begin(self, before: Option<i32>, offset: *const i32) -> i32 {
        // SAFETY: the caller promises a readable element.
        let offset = unsafe { offset.read() };
        before.map_or(offset, |before| before.wrapping_add(offset))
    }

    #[inline(always)]
    fn dot_half(self, sums: i32, w: [u8; 4], x: [u8; 4]) -> i32 {
        self.dot(sums, w, x)
    }

    #[inline(always)]
    unsafe fn end(self, _before: Option<i32>, _offset: *const i32, sums: i32) -> i32 {
        sums
    }
}
