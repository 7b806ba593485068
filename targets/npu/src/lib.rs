//! The NPU target: how does a plan become an NPU program?
//!
//! * [`builder`]: programs instruction by instruction, with registers and tokens by name.
//! * [`matmul`](mod@matmul): matrix multiplication for any machine: tiles, buffers, schedule.
//! * [`gemm`]: a program that is one matrix multiplication, its operands and its result: what `lapidary simulate --gemm` times.
//! * [`model`]: whole models. [`mod@reference`]: what they compute, bit for bit, as plain loops.
//!
//! Not here: what instructions are (`lapidary-npu-isa`), and how long they take (the simulator, which this crate never sees: a
//! lowering decides by the machine's description and the formulas of `ISA.md`).
//!
//! ```
//! use lapidary_npu_isa::{Machine, verify::verify};
//! use lapidary_target_npu::gemm::gemm_program;
//!
//! let machine = Machine::preset("edge-16").unwrap();
//! let gemm = gemm_program(&machine, 128, 384, 384).unwrap();
//! verify(&gemm.program, &machine).unwrap();
//! assert_eq!(gemm.summary.matrix_cycles, 100_224);
//! assert_eq!(gemm.summary.moved_bytes(), gemm.summary.compulsory_bytes());
//! ```

pub mod builder;
mod error;
pub mod gemm;
pub mod matmul;
pub mod model;
pub mod reference;

pub use builder::{Builder, Place, Value};
pub use error::LowerError;
