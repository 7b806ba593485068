//! NEON (Advanced SIMD of ARMv8.0-A, all a Cortex-A72 has): 4 lanes, 32 registers.

use super::{Simd, Token, by_token};
use core::arch::aarch64::*;

/// Proof of NEON.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// 2ⁿ for integral n in −126..=127.
    #[inline(always)]
    fn power_of_two(self, n: float32x4_t) -> float32x4_t {
        // SAFETY: register arithmetic; the token proves NEON.
        unsafe {
            let biased = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        }
    }
}

impl Token for Neon {
    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }
}

impl Simd for Neon {
    type V = float32x4_t;
    const LANES: usize = 4;
    const LANE_FMA: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: the token proves NEON.
        unsafe { vdupq_n_f32(x) }
    }

    by_token! { float32x4_t:
        add(a, b) = vaddq_f32(a, b);
        sub(a, b) = vsubq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        sqrt(a) = vsqrtq_f32(a);
        max(a, b) = vmaxq_f32(a, b);
        min(a, b) = vminq_f32(a, b);
        fma(a, b, c) = vfmaq_f32(c, a, b);
    }

    #[inline(always)]
    fn fma_lane<const L: i32>(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: register arithmetic; the token proves NEON.
        unsafe { vfmaq_laneq_f32::<L>(c, b, a) }
    }

    #[inline(always)]
    fn scale_by_power_of_two(self, x: float32x4_t, n: float32x4_t) -> float32x4_t {
        // SAFETY: register arithmetic; the token proves NEON.
        let half = unsafe { vrndmq_f32(vmulq_n_f32(n, 0.5)) };
        let low = self.power_of_two(half);
        let high = self.power_of_two(self.sub(n, half));
        self.mul(self.mul(x, low), high)
    }

    #[inline(always)]
    fn sum(self, v: float32x4_t) -> f32 {
        // SAFETY: register arithmetic; the token proves NEON.
        unsafe { vaddvq_f32(v) }
    }

    #[inline(always)]
    fn max_lane(self, v: float32x4_t) -> f32 {
        // SAFETY: register arithmetic; the token proves NEON.
        unsafe { vmaxvq_f32(v) }
    }

    #[inline(always)]
    fn sum4(self, v: [float32x4_t; 4]) -> [f32; 4] {
        // SAFETY: register arithmetic; the token proves NEON; the array holds four f32.
        unsafe {
            let all = vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
            let mut sums = [0.0; 4];
            vst1q_f32(sums.as_mut_ptr(), all);
            sums
        }
    }

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch of any address is allowed and changes nothing.
        unsafe {
            core::arch::asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly));
        }
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        // SAFETY: the caller promises 4 readable elements; the token proves NEON.
        unsafe { vld1q_f32(p) }
    }

    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> float32x4_t {
        let mut lanes = [0.0; 4];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            // SAFETY: i < n, and the caller promises n readable elements.
            *lane = unsafe { p.add(i).read() };
        }
        // SAFETY: `lanes` has 4 elements.
        unsafe { self.load(lanes.as_ptr()) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> float32x4_t {
        // SAFETY: the caller promises 4 readable elements. The instruction (`vcvt_f32_f16`, whose intrinsic is not
        // stable) reads and writes registers only.
        unsafe {
            let halves = vld1_u16(p);
            let wide: float32x4_t;
            core::arch::asm!(
                "fcvtl {wide:v}.4s, {halves:v}.4h",
                wide = lateout(vreg) wide,
                halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags),
            );
            wide
        }
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> float32x4_t {
        // SAFETY: the caller promises 4 readable elements; the token proves NEON.
        unsafe {
            let codes = vreinterpret_s8_s32(vdup_n_s32(p.cast::<i32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(codes))))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: float32x4_t) {
        // SAFETY: the caller promises 4 writable elements; the token proves NEON.
        unsafe { vst1q_f32(p, v) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, v: float32x4_t) {
        // SAFETY: the caller promises 4 writable elements. The instruction (`vcvt_f16_f32`, whose intrinsic is not
        // stable) reads and writes registers only; it rounds to nearest even, as Rust code always runs.
        unsafe {
            let halves: uint16x4_t;
            core::arch::asm!(
                "fcvtn {halves:v}.4h, {v:v}.4s",
                halves = lateout(vreg) halves,
                v = in(vreg) v,
                options(pure, nomem, nostack, preserves_flags),
            );
            vst1_u16(p, halves);
        }
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: float32x4_t) {
        // SAFETY: the caller promises 4 writable elements; the token proves NEON.
        unsafe {
            let v = vqmovn_s32(vcvtq_s32_f32(v));
            let v = vqmovn_s16(vcombine_s16(v, v));
            p.cast::<i32>().write_unaligned(vget_lane_s32::<0>(vreinterpret_s32_s8(v)));
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, v: float32x4_t, n: usize) {
        let mut lanes = [0.0; 4];
        // SAFETY: `lanes` has 4 elements.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        for (i, lane) in lanes.iter().enumerate().take(n) {
            // SAFETY: i < n, and the caller promises n writable elements.
            unsafe { p.add(i).write(*lane) };
        }
    }
}
