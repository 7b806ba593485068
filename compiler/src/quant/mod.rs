//! Quantization: what every quantized product is, exactly.
//!
//! The definitions stand here once: how an activation row is rounded ([`quantize_row`]), which codes and scales a weight
//! row gets ([`quantize_int8`], [`quantize_int4`]), what integer products give ([`int8_dot`], [`int4_dot`]), what a cache
//! keeps of keys and values ([`round_kv_row`]). The reference interpreter computes with them; kernels of every target give
//! the same integers and, where an order is stated, the same floats. Every f32 operation is one IEEE operation in the
//! order written, rounded to nearest even. `docs/quantization.md` tells the same in formulas.
//!
//! ```
//! use lapidary_compiler::quant::{int8_dot, quantize_int8, quantize_row};
//! let x = quantize_row(&[0.5, -1.0, 0.25]);
//! let w = quantize_int8(&[1.0, 1.0, -1.0], None);
//! assert_eq!(x.codes, [64, -127, 32]);
//! assert_eq!(int8_dot(&x, &w.codes, w.scale), (-95.0 * 127.0 * w.scale) * x.scale);
//! ```

mod activations;
mod budget;
pub mod calibrate;
mod kv;
mod product;
mod recipe;
mod recipe_file;
mod weights;

pub use activations::{QuantizedRow, SMALLEST_AMAX, quantize_row, quantized_row_bytes};
pub use budget::{BUDGET_ORDER, BUDGET_STORAGES, BudgetError, fit_budget, parse_bytes};
pub use kv::round_kv_row;
pub use product::{int4_dot, int8_dot};
pub use recipe::{
    Builtin, Choice, ComponentSize, Recipe, RecipeError, Rule, UnknownRecipe, allowed, recipe_kv_name, recipe_name,
};
pub use recipe_file::RecipeFileError;
pub use weights::{Int4Row, Int8Row, QuantizedRows, Scales, quantize_int4, quantize_int8};
