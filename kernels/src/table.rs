//! The kernel table: one row per kernel. Names, dispatch, tests and benches come from the row.
//!
//! A row is `Isa (mr, nr, kr) name = generic kernel;` (kr may be left out: 1) under its operation and weight type. The macro compiles the generic
//! kernel for the instruction set under the row's name, so a profile shows it, and puts its pointer into the row when
//! the build's architecture has it.

use crate::args::KernelFn;
use crate::features::{FeatureSet, Isa};
use crate::quant::{self, I4, I8, QuantLayout};
use crate::simd::{Codes, F16, F32};
use crate::{attend, embed, gemm, route, rows, select as policy};

/// The operations, each with the name that begins its kernels' names.
macro_rules! kernel_ops {
    ($($(#[$doc:meta])* $op:ident = $name:literal;)*) => {
        /// What a kernel computes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum KernelOp {
            $($(#[$doc])* $op,)*
        }

        impl KernelOp {
            /// Every operation.
            pub const ALL: &[KernelOp] = &[$(KernelOp::$op),*];

            /// Beginning of the names of its kernels: `"gemm_swiglu"`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(KernelOp::$op => $name,)*
                }
            }
        }
    };
}

kernel_ops! {
    /// Matrix product with packed weights, [`crate::args::GemmArgs`]; with int8 or int4 weights
    /// [`crate::args::QGemmArgs`].
    Gemm = "gemm";
    /// [`KernelOp::Gemm`] made for one row.
    Gemv = "gemv";
    /// `silu(A·W_gateᵀ) ⊙ (A·W_upᵀ)`, the blocks of [`KernelOp::Gemm`].
    GemmSwiglu = "gemm_swiglu";
    /// [`KernelOp::GemmSwiglu`] made for one row.
    GemvSwiglu = "gemv_swiglu";
    /// [`crate::args::QuantizeRowsArgs`].
    QuantizeRows = "quantize_rows";
    /// [`crate::args::RmsNormArgs`].
    RmsNorm = "rms_norm";
    /// [`crate::args::UnaryArgs`].
    Softmax = "softmax";
    /// [`crate::args::UnaryArgs`].
    Silu = "silu";
    /// [`crate::args::UnaryArgs`].
    Gelu = "gelu";
    /// [`crate::args::UnaryArgs`].
    L2Normalize = "l2_normalize";
    /// [`crate::args::SiluMulArgs`].
    SiluMul = "silu_mul";
    /// [`crate::args::RopeArgs`].
    Rope = "rope";
    /// [`crate::args::CopyRowsArgs`].
    CopyRows = "copy_rows";
    /// [`crate::args::AttendArgs`].
    AttendRange = "attend_range";
    /// [`crate::args::AttendArgs`].
    AttendClustered = "attend_clustered";
    /// [`crate::args::ClusterAppendArgs`].
    ClusterAppend = "cluster_append";
    /// [`crate::args::RouteScoresArgs`].
    RouteScores = "route_scores";
    /// [`crate::args::RouteClusterArgs`].
    RouteCluster = "route_cluster";
    /// [`crate::args::RouteSelectArgs`].
    SelectTopK = "select_top_k";
    /// [`crate::args::RouteSelectArgs`].
    SelectTopP = "select_top_p";
    /// [`crate::args::RouteSelectArgs`].
    SelectThreshold = "select_threshold";
    /// [`crate::args::RouteSelectArgs`].
    SelectExpertChoice = "select_expert_choice";
    /// [`crate::args::RouteSelectArgs`].
    SelectBidirectional = "select_bidirectional";
    /// [`crate::args::RouteGroupArgs`].
    RouteGroup = "route_group";
    /// [`crate::args::RouteMemoryArgs`].
    RouteMemory = "route_memory";
    /// [`crate::args::IndexedRowsArgs`].
    GatherRows = "gather_rows";
    /// [`crate::args::IndexedRowsArgs`].
    ScatterAdd = "scatter_add";
    /// [`crate::args::EmbedArgs`]; of int8 and int4 tables [`crate::args::QEmbedArgs`].
    EmbedRows = "embed_rows";
    /// The blocks of [`KernelOp::EmbedRows`].
    EmbedPanels = "embed_panels";
    /// [`crate::args::MeanRowsArgs`].
    MeanRows = "mean_rows";
}

/// How the weights, the table or the KV cache of a kernel are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WeightType {
    /// The kernel has none, or a cache of plain f32.
    None,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// 8-bit codes with one f32 scale per output.
    I8,
    /// 4-bit codes with one binary16 scale per output and group of inputs.
    I4,
}

impl WeightType {
    /// Bytes of one float weight; 0 for quantized ones, whose bytes [`crate::QuantLayout`] knows.
    pub const fn bytes(self) -> usize {
        match self {
            WeightType::None | WeightType::I8 | WeightType::I4 => 0,
            WeightType::F32 => 4,
            WeightType::F16 => 2,
        }
    }

    /// Its part of a kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            WeightType::None => "",
            WeightType::F32 => "f32",
            WeightType::F16 => "f16",
            WeightType::I8 => "i8",
            WeightType::I4 => "i4",
        }
    }
}

/// Tile of a matrix kernel or quantized table, all 0 for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Most rows that are computed together.
    pub mr: usize,
    /// Outputs of a panel of packed weights.
    pub nr: usize,
    /// Consecutive inputs of one output that lie together in a panel.
    pub kr: usize,
}

/// One kernel. The function is had through [`resolve`] or [`resolve_for`].
#[derive(Clone, Copy, Debug)]
pub struct KernelRow {
    /// Its specification: `gemm_f32_f16_12x32_avx512`.
    pub name: &'static str,
    /// What it computes.
    pub op: KernelOp,
    /// What it is written for.
    pub isa: Isa,
    /// How its weights are stored.
    pub weight: WeightType,
    /// Its tile.
    pub tile: Tile,
    /// What it computes, as a formula.
    pub doc: &'static str,
    function: Option<KernelFn>,
}

impl KernelRow {
    /// What a CPU needs to run it.
    pub const fn required(&self) -> FeatureSet {
        self.isa.required()
    }

    /// How the weights of a kernel of int8 or int4 weights are laid out, `group` inputs sharing a scale (int8: 0); none for
    /// kernels that have no layout of their own.
    pub fn quant_layout(&self, group: usize) -> Option<QuantLayout> {
        QuantLayout::new(self.weight, group, self.tile.nr, self.tile.kr, self.isa.code_offset())
    }

    /// The function, on the architecture it is written for.
    pub const fn function(&self) -> Option<KernelFn> {
        self.function
    }
}

/// Compiles a generic kernel for an instruction set.
macro_rules! compile {
    (Scalar $name:ident $kernel:expr) => {
        unsafe extern "C" fn $name(args: *const core::ffi::c_void) {
            // SAFETY: every machine has the baseline; `args` is valid by the caller's promise.
            unsafe { $kernel(<crate::simd::Scalar as crate::simd::Token>::assume(), &*args.cast()) }
        }
    };
    (Fallback $name:ident $kernel:expr) => {
        #[cfg(feature = "fallbacks")]
        compile!(Scalar $name $kernel);
    };
    (Neon $name:ident $kernel:expr) => {
        compile!(@simd "aarch64", Neon, "neon", $name, $kernel);
    };
    (Dotprod $name:ident $kernel:expr) => {
        compile!(@simd "aarch64", Dotprod, "neon,dotprod", $name, $kernel);
    };
    (I8mm $name:ident $kernel:expr) => {
        #[cfg(feature = "newest-cpus")]
        compile!(@simd "aarch64", I8mm, "neon,dotprod,i8mm", $name, $kernel);
    };
    (Avx2 $name:ident $kernel:expr) => {
        compile!(@simd "x86_64", Avx2, "avx,avx2,fma,f16c", $name, $kernel);
    };
    (Avx512 $name:ident $kernel:expr) => {
        #[cfg(feature = "newest-cpus")]
        compile!(
            @simd "x86_64", Avx512, "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl", $name, $kernel
        );
    };
    (AvxVnni $name:ident $kernel:expr) => {
        #[cfg(feature = "newest-cpus")]
        compile!(@simd "x86_64", AvxVnni, "avx,avx2,fma,f16c,avxvnni", $name, $kernel);
    };
    (Avx512Vnni $name:ident $kernel:expr) => {
        #[cfg(feature = "newest-cpus")]
        compile!(
            @simd "x86_64", Avx512Vnni, "avx,avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", $name, $kernel
        );
    };
    (@simd $arch:literal, $isa:ident, $features:literal, $name:ident, $kernel:expr) => {
        #[cfg(target_arch = $arch)]
        #[target_feature(enable = $features)]
        unsafe extern "C" fn $name(args: *const core::ffi::c_void) {
            // SAFETY: the caller promises a CPU with the features that this function is compiled with, and valid
            // `args`.
            unsafe { $kernel(<crate::simd::$isa as crate::simd::Token>::assume(), &*args.cast()) }
        }
    };
}

/// The pointer of a compiled kernel, if this build has it.
macro_rules! pointer {
    (Fallback $name:ident) => {{
        #[cfg(feature = "fallbacks")]
        let pointer = Some($name as KernelFn);
        #[cfg(not(feature = "fallbacks"))]
        let pointer = None;
        pointer
    }};
    (Avx2 $name:ident) => {
        pointer!(@simd "x86_64", $name)
    };
    (Scalar $name:ident) => {
        Some($name as KernelFn)
    };
    (Neon $name:ident) => {
        pointer!(@simd "aarch64", $name)
    };
    (Dotprod $name:ident) => {
        pointer!(@simd "aarch64", $name)
    };
    (I8mm $name:ident) => {{
        #[cfg(all(target_arch = "aarch64", feature = "newest-cpus"))]
        let pointer = Some($name as KernelFn);
        #[cfg(not(all(target_arch = "aarch64", feature = "newest-cpus")))]
        let pointer = None;
        pointer
    }};
    ($newest:ident $name:ident) => {{
        #[cfg(all(target_arch = "x86_64", feature = "newest-cpus"))]
        let pointer = Some($name as KernelFn);
        #[cfg(not(all(target_arch = "x86_64", feature = "newest-cpus")))]
        let pointer = None;
        pointer
    }};
    (@simd $arch:literal, $name:ident) => {{
        #[cfg(target_arch = $arch)]
        let pointer = Some($name as KernelFn);
        #[cfg(not(target_arch = $arch))]
        let pointer = None;
        pointer
    }};
}

/// The instruction set of a row. A fallback is a scalar kernel of an operation that vector kernels have too.
macro_rules! isa {
    (Fallback) => {
        Isa::Scalar
    };
    ($isa:ident) => {
        Isa::$isa
    };
}

/// Inputs that lie together: 1 in a matrix kernel's panels unless the row says otherwise.
macro_rules! kr {
    (0) => {
        0
    };
    ($mr:literal) => {
        1
    };
    ($mr:literal $kr:literal) => {
        $kr
    };
}

macro_rules! kernel_table {
    ($(
        $op:ident $weight:ident $doc:literal {
            $($isa:ident ($mr:literal, $nr:literal $(, $kr:literal)?) $name:ident = $kernel:expr;)*
        }
    )*) => {
        $($(compile!($isa $name $kernel);)*)*

        static KERNELS: &[KernelRow] = &[$($(KernelRow {
            name: stringify!($name),
            op: KernelOp::$op,
            isa: isa!($isa),
            weight: WeightType::$weight,
            tile: Tile { mr: $mr, nr: $nr, kr: kr!($mr $($kr)?) },
            doc: $doc,
            function: pointer!($isa $name),
        },)*)*];
    };
}

kernel_table! {
    Gemm F32 "c (+)= scale · a·wᵀ" {
        Avx512 (12, 32) gemm_f32_f32_12x32_avx512 = gemm::gemm::<_, F32, 12, 2>;
        Avx2 (6, 16) gemm_f32_f32_6x16_avx2 = gemm::gemm::<_, F32, 6, 2>;
        Neon (8, 8) gemm_f32_f32_8x8_neon = gemm::gemm::<_, F32, 8, 2>;
        Fallback (4, 8) gemm_f32_f32_4x8_scalar = gemm::gemm::<_, F32, 4, 8>;
    }
    Gemm F16 "c (+)= scale · a·wᵀ" {
        Avx512 (12, 32) gemm_f32_f16_12x32_avx512 = gemm::gemm::<_, F16, 12, 2>;
        Avx2 (6, 16) gemm_f32_f16_6x16_avx2 = gemm::gemm::<_, F16, 6, 2>;
        Neon (8, 8) gemm_f32_f16_8x8_neon = gemm::gemm::<_, F16, 8, 2>;
        Fallback (4, 8) gemm_f32_f16_4x8_scalar = gemm::gemm::<_, F16, 4, 8>;
    }
    Gemv F32 "c (+)= scale · a·wᵀ, row by row" {
        Avx512 (1, 32) gemv_f32_f32_1x32_avx512 = gemm::gemv::<_, F32, 2>;
        Avx2 (1, 16) gemv_f32_f32_1x16_avx2 = gemm::gemv::<_, F32, 2>;
        Neon (1, 8) gemv_f32_f32_1x8_neon = gemm::gemv::<_, F32, 2>;
        Fallback (1, 8) gemv_f32_f32_1x8_scalar = gemm::gemv::<_, F32, 8>;
    }
    Gemv F16 "c (+)= scale · a·wᵀ, row by row" {
        Avx512 (1, 32) gemv_f32_f16_1x32_avx512 = gemm::gemv::<_, F16, 2>;
        Avx2 (1, 16) gemv_f32_f16_1x16_avx2 = gemm::gemv::<_, F16, 2>;
        Neon (1, 8) gemv_f32_f16_1x8_neon = gemm::gemv::<_, F16, 2>;
        Fallback (1, 8) gemv_f32_f16_1x8_scalar = gemm::gemv::<_, F16, 8>;
    }
    GemmSwiglu F32 "c (+)= scale · silu(a·w_gateᵀ) ⊙ (a·w_upᵀ)" {
        Avx512 (12, 32) gemm_swiglu_f32_f32_12x32_avx512 = gemm::gemm_swiglu::<_, F32, 12, 2>;
        Avx2 (6, 16) gemm_swiglu_f32_f32_6x16_avx2 = gemm::gemm_swiglu::<_, F32, 6, 2>;
        Neon (8, 8) gemm_swiglu_f32_f32_8x8_neon = gemm::gemm_swiglu::<_, F32, 8, 2>;
        Fallback (4, 8) gemm_swiglu_f32_f32_4x8_scalar = gemm::gemm_swiglu::<_, F32, 4, 8>;
    }
    GemmSwiglu F16 "c (+)= scale · silu(a·w_gateᵀ) ⊙ (a·w_upᵀ)" {
        Avx512 (12, 32) gemm_swiglu_f32_f16_12x32_avx512 = gemm::gemm_swiglu::<_, F16, 12, 2>;
        Avx2 (6, 16) gemm_swiglu_f32_f16_6x16_avx2 = gemm::gemm_swiglu::<_, F16, 6, 2>;
        Neon (8, 8) gemm_swiglu_f32_f16_8x8_neon = gemm::gemm_swiglu::<_, F16, 8, 2>;
        Fallback (4, 8) gemm_swiglu_f32_f16_4x8_scalar = gemm::gemm_swiglu::<_, F16, 4, 8>;
    }
    GemvSwiglu F32 "c (+)= scale · silu(a·w_gateᵀ) ⊙ (a·w_upᵀ), row by row" {
        Avx512 (1, 32) gemv_swiglu_f32_f32_1x32_avx512 = gemm::gemv_swiglu::<_, F32, 2>;
        Avx2 (1, 16) gemv_swiglu_f32_f32_1x16_avx2 = gemm::gemv_swiglu::<_, F32, 2>;
        Neon (1, 8) gemv_swiglu_f32_f32_1x8_neon = gemm::gemv_swiglu::<_, F32, 2>;
        Fallback (1, 8) gemv_swiglu_f32_f32_1x8_scalar = gemm::gemv_swiglu::<_, F32, 8>;
    }
    GemvSwiglu F16 "c (+)= scale · silu(a·w_gateᵀ) ⊙ (a·w_upᵀ), row by row" {
        Avx512 (1, 32) gemv_swiglu_f32_f16_1x32_avx512 = gemm::gemv_swiglu::<_, F16, 2>;
        Avx2 (1, 16) gemv_swiglu_f32_f16_1x16_avx2 = gemm::gemv_swiglu::<_, F16, 2>;
        Neon (1, 8) gemv_swiglu_f32_f16_1x8_neon = gemm::gemv_swiglu::<_, F16, 2>;
        Fallback (1, 8) gemv_swiglu_f32_f16_1x8_scalar = gemm::gemv_swiglu::<_, F16, 8>;
    }
    Gemm I8 "c (+)= scale · a·wᵀ, a and w quantized" {
        Avx512Vnni (12, 32, 4) gemm_i8_i8_12x32_avx512vnni = quant::gemm::<_, I8, 12, 2>;
        AvxVnni (6, 16, 4) gemm_i8_i8_6x16_avxvnni = quant::gemm::<_, I8, 6, 2>;
        Avx2 (5, 16, 4) gemm_i8_i8_5x16_avx2 = quant::gemm::<_, I8, 5, 2>;
        I8mm (8, 8, 8) gemm_i8_i8_8x8_i8mm = quant::gemm::<_, I8, 8, 2>;
        Dotprod (8, 8, 4) gemm_i8_i8_8x8_dotprod = quant::gemm::<_, I8, 8, 2>;
        Neon (4, 8, 16) gemm_i8_i8_4x8_neon = quant::gemm::<_, I8, 4, 2>;
        Fallback (4, 8, 4) gemm_i8_i8_4x8_scalar = quant::gemm::<_, I8, 4, 8>;
    }
    Gemm I4 "c (+)= scale · a·wᵀ, a and w quantized" {
        Avx512Vnni (6, 32, 4) gemm_i8_i4_6x32_avx512vnni = quant::gemm::<_, I4, 6, 2>;
        AvxVnni (5, 16, 4) gemm_i8_i4_5x16_avxvnni = quant::gemm::<_, I4, 5, 2>;
        Avx2 (4, 16, 4) gemm_i8_i4_4x16_avx2 = quant::gemm::<_, I4, 4, 2>;
        I8mm (8, 8, 8) gemm_i8_i4_8x8_i8mm = quant::gemm::<_, I4, 8, 2>;
        Dotprod (8, 8, 4) gemm_i8_i4_8x8_dotprod = quant::gemm::<_, I4, 8, 2>;
        Neon (4, 8, 16) gemm_i8_i4_4x8_neon = quant::gemm::<_, I4, 4, 2>;
        Fallback (4, 8, 4) gemm_i8_i4_4x8_scalar = quant::gemm::<_, I4, 4, 8>;
    }
    Gemv I8 "c (+)= scale · a·wᵀ, a and w quantized, row by row" {
        Avx512Vnni (1, 32, 4) gemv_i8_i8_1x32_avx512vnni = quant::gemv::<_, I8, 2>;
        AvxVnni (1, 16, 4) gemv_i8_i8_1x16_avxvnni = quant::gemv::<_, I8, 2>;
        Avx2 (1, 16, 4) gemv_i8_i8_1x16_avx2 = quant::gemv::<_, I8, 2>;
        I8mm (1, 8, 8) gemv_i8_i8_1x8_i8mm = quant::gemv::<_, I8, 2>;
        Dotprod (1, 8, 4) gemv_i8_i8_1x8_dotprod = quant::gemv::<_, I8, 2>;
        Neon (1, 8, 16) gemv_i8_i8_1x8_neon = quant::gemv::<_, I8, 2>;
        Fallback (1, 8, 4) gemv_i8_i8_1x8_scalar = quant::gemv::<_, I8, 8>;
    }
    Gemv I4 "c (+)= scale · a·wᵀ, a and w quantized, row by row" {
        Avx512Vnni (1, 32, 4) gemv_i8_i4_1x32_avx512vnni = quant::gemv::<_, I4, 2>;
        AvxVnni (1, 16, 4) gemv_i8_i4_1x16_avxvnni = quant::gemv::<_, I4, 2>;
        Avx2 (1, 16, 4) gemv_i8_i4_1x16_avx2 = quant::gemv::<_, I4, 2>;
        I8mm (1, 8, 8) gemv_i8_i4_1x8_i8mm = quant::gemv::<_, I4, 2>;
        Dotprod (1, 8, 4) gemv_i8_i4_1x8_dotprod = quant::gemv::<_, I4, 2>;
        Neon (1, 8, 16) gemv_i8_i4_1x8_neon = quant::gemv::<_, I4, 2>;
        Fallback (1, 8, 4) gemv_i8_i4_1x8_scalar = quant::gemv::<_, I4, 8>;
    }
    GemmSwiglu I8 "c (+)= scale · silu(a·w_gateᵀ) ⊙ (a·w_upᵀ), a and w quantized" {
        Avx512Vnni (12, 32, 4) gemm_swiglu_i8_i8_12x32_avx512vnni = quant::gemm_swiglu::<_, I8, 12, 2>;
        AvxVnni (6, 16, 4) gemm_swiglu_i8_i8_6x16_avxvnni = quant::gemm_swiglu::<_, I8, 6, 2>;
        Avx2 (5, 16, 4) gemm_swiglu_i8_i8_5x16_avx2 = quant::gemm_swiglu::<_, I8, 5, 2>;
        I8mm (8, 8, 8) gemm_swiglu_i8_i8_8x8_i8mm = quant::gemm_swiglu::<_, I8, 8, 2>;
        Dotprod (8, 8, 4) gemm_swiglu_i8_i8_8x8_dotprod = quant::gemm_swiglu::<_, I8, 8, 2>;
        Neon (4, 8, 16) gemm_swiglu_i8_i8_4x8_neon = quant::gemm_swiglu::<_, I8, 4, 2>;
        Fallback (4, 8, 4) gemm_swiglu_i8_i8_4x8_scalar = quant::gemm_swiglu::<_, I8, 4, 8>;
    }
    GemmSwiglu I4 "c (+)= scale · silu(a·w_gateᵀ) ⊙ (a·w_upᵀ), a and w quantized" {
        Avx512Vnni (6, 32, 4) gemm_swiglu_i8_i4_6x32_avx512vnni = quant::gemm_swiglu::<_, I4, 6, 2>;
        AvxVnni (5, 16, 4) gemm_swiglu_i8_i4_5x16_avxvnni = quant::gemm_swiglu::<_, I4, 5, 2>;
        Avx2 (4, 16, 4) gemm_swiglu_i8_i4_4x16_avx2 = quant::gemm_swiglu::<_, I4, 4, 2>;
        I8mm (8, 8, 8) gemm_swiglu_i8_i4_8x8_i8mm = quant::gemm_swiglu::<_, I4, 8, 2>;
        Dotprod (8, 8, 4) gemm_swiglu_i8_i4_8x8_dotprod = quant::gemm_swiglu::<_, I4, 8, 2>;
        Neon (4, 8, 16) gemm_swiglu_i8_i4_4x8_neon = quant::gemm_swiglu::<_, I4, 4, 2>;
        Fallback (4, 8, 4) gemm_swiglu_i8_i4_4x8_scalar = quant::gemm_swiglu::<_, I4, 4, 8>;
    }
    GemvSwiglu I8 "c (+)= scale · silu(a·w_gateᵀ) ⊙ (a·w_upᵀ), a and w quantized, row by row" {
        Avx512Vnni (1, 32, 4) gemv_swiglu_i8_i8_1x32_avx512vnni = quant::gemv_swiglu::<_, I8, 2>;
        AvxVnni (1, 16, 4) gemv_swiglu_i8_i8_1x16_avxvnni = quant::gemv_swiglu::<_, I8, 2>;
        Avx2 (1, 16, 4) gemv_swiglu_i8_i8_1x16_avx2 = quant::gemv_swiglu::<_, I8, 2>;
        I8mm (1, 8, 8) gemv_swiglu_i8_i8_1x8_i8mm = quant::gemv_swiglu::<_, I8, 2>;
        Dotprod (1, 8, 4) gemv_swiglu_i8_i8_1x8_dotprod = quant::gemv_swiglu::<_, I8, 2>;
        Neon (1, 8, 16) gemv_swiglu_i8_i8_1x8_neon = quant::gemv_swiglu::<_, I8, 2>;
        Fallback (1, 8, 4) gemv_swiglu_i8_i8_1x8_scalar = quant::gemv_swiglu::<_, I8, 8>;
    }
    GemvSwiglu I4 "c (+)= scale · silu(a·w_gateᵀ) ⊙ (a·w_upᵀ), a and w quantized, row by row" {
        Avx512Vnni (1, 32, 4) gemv_swiglu_i8_i4_1x32_avx512vnni = quant::gemv_swiglu::<_, I4, 2>;
        AvxVnni (1, 16, 4) gemv_swiglu_i8_i4_1x16_avxvnni = quant::gemv_swiglu::<_, I4, 2>;
        Avx2 (1, 16, 4) gemv_swiglu_i8_i4_1x16_avx2 = quant::gemv_swiglu::<_, I4, 2>;
        I8mm (1, 8, 8) gemv_swiglu_i8_i4_1x8_i8mm = quant::gemv_swiglu::<_, I4, 2>;
        Dotprod (1, 8, 4) gemv_swiglu_i8_i4_1x8_dotprod = quant::gemv_swiglu::<_, I4, 2>;
        Neon (1, 8, 16) gemv_swiglu_i8_i4_1x8_neon = quant::gemv_swiglu::<_, I4, 2>;
        Fallback (1, 8, 4) gemv_swiglu_i8_i4_1x8_scalar = quant::gemv_swiglu::<_, I4, 8>;
    }
    QuantizeRows None "q = round(x · 127 / amax), scale = amax / 127" {
        Avx512 (0, 0) quantize_rows_f32_avx512 = quant::quantize_rows;
        Avx2 (0, 0) quantize_rows_f32_avx2 = quant::quantize_rows;
        Neon (0, 0) quantize_rows_f32_neon = quant::quantize_rows;
        Fallback (0, 0) quantize_rows_f32_scalar = quant::quantize_rows;
    }
    RmsNorm None "y = x / sqrt(mean(x²) + eps) · w" {
        Avx512 (0, 0) rms_norm_f32_avx512 = rows::rms_norm;
        Avx2 (0, 0) rms_norm_f32_avx2 = rows::rms_norm;
        Neon (0, 0) rms_norm_f32_neon = rows::rms_norm;
        Fallback (0, 0) rms_norm_f32_scalar = rows::rms_norm;
    }
    Softmax None "y = exp(x − max x) / Σ exp(x − max x)" {
        Avx512 (0, 0) softmax_f32_avx512 = rows::softmax;
        Avx2 (0, 0) softmax_f32_avx2 = rows::softmax;
        Neon (0, 0) softmax_f32_neon = rows::softmax;
        Fallback (0, 0) softmax_f32_scalar = rows::softmax;
    }
    Silu None "y = x / (1 + exp(−x))" {
        Avx512 (0, 0) silu_f32_avx512 = rows::silu;
        Avx2 (0, 0) silu_f32_avx2 = rows::silu;
        Neon (0, 0) silu_f32_neon = rows::silu;
        Fallback (0, 0) silu_f32_scalar = rows::silu;
    }
    Gelu None "y = ½x·(1 + tanh(√(2/π)·(x + 0.044715x³)))" {
        Avx512 (0, 0) gelu_f32_avx512 = rows::gelu;
        Avx2 (0, 0) gelu_f32_avx2 = rows::gelu;
        Neon (0, 0) gelu_f32_neon = rows::gelu;
        Fallback (0, 0) gelu_f32_scalar = rows::gelu;
    }
    L2Normalize None "y = x / max(‖x‖₂, 1e-12)" {
        Avx512 (0, 0) l2_normalize_f32_avx512 = rows::l2_normalize;
        Avx2 (0, 0) l2_normalize_f32_avx2 = rows::l2_normalize;
        Neon (0, 0) l2_normalize_f32_neon = rows::l2_normalize;
        Fallback (0, 0) l2_normalize_f32_scalar = rows::l2_normalize;
    }
    SiluMul None "y = silu(gate) ⊙ up" {
        Avx512 (0, 0) silu_mul_f32_avx512 = rows::silu_mul;
        Avx2 (0, 0) silu_mul_f32_avx2 = rows::silu_mul;
        Neon (0, 0) silu_mul_f32_neon = rows::silu_mul;
        Fallback (0, 0) silu_mul_f32_scalar = rows::silu_mul;
    }
    Rope None "y = half rotation of every head of x by its position" {
        Avx512 (0, 0) rope_f32_avx512 = rows::rope;
        Avx2 (0, 0) rope_f32_avx2 = rows::rope;
        Neon (0, 0) rope_f32_neon = rows::rope;
        Fallback (0, 0) rope_f32_scalar = rows::rope;
    }
    CopyRows None "y = x, strided runs" {
        Scalar (0, 0) copy_rows_scalar = rows::copy_rows;
    }
    CopyRows F16 "y = x as binary16, strided runs" {
        Avx512 (0, 0) copy_rows_f32_f16_avx512 = rows::copy_rows_f16;
        Avx2 (0, 0) copy_rows_f32_f16_avx2 = rows::copy_rows_f16;
        Neon (0, 0) copy_rows_f32_f16_neon = rows::copy_rows_f16;
        Fallback (0, 0) copy_rows_f32_f16_scalar = rows::copy_rows_f16;
    }
    CopyRows I8 "y = x as codes and scale, strided runs" {
        Avx512 (0, 0) copy_rows_f32_i8_avx512 = rows::copy_rows_i8;
        Avx2 (0, 0) copy_rows_f32_i8_avx2 = rows::copy_rows_i8;
        Neon (0, 0) copy_rows_f32_i8_neon = rows::copy_rows_i8;
        Fallback (0, 0) copy_rows_f32_i8_scalar = rows::copy_rows_i8;
    }
    AttendRange None "y = softmax(scale · q·kᵀ)·v over a range of keys" {
        Avx512 (0, 0) attend_range_f32_avx512 = attend::attend_range::<_, F32, 8, 2>;
        Avx2 (0, 0) attend_range_f32_avx2 = attend::attend_range::<_, F32, 4, 2>;
        Neon (0, 0) attend_range_f32_neon = attend::attend_range::<_, F32, 8, 2>;
        Fallback (0, 0) attend_range_f32_scalar = attend::attend_range::<_, F32, 4, 8>;
    }
    AttendRange F16 "y = softmax(scale · q·kᵀ)·v over a range of keys, cache in binary16" {
        Avx512 (0, 0) attend_range_f32_f16_avx512 = attend::attend_range::<_, F16, 8, 2>;
        Avx2 (0, 0) attend_range_f32_f16_avx2 = attend::attend_range::<_, F16, 4, 2>;
        Neon (0, 0) attend_range_f32_f16_neon = attend::attend_range::<_, F16, 8, 2>;
        Fallback (0, 0) attend_range_f32_f16_scalar = attend::attend_range::<_, F16, 4, 8>;
    }
    AttendRange I8 "y = softmax(scale · q·kᵀ)·v over a range of keys, cache in int8" {
        Avx512 (0, 0) attend_range_f32_i8_avx512 = attend::attend_range::<_, Codes, 8, 2>;
        Avx2 (0, 0) attend_range_f32_i8_avx2 = attend::attend_range::<_, Codes, 4, 2>;
        Neon (0, 0) attend_range_f32_i8_neon = attend::attend_range::<_, Codes, 8, 2>;
        Fallback (0, 0) attend_range_f32_i8_scalar = attend::attend_range::<_, Codes, 4, 8>;
    }
    AttendClustered None "y = softmax(scale · q·kᵀ)·v over window, sinks and own cluster" {
        Avx512 (0, 0) attend_clustered_f32_avx512 = attend::attend_clustered::<_, F32, 8, 2>;
        Avx2 (0, 0) attend_clustered_f32_avx2 = attend::attend_clustered::<_, F32, 4, 2>;
        Neon (0, 0) attend_clustered_f32_neon = attend::attend_clustered::<_, F32, 8, 2>;
        Fallback (0, 0) attend_clustered_f32_scalar = attend::attend_clustered::<_, F32, 4, 8>;
    }
    AttendClustered F16 "y = softmax(scale · q·kᵀ)·v over window, sinks and own cluster, cache in binary16" {
        Avx512 (0, 0) attend_clustered_f32_f16_avx512 = attend::attend_clustered::<_, F16, 8, 2>;
        Avx2 (0, 0) attend_clustered_f32_f16_avx2 = attend::attend_clustered::<_, F16, 4, 2>;
        Neon (0, 0) attend_clustered_f32_f16_neon = attend::attend_clustered::<_, F16, 8, 2>;
        Fallback (0, 0) attend_clustered_f32_f16_scalar = attend::attend_clustered::<_, F16, 4, 8>;
    }
    AttendClustered I8 "y = softmax(scale · q·kᵀ)·v over window, sinks and own cluster, cache in int8" {
        Avx512 (0, 0) attend_clustered_f32_i8_avx512 = attend::attend_clustered::<_, Codes, 8, 2>;
        Avx2 (0, 0) attend_clustered_f32_i8_avx2 = attend::attend_clustered::<_, Codes, 4, 2>;
        Neon (0, 0) attend_clustered_f32_i8_neon = attend::attend_clustered::<_, Codes, 8, 2>;
        Fallback (0, 0) attend_clustered_f32_i8_scalar = attend::attend_clustered::<_, Codes, 4, 8>;
    }
    ClusterAppend None "previous[t] = last[cluster]; last[cluster] = t" {
        Scalar (0, 0) cluster_append_scalar = route::cluster_append;
    }
    RouteScores None "a = softmax(scale · q·keysᵀ + lambda · ln(domains + 1e-6))" {
        Avx512 (0, 0) route_scores_f32_avx512 = route::route_scores;
        Avx2 (0, 0) route_scores_f32_avx2 = route::route_scores;
        Neon (0, 0) route_scores_f32_neon = route::route_scores;
        Fallback (0, 0) route_scores_f32_scalar = route::route_scores;
    }
    RouteCluster None "cluster = argmax a" {
        Scalar (0, 0) route_cluster_scalar = route::route_cluster;
    }
    SelectTopK None "the k_max best modules of a token" {
        Scalar (0, 0) select_top_k_scalar = policy::select_top_k;
    }
    SelectTopP None "the best modules of a token up to a mass of p" {
        Scalar (0, 0) select_top_p_scalar = policy::select_top_p;
    }
    SelectThreshold None "the modules of a token from a score of tau on" {
        Scalar (0, 0) select_threshold_scalar = policy::select_threshold;
    }
    SelectExpertChoice None "the best tokens of a module" {
        Scalar (0, 0) select_expert_choice_scalar = policy::select_expert_choice;
    }
    SelectBidirectional None "the k_max best modules of a token that have it among their best tokens" {
        Scalar (0, 0) select_bidirectional_scalar = policy::select_bidirectional;
    }
    RouteGroup None "counting sort of (token, module) pairs by module" {
        Scalar (0, 0) route_group_scalar = route::route_group;
    }
    RouteMemory None "y = Σ gate · value over the selected clusters" {
        Avx512 (0, 0) route_memory_f32_avx512 = route::route_memory;
        Avx2 (0, 0) route_memory_f32_avx2 = route::route_memory;
        Neon (0, 0) route_memory_f32_neon = route::route_memory;
        Fallback (0, 0) route_memory_f32_scalar = route::route_memory;
    }
    GatherRows None "y[i] = x[index[i]]" {
        Scalar (0, 0) gather_rows_scalar = rows::gather_rows;
    }
    ScatterAdd None "y[index[i]] += gate[i] · x[i]" {
        Avx512 (0, 0) scatter_add_f32_avx512 = rows::scatter_add;
        Avx2 (0, 0) scatter_add_f32_avx2 = rows::scatter_add;
        Neon (0, 0) scatter_add_f32_neon = rows::scatter_add;
        Fallback (0, 0) scatter_add_f32_scalar = rows::scatter_add;
    }
    EmbedRows F32 "y = table[id], row-major table" {
        Scalar (0, 0) embed_rows_f32_scalar = embed::embed_rows::<_, F32>;
    }
    EmbedRows F16 "y = table[id], row-major table" {
        Avx512 (0, 0) embed_rows_f16_avx512 = embed::embed_rows::<_, F16>;
        Avx2 (0, 0) embed_rows_f16_avx2 = embed::embed_rows::<_, F16>;
        Neon (0, 0) embed_rows_f16_neon = embed::embed_rows::<_, F16>;
        Fallback (0, 0) embed_rows_f16_scalar = embed::embed_rows::<_, F16>;
    }
    EmbedRows I8 "y = table[id] · scale, row-major table" {
        Scalar (0, 1, 4) embed_rows_i8_scalar = quant::embed_i8;
    }
    EmbedRows I4 "y = table[id] · scale, row-major table" {
        Scalar (0, 1, 4) embed_rows_i4_scalar = quant::embed_i4;
    }
    EmbedPanels F32 "y = table[id], table in panels" {
        Scalar (0, 0) embed_panels_f32_scalar = embed::embed_panels::<F32>;
    }
    EmbedPanels F16 "y = table[id], table in panels" {
        Scalar (0, 0) embed_panels_f16_scalar = embed::embed_panels::<F16>;
    }
    EmbedPanels I8 "y = table[id] · scale, table in panels" {
        Scalar (0, 0) embed_panels_i8_scalar = quant::embed_i8;
    }
    EmbedPanels I4 "y = table[id] · scale, table in panels" {
        Scalar (0, 0) embed_panels_i4_scalar = quant::embed_i4;
    }
    MeanRows None "y = mean over the rows of x" {
        Avx512 (0, 0) mean_rows_f32_avx512 = rows::mean_rows;
        Avx2 (0, 0) mean_rows_f32_avx2 = rows::mean_rows;
        Neon (0, 0) mean_rows_f32_neon = rows::mean_rows;
        Fallback (0, 0) mean_rows_f32_scalar = rows::mean_rows;
    }
}

/// Every kernel of every instruction set, the same list on every host.
pub fn kernels() -> &'static [KernelRow] {
    KERNELS
}

/// The row of that name.
pub fn find(name: &str) -> Option<&'static KernelRow> {
    KERNELS.iter().find(|row| row.name == name)
}

/// The function of the kernel of that name, if this architecture has it. Whether this CPU has the features is the
/// caller's to know: see [`resolve_for`].
pub fn resolve(name: &str) -> Option<KernelFn> {
    find(name)?.function
}

/// The function of the kernel of that name, if a CPU with `features` runs it.
pub fn resolve_for(name: &str, features: &FeatureSet) -> Option<KernelFn> {
    let row = find(name)?;
    features.contains(row.required()).then_some(row.function).flatten()
}

/// The best kernel for an operation on a CPU with these features; none when the operation has no kernel for that
/// weight type. Depends on nothing but its arguments: the best instruction set wins, then the table's order.
pub fn select(op: KernelOp, features: &FeatureSet, weight: WeightType) -> Option<&'static KernelRow> {
    KERNELS
        .iter()
        .filter(|row| row.op == op && row.weight == weight && features.contains(row.required()))
        .reduce(|best, row| if row.isa > best.isa { row } else { best })
}
