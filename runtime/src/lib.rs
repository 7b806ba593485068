//! Loads and runs `.lapis` artifacts.
//!
//! The core needs no allocator and no operating system: [`Program::load`] checks an artifact against the machine and
//! an [`Executor`] calls its code with memory that the caller hands in. Feature `std` adds what a process has: mapped
//! files (`Model`), threads (`ThreadPool`), sequences (`Session`), sampling (`Sampler`). Feature `text` adds the
//! tokenizer and streaming text.
//!
//! What lies here: loading, calling, bounds of calls. What does not: the file format (`lapidary-format`), arithmetic
//! (`lapidary-kernels`), anything that knows a model's structure (the compiler).
#![no_std]

#[cfg(any(feature = "std", test))]
extern crate std;

mod error;
mod executor;
mod parallel;
mod program;
mod short_text;
mod view;

pub use error::{LoadError, RunError};
pub use executor::{CodeImage, Executor};
pub use lapidary_format as format;
pub use parallel::{ParallelFor, SingleThread};
pub use program::{Call, Machine, Program};
pub use short_text::ShortText;
pub use view::View;

#[cfg(target_endian = "big")]
compile_error!("artifacts are little-endian and read in place");
