//! The CPU target: how does a plan become x86-64 or AArch64 code?
//!
//! Cranelift compiles the model around the micro-kernels of `lapidary-kernels`: one native function per step with every
//! shape, stride and offset a constant, loops over ragged groups, element-wise tails, calls through a table of kernels. There
//! is no interpreter and no op dispatch when the program runs. Code is position-independent and reaches everything
//! through the execution context (`lapidary_format::abi`), so it runs from wherever it is mapped.
//!
//! * [`targets`]: what a program may assume of its machine.
//! * [`layout`]: where packed weights lie.
//! * [`lower()`]: planned graph → [`Lowered`] → artifact.
//! * [`disasm`]: an artifact's code as text, with the names of what it calls and reads.

mod artifact;
pub mod disasm;
mod emit;
mod error;
pub mod layout;
mod lower;
pub mod program;
mod stack;
pub mod targets;

pub use artifact::{About, Lowered, component_name, lower};
pub use error::LowerError;
pub use lower::Entry;
pub use targets::{Architecture, CPU_TARGETS, CpuTarget, CpuTargetRow};
