//! CPU features and instruction sets, as plain data: a compiler on x86-64 asks about a Raspberry Pi's.

/// Features of x86-64 and AArch64 CPUs, named as rustc's `target_feature` names them.
macro_rules! features {
    ($($(#[$doc:meta])* $feature:ident = $name:literal;)*) => {
        /// One CPU feature.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Feature {
            $($(#[$doc])* $feature,)*
        }

        impl Feature {
            /// Every feature known.
            pub const ALL: &[Feature] = &[$(Feature::$feature),*];

            /// Name as in `-C target-feature`: `"avx512f"`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Feature::$feature => $name,)*
                }
            }
        }
    };
}

features! {
    /// x86-64: 256-bit floats.
    Avx = "avx";
    /// x86-64: 256-bit integers.
    Avx2 = "avx2";
    /// x86-64: fused multiply-add.
    Fma = "fma";
    /// x86-64: conversion of binary16.
    F16c = "f16c";
    /// x86-64: AVX-512 foundation.
    Avx512f = "avx512f";
    /// x86-64: AVX-512 bytes and words.
    Avx512bw = "avx512bw";
    /// x86-64: AVX-512 double and quad words.
    Avx512dq = "avx512dq";
    /// x86-64: AVX-512 on 128- and 256-bit vectors.
    Avx512vl = "avx512vl";
    /// x86-64: AVX-512 int8 dot products.
    Avx512vnni = "avx512vnni";
    /// x86-64: AVX-512 bfloat16 dot products.
    Avx512bf16 = "avx512bf16";
    /// x86-64: AVX-512 binary16 arithmetic.
    Avx512fp16 = "avx512fp16";
    /// x86-64: int8 dot products on 256-bit vectors.
    Avxvnni = "avxvnni";
    /// AArch64: Advanced SIMD.
    Neon = "neon";
    /// AArch64: binary16 arithmetic.
    Fp16 = "fp16";
    /// AArch64: int8 dot products.
    Dotprod = "dotprod";
    /// AArch64: int8 matrix products.
    I8mm = "i8mm";
    /// AArch64: bfloat16 dot and matrix products.
    Bf16 = "bf16";
}

impl Feature {
    /// The feature of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|feature| feature.name() == name)
    }
}

/// A set of [`Feature`]s.
///
/// ```
/// use lapidary_kernels::{Feature, FeatureSet};
/// let rpi5 = FeatureSet::of(&[Feature::Neon, Feature::Fp16, Feature::Dotprod]);
/// assert!(rpi5.contains(FeatureSet::of(&[Feature::Neon])));
/// assert_eq!(FeatureSet::from_names(["neon", "fp16", "dotprod"]), Ok(rpi5));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FeatureSet(u64);

impl FeatureSet {
    /// No feature: what every CPU has.
    pub const EMPTY: Self = Self(0);

    /// The set of these features.
    pub const fn of(features: &[Feature]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < features.len() {
            bits |= 1 << features[i] as u8;
            i += 1;
        }
        Self(bits)
    }

    /// The set of the features of these names, or the first name that is not known.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, &'a str> {
        let mut set = Self::EMPTY;
        for name in names {
            set = set.with(Feature::from_name(name).ok_or(name)?);
        }
        Ok(set)
    }

    /// This set and one feature more.
    pub const fn with(self, feature: Feature) -> Self {
        Self(self.0 | 1 << feature as u8)
    }

    /// The features of both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The features of this set that `other` lacks.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the set has no feature.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The features, in the order of [`Feature::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |&feature| self.contains(Self::of(&[feature])))
    }

    /// What the CPU and the operating system under this code offer.
    ///
    /// On x86-64 from `cpuid` and `xgetbv`. On other architectures only what the target of the build implies (NEON on
    /// AArch64): a program on Linux adds [`FeatureSet::from_hwcap`].
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        return x86::detect();
        #[cfg(target_arch = "aarch64")]
        return Self::of(&[Feature::Neon]);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        return Self::EMPTY;
    }

    /// The AArch64 features that Linux reports in the auxiliary vector (`AT_HWCAP`, `AT_HWCAP2`).
    ///
    /// Bits from the kernel's `arch/arm64/include/uapi/asm/hwcap.h`.
    pub const fn from_hwcap(hwcap: u64, hwcap2: u64) -> Self {
        /// Feature, word, bits that must all be set.
        const BITS: [(Feature, usize, u64); 5] = [
            (Feature::Neon, 0, 1 << 1),
            (Feature::Fp16, 0, 1 << 9 | 1 << 10),
            (Feature::Dotprod, 0, 1 << 20),
            (Feature::I8mm, 1, 1 << 13),
            (Feature::Bf16, 1, 1 << 14),
        ];
        let words = [hwcap, hwcap2];
        let mut set = Self::EMPTY;
        let mut i = 0;
        while i < BITS.len() {
            let (feature, word, bits) = BITS[i];
            if words[word] & bits == bits {
                set = set.with(feature);
            }
            i += 1;
        }
        set
    }
}

/// Instruction sets that kernels are written for, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// The baseline of any architecture.
    Scalar,
    /// AArch64 Advanced SIMD.
    Neon,
    /// … with int8 dot products (ARMv8.2, Cortex-A76).
    Dotprod,
    /// … and int8 matrix products (ARMv8.6).
    I8mm,
    /// x86-64 AVX2 with FMA and F16C (x86-64-v3).
    Avx2,
    /// … with int8 dot products.
    AvxVnni,
    /// x86-64 AVX-512 F, BW, DQ, VL (x86-64-v4).
    Avx512,
    /// … with int8 dot products.
    Avx512Vnni,
}

impl Isa {
    /// Every instruction set.
    pub const ALL: &[Isa] =
        &[Isa::Scalar, Isa::Neon, Isa::Dotprod, Isa::I8mm, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Avx512Vnni];

    /// Last part of a kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Dotprod => "dotprod",
            Isa::I8mm => "i8mm",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
        }
    }

    /// What a CPU needs to run its kernels.
    pub const fn required(self) -> FeatureSet {
        const AVX2: FeatureSet = FeatureSet::of(&[Feature::Avx, Feature::Avx2, Feature::Fma, Feature::F16c]);
        const AVX512: FeatureSet =
            AVX2.union(FeatureSet::of(&[Feature::Avx512f, Feature::Avx512bw, Feature::Avx512dq, Feature::Avx512vl]));
        match self {
            Isa::Scalar => FeatureSet::EMPTY,
            Isa::Neon => FeatureSet::of(&[Feature::Neon]),
            Isa::Dotprod => FeatureSet::of(&[Feature::Neon, Feature::Dotprod]),
            Isa::I8mm => FeatureSet::of(&[Feature::Neon, Feature::Dotprod, Feature::I8mm]),
            Isa::Avx2 => AVX2,
            Isa::AvxVnni => AVX2.with(Feature::Avxvnni),
            Isa::Avx512 => AVX512,
            Isa::Avx512Vnni => AVX512.with(Feature::Avx512vnni),
        }
    }

    /// What is added to int8 codes when weights are packed for this instruction set: 128 where one factor of its
    /// products is unsigned (`vpdpbusd`), else 0.
    pub const fn code_offset(self) -> u8 {
        match self {
            Isa::AvxVnni | Isa::Avx512Vnni => 128,
            Isa::Scalar | Isa::Neon | Isa::Dotprod | Isa::I8mm | Isa::Avx2 | Isa::Avx512 => 0,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Feature, FeatureSet};
    use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// XCR0: the operating system saves XMM and YMM.
    const YMM_STATE: u64 = 0b110;
    /// XCR0: … and the mask registers and all of ZMM.
    const ZMM_STATE: u64 = YMM_STATE | 0b1110_0000;

    #[derive(Clone, Copy)]
    enum Word {
        Leaf1Ecx,
        Leaf7Ebx,
        Leaf7Ecx,
        Leaf7Edx,
        Leaf7Sub1Eax,
    }

    /// Where `cpuid` reports a feature, and which registers it needs saved.
    const BITS: [(Feature, Word, u32, u64); 12] = [
        (Feature::Avx, Word::Leaf1Ecx, 28, YMM_STATE),
        (Feature::Fma, Word::Leaf1Ecx, 12, YMM_STATE),
        (Feature::F16c, Word::Leaf1Ecx, 29, YMM_STATE),
        (Feature::Avx2, Word::Leaf7Ebx, 5, YMM_STATE),
        (Feature::Avx512f, Word::Leaf7Ebx, 16, ZMM_STATE),
        (Feature::Avx512dq, Word::Leaf7Ebx, 17, ZMM_STATE),
        (Feature::Avx512bw, Word::Leaf7Ebx, 30, ZMM_STATE),
        (Feature::Avx512vl, Word::Leaf7Ebx, 31, ZMM_STATE),
        (Feature::Avx512vnni, Word::Leaf7Ecx, 11, ZMM_STATE),
        (Feature::Avx512fp16, Word::Leaf7Edx, 23, ZMM_STATE),
        (Feature::Avxvnni, Word::Leaf7Sub1Eax, 4, YMM_STATE),
        (Feature::Avx512bf16, Word::Leaf7Sub1Eax, 5, ZMM_STATE),
    ];

    #[target_feature(enable = "xsave")]
    fn saved_state() -> u64 {
        // SAFETY: the feature is enabled for this function.
        unsafe { _xgetbv(0) }
    }

    pub(super) fn detect() -> FeatureSet {
        const OSXSAVE: u32 = 1 << 27;
        let max_leaf = __cpuid(0).eax;
        let leaf1 = __cpuid(1);
        if leaf1.ecx & OSXSAVE == 0 || max_leaf < 7 {
            return FeatureSet::EMPTY;
        }
        // SAFETY: OSXSAVE says that xgetbv exists and is enabled.
        let saved = unsafe { saved_state() };
        let leaf7 = __cpuid_count(7, 0);
        let leaf7_sub1_eax = if leaf7.eax >= 1 { __cpuid_count(7, 1).eax } else { 0 };
        let mut set = FeatureSet::EMPTY;
        for (feature, word, bit, state) in BITS {
            let word = match word {
                Word::Leaf1Ecx => leaf1.ecx,
                Word::Leaf7Ebx => leaf7.ebx,
                Word::Leaf7Ecx => leaf7.ecx,
                Word::Leaf7Edx => leaf7.edx,
                Word::Leaf7Sub1Eax => leaf7_sub1_eax,
            };
            if word >> bit & 1 == 1 && saved & state == state {
                set = set.with(feature);
            }
        }
        set
    }
}
