//! How a routed language model is computed fast on a CPU: SIMD micro-kernels and the packing of their weights.
//!
//! Lives here: one row per kernel in [`kernels`] (its name is its specification), the argument blocks that generated
//! code fills ([`args`]), the CPU features a kernel needs ([`FeatureSet`]), and the weight layouts ([`pack()`]). Not
//! here: what to compute and in which order (the compiler), threads and memory (the runtime).
//!
//! The metadata of every row is visible on every host, because a compiler on x86-64 plans for a Raspberry Pi; only the
//! function is missing where the instruction set is.
//!
//! ```
//! use lapidary_kernels::{Feature, FeatureSet, KernelOp, WeightType, resolve_for, select};
//! let rpi4 = FeatureSet::of(&[Feature::Neon]);
//! let row = select(KernelOp::Gemm, &rpi4, WeightType::F16).unwrap();
//! assert_eq!(row.name, "gemm_f32_f16_8x8_neon");
//! assert_eq!(row.tile.nr, 8);
//! // A kernel can only be had by showing that the CPU runs it.
//! assert!(resolve_for(row.name, &FeatureSet::EMPTY).is_none());
//! ```
#![no_std]

pub mod args;
mod attend;
mod embed;
mod features;
mod gemm;
pub mod limits;
mod math;
mod pack;
mod quant;
mod route;
mod rows;
mod select;
mod simd;
mod stack;
mod table;

pub use args::KernelFn;
pub use attend::kv_row_bytes;
pub use features::{Feature, FeatureSet, Isa};
pub use pack::{PackError, Source, pack, pack_swiglu, packed_bytes, panel_bytes};
pub use quant::{QuantLayout, QuantPackError, QuantSource, pack_quantized, pack_quantized_swiglu, quantized_row_bytes};
pub use table::{KernelOp, KernelRow, Tile, WeightType, find, kernels, resolve, resolve_for, select};
